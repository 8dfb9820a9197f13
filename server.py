"""The SDK's connection to a Resonate server, and what several processes on one server need besides."""

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

from console import note
from stores import PATIENCE, REACH, Outages, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: The group that accounts are routed to: the SDK's default group also gets other applications' work.
GROUP = "create-account"

#: How long a dead process keeps its work from the next one. The SDK renews it at half of that.
LEASE = timedelta(seconds=10)

#: Seconds between two looks at work that another process holds.
ASK_AGAIN = 0.5

#: Between two attempts to reach a server that is away.
QUICKLY = ExponentialBackoff(initial=0.1, max_delay=5)

#: Seconds after which a listener that has heard nothing is made anew.
SILENCE = 60

#: Tasks that wait in a worker until one of those that run is done: a few MB.
WAITING_MAX = 10_000

#: Seconds that a process which ends has for handing back its work.
HAND_BACK = 0.6


def server(url: str, token: str | None, outages: Outages, *, serve: bool) -> dict[str, Any]:
    """Return the arguments of `Resonate` for a process that does its own accounts, or serves all."""
    pid = uuid.uuid4().hex
    # A command is in a group of its own: what a dead process left is for workers, or for a rerun.
    messages = Messages(url, token, pid, GROUP if serve else pid)
    return {
        "network": Requests(url, token, outages, messages),
        "sources": [messages],
        "pid": pid,
        "group": GROUP,
        "ttl": LEASE,
        "token": token,
        # A message can get lost; this is how soon its result is asked for.
        "subscription_refresh_secs": 5,
    }


class Request(msgspec.Struct, eq=False):
    """The part of a request that tells what becomes of a task."""

    kind: str
    data: dict[str, Any]


