"""What a step found, in words, for the panic that an operator reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clients.account import differences

if TYPE_CHECKING:
    import tigerbeetle as tb

    from clients.stores.postgres import Row
    from clients.stores.system_of_record import SystemOfRecord
    from clients.stores.system_of_reference import SystemOfReference


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
