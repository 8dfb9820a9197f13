"""The connection to a Resonate server: the SDK's connection, with workarounds: docs/workarounds.md."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import time
import uuid
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector
from resonate.connections import HttpConnection, SSEConnection
from resonate.error import ConnectorError, PlatformError, ResonateError, ServerError
from resonate.retry import ExponentialBackoff
from resonate.transport import ExecuteMsg, Message, Response, ResponseHead
from resonate_base import PROTOCOL_VERSION

from clients import limits
from clients.account import PREFIX
from clients.command.console import print_diagnostic
from clients.errors import Lasting, NoAnswer, Unavailable
from clients.outages import repeat
from clients.promises import cannot_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

    from clients.outages import Outages

#: The group that workers listen to. The SDK's default group would also receive other applications' work.
WORKERS = PREFIX

#: How long a dead process's tasks stay leased. The SDK renews a lease after half of that time.
LEASE = timedelta(seconds=10)

#: Seconds between the SDK's requests for a missing result: the message that carries it can get lost.
REFRESH_INTERVAL_S = 5


class Backoff(ExponentialBackoff, frozen=True):
    """The SDK's delays, which end with an OverflowError after 1,024 attempts."""

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
RELEASE_TIMEOUT_S = 2.0

#: Milliseconds that the promise lives by which a worker checks that messages reach it.
DELIVERY_PROMISE_MS = 3_600_000

#: Seconds after which messages that do not arrive are an outage.
DELIVERY_TIMEOUT_S = 8

#: Who holds the lease of a task. "ended": the task is fulfilled, or no such task exists.
type Lease = Literal["ours", "another's", "free", "ended"]


def resonate_arguments(url: str, token: str | None, outages: Outages, *, serve: bool) -> dict[str, Any]:
    """Return the arguments of `Resonate`. `serve`: receive the tasks that others have created, as a worker does."""
    pid = uuid.uuid4().hex
    # Only a worker joins the workers' group. Workers, or a rerun, resume the tasks of a dead process.
    messages = Messages(url, token, pid, WORKERS if serve else pid)
    return {
        "network": Requests(url, token, outages, messages, pid, serve=serve),
        "sources": [messages],
        "pid": pid,
        "group": WORKERS,
        "ttl": LEASE,
        "token": token,
        "subscription_refresh_secs": REFRESH_INTERVAL_S,
    }


def parsed(response: str) -> Response:
    """Return the server's response. It has no kind if something else than a Resonate server sent it."""
    try:
        return msgspec.json.decode(response, type=Response)
    except msgspec.MsgspecError:
        return Response(head=ResponseHead(status=HTTPStatus.BAD_GATEWAY))


def note[T](notes: dict[str, T], task_id: str, what: T) -> None:
    """Note this about a task. The oldest notes are forgotten, because a worker can live for years."""
    notes.pop(task_id, None)
    if len(notes) == WAITING_TASKS_MAX:
        del notes[next(iter(notes))]
    notes[task_id] = what


