"""Read durable promises without a lease, and change nothing."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from resonate.error import ResonateError
from resonate.types import PromiseRecord, Value

from clients.account import former_id
from clients.promises.cannot_run import CODEC
from clients.promises.claims import batch_of
from clients.promises.results import read

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from resonate.resonate import Resonate

    from clients.stores.read_only import ReadOnly

#: Promises per page. A Resonate server can answer this many.
PAGE = 500


@dataclass(frozen=True)
class Promise:
    """A durable promise. Its value is JSON; the pickles in it are not loaded."""

    id: str
    state: str
    value: Any
    param: Any = None
    target: str | None = None  # who executes it; None if nobody does
    batch: str | None = None  # the batch that has claimed the account of a pending promise

    @property
    def message(self) -> str:
        """What a rejected promise says, in one line."""
        message = self.value.get("message", "") if isinstance(self.value, dict) else ""
        return " ".join(str(message).split())

    @property
    def uuid(self) -> str | None:
        """The uuid that a resolved promise records; None for any other promise."""
        return self._result("uuid")

    @property
    def guid(self) -> str | None:
        """The guid that a resolved promise records; None for any other promise."""
        return self._result("guid")

    def _result(self, name: str) -> str | None:
        if self.state != "resolved" or not isinstance(self.value, dict):
            return None
        return str(self.value.get(name))


def embedded(promises: ReadOnly) -> Callable[[str], Awaitable[Promise | None]]:
    async def get(id_: str) -> Promise | None:
        for either in filter(None, (id_, former_id(id_))):
            for (state,) in await promises.read("SELECT state FROM origins WHERE origin = ?", either):
                return _decoded(_record(msgspec.json.decode(state)["promises"][either]))
        return None

    return get


def embedded_unresolved(promises: ReadOnly) -> Callable[[], AsyncIterator[Promise]]:
    async def search() -> AsyncIterator[Promise]:
        last, select = "", "SELECT origin, state FROM origins WHERE origin > ? ORDER BY origin LIMIT ?"
        while page := await promises.read(select, last, PAGE):
            for origin, state in page:
                promise = msgspec.json.decode(state)["promises"].get(origin)
                if promise is not None and promise["state"] != "resolved":
                    yield _decoded(_record(promise))
            last = page[-1][0]

    return search


def _record(promise: dict[str, Any]) -> PromiseRecord:
    """Return a promise of the embedded engine as a server would."""
    return msgspec.convert(
        {
            "id": promise["id"],
            "state": promise["state"],
            "param": promise["param"] or {},
            "value": promise["value"] or {},
            "tags": promise["tags"],
            "timeoutAt": promise["timeout_at"],
        },
        PromiseRecord,
    )


def served(resonate: Resonate) -> Callable[[str], Awaitable[Promise | None]]:
    async def get(id_: str) -> Promise | None:
        promise = await read(resonate, id_)
        return None if promise is None else _decoded(promise)

    return get


def served_unresolved(resonate: Resonate) -> Callable[[], AsyncIterator[Promise]]:
    async def search() -> AsyncIterator[Promise]:
        for state in ("rejected", "rejected_canceled", "rejected_timedout", "pending"):
            cursor, more = None, True
            while more:
                page = await resonate.promises.sender.promise_search(state, None, PAGE, cursor)
                for promise in page.promises:
                    if ":" not in promise.id:  # else it is a step
                        yield _decoded(promise)
                cursor, more = page.cursor, page.cursor is not None

    return search


def decode(value: Value) -> Any:
    """Return the JSON value; None if it cannot be decoded."""
    with contextlib.suppress(ResonateError, msgspec.MsgspecError):
        return CODEC.decode(value)
    return None


def _decoded(promise: PromiseRecord) -> Promise:
    """Return the promise. What cannot be decoded is None."""
    target, batch = promise.tags.get("resonate:target"), batch_of(promise)
    return Promise(promise.id, promise.state, decode(promise.value), decode(promise.param), target, batch)
