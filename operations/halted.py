"""List the accounts whose creation has stopped for good: `python -m operations halted`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from clients.account import uuid_of
from clients.command.console import print_result
from clients.errors import HALTED
from clients.panic import check_command
from operations.reading import is_uuid, read_state, with_readers

if TYPE_CHECKING:
    from clients.promises.reading import Promise
    from clients.settings import Settings
    from operations.reading import Readers


async def run(settings: Settings) -> int:
    count = await with_readers(settings, list_halted)
    print_result(f"{count['halted']} halted, {count['adopted']} adopted")
    return HALTED if count["halted"] else 0


async def list_halted(readers: Readers) -> Counter[str]:
    """Print a line for each account that is halted or adopted, and return their numbers."""
    count: Counter[str] = Counter()
    async for promise in readers.unresolved():
        uuid = uuid_of(promise.id)
        if uuid is None or why_halted(promise) is None:
            continue
        state = await read_state(readers, uuid)
        promises = state.promises if any(p.id == promise.id for p in state.promises) else [promise]
        reasons = [(p.id, why) for p in promises if (why := why_halted(p, state.batch)) is not None]
        if not reasons or reasons[0][0] != promise.id or state.created:
            continue  # an account is listed once, with its first promise; a pending one can be settled by now
        word, more = "adopted", ""
        if not state.adopted:
            both = f"; TigerBeetle and {state.reference} hold the account" if state.agrees else ""
            word, more = "halted", f"{both}; more: {check_command(uuid)}" if is_uuid(uuid) else ""
        count[word] += 1
        print_result(f"{word}: {' '.join(reasons[-1])}{more}")
    return count


def why_halted(promise: Promise, batch: Promise | None = None) -> str | None:
    """Return why no run of this program resolves the promise; None if it is resolved, or a run can resolve it.

    `batch`: the promise of the batch that has claimed the account, None if it was not found.
    """
    if promise.state == "resolved":
        return None
    if promise.state != "pending":
        return f"is {promise.state}" + (f": {promise.message}" if promise.message else "")
    if promise.batch is None:
        return None if promise.cannot_run is None else f"is pending and cannot be executed: {promise.cannot_run}"
    waits = f"is pending and waits for batch {promise.batch}, which"
    if batch is None or batch.state != "pending":
        how = "was not found" if batch is None else f"is {batch.state}"
        return f"{waits} {how}; a run of create_account.py ends this"
    return None if batch.cannot_run is None else f"{waits} cannot be executed: {batch.cannot_run}"
