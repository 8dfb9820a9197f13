"""Deliberate faults in create_account.py, each caught by the explorer."""

from __future__ import annotations

import pytest

from .explorer import SOURCE, explore, load

STAGE_READ = "    existing_guids = await tigerbeetle.guids_of(uuid)\n    while"

#: The text, its replacement, the faults of the scope, and the invariant that catches the edit.
MUTANTS = {
    "the first read of the stage step is dropped": (
        STAGE_READ, "    existing_guids: list[str] = []\n    while",
        {"SQLite lost", "promises wiped"}, "second account",
    ),
    "created and exists_same panic": (
        'panic_if(staged.type == "exists_diff"', 'panic_if(staged.type != "exists_diff"', set(),
        "panic without a fault",
    ),
    "a row that this workflow wrote is a conflict": (
        'return Outcome("exists_same", guid)  # written by this', 'return Outcome("exists_diff", guid)  # written by this',
        set(), "panic without a fault",
    ),
    "an account that this workflow created is a conflict": (
        'return Outcome("exists_same", guid)  # all', 'return Outcome("exists_diff", guid)  # all', set(),
        "panic without a fault",
    ),
    "the commit step creates nothing": (
        "status = await tigerbeetle.create(account_of(uuid, guid))", "status = tb.CreateAccountStatus.CREATED",
        set(), "success without the account",
    ),
    "the stage step writes no row": (
        "if await sqlite.stage(uuid, guid):", "if True:", set(), "panic without a fault",
    ),
    "the owner is left out": (
        "create(account_of(uuid, guid))", "create(tb.Account(id=int(guid), ledger=1, code=1))", set(),
        "success without the account",
    ),
    "the panic of a foreign account is forgotten": (
        'panic_if(committed.type == "exists_diff"', "panic_if(False", {"foreign account"},
        "success without the account",
    ),
    "an account with other fields is taken for this one": (
        'return Outcome(\n            "exists_diff", guid, f"TigerBeetle', 'return Outcome(\n            "exists_same", guid, f"TigerBeetle',
        {"foreign account"}, "success without the account",
    ),
    "the guid is not recorded": (
        "guid = yield from ctx.run(generate_guid, uuid).__await__()", "guid = str(tb.id())", set(),
        "panic without a fault",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_fault_is_caught(name: str) -> None:
    text, edit, faults, invariant = MUTANTS[name]
    assert SOURCE.count(text) == 1
    violated = explore(load(SOURCE.replace(text, edit)), faults=faults)[1]
    assert invariant in violated
