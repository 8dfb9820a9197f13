"""Does this account exist? `python -m operations check UUID` reads everything and changes nothing.

The System of Record decides. The command prints what the durable promises, TigerBeetle and the System of
Reference hold for the uuid, and one verdict:

| exit status | verdict | |
|---|---|---|
| 0 | `exists` | TigerBeetle holds the account, and its row exists |
| 3 | `staged` | a row exists, but no account: the account does not exist yet |
| 4 | `unreferenced` | TigerBeetle holds an account for the uuid, but there is no row |
| 5 | `absent` | neither |
| 98 | `conflict` | they contradict each other, or a resolved promise; the line says how |
| 1 | no verdict | a store or the promises cannot be read |

A missing file is not an empty store: it may be lost, or DATA_DIR may be wrong. The command may run while
accounts are created.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clients.account import promise_id
from clients.command.console import print_result
from operations.reading import open_readers, read_state

if TYPE_CHECKING:
    from clients.settings import Settings
    from operations.verdict import AccountState

STATUS = {"exists": 0, "staged": 3, "unreferenced": 4, "absent": 5, "conflict": 98}


async def run(uuid: str, settings: Settings) -> int:
    async with open_readers(settings) as readers, readers.outages.interrupting():
        state = await read_state(readers, uuid)
    report(state)
    return STATUS[state.verdict]


def report(state: AccountState) -> None:
    for promise in state.promises:
        detail = f"account {promise.guid}" if promise.guid is not None else promise.message
        detail = state.waits_for if promise.batch is not None else detail
        print_result(f"promise {promise.id}: {promise.state}" + (f", {detail}" if detail else ""))
    if not state.promises:
        print_result(f"promise {promise_id(state.uuid)}: not found")
    for account in state.accounts:
        print_result(f"TigerBeetle: account {account.id}")
    if not state.accounts:
        print_result("TigerBeetle: no account")
    print_result(f"{state.reference}: " + (f"row with guid {state.guid}" if state.guid is not None else "no row"))
    reasons = "; ".join(state.reasons())
    print_result(f"{state.verdict}: {reasons}" if reasons else state.verdict)
