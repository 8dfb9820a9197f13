"""The connection to a Resonate server: the SDK's connection, and the workarounds that several processes need."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import uuid
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
from resonate.connections import HttpConnection, SSEConnection
from resonate.error import ConnectorError, PlatformError, ResonateError, ServerError
from resonate.retry import ExponentialBackoff
from resonate.transport import ExecuteMsg, Message, Response, ResponseHead
from resonate_base import PROTOCOL_VERSION

from clients.command import limits
from clients.command.console import Unavailable, print_diagnostic
from clients.promises import cannot_run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from clients.command.outages import Outages

#: The group that workers listen to. The SDK's default group would also receive other applications' work.
GROUP = "create-account"

#: How long a dead process's tasks stay leased. The SDK renews a lease after half of that time.
LEASE = timedelta(seconds=10)

#: Seconds between two requests for a task that another process has leased.
POLL_INTERVAL_S = 0.5

#: Seconds between the SDK's requests for a missing result: the message that carries it can get lost.
REFRESH_INTERVAL_S = 5

#: Delays, in seconds, between two attempts to reach an unavailable server.
RECONNECT = ExponentialBackoff(initial=0.1, max_delay=5)

#: Seconds without a message after which a listener reconnects.
SILENCE_TIMEOUT_S = 60

#: Tasks that may wait in a worker's memory: a few MB.
WAITING_TASKS_MAX = 10_000

#: Seconds that a stopping process has for releasing its tasks.
RELEASE_TIMEOUT_S = 0.6


def server(url: str, token: str | None, outages: Outages, *, serve: bool) -> dict[str, Any]:
    """Return the arguments of `Resonate` for a command, or, with `serve`, for a worker."""
    pid = uuid.uuid4().hex
    # A command has a group of its own: workers or a rerun resume the tasks of a dead process.
    messages = Messages(url, token, pid, GROUP if serve else pid)
    return {
        "network": Requests(url, token, outages, messages),
        "sources": [messages],
        "pid": pid,
        "group": GROUP,
        "ttl": LEASE,
        "token": token,
        "subscription_refresh_secs": REFRESH_INTERVAL_S,
    }


class Request(msgspec.Struct, eq=False):
    """The part of a request that shows what happens to a task."""

    kind: str
    data: dict[str, Any]


class Requests(HttpConnection):
    """The SDK's requests, with workarounds. tests/test_canaries.py shows that the SDK still needs each.

    - Outages: a request that gets no answer in time is reported. The SDK would retry silently without a limit.
    - Server errors: a request that the server answers with 5xx, because its database is locked for example,
      is repeated. The SDK would give up the account. Every request may be repeated; in the worst case the
      process waits for its own lease to expire.
    - Unexpected errors: an error that the SDK does not expect, such as aiohttp's time-out after five minutes,
      would end the execution without releasing its task. As a `ConnectorError` the task is released.
    - Leases: a task of this process that another process has leased is polled until it is settled. The server
      would offer it to one process of its choice and, if that one is dead, to the next only much later.
    - Results: a result of this process is delivered to it at once. The server pushes ten times a second.
    - Tasks that cannot be executed: a worker does not release such a task. The server would offer it again at
      once, in a loop. Its lease expires first. A command stops waiting for it (cannot_run.py).
    - Missing promises: the SDK takes a 404 for the promise's end, also while it creates the promise.
    - The end: the SDK closes the connection before the running tasks are released.
    """

    def __init__(self, url: str, token: str | None, outages: Outages, messages: Messages) -> None:
        super().__init__(url=url, auth=token, backoff=RECONNECT)
        self._name = f"the Resonate server at {re.sub('//[^/@]*@', '//', self._url)}"  # no password
        self._outages = outages
        self._messages = messages
        self._timeout_s = limits.FIRST_ANSWER_TIMEOUT_S
        self._started: set[str] = set()
        self._leased_tasks: set[str] = set()
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._stopping = False
        self._stopped_event = asyncio.Event()
        self._failing: set[Request] = set()
        self._named: set[str] = set()

    async def send(self, req: str, headers: dict[str, str] | None = None) -> str:
        request = msgspec.json.decode(req, type=Request)
        if request.kind == "task.acquire":
            self._messages.waiting.discard(request.data["id"])
        if request.kind == "task.release" and self._outages.wait_forever:
            self._leased_tasks.discard(request.data["id"])
            # The SDK releases where it handles what went wrong.
            error = sys.exception()
            why = f"{error}; its task is not released and is redelivered after the lease expires"
            cause = error.cause if isinstance(error, PlatformError) else error
            conflict = isinstance(cause, ServerError) and cause.code == HTTPStatus.CONFLICT
            if not conflict and request.data["id"] not in self._named:  # a conflict: another process has leased it
                self._named.add(request.data["id"])
                print_diagnostic(f"cannot run {request.data['id']}: {why}")
            raise ConnectorError(RuntimeError(why))
        response, reply = await self._ask(request, req, headers)
        if request.kind == "promise.register_listener" and reply.head.status == HTTPStatus.NOT_FOUND:
            # The SDK takes this for the promise's end, and it asks even before the server has the promise.
            if request.data["awaited"] in self._started:
                self._report(f"no longer has the promise {request.data['awaited']}; run again")
            raise ConnectorError(RuntimeError("no such promise"))
        self._track_lease(request, reply)
        return response

    async def stop(self) -> None:
        """Give running tasks time to be released, so that the next process need not wait for the lease."""
        self._stopping = True
        for asking in self._asking.values():
            asking.cancel()
        deadline = asyncio.get_running_loop().time() + RELEASE_TIMEOUT_S
        while self._leased_tasks and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        self._stopped_event.set()
        await super().stop()

    async def _ask(self, request: Request, req: str, headers: dict[str, str] | None) -> tuple[str, Response]:
        """Return the response. A response with a server error (5xx) is not returned; the request is repeated."""
        now = asyncio.get_running_loop().time
        give_up = now() + limits.ANSWER_TIMEOUT_S
        try:
            while not (self._stopping and request.kind == "task.acquire"):
                response = await self._answer(req, headers)
                self._failing.discard(request)
                reply = self._reply(response)
                if reply.head.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                    return response, reply
                self._failing.add(request)
                if now() > give_up:
                    self._report(f"keeps returning status {reply.head.status}; check the server and run again")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopped_event.wait(), POLL_INTERVAL_S)
            raise ConnectorError(RuntimeError("this process is stopping"))
        finally:
            self._failing.discard(request)

    async def _answer(self, req: str, headers: Mapping[str, str] | None) -> str:
        answer: asyncio.Future[Any] = asyncio.ensure_future(super().send(req, dict(headers or {})))
        stopped: asyncio.Future[Any] = asyncio.ensure_future(self._stopped_event.wait())
        either = {answer, stopped}
        try:
            done, _ = await asyncio.wait(either, timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                self._report(f"did not answer within {self._timeout_s:.0f} s; start it and run again")
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ConnectorError(RuntimeError("this process is stopping"))
            response: str = answer.result()
        except ResonateError:
            raise
        except Exception as error:
            raise ConnectorError(error) from error
        finally:
            answer.cancel()
            stopped.cancel()
        self._timeout_s = limits.ANSWER_TIMEOUT_S
        return response

    def _reply(self, response: str) -> Response:
        try:
            reply = msgspec.json.decode(response, type=Response)
        except msgspec.MsgspecError:
            reply = Response(head=ResponseHead(status=HTTPStatus.BAD_GATEWAY))
        if not reply.kind:
            self._report(f"sent an invalid response: {response[:60]!r}; correct RESONATE_URL and run again")
        elif reply.head.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            self._report("rejected the token; correct RESONATE_TOKEN and run again")
        elif not self._failing and reply.head.status < HTTPStatus.INTERNAL_SERVER_ERROR:
            self._outages.over(self._name)
        return reply

    def _report(self, problem: str) -> None:
        self._outages.report(Unavailable(f"{self._name} {problem}"), self._name)

    def _track_lease(self, request: Request, reply: Response) -> None:
        """Track the tasks this process started and the leases it holds."""
        done = reply.head.status < HTTPStatus.BAD_REQUEST
        match request.kind:
            case "task.create":
                task_id = request.data["action"]["data"]["id"]
                self._started.add(task_id)
                if reply.head.status == HTTPStatus.CONFLICT:
                    if not self._asking:
                        seconds = f"{LEASE.total_seconds():.0f} s"
                        print_diagnostic(
                            f"another process holds the lease of {task_id}; waiting for its result, or up to "
                            f"{seconds} for the lease to expire"
                        )
                    self._ask_for(task_id)
                elif done and reply.data["task"]["state"] == "acquired":
                    self._leased_tasks.add(task_id)
            case "task.acquire" if done:
                self._leased_tasks.add(request.data["id"])
            case "task.fulfill" | "task.suspend" if done:
                self._leased_tasks.discard(request.data["id"])
                self._started.discard(request.data["id"])
                if request.kind == "task.fulfill":
                    self._messages.deliver("unblock", {"promise": reply.data["promise"]})
            case "task.release":
                self._leased_tasks.discard(request.data["id"])
                if cause := cannot_run.cause_of_release():
                    self._started.discard(request.data["id"])
                    self._messages.deliver(**cannot_run.message(request.data["id"], cause))
                self._ask_for(request.data["id"])

    def _ask_for(self, task_id: str) -> None:
        if task_id in self._started and task_id not in self._asking:
            self._asking[task_id] = asyncio.create_task(self._poll_until_leased(task_id))
            self._asking[task_id].add_done_callback(lambda _: self._asking.pop(task_id))

    async def _poll_until_leased(self, task_id: str) -> None:
        head = {"corrId": uuid.uuid4().hex, "version": PROTOCOL_VERSION}
        request = {
            "kind": "task.get",
            "head": head | ({"auth": self._auth} if self._auth else {}),
            "data": {"id": task_id},
        }
        with contextlib.suppress(ResonateError):  # stopping, or an outage that is reported
            while task_id not in self._leased_tasks:
                await asyncio.sleep(POLL_INTERVAL_S)
                reply = self._reply(await self._answer(msgspec.json.encode(request).decode(), None))
                if reply.head.status == HTTPStatus.NOT_FOUND:
                    break
                state = reply.data["task"]["state"] if reply.head.status == HTTPStatus.OK else "unknown"
                if state == "fulfilled":
                    break
                if state == "pending":
                    self._messages.deliver(
                        "execute", {"task": {"id": task_id, "version": reply.data["task"]["version"]}}
                    )


class Messages(SSEConnection):
    """The SDK's listener, without aiohttp's five-minute limit for a response, and with a limit for its queue.

    The SDK does not handle the `TimeoutError` that ends such a response: it would never receive a message
    again. Here a silent connection is closed after `SILENCE_TIMEOUT_S`; the SDK then reconnects.

    The SDK queues every task that the server offers, and the server offers an unstarted task again and
    again. Here each task is queued once. If the queue is full, the task is left to the server.
    """

    def __init__(self, url: str, token: str | None, pid: str, group: str) -> None:
        super().__init__(url=url, pid=pid, group=group, auth=token, backoff=RECONNECT)
        self.waiting: set[str] = set()

    def recv(self, callback: Callable[[str], None]) -> None:
        def receive(raw: str) -> None:
            message = None
            with contextlib.suppress(msgspec.MsgspecError):  # the SDK drops it
                message = msgspec.json.decode(raw, type=Message)
            if isinstance(message, ExecuteMsg):
                if message.task_id in self.waiting or len(self.waiting) >= WAITING_TASKS_MAX:
                    return
                self.waiting.add(message.task_id)
            callback(raw)

        super().recv(receive)

    def deliver(self, kind: str, data: dict[str, Any]) -> None:
        """Deliver a message as if the server had pushed it."""
        message = msgspec.json.encode({"kind": kind, "data": data}).decode()
        for receive in list(self._subscribers):
            receive(message)

    def _ensure_session(self) -> aiohttp.ClientSession:
        if self._session is None and not self._stopped:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None, sock_read=SILENCE_TIMEOUT_S)
            )
        return super()._ensure_session()
