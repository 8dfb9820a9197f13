"""How the command ends: its exit status, two lines on stdout, one line on stderr."""

from __future__ import annotations

import fcntl
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ..conftest import HANG_S, World, free_port, wait_until
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
    with Path("/dev/full").open("w") as full:
        done = command(embedded_world, "u", stdout=full)
    assert done.returncode == 1
    assert "cannot write to stdout" in done.stderr.splitlines()[-1]
    assert command(embedded_world, "u").returncode == 0


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


@dataclass
class Waiting:
    """The command while it waits for something that does not happen."""

    world: World
    env: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Waiting:
        self._stderr = self.world.directory / "stderr"
        with self._stderr.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.crash", "u"],
                env=self.world.environ() | {"FIRST_ANSWER": str(10 * HANG_S)} | self.env,
                cwd=self.world.directory,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def has_said(self, line: str) -> bool:
        return line in self._stderr.read_text()

    def assert_interrupted(self) -> None:
        self._process.send_signal(signal.SIGINT)
        out, _ = self._process.communicate(timeout=HANG_S)
        assert (self._process.returncode, out) == (130, "")
        assert "Traceback" not in self._stderr.read_text()


def test_ctrl_c_while_tigerbeetle_does_not_answer(embedded_world: World) -> None:
    with Waiting(embedded_world, {"TB_ADDRESS": f"127.0.0.1:{free_port()}"}) as waiting:
        wait_until((embedded_world.data / "accounts.db").exists)
        waiting.assert_interrupted()


def test_ctrl_c_while_sqlite_is_locked(embedded_world: World) -> None:
    command(embedded_world, "another")
    with closing(sqlite3.connect(embedded_world.data / "accounts.db", isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        with Waiting(embedded_world) as waiting:
            wait_until(lambda: promise_exists(embedded_world, "create-account-u"))
            waiting.assert_interrupted()
    assert command(embedded_world, "u").returncode == 0


def promise_exists(world: World, name: str) -> bool:
    with closing(sqlite3.connect(world.data / "promises.db")) as db:
        return bool(db.execute("SELECT 1 FROM origins WHERE origin = ?", (name,)).fetchall())


def test_ctrl_c_while_another_process_has_the_promises(embedded_world: World) -> None:
    with embedded_world.directory.joinpath("promises.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with Waiting(embedded_world, {"DATA_DIR": "."}) as waiting:
            wait_until(lambda: waiting.has_said(EMBEDDED))
            waiting.assert_interrupted()


def test_ctrl_c_while_the_resonate_server_does_not_answer(embedded_world: World, tb_address: str) -> None:
    with Waiting(
        embedded_world, {"TB_ADDRESS": tb_address, "RESONATE_URL": f"http://127.0.0.1:{free_port()}"}
    ) as waiting:
        wait_until((embedded_world.data / "accounts.db").exists)
        waiting.assert_interrupted()


@pytest.mark.parametrize("setting", ["REFERENCE_URL", "RESONATE_URL"])
def test_ctrl_c_while_a_host_name_is_looked_up(embedded_world: World, tb_address: str, setting: str) -> None:
    """A thread looks up the name, and nothing can interrupt it."""
    url = {"REFERENCE_URL": "postgresql://host.example/accounts", "RESONATE_URL": "http://host.example:8001"}
    asked = embedded_world.directory / "asked"
    env = {setting: url[setting], "TB_ADDRESS": tb_address, "RESOLVER_HANGS": str(asked)}
    with Waiting(embedded_world, env) as waiting:
        wait_until(asked.exists)
        waiting.assert_interrupted()


def test_run_ends_although_a_host_name_is_still_looked_up(embedded_world: World, tb_address: str) -> None:
    embedded_world.env |= {"RESONATE_URL": "http://host.example:8001", "TB_ADDRESS": tb_address}
    asked = embedded_world.directory / "asked"
    run = embedded_world.run("u", RESOLVER_HANGS=str(asked), FIRST_ANSWER="1")
    assert (run.status, asked.exists()) == (1, True)
    assert "did not answer within 1 s" in run.err
