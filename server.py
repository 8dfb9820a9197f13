"""The SDK's connection to a Resonate server, and what several processes on one server need besides."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
from resonate.connections import HttpConnection, SSEConnection
from resonate.error import ConnectorError, ResonateError
from resonate.retry import ExponentialBackoff
from resonate.transport import Response

from console import note
from stores import PATIENCE, REACH, Outages, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The group that accounts are routed to: the SDK's default group also gets other applications' work.
GROUP = "create-account"

#: How long a dead process keeps its work from the next one. The SDK renews it at half of that.
LEASE = timedelta(seconds=10)

#: Seconds between two looks at work that another process holds.
ASK_AGAIN = 0.5

#: Seconds that a process which ends has for handing back its work.
HAND_BACK = 0.6


def server(url: str, token: str | None, outages: Outages, *, serve: bool) -> dict[str, Any]:
    """Return the arguments of `Resonate` for a process that does its own accounts, or serves all."""
    pid = uuid.uuid4().hex
    return {
        "network": Requests(url, token, outages),
        # A command is in a group of its own: what a dead process left is for workers, or for a rerun.
        "sources": [Messages(url, token, pid, GROUP if serve else pid)],
        "pid": pid,
        "group": GROUP,
        "ttl": LEASE,
        "token": token,
        # A message can get lost; this is how soon its result is asked for.
        "subscription_refresh_secs": 5,
    }


class Request(msgspec.Struct):
    """The part of a request that tells what becomes of a task."""

    kind: str
    data: dict[str, Any]


class Requests(HttpConnection):
    """The SDK's requests, for which three things are added.

    - An end to waiting: the SDK waits for its server for ever. An outage is reported, and waited out.
    - No failure of its own: an error that the SDK does not expect, such as aiohttp's time-out after five
      minutes, would settle the durable promise; as a `ConnectorError` it leaves it pending.
    - Work that another process holds is asked for until it is done, or its lease has run out. A server
      hands it out by itself too, but to a process of its choice, and to a dead one again much later.
    """

    def __init__(self, url: str, token: str | None, outages: Outages) -> None:
        super().__init__(url=url, auth=token)
        self._outages = outages
        self._patience = REACH
        self._held: set[str] = set()
        self._asking_again = False

    async def send(self, req: str, headers: dict[str, str] | None = None) -> str:
        request = msgspec.json.decode(req, type=Request)
        while True:
            response = await self._answer(req, headers)
            status = self._status(response)
            if not (request.kind == "task.create" and status == HTTPStatus.CONFLICT):
                break
            if not self._asking_again:
                self._asking_again = True
                seconds = f"{LEASE.total_seconds():.0f} s"
                note(f"another process is at it: waiting for it, or {seconds} for its lease if it is dead")
            await self._sleep_or_stop(ASK_AGAIN)
        self._keep_account(request, status, response)
        return response

    async def stop(self) -> None:
        """Let running work be handed back, so that the next process need not wait for the lease."""
        deadline = asyncio.get_running_loop().time() + HAND_BACK
        while self._held and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        await super().stop()

    async def _answer(self, req: str, headers: Mapping[str, str] | None) -> str:
        answer = asyncio.ensure_future(super().send(req, dict(headers or {})))
        try:
            done, _ = await asyncio.wait({answer}, timeout=self._patience)
            if not done:
                self._report(f"did not answer within {self._patience:.0f} s; start it and run again")
            response = await answer
        except ResonateError:
            raise
        except Exception as error:
            raise ConnectorError(error) from error
        finally:
            answer.cancel()
        self._patience = PATIENCE
        return response

    def _status(self, response: str) -> int:
        try:
            reply = msgspec.json.decode(response, type=Response)
        except msgspec.MsgspecError:
            reply = Response()
        if not reply.kind:
            self._report(f"is none: it answered {response[:60]!r}; correct RESONATE_URL")
        elif reply.head.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            self._report("refuses the token; correct RESONATE_TOKEN")
        return reply.head.status

    def _keep_account(self, request: Request, status: int, response: str) -> None:
        """Know which tasks this process holds."""
        match request.kind:
            case "task.create" | "task.acquire" if status in (HTTPStatus.OK, HTTPStatus.CREATED):
                task = msgspec.json.decode(response)["data"]["task"]
                if task["state"] == "acquired":
                    self._held.add(task["id"])
            case "task.fulfill" | "task.suspend" | "task.release":
                self._held.discard(request.data["id"])

    def _report(self, what: str) -> None:
        self._outages.report(Unavailable(f"the Resonate server at {self._url} {what}"))


class Messages(SSEConnection):
    """The SDK's listener, without aiohttp's limit of five minutes for a response.

    The SDK does not expect the `TimeoutError` that ends such a response, and hears nothing from then on.
    A silent connection is made anew every minute instead, which the SDK does expect.
    """

    def __init__(self, url: str, token: str | None, pid: str, group: str) -> None:
        quickly = ExponentialBackoff(initial=0.1, max_delay=5)
        super().__init__(url=url, pid=pid, group=group, auth=token, backoff=quickly)

    def _ensure_session(self) -> aiohttp.ClientSession:
        if self._session is None and not self._stopped:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_read=60))
        return super()._ensure_session()
