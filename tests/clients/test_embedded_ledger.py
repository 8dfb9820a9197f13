"""The embedded ledger gives the answers of a real TigerBeetle to the requests that the example makes.

Each test of the fixture `ledger` runs on both, if there is a TigerBeetle.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import tigerbeetle as tb

from clients.account import account_of, accounts_after, accounts_query, newest_account, owner_of
from clients.stores.embedded_ledger import EmbeddedLedger

from ..conftest import EmbeddedLedgerSync, numbered

#: Fields that differ from those of an existing account, in the order in which TigerBeetle compares them.
OTHER: dict[str, Any] = {
    "flags": tb.AccountFlags.HISTORY,
    "user_data_128": 5,
    "user_data_64": 6,
    "user_data_32": 7,
    "ledger": 2,
    "code": 3,
}


@pytest.fixture(params=["embedded", "tigerbeetle"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tb.ClientSync]:
    if request.param == "embedded":  # opened again for each request, so that its answers come from the disk
        yield cast("tb.ClientSync", EmbeddedLedgerSync(tmp_path))
        return
    with tb.ClientSync(cluster_id=0, replica_addresses=request.getfixturevalue("tb_address")) as client:
        yield client


embedded = pytest.mark.parametrize("ledger", ["embedded"], indirect=True)


def new(user: str, **other: Any) -> tb.Account:
    return replace(account_of(user, str(secrets.randbits(127))), **other)


def create(ledger: tb.ClientSync, *accounts: tb.Account) -> list[tb.Account]:
    """Create the accounts, and return them with their timestamps."""
    created = ledger.create_accounts(list(accounts))
    assert {result.status for result in created} == {tb.CreateAccountStatus.CREATED}
    return [replace(one, timestamp=result.timestamp) for one, result in zip(accounts, created, strict=True)]


def test_account_is_stored_with_all_its_fields(ledger: tb.ClientSync, user: str) -> None:
    ours, largest = create(
        ledger,
        new(user),
        new(user, user_data_128=2**128 - 1, user_data_64=2**64 - 1, user_data_32=2**32 - 1, ledger=2**32 - 1, code=9),
    )
    assert ledger.lookup_accounts([largest.id, secrets.randbits(127), ours.id, ours.id]) == [largest, ours, ours]


@pytest.mark.parametrize("one", OTHER)
def test_account_that_exists_is_compared_and_not_changed(ledger: tb.ClientSync, user: str, one: str) -> None:
    """If two fields differ, both ledgers name the same one."""
    [existing] = create(ledger, new(user))
    asked = replace(existing, timestamp=0)
    [same] = ledger.create_accounts([asked])
    assert (same.status, same.timestamp) == (tb.CreateAccountStatus.EXISTS, existing.timestamp)
    for other in OTHER:
        [result] = ledger.create_accounts([replace(asked, **{name: OTHER[name] for name in (one, other)})])
        assert result.status.name == f"EXISTS_WITH_DIFFERENT_{min(one, other, key=list(OTHER).index).upper()}"
    assert ledger.lookup_accounts([existing.id]) == [existing]


def test_owner_has_the_accounts_of_this_ledger_and_code(ledger: tb.ClientSync, user: str) -> None:
    first, *_, second = create(ledger, new(user), new(user, ledger=2), new(user, code=2), new(f"{user}-2"), new(user))
    assert ledger.query_accounts(accounts_query(user)) == [first, second]
    create(ledger, *(new(user) for _ in range(10)))
    assert len(ledger.query_accounts(accounts_query(user))) == 10


def test_accounts_are_read_in_pages_the_oldest_first(ledger: tb.ClientSync, user: str) -> None:
    users = numbered(user, 5)
    accounts = create(ledger, *map(new, users))
    pages, after = list[list[tb.Account]](), accounts[0].timestamp
    while page := ledger.query_accounts(accounts_after(after, limit=3)):
        pages.append(page)
        after = page[-1].timestamp
    owners = set(map(owner_of, users))
    assert [one for one in itertools.chain(*pages) if one.user_data_128 in owners] == accounts[1:]
    [newest] = ledger.query_accounts(newest_account())
    assert newest.timestamp >= accounts[-1].timestamp


@embedded
def test_timestamps_increase_although_the_clock_goes_back(
    ledger: tb.ClientSync, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create_at(now: int, count: int) -> list[int]:
        monkeypatch.setattr(time, "time_ns", lambda: now)
        return [account.timestamp for account in create(ledger, *(new(user) for _ in range(count)))]

    assert create_at(1000, 2) == [1000, 1001]
    assert create_at(900, 2) == [1002, 1003]
    assert create_at(2000, 1) == [2000]
    assert [account.timestamp for account in ledger.query_accounts(newest_account())] == [2000]


def test_concurrent_requests_run_one_after_the_other(tmp_path: Path, user: str) -> None:
    async def race() -> list[list[tb.CreateAccountResult]]:
        ledger = await EmbeddedLedger(tmp_path).open()
        try:
            account = new(user)
            return await asyncio.gather(*(ledger.create_accounts([account]) for _ in range(20)))
        finally:
            await ledger.close()

    [created], *others = asyncio.run(race())
    assert created.status == tb.CreateAccountStatus.CREATED
    assert others == [[replace(created, status=tb.CreateAccountStatus.EXISTS)]] * 19


@embedded
def test_other_requests_are_refused(ledger: tb.ClientSync) -> None:
    with pytest.raises(NotImplementedError, match="the embedded ledger has no create_transfers: set TB_ADDRESS"):
        ledger.create_transfers([])
