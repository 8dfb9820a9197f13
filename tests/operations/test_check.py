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


def test_check_exists(world: World, user: str) -> None:
    guid = world.run(user).guid
    done = script(world, "check", user)
    assert done.returncode == EXISTS
    assert done.stdout.splitlines() == [
        f"promise create-account-{user}: resolved, account {guid}",
        f"TigerBeetle: account {guid}",
        f"{world.reference}: row with guid {guid}",
        "exists",
    ]


def test_check_staged(world: World, user: str) -> None:
    world.run(user, crash="after save 2")
    done = script(world, "check", user)
    assert done.returncode == STAGED
    assert done.stdout.splitlines() == [
        f"promise create-account-{user}: pending",
        "TigerBeetle: no account",
        f"{world.reference}: row with guid {world.rows(user)[0]}",
        f"staged: promise create-account-{user} is pending; to resume it, run python create_account.py -- {user}",
    ]


def test_check_unreferenced(world: World, user: str) -> None:
    world.run(user)
    unstage(world, user)
    assert_verdict(world, user, UNREFERENCED, "unreferenced")


def test_check_absent(world: World, user: str) -> None:
    world.run(user)
    done = script(world, "check", f"{user}-2")
    assert done.returncode == ABSENT
    assert done.stdout.splitlines() == [
        f"promise create-account-{user}-2: not found",
        "TigerBeetle: no account",
        f"{world.reference}: no row",
        f"absent: promise create-account-{user}-2 not found (never created, or lost); run python create_account.py -- {user}-2",
    ]


def test_check_conflict_if_the_uuid_has_an_account_with_another_guid(world: World, user: str, guid: str) -> None:
    held = world.run(user).guid
    world.sql("UPDATE accounts SET guid = ? WHERE uuid = ?", guid, user)
    assert_verdict(world, user, CONFLICT, "conflict", f"TigerBeetle holds account {held}")


def test_check_conflict_if_the_uuid_has_several_accounts(world: World, user: str, guid: str) -> None:
    held = world.run(user).guid
    commit(world, user, guid)
    assert_verdict(world, user, CONFLICT, "conflict", f"TigerBeetle holds account {guid}")
    unstage(world, user)
    assert_verdict(world, user, CONFLICT, "conflict", guid, held)


def test_check_conflict_if_the_guid_is_staged_for_another_uuid(world: World, user: str) -> None:
    guid = world.run(user).guid
    world.sql("UPDATE accounts SET uuid = 'another' WHERE uuid = ?", user)
    assert_verdict(world, user, CONFLICT, "conflict", f"stages guid {guid} for uuid 'another'")


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


def test_invalid_arguments_end_with_2_and_help_with_0(embedded_world: World) -> None:
    for command in ("check", "audit", "adopt"):
        done = script(embedded_world, command, "a", "b")
        assert done.returncode == 2
        assert done.stderr.startswith("usage: python -m operations")
        assert script(embedded_world, command, "-h").returncode == 0
    for command in ("check", "adopt"):
        assert script(embedded_world, command, "a:b").returncode == 2
