"""`worker`: other programs request accounts; the tasks of a dead worker are finished; an outage ends no worker.

Nothing starves: a promise that a process cannot execute, or that another one holds, delays no other account.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tigerbeetle as tb
from resonate.error import ResonateError
from resonate.handle import ResonateHandle
from resonate.resonate import Resonate
from resonate.types import Value

from clients.account import promise_id
from clients.panic import Panic
from create_account import DEADLINE
from operations.worker import HealthFile

from ..conftest import (
    HANG_S,
    PostgresServerWorld,
    Replica,
    ServerWorld,
    World,
    assert_accounts_exist,
    format_ledger,
    free_port,
    numbered,
    paused,
    tigerbeetle_replica,
    wait_until,
)
from ..postgres import Postgres
from ..processes import Process
from .backfills import backfill, done, run, state_of
from .commands import DEADLINE_MS, script, spoil, stage

TARGET = "poll://any@create-account"

#: Longer than a test. So a process that keeps a lease which it cannot use is a hang.
LONG_LEASE = {"LEASE": str(10 * HANG_S)}


@dataclass
class Worker:
    process: Process

    @property
    def log(self) -> Path:
        return self.process.err

    def said(self, words: str = "") -> list[str]:
        """Return the lines on stderr that contain the words."""
        return [line for line in self.log.read_text().splitlines() if words in line]

    def end(self, *signals: signal.Signals) -> int:
        for number in signals:
            self.process.send_signal(number)
        return self.process.wait(timeout=HANG_S)

    def cpu_seconds(self) -> float:
        user, system = Path(f"/proc/{self.process.pid}/stat").read_text().split()[13:15]
        return (int(user) + int(system)) / 100


@contextlib.contextmanager
def starting_worker(world: World, *options: str, **env: str) -> Iterator[Worker]:
    started = Worker(world.process("-m", "operations", "worker", *options, env=env))
    try:
        yield started
    finally:
        started.process.kill()
    assert not started.said("Traceback")


@contextlib.contextmanager
def worker(world: World, **env: str) -> Iterator[Worker]:
    """Start a worker and wait until it listens."""
    with starting_worker(world, **env) as started:
        wait_until(lambda: bool(started.said("serving")))
        yield started


@contextlib.asynccontextmanager
async def caller(world: World) -> AsyncIterator[Resonate]:
    """Another program, which uses the Resonate server but neither store."""
    # The refresh rejects a promise that the server has not created yet. So it is later than the creation.
    resonate = Resonate(url=world.env["RESONATE_URL"], group="another-program", subscription_refresh_secs=10)
    try:
        yield resonate
    finally:
        await resonate.stop()


def start(resonate: Resonate, uuid: str) -> ResonateHandle[Any]:
    asked = resonate.options(target=TARGET, timeout=DEADLINE)
    return asked.rpc(f"create-account-{uuid}", "create_account", uuid)


async def results(started: list[ResonateHandle[Any]]) -> dict[str, str]:
    async with asyncio.timeout(HANG_S):
        accounts = await asyncio.gather(*(promise.result() for promise in started))
    return {account["uuid"]: account["guid"] for account in accounts}


def ask(world: World, uuids: list[str]) -> dict[str, str]:
    async def main() -> dict[str, str]:
        async with caller(world) as resonate:
            return await results([start(resonate, uuid) for uuid in uuids])

    return asyncio.run(main())


def assert_exist(world: World, accounts: dict[str, str], uuids: list[str]) -> None:
    """Check that exactly these uuids have accounts, in this order."""
    assert list(accounts) == uuids
    assert_accounts_exist(world, accounts)


def assert_created(world: World, *uuids: str) -> None:
    """Check that a worker creates these accounts."""
    assert_exist(world, ask(world, list(uuids)), list(uuids))


# -- Requests --------------------------------------------------------------


def test_program_with_a_resonate_sdk_creates_an_account(server_world: ServerWorld, user: str) -> None:
    with worker(server_world):
        assert_created(server_world, user)
    assert [server_world.run(user).guid] == server_world.accounts(user), "a single run prints another guid"


def test_caller_receives_the_panic(server_world: ServerWorld, user: str) -> None:
    stage(server_world, user, "1")
    with worker(server_world), pytest.raises(Panic) as panic:
        ask(server_world, [user])
    single = server_world.run(user)
    assert single.status == 98
    assert str(panic.value) == single.err.splitlines()[-1]


@pytest.mark.parametrize("arguments", [(), ("a", "17"), (5,), (None,)], ids=str)
def test_wrong_arguments_reject_the_promise(server_world: ServerWorld, user: str, arguments: Any) -> None:
    async def main() -> None:
        async with caller(server_world) as resonate, asyncio.timeout(HANG_S):
            await resonate.options(target=TARGET).rpc(user, "create_account", *arguments).result()

    with worker(server_world) as serving, pytest.raises(ResonateError):
        asyncio.run(main())
    assert serving.said() == serving.said("serving") + serving.said("stopping")


CALL = {"func": "create_account", "args": ["u"], "kwargs": {}, "version": 1}

#: What no process here can execute.
POISON: dict[str, Any] = {
    "another function": CALL | {"func": "poison"},
    "another version": CALL | {"version": 7},
    "no call": {"hello": 1},
    "nothing": None,
}


def poison(world: World, calls: dict[str, Any]) -> None:
    """Create each uuid's promise with this call, for the workers."""

    async def main() -> None:
        async with caller(world) as resonate:
            for uuid, call in calls.items():
                tags = {"resonate:target": TARGET}
                await resonate.promises.create(promise_id(uuid), DEADLINE_MS, Value(data=call), tags)

    asyncio.run(main())


