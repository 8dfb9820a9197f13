"""The commands of docs/operations.md that use SQLite's files, as written: each does what it says, or fails loudly."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from ..conftest import ROOT, World, completed, numbered, quick_only
from .backfills import run
from .commands import Done, findings
from .test_check import contents

DOCUMENT = (ROOT / "docs" / "operations.md").read_text()
BLOCKS = dict(re.findall(r"```sh (?!worker)(\w+)\n(.*?)```", DOCUMENT, re.DOTALL))  # test_readme.py runs the other
NAMES = ("promises", "ledger", "accounts")

#: DATA_DIR and the working directory, inside the world's directory.
SETTINGS = {"absolute": ("{}/data", "."), "relative": ("data", "."), "in the data directory": (".", "data")}


def documented(kind: str, world: World, setting: str = "absolute", name: str = "accounts") -> Done:
    data, cwd = SETTINGS[setting]
    return shell(BLOCKS[kind].replace("accounts", name), world.directory / cwd, DATA_DIR=data.format(world.directory))


def shell(commands: str, cwd: Path, **env: str) -> Done:
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return completed(["sh", "-c", commands], cwd=cwd, env=path | env)


def assert_done(done: Done) -> None:
    assert (done.returncode, done.stderr) == (0, "")


def assert_failed(done: Done, *words: str) -> None:
    assert done.returncode != 0
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("setting", quick_only(["absolute"], SETTINGS))
def test_backup_is_restored_although_a_killed_process_has_left_its_wal(
    embedded_world: World, user: str, setting: str
) -> None:
    """An old -wal beside a restored file would destroy it."""
    guid = embedded_world.run(user).guid
    for name in NAMES:
        assert_done(documented("backup", embedded_world, setting, name))
    run(embedded_world, *numbered(user, 300))
    run(embedded_world, *numbered(f"{user}-2", 300), CRASH="after write 4")
    assert all((embedded_world.data / f"{name}.db-wal").stat().st_size > 4096 for name in NAMES)
    for name in NAMES:
        assert_done(documented("restore", embedded_world, setting, name))
    assert findings(embedded_world) == (0, [], "clean; 1 accounts, 1 rows, 0 in progress")
    assert embedded_world.run(user).guid == guid
    assert embedded_world.run(f"{user}-new").status == 0
    assert (embedded_world.data / "promises.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", BLOCKS)
def test_command_without_its_files_fails_and_changes_nothing(embedded_world: World, user: str, kind: str) -> None:
    embedded_world.run(user)
    before = contents(embedded_world)
    for cwd in (embedded_world.directory, embedded_world.data):
        assert_failed(shell(BLOCKS[kind], cwd), "accounts-backup.db" if kind == "restore" else "DATA_DIR")
    (embedded_world.directory / "accounts-backup.db").touch()
    assert_failed(shell(BLOCKS[kind], embedded_world.directory), "DATA_DIR")
    (embedded_world.directory / "accounts-backup.db").unlink()
    if kind in ("stage", "delete"):
        data_dir = str(embedded_world.data)
        assert_failed(shell(BLOCKS[kind], embedded_world.directory, DATA_DIR=data_dir, UUID="u"), "GUID")
    for data in ("data", str(embedded_world.directory)):  # the first one is relative to the data directory
        assert_failed(shell(BLOCKS[kind], embedded_world.data, DATA_DIR=data), "No such file")
    assert contents(embedded_world) == before
    assert not list(embedded_world.directory.glob("*.db"))


def test_backup_replaces_no_file(embedded_world: World, user: str) -> None:
    embedded_world.run(user)
    assert_done(documented("backup", embedded_world))
    embedded_world.run(f"{user}-2")
    backup = (embedded_world.directory / "accounts-backup.db").read_bytes()
    assert_failed(documented("backup", embedded_world), "already exists")
    assert (embedded_world.directory / "accounts-backup.db").read_bytes() == backup


def test_process_that_runs_during_a_restore_ends(embedded_world: World, user: str) -> None:
    embedded_world.run(f"{user}-first")
    assert_done(documented("backup", embedded_world))
    with embedded_world.paused_at(user, "before write 2") as process:
        assert_done(documented("restore", embedded_world))
    ended = embedded_world.finish(process)
    assert (ended.status, ended.out) == (1, "")
    assert "accounts.db was removed or replaced while this process used it" in ended.err
    assert embedded_world.run(user).status == 0


def test_row_is_deleted_and_staged_while_a_process_has_the_file_open(
    embedded_world: World, user: str, guid: str
) -> None:
    env = {"DATA_DIR": str(embedded_world.data), "UUID": user, "GUID": guid}
    with embedded_world.paused_at(f"{user}-2", "before write 2") as process:
        done = shell(BLOCKS["stage"], embedded_world.directory, **env)
        assert_done(done)
        assert f"('{user}', '{guid}')" in done.stdout
        assert embedded_world.rows(user) == [guid]
        assert_failed(shell(BLOCKS["stage"], embedded_world.directory, **env), "UNIQUE")
        assert_failed(shell(BLOCKS["delete"], embedded_world.directory, **env | {"GUID": "1"}))
        assert embedded_world.rows(user) == [guid]
        assert_done(shell(BLOCKS["delete"], embedded_world.directory, **env))
        assert embedded_world.rows(user) == []
    assert embedded_world.finish(process).status == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run a command as another user than the file's")
@pytest.mark.parametrize("crash", ["", "after write 2"])
def test_backup_by_root_leaves_the_files_to_their_owner(embedded_world: World, user: str, crash: str) -> None:
    with embedded_world.paused_at(f"{user}-2", "before write 2") as process:
        embedded_world.sql("DELETE FROM accounts")
        if crash:
            process.kill()
        for path in (embedded_world.data, *embedded_world.data.iterdir()):
            os.chown(path, 65534, 65534)
        assert_done(documented("backup", embedded_world))
        assert {path.stat().st_uid for path in embedded_world.data.iterdir()} == {65534}
    process.kill()
