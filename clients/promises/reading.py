"""Read durable promises without a lease, and change nothing."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
from resonate.error import ResonateError, ServerError
from resonate.handle import PromiseResult, ResonateHandle, Subscription

from clients.account import uuid_of
from clients.promises import cannot_run
from clients.promises.cannot_run import CODEC
from clients.promises.claims import batch_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from resonate.resonate import Resonate
    from resonate.types import PromiseRecord, Value

#: Promises per page. A Resonate server can answer this many.
PAGE = 500

#: The group that an adoption names if TigerBeetle holds the account, which must not be created again.
EXISTING = "operators-of-existing-accounts"


@dataclass(frozen=True)
class Promise:
    """A durable promise. Its value is JSON; the pickles in it are not loaded."""

    id: str
    state: str
    value: Any
    batch: str | None = None  # the batch that has claimed the account of a pending promise
    cannot_run: str | None = None  # why this program cannot execute the pending promise
    existing: str | None = None  # the guid of the account that existed when this adoption began

    @property
    def halt(self) -> str:
        """Its state and the cause, in one line, if no run of this program resolves it; empty otherwise."""
        if self.state == "pending":
            return f"pending and cannot be executed: {self.cannot_run}" if self.cannot_run else ""
        message = self.value.get("message", "") if isinstance(self.value, dict) else ""
        cause = ": " + " ".join(str(message).split()) if message else ""
        return "" if self.state == "resolved" else self.state + cause

    @property
    def uuid(self) -> str | None:
        """The uuid of the account that `guid` names."""
        return self._result("uuid") if self.existing is None else uuid_of(self.id)

    @property
    def guid(self) -> str | None:
        """The guid that the promise records, of an account that TigerBeetle held; None if it records no account."""
        return self._result("guid") or self.existing

    def _result(self, name: str) -> str | None:
        if self.state != "resolved" or not isinstance(self.value, dict):
            return None
        return str(self.value.get(name))


async def get_promise(resonate: Resonate, id_: str) -> PromiseRecord | None:
    """Return the promise as it is stored; None if it is not found."""
    try:
        return await resonate.promises.sender.promise_get(id_)
    except ServerError as error:
        if error.code != HTTPStatus.NOT_FOUND:
            raise
    return None


async def read_promise(resonate: Resonate, id_: str) -> Promise | None:
    """Return the promise with its JSON value; None if it is not found."""
    promise = await get_promise(resonate, id_)
    return None if promise is None else _decoded(promise, resonate)


class Claimed(Exception):
    """A batch has claimed the account of the pending promise."""

    def __init__(self, batch: str) -> None:
        super().__init__(batch)
        self.batch = batch


async def find_settled(resonate: Resonate, id_: str) -> ResonateHandle[Any] | None:
    """Return a handle to the promise if it is settled, and None if this program can run it.

    Raises `Claimed`, and `Unexecutable` if this program cannot execute it.
    """
    promise = await get_promise(resonate, id_)
    if promise is None:
        return None
    if promise.state != "pending":
        return handle_of(promise)
    if batch := batch_of(promise):
        raise Claimed(batch)
    if cause := cannot_run.obstacle(promise, resonate):
        raise cannot_run.unexecutable(id_, cause)
    return None


def handle_of(promise: PromiseRecord) -> ResonateHandle[Any]:
    """Return a handle to a settled promise. The SDK's own is useless if a run under this id has failed before."""
    result, created = Subscription(), asyncio.get_running_loop().create_future()
    result.settle(PromiseResult(state=promise.state, value=promise.value))
    created.set_result(None)
    return ResonateHandle(promise.id, result, CODEC, Any, created)


async def unresolved(resonate: Resonate) -> AsyncIterator[Promise]:
    """Yield all top-level promises that are not resolved."""
    for state in ("rejected", "rejected_canceled", "rejected_timedout", "pending"):
        cursor, more = None, True
        while more:
            page = await resonate.promises.sender.promise_search(state, None, PAGE, cursor)
            for promise in page.promises:
                if ":" not in promise.id:  # else it is a step
                    yield _decoded(promise, resonate)
            cursor, more = page.cursor, page.cursor is not None


def decode(value: Value) -> Any:
    """Return the JSON value; None if it cannot be decoded."""
    with contextlib.suppress(ResonateError, msgspec.MsgspecError):
        return CODEC.decode(value)
    return None


def _decoded(promise: PromiseRecord, resonate: Resonate) -> Promise:
    """Return the promise. What cannot be decoded is None."""
    batch, existing = batch_of(promise), None
    if promise.tags.get("resonate:target", "").endswith(f"@{EXISTING}"):
        with contextlib.suppress(TypeError, KeyError, ValueError):  # another program can have created it
            _, existing = decode(promise.param)["args"]
    judged = promise.state == "pending" and batch is None
    obstacle = cannot_run.obstacle(promise, resonate) if judged else None
    return Promise(promise.id, promise.state, decode(promise.value), batch, obstacle, existing)
