"""A store or a server that is away: the run goes on by itself, or ends with one line; never a panic.

No outage settles a durable promise: the next run completes, and runs only what was not recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from resonate.connections import SSEConnection

from clients import resonate_server
from clients.resonate_server import Messages

from .conftest import (
    ROOT,
    EmbeddedWorld,
    Run,
    ServerWorld,
    World,
    format_ledger,
    free_port,
    locked,
    needs,
    tigerbeetle_replica,
    wait_until,
)

#: Seconds without an answer after which the runs of these tests give up.
SOON = "1"


def assert_gave_up(run: Run, *words: str) -> None:
    assert (run.status, run.out) == (1, "")
    line = run.err.splitlines()[-1]
    for word in (*words, "run again"):
        assert word in line


def assert_goes_on(world: World, user: str, steps: list[str]) -> None:
    run = world.run(user)
    assert (run.status, run.steps) == (0, steps), run.err
    assert world.rows(user) == world.accounts(user) == [run.guid]


# -- TigerBeetle -----------------------------------------------------------


@dataclass
class Replica:
    """A TigerBeetle of the test's own, which can be paused, killed and started again."""

    directory: Path
    port: int
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def start(self) -> None:
        self.process = self.stack.enter_context(tigerbeetle_replica(self.directory, self.port))

    def kill(self) -> None:
        self.stack.close()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    needs("tigerbeetle")
    directory = tmp_path / "replica"
    directory.mkdir()
    format_ledger(directory)
    replica = Replica(directory, free_port())
    with replica.stack:
        replica.start()
        yield replica
        replica.kill()


@pytest.fixture
def ledger_world(tmp_path: Path, replica: Replica) -> World:
    return World(tmp_path, {"DATA_DIR": str(tmp_path / "data"), "TB_ADDRESS": f"127.0.0.1:{replica.port}"})


@pytest.mark.parametrize("point", ["before effect 2", "before effect 3", "after effect 3"])
def test_tigerbeetle_is_killed_and_comes_back(
    ledger_world: World, replica: Replica, user: str, point: str
) -> None:
    with ledger_world.held(user, point) as process:
        replica.kill()
    replica.start()
    run = ledger_world.finish(process)
    assert run.status == 0, run.err
    assert ledger_world.accounts(user) == [run.guid]


@pytest.mark.parametrize(
    ("point", "left"),
    [("before create 2", ["2", "3"]), ("before effect 3", ["3"]), ("before settle the promise", [])],
)
def test_tigerbeetle_is_killed_and_stays_away(
    ledger_world: World, replica: Replica, user: str, point: str, left: list[str]
) -> None:
    with ledger_world.held(user, point, PATIENCE=SOON) as process:
        replica.kill()
    assert_gave_up(ledger_world.finish(process), "TigerBeetle")
    replica.start()
    assert_goes_on(ledger_world, user, left)


def test_tigerbeetle_is_paused_for_longer_than_patience(
    ledger_world: World, replica: Replica, user: str
) -> None:
    with contextlib.ExitStack() as stack:
        with ledger_world.held(user, "before effect 3", PATIENCE=SOON) as process:
            stack.enter_context(replica.paused())
        assert_gave_up(ledger_world.finish(process), "TigerBeetle")
    assert_goes_on(ledger_world, user, ["3"])


def test_tigerbeetle_is_paused_for_a_while(ledger_world: World, replica: Replica, user: str) -> None:
    with contextlib.ExitStack() as stack:
        with ledger_world.held(user, "before effect 3") as process:
            stack.enter_context(replica.paused())
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
    assert ledger_world.finish(process).status == 0


def test_tigerbeetles_answer_is_lost(ledger_world: World, replica: Replica, user: str) -> None:
    """The account is committed and nobody hears of it: the next run finds EXISTS, which is no panic."""
    with proxy(replica.port) as way:
        with ledger_world.held(
            user, "before effect 3", PATIENCE=SOON, TB_ADDRESS=f"127.0.0.1:{way.port}"
        ) as process:
            way.answers = False
        assert_gave_up(ledger_world.finish(process), "TigerBeetle")
    assert len(ledger_world.accounts(user)) == 1
    assert_goes_on(ledger_world, user, ["3"])


@dataclass
class Way:
    port: int
    answers: bool = True


@contextlib.contextmanager
def proxy(port: int) -> Iterator[Way]:
    """A way to a local port on which answers can get lost."""
    with contextlib.ExitStack() as sockets, socket.create_server(("127.0.0.1", 0)) as listener:
        way = Way(listener.getsockname()[1])

        def carry(source: socket.socket, target: socket.socket, *, answers: bool) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    if way.answers or not answers:
                        target.sendall(data)
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_WR)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client = sockets.enter_context(listener.accept()[0])
                    ledger = sockets.enter_context(socket.create_connection(("127.0.0.1", port)))
                    for source, target, answers in ((client, ledger, False), (ledger, client, True)):
                        threading.Thread(
                            target=carry, args=(source, target), kwargs={"answers": answers}, daemon=True
                        ).start()

        threading.Thread(target=accept, daemon=True).start()
        yield way
        listener.shutdown(socket.SHUT_RDWR)


