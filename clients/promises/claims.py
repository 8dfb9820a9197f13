"""The durable promises of the accounts that a batch creates: `operations/batch.py`.

A batch claims an account: it creates the account's promise, `create-account-<uuid>`, without a task. A task is Resonate's
order to run a function. So no worker runs this promise. A tag names the batch, which will save the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from resonate.error import PlatformError, ResonateError
from resonate.types import PromiseCreateReq, PromiseRecord, PromiseSettleReq, Value

from clients.account import promise_id
from clients.promises.cannot_run import CODEC

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clients.promises.embedded import EmbeddedPromises
    from clients.promises.server import Requests

#: The tag of a claimed account's promise. Its value is the id of the batch's promise.
CLAIM = "claimed-by"


class Claim(msgspec.Struct, rename="camel"):
    """The part of a durable promise that a batch needs."""

    state: str
    timeout_at: int
    value: Value | None = None
    tags: dict[str, str] = {}


def batch_of(promise: PromiseRecord | Claim) -> str | None:
    """Return the batch that has claimed the account of a pending promise; None if there is none."""
    return promise.tags.get(CLAIM) if promise.state == "pending" else None


class Claims:
    """Creates and settles promises without a task, many at a time.

    An outage leaves the batch's promise pending: a method raises `PlatformError`.
    """

    def __init__(self, network: EmbeddedPromises | Requests) -> None:
        self._network = network

    async def create(self, batch: str, uuids: list[str], timeout_at: int) -> list[str]:
        """Claim the accounts for the batch. Returns the uuids whose promises are settled or not claimed by it.

        `timeout_at`: when the batch's promise and the claims expire (ms). If a batch's promise
        is lost and made again, its time is later. So it does not take the claims of the first batch, which may have
        created accounts.
        """
        tags = {CLAIM: batch}
        requests = [PromiseCreateReq(id=promise_id(uuid), timeout_at=timeout_at, tags=tags) for uuid in uuids]
        promises = await self._ask("promise.create", requests)
        return [
            uuid
            for uuid, promise in zip(uuids, promises, strict=True)
            if promise is None or (batch_of(promise), promise.timeout_at) != (batch, timeout_at)
        ]

    async def settle(self, results: dict[str, Any]) -> list[str]:
        """Settle each uuid's promise with its result: an exception rejects it.

        Returns the uuids whose promises have another state or value, because somebody else settled them.
        """
        requests = [
            PromiseSettleReq(
                id=promise_id(uuid),
                state="rejected" if isinstance(result, Exception) else "resolved",
                value=CODEC.encode(result),
            )
            for uuid, result in results.items()
        ]
        promises = await self._ask("promise.settle", requests)
        return [
            uuid
            for uuid, request, promise in zip(results, requests, promises, strict=True)
            if promise is None or (promise.state, promise.value) != (request.state, request.value)
        ]

    async def _ask(self, kind: str, requests: Sequence[PromiseCreateReq | PromiseSettleReq]) -> list[Claim | None]:
        """Return the promises after the requests. None stands for a promise that is not found."""
        try:
            promises = await self._network.apply_many(
                [msgspec.to_builtins(request) | {"kind": kind} for request in requests]
            )
        except ResonateError as error:
            raise PlatformError([error]) from error
        return msgspec.convert(promises, list[Claim | None])
