"""Say whether an account exists, by what the promises and both stores hold: `python -m operations check UUID`.

The System of Record decides. A missing file is not an empty store: it may be lost, or DATA_DIR may be wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clients.account import promise_id
from clients.command.console import print_result
from operations.reading import read_state, with_readers

if TYPE_CHECKING:
    from clients.settings import Settings
    from operations.verdict import AccountState

STATUS = {"exists": 0, "staged": 3, "unreferenced": 4, "absent": 5, "conflict": 98}


async def run(uuid: str, settings: Settings) -> int:
    state = await with_readers(settings, lambda readers: read_state(readers, uuid))
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
