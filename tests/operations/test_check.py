"""`check`, and the rules for all commands that only read: they see what SQLite sees, and change no file."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable

import pytest

from ..conftest import HANG_S, World, free_port, quick_only
from .commands import (
    ABSENT,
    CONFLICT,
    EXISTS,
    STAGED,
    UNREFERENCED,
    Done,
    assert_verdict,
    commit,
    findings,
    script,
    unstage,
)

FILES = ["accounts.db", "promises.db", "ledger.db"]

#: Where a run was killed, the exit status of `check`, what it says of the promise, the account and the row, and its end.
CHECKED: dict[str, tuple[str | None, int, str, str, str, str]] = {
    "exists": ("", EXISTS, "resolved, account {guid}", "account {guid}", "row with guid {guid}", "exists"),
    "exists, pending": ("after write 3", EXISTS, "pending", "account {guid}", "row with guid {guid}", "exists: {pending}"),
    "staged": ("after save 2", STAGED, "pending", "no account", "row with guid {guid}", "staged: {pending}"),
    "absent, pending": ("before write 2", ABSENT, "pending", "no account", "no row", "absent: {pending}"),
    "absent": (None, ABSENT, "not found", "no account", "no row", "absent: {not_found}"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKED)
def test_check_prints_what_the_promise_and_both_stores_hold(world: World, user: str, name: str) -> None:
    crash, status, promise, account, row, verdict = CHECKED[name]
    world.run(f"{user}-other")
    if crash is not None:
        world.run(user, crash=crash)
    id_, rerun = f"promise create-account-{user}", f"run python create_account.py -- {user}"
    expected = f"{id_}: {promise}\nTigerBeetle: {account}\n{world.reference}: {row}\n{verdict}\n".format(
        guid="".join(world.rows(user)),
        pending=f"{id_} is pending; to resume it, {rerun}",
        not_found=f"{id_} not found (never created, or lost); {rerun}",
    )
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


def contents(world: World) -> dict[str, object]:
    """Not even for a moment may a reading command create a file: the directory may be read-only."""
    files = {path.name: path.read_bytes() for path in world.data.iterdir()}
    return files | {"": world.data.stat().st_mtime_ns}


@pytest.mark.parametrize("crash", quick_only(["after write 3"], ["", "after write 3"]))
def test_reading_commands_change_no_file(world: World, user: str, crash: str) -> None:
    """After a clean end SQLite has removed its -wal and -shm files. After a crash they exist."""
    world.run(user, crash=crash)
    before = contents(world)
    script(world, "check", user)
    script(world, "audit")
    script(world, "adopt", user)  # it is refused, or has nothing to do
    assert contents(world) == before


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


@pytest.mark.parametrize("lost", quick_only(["data"], ["data", *FILES]))
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


# -- Layouts of SQLite's files -----------------------------------------------


def link(world: World) -> None:
    """Put the files elsewhere, with links in their places. SQLite puts the -wal file beside the target."""
    elsewhere = world.directory / "elsewhere"
    elsewhere.mkdir()
    for name in FILES:
        (world.data / name).rename(elsewhere / name)
        (world.data / name).symlink_to(elsewhere / name)


def test_reading_commands_follow_links_while_accounts_are_created(embedded_world: World, user: str) -> None:
    embedded_world.run(f"{user}-first")
    link(embedded_world)
    with embedded_world.paused_at(user, "after save 3") as process:
        assert (embedded_world.directory / "elsewhere" / "accounts.db-wal").stat().st_size > 0
        assert findings(embedded_world) == (0, [], "clean; 2 accounts, 2 rows, 0 in progress")
    assert embedded_world.finish(process).status == 0
    assert_verdict(embedded_world, user, EXISTS, "exists")


def without_index(world: World) -> None:
    """A copy of the files without the -shm file, as some backups are."""
    for index in world.data.glob("*-shm"):
        index.unlink()


def with_hot_journal(world: World) -> None:
    """Another program died in a transaction, in rollback mode. Its changes are in the main file, and must not be read."""
    change = (
        "import os, signal, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('PRAGMA journal_mode=DELETE')\n"
        "db.execute('PRAGMA cache_size=1')\n"
        "db.execute('BEGIN IMMEDIATE')\n"
        "db.execute('DELETE FROM accounts')\n"
        "db.execute('CREATE TABLE filler (x)')\n"
        "for _ in range(1000):\n"
        "    db.execute('INSERT INTO filler VALUES (?)', ('x' * 1000,))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", change, world.data / "accounts.db"], check=False)
    assert (world.data / "accounts.db-journal").stat().st_size > 0


def in_rollback_mode(world: World) -> None:
    for name in FILES:
        with contextlib.closing(sqlite3.connect(world.data / name)) as db:
            db.execute("PRAGMA journal_mode=DELETE")


def with_a_persistent_journal(world: World) -> None:
    with contextlib.closing(sqlite3.connect(world.data / "accounts.db")) as db, db:
        db.execute("PRAGMA journal_mode=PERSIST")
        db.execute("PRAGMA user_version=1")
    assert (world.data / "accounts.db-journal").stat().st_size > 0


@pytest.mark.parametrize("layout", [lambda _: None, without_index, in_rollback_mode, with_a_persistent_journal])
def test_layout_is_read_as_sqlite_reads_it_and_is_not_changed(
    embedded_world: World, user: str, layout: Callable[[World], None]
) -> None:
    embedded_world.run(user, crash="after save 3")
    layout(embedded_world)

    before = contents(embedded_world)
    done = script(embedded_world, "audit")
    assert done.stdout == "clean; 1 accounts, 1 rows, 0 in progress\n", done.stderr
    assert contents(embedded_world) == before
    assert embedded_world.run(user).status == 0
    assert_verdict(embedded_world, user, EXISTS, "exists")


def test_journal_of_a_dead_process_is_refused_until_a_run_has_rolled_it_back(embedded_world: World, user: str) -> None:
    """Not by this program, which writes no journal. Only a writer can read such a file."""
    embedded_world.run(user)
    with_hot_journal(embedded_world)
    before = contents(embedded_world)
    done = script(embedded_world, "audit")
    assert (done.returncode, done.stdout) == (1, "")
    assert "accounts.db" in done.stderr
    assert "run create_account.py" in done.stderr.splitlines()[-1]
    assert contents(embedded_world) == before
    assert embedded_world.run(user).status == 0
    assert findings(embedded_world) == (0, [], "clean; 1 accounts, 1 rows, 0 in progress")


def test_row_that_is_not_utf_8_is_one_finding_of_the_audit(world_with_own_ledger: World, user: str, guid: str) -> None:
    world = world_with_own_ledger
    if world.reference != "SQLite":
        pytest.skip("a UTF-8 database refuses such a row")
    world.run(user)
    world.sql(f"INSERT INTO accounts VALUES (CAST(x'ff' AS TEXT), '{guid}'), ('other', CAST(x'fe' AS TEXT))")  # noqa: S608
    status, lines, count = findings(world)
    assert (status, count) == (98, "2 conflict; 1 accounts, 3 rows, 0 in progress")
    assert f"conflict: SQLite stages guid {guid} for b'\\xff', which is not a valid uuid" in lines
    assert any("stages guid b'\\xfe', which is not a valid account id" in line for line in lines)


def test_guid_of_a_row_that_is_not_utf_8_panics(embedded_world: World, user: str, guid: str) -> None:
    embedded_world.sql(f"INSERT INTO accounts VALUES (CAST(x'ff' AS TEXT), '{guid}')")  # noqa: S608
    run = embedded_world.run(user, guid=guid)
    assert run.status == 98
    assert "SQLite exists_diff" in run.err
    assert "b'\\xff'" in run.err
