"""`adopt` after each panic, as docs/operations.md describes it."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import time

import pytest
import tigerbeetle as tb

from ..conftest import HANG_S, ServerWorld, World, quick_only, wait_until
from ..test_create_account import LOST, lose
from .commands import (
    ABSENT,
    CONFLICT,
    EXISTS,
    STAGED,
    UNREFERENCED,
    assert_adopted,
    assert_halted,
    assert_refused,
    assert_verdict,
    commit,
    findings,
    halt,
    resolve,
    script,
    stage,
    unstage,
)

#: What `check` says after the loss and the panic, and whether adopt needs --again.
ADOPTED: dict[str, tuple[int, str, bool]] = {
    "the promises": (EXISTS, "exists", False),
    "the promises, before the commit": (STAGED, "staged", False),
    "SQLite and the promises": (UNREFERENCED, "unreferenced", False),
    "the row, after the commit": (UNREFERENCED, "unreferenced", False),
    "the row, before the commit": (ABSENT, "absent", True),
}


@pytest.mark.parametrize("lost", quick_only(list(LOST)[:3], LOST))
def test_adoption_after_the_loss_of(world: World, user: str, lost: str) -> None:
    """The first promise stays rejected, but the attempt's promise records the account."""
    status, verdict, again = ADOPTED[lost]
    panic, staged = lose(world, user, lost)
    assert_halted(world, user, panic)
    assert_verdict(world, user, status, verdict)
    guid = assert_adopted(world, user, again=again)
    assert again or guid == staged
    for _ in range(2):
        assert_adopted(world, user, guid)
        assert world.run(user).guid == guid
    assert_verdict(world, user, EXISTS, "exists")
    assert world.run(f"{user}-new").status == 0


def test_commands_agree_about_an_imported_account(world: World, user: str, guid: str) -> None:
    """It was moved from another cluster, and later it was closed. The promises were not moved."""
    world.run(f"{user}-first")
    flags = tb.AccountFlags.IMPORTED | tb.AccountFlags.CLOSED
    stage(world, user, guid)
    commit(world, user, guid, flags=flags, timestamp=time.time_ns())
    assert_verdict(world, user, EXISTS, "exists")
    assert not any(guid in finding for finding in findings(world)[1])
    unstage(world, user)
    assert_halted(world, user, "ordering violated")
    assert_adopted(world, user, guid)
    assert world.run(user).guid == guid


def test_sqlite_exists_diff_and_the_guid_is_staged_for_another_uuid(world: World, user: str, guid: str) -> None:
    stage(world, "another", guid)
    assert_halted(world, user, f"{world.reference} exists_diff", guid)
    assert_verdict(world, user, ABSENT, "absent")
    assert_refused(world, user, "nothing is staged", "--again")
    assert assert_adopted(world, user, again=True) != guid


@pytest.mark.parametrize("holder", ["this uuid", "another uuid"])
def test_only_the_operator_decides_between_a_row_and_an_account(
    world: World, user: str, guid: str, holder: str
) -> None:
    """The operator removes the row. Then this uuid's account is adopted. Another uuid's account is left alone."""
    ours = holder == "this uuid"
    owner, reason = (user, f"holds account {guid}") if ours else (f"{user}-other", "has user_data_128")
    halt(world, user)
    commit(world, owner, guid)
    stage(world, user, str(tb.id()) if ours else guid)
    assert_verdict(world, user, CONFLICT, "conflict", reason)
    for again in (False, True):
        assert_refused(world, user, reason, again=again)
    unstage(world, user)
    assert (assert_adopted(world, user, again=not ours) == guid) == ours
    assert world.accounts(owner) == [guid]


def test_adopt_is_refused_while_the_first_promise_is_pending(world: World, user: str) -> None:
    """First the run is dead, then it is alive."""
    world.run(user, crash="after save 2")
    for again in (False, True):
        assert_refused(world, user, f"create-account-{user} is pending", "create_account.py", again=again)
    with world.paused_at(user, "before write 3") as process:
        assert_refused(world, user, f"create-account-{user} is pending")
    assert world.finish(process).status == 0


def test_adopt_after_the_first_promise_was_canceled(server_world: ServerWorld, user: str) -> None:
    """An operator cancels a promise that no program can resume. The embedded promises have no command to do so."""
    world = server_world
    world.run(user, crash="after save 2")
    [guid] = world.rows(user)
    cancel = ["resonate", "promises", "-S", world.env["RESONATE_URL"], "cancel", f"create-account-{user}"]
    subprocess.run(cancel, check=True, capture_output=True)
    done = script(world, "adopt", user)
    assert (done.returncode, done.stdout) == (0, f"UUID: {user}\nGUID: {guid}\n")


POINTS = [
    "after create the promise", "after create 1", "after write", "after save 1", "after save 2", "before print"
]  # fmt: skip


@pytest.mark.parametrize("point", quick_only(["after write"], POINTS))
@pytest.mark.parametrize("held", quick_only(["a row"], ["an account", "a row", "nothing"]))
def test_adopt_resumes_its_attempt_after_a_crash(world: World, user: str, guid: str, point: str, held: str) -> None:
    """The next adopt resumes the attempt, with or without --again, and starts no other one."""
    halt(world, user)
    if held != "nothing":
        (stage if held == "a row" else commit)(world, user, guid)
    crash(
        world,
        user,
        point.replace("write", "write 2" if held == "an account" else "write 3"),
        *["--again"] * (held == "nothing"),
    )
    rows = world.rows(user)
    adopted = assert_adopted(world, user, "" if held == "nothing" else guid)
    assert rows in ([], [adopted])
    _, attempt, *others = [line for line in script(world, "check", user).stdout.splitlines() if "promise" in line]
    assert (attempt, others) == (f"promise create-account_attempt-2-{user}: resolved, account {adopted}", [])


