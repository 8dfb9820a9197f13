"""`check`, and the rules for all commands that only read."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Callable

import pytest

from ..conftest import HANG_S, World, free_port, quick_only
from .commands import ABSENT, CONFLICT, EXISTS, STAGED, UNREFERENCED, Done, assert_verdict, commit, script, unstage

#: Where a run was killed, and what `check` prints about its account: `u` is the uuid.
CHECKED: dict[str, tuple[str | None, int, list[str]]] = {
    "exists": (
        "",
        EXISTS,
        [
            "promise create-account-u: resolved, account GUID",
            "TigerBeetle: account GUID",
            "STORE: row with guid GUID",
            "exists",
        ],
    ),
    "staged": (
        "after save 2",
        STAGED,
        [
            "promise create-account-u: pending",
            "TigerBeetle: no account",
            "STORE: row with guid GUID",
            "staged: promise create-account-u is pending; to resume it, run python create_account.py -- u",
        ],
    ),
    "absent": (
        None,
        ABSENT,
        [
            "promise create-account-u: not found",
            "TigerBeetle: no account",
            "STORE: no row",
            "absent: promise create-account-u not found (never created, or lost); run python create_account.py -- u",
        ],
    ),
}


@pytest.mark.parametrize("verdict", CHECKED)
def test_check_prints_what_the_promise_and_both_stores_hold(world: World, user: str, verdict: str) -> None:
    crash, status, lines = CHECKED[verdict]
    world.run(f"{user}-other")
    if crash is not None:
        world.run(user, crash=crash)
    names = {"GUID": "".join(world.rows(user)), "STORE": world.reference}
    names |= {"account-u": f"account-{user}", "-- u": f"-- {user}"}
    done = script(world, "check", user)
    text = "".join(f"{line}\n" for line in lines)
    for name, value in names.items():
        text = text.replace(name, value)
    assert (done.returncode, done.stdout) == (status, text)


def test_check_reads_the_rows_of_the_uuid_and_of_its_guids_and_all_its_accounts(
    world: World, user: str, guid: str
) -> None:
    """test_verdict.py has every verdict."""
    held = world.run(user).guid
    world.sql("UPDATE accounts SET uuid = 'another' WHERE uuid = ?", user)
    assert_verdict(world, user, CONFLICT, "conflict", f"stages guid {held} for uuid 'another'")
    world.sql("UPDATE accounts SET uuid = ?, guid = ? WHERE uuid = 'another'", user, guid)
    assert_verdict(world, user, CONFLICT, "conflict", f"TigerBeetle holds account {held}")
    unstage(world, user)
    assert_verdict(world, user, UNREFERENCED, "unreferenced")
    commit(world, user, guid)
    assert_verdict(world, user, CONFLICT, "conflict", guid, held)


@pytest.mark.parametrize("crash", quick_only(["after write 3"], ["", "after write 3"]))
def test_reading_commands_change_no_file(world: World, user: str, crash: str) -> None:
    """After a clean end SQLite has removed its -wal and -shm files. After a crash they exist."""

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in world.data.iterdir()}

    world.run(user, crash=crash)
    before = files()
    script(world, "check", user)
    script(world, "audit")
    script(world, "adopt", user)  # it is refused, or has nothing to do
    assert files() == before


def test_check_reads_a_file_whose_writer_was_killed_at_its_first_write(world: World, user: str) -> None:
    """The -wal file ends after its header. SQLite alone fails there with "locking protocol"."""
    world.run(user)
    if not (file := world.data / "accounts.db").exists():
        pytest.skip("this world has no such file: a server holds the rows")
    wal, index = (file.with_name(f"{file.name}-{end}") for end in ("wal", "shm"))
    header, index_before = world.directory / "header", world.directory / "index"
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("SELECT uuid FROM accounts").fetchall()
        subprocess.run(["cp", index, index_before], check=True)
        db.execute("PRAGMA user_version = 1")
        subprocess.run(["cp", wal, header], check=True)
    os.truncate(header, 32)
    header.rename(wal)
    index_before.rename(index)
    assert_verdict(world, user, EXISTS, "exists")


@pytest.mark.slow
def test_check_while_a_run_is_in_progress(world: World, user: str) -> None:
    for point, status in (("before write 2", ABSENT), ("before write 3", STAGED), ("after write 3", EXISTS)):
        uuid = f"{user}-{status}"
        with world.paused_at(uuid, point) as process:
            done = script(world, "check", uuid)
            assert done.stdout.splitlines()[0] == f"promise create-account-{uuid}: pending"
            assert done.returncode == status
        assert world.finish(process).status == 0
        assert_verdict(world, uuid, EXISTS, "exists")


COMMANDS: list[Callable[[str], list[str]]] = [
    lambda uuid: ["check", uuid],
    lambda _: ["audit"],
    lambda uuid: ["adopt", uuid],
]


def assert_cannot_tell(done: Done, *words: str) -> None:
    assert (done.returncode, done.stdout) == (1, "")
    line = done.stderr.splitlines()[-1]
    for word in words:
        assert word in line


@pytest.mark.parametrize("file", ["accounts.db", "promises.db", "ledger.db"])
@pytest.mark.slow
def test_missing_or_invalid_file_is_an_error(world: World, user: str, file: str) -> None:
    world.run(user)
    if not (world.data / file).exists():
        pytest.skip("this world has no such file: a server holds the data")
    (world.data / file).rename(world.data / "elsewhere")
    for command in COMMANDS:
        assert_cannot_tell(script(world, *command(user)), file, "does not exist", "DATA_DIR")
    assert not (world.data / file).exists()
    (world.data / file).write_text("no database, but longer than nothing")
    assert_cannot_tell(script(world, "check", user), file, "not a database")


def test_missing_directory_is_an_error_and_is_not_created(world: World, user: str) -> None:
    for command in COMMANDS:
        assert_cannot_tell(script(world, *command(user)), str(world.data), "does not exist", "DATA_DIR")
    assert not world.data.exists()


def test_server_that_does_not_answer_is_an_error(world: World, user: str) -> None:
    world.run(user)
    for variable, address in (("TB_ADDRESS", "127.0.0.1:{}"), ("RESONATE_URL", "http://127.0.0.1:{}")):
        if variable in world.env:
            nowhere = {variable: address.format(free_port())}
            assert_cannot_tell(script(world, "check", user, env=nowhere), nowhere[variable], "did not answer")


def test_check_dies_of_ctrl_c(embedded_world: World, user: str) -> None:
    embedded_world.run(user)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = {"TB_ADDRESS": f"127.0.0.1:{silent.getsockname()[1]}"}
        process = embedded_world.process("-m", "operations", "check", user, env=address)
        with silent.accept()[0]:  # from now on the command waits for an answer
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=HANG_S)
        [line] = err.splitlines()
        assert (process.wait(), out, line.startswith("embedded ")) == (-signal.SIGINT, "", True)
