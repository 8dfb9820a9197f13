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

from clients.account import PREFIX
from clients.command import limits
from clients.command.console import Unavailable, print_diagnostic
from clients.promises import cannot_run
from clients.promises.cannot_run import StillLeased

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from clients.command.outages import Outages

#: The group that workers listen to. The SDK's default group would also receive other applications' work.
GROUP = PREFIX

#: How long a dead process's tasks stay leased. The SDK renews a lease after half of that time.
LEASE = timedelta(seconds=10)

#: Seconds between two requests for a task that another process has leased.
POLL_INTERVAL_S = 0.5

#: Seconds between the SDK's requests for a missing result: the message that carries it can get lost.
REFRESH_INTERVAL_S = 5


class Backoff(ExponentialBackoff, frozen=True):
    """The SDK's delays, which end with an OverflowError after 1,024 attempts: canary test_backoff_ends_at_an_overflow."""

    def delay(self, attempt: int) -> float:
        return super().delay(min(attempt, 100))


#: Delays, in seconds, between two attempts to reach an unavailable server.
RECONNECT = Backoff(initial=0.1, max_delay=5)

#: Delays, in seconds, before a worker tries a task again that it could not execute. Meanwhile others may take it.
REFUSED = Backoff(initial=0.5, max_delay=60)

#: Seconds without a message after which a listener reconnects.
SILENCE_TIMEOUT_S = 60

#: The server rejects the token.
REJECTED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}

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
    head: dict[str, Any] = {}


def parsed(response: str) -> Response:
    """Return the server's response. It has no kind if something else than a Resonate server sent it."""
    try:
        return msgspec.json.decode(response, type=Response)
    except msgspec.MsgspecError:
        return Response(head=ResponseHead(status=HTTPStatus.BAD_GATEWAY))