class Requests(HttpConnection):
    """The SDK's requests. Each method works around a fault: docs/workarounds.md."""

    def __init__(
        self, url: str, token: str | None, outages: Outages, messages: Messages, pid: str, *, serve: bool
    ) -> None:
        super().__init__(url=url, auth=token, backoff=RECONNECT)
        self._name = f"the Resonate server at {re.sub('//[^/@]*@', '//', self._url)}"  # no password
        self._outages = outages
        self._messages = messages
        self._pid = pid
        self._serve = serve
        self._timeout_s = limits.FIRST_ANSWER_TIMEOUT_S
        self._leased_tasks: set[str] = set()
        self.stopping = False  # then no task is acquired any more
        self._failing: dict[asyncio.Task[Any] | None, float] = {}  # requests in flight, by the time when they began
        self._reported_tasks: dict[str, None] = {}
        self.unexecutable: dict[str, ResonateError] = {}

    async def open(self) -> None:
        """Repeat requests during an outage from now on, although the SDK starts this connection later."""
        await self.start()

    async def close(self) -> None:
        """The SDK has closed the connection."""

    @property
    def busy(self) -> bool:
        """Whether a workflow runs in this process."""
        return bool(self._leased_tasks)

    async def lease(self, id_: str) -> Lease:
        """Return who holds the lease of a workflow's task."""
        reply = await self._ask("task.get", id=id_)
        task = reply.data["task"] if reply.head.status == HTTPStatus.OK else {"state": "missing"}
        if task["state"] == "acquired":
            return "ours" if task.get("pid") == self._pid else "another's"
        return "free" if task["state"] == "pending" else "ended"

    async def check_delivery(self) -> None:
        """Make the server send messages to this process, until one arrives. Raises `NoAnswer`.

        Each message offers the task of a promise that this process has made for this purpose.
        """

        async def message() -> None:
            await self._request_message()
            await asyncio.wait_for(self._messages.arrived.wait(), 1)  # the server pushes ten times a second

        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._messages.connected.wait(), 20)  # after an outage, the listener reconnects
        self._messages.arrived.clear()
        try:
            await repeat(message, lambda error: isinstance(error, TimeoutError), DELIVERY_TIMEOUT_S, 0)
        except TimeoutError as error:
            raise NoAnswer(
                f"{self._name} answers, but its messages do not reach this worker, so the worker gets no work; a proxy "
                "before the server probably buffers them: set `proxy_buffering off` and `proxy_read_timeout 300s` for "
                "nginx, or the like (docs/many-hosts.md)"
            ) from error

    async def _request_message(self) -> None:
        reply = await self._ask("task.get", id=self._messages.delivery_id)
        if reply.head.status == HTTPStatus.OK and reply.data["task"]["state"] in ("pending", "acquired"):
            # The server offers a task again as soon as it is released.
            task = {"id": self._messages.delivery_id, "version": reply.data["task"]["version"]}
            await self._ask("task.acquire", **task, pid=self._pid, ttl=DELIVERY_PROMISE_MS)
            await self._ask("task.release", **task)
            return
        self._messages.delivery_id = f"{PREFIX}_worker-{uuid.uuid4().hex}"
        tags = {"resonate:target": self._messages.unicast()}
        timeout_at = int(1000 * time.time()) + DELIVERY_PROMISE_MS
        await self._ask("promise.create", id=self._messages.delivery_id, timeoutAt=timeout_at, param={}, tags=tags)

    async def end_delivery(self) -> None:
        """Settle the promise of `check_delivery`."""
        await self._ask("promise.settle", id=self._messages.delivery_id, state="resolved", value={})

    async def apply_many(self, requests: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
        """Make requests, many at the same time, and return the promises. None: not found. Raises ServerError."""
        in_flight = asyncio.Semaphore(64)

        async def apply(kind: str, **data: Any) -> dict[str, Any] | None:
            async with in_flight:
                reply = await self._ask(kind, **data)
            status = reply.head.status
            if status >= HTTPStatus.BAD_REQUEST and status != HTTPStatus.NOT_FOUND:
                raise ServerError(status, str(reply.data))
            return None if status == HTTPStatus.NOT_FOUND else reply.data["promise"]

        return await asyncio.gather(*(apply(**request) for request in requests))

    async def _ask(self, kind: str, **data: Any) -> Response:
        """Make a request that the SDK has no method for."""
        head = {"corrId": uuid.uuid4().hex, "version": PROTOCOL_VERSION} | ({"auth": self._auth} if self._auth else {})
        request = msgspec.json.encode({"kind": kind, "head": head, "data": data}).decode()
        return self._reply(kind, data, await self._send(request, {}))

    async def send(self, req: str, headers: dict[str, str] | None = None) -> str:
        request = msgspec.json.decode(req)
        kind, data = request["kind"], request["data"]
        if kind == "task.acquire":
            self._messages.waiting.discard(data["id"])
            if self.stopping:
                raise ConnectorError(RuntimeError("this process is stopping"))
        if kind == "task.release":
            self._check_release(data["id"])
        try:
            response = await self._send(req, dict(headers or {}))
        finally:
            if kind == "task.release":
                self._leased_tasks.discard(data["id"])
        reply = self._reply(kind, data, response)
        if kind == "promise.register_listener" and reply.head.status == HTTPStatus.NOT_FOUND:
            # The SDK would take this for the promise's end, and it asks even before the server has the promise.
            raise ConnectorError(RuntimeError("no such promise"))
        if reply.head.status < HTTPStatus.BAD_REQUEST:
            self._track_lease(kind, data, reply)
        return response

    async def _send(self, req: str, headers: dict[str, str]) -> str:
        try:
            return await super().send(req, headers)
        except UnicodeDecodeError:
            return "not UTF-8"
        finally:
            self._failing.pop(asyncio.current_task(), None)

    async def stop(self) -> None:
        """Give running tasks time to be released, so that the next process need not wait for the lease."""
        self.stopping = True
        deadline = asyncio.get_running_loop().time() + RELEASE_TIMEOUT_S
        while self._leased_tasks and not self._failing and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await super().stop()

    def _check_release(self, id_: str) -> None:
        """Note why the SDK releases a task. Raises `ConnectorError` if a worker must not release it."""
        if cause := cannot_run.cause_of_release():
            note(self.unexecutable, id_, cause)
            if self._serve and not self._messages.refuse(id_):
                print_diagnostic(f"cannot run {id_}: {cause}; its task is left to other processes")
        elif self._serve:
            error = sys.exception()  # the error that the SDK handles while it calls this
            why = f"{error}; its task is not released and is redelivered after the lease expires"
            root = error.cause if isinstance(error, PlatformError) else error
            another_leased = isinstance(root, ServerError) and root.code == HTTPStatus.CONFLICT
            closing = isinstance(root, ConnectorError) and isinstance(root.error, Unavailable)
            if not (another_leased or closing or id_ in self._reported_tasks):
                print_diagnostic(f"cannot run {id_}: {why}")
            note(self._reported_tasks, id_, None)
            if not self.stopping:
                self._leased_tasks.discard(id_)
                raise ConnectorError(RuntimeError(why))

    def _ensure_session(self) -> ClientSession:
        if self._session is None and not self._stopped:
            connector = TCPConnector(limit=self._conn_limit)
            self._session = ClientSession(connector=connector, middlewares=[self._attempt])
        return super()._ensure_session()

    async def _attempt(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        """Make one attempt to get the server's answer. After a `ClientError`, the SDK makes the next one.

        The SDK repeats silently and without a limit. So a failure that lasts is reported here, at each attempt.
        """
        now, timeout_s = asyncio.get_running_loop().time, self._timeout_s
        began, limit = now(), asyncio.timeout(timeout_s)
        try:
            async with limit:
                response = await handler(request)
                await self._check_answer(response)
        except (ClientError, TimeoutError) as error:
            began = self._failing.setdefault(asyncio.current_task(), began)
            if limit.expired() or now() - began > timeout_s:
                cause = f": {error}; start it, or correct RESONATE_URL," if str(error) else "; start it"
                self._report(f"did not answer within {timeout_s:.0f} s{cause} and run again")
            raise ClientError(str(error)) from error
        self._timeout_s = limits.ANSWER_TIMEOUT_S
        return response

    async def _check_answer(self, response: ClientResponse) -> None:
        """Raise `ClientError`, as for a lost connection, for an error of the server or of a proxy before it."""
        status, is_resonate = response.status, bool(parsed(await response.text(errors="replace")).kind)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR and is_resonate:
            raise ClientError(f"it keeps returning status {status}")
        if status < HTTPStatus.BAD_REQUEST or is_resonate:
            return
        if status in REJECTED:
            self._report_rejection("")
        elif status < HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.TOO_MANY_REQUESTS:
            self._report(
                f"is no Resonate server: it answered with HTTP status {status}; correct RESONATE_URL and run again"
            )
        raise ClientError(f"a proxy answered with HTTP status {status}")

    def _reply(self, kind: str, data: dict[str, Any], response: str) -> Response:
        reply = parsed(response)
        if not reply.kind:
            self._report(f"sent an invalid response: {response[:60]!r}; correct RESONATE_URL and run again")
        elif reply.head.status in REJECTED:
            self._report_rejection(f" for {kind} {data.get('id', '')}")
        elif not self._failing:
            self._outages.recovered(self._name)
        return reply

    def _report(self, problem: str, kind: type[Unavailable] = Unavailable) -> None:
        self._outages.report(kind(f"{self._name} {problem}"), self._name)

    def _report_rejection(self, what: str) -> None:
        """End the command, and also a worker: its environment cannot change, but that of a restarted worker can."""
        self._report(f"rejected the token{what}; correct RESONATE_TOKEN (docs/security.md) and run again", Lasting)

    def _track_lease(self, kind: str, data: dict[str, Any], reply: Response) -> None:
        match kind:
            case "task.create" if reply.data["task"]["state"] == "acquired":
                id_ = data["action"]["data"]["id"]
                self._leased_tasks.add(id_)
                self.unexecutable.pop(id_, None)
            case "task.acquire":
                self._leased_tasks.add(data["id"])
            case "task.suspend" | "task.fulfill":
                self._leased_tasks.discard(data["id"])
                if kind == "task.fulfill":  # the server pushes ten times a second; this process need not wait for that
                    self._messages.deliver("unblock", {"promise": reply.data["promise"]})


class Messages(SSEConnection):
    """The SDK's listener. It reconnects after a silence, and queues each task once: docs/workarounds.md."""

    def __init__(self, url: str, token: str | None, pid: str, group: str) -> None:
        super().__init__(url=url, pid=pid, group=group, auth=token, backoff=RECONNECT)
        self.connected, self.arrived = asyncio.Event(), asyncio.Event()
        self.delivery_id = f"{PREFIX}_worker"  # no promise has this id
        self.waiting: set[str] = set()
        self._refused: dict[str, int] = {}
        self._delayed: set[str] = set()

    async def _read_stream(self, resp: ClientResponse) -> None:
        self.connected.set()
        try:
            await super()._read_stream(resp)
        finally:
            self.connected.clear()

    def refuse(self, task_id: str) -> bool:
        """Receive this task later and later, because this process cannot execute it. Returns whether it was refused before."""
        before = self._refused.get(task_id, 0)
        note(self._refused, task_id, before + 1)
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
            elif message.task_id == self.delivery_id:
                self.arrived.set()
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

    def _ensure_session(self) -> ClientSession:
        if self._session is None and not self._stopped:
            self._session = ClientSession(timeout=ClientTimeout(total=None, sock_read=SILENCE_TIMEOUT_S))
        return super()._ensure_session()
