"""How the command ends: its exit status, two lines on stdout, one line on stderr."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from ..conftest import HANG_S, World, free_port, wait_until
from ..processes import Process
from .commands import COMMAND, EMBEDDED, assert_unavailable, command


def test_stdout_has_two_lines_and_stderr_names_what_is_embedded(embedded_world: World) -> None:
    done = command(embedded_world, "user-123")
    uuid_line, guid_line = done.stdout.splitlines()
    assert uuid_line == "UUID: user-123"
    assert guid_line.removeprefix("GUID: ").isdecimal()
    [line] = done.stderr.splitlines()
    assert line.startswith(EMBEDDED)
    assert str(embedded_world.data) in line


def test_full_stdout_is_an_error_and_the_account_exists(embedded_world: World) -> None:
    done = command(embedded_world, "u", stdout=os.open("/dev/full", os.O_WRONLY))
    assert done.returncode == 1
    assert "cannot write to stdout" in done.stderr.splitlines()[-1]
    assert command(embedded_world, "u").returncode == 0


def limited(world: World, limits: dict[int, int]) -> subprocess.CompletedProcess[str]:
    """Run the command under these limits."""

    def limit() -> None:
        for number, value in limits.items():
            resource.setrlimit(number, (value, value))

    return subprocess.run(
        [*COMMAND, "u"],
        env=world.environ(),
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )


def test_limit_of_open_files_is_named(embedded_world: World) -> None:
    for files in (5, 8):
        assert_unavailable(limited(embedded_world, {resource.RLIMIT_NOFILE: files}), "raise the limit of open files")


def test_limit_of_threads_is_named(embedded_world: World) -> None:
    """No thread starts, because a stack is larger than the memory."""
    limits = {resource.RLIMIT_STACK: 2**38, resource.RLIMIT_AS: 2**36}
    assert_unavailable(limited(embedded_world, limits), "cannot start a thread", "run again")


def test_missing_dependency_is_named(embedded_world: World) -> None:
    """The option -S leaves out site-packages."""
    done = subprocess.run(
        [sys.executable, "-S", COMMAND[1], "u"],
        env=embedded_world.environ(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert_unavailable(done, "not installed")


@contextmanager
def waiting(world: World, **env: str) -> Iterator[Process]:
    """Start the command. It waits for something that does not happen."""
    process = world.process("u", env={"FIRST_ANSWER": str(10 * HANG_S)} | env)
    try:
        yield process
    finally:
        process.kill()


def assert_interrupted(process: Process, number: signal.Signals = signal.SIGINT) -> None:
    """Check that the process dies of the signal. A shell would take an exit status as the command's own end."""
    process.send_signal(number)
    out, err = process.communicate(timeout=HANG_S)
    assert (process.returncode, out) == (-number, "")
    assert "Traceback" not in err


def test_ctrl_c_while_tigerbeetle_does_not_answer(embedded_world: World) -> None:
    with waiting(embedded_world, TB_ADDRESS=f"127.0.0.1:{free_port()}") as process:
        wait_until((embedded_world.data / "accounts.db").exists)
        assert_interrupted(process)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_while_sqlite_is_locked(embedded_world: World, number: signal.Signals) -> None:
    command(embedded_world, "another")
    with closing(sqlite3.connect(embedded_world.data / "accounts.db", isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        with waiting(embedded_world) as process:
            wait_until(lambda: promise_exists(embedded_world, "create-account-u"))
            assert_interrupted(process, number)
    assert command(embedded_world, "u").returncode == 0


def promise_exists(world: World, name: str) -> bool:
    with closing(sqlite3.connect(world.data / "promises.db")) as db:
        return bool(db.execute("SELECT 1 FROM origins WHERE origin = ?", (name,)).fetchall())


def test_ctrl_c_while_another_process_has_the_promises(embedded_world: World) -> None:
    with embedded_world.directory.joinpath("promises.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with waiting(embedded_world, DATA_DIR=".") as process:
            wait_until(lambda: EMBEDDED in process.err.read_text())
            assert_interrupted(process)


def test_signal_that_nohup_ignores_stays_ignored(embedded_world: World) -> None:
    with embedded_world.directory.joinpath("promises.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(
            ["nohup", *COMMAND, "u"],
            env=embedded_world.environ() | {"DATA_DIR": str(embedded_world.directory)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        assert EMBEDDED in process.stderr.readline().decode()
        process.send_signal(signal.SIGHUP)
    process.communicate(timeout=HANG_S)
    assert process.returncode == 0


def test_ctrl_c_while_the_resonate_server_does_not_answer(embedded_world: World, tb_address: str) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with waiting(embedded_world, TB_ADDRESS=tb_address, RESONATE_URL=url) as process:
        wait_until((embedded_world.data / "accounts.db").exists)
        assert_interrupted(process)


@pytest.mark.parametrize("setting", ["REFERENCE_URL", "RESONATE_URL"])
def test_ctrl_c_while_a_host_name_is_looked_up(embedded_world: World, tb_address: str, setting: str) -> None:
    """A thread looks up the name, and nothing can interrupt it."""
    url = {"REFERENCE_URL": "postgresql://host.example/accounts", "RESONATE_URL": "http://host.example:8001"}
    asked = embedded_world.directory / "asked"
    env = {setting: url[setting], "TB_ADDRESS": tb_address, "RESOLVER_HANGS": str(asked)}
    with waiting(embedded_world, **env) as process:
        wait_until(asked.exists)
        assert_interrupted(process)


def test_run_ends_although_a_host_name_is_still_looked_up(embedded_world: World, tb_address: str) -> None:
    embedded_world.env |= {"RESONATE_URL": "http://host.example:8001", "TB_ADDRESS": tb_address}
    asked = embedded_world.directory / "asked"
    run = embedded_world.run("u", RESOLVER_HANGS=str(asked), FIRST_ANSWER="1")
    assert (run.status, asked.exists()) == (1, True)
    assert "did not answer within 1 s" in run.err
