"""The command of the example: its steps in words, a rerun after an adoption, and its command line."""

from __future__ import annotations

import asyncio

import pytest

from clients.settings import Settings
from operations import list as listing

from ..clients.commands import command
from ..conftest import World, numbered
from . import backfills
from .commands import UNREFERENCED, assert_adopted, commit, script, stage, unstage


def steps(world: World, uuid: str) -> list[str]:
    return [line for line in command(world, "--steps", uuid).stderr.splitlines() if line.startswith("step ")]


def test_steps_say_what_each_step_did_and_whether_its_result_was_saved_before(world: World, user: str) -> None:
    world.run(user, crash="after write 3")
    [guid] = world.rows(user)
    assert steps(world, user) == [
        f"step 1, generate_guid: {guid} (saved before)",
        "step 2, stage_account: created (saved before)",
        "step 3, commit_account: exists_same (ran now)",
    ]
    assert all(line.endswith("(saved before)") for line in steps(world, user))


def test_steps_of_a_panic_say_what_the_step_found(embedded_world: World, user: str) -> None:
    stage(embedded_world, user, "17")
    assert steps(embedded_world, user)[1] == (
        f"step 2, stage_account: exists_diff: SQLite stages uuid '{user}' with guid 17, and TigerBeetle holds no account"
        " (ran now)"
    )


@pytest.mark.parametrize("account", ["exists", "is missing"])
def test_rerun_after_an_adoption_prints_the_account_and_says_so(
    world: World, user: str, guid: str, account: str
) -> None:
    stage(world, user, guid)
    if account == "exists":
        commit(world, user, guid)
    panic = command(world, user)
    assert panic.returncode == 98
    assert panic.stderr.endswith(f". Run: python -m operations check -- {user}\n")
    assert command(world, user).stderr.splitlines()[-1] == panic.stderr.splitlines()[-1]
    assert_adopted(world, user, guid)
    again = command(world, user)
    assert (again.returncode, again.stdout) == (0, f"UUID: {user}\nGUID: {guid}\n")
    assert f"promise create-account-{user} is rejected, but an operator has adopted the account" in again.stderr


def test_check_and_halted_say_what_makes_a_rerun_after_a_panic_print_the_account(
    world: World, user: str, guid: str
) -> None:
    """Both stores hold the account, but nobody has adopted it: a rerun still panics."""
    stage(world, user, guid)
    commit(world, user, guid)
    assert command(world, user).returncode == 98
    check, halted = script(world, "check", user), script(world, "halted")
    adopt = f"python -m operations adopt -- {user}"
    assert check.stdout.splitlines()[-1] == f"exists: run {adopt}, and a rerun of create_account.py prints the account"
    [line] = [line for line in halted.stdout.splitlines() if user in line]
    assert line.startswith(f"halted: create-account-{user} is rejected: PANIC: ")
    assert line.endswith(
        f"; TigerBeetle and {world.reference} hold the account; more: python -m operations check -- {user}"
    )
    assert halted.returncode == command(world, user).returncode == 98
    assert_adopted(world, user, guid)
    check, halted = script(world, "check", user), script(world, "halted")
    assert check.stdout.splitlines()[-1] == "exists"
    [line] = [line for line in halted.stdout.splitlines() if user in line]
    assert line.startswith("adopted: ")
    assert halted.returncode == command(world, user).returncode == 0


def test_account_that_was_adopted_is_halted_again_if_its_row_is_lost(
    embedded_world: World, user: str, guid: str
) -> None:
    stage(embedded_world, user, guid)
    assert command(embedded_world, user).returncode == 98
    assert_adopted(embedded_world, user, guid)
    unstage(embedded_world, user)
    halted = script(embedded_world, "halted")
    assert halted.stdout.splitlines()[-1] == "1 halted, 0 adopted"
    assert halted.returncode == command(embedded_world, user).returncode == 98


def test_rerun_after_an_adoption_panics_if_the_row_is_lost_again(embedded_world: World, user: str, guid: str) -> None:
    stage(embedded_world, user, guid)
    assert command(embedded_world, user).returncode == 98
    assert_adopted(embedded_world, user, guid)
    embedded_world.lose_sqlite()
    assert command(embedded_world, user).returncode == 98


def test_panic_is_two_lines_of_a_terminal_and_then_the_next_command(embedded_world: World, guid: str) -> None:
    stage(embedded_world, "user-123", guid)
    line = command(embedded_world, "user-123").stderr.splitlines()[-1]
    panic, _, next_command = line.partition(" Run: ")
    assert len(panic) <= 160
    assert next_command == "python -m operations check -- user-123"


def test_list_names_each_uuid_with_its_guid_row_account_and_promise(world_with_own_ledger: World, guid: str) -> None:
    world = world_with_own_ledger
    created = world.run("created").guid
    stage(world, "staged", guid)
    commit(world, "unreferenced", str(int(guid) + 1))
    world.run("begun", crash="before write 2")
    done = script(world, "list")
    listed = {cells[0]: cells[1:] for cells in map(str.split, done.stdout.splitlines())}
    assert done.returncode == 0
    assert " ".join(listed["created"]) == f"{created} row account resolved"
    assert " ".join(listed["staged"]) == f"{guid} row no account no promise"
    assert " ".join(listed["?"]) == f"{int(guid) + 1} no row account"
    assert " ".join(listed["begun"]) == "no row pending"


@pytest.mark.parametrize("rest", ["rows", "accounts", "promises", ""])
def test_list_that_is_cut_says_so(
    embedded_world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rest: str
) -> None:
    """Three lines fit. The fourth is a row, an account without a row, or a promise alone."""
    monkeypatch.setattr(listing, "PAGE", 3)
    for uuid in ("a", "b", "c"):
        embedded_world.run(uuid)
    if rest == "rows":
        stage(embedded_world, "d", "17")
    elif rest == "accounts":
        commit(embedded_world, "d", "17")
    elif rest == "promises":
        embedded_world.run("d", crash="after save 1")
    assert asyncio.run(listing.run(Settings.read(embedded_world.env))) == 0
    captured = capsys.readouterr()
    cut = "only the first 3 rows, accounts and promises are listed; `audit` and `halted` read all\n"
    assert captured.err == (cut if rest else "")
    assert captured.out.count("resolved") == 3


# -- A lost row --------------------------------------------------------------


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