def test_task_that_a_worker_cannot_run_stays_pending_and_is_not_retried_in_a_loop(
    server_world: ServerWorld, user: str
) -> None:
    """Another worker, perhaps of a later release, may be able to run it."""
    calls = {f"{user}-{name}": call for name, call in POISON.items()}
    with worker(server_world, **LONG_LEASE) as serving:
        poison(server_world, calls)
        for uuid in numbered(user, 20):  # one after the other, so that a busy loop would retry at the same time
            assert_created(server_world, uuid)
        for uuid in calls:
            assert len(serving.said(f"cannot run {promise_id(uuid)}")) == 1, "tried again within one lease"
            assert state_of(server_world, promise_id(uuid)) == "pending"


def test_worker_names_a_recorded_result_that_does_not_decode_once(server_world: ServerWorld, user: str) -> None:
    server_world.run(user, crash="after save 2")
    spoil(server_world, f"create-account-{user}:2")

    def leases() -> int:
        with contextlib.closing(sqlite3.connect(server_world.promises / "resonate.db")) as db:
            [(version,)] = db.execute("SELECT version FROM tasks WHERE id = ?", (f"create-account-{user}",))
            return int(version)

    leased = leases()
    with worker(server_world, LEASE="1") as serving:
        assert_created(server_world, *numbered(user, 20))
        wait_until(lambda: leases() >= leased + 2)  # it was offered again after the worker's first lease
        assert len(serving.said(f"cannot run create-account-{user}: ")) == 1
    assert server_world.accounts(user) == []


# -- Several workers -------------------------------------------------------


def some_are_staged(world: World, uuids: list[str]) -> bool:
    staged = {uuid for (uuid,) in world.sql("SELECT uuid FROM accounts")}
    return len(staged.intersection(uuids)) > len(uuids) / 10


