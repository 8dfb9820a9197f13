"""Files and limits in a wrong state: one line names what is wrong, and what to do about that."""

from __future__ import annotations

import os
import shutil

import pytest

from ..conftest import World, completed, quick_only
from ..operations.commands import script
from .commands import COMMAND, assert_unavailable, command

FILES = ["accounts.db", "accounts.db-journal", "accounts.db-wal", "accounts.db-shm", "ledger.db", "promises.db"]


@pytest.mark.parametrize("file", quick_only(FILES[:2], [*FILES, "promises.lock"]))
@pytest.mark.parametrize("kind", quick_only(["pipe"], ["pipe", "directory", "device", "link to itself"]))
def test_file_that_is_no_regular_file_is_named(embedded_world: World, user: str, file: str, kind: str) -> None:
    """SQLite would wait for a pipe without an end."""
    embedded_world.run(f"{user}-first")
    path = embedded_world.data / file
    path.unlink(missing_ok=True)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "device":
            path.symlink_to(os.devnull)
        case _:
            path.symlink_to(path.name)
    words = ("/dev/null" if kind == "device" and "-" not in file else str(path), "is not a regular file")
    if (file, kind) != ("promises.lock", "link to itself"):
        assert_unavailable(command(embedded_world, user), *words)
    if file != "promises.lock":
        assert_unavailable(script(embedded_world, "audit"), *words)


def test_link_to_a_missing_file_is_named(embedded_world: World, user: str) -> None:
    embedded_world.data.mkdir()
    path = embedded_world.data / "accounts.db"
    path.symlink_to("/nowhere/accounts.db")
    assert_unavailable(command(embedded_world, user), f"{path} is a link to a missing file")


def test_file_system_without_shared_memory_is_named(embedded_world: World, user: str) -> None:
    """As 9p and FUSE can be."""
    if shutil.which("strace") is None:
        pytest.skip("`strace` is missing: it makes the system call fail")
    fail = ["-e", "trace=mmap", "-e", "inject=mmap:error=ENODEV", "-P", str(embedded_world.data / "accounts.db-shm")]
    done = completed(
        ["strace", "-f", "-qq", "-o", "/dev/null", *fail, *COMMAND, user],
        env=embedded_world.environ(),
        cwd=embedded_world.directory,
    )
    if "strace" in done.stderr:
        pytest.skip("`strace` does not work here")
    assert_unavailable(done, "accounts.db", "local file system", "9p, FUSE or NFS")


def test_relative_data_dir_in_a_directory_that_was_removed_is_named(embedded_world: World, user: str) -> None:
    gone = embedded_world.directory / "gone"
    gone.mkdir()
    done = completed(
        ["sh", "-c", f'rmdir {gone}; exec "$@"', "sh", *COMMAND, user],
        env=embedded_world.environ() | {"DATA_DIR": "x"},
        cwd=gone,
    )
    assert_unavailable(done, "DATA_DIR=x is a relative path", "set an absolute path")