# -- SQLite ----------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path) -> World:
    return EmbeddedWorld(tmp_path, {"DATA_DIR": str(tmp_path / "data")})


STORES = pytest.mark.parametrize(
    ("file", "point", "left"),
    [("accounts.db", "before effect 2", ["2", "3"]), ("ledger.db", "before effect 3", ["3"])],
)


@STORES
def test_sqlite_is_locked_for_a_while(here: World, user: str, file: str, point: str, left: list[str]) -> None:
    with contextlib.ExitStack() as stack:
        with here.held(user, point) as process:
            stack.enter_context(locked(here.data / file))
        # It is released only once the run has met it.
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
    assert here.finish(process).status == 0


@STORES
def test_sqlite_stays_locked(here: World, user: str, file: str, point: str, left: list[str]) -> None:
    with contextlib.ExitStack() as stack:
        with here.held(user, point, PATIENCE=SOON) as process:
            stack.enter_context(locked(here.data / file))
        run = here.finish(process)
        assert (run.status, run.out) == (1, "")
    assert_goes_on(here, user, left)


def test_the_disk_is_full(here: World, user: str) -> None:
    """No file may grow past a limit that rises from run to run: each run ends well, or says so."""
    statuses = []
    for limit in range(4096, 200_000, 12_288):
        run = here.finish(here.start(user, FILE_SIZE=str(limit)))
        if run.status:
            assert_gave_up(run, ".db")
        statuses.append(run.status)
    assert statuses == sorted(statuses, reverse=True)
    assert set(statuses) == {0, 1}
    assert_goes_on(here, user, [])


@pytest.mark.parametrize("file", ["accounts.db", "promises.db", "ledger.db"])
def test_a_file_is_read_only(here: World, user: str, file: str) -> None:
    here.run(user, crash="before effect 2")
    files = list(here.data.glob(f"{file}*"))
    with immutable(here.data, *files):
        assert_gave_up(here.run(user), f"data/{file}")
    assert_goes_on(here, user, ["2", "3"])


@contextlib.contextmanager
def immutable(*paths: Path) -> Iterator[None]:
    """Nothing can be written, made or removed there, even by root where the file system knows how."""
    modes = [path.stat().st_mode for path in paths]
    for path in reversed(paths):
        path.chmod(0o555)
    root = os.getuid() == 0
    try:
        if root and chattr("+i", *paths):
            pytest.skip("root writes to read-only files, and there is no `chattr`, or no use for it, here")
        yield
    finally:
        if root:
            chattr("-i", *paths)
        for path, mode in zip(paths, modes, strict=True):
            path.chmod(mode)


def chattr(flag: str, *paths: Path) -> bool:
    """Return whether it failed."""
    if shutil.which("chattr") is None:
        return True
    return subprocess.run(["chattr", flag, *paths], capture_output=True, check=False).returncode != 0


# -- The Resonate server ---------------------------------------------------


@pytest.fixture
def server_world(tmp_path: Path, tb_address: str) -> Iterator[ServerWorld]:
    needs("resonate")
    world = ServerWorld(tmp_path, {"DATA_DIR": str(tmp_path / "data"), "TB_ADDRESS": tb_address})
    with world.stack:
        world.start_resonate()
        yield world


@pytest.mark.parametrize(
    "point", ["before create 1", "before effect 3", "after effect 3", "before settle the promise"]
)
def test_the_resonate_server_is_restarted(server_world: ServerWorld, user: str, point: str) -> None:
    with server_world.held(user, point) as process:
        server_world.resonate.kill()
        server_world.resonate.wait()
        server_world.restart_resonate()
    run = server_world.finish(process)
    assert run.status == 0, run.err
    assert server_world.rows(user) == server_world.accounts(user) == [run.guid]


def test_the_resonate_server_stays_away(server_world: ServerWorld, user: str) -> None:
    with server_world.held(user, "after effect 3", PATIENCE=SOON) as process:
        server_world.resonate.kill()
        server_world.resonate.wait()
    assert_gave_up(server_world.finish(process), "Resonate server")
    server_world.restart_resonate()
    assert_goes_on(server_world, user, ["3"])


def test_the_resonate_server_fails_at_what_it_is_asked(server_world: ServerWorld, user: str) -> None:
    """Its database cannot be written. That it still reads, here for a second process, hides nothing."""
    with contextlib.ExitStack() as stack:
        with server_world.held(user, "after effect 3", PATIENCE=SOON) as process:
            second = stack.enter_context(watching(server_world, user))
            stack.enter_context(unwritable(server_world.promises / "resonate.db"))
        assert_gave_up(server_world.finish(process), "keeps returning status 500")
        assert second.poll() is None
        second.kill()
        second.wait()
    assert_goes_on(server_world, user, ["3"])