@pytest.mark.parametrize(
    ("number", "status", "env"),
    [
        (signal.SIGKILL, -signal.SIGKILL, {}),
        (signal.SIGTERM, 0, LONG_LEASE),
        (signal.SIGINT, -signal.SIGINT, LONG_LEASE),
        (signal.SIGHUP, -signal.SIGHUP, LONG_LEASE),
    ],
)
def test_another_worker_finishes_the_tasks_of_a_worker_that_ends(
    server_world: ServerWorld, user: str, number: signal.Signals, status: int, env: dict[str, str]
) -> None:
    """After a kill the leases expire. A worker that stops releases its tasks, so their leases may be long."""
    uuids = numbered(user, 300)

    async def main() -> dict[str, str]:
        async with caller(server_world) as resonate:
            started = [start(resonate, uuid) for uuid in uuids]
            await asyncio.to_thread(wait_until, lambda: some_are_staged(server_world, uuids))
            assert ending.end(number) == status
            return await results(started)

    with worker(server_world, **env) as ending, worker(server_world, **env):
        accounts = asyncio.run(main())
    assert_exist(server_world, accounts, uuids)


def test_worker_without_a_server_ends_with_one_line(tmp_path: Path) -> None:
    done = script(World(tmp_path), "worker")
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert "set RESONATE_URL" in line


def away() -> dict[str, str]:
    """Return the addresses of servers that are not there."""
    return {"TB_ADDRESS": str(free_port()), "RESONATE_URL": f"http://127.0.0.1:{free_port()}"}


@pytest.mark.parametrize("file", ["missing/healthy", ".", "pipe"])
def test_health_file_that_cannot_be_written_ends_the_worker_before_it_serves(tmp_path: Path, file: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = script(World(tmp_path, away()), "worker", "--health-file", file)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"cannot write --health-file {file}: ")


def test_health_file_that_cannot_be_written_any_more_is_named_once_and_ends_no_worker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    health = HealthFile(directory / "healthy")
    assert not (directory / "healthy").exists(), "nothing has answered yet"
    health.touch()
    shutil.rmtree(directory)
    for _ in range(2):
        health.touch()
    directory.mkdir()
    health.touch()
    assert (directory / "healthy").exists()
    [line] = capsys.readouterr().err.splitlines()
    assert "directory/healthy: No such file or directory; this worker works" in line


# -- Outages ---------------------------------------------------------------


def test_worker_waits_at_its_start_for_each_store_and_for_the_server(server_world: ServerWorld, user: str) -> None:
    server_world.resonate.kill()
    format_ledger(server_world.directory)
    health, port = server_world.directory / "healthy", free_port()
    with Postgres().started() as postgres, contextlib.ExitStack() as later:
        rows = {"REFERENCE_URL": postgres.database(), "TB_ADDRESS": f"127.0.0.1:{port}"}
        postgres.stop(signal.SIGQUIT)
        world = PostgresServerWorld(server_world.directory, server_world.env | rows)
        patience = {"FIRST_ANSWER": "1", "PATIENCE": "1"}
        starting = later.enter_context(starting_worker(world, "--health-file", str(health), **patience))
        for store in ("PostgreSQL", "TigerBeetle"):
            wait_until(lambda store=store: any(store in line for line in starting.said("this process waits")))  # type: ignore[misc]
        postgres.start()
        later.enter_context(tigerbeetle_replica(server_world.directory, port))
        wait_until(lambda: any("Resonate" in line for line in starting.said("this process waits")))
        assert not health.exists()
        server_world.restart_resonate()
        assert_created(world, user)
        assert len(starting.said("is available again")) == len(starting.said("this process waits")) == 3
        wait_until(health.exists)
        with postgres.frozen():
            wait_until(lambda: len(starting.said("this process waits")) == 4)
            health.unlink()
        wait_until(health.exists)


def test_sigterm_ends_a_worker_that_waits_at_its_start(tmp_path: Path) -> None:
    with starting_worker(
        World(tmp_path, away() | {"DATA_DIR": str(tmp_path / "data")}), FIRST_ANSWER="0.1"
    ) as starting:
        wait_until(lambda: len(starting.said("this process waits")) == 2)
        assert starting.end(signal.SIGTERM) == 0


def test_worker_resumes_after_the_resonate_server_restarts(server_world: ServerWorld, user: str) -> None:
    with worker(server_world, PATIENCE="1") as serving:
        server_world.resonate.kill()
        wait_until(lambda: bool(serving.said("did not answer")))
        server_world.restart_resonate()
        assert_created(server_world, user)
        wait_until(lambda: bool(serving.said("is available again")))
        assert len(serving.said()) == 3


