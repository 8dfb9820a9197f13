"""Workers that share no file, while workers and servers are killed: each account exists once, and nothing panics.

ACCOUNTS=2000 pytest -m deep tests/test_storm_of_hosts.py
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import PostgresServerWorld, World, free_port, needs, numbered, server, wait_until
from .operations.commands import script
from .operations.test_worker import Worker, caller, results, start, worker
from .postgres import Postgres

COUNT = int(os.environ.get("ACCOUNTS", "200"))


class Cluster:
    """Three TigerBeetle replicas, each with its own port and file."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self._directory, self._stack = directory, stack
        self.addresses = ",".join(f"127.0.0.1:{free_port()}" for _ in range(3))
        for number in range(3):
            identity = ["--cluster=0", f"--replica={number}", "--replica-count=3", "--development"]
            subprocess.run(["tigerbeetle", "format", *identity, self._file(number)], check=True, capture_output=True)
        self.replicas = [self.start(number) for number in range(3)]

    def _file(self, number: int) -> str:
        return str(self._directory / f"0_{number}.tigerbeetle")

    def start(self, number: int) -> subprocess.Popen[bytes]:
        command = ["tigerbeetle", "start", f"--addresses={self.addresses}", "--development", self._file(number)]
        return self._stack.enter_context(server(command, self._directory / f"replica-{number}.log"))


class Hosts:
    """Three hosts with a worker each. They have the servers in common, and no file."""

    def __init__(self, world: PostgresServerWorld) -> None:
        self._world = world
        self.workers: list[Worker] = []
        self.running = [self.start(number) for number in range(3)]

    def start(self, number: int) -> Worker:
        directory = self._world.directory / f"host-{number}"
        directory.mkdir(exist_ok=True)
        host = World(directory, self._world.env | {"DATA_DIR": str(directory / "data")})
        started = self._world.stack.enter_context(worker(host, LEASE="2"))
        self.workers.append(started)
        return started

    def kill(self, number: int) -> None:
        assert self.running[number].end(signal.SIGKILL) == -signal.SIGKILL
        self.running[number] = self.start(number)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[PostgresServerWorld]:
    needs("tigerbeetle")
    needs("resonate")
    world = PostgresServerWorld(tmp_path, {"DATA_DIR": str(tmp_path / "data")})
    with world.stack:
        yield world


@pytest.mark.deep
@pytest.mark.parametrize("wrong", [False, True], ids=["", "with a worker on a wrong database"])
def test_accounts_survive_kills_of_workers_and_servers(world: PostgresServerWorld, user: str, *, wrong: bool) -> None:
    cluster = Cluster(world.directory, world.stack)
    postgres = world.stack.enter_context(Postgres().started())
    world.env |= {"TB_ADDRESS": cluster.addresses, "REFERENCE_URL": postgres.database()}
    world.start_resonate()
    wait_until(lambda: world.run(user).status == 0)  # a new cluster needs some seconds
    hosts = Hosts(world)
    uuids = numbered(user, COUNT)

    def wait_for(share: float) -> None:
        wait_until(lambda: int(world.sql("SELECT count(*) FROM accounts")[0][0]) > share * COUNT)

    def refuse() -> None:
        env = world.env | {"REFERENCE_URL": postgres.database()}
        other = PostgresServerWorld(world.directory / "host-0", env)
        refused = script(other, "worker")
        assert (refused.returncode, "promise create-account_reference-1 records" in refused.stderr) == (1, True)
        assert other.sql("SELECT uuid FROM accounts") == []

    def storm() -> None:
        wait_for(0.1)
        hosts.kill(0)
        wait_for(0.2)
        cluster.replicas[0].kill()
        if wrong:
            refuse()
        wait_for(0.3)
        postgres.stop(signal.SIGQUIT)
        postgres.start()
        wait_for(0.4)
        hosts.kill(1)
        wait_for(0.5)
        world.kill_resonate()
        world.restart_resonate()
        for share, number in ((0.6, 2), (0.7, 0), (0.8, 1)):
            wait_for(share)
            hosts.kill(number)
        cluster.start(0)

    async def main() -> dict[str, str]:
        async with caller(world) as resonate:
            requests = [start(resonate, uuid) for uuid in uuids]
            for request in requests:
                await request.id()
            await asyncio.to_thread(storm)
        async with caller(world) as resonate:  # the promises' results, whatever the first caller has missed
            return await results([start(resonate, uuid) for uuid in uuids])

    guids = asyncio.run(main())
    assert list(guids) == uuids
    assert {uuid: guid for uuid, guid in world.sql("SELECT uuid, guid FROM accounts") if uuid != user} == guids
    assert world.all_accounts(uuids) == {uuid: [guid] for uuid, guid in guids.items()}
    total = COUNT + 1
    assert script(world, "audit").stdout == f"clean; {total} accounts, {total} rows, 0 in progress\n"
    assert not any(started.said("PANIC") for started in hosts.workers)
