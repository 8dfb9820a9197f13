"""A Resonate server that is unavailable, what stands before it, and several processes that share one."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from clients import limits
from clients.errors import Unavailable
from clients.promises.server import RECONNECT
from clients.settings import Settings
from operations.opening import connect

from ..conftest import HANG_S, ServerWorld, assert_accounts_exist, numbered, paused, wait_until
from ..operations.backfills import backfill, done
from ..operations.test_worker import worker
from ..proxy import Proxy
from .commands import SHORT_TIMEOUT_S, assert_gave_up, assert_resumes, assert_unavailable, command


def test_delay_between_two_attempts_stays_short_in_a_long_outage() -> None:
    assert RECONNECT.delay(10**6) == RECONNECT.max_delay


@pytest.mark.parametrize(("stop", "status"), [(None, 1), (signal.SIGINT, -signal.SIGINT)], ids=["outage", "Ctrl-C"])
def test_steps_are_not_read_after_the_end_of_a_run(
    server_world: ServerWorld, user: str, stop: signal.Signals | None, status: int
) -> None:
    with server_world.paused_at(user, "after write 3", "--steps", PATIENCE=SHORT_TIMEOUT_S) as process:
        server_world.kill_resonate()
        if stop:
            process.send_signal(stop)
    assert server_world.finish(process).status == status


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
    database = server_world.promises / "resonate.db"
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        with server_world.paused_at(user, "after write 3", PATIENCE=SHORT_TIMEOUT_S) as process:
            second = server_world.process(user)
            wait_until(lambda: "another process holds the lease of" in second.err.read_text())
            db.execute("CREATE TRIGGER full BEFORE UPDATE ON promises BEGIN SELECT RAISE(ABORT, 'full'); END")
        assert_gave_up(server_world.finish(process), "keeps returning status 500")
        assert second.returncode is None
        second.kill()
        db.execute("DROP TRIGGER full")
    assert_resumes(server_world, user, ["3"])


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
    with server_world.paused_at(user, point, LEASE="1") as process, paused(process):
        other = server_world.run(user)
        assert other.status == 0, other.err
    run = server_world.finish(process)
    assert (run.status, run.out) == (0, other.out), run.err
    assert server_world.rows(user) == server_world.accounts(user) == [run.guid]


def test_twenty_concurrent_processes_create_one_account_for_each_uuid(server_world: ServerWorld, user: str) -> None:
    uuids = numbered(user, 10)
    processes = [server_world.start(uuid) for uuid in uuids for _ in range(2)]
    runs = [server_world.finish(process) for process in processes]
    assert [run.status for run in runs] == [0] * 20
    for uuid, first, second in zip(uuids, runs[::2], runs[1::2], strict=True):
        assert first.out == second.out
        assert server_world.rows(uuid) == server_world.accounts(uuid) == [first.guid]


# -- A proxy, another web server, TLS, a name server -------------------------


def test_backfill_and_worker_survive_a_restart_behind_a_reverse_proxy(server_world: ServerWorld, user: str) -> None:
    uuids = numbered(user, 600)
    with Proxy(server_world.port).started() as proxy:
        server_world.env["RESONATE_URL"] = f"http://127.0.0.1:{proxy.port}"
        with worker(server_world, PATIENCE="1") as serving, backfill(server_world, "--chunk", "50") as process:
            process.write(*uuids)
            first = process.readline()
            with proxy.restarting():
                wait_until(lambda: bool(serving.said("a proxy answered with HTTP status 503")))
            many = done(process, *process.communicate(timeout=HANG_S))
            wait_until(lambda: bool(serving.said("is available again")))
    assert many.status == 0, many.err
    printed = many.accounts | dict([first.strip().split("\t")])
    assert set(printed) == set(uuids)
    assert_accounts_exist(server_world, printed)


async def answered(directory: Path, *answers: tuple[int, str | bytes], waits: bool) -> None:
    """Connect to a web server that gives these answers in turn, and then the last one again and again."""
    first, last = iter(answers[:-1]), answers[-1]

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        status, body = next(first, last)
        return web.Response(status=status, body=body)

    async with RawTestServer(answer) as server, asyncio.timeout(HANG_S):
        settings = Settings(None, 0, str(server.make_url("/")), None, directory, None)
        async with connect(settings, serve=waits):
            raise AssertionError("it took the web server for a Resonate server")


REFUSED_TOKEN = (401, "<html>")


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
@pytest.mark.parametrize("body", ["<html>", '{"message": "no healthy upstream"}', ""])
def test_answer_of_a_proxy_is_an_outage_that_passes(tmp_path: Path, status: int, body: str) -> None:
    with pytest.raises(Unavailable, match="rejected the token"):  # the third request was made
        asyncio.run(answered(tmp_path, (status, body), (status, body), REFUSED_TOKEN, waits=False))


ENVELOPE = {"kind": "promise.get", "head": {"corrId": "1", "status": 403, "version": "1"}, "data": "forbidden"}
RUN, WORKER = False, True

#: The answer, who gets it, and the words about it. A worker waits, but a rejected token ends it, too: its environment
#: cannot change.
ENDS: dict[str, tuple[tuple[int, str | bytes], list[bool], str]] = {
    "the proxy keeps answering 503": ((503, "<html>"), [RUN], "within 0 s: a proxy answered with HTTP status 503"),
    "another web server": ((200, "<html>"), [RUN], "sent an invalid response"),
    "JSON of another kind": ((200, "{}"), [RUN], "sent an invalid response"),
    "another path": ((404, ""), [RUN], "is no Resonate server: it answered with HTTP status 404; correct RESONATE_URL"),
    "not UTF-8": ((200, b"\xff"), [RUN], "sent an invalid response"),
    "a token that the proxy refuses": (REFUSED_TOKEN, [RUN, WORKER], "rejected the token"),
    "a token that the server refuses": (
        (403, json.dumps(ENVELOPE)), [RUN, WORKER], r"rejected the token for promise.get .+; correct RESONATE_TOKEN"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("case", "waits"), [(case, waits) for case, (_, who, _) in ENDS.items() for waits in who])
def test_answer_that_does_not_pass_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str, waits: bool
) -> None:
    answer, _, words = ENDS[case]
    monkeypatch.setattr(limits, "FIRST_ANSWER_TIMEOUT_S", 0.3 if "within 0 s" in words else HANG_S)
    with pytest.raises(Unavailable, match=words):
        asyncio.run(answered(tmp_path, answer, waits=waits))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://127.0.0.1:{port}", "[Ss][Ss][Ll]"),  # the server speaks http
        ("http://no-such-host.invalid:8001", "no-such-host.invalid"),
        ("http://127.0.0.1:1", "127.0.0.1:1 "),
    ],
)
def test_server_that_cannot_be_reached_is_named_with_the_cause(server_world: ServerWorld, url: str, words: str) -> None:
    done = command(server_world, "u", env={"RESONATE_URL": url.format(port=server_world.port)})
    assert_unavailable(done, "did not answer within 5 s: ", "start it, or correct RESONATE_URL")
    assert re.search(words, done.stderr.partition("5 s: ")[2])