@pytest.mark.parametrize(
    ("signals", "env"),
    [(1, LONG_LEASE), (2, {"RELEASE": "60", "LEASE": "2"})],
    ids=["releases its tasks", "and gets a second signal, releases nothing"],
)
def test_worker_that_is_stopped_during_an_outage(
    server_world: ServerWorld, tmp_path: Path, user: str, signals: int, env: dict[str, str]
) -> None:
    async def begin() -> None:
        async with caller(server_world) as resonate:
            await start(resonate, user).id()
            await asyncio.to_thread(wait_until, lambda: bool(serving.said("did not answer")))

    with Replica.started(tmp_path) as replica:
        server_world.env["TB_ADDRESS"] = replica.address
        with worker(server_world, PATIENCE="1", **env) as serving, paused(replica.process):
            asyncio.run(begin())
            if signals == 1:
                assert serving.end(signal.SIGTERM) == 0
            else:
                with paused(server_world.resonate):
                    serving.process.send_signal(signal.SIGTERM)
                    wait_until(lambda: bool(serving.said("stopping")))
                    assert serving.end(signal.SIGTERM) == -signal.SIGTERM
        with worker(server_world):
            assert list(ask(server_world, [user])) == [user]


def test_worker_still_receives_tasks_after_a_long_silence(server_world: ServerWorld, user: str) -> None:
    def connections() -> int:
        return (server_world.promises / "resonate.log").read_text().count("Poll connection registered")

    with worker(server_world, SILENCE="0.2"):
        before = connections()
        wait_until(lambda: connections() > before + 3)
        assert_created(server_world, user)


def test_worker_still_reaches_tigerbeetle_after_many_newer_clients(server_world: ServerWorld, user: str) -> None:
    """TigerBeetle keeps 64 sessions, also those of closed clients, and evicts the oldest."""

    async def crowd() -> None:
        address = server_world.env["TB_ADDRESS"]
        for _ in range(14):  # a server with --development accepts 8 connections
            clients = [tb.ClientAsync(cluster_id=0, replica_addresses=address) for _ in range(5)]
            await asyncio.gather(*(client.lookup_accounts([1]) for client in clients))
            await asyncio.gather(*(client.close() for client in clients))

    with worker(server_world):
        assert_created(server_world, user)
        asyncio.run(crowd())
        assert_created(server_world, *numbered(user, 50))


def test_run_completes_if_its_promise_is_requested_before_it_exists(server_world: ServerWorld, user: str) -> None:
    """The request that creates the promise is held. Meanwhile the SDK asks for the result and gets status 404."""
    log = server_world.promises / "resonate.log"

    def asked_in_vain() -> bool:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text())
        return bool(re.search(r"rejected kind=promise.register_listener .*status=404", plain))

    with server_world.paused_at(user, "before create the promise") as process:
        wait_until(asked_in_vain)
    assert server_world.finish(process).status == 0


def test_worker_whose_sqlite_file_is_replaced_ends_with_one_line(server_world: ServerWorld, user: str) -> None:
    async def main() -> None:
        async with caller(server_world) as resonate:
            await start(resonate, f"{user}-2").id()
            await asyncio.to_thread(serving.process.wait, HANG_S)

    with worker(server_world) as serving:
        ask(server_world, [user])
        for file in server_world.data.glob("accounts.db*"):
            file.unlink()
        asyncio.run(main())
        assert serving.process.returncode == 1
        [line] = serving.said("was removed or replaced")
        assert "accounts.db" in line
    assert server_world.accounts(f"{user}-2") == []


# -- Nothing starves -------------------------------------------------------