class Requests(HttpConnection):
    """The SDK's requests, for which six things are added.

    - An end to waiting: the SDK waits for its server for ever. An outage is reported, and waited out.
    - A request that the server itself fails at, say because its database is locked, is made again: the SDK
      would give up the account. All requests may be made twice; the worst is to wait for one's own lease.
    - No failure of its own: an error that the SDK does not expect, such as aiohttp's time-out after five
      minutes, would settle the durable promise; as a `ConnectorError` it leaves it pending.
    - A task of this process that another one holds, or that was taken from it when its lease ran out, is
      asked for until it is done. The server hands such a task out by itself too, but to a process of its
      choice, and when that one is dead, only much later to the next.
    - A result of this process is known to it at once: the server pushes ten times a second.
    - A worker does not hand back what it cannot do, such as a call of a function that there is not: the
      server would hand it out again at once, and again. Its lease ends first.
    """

    def __init__(self, url: str, token: str | None, outages: Outages, messages: Messages) -> None:
        super().__init__(url=url, auth=token, backoff=QUICKLY)
        self._name = f"the Resonate server at {re.sub('//[^/@]*@', '//', self._url)}"  # no password
        self._outages = outages
        self._messages = messages
        self._patience = REACH
        self._started: set[str] = set()
        self._held: set[str] = set()
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._leaving = False
        self._gone = asyncio.Event()
        self._failing: set[Request] = set()

    async def send(self, req: str, headers: dict[str, str] | None = None) -> str:
        request = msgspec.json.decode(req, type=Request)
        if request.kind == "task.acquire":
            self._messages.waiting.discard(request.data["id"])
        if request.kind == "task.release" and self._outages.endless:
            self._held.discard(request.data["id"])
            # The SDK releases where it handles what went wrong.
            error = sys.exception()
            why = f"{error}; it is left until its lease is over"
            cause = error.cause if isinstance(error, PlatformError) else error
            if not (
                isinstance(cause, ServerError) and cause.code == HTTPStatus.CONFLICT
            ):  # else another has it
                note(f"{request.data['id']} cannot be done: {why}")
            raise ConnectorError(RuntimeError(why))
        response, reply = await self._ask(request, req, headers)
        if request.kind == "promise.register_listener" and reply.head.status == HTTPStatus.NOT_FOUND:
            # The SDK takes it for the promise's end, and asks even before the server has made the promise.
            if request.data["awaited"] in self._started:
                self._report(f"has lost the promise {request.data['awaited']}; run again")
            raise ConnectorError(RuntimeError("no such promise"))
        self._keep_account(request, reply)
        return response

    async def stop(self) -> None:
        """Let running work be handed back, so that the next process need not wait for the lease."""
        self._leaving = True
        for asking in self._asking.values():
            asking.cancel()
        deadline = asyncio.get_running_loop().time() + HAND_BACK
        while self._held and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        self._gone.set()
        await super().stop()

    async def _ask(self, request: Request, req: str, headers: dict[str, str] | None) -> tuple[str, Response]:
        """Return the answer, once it is none of a server that fails."""
        now = asyncio.get_running_loop().time
        give_up = now() + PATIENCE
        try:
            while not (self._leaving and request.kind == "task.acquire"):
                response = await self._answer(req, headers)
                self._failing.discard(request)
                reply = self._reply(response)
                if reply.head.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                    return response, reply
                self._failing.add(request)
                if now() > give_up:
                    self._report(f"fails (status {reply.head.status}); see to it and run again")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._gone.wait(), ASK_AGAIN)
            raise ConnectorError(RuntimeError("this process ends"))
        finally:
            self._failing.discard(request)

    async def _answer(self, req: str, headers: Mapping[str, str] | None) -> str:
        answer: asyncio.Future[Any] = asyncio.ensure_future(super().send(req, dict(headers or {})))
        gone: asyncio.Future[Any] = asyncio.ensure_future(self._gone.wait())
        either = {answer, gone}
        try:
            done, _ = await asyncio.wait(either, timeout=self._patience, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                self._report(f"did not answer within {self._patience:.0f} s; start it and run again")
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ConnectorError(RuntimeError("this process ends"))
            response: str = answer.result()
        except ResonateError:
            raise
        except Exception as error:
            raise ConnectorError(error) from error
        finally:
            answer.cancel()
            gone.cancel()
        self._patience = PATIENCE
        return response

    def _reply(self, response: str) -> Response:
        try:
            reply = msgspec.json.decode(response, type=Response)
        except msgspec.MsgspecError:
            reply = Response(head=ResponseHead(status=HTTPStatus.BAD_GATEWAY))
        if not reply.kind:
            self._report(f"is none: it answered {response[:60]!r}; correct RESONATE_URL")
        elif reply.head.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            self._report("refuses the token; correct RESONATE_TOKEN")
        elif not self._failing and reply.head.status < HTTPStatus.INTERNAL_SERVER_ERROR:
            self._outages.over(self._name)
        return reply

    def _report(self, what: str) -> None:
        self._outages.report(Unavailable(f"{self._name} {what}"), self._name)

    def _keep_account(self, request: Request, reply: Response) -> None:
        """Know which tasks are this process's, and which of them it holds."""
        done = reply.head.status < HTTPStatus.BAD_REQUEST
        match request.kind:
            case "task.create":
                task_id = request.data["action"]["data"]["id"]
                self._started.add(task_id)
                if reply.head.status == HTTPStatus.CONFLICT:
                    if not self._asking:
                        seconds = f"{LEASE.total_seconds():.0f} s"
                        note(
                            f"another process is at it: waiting for it, or {seconds} for its lease if it is dead"
                        )
                    self._ask_for(task_id)
                elif done and reply.data["task"]["state"] == "acquired":
                    self._held.add(task_id)
            case "task.acquire" if done:
                self._held.add(request.data["id"])
            case "task.fulfill" | "task.suspend" if done:
                self._held.discard(request.data["id"])
                self._started.discard(request.data["id"])
                if request.kind == "task.fulfill":
                    self._messages.deliver("unblock", {"promise": reply.data["promise"]})
            case "task.release":
                self._held.discard(request.data["id"])
                self._ask_for(request.data["id"])

    def _ask_for(self, task_id: str) -> None:
        if task_id in self._started and task_id not in self._asking:
            self._asking[task_id] = asyncio.create_task(self._ask_until_held(task_id))
            self._asking[task_id].add_done_callback(lambda _: self._asking.pop(task_id))

    async def _ask_until_held(self, task_id: str) -> None:
        head = {"corrId": uuid.uuid4().hex, "version": PROTOCOL_VERSION}
        request = {
            "kind": "task.get",
            "head": head | ({"auth": self._auth} if self._auth else {}),
            "data": {"id": task_id},
        }
        with contextlib.suppress(ResonateError):  # stopped; or no server, which is reported
            while task_id not in self._held:
                await asyncio.sleep(ASK_AGAIN)
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
    """The SDK's listener, without aiohttp's limit of five minutes for a response, and with one for its queue.

    The SDK does not expect the `TimeoutError` that ends such a response, and hears nothing from then on.
    A silent connection is made anew instead, which the SDK does expect.

    The SDK keeps in memory whatever work it is told of, and the server tells again and again of what nobody
    has begun. Here a task waits once, and where many wait the next is left to the server.
    """

    def __init__(self, url: str, token: str | None, pid: str, group: str) -> None:
        super().__init__(url=url, pid=pid, group=group, auth=token, backoff=QUICKLY)
        self.waiting: set[str] = set()

    def recv(self, callback: Callable[[str], None]) -> None:
        def receive(raw: str) -> None:
            message = None
            with contextlib.suppress(msgspec.MsgspecError):  # the SDK's to drop
                message = msgspec.json.decode(raw, type=Message)
            if isinstance(message, ExecuteMsg):
                if message.task_id in self.waiting or len(self.waiting) >= WAITING_MAX:
                    return
                self.waiting.add(message.task_id)
            callback(raw)

        super().recv(receive)

    def deliver(self, kind: str, data: dict[str, Any]) -> None:
        """Pass on a message as if the server had pushed it."""
        message = msgspec.json.encode({"kind": kind, "data": data}).decode()
        for receive in list(self._subscribers):
            receive(message)

    def _ensure_session(self) -> aiohttp.ClientSession:
        if self._session is None and not self._stopped:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None, sock_read=SILENCE)
            )
        return super()._ensure_session()
