"""What a user of the command meets: exit statuses, and one line that says what to do."""

from __future__ import annotations

import fcntl
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest

from .conftest import ROOT, EmbeddedWorld, World, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = [sys.executable, str(ROOT / "create_account.py")]
EMBEDDED = "embedded "


@pytest.fixture
def here(tmp_path: Path) -> World:
    """No server."""
    return EmbeddedWorld(tmp_path, {"DATA_DIR": str(tmp_path / "data" / "embedded")})


def command(
    world: World, *arguments: str, env: dict[str, str] | None = None, stdout: int | IO[str] = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *arguments],
        env=world.environ() | (env or {}),
        cwd=world.directory,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def assert_environment(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit 1, nothing on stdout, and one line that names the thing."""
    assert (done.returncode, done.stdout) == (1, "")
    [line] = [line for line in done.stderr.splitlines() if not line.startswith(EMBEDDED)]
    for word in words:
        assert word in line


def test_stdout_is_two_lines_and_stderr_names_the_stand_ins(here: World) -> None:
    done = command(here, "user-123")
    uuid_line, guid_line = done.stdout.splitlines()
    assert uuid_line == "UUID: user-123"
    assert guid_line.removeprefix("GUID: ").isdecimal()
    [line] = done.stderr.splitlines()
    assert line.startswith(EMBEDDED)
    assert "data/embedded" in line


def test_the_files_are_their_owners_alone_under_a_lax_umask(here: World) -> None:
    subprocess.run(
        [*COMMAND, "u"], env=here.environ(), cwd=here.directory, umask=0, capture_output=True, check=True
    )
    directory = here.directory / "data" / "embedded"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes == dict.fromkeys(("accounts.db", "ledger.db", "promises.db", "promises.lock"), 0o600)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [""],
        ["a:b"],
        ["a\nb"],
        ["a\x85b"],
        ["a\x7fb"],
        ["\udc80"],
        ["x" * 257],
        ["-x"],
        ["a", "b"],
    ],
    ids=ascii,
)
def test_usage_is_2(here: World, arguments: list[str]) -> None:
    done = command(here, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: create_account.py")
    assert not (here.directory / "data").exists()


@pytest.mark.parametrize(
    "uuid",
    [
        "-starts-with-a-dash",
        "'; DROP TABLE accounts; --",
        "$(touch pwned) `id` && rm -rf *",
        "../../etc/passwd",
        "a.dotted.name",
        "раypal",  # noqa: RUF001 - a Cyrillic look-alike
        "paypal",
        "\u00e9",
        "100% {uuid} %s",
        "🐯" * 256,
    ],
    ids=ascii,
)
def test_hostile_input_is_data(world: World, uuid: str, user: str) -> None:
    uuid = uuid[: 256 - len(user)] + user  # the tests share a ledger
    first, again = command(world, "--", uuid), command(world, "--", uuid)
    assert (first.returncode, again.stdout) == (0, first.stdout)
    guid = first.stdout.rpartition("GUID: ")[2].strip()
    assert first.stdout == f"UUID: {uuid}\nGUID: {guid}\n"
    assert world.rows(uuid) == [guid]
    assert world.accounts(uuid) == [guid]


def test_tigerbeetle_that_is_not_there(here: World) -> None:
    address = f"127.0.0.1:{free_port()}"
    assert_environment(command(here, "u", env={"TB_ADDRESS": address}), "TigerBeetle", address, "start it")


@pytest.mark.parametrize("address", ["localhost:3000", "nonsense", "127.0.0.1:99999", "é"])
def test_tigerbeetle_address_that_is_none(here: World, address: str) -> None:
    assert_environment(command(here, "u", env={"TB_ADDRESS": address}), "TB_ADDRESS", "127.0.0.1:3000")


@pytest.mark.parametrize("cluster", ["x", "-1", "²", str(2**128)])
def test_cluster_id_that_is_none(here: World, cluster: str) -> None:
    assert_environment(
        command(here, "u", env={"TB_ADDRESS": "3000", "TB_CLUSTER_ID": cluster}), "TB_CLUSTER_ID"
    )


def test_another_cluster(here: World, tb_address: str) -> None:
    assert_environment(command(here, "u", env={"TB_ADDRESS": tb_address, "TB_CLUSTER_ID": "7"}), "cluster 7")


def test_resonate_server_that_is_not_there(here: World, tb_address: str) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert_environment(
        command(here, "u", env={"TB_ADDRESS": tb_address, "RESONATE_URL": url}), url, "start it"
    )


@pytest.mark.parametrize(
    "variable", [{"RESONATE_URL": "http://127.0.0.1:8001"}, {"RESONATE_HOST": "127.0.0.1"}]
)
def test_a_shared_engine_must_not_drive_a_private_ledger(here: World, variable: dict[str, str]) -> None:
    assert_environment(command(here, "u", env=variable), "TB_ADDRESS")


@pytest.fixture
def web_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that is no Resonate server: it answers every request with its parameters."""
    status, body = request.param

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("web_server", [(200, b"<html>"), (404, b""), (200, b"{}")], indirect=True)
def test_resonate_url_of_another_server(here: World, tb_address: str, web_server: str) -> None:
    assert_environment(
        command(here, "u", env={"TB_ADDRESS": tb_address, "RESONATE_URL": web_server}), web_server
    )


@pytest.mark.parametrize("path", ["/dev/null/data", "/proc/data", "file"])
def test_data_dir_that_cannot_be_written(here: World, path: str) -> None:
    (here.directory / "file").touch()
    assert_environment(command(here, "u", env={"DATA_DIR": path}), path, "DATA_DIR")


@pytest.mark.parametrize("file", ["accounts.db", "promises.db", "ledger.db"])
def test_a_database_that_is_none(here: World, file: str) -> None:
    data = here.directory / "data"
    data.mkdir()
    (data / file).write_text("no database" * 100)
    assert_environment(command(here, "u", env={"DATA_DIR": "data"}), f"data/{file}", "not a database")
    assert (data / file).read_text() == "no database" * 100


def test_an_accounts_table_of_another_shape(here: World) -> None:
    with closing(sqlite3.connect(here.directory / "accounts.db")) as db:
        db.execute("CREATE TABLE accounts (name TEXT)")
    assert_environment(command(here, "u", env={"DATA_DIR": "."}), "accounts.db", "uuid")


def test_embedded_promises_of_a_process_that_is_busy(here: World) -> None:
    here.directory.joinpath("promises.lock").write_text("4711")
    with here.directory.joinpath("promises.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert_environment(command(here, "u", env={"DATA_DIR": "."}), "process 4711", "RESONATE_URL")


def test_stdout_that_is_full(here: World) -> None:
    with Path("/dev/full").open("w") as full:
        done = command(here, "u", stdout=full)
    assert done.returncode == 1
    assert "cannot write to stdout" in done.stderr.splitlines()[-1]
    assert command(here, "u").returncode == 0


def test_dependencies_that_are_missing(here: World) -> None:
    """-S: without site-packages."""
    done = subprocess.run(
        [sys.executable, "-S", COMMAND[1], "u"],
        env=here.environ(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert_environment(done, "not installed")


@dataclass
class Waiting:
    """The command, waiting for something that does not come."""

    world: World
    env: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Waiting:
        self._stderr = self.world.directory / "stderr"
        with self._stderr.open("w") as stderr:
            self._process = subprocess.Popen(
                [*COMMAND, "u"],
                env=self.world.environ() | self.env,
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
        out, _ = self._process.communicate(timeout=60)
        assert (self._process.returncode, out) == (130, "")
        assert "Traceback" not in self._stderr.read_text()


def test_ctrl_c_while_tigerbeetle_does_not_answer(here: World) -> None:
    with Waiting(here, {"TB_ADDRESS": f"127.0.0.1:{free_port()}"}) as waiting:
        wait_until((here.directory / "data" / "embedded" / "accounts.db").exists)
        waiting.assert_interrupted()


def test_ctrl_c_while_sqlite_is_locked(here: World) -> None:
    command(here, "another")
    with closing(
        sqlite3.connect(here.directory / "data" / "embedded" / "accounts.db", isolation_level=None)
    ) as db:
        db.execute("BEGIN EXCLUSIVE")
        with Waiting(here) as waiting:
            wait_until(lambda: promise_exists(here, "create-account-u"))
            waiting.assert_interrupted()
    assert command(here, "u").returncode == 0


def promise_exists(world: World, name: str) -> bool:
    with closing(sqlite3.connect(world.directory / "data" / "embedded" / "promises.db")) as db:
        return bool(db.execute("SELECT 1 FROM origins WHERE origin = ?", (name,)).fetchall())


def test_ctrl_c_while_another_process_has_the_promises(here: World) -> None:
    with here.directory.joinpath("promises.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with Waiting(here, {"DATA_DIR": "."}) as waiting:
            wait_until(lambda: waiting.has_said(EMBEDDED))
            waiting.assert_interrupted()


def test_ctrl_c_while_the_resonate_server_does_not_answer(here: World, tb_address: str) -> None:
    with Waiting(
        here, {"TB_ADDRESS": tb_address, "RESONATE_URL": f"http://127.0.0.1:{free_port()}"}
    ) as waiting:
        wait_until((here.directory / "data" / "embedded" / "accounts.db").exists)
        waiting.assert_interrupted()


def test_verbose_shows_what_the_clients_log(here: World) -> None:
    assert "resonate" in command(here, "-v", "u").stderr


def test_verbose_shows_no_token(here: World, tb_address: str) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    secret = {"TB_ADDRESS": tb_address, "RESONATE_URL": url, "RESONATE_TOKEN": "s3cret-t0ken"}
    done = command(here, "-v", "u", env=secret)
    assert "http_req" in done.stderr
    assert "s3cret-t0ken" not in done.stderr