@pytest.mark.parametrize("kind", [*POISON, "a recorded result that does not decode"])
def test_run_and_backfill_say_at_once_that_nobody_can_execute_a_promise_although_workers_are_offered_it(
    server_world: ServerWorld, user: str, kind: str
) -> None:
    uuids = numbered(user, 3)
    if kind not in POISON:
        server_world.run(uuids[1], crash="after save 2")
        spoil(server_world, f"{promise_id(uuids[1])}:2")
    with worker(server_world, **LONG_LEASE) as serving:
        poison(server_world, {uuids[1]: POISON[kind]} if kind in POISON else {})
        wait_until(lambda: bool(serving.said(f"cannot run {promise_id(uuids[1])}")))
        single = server_world.run(uuids[1], LEASE=LONG_LEASE["LEASE"])
        many = run(server_world, *uuids)
    assert single.status == 1
    assert f"cannot execute promise {promise_id(uuids[1])}: " in single.err
    assert (many.status, list(many.accounts)) == (98, [uuids[0], uuids[2]]), many.err
    assert many.counts()["halted"] == 1
    assert server_world.accounts(uuids[1]) == []


def test_worker_leaves_a_task_that_it_cannot_execute_to_a_worker_that_can(server_world: ServerWorld, user: str) -> None:
    uuids = numbered(user, 40)
    with worker(server_world, FORGET="create_account", **LONG_LEASE) as older, worker(server_world, **LONG_LEASE):
        accounts = ask(server_world, uuids)
        assert len(accounts) == 40
        assert older.said("cannot run"), "it was offered no task"
    assert_accounts_exist(server_world, accounts)


def test_account_that_a_live_process_holds_delays_neither_its_neighbours_nor_the_next_chunk(
    server_world: ServerWorld, user: str
) -> None:
    uuids = numbered(user, 6)
    with server_world.paused_at(uuids[1], "before write 2") as holder:
        with backfill(server_world, "--chunk", "3", PATIENCE="2") as process:
            process.write(*uuids)
            first = process.readline()
            many = done(process, *process.communicate(timeout=HANG_S))
        single = server_world.run(uuids[1], PATIENCE="1")
    assert first.startswith(f"{uuids[0]}\t")
    assert (many.status, list(many.accounts)) == (1, uuids[2:]), many.err
    assert many.counts() == {"created": 5, "existing": 0, "halted": 0, "invalid": 0, "pending": 1}
    for said, status in ((many.err, many.status), (single.err, single.status)):
        assert status == 1
        assert f"promise {promise_id(uuids[1])} is still pending after" in said
    assert server_world.finish(holder).status == 0
    assert list(run(server_world, *uuids).accounts) == uuids


@pytest.mark.deep
def test_storm_with_one_poisoned_promise_in_a_hundred_beside_three_workers(
    server_world: ServerWorld, user: str
) -> None:
    """For more accounts: `STORM_ACCOUNTS=10000 pytest -n0 -s -m deep tests/operations/test_worker.py`."""
    count = int(os.environ.get("STORM_ACCOUNTS", "300"))
    uuids = numbered(user, count)
    kinds = list(POISON.values())
    poisoned = {uuid: kinds[number % len(kinds)] for number, uuid in enumerate(uuids[50::100])}
    healthy = [uuid for uuid in uuids if uuid not in poisoned]
    requested = healthy[::10]  # by name, from the workers
    with worker(server_world, **LONG_LEASE), worker(server_world, **LONG_LEASE), worker(server_world, **LONG_LEASE):
        poison(server_world, poisoned)
        started = time.monotonic()
        accounts = ask(server_world, requested)
        by_name_s, started = time.monotonic() - started, time.monotonic()
        many = run(server_world, *uuids)
        backfill_s = time.monotonic() - started
    assert (many.status, list(many.accounts)) == (98, healthy), many.err
    assert accounts.items() <= many.accounts.items()
    assert_accounts_exist(server_world, many.accounts)
    for uuid in poisoned:
        assert f"cannot execute promise {promise_id(uuid)}: " in many.err
    print(
        f"\n{len(poisoned)} of {count} poisoned; by name {len(requested)} in {by_name_s:.1f} s; "
        f"backfill {count} in {backfill_s:.1f} s: {many.err.splitlines()[-1]}"
    )
