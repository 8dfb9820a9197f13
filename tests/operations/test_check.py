"""`check`, and the rules for all commands that only read."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess

import pytest

from ..conftest import HANG_S, World, free_port, quick_only
from .commands import ABSENT, CONFLICT, EXISTS, STAGED, UNREFERENCED, Done, assert_verdict, commit, script, unstage

#: Where a run was killed, the exit status of `check`, what it says of the promise, the account and the row, and its end.
CHECKED: dict[str, tuple[str | None, int, str, str, str, str]] = {
    "exists": ("", EXISTS, "resolved, account GUID", "account GUID", "row with guid GUID", "exists"),
    "exists, pending": ("after write 3", EXISTS, "pending", "account GUID", "row with guid GUID", "exists: PENDING"),
    "staged": ("after save 2", STAGED, "pending", "no account", "row with guid GUID", "staged: PENDING"),
    "absent, pending": ("before write 2", ABSENT, "pending", "no account", "no row", "absent: PENDING"),
    "absent": (None, ABSENT, "not found", "no account", "no row", "absent: LOST; RERUN"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKED)
def test_check_prints_what_the_promise_and_both_stores_hold(world: World, user: str, name: str) -> None:
    crash, status, promise, account, row, verdict = CHECKED[name]
    world.run(f"{user}-other")
    if crash is not None:
        world.run(user, crash=crash)
    expected = f"PROMISE: {promise}\nTigerBeetle: {account}\n{world.reference}: {row}\n{verdict}\n"
    rerun = f"run python create_account.py -- {user}"
    words = {"PENDING": f"PROMISE is pending; to resume it, {rerun}", "RERUN": rerun}
    words |= {"LOST": "PROMISE not found (never created, or lost)"}
    words |= {"PROMISE": f"promise create-account-{user}", "GUID": "".join(world.rows(user))}
    for word, text in words.items():
        expected = expected.replace(word, text)
    done = script(world, "check", user)
    assert (done.returncode, done.stdout) == (status, expected)


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


def assert_cannot_tell(done: Done, *words: str) -> None:
    assert (done.returncode, done.stdout) == (1, "")
    line = done.stderr.splitlines()[-1]
    for word in words:
        assert word in line


@pytest.mark.parametrize("lost", quick_only(["data"], ["data", "accounts.db", "promises.db", "ledger.db"]))
def test_missing_or_invalid_file_is_an_error(world: World, user: str, lost: str) -> None:
    """The commands create no file, and no directory."""
    world.run(user)
    if not (path := world.data if lost == "data" else world.data / lost).exists():
        pytest.skip("this world has no such file: a server holds the data")
    path.rename(world.directory / "elsewhere")
    for command in (["check", user], ["audit"], ["adopt", user]):
        assert_cannot_tell(script(world, *command), str(path), "does not exist", "DATA_DIR")
    assert not path.exists()
    if lost != "data":
        path.write_text("no database, but longer than nothing")
        assert_cannot_tell(script(world, "check", user), lost, "not a database")


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