@pytest.mark.parametrize(
    ("row", "point", "again"),
    [
        ("lost", "after save 2", False),
        ("exists", "after save 2", False),
        ("exists", "after save 1", True),
        ("exists", "after save 2", True),
    ],
)
def test_only_adopt_again_recreates_an_account_that_tigerbeetle_lost_meanwhile(
    world: World, user: str, guid: str, *, row: str, point: str, again: bool
) -> None:
    """The account exists when adopt begins, and TigerBeetle is lost before adopt is run again."""
    halt(world, user)
    commit(world, user, guid)
    if row == "exists":
        stage(world, user, guid)
    crash(world, user, point)
    world.lose_ledger()
    lost = f"promise create-account_attempt-2-{user} is pending, but TigerBeetle does not hold its account {guid}"
    assert_refused(world, user, lost, "restore TigerBeetle, or use `adopt --again`")
    assert_verdict(world, user, CONFLICT, "conflict", lost, "restore TigerBeetle, or use `adopt --again`")
    if not again:
        commit(world, user, guid)  # TigerBeetle is restored
    assert_adopted(world, user, guid, again=again)
    assert world.run(user).guid == guid


@pytest.mark.parametrize("point", ["before write 2", "before write 3"])
def test_running_adopt_does_not_recreate_an_account_that_tigerbeetle_loses(
    embedded_world: World, user: str, guid: str, point: str
) -> None:
    """Only the account is lost, so that no check of the file notices it."""
    halt(embedded_world, user)
    commit(embedded_world, user, guid)
    watched = {"STEPS_FILE": str(embedded_world.steps_file), "PAUSE": point}
    process = embedded_world.process("-m", "operations", "adopt", user, env=watched)
    paused = embedded_world.steps_file.with_name("paused")
    wait_until(paused.exists)
    with contextlib.closing(sqlite3.connect(embedded_world.data / "ledger.db")) as db, db:
        assert db.execute("DELETE FROM accounts WHERE id = ?", (guid,)).rowcount == 1
    paused.unlink()
    _, err = process.communicate(timeout=HANG_S)
    assert (process.wait(), embedded_world.accounts(user)) == (1, [])
    assert f"no longer holds account {guid}; it was not created again: run adopt again" in err
    assert_refused(embedded_world, user, f"does not hold its account {guid}; restore TigerBeetle")


def crash(world: World, user: str, point: str, *options: str) -> None:
    """Run `adopt` with the crash points of `crash.py`, and kill it at the point."""
    watched = {"STEPS_FILE": str(world.steps_file), "CRASH": point, "LEASE": "2"}
    process = world.process("-m", "operations", "adopt", *options, "--", user, env=watched)
    assert process.wait(timeout=HANG_S) == -signal.SIGKILL, process.err.read_text()


@pytest.mark.slow
def test_new_attempt_is_possible_after_an_attempt_panics(world: World, user: str, guid: str) -> None:
    """The panic of an attempt is final, as that of the first promise. The next attempt has its own promise."""
    halt(world, user)
    stage(world, user, guid)
    crash(world, user, "before write 3")
    unstage(world, user)
    done = script(world, "adopt", user)
    assert done.returncode == 98
    assert "PANIC: ordering violated" in done.stderr
    assert_refused(world, user, "nothing is staged")
    assert_adopted(world, user, again=True)
    promises = [line.split(": ") for line in script(world, "check", user).stdout.splitlines()[:3]]
    assert [name for name, *_ in promises] == [
        f"promise create-account-{user}",
        f"promise create-account_attempt-2-{user}",
        f"promise create-account_attempt-3-{user}",
    ]


@pytest.mark.parametrize("named", ["another guid", "another uuid"])
def test_adopt_prints_the_account_of_stores_that_agree_if_the_promise_names_another(
    world: World, user: str, guid: str, named: str
) -> None:
    stage(world, user, guid)
    commit(world, user, guid)
    other = {"uuid": user, "guid": "17"} if named == "another guid" else {"uuid": "other", "guid": guid}
    resolve(world, f"create-account-{user}", other)
    assert_verdict(world, user, CONFLICT, "conflict")
    done = script(world, "adopt", user)
    assert (done.returncode, done.stdout) == (0, f"UUID: {user}\nGUID: {guid}\n")
    assert (
        f"both stores hold this account, but promise create-account-{user} names guid {other['guid']} of "
        f"uuid '{other['uuid']}': use the guid below"
    ) in done.stderr


def test_adopt_whose_account_loses_its_row_meanwhile_says_what_to_do(world: World, user: str) -> None:
    """It is killed while its result is written, and SQLite is lost before the next adopt."""
    world.run(user, crash="after save 2")
    world.lose_promises()
    assert_halted(world, user, f"{world.reference} exists_diff")
    crash(world, user, "before settle the promise")
    unstage(world, user)
    done = script(world, "adopt", user)
    assert (done.returncode, done.stdout) == (98, "")
    assert "it is unreferenced, because a store has just changed. Run: python -m operations check" in done.stderr
    assert_adopted(world, user)