@contextlib.contextmanager
def unwritable(path: Path) -> Iterator[None]:
    """No promise can be changed, as on a full disk, and all can be read."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("CREATE TRIGGER full BEFORE UPDATE ON promises BEGIN SELECT RAISE(ABORT, 'full'); END")
        yield
        db.execute("DROP TRIGGER full")


@contextlib.contextmanager
def watching(world: ServerWorld, user: str) -> Iterator[subprocess.Popen[bytes]]:
    """A second process with the same uuid, which asks again and again whether it can begin."""
    with (world.directory / "second").open("w+b") as err:
        process = subprocess.Popen(
            [sys.executable, ROOT / "create_account.py", user],
            env=world.environ(),
            cwd=world.directory,
            stdout=subprocess.DEVNULL,
            stderr=err,
        )
        try:
            wait_until(lambda: b"another process holds this account" in Path(err.name).read_bytes())
            yield process
        finally:
            process.kill()
            process.wait()


def test_the_resonate_server_is_paused_for_longer_than_a_lease(server_world: ServerWorld, user: str) -> None:
    with server_world.held(user, "before effect 3", LEASE="1") as process:
        server_world.resonate.send_signal(signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(3)
    server_world.resonate.send_signal(signal.SIGCONT)
    run = server_world.finish(process)
    assert run.status == 0, run.err
    assert server_world.rows(user) == server_world.accounts(user) == [run.guid]


def test_a_result_does_not_wait_until_the_server_pushes_it(
    server_world: ServerWorld, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESONATE_MESSAGES__POLL_INTERVAL", "60000")
    server_world.start_resonate()
    started = time.monotonic()
    assert server_world.run(user).status == 0
    assert time.monotonic() - started < 5, "the time after which it asks by itself"


@pytest.mark.parametrize("point", ["before effect 2", "before effect 3", "after effect 3"])
def test_a_process_is_paused_for_longer_than_its_lease(
    server_world: ServerWorld, user: str, point: str
) -> None:
    """Another takes over; the paused one wakes up, is fenced off, and shows the same account."""
    with server_world.held(user, point, LEASE="1") as paused:
        paused.send_signal(signal.SIGSTOP)
        other = server_world.run(user)
        assert other.status == 0, other.err
        paused.send_signal(signal.SIGCONT)
    run = server_world.finish(paused)
    assert (run.status, run.out) == (0, other.out), run.err
    assert server_world.rows(user) == server_world.accounts(user) == [run.guid]


def test_two_processes_with_one_uuid_at_once(server_world: ServerWorld, user: str) -> None:
    processes = [server_world.start(user) for _ in range(2)]
    runs = [server_world.finish(process) for process in processes]
    assert [run.status for run in runs] == [0, 0]
    assert runs[0].out == runs[1].out
    assert server_world.rows(user) == server_world.accounts(user) == [runs[0].guid]


def test_twenty_processes_with_twenty_uuids_at_once(server_world: ServerWorld, user: str) -> None:
    uuids = [f"{user}-{number}" for number in range(20)]
    processes = [server_world.start(uuid) for uuid in uuids]
    runs = [server_world.finish(process) for process in processes]
    assert [run.status for run in runs] == [0] * 20
    assert server_world.all_accounts(uuids) == {
        uuid: [run.guid] for uuid, run in zip(uuids, runs, strict=True)
    }


def test_a_process_that_is_left_alone_still_hears_the_server(
    server_world: ServerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK's own listener goes deaf when aiohttp's limit of five minutes, here half a second, is over."""
    monkeypatch.setattr(aiohttp.client, "DEFAULT_TIMEOUT", aiohttp.ClientTimeout(total=0.5))
    monkeypatch.setattr(resonate_server, "SILENCE_TIMEOUT_S", 0.5)
    url = server_world.env["RESONATE_URL"]

    async def hears(listener: SSEConnection, group: str) -> bool:
        heard = asyncio.Event()
        listener.recv(lambda _: heard.set())
        await listener.start()
        try:
            await asyncio.sleep(2)  # four silent half seconds
            await asyncio.to_thread(create_promise, url, group)
            await asyncio.wait_for(heard.wait(), 5)
        except TimeoutError:
            return False
        finally:
            with contextlib.suppress(TimeoutError):
                await listener.stop()
            await listener.stop()  # the first one, where it failed, has closed nothing
        return True

    assert not asyncio.run(hears(SSEConnection(url=url, pid="1", group="sdk"), "sdk"))
    assert asyncio.run(hears(Messages(url, None, "1", "ours"), "ours"))


def create_promise(url: str, group: str) -> None:
    """Create a promise that is delivered to the group."""
    tags = {
        "resonate:target": f"poll://any@{group}",
        "resonate:origin": group,
        "resonate:branch": group,
        "resonate:parent": group,
    }
    data = {"id": group, "timeoutAt": 2**52, "param": {}, "tags": tags}
    head = {"corrId": "1", "version": "2026-04-01"}
    body = json.dumps({"kind": "promise.create", "head": head, "data": data}).encode()
    with urllib.request.urlopen(url, body) as response:  # noqa: S310
        assert json.load(response)["head"]["status"] in (200, 201)
