"""Transfers change an account between a crash and the rerun. It remains the uuid's account."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest
import tigerbeetle as tb

from .conftest import World, numbered, quick_only
from .operations import backfills
from .operations.commands import EXISTS, assert_verdict, commit

SIDES = [tb.TransferFlags.CLOSING_DEBIT, tb.TransferFlags.CLOSING_CREDIT]


def close(world: World, user: str, guid: str, side: tb.TransferFlags) -> None:
    """Close the account as a transfer does. The embedded ledger has no transfers: set the flag and the balance."""
    if "TB_ADDRESS" not in world.env:
        with contextlib.closing(sqlite3.connect(world.data / "ledger.db")) as db, db:
            closed = "UPDATE accounts SET flags = ?, credits_posted = '7' WHERE id = ?"
            assert db.execute(closed, (int(tb.AccountFlags.CLOSED), guid)).rowcount == 1
        return
    commit(world, f"{user}-other", other := str(tb.id()))
    debit, credit = (guid, other) if side == tb.TransferFlags.CLOSING_DEBIT else (other, guid)
    pending = side | tb.TransferFlags.PENDING
    for amount, flags in ((7, tb.TransferFlags.NONE), (0, pending)):
        transfer = tb.Transfer(
            id=tb.id(), debit_account_id=int(debit), credit_account_id=int(credit), amount=amount, ledger=1, code=1,
            flags=flags,
        )  # fmt: skip
        [result] = world.ledger(lambda client, transfer=transfer: client.create_transfers([transfer]))  # type: ignore[misc]
        assert result.status == tb.CreateTransferStatus.CREATED, result


@pytest.mark.parametrize("side", quick_only(SIDES[:1], SIDES))
@pytest.mark.parametrize("crash", ["after write 3", "after save 3"])
def test_account_that_a_transfer_closes_after_a_crash_is_completed(
    world: World, user: str, crash: str, side: tb.TransferFlags
) -> None:
    """TigerBeetle answers EXISTS_WITH_DIFFERENT_FLAGS to the create that is repeated."""
    world.run(user, crash=crash)
    [guid] = world.rows(user)
    close(world, user, guid, side)
    run = world.run(user)
    assert run.status == 0, run.err
    assert (run.guid, world.accounts(user)) == (guid, [guid])
    assert_verdict(world, user, EXISTS, "exists")


def test_account_of_a_batch_that_a_transfer_closes_after_a_crash_is_completed(world: World, user: str) -> None:
    uuids = numbered(user, 3)
    backfills.killed(world, uuids, "after write 4")
    [guid] = world.rows(uuids[1])
    close(world, uuids[1], guid, SIDES[0])
    done = backfills.run(world, *uuids)
    assert (done.status, done.accounts[uuids[1]]) == (0, guid), done.err
