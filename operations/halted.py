"""List the accounts whose creation has stopped for good: `python -m operations halted`."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import TYPE_CHECKING, cast

import create_account
from clients.account import uuid_of
from clients.command.console import print_result
from clients.errors import HALTED
from operations.reading import is_uuid, read_batch, read_state, with_readers

if TYPE_CHECKING:
    from resonate.resonate import Resonate

    from clients.promises.reading import Promise
    from clients.settings import Settings
    from operations.reading import Readers


class Functions(set[tuple[str, int]]):
    """What this program can execute: the names and versions of the workflows. It takes the place of `Resonate`."""

    def __init__(self) -> None:
        super().__init__({("create_accounts", 1), ("commit_staged", 1), ("stage_committed", 1)})
        create_account.register(cast("Resonate", self), None, None)  # type: ignore[arg-type]

    def with_dependency(self, _: object) -> None: ...

    def register(self, _: object, *, name: str, version: int = 1) -> None:
        self.add((name, version))


async def run(settings: Settings) -> int:
    count = await with_readers(settings, list_halted)
    print_result(f"{count['halted']} halted, {count['adopted']} adopted")
    return HALTED if count["halted"] else 0


async def list_halted(readers: Readers) -> Counter[str]:
    count: Counter[str] = Counter()
    async for promise in readers.unresolved():
        uuid, reason = uuid_of(promise.id), await reason_of(promise, readers)
        if uuid is None or reason is None:
            continue
        if not is_uuid(uuid):
            count["halted"] += 1
            print_result(f"halted: {promise.id} {reason}")
            continue
        state = await read_state(readers, uuid)
        reasons = [(p.id, why) for p in state.promises if (why := await reason_of(p, readers)) is not None]
        if promise.id not in [p.id for p in state.promises]:
            reasons.append((promise.id, reason))
        if not reasons or reasons[0][0] != promise.id:
            continue  # an account is listed once, with its first promise; a pending one can be settled by now
        line = " ".join(reasons[-1])
        if state.agrees:
            count["adopted"] += 1
            print_result(f"adopted: {line}")
        else:
            count["halted"] += 1
            print_result(f"halted: {line}; more: python -m operations check -- {shlex.quote(uuid)}")
    return count


async def reason_of(promise: Promise, readers: Readers) -> str | None:
    """Return why the promise is halted; None if it is resolved, or if this program can execute it."""
    if promise.batch is None:
        return why_halted(promise)
    promise, batch = await read_batch(readers, promise)
    if promise.batch is None:
        return why_halted(promise)
    if batch is None or batch.state != "pending":
        how = "was not found" if batch is None else f"is {batch.state}"
        return f"is pending and waits for batch {promise.batch}, which {how}; a run of create_account.py ends this"
    why = why_halted(batch)
    return None if why is None else f"is pending and waits for batch {promise.batch}, which {why}"


def why_halted(promise: Promise) -> str | None:
    if promise.state == "resolved":
        return None
    if promise.state != "pending":
        return f"is {promise.state}" + (f": {promise.message}" if promise.message else "")
    if promise.target is None:
        return "is pending and has no task, because another program created it"
    if not isinstance(promise.param, dict) or "func" not in promise.param:
        return "is pending and does not say which function it requests"
    function = promise.param["func"], promise.param.get("version", 1)
    if function in Functions():
        return None
    return f"is pending and requests the function {function[0]}, version {function[1]}, which this program lacks"
