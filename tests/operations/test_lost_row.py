"""The row of a complete account is lost. The account exists, so it is printed, and one line says what to run."""

from __future__ import annotations

from ..conftest import World, numbered
from . import backfills
from .commands import UNREFERENCED, assert_adopted, script, unstage


def test_rerun_prints_the_account_and_says_that_its_row_is_missing(world: World, user: str) -> None:
    first = world.run(user)
    assert "no longer has its row" not in first.err
    unstage(world, user)
    again = world.run(user)
    assert (again.status, again.out) == (0, first.out)
    line = again.err.splitlines()[-1]
    assert f"account {first.guid} of uuid '{user}' exists, but {world.reference} no longer has its row" in line
    command, *arguments = line.rpartition("operations ")[2].split()
    done = script(world, command, *arguments)
    assert done.returncode == UNREFERENCED
    assert_adopted(world, user, first.guid)
    assert "no longer has its row" not in world.run(user).err


def test_backfill_that_is_repeated_names_the_accounts_whose_rows_are_missing(world: World, user: str) -> None:
    uuids = numbered(user, 3)
    first = backfills.run(world, *uuids)
    unstage(world, uuids[1])
    again = backfills.run(world, *uuids)
    assert (again.status, again.shown) == (0, first.shown)
    [line] = [line for line in again.err.splitlines() if "no longer has its row" in line]
    assert line.startswith(f"account {first.accounts[uuids[1]]} of uuid {uuids[1]!r} exists")
