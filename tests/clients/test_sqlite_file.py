"""Files that are locked, full, read-only or invalid: a run waits, or ends with one line, and no promise is settled."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource
import shutil
import sqlite3
import stat
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clients.errors import Unavailable
from clients.stores.read_only import ReadOnlyFile
from clients.stores.sqlite_file import Database

from ..conftest import OPENED, ROOT, World, completed, quick_only
from ..operations.commands import script
from .commands import COMMAND, assert_gave_up, assert_resumes, assert_unavailable, command

FILES = ["accounts.db", "promises.db", "ledger.db"]


def modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.rglob("*")}


def test_only_the_owner_may_use_the_files_whatever_the_umask(embedded_world: World) -> None:
    completed([*COMMAND, "u"], env=embedded_world.environ(), umask=0)
    assert modes(embedded_world.directory) == {"data": 0o700} | dict.fromkeys([*FILES, "promises.lock"], 0o600)


#: What is done in the shell before the command, its DATA_DIR, and words of the line.
WRONG_DIRECTORIES = {
    "a file": ("touch file", "file", ["file", "DATA_DIR"]),
    "below a device": ("", "/dev/null/data", ["/dev/null/data", "DATA_DIR"]),
    "below /proc": ("", "/proc/data", ["/proc/data", "DATA_DIR"]),
    "a link to a missing file": ("ln -s /nowhere/accounts.db .", ".", ["/accounts.db is a link to a missing file"]),
    "relative to a directory that was removed": (
        "mkdir gone; cd gone; rmdir ../gone", "x", ["DATA_DIR=x is a relative path", "set an absolute path"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", quick_only(["a file"], WRONG_DIRECTORIES))
def test_wrong_data_directory_is_named(embedded_world: World, name: str) -> None:
    set_up, data_dir, words = WRONG_DIRECTORIES[name]
    shell = ["sh", "-c", f'{set_up or ":"}; exec "$@"', "sh", *COMMAND, "u"]
    env = embedded_world.environ() | {"DATA_DIR": data_dir}
    assert_unavailable(completed(shell, env=env, cwd=embedded_world.directory), *words)


@pytest.mark.parametrize("file", quick_only(["accounts.db"], FILES))
def test_invalid_database_is_named_and_not_changed(embedded_world: World, file: str) -> None:
    embedded_world.data.mkdir()
    path = embedded_world.data / file
    path.write_text("no database" * 100)
    assert_unavailable(command(embedded_world, "u"), str(path), "not a database")
    assert path.read_text() == "no database" * 100


@pytest.mark.slow
def test_full_disk_ends_the_run_and_a_rerun_resumes(embedded_world: World, user: str) -> None:
    """Each run has a larger limit for the size of a file. It creates the account, or ends with one line."""
    statuses = []
    for limit in range(4096, 200_000, 12_288):
        run = embedded_world.finish(embedded_world.start(user, FILE_SIZE=str(limit)))
        if run.status:
            assert_gave_up(run, ".db")
        statuses.append(run.status)
    assert statuses == sorted(statuses, reverse=True)
    assert set(statuses) == {0, 1}
    assert_resumes(embedded_world, user, [])


@pytest.mark.parametrize("file", quick_only(["accounts.db"], FILES))
def test_read_only_file_ends_the_run_and_a_rerun_resumes(embedded_world: World, user: str, file: str) -> None:
    embedded_world.run(user, crash="before write 2")
    files = list(embedded_world.data.glob(f"{file}*"))
    with immutable(embedded_world.data, *files):
        assert_gave_up(embedded_world.run(user), f"data/{file}")
    assert_resumes(embedded_world, user, ["2", "3"])


@contextlib.contextmanager
def immutable(*paths: Path) -> Iterator[None]:
    """Make the paths read-only, even for root if the file system can do that."""
    begin, end = ("chattr +i", "chattr -i") if os.getuid() == 0 else ("chmod a-w", "chmod u+w")
    try:
        if completed(["sh", "-c", f'{begin} "$@"', "sh", *paths]).returncode:
            pytest.skip("root can write to read-only files, and `chattr` does not work here")
        yield
    finally:
        completed(["sh", "-c", f'{end} "$@"', "sh", *paths])


# -- Files that are removed or replaced while a process uses them ----------


def removed(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()


def replaced(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    copy.rename(path)


@pytest.mark.parametrize("file", [*FILES, "promises.lock", "accounts.db-wal"])
@pytest.mark.parametrize("how", quick_only([removed], [removed, replaced]))
def test_file_that_is_replaced_under_a_run_ends_it_and_settles_nothing(
    embedded_world: World, user: str, file: str, how: Callable[[Path], None]
) -> None:
    path = embedded_world.data / file
    with embedded_world.paused_at(user, "before write 3" if file == "ledger.db" else "before write 2") as process:
        how(path)
    run = embedded_world.finish(process)
    assert (run.status, run.out) == (1, "")
    assert f"{path} was removed or replaced while this process used it" in run.err.splitlines()[-1]
    again = embedded_world.run(user)
    if file == "promises.db" and how is removed:  # the row remains, and its promise is lost
        assert (again.status, embedded_world.accounts(user)) == (98, [])
        assert "SQLite exists_diff" in again.err
    else:
        assert again.status == 0, again.err
        assert embedded_world.rows(user) == embedded_world.accounts(user) == [again.guid]


# -- Locks, modes and syncs, whatever an application does --------------------


SCHEMA = "CREATE TABLE IF NOT EXISTS numbers (number INTEGER PRIMARY KEY)"


async def insert(database: Database, number: int) -> None:
    await database.transact(lambda db: db.execute("INSERT INTO numbers VALUES (?)", (number,)))


async def open_and_close_another(path: Path, _: Database) -> None:
    another = await Database(path, SCHEMA).open()
    await insert(another, 10)
    await another.close()


async def read_with_another(path: Path, _: Database) -> None:
    reader = await ReadOnlyFile(path, schema="").open()
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
    return completed([sys.executable, "-m", "sqlite3", path, sql]).stdout


@pytest.mark.parametrize(
    "do", [open_and_close_another, read_with_another, fill_the_disk, exceed_the_limit_of_open_files]
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


def test_files_of_an_application_are_private_and_synced(tmp_path: Path) -> None:
    """An application has not the umask of the commands. On macOS, a sync needs `fullfsync` to reach the disk."""
    path = tmp_path / "data" / "numbers.db"

    async def main() -> tuple[dict[str, int], list[Any]]:
        database = await Database(path, SCHEMA).open()
        await insert(database, 1)
        found = modes(tmp_path)
        pragmas = ("synchronous", "fullfsync", "checkpoint_fullfsync")
        settings = [await database.read(f"PRAGMA {pragma}") for pragma in pragmas]
        await database.close()
        return found, settings

    before = os.umask(0)
    try:
        files = {"data": 0o700} | dict.fromkeys(("numbers.db", "numbers.db-wal", "numbers.db-shm"), 0o600)
        assert asyncio.run(main()) == (files, [[(2,)], [(1,)], [(1,)]])
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


# -- Files in a wrong state --------------------------------------------------


MAKE: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "directory": Path.mkdir,
    "device": lambda path: path.symlink_to(os.devnull),
    "link to itself": lambda path: path.symlink_to(path.name),
}
OF_SQLITE = ["accounts.db", "accounts.db-journal", "accounts.db-wal", "accounts.db-shm", "ledger.db", "promises.db"]


@pytest.mark.parametrize("file", quick_only(OF_SQLITE[:2], [*OF_SQLITE, "promises.lock"]))
@pytest.mark.parametrize("kind", quick_only(["pipe"], MAKE))
def test_file_that_is_no_regular_file_is_named(embedded_world: World, user: str, file: str, kind: str) -> None:
    """SQLite would wait for a pipe without an end."""
    embedded_world.run(f"{user}-first")
    path = embedded_world.data / file
    path.unlink(missing_ok=True)
    MAKE[kind](path)
    words = ("/dev/null" if kind == "device" and "-" not in file else str(path), "is not a regular file")
    if (file, kind) != ("promises.lock", "link to itself"):
        assert_unavailable(command(embedded_world, user), *words)
    if file != "promises.lock":
        assert_unavailable(script(embedded_world, "audit"), *words)


def test_file_system_without_shared_memory_is_named(embedded_world: World, user: str) -> None:
    """As 9p and FUSE can be."""
    if shutil.which("strace") is None:
        pytest.skip("`strace` is missing: it makes the system call fail")
    fail = ["-e", "trace=mmap", "-e", "inject=mmap:error=ENODEV", "-P", str(embedded_world.data / "accounts.db-shm")]
    done = completed(["strace", "-f", "-qq", "-o", "/dev/null", *fail, *COMMAND, user], env=embedded_world.environ())
    if "strace" in done.stderr:
        pytest.skip("`strace` does not work here")
    assert_unavailable(done, "accounts.db", "local file system", "9p, FUSE or NFS")


@pytest.mark.slow
def test_promises_in_use_by_another_process_are_refused(embedded_world: World) -> None:
    path = embedded_world.directory / "promises.lock"
    path.write_text("4711")
    with path.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = command(embedded_world, "u", env={"DATA_DIR": ".", "FIRST_ANSWER": "1"})
        assert_unavailable(done, "process 4711", "RESONATE_URL")
