"""List the accounts whose creation has stopped for good: `python -m operations halted`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from clients.account import uuid_of
from clients.command.console import print_result
from clients.errors import HALTED
from clients.panic import check_command
from clients.promises.reading import unresolved
from operations.reading import is_uuid, read_state, with_readers

if TYPE_CHECKING:
    from clients.settings import Settings
    from operations.opening import Clients


async def run(settings: Settings) -> int:
    count = await with_readers(settings, list_halted)
    print_result(f"{count['halted']} halted, {count['adopted']} adopted")
    return HALTED if count["halted"] else 0


async def list_halted(readers: Clients) -> Counter[str]:
    """Print a line for each account that is halted or adopted, and return their numbers."""
    count: Counter[str] = Counter()
    async for promise in unresolved(readers.resonate):
        uuid = uuid_of(promise.id)
        if uuid is None or not (promise.halt or promise.batch):
            continue
        state = await read_state(readers, uuid)
        promises = state.promises if any(p.id == promise.id for p in state.promises) else [promise]
        reasons = [(p.id, why) for p in promises if (why := state.halt(p))]
        if not reasons or reasons[0][0] != promise.id or state.created:
            continue  # an account is listed once, with its first promise; a pending one can be settled by now
        word, more = "adopted", ""
        if not state.adopted:
            both = f"; TigerBeetle and {state.reference} hold the account" if state.agrees else ""
            word, more = "halted", f"{both}; more: {check_command(uuid)}" if is_uuid(uuid) else ""
        count[word] += 1
        print_result(f"{word}: {' is '.join(reasons[-1])}{more}")
    return count
