"""The commands that only read see what SQLite sees, in each layout of its files, and change none of them."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Callable

import pytest

from ..conftest import World
from .commands import EXISTS, assert_verdict, findings, script

FILES = ["accounts.db", "promises.db", "ledger.db"]


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


def contents(world: World) -> dict[str, object]:
    files = {path.name: path.read_bytes() for path in world.data.iterdir()}
    return files | {"": world.data.stat().st_mtime_ns}


@pytest.mark.parametrize("layout", [lambda _: None, without_index, in_rollback_mode, with_a_persistent_journal])
def test_layout_is_read_as_sqlite_reads_it_and_is_not_changed(
    embedded_world: World, user: str, layout: Callable[[World], None]
) -> None:
    """Not even for a moment is a file created: the directory may be read-only."""
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
