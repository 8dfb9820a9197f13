"""Do the two stores agree? `python ops/audit.py` reads all of both, and changes nothing.

One finding a line on stdout:

- `unreferenced`: TigerBeetle holds an account, and SQLite has no row for it
- `staged`: SQLite has a row, and TigerBeetle no account, and nobody is about to make it
- `conflict`: the two disagree about an account, or a promise is kept of one that is not there

and a count at the end. Accounts are those with ledger 1 and code 1: they are this example's alone. A uuid
cannot be read back from an account, which has a hash of it; its next run says so itself.

Exit status: 0 they agree; 98 there are findings; 1 it cannot tell; 2 usage; 130 Ctrl-C.

Any size, in constant memory, and while others create accounts. A row is written before its account, so an
account is read before its row is looked for, and a row before its account. A row that is found without one
is looked at again as check.py does it; while a promise for it is pending it is counted as in progress, and
is no finding.
"""

from __future__ import annotations

if __name__ == "__main__":
    import start

    start.main("audit")

import argparse
import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import tigerbeetle as tb
from check import as_id, differences, look, marks, open_readers, read_command_line

from console import show

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from check import Readers

    from settings import Settings

#: Entries that are read at a time: a request, its answer and an SQL statement hold as many everywhere.
PAGE = 500

DISAGREE = 98


async def unreferenced(readers: Readers, count: Counter[str]) -> AsyncIterator[str]:
    """Yield the accounts that have no row."""
    newest = 0
    while page := await readers.record.query_accounts(after(newest)):
        newest = page[-1].timestamp
        count["accounts"] += len(page)
        guids = [str(account.id) for account in page]
        select = f"SELECT guid FROM accounts WHERE guid IN ({marks(guids)})"  # noqa: S608
        staged = {guid for (guid,) in await readers.reference.read(select, *guids)}
        for guid in guids:
            if guid not in staged:
                yield f"unreferenced: TigerBeetle holds account {guid}, and SQLite has no row for it"


def after(timestamp: int) -> tb.QueryFilter:
    first, flags = timestamp + 1, tb.QueryFilterFlags.NONE
    return tb.QueryFilter(
        0, 0, 0, code=1, ledger=1, timestamp_min=first, timestamp_max=0, limit=PAGE, flags=flags
    )


async def disagreeing(readers: Readers, count: Counter[str]) -> AsyncIterator[str]:
    """Yield the rows that have no account, or another than they say."""
    select = "SELECT rowid, uuid, guid FROM accounts WHERE rowid > ? ORDER BY rowid LIMIT ?"
    last = -(2**63)
    while page := await readers.reference.read(select, last, PAGE):
        last = page[-1][0]
        count["rows"] += len(page)
        ids = [id_ for _, _, guid in page if (id_ := as_id(guid)) is not None]
        accounts = {str(account.id): account for account in await readers.record.lookup_accounts(ids)}
        for _, uuid, guid in page:
            account = accounts.get(guid)
            if not isinstance(uuid, str):
                yield f"conflict: SQLite stages guid {guid} for {uuid!r}, which is no uuid"
            elif account is None or differences(uuid, account):
                async for finding in again(readers, uuid, count):
                    yield finding


async def again(readers: Readers, uuid: str, count: Counter[str]) -> AsyncIterator[str]:
    """Yield what is wrong with the uuid, if it is anything."""
    found = await look(readers, uuid)
    if found.verdict == "staged" and found.promises and found.promises[-1].state == "pending":
        count["in progress"] += 1
    elif found.verdict == "staged":
        state = found.promises[-1].state if found.promises else "not there"
        yield f"staged: uuid {uuid!r} with guid {found.guid}, and its promise is {state}"
    elif found.verdict == "conflict":
        yield f"conflict: uuid {uuid!r}: {'; '.join(found.reasons())}"


async def report(readers: Readers) -> int:
    count: Counter[str] = Counter()
    findings: Counter[str] = Counter()
    for search in (unreferenced, disagreeing):
        async for finding in search(readers, count):
            show(finding)
            findings[finding.partition(":")[0]] += 1
    kinds = ", ".join(f"{number} {kind}" for kind, number in findings.items())
    show(
        f"{kinds or 'clean'}; {count['accounts']} accounts, {count['rows']} rows, "
        f"{count['in progress']} in progress"
    )
    return DISAGREE if findings else 0


async def run(settings: Settings) -> int:
    async with open_readers(settings) as readers:
        return await readers.outages.race(report(readers))


def main() -> int:
    parser = argparse.ArgumentParser("audit.py", description="Do the two stores agree? Nothing is changed.")
    _, settings = read_command_line(parser)
    return asyncio.run(run(settings))
