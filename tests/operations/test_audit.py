"""`audit`: do the two stores agree?"""

from __future__ import annotations

import itertools

import pytest
import tigerbeetle as tb

from clients.account import account_of

from ..conftest import World
from .commands import commit, findings, load, stage


def test_audit_reads_all_pages_and_reports_each_missing_row(world_with_own_ledger: World, user: str) -> None:
    """Accounts and rows fill more than one page."""
    world, guids = world_with_own_ledger, [str(tb.id()) for _ in range(1200)]
    world.run(user)
    for some in itertools.batched(guids, 200):
        accounts = [account_of(f"{user}-{guid}", guid) for guid in some]
        world.ledger(lambda client, accounts=accounts: client.create_accounts(accounts))  # type: ignore[misc]
    values = ", ".join(f"('{user}-{guid}', '{guid}')" for guid in guids)
    world.sql(f"INSERT INTO accounts (uuid, guid) VALUES {values}")  # noqa: S608
    assert findings(world) == (0, [], "clean; 1201 accounts, 1201 rows, 0 in progress")

    # Each missing row is reported, on whichever page it is.
    world.sql("DELETE FROM accounts WHERE substr(guid, length(guid)) IN ('1', '3', '5')")
    status, lines, _ = findings(world)
    rows = {guid for (guid,) in world.sql("SELECT guid FROM accounts")}
    missing = [guid for guid in [*world.accounts(user), *guids] if guid not in rows]
    assert status == 98
    assert lines == [
        f"unreferenced: TigerBeetle holds account {guid}, but {world.reference} has no row for it" for guid in missing
    ]


def test_audit_reports_each_disagreement_once(world_with_own_ledger: World, user: str) -> None:
    world = world_with_own_ledger
    world.run(f"{user}-fine")
    unreferenced, other, foreign, second, crossed = (str(tb.id()) for _ in range(5))
    commit(world, f"{user}-unreferenced", unreferenced)
    stage(world, f"{user}-staged", str(tb.id()))
    stage(world, f"{user}-halted", str(tb.id()))
    world.run(f"{user}-halted")
    commit(world, f"{user}-code", other, code=2)
    stage(world, f"{user}-code", other)
    commit(world, f"{user}-foreign", foreign, user_data_128=5)
    stage(world, f"{user}-foreign", foreign)
    world.run(f"{user}-twice")
    commit(world, f"{user}-twice", second)
    commit(world, f"{user}-crossed", crossed)
    stage(world, "another:one\n\x1b[2J", crossed)
    stage(world, f"{user}-text", "abc")
    expected = [
        ["unreferenced: ", unreferenced],
        ["unreferenced: ", second],
        ["staged: ", "-staged'", "promise was not found"],
        ["staged: ", "-halted'", "promise is rejected"],
        ["conflict: ", "-code'", "has code 2, not 1"],
        ["conflict: ", "-foreign'", "has user_data_128 5"],
        ["conflict: ", "'another:one\\n\\x1b[2J'", "has user_data_128"],
        ["conflict: ", "-text'", "'abc'"],
    ]
    if world.reference == "SQLite":  # where a primary key can be NULL
        world.sql("INSERT INTO accounts (guid) VALUES ('5')")
        expected.append(["conflict: ", "guid 5 for None, which is not a valid uuid"])
    status, lines, count = findings(world)
    assert status == 98
    assert len(lines) == len(expected)
    for kind, *words in expected:
        found = [line for line in lines if line.startswith(kind) and all(word in line for word in words)]
        assert len(found) == 1, (kind, words)
    kinds, _, total = count.partition("; ")
    assert sorted(kinds.split(", ")) == sorted(["2 unreferenced", "2 staged", f"{len(expected) - 4} conflict"])
    assert total == f"6 accounts, {len(expected)} rows, 0 in progress"


def test_audit_counts_accounts_in_progress_and_does_not_report_them(world_with_own_ledger: World, user: str) -> None:
    world_with_own_ledger.run(user, crash="after save 2")
    assert findings(world_with_own_ledger) == (0, [], "clean; 0 accounts, 1 rows, 1 in progress")
    world_with_own_ledger.run(user)
    assert findings(world_with_own_ledger) == (0, [], "clean; 1 accounts, 1 rows, 0 in progress")


@pytest.mark.slow
def test_audit_reports_a_resolved_promise_without_an_account(world: World, user: str) -> None:
    guid = world.run(user).guid
    world.lose_ledger()
    world.run(f"{user}-2")
    status, [line], _ = findings(world)
    assert status == 98
    assert line.startswith(f"conflict: uuid '{user}': ")
    assert f"does not hold its account {guid}" in line


@pytest.mark.slow
def test_audit_reports_nothing_while_accounts_are_created(world_with_own_ledger: World, user: str) -> None:
    def audit_it(uuids: list[str]) -> None:
        for _ in range(3):
            status, lines, count = findings(world_with_own_ledger)
            assert (status, lines) == (0, []), count

    created = len(load(world_with_own_ledger, user, audit_it))
    assert findings(world_with_own_ledger) == (0, [], f"clean; {created} accounts, {created} rows, 0 in progress")
