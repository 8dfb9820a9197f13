"""A Resonate server that is unavailable, and several processes that share one."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from clients.promises.server import RECONNECT

from ..conftest import HANG_S, ServerWorld, World, free_port, numbered, wait_until
from ..processes import Process
from .commands import SHORT_TIMEOUT_S, assert_gave_up, assert_resumes, assert_unavailable, command


def test_unavailable_resonate_server_is_named(embedded_world: World, tb_address: str) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert_unavailable(
        command(embedded_world, "u", env={"TB_ADDRESS": tb_address, "RESONATE_URL": url}), url, "start it"
    )


def test_delay_between_two_attempts_stays_short_in_a_long_outage() -> None:
    assert RECONNECT.delay(10**6) == RECONNECT.max_delay


@pytest.fixture
def web_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """A web server that is not a Resonate server: it sends the same response to every request."""
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


@pytest.mark.parametrize(
    "web_server", [(200, b"<html>"), (404, b""), (200, b"{}")], ids=["HTML", "404", "JSON"], indirect=True
)
def test_resonate_url_of_another_kind_of_server_is_named(
    embedded_world: World, tb_address: str, web_server: str
) -> None:
    assert_unavailable(
        command(embedded_world, "u", env={"TB_ADDRESS": tb_address, "RESONATE_URL": web_server}), web_server
    )


@pytest.mark.parametrize(("stop", "status"), [(None, 1), (signal.SIGINT, -signal.SIGINT)], ids=["outage", "Ctrl-C"])
def test_steps_are_not_read_after_the_end_of_a_run(
    server_world: ServerWorld, user: str, stop: signal.Signals | None, status: int
) -> None:
    paused, env = server_world.steps_file.with_name("paused"), {"STEPS_FILE": str(server_world.steps_file)}
    limits = {"PAUSE": "after write 3", "PATIENCE": SHORT_TIMEOUT_S}
    process = server_world.process("--steps", "--", user, env=env | limits)
    try:
        wait_until(paused.exists)
        server_world.kill_resonate()
        if stop:
            process.send_signal(stop)
        paused.unlink()
        process.communicate(timeout=HANG_S)
    finally:
        process.kill()
    assert process.returncode == status


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_run_that_a_signal_ends_releases_its_lease(
    server_world: ServerWorld, user: str, number: signal.Signals
) -> None:
    lease = str(10 * HANG_S)
    with server_world.paused_at(user, "after write 2", LEASE=lease) as process:
        process.send_signal(number)
    assert server_world.finish(process).status == -number
    assert server_world.run(user, LEASE=lease).status == 0


def test_run_ends_if_the_resonate_server_keeps_failing_and_a_rerun_resumes(
    server_world: ServerWorld, user: str
) -> None:
    """The server cannot write its database. It still answers the reads of a second process."""
    with contextlib.ExitStack() as stack:
        with server_world.paused_at(user, "after write 3", PATIENCE=SHORT_TIMEOUT_S) as process:
            second = stack.enter_context(watching(server_world, user))
            stack.enter_context(unwritable(server_world.promises / "resonate.db"))
        assert_gave_up(server_world.finish(process), "keeps returning status 500")
        assert second.returncode is None
    assert_resumes(server_world, user, ["3"])


@contextlib.contextmanager
def unwritable(path: Path) -> Iterator[None]:
    """Promises can be read but not changed, as on a full disk."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("CREATE TRIGGER full BEFORE UPDATE ON promises BEGIN SELECT RAISE(ABORT, 'full'); END")
        yield
        db.execute("DROP TRIGGER full")


@contextlib.contextmanager
def watching(world: ServerWorld, user: str) -> Iterator[Process]:
    """Start a second process with the same uuid, which polls for the task."""
    process = world.process(user)
    try:
        wait_until(lambda: "another process holds the lease of" in process.err.read_text())
        yield process
    finally:
        process.kill()


def test_result_arrives_although_the_server_does_not_push_it_and_the_run_does_not_ask(
    server_world: ServerWorld, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESONATE_MESSAGES__POLL_INTERVAL", str(10 * HANG_S * 1000))
    server_world.start_resonate()
    assert server_world.run(user, REFRESH=str(10 * HANG_S)).status == 0


@pytest.mark.parametrize("point", ["before write 2", "before write 3", "after write 3"])
def test_process_that_is_paused_for_longer_than_its_lease_prints_the_same_account(
    server_world: ServerWorld, user: str, point: str
) -> None:
    """Another process takes over. The server then rejects the requests of the paused process."""
    with server_world.paused_at(user, point, LEASE="1") as paused:
        paused.send_signal(signal.SIGSTOP)
        other = server_world.run(user)
        assert other.status == 0, other.err
        paused.send_signal(signal.SIGCONT)
    run = server_world.finish(paused)
    assert (run.status, run.out) == (0, other.out), run.err
    assert server_world.rows(user) == server_world.accounts(user) == [run.guid]


def test_two_concurrent_processes_with_one_uuid_print_the_same_account(server_world: ServerWorld, user: str) -> None:
    processes = [server_world.start(user) for _ in range(2)]
    runs = [server_world.finish(process) for process in processes]
    assert [run.status for run in runs] == [0, 0]
    assert runs[0].out == runs[1].out
    assert server_world.rows(user) == server_world.accounts(user) == [runs[0].guid]


def test_twenty_concurrent_processes_create_twenty_accounts(server_world: ServerWorld, user: str) -> None:
    uuids = numbered(user, 20)
    processes = [server_world.start(uuid) for uuid in uuids]
    runs = [server_world.finish(process) for process in processes]
    assert [run.status for run in runs] == [0] * 20
    assert server_world.all_accounts(uuids) == {uuid: [run.guid] for uuid, run in zip(uuids, runs, strict=True)}
