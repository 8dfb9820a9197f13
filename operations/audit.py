"""Compare both stores: `python -m operations audit`.

It uses constant memory, and may run while accounts are created. A row is written before its account. So an account is
read before its row, and a row without an account is read again, promises included.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from clients.account import accounts_after, difference, id_of
from clients.command.console import print_result
from clients.errors import HALTED
from operations.reading import PAGE, read_state, with_readers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from clients.settings import Settings
    from operations.opening import Clients


async def unreferenced(readers: Clients, count: Counter[str]) -> AsyncIterator[str]:
    """Yield the accounts that have no row."""
    newest = 0
    while page := await readers.record.query_accounts(accounts_after(newest, PAGE)):
        newest = page[-1].timestamp
        count["accounts"] += len(page)
        guids = [str(account.id) for account in page]
        staged = {guid for _, guid in await readers.reference.find("", guids)}
        for guid in guids:
            if guid not in staged:
                yield f"unreferenced: TigerBeetle holds account {guid}, but {readers.reference.name} has no row for it"


async def disagreeing(readers: Clients, count: Counter[str]) -> AsyncIterator[str]:
    """Yield the rows without an account, and those whose account differs."""
    last = None
    while page := await readers.reference.page(last, PAGE):
        last = page[-1][0]
        count["rows"] += len(page)
        ids = [id_ for _, _, guid in page if (id_ := id_of(guid)) is not None]
        accounts = {str(account.id): account for account in await readers.record.lookup_accounts(ids)}
        for _, uuid, guid in page:
            account = accounts.get(guid)
            if not isinstance(uuid, str):
                yield f"conflict: {readers.reference.name} stages guid {guid} for {uuid!r}, which is not a valid uuid"
            elif account is None or difference(account, uuid):
                async for finding in recheck(readers, uuid, count):
                    yield finding


async def recheck(readers: Clients, uuid: str, count: Counter[str]) -> AsyncIterator[str]:
    """Read the uuid again, promises included, and yield its finding, if there is one."""
    state = await read_state(readers, uuid)
    if state.verdict == "staged" and state.in_progress:
        count["in progress"] += 1
    elif state.verdict == "staged":
        promise = f"is {state.promises[-1].state}" if state.promises else "was not found"
        promise += f" and {state.waits_for}" if state.waits_for else ""
        yield f"staged: uuid {uuid!r} with guid {state.guid} has no account; its promise {promise}"
    elif state.verdict == "conflict":
        yield f"conflict: uuid {uuid!r}: {'; '.join(state.reasons())}"


async def report(readers: Clients) -> int:
    count: Counter[str] = Counter()
    findings: Counter[str] = Counter()
    for search in (unreferenced, disagreeing):
        async for finding in search(readers, count):
            print_result(finding)
            findings[finding.partition(":")[0]] += 1
    kinds = ", ".join(f"{number} {kind}" for kind, number in findings.items())
    print_result(
        f"{kinds or 'clean'}; {count['accounts']} accounts, {count['rows']} rows, {count['in progress']} in progress"
    )
    return HALTED if findings else 0


async def run(settings: Settings) -> int:
    return await with_readers(settings, report)
