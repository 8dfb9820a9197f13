"""How the command ends: its exit status, two lines on stdout, one line on stderr."""

from __future__ import annotations

import ast
import fcntl
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from subprocess import DEVNULL

import pytest

from ..conftest import HANG_S, ROOT, World, completed, free_port, locked, wait_until
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


LIMITS = {
    "5 open files": ({resource.RLIMIT_NOFILE: 5}, "raise the limit of open files"),
    "8 open files": ({resource.RLIMIT_NOFILE: 8}, "raise the limit of open files"),
    "10 open files": ({resource.RLIMIT_NOFILE: 10}, "raise the limit of open files"),  # it may be enough
    # No thread starts, because a stack is larger than the memory.
    "threads": ({resource.RLIMIT_STACK: 2**38, resource.RLIMIT_AS: 2**36}, "cannot start a thread"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limit_of_the_system_is_named(embedded_world: World, name: str) -> None:
    def limit() -> None:
        for number, value in LIMITS[name][0].items():
            resource.setrlimit(number, (value, value))

    done = completed([*COMMAND, "u"], env=embedded_world.environ(), preexec_fn=limit)
    if done.returncode or name != "10 open files":
        assert_unavailable(done, LIMITS[name][1], "run again")


def test_missing_dependency_is_named(embedded_world: World) -> None:
    """The option -S leaves out site-packages."""
    done = completed([sys.executable, "-S", COMMAND[1], "u"], env=embedded_world.environ())
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


#: What does not answer, and the setting that names it. A thread looks up a host's name, and nothing can interrupt it.
SILENT = {
    "TigerBeetle": ("TB_ADDRESS", "{}"),
    "the Resonate server": ("RESONATE_URL", "http://{}"),
    "a host name of PostgreSQL": ("REFERENCE_URL", "postgresql://host.example/accounts"),
    "a host name of Resonate": ("RESONATE_URL", "http://host.example:8001"),
}


@pytest.mark.parametrize("name", SILENT)
def test_ctrl_c_while_it_does_not_answer(embedded_world: World, request: pytest.FixtureRequest, name: str) -> None:
    variable, value = SILENT[name]
    env = {} if variable == "TB_ADDRESS" else {"TB_ADDRESS": request.getfixturevalue("tb_address")}
    env[variable] = value.format(f"127.0.0.1:{free_port()}")
    begun = embedded_world.data / "accounts.db"
    if "host name" in name:
        begun = embedded_world.directory / "asked"
        env["RESOLVER_HANGS"] = str(begun)
    with waiting(embedded_world, **env) as process:
        wait_until(begun.exists)
        assert_interrupted(process)


def has_begun(world: World) -> bool:
    with closing(sqlite3.connect(world.data / "promises.db")) as db:
        return db.execute("SELECT 1 FROM origins WHERE origin = 'create-account-u'").fetchall() != []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_while_sqlite_is_locked(embedded_world: World, number: signal.Signals) -> None:
    command(embedded_world, "another")
    with locked(embedded_world.data / "accounts.db"), waiting(embedded_world) as process:
        wait_until(lambda: has_begun(embedded_world))
        assert_interrupted(process, number)
    assert command(embedded_world, "u").returncode == 0


def test_signal_that_nohup_ignores_stays_ignored(embedded_world: World) -> None:
    command(embedded_world, "another")
    with locked(embedded_world.data / "accounts.db"):
        nohup = ["nohup", *COMMAND, "u"]
        process = subprocess.Popen(nohup, env=embedded_world.environ(), stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)
        wait_until(lambda: has_begun(embedded_world))
        process.send_signal(signal.SIGHUP)
    assert process.wait(HANG_S) == 0


def test_ctrl_c_while_another_process_has_the_promises(embedded_world: World) -> None:
    with embedded_world.directory.joinpath("promises.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with waiting(embedded_world, DATA_DIR=".") as process:
            files = Path(f"/proc/{process.pid}/fd")
            wait_until(lambda: any(file.resolve().name == "promises.lock" for file in files.iterdir()))
            assert_interrupted(process)


def test_run_ends_although_a_host_name_is_still_looked_up(embedded_world: World, tb_address: str) -> None:
    embedded_world.env |= {"RESONATE_URL": "http://host.example:8001", "TB_ADDRESS": tb_address}
    asked = embedded_world.directory / "asked"
    run = embedded_world.run("u", RESOLVER_HANGS=str(asked), FIRST_ANSWER="1")
    assert (run.status, asked.exists()) == (1, True)
    assert "did not answer within 1 s" in run.err


# -- Arguments ---------------------------------------------------------------


OPERATIONS = "-m operations"

#: Wrong arguments, and words of the line about them.
WRONG = {
    "": "required",
    "a:b": "colon",
    "\udc80": "unpaired surrogate",
    "-x": "if the uuid begins with a dash, write -- before it\n",
    "a b": "unrecognized",
    f"{OPERATIONS} -- nothing": "invalid choice",
    f"{OPERATIONS} check a b": "unrecognized",
    f"{OPERATIONS} audit a b": "unrecognized",
    f"{OPERATIONS} adopt a b": "unrecognized",
    f"{OPERATIONS} check a:b": "colon",
    f"{OPERATIONS} adopt a:b": "colon",
    f"{OPERATIONS} backfill a b": "unrecognized",
    f"{OPERATIONS} backfill --chunk 0": "from 1 to 2000",
    f"{OPERATIONS} backfill --chunk 2001": "from 1 to 2000",
    f"{OPERATIONS} backfill --chunk x": "from 1 to 2000",
}


@pytest.mark.parametrize("arguments", WRONG, ids=ascii)
@pytest.mark.parametrize("env", [{}, {"TB_ADDRESS": "3000", "TB_CLUSTER_ID": "x"}], ids=["", "and a wrong setting"])
def test_invalid_arguments_end_with_2(embedded_world: World, arguments: str, env: dict[str, str]) -> None:
    done = command(embedded_world, *arguments.split(), env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "usage: python -m operations" if OPERATIONS in arguments else "usage: create_account.py"
    )
    assert WRONG[arguments] in done.stderr
    assert not (embedded_world.directory / "data").exists()


def test_dash_before_a_uuid_and_options_after_it_are_read(embedded_world: World) -> None:
    assert command(embedded_world, "--", "-x").stdout.startswith("UUID: -x\n")
    for arguments in ("check -x", "-v check u -v", "check -h", "audit -h", "adopt -h"):
        done = command(embedded_world, *OPERATIONS.split(), *arguments.split())
        assert "unrecognized" not in done.stderr
        assert done.returncode == 0 or "-h" not in arguments


def test_hostile_input_is_data(world: World, user: str) -> None:
    uuid = f"-'; DROP TABLE accounts; -- $(touch x) ../ % {{uuid}} %s {user}".ljust(256, "🐯")
    first, again = command(world, "--", uuid), command(world, "--", uuid)
    assert (first.returncode, again.stdout) == (0, first.stdout)
    guid = first.stdout.rpartition("GUID: ")[2].strip()
    assert first.stdout == f"UUID: {uuid}\nGUID: {guid}\n"
    assert world.rows(uuid) == world.accounts(uuid) == [guid]


def test_verbose_writes_the_debug_log(embedded_world: World) -> None:
    assert "resonate" in command(embedded_world, "-v", "u").stderr


@pytest.mark.parametrize("token", ["s3cret-t0ken", 's3cret"t0ken', r"s3cret\t0ken"])
def test_verbose_log_does_not_contain_the_token(embedded_world: World, tb_address: str, token: str) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    secret = {"TB_ADDRESS": tb_address, "RESONATE_URL": url, "RESONATE_TOKEN": token}
    done = command(embedded_world, "-v", "u", env=secret)
    assert "http_req" in done.stderr
    assert "<token>" in done.stderr
    assert "s3cret" not in done.stderr


# -- An older Python ---------------------------------------------------------


def old_python() -> str:
    """Return the oldest Python that is on PATH and starts."""
    for version in range(8, 12):
        for directory in os.get_exec_path():
            found = shutil.which(f"python3.{version}", path=directory)
            if found and subprocess.run([found, "-V"], capture_output=True, check=False).returncode == 0:
                return found
    pytest.skip("no Python from 3.8 to 3.11 is on PATH")


@pytest.mark.parametrize("command", ["create_account.py u", "-m operations check u", "-m tests.benchmark"])
def test_older_python_is_told_the_version_in_one_line(tmp_path: Path, command: str) -> None:
    done = completed([old_python(), *command.split()], env=World(tmp_path).environ(), cwd=ROOT, stdin=DEVNULL)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("Python 3.12 or newer is required; this is 3.")


def test_first_files_have_only_syntax_of_python_3_8() -> None:
    """Python compiles them before it reaches the line that compares the version."""
    files = ["create_account.py", "clients/command/console.py", "operations/__main__.py", "tests/benchmark.py"]
    for file in [*files, "clients/__init__.py", "operations/__init__.py"]:
        ast.parse((ROOT / file).read_text(), file, feature_version=(3, 8))
