"""The exception that stops a workflow for good.

The SDK stores an exception under the name of its module. So this name must not change, and it must not depend on how
the program was started: in create_account.py it would be `__main__.Panic`.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from resonate.error import ResonateError

from clients.account import differences
from clients.errors import HALTED

if TYPE_CHECKING:
    import tigerbeetle as tb

    from clients.stores.system_of_record import SystemOfRecord
    from clients.stores.system_of_reference import Row, SystemOfReference


def check_command(uuid: str) -> str:
    """Return the command that shows what the promises and both stores hold for the uuid."""
    return f"python -m operations check -- {shlex.quote(uuid)}"


class Panic(ResonateError):
    """The stores contradict each other, so the workflow stops for good, and an operator decides.

    It rejects the workflow's durable promise. So a rerun gets the same panic and runs no step. `condition` is "ordering
    violated", or a store's name and "exists_diff". The code is that of the TypeScript SDK's `context.panic`.
    """

    code, type = str(HALTED), "Panic"

    def __init__(self, condition: str, uuid: str, guid: str, conflict: str) -> None:
        super().__init__(condition, uuid, guid, conflict)  # the arguments from which a stored panic is loaded
        self.condition, self.uuid, self.guid, self.conflict = condition, uuid, guid, conflict

    def __str__(self) -> str:
        return f"PANIC: {self.condition} for uuid {self.uuid!r}: {self.conflict}. Run: {check_command(self.uuid)}"


# -- What a step found, in words for the operator --------------------------


def lost_row(reference: SystemOfReference, existing_guids: list[str]) -> str:
    return f"{reference.name} has no row for this uuid, but TigerBeetle holds {listed(existing_guids)}"


async def other_rows(reference: SystemOfReference, record: SystemOfRecord, rows: list[Row]) -> str:
    """Name the rows, and say whether TigerBeetle holds their accounts."""
    staged = []
    for uuid, guid in rows:
        holds = "holds" if await record.lookup(guid) else "does not hold"
        staged.append(f"uuid {uuid!r} with guid {guid}, which TigerBeetle {holds}")
    return f"{reference.name} stages {' and '.join(staged)}"


def not_staged(reference: SystemOfReference, existing_guids: list[str], rows: list[Row], guid: str) -> str:
    stages = "stages" if any(staged == guid for _, staged in rows) else "no longer stages"
    return f"{reference.name} {stages} guid {guid}, and TigerBeetle holds {listed(existing_guids)}"


def other_account(existing: tb.Account, uuid: str) -> str:
    return f"TigerBeetle's account {existing.id} has {', '.join(differences(existing, uuid))}"


def listed(guids: list[str]) -> str:
    return ", ".join(guids) or "no account"
