"""Files that are locked, full, read-only or invalid: a run waits, or ends with one line, and no promise is settled."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ..conftest import World, quick_only
from .commands import COMMAND, assert_gave_up, assert_resumes, assert_unavailable, command

FILES = ["accounts.db", "promises.db", "ledger.db"]


def test_only_the_owner_may_use_the_files_whatever_the_umask(embedded_world: World) -> None:
    subprocess.run(
        [*COMMAND, "u"],
        env=embedded_world.environ(),
        cwd=embedded_world.directory,
        umask=0,
        capture_output=True,
        check=True,
    )
    directory = embedded_world.data
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes == dict.fromkeys(("accounts.db", "ledger.db", "promises.db", "promises.lock"), 0o600)


@pytest.mark.parametrize("path", quick_only(["file"], ["/dev/null/data", "/proc/data", "file"]))
def test_data_dir_that_cannot_be_written_is_named(embedded_world: World, path: str) -> None:
    (embedded_world.directory / "file").touch()
    assert_unavailable(command(embedded_world, "u", env={"DATA_DIR": path}), path, "DATA_DIR")


@pytest.mark.parametrize("file", quick_only(["accounts.db"], FILES))
def test_invalid_database_is_named_and_not_changed(embedded_world: World, file: str) -> None:
    data = embedded_world.directory / "data"
    data.mkdir()
    (data / file).write_text("no database" * 100)
    assert_unavailable(command(embedded_world, "u", env={"DATA_DIR": "data"}), f"data/{file}", "not a database")
    assert (data / file).read_text() == "no database" * 100


def test_accounts_table_with_other_columns_is_refused(embedded_world: World) -> None:
    with closing(sqlite3.connect(embedded_world.directory / "accounts.db")) as db:
        db.execute("CREATE TABLE accounts (name TEXT)")
    assert_unavailable(command(embedded_world, "u", env={"DATA_DIR": "."}), "accounts.db", "uuid")


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
    modes = [path.stat().st_mode for path in paths]
    for path in reversed(paths):
        path.chmod(0o555)
    root = os.getuid() == 0
    try:
        if root and chattr("+i", *paths):
            pytest.skip("root can write to read-only files, and `chattr` does not work here")
        yield
    finally:
        if root:
            chattr("-i", *paths)
        for path, mode in zip(paths, modes, strict=True):
            path.chmod(mode)


def chattr(flag: str, *paths: Path) -> bool:
    """Run `chattr` and return whether it failed."""
    if shutil.which("chattr") is None:
        return True
    return subprocess.run(["chattr", flag, *paths], capture_output=True, check=False).returncode != 0


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