class Requests(HttpConnection):
    """The SDK's requests, with workarounds. The test in tests/test_canaries.py fails when the SDK needs one no more.

    - Outages: a request that gets no answer in time is reported. The SDK would retry silently without a limit.
      Canary: test_outages_are_retried_silently_without_a_limit.
    - Reverse proxies: the answer of a proxy in the server's place is an outage. The SDK ignores the HTTP status.
      Canary: test_http_status_is_ignored.
    - Server errors: a request that the server answers with 5xx, because its database is locked for example,
      is repeated. The SDK would give up the account. Every request may be repeated; in the worst case the
      process waits for its own lease to expire. Canary: test_server_error_ends_the_execution.
    - Unexpected errors: an error that the SDK does not expect, such as aiohttp's time-out after five minutes,
      would end the execution without releasing its task. As a `ConnectorError` the task is released.
      Canary: test_unexpected_error_of_a_request_ends_the_execution_without_a_release.
    - Leases: a task of this process that another process has leased is polled until it is settled. The server
      would offer it to one process of its choice and, if that one is dead, to the next only much later.
      Canary: test_task_that_another_process_had_leased_is_not_requested_again.
    - Results: a result of this process is delivered to it at once. The server pushes ten times a second.
      Canary: test_own_result_is_not_delivered_before_the_server_pushes_it.
    - Tasks that cannot be executed: a worker releases such a task, because another process may be able to execute it.
      The server offers it again at once. The worker waits longer each time before it tries again. A command stops
      waiting for it (cannot_run.py).
      Canary: test_worker_releases_a_task_that_it_cannot_execute_and_is_offered_it_at_once.
    - Missing promises: the SDK takes a 404 for the promise's end, also while it creates the promise.
      Canary: test_listener_takes_a_404_for_the_end_of_a_promise_that_is_being_created.
    - The end: the SDK closes the connection before the running tasks are released.
      Canary: test_stop_closes_the_connection_before_running_tasks_are_released.
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
        self._give_up: dict[str, float] = {}
        self._cause = ""

    async def send(self, req: str, headers: dict[str, str] | None = None) -> str:
        request = msgspec.json.decode(req, type=Request)
        if request.kind == "task.acquire":
            self._messages.waiting.discard(request.data["id"])
        if request.kind == "task.release" and self._outages.wait_forever:
            self._leased_tasks.discard(request.data["id"])
            self._name_cause(request.data["id"])
        response, reply = await self._ask(request, req, headers)
        if request.kind == "promise.register_listener" and reply.head.status == HTTPStatus.NOT_FOUND:
            # The SDK takes this for the promise's end, and it asks even before the server has the promise.
            if request.data["awaited"] in self._started:
                self._report(f"no longer has the promise {request.data['awaited']}; run again")
            raise ConnectorError(RuntimeError("no such promise"))
        self._track_lease(request, reply)
        return response

    def _name_cause(self, id_: str) -> None:
        """Print once why this worker does not run the task. Raises `ConnectorError` if the task must not be released."""
        if hopeless := cannot_run.cause_of_release():
            why, repeated = f"{hopeless}; its task is left to other processes", self._messages.refuse(id_)
        else:
            error = sys.exception()  # the SDK releases where it handles what went wrong
            why = f"{error}; its task is not released and is redelivered after the lease expires"
            cause = error.cause if isinstance(error, PlatformError) else error
            conflict = (
                isinstance(cause, ServerError) and cause.code == HTTPStatus.CONFLICT
            )  # another process has leased it
            outage = isinstance(cause, ConnectorError) and isinstance(cause.error, Unavailable)  # it is reported
            repeated = conflict or outage or id_ in self._named
            self._named.add(id_)
        if not repeated:
            print_diagnostic(f"cannot run {id_}: {why}")
        if not hopeless:
            raise ConnectorError(RuntimeError(why))

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
                reply = self._reply(request, response)
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
                cause = f": {self._cause}; start it, or correct RESONATE_URL," if self._cause else "; start it"
                self._report(f"did not answer within {self._timeout_s:.0f} s{cause} and run again")
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ConnectorError(RuntimeError("this process is stopping"))
            response: str = answer.result()
        except ResonateError:
            raise
        except UnicodeDecodeError:
            response = "not UTF-8"
        except Exception as error:
            raise ConnectorError(error) from error
        finally:
            answer.cancel()
            stopped.cancel()
        self._timeout_s, self._cause = limits.ANSWER_TIMEOUT_S, ""
        return response

    def _ensure_session(self) -> aiohttp.ClientSession:
        if self._session is None and not self._stopped:
            connector = aiohttp.TCPConnector(limit=self._conn_limit)
            self._session = aiohttp.ClientSession(connector=connector, raise_for_status=self._check_sender)
        return super()._ensure_session()

    async def _check_sender(self, response: aiohttp.ClientResponse) -> None:
        """Raise an error, as for a lost connection, if something else than a Resonate server answers with an error."""
        status = response.status
        if status < HTTPStatus.BAD_REQUEST or parsed(await response.text(errors="replace")).kind:
            return
        if status in REJECTED:
            self._report_rejection("")
        elif status < HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.TOO_MANY_REQUESTS:
            self._report(
                f"is no Resonate server: it answered with HTTP status {status}; correct RESONATE_URL and run again"
            )
        raise aiohttp.ClientError(f"a proxy answered with HTTP status {status}")

    async def _sleep_or_stop(self, secs: float) -> None:
        self._cause = str(sys.exception())  # the SDK sleeps where it handles what went wrong
        await super()._sleep_or_stop(secs)

    def _reply(self, request: Request, response: str) -> Response:
        reply = parsed(response)
        if not reply.kind:
            self._report(f"sent an invalid response: {response[:60]!r}; correct RESONATE_URL and run again")
        elif reply.head.status in REJECTED:
            self._report_rejection(f" for {request.kind} {request.data.get('id', '')}")
        elif not self._failing and reply.head.status < HTTPStatus.INTERNAL_SERVER_ERROR:
            self._outages.over(self._name)
        return reply

    def _report(self, problem: str) -> None:
        self._outages.report(Unavailable(f"{self._name} {problem}"), self._name)

    def _report_rejection(self, what: str) -> None:
        """End the command, and also a worker: its environment cannot change, but that of a restarted worker can."""
        rejection = Unavailable(
            f"{self._name} rejected the token{what}; correct RESONATE_TOKEN (docs/security.md) and run again"
        )
        rejection.is_temporary = False
        self._outages.report(rejection)

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
                self._give_up.pop(request.data["id"], None)
            case "task.fulfill" | "task.suspend" if done:
                self._leased_tasks.discard(request.data["id"])
                self._started.discard(request.data["id"])
                if request.kind == "task.fulfill":
                    self._messages.deliver("unblock", {"promise": reply.data["promise"]})
            case "task.release":
                self._leased_tasks.discard(request.data["id"])
                if cause := cannot_run.cause_of_release():
                    self._started.discard(request.data["id"])
                    end = cannot_run.unexecutable(request.data["id"], cause)
                    self._messages.deliver(**cannot_run.message(request.data["id"], end))
                self._ask_for(request.data["id"])

    def _ask_for(self, task_id: str) -> None:
        if task_id in self._started and task_id not in self._asking:
            self._asking[task_id] = asyncio.create_task(self._poll_until_leased(task_id))
            self._asking[task_id].add_done_callback(lambda _: self._asking.pop(task_id))

    async def _poll_until_leased(self, task_id: str) -> None:
        head = {"corrId": uuid.uuid4().hex, "version": PROTOCOL_VERSION}
        request = Request("task.get", {"id": task_id}, head | ({"auth": self._auth} if self._auth else {}))
        now, timeout_s = asyncio.get_running_loop().time, limits.ANSWER_TIMEOUT_S
        # The next runs of this task in this process give up at the same time: many accounts can wait for one batch.
        if now() > self._give_up.get(task_id, -timeout_s) + timeout_s:
            self._give_up[task_id] = now() + timeout_s
        give_up = self._give_up[task_id]
        with contextlib.suppress(ResonateError):  # stopping, or an outage that is reported
            while task_id not in self._leased_tasks:
                if now() > give_up:
                    self._started.discard(task_id)
                    end = StillLeased(
                        f"promise {task_id} is still pending after {timeout_s:.0f} s, because another process holds its "
                        "lease; wait for that process, or stop it, and run again"
                    )
                    self._messages.deliver(**cannot_run.message(task_id, end))
                    break
                await asyncio.sleep(POLL_INTERVAL_S)
                reply = self._reply(request, await self._answer(msgspec.json.encode(request).decode(), None))
                if reply.head.status == HTTPStatus.NOT_FOUND:
                    break
                state = reply.data["task"]["state"] if reply.head.status == HTTPStatus.OK else "unknown"
                if state == "fulfilled":
                    self._give_up.pop(task_id, None)
                    break
                if state == "pending":
                    self._messages.deliver(
                        "execute", {"task": {"id": task_id, "version": reply.data["task"]["version"]}}
                    )


class Messages(SSEConnection):
    """The SDK's listener, with workarounds.

    - Silence: the SDK does not handle the `TimeoutError` that ends a response after aiohttp's limit of five minutes.
      It would never receive a message again. Here a silent connection is closed after `SILENCE_TIMEOUT_S`; the SDK
      then reconnects. Canary: test_listener_ends_for_good_at_the_time_limit_of_aiohttp.
    - The queue: the SDK queues every task that the server offers, and the server offers an unstarted task again and
      again. Here each task is queued once. If the queue is full, the task is left to the server.
      Canary: test_sdk_queues_a_task_each_time_that_it_is_offered.
    """

    def __init__(self, url: str, token: str | None, pid: str, group: str) -> None:
        super().__init__(url=url, pid=pid, group=group, auth=token, backoff=RECONNECT)
        self.waiting: set[str] = set()
        self._refused: dict[str, int] = {}
        self._delayed: set[str] = set()

    def refuse(self, task_id: str) -> bool:
        """Receive this task later and later, because this process cannot execute it. Returns whether it was refused before."""
        before = self._refused.pop(task_id, 0)
        if len(self._refused) == WAITING_TASKS_MAX:
            del self._refused[next(iter(self._refused))]
        self._refused[task_id] = before + 1
        return before > 0

    def recv(self, callback: Callable[[str], None]) -> None:
        def queue(task_id: str, raw: str) -> None:
            self._delayed.discard(task_id)
            if task_id not in self.waiting and len(self.waiting) < WAITING_TASKS_MAX:
                self.waiting.add(task_id)
                callback(raw)

        def receive(raw: str) -> None:
            message = None
            with contextlib.suppress(msgspec.MsgspecError):  # the SDK drops it
                message = msgspec.json.decode(raw, type=Message)
            if not isinstance(message, ExecuteMsg):
                callback(raw)
            elif message.task_id not in self._refused:
                queue(message.task_id, raw)
            elif message.task_id not in self._delayed:
                self._delayed.add(message.task_id)
                delay_s = REFUSED.delay(self._refused[message.task_id])
                asyncio.get_running_loop().call_later(delay_s, queue, message.task_id, raw)

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
