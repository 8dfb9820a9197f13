"""SQLite keeps its locks, its files' modes and its syncs, whatever an application does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from clients.errors import Unavailable
from clients.stores.read_only import ReadOnly
from clients.stores.sqlite_file import Database

from ..conftest import OPENED, ROOT, completed

SCHEMA = "CREATE TABLE IF NOT EXISTS numbers (number INTEGER PRIMARY KEY)"


async def insert(database: Database, number: int) -> None:
    await database.transact(lambda db: db.execute("INSERT INTO numbers VALUES (?)", (number,)))


async def open_another(path: Path, _: Database) -> None:
    await Database(path, SCHEMA).open()


async def open_and_close_another(path: Path, _: Database) -> None:
    another = await Database(path, SCHEMA).open()
    await insert(another, 10)
    await another.close()


async def read_with_another(path: Path, _: Database) -> None:
    reader = await ReadOnly(path).open()
    await reader.read("SELECT * FROM numbers")
    await reader.close()


async def fill_the_disk(_: Path, database: Database) -> None:
    def fill(db: sqlite3.Connection) -> None:
        db.execute("PRAGMA max_page_count = 1")
        try:
            db.execute("CREATE TABLE another (x)")
        finally:
            db.execute("PRAGMA max_page_count = 1000000")

    with pytest.raises(Unavailable, match="free some disk space"):
        await database.transact(fill)


async def exceed_the_limit_of_open_files(path: Path, _: Database) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(Unavailable, match="raise the limit of open files"):
            await Database(path, SCHEMA).open()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def statement(path: Path, sql: str) -> str:
    """Run the statement in another process."""
    command = [sys.executable, "-m", "sqlite3", str(path), sql]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.mark.parametrize(
    "do", [open_another, open_and_close_another, read_with_another, fill_the_disk, exceed_the_limit_of_open_files]
)
def test_process_that_ends_is_not_taken_for_the_last_one(
    tmp_path: Path, do: Callable[[Path, Database], Awaitable[None]]
) -> None:
    path = tmp_path / "numbers.db"

    async def main() -> None:
        database = await Database(path, SCHEMA).open()
        await insert(database, 1)
        await do(path, database)
        # If the locks are lost, this process removes the -wal file at its end.
        await asyncio.to_thread(statement, path, "INSERT INTO numbers VALUES (2)")
        assert path.with_name("numbers.db-wal").exists()
        await insert(database, 3)
        await database.close()

    asyncio.run(main())
    assert statement(path, "SELECT * FROM numbers WHERE number < 10") == "(1,)\n(2,)\n(3,)\n"


def modes(directory: Path) -> set[int]:
    return {file.stat().st_mode & 0o777 for file in directory.iterdir()}


def test_files_of_an_application_are_private_and_synced(tmp_path: Path) -> None:
    """An application has not the umask of the commands. On macOS, a sync needs `fullfsync` to reach the disk."""
    path = tmp_path / "numbers.db"

    async def main() -> tuple[set[int], list[Any]]:
        database = await Database(path, SCHEMA).open()
        await insert(database, 1)
        found = modes(tmp_path)
        pragmas = ("synchronous", "fullfsync", "checkpoint_fullfsync")
        settings = [await database.read(f"PRAGMA {pragma}") for pragma in pragmas]
        await database.close()
        return found, settings

    before = os.umask(0)
    try:
        assert asyncio.run(main()) == ({0o600}, [[(2,)], [(1,)], [(1,)]])
    finally:
        os.umask(before)


def test_file_that_is_opened_beside_sqlite_fails_the_test(tmp_path: Path) -> None:
    """The rule of opened_files.py is enforced: here while a connection is open, and always where the program runs."""
    path = tmp_path / "numbers.db"
    with contextlib.closing(sqlite3.connect(path)):
        for file in (path, tmp_path / "numbers.db-wal"):
            with pytest.raises(AssertionError, match="was opened, but not by SQLite"):
                file.read_bytes()
    assert path.read_bytes() == b""
    assert len(OPENED) == 2
    OPENED.clear()
    program = "import sys; from tests.processes import watch_opened_files; watch_opened_files(); open(sys.argv[1])"
    done = completed([sys.executable, "-c", program, path], cwd=ROOT)
    assert (done.returncode, "was opened, but not by SQLite" in done.stderr) == (97, True)
