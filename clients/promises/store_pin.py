"""One System of Reference: all processes of a Resonate server must use the same store of rows, and one cluster.

A process with a wrong database would write rows there, and other processes would panic for the same uuids. So the
store has a random id. The durable promise `create-account_reference-1` records the id and TB_CLUSTER_ID. The first
process creates the promise. A later process whose store or cluster differs refuses to work.

After a move or a restore, an operator accepts the present store: `create-account_reference-2` records it, and so on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resonate.types import Value

from clients.account import PREFIX
from clients.errors import Unavailable
from clients.promises.reading import decode, get_promise

if TYPE_CHECKING:
    from resonate.resonate import Resonate
    from resonate.types import PromiseRecord

#: A hundred years.
LIFETIME_MS = 36_500 * 86_400_000


@dataclass(frozen=True)
class Identity:
    """What all processes must agree about."""

    store: str | None  # the random id of the System of Reference; None if it is not yet made
    cluster: str

    def __str__(self) -> str:
        return f"store {self.store} and cluster {self.cluster}"


def pin_id(number: int) -> str:
    return f"{PREFIX}_reference-{number}"


async def pinned(resonate: Resonate) -> tuple[int, Identity | None]:
    """Return the number of the last record, and the record. (0, None) if there is none.

    (number, None): that promise is settled and records no store, because an operator canceled it, for example.
    """
    number, last = 0, None
    while (promise := await _settled(resonate, pin_id(number + 1))) is not None:
        number, last = number + 1, _identity(promise)
    return number, last


async def pin(resonate: Resonate, number: int, identity: Identity) -> Identity | None:
    """Record the identity under this number, and return what is recorded: another process may be first."""
    id_ = pin_id(number)
    timeout_at = int(time.time() * 1000) + LIFETIME_MS
    await resonate.promises.create(id_, timeout_at, Value(data=None), {})
    await resonate.promises.resolve(id_, Value(data={"store": identity.store, "cluster": identity.cluster}))
    promise = await _settled(resonate, id_)
    assert promise is not None
    return _identity(promise)


async def mismatch(resonate: Resonate, identity: Identity, *, create: bool = False) -> str | None:
    """Return one line if the record differs from this process's store or cluster. `create`: make the first record."""
    number, last = await pinned(resonate)
    if number == 0 and create:
        number, last = 1, await pin(resonate, 1, identity)
    if number == 0 or last == identity:
        return None
    return (
        f"promise {pin_id(number)} records {last or 'no store'}, but this process uses {identity}: correct REFERENCE_URL, DATA_DIR "
        "or TB_CLUSTER_ID; only after a move or a restore run `python -m operations reference --accept`"
    )


async def check_or_pin(resonate: Resonate, identity: Identity) -> None:
    """Raise `Unavailable` if the record differs. Without a record, create the first one."""
    if line := await mismatch(resonate, identity, create=True):
        raise Unavailable(line)


async def _settled(resonate: Resonate, id_: str) -> PromiseRecord | None:
    """Return the promise. None if it is missing, or if its creator died before it resolved it."""
    promise = await get_promise(resonate, id_)
    return None if promise is None or promise.state == "pending" else promise


def _identity(promise: PromiseRecord) -> Identity | None:
    """Return what a resolved promise records; None if it records something else."""
    data = decode(promise.value)
    if promise.state != "resolved" or not isinstance(data, dict) or data.keys() != {"store", "cluster"}:
        return None
    return Identity(str(data["store"]), str(data["cluster"]))
