"""List what the stores and the promises hold: `python -m operations list`, for small numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clients.account import accounts_after, promise_id, uuid_of
from clients.command.console import print_diagnostic, print_result
from clients.promises.reading import read_promise, unresolved
from operations.reading import PAGE, is_uuid, with_readers

if TYPE_CHECKING:
    from clients.settings import Settings
    from operations.opening import Clients


async def run(settings: Settings) -> int:
    lines = [("uuid", "guid", "row", "account", "promise"), *await with_readers(settings, table)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print_result("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return 0


async def table(readers: Clients) -> list[tuple[str, ...]]:
    """Return a line for each row, for each account without a row, and for each other promise that is not resolved."""
    accounts, newest = list[str](), 0
    while len(accounts) <= PAGE and (page := await readers.record.query_accounts(accounts_after(newest, PAGE))):
        accounts += [str(account.id) for account in page]
        newest = page[-1].timestamp
    rows = await readers.reference.page(None, PAGE + 1)
    is_cut = max(len(accounts), len(rows)) > PAGE
    accounts, lines = accounts[:PAGE], []
    for _, uuid, guid in rows[:PAGE]:
        held = guid in accounts or bool(await readers.record.lookup(guid))
        lines.append((uuid, guid, "row", "account" if held else "no account"))
    staged = {guid for _, guid in await readers.reference.find("", accounts)}
    lines += [("?", guid, "no row", "account") for guid in accounts if guid not in staged]
    known = {uuid for uuid, *_ in lines}
    async for promise in unresolved(readers.resonate):
        requested = uuid_of(promise.id)
        if requested is None or requested in known:
            continue
        if len(lines) >= PAGE:
            is_cut = True
            break
        known.add(requested)
        lines.append((requested, "", "no row", ""))
    if is_cut:
        print_diagnostic(f"only the first {PAGE} rows, accounts and promises are listed; `audit` and `halted` read all")
    return [(*map(str, line), await state_of(line[0], readers)) for line in lines]


async def state_of(uuid: object, readers: Clients) -> str:
    """Return the state of the promise of the uuid's first run."""
    if not (isinstance(uuid, str) and uuid != "?" and is_uuid(uuid)):
        return ""
    promise = await read_promise(readers.resonate, promise_id(uuid))
    return "no promise" if promise is None else promise.state
