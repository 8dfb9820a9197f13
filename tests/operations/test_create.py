"""The command of the example: its steps in words, a rerun after an adoption, and its command line."""

from __future__ import annotations

import asyncio

import pytest

from clients.settings import Settings
from operations import list as listing

from ..clients.commands import command
from ..conftest import World, numbered, quick_only
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


@pytest.mark.parametrize("account", quick_only(["exists"], ["exists", "is missing"]))
def test_panic_is_repeated_until_the_account_is_adopted_and_after_its_row_is_lost(
    world: World, user: str, guid: str, account: str
) -> None:
    """`check` and `halted` say so. Without an adoption, a rerun panics although both stores hold the account."""
    stage(world, user, guid)
    if account == "exists":
        commit(world, user, guid)
    panic, rerun = (command(world, user) for _ in range(2))
    assert panic.returncode == rerun.returncode == 98
    assert panic.stderr.endswith(f". Run: python -m operations check -- {user}\n")
    assert panic.stderr.splitlines()[-1] == rerun.stderr.splitlines()[-1]

    check, halted = script(world, "check", user), script(world, "halted")
    word = "exists" if account == "exists" else "staged"
    adopt = f"run python -m operations adopt -- {user}, and a rerun of create_account.py prints the account"
    assert check.stdout.splitlines()[-1] == f"{word}: {adopt}"
    line, count = halted.stdout.splitlines()
    assert line.startswith(f"halted: create-account-{user} is rejected: PANIC: ")
    assert (f"; TigerBeetle and {world.reference} hold the account; more: " in line) == (account == "exists")
    assert line.endswith(f"; more: python -m operations check -- {user}")
    assert (halted.returncode, count) == (98, "1 halted, 0 adopted")

    assert_adopted(world, user, guid)
    check, halted, again = script(world, "check", user), script(world, "halted"), command(world, user)
    assert check.stdout.splitlines()[-1] == "exists"
    line, count = halted.stdout.splitlines()
    assert line.startswith(f"adopted: create-account-{user} is rejected: ")
    assert (halted.returncode, count) == (0, "0 halted, 1 adopted")
    assert (again.returncode, again.stdout) == (0, f"UUID: {user}\nGUID: {guid}\n")
    assert f"promise create-account-{user} is rejected, but an operator has adopted the account" in again.stderr

    unstage(world, user)
    halted = script(world, "halted")
    assert (halted.returncode, halted.stdout.splitlines()[-1]) == (98, "1 halted, 0 adopted")
    assert command(world, user).returncode == 98


def test_panic_is_two_lines_of_a_terminal_and_then_the_next_command(embedded_world: World, guid: str) -> None:
    stage(embedded_world, "user-123", guid)
    panic, _, next_command = command(embedded_world, "user-123").stderr.splitlines()[-1].partition(" Run: ")
    assert len(panic) <= 160
    assert next_command == "python -m operations check -- user-123"


def test_list_names_each_uuid_with_its_guid_row_account_and_promise(world_with_own_ledger: World, guid: str) -> None:
    world = world_with_own_ledger
    created = world.run("created").guid
    stage(world, "staged", guid)
    commit(world, "unreferenced", str(int(guid) + 1))
    world.run("begun", crash="before write 2")
    done = script(world, "list")
    listed = {uuid: " ".join(cells) for uuid, *cells in map(str.split, done.stdout.splitlines())}
    assert done.returncode == 0
    assert listed == {
        "uuid": "guid row account promise",
        "created": f"{created} row account resolved",
        "staged": f"{guid} row no account no promise",
        "?": f"{int(guid) + 1} no row account",
        "begun": "no row pending",
    }


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
