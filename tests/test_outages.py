"""A store or a server is unavailable. A run waits, or gives up and its rerun resumes; a worker waits. No promise is settled."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager as Context
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from resonate.error import PlatformError, ServerError

from clients.errors import NoAnswer, Unavailable
from clients.outages import Outages

from .clients.commands import SHORT_TIMEOUT_S, assert_gave_up, assert_resumes
from .conftest import HANG_S, PostgresServerWorld, Replica, ServerWorld, World, locked, numbered, paused, wait_until
from .operations.test_worker import Worker, assert_exist, caller, results, start, worker
from .postgres import PASSWORD, Postgres


@contextlib.contextmanager
def between(begin: Callable[[], object], end: Callable[[], object]) -> Iterator[None]:
    begin()
    try:
        yield
    finally:
        end()


@dataclass
class Scene:
    """A world, and the servers that only this test uses."""

    world: World
    postgres: Postgres = field(init=False)
    replica: Replica = field(init=False)
    worker: Worker = field(init=False)

    @property
    def resonate(self) -> ServerWorld:
        assert isinstance(self.world, ServerWorld)
        return self.world

    def locked(self, file: str) -> Context[None]:
        return locked(self.world.data / file)

    def full_disk_of_the_worker(self) -> Context[None]:
        """Limit the size of the worker's files."""
        limit = partial(resource.prlimit, self.worker.process.pid, resource.RLIMIT_FSIZE)
        no_limit = resource.RLIM_INFINITY
        return between(lambda: limit((4096, no_limit)), lambda: limit((no_limit, no_limit)))

    def tigerbeetle_down(self) -> Context[None]:
        return between(self.replica.kill, self.replica.start)

    def resonate_down(self) -> Context[None]:
        return between(self.resonate.kill_resonate, self.resonate.restart_resonate)

    def postgres_down(self, number: signal.Signals = signal.SIGQUIT) -> Context[None]:
        return between(lambda: self.postgres.stop(number), self.postgres.start)

    def postgres_read_only(self) -> Context[None]:
        """Reads of open connections still succeed; a new connection is refused."""
        set_to = self.postgres.configure
        return between(
            lambda: set_to(default_transaction_read_only="on"), lambda: set_to(default_transaction_read_only=None)
        )

    @contextlib.contextmanager
    def table_locked(self) -> Iterator[None]:
        """The server ends the statement by itself, also after the run has ended."""
        with self.postgres.locked(self.world.database):
            yield
            waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            wait_until(lambda: self.postgres.execute(waiting) == [])
            assert self.world.sql("SELECT * FROM accounts") == []


@dataclass
class Away:
    """An outage, and words of the line about it.

    `points`: where a run meets it, and the steps that a rerun repeats if the run gave up there.
    """

    store: str
    outage: Callable[[Scene], Context[Any]]
    words: str
    points: dict[str, str]
    run_waits: bool = True  # not for a full disk, which ends a run at once, nor for a lock that its end waits for
    worker_waits: bool = True


STAGE = {"before write 2": "23"}
NO_ANSWER = "did not answer within"
EACH_POINT = {
    "before create 2": "23",
    "before write 2": "3",
    "before write 3": "3",
    "after write 3": "",
    "before settle the promise": "",
}
OF_RESONATE = {"before create 1": "123", "before write 3": "3", "after write 3": "3", "before settle the promise": ""}

AWAY = {
    "SQLite is locked": Away("accounts.db", lambda at: at.locked("accounts.db"), "is locked by another process", STAGE),
    "the embedded ledger is locked": Away(
        "ledger", lambda at: at.locked("ledger.db"), "ledger", {"before write 3": "3"}, worker_waits=False
    ),
    "the disk is full": Away("accounts.db", Scene.full_disk_of_the_worker, "disk I/O error", {}),
    "TigerBeetle is down": Away("TigerBeetle", Scene.tigerbeetle_down, NO_ANSWER, EACH_POINT, worker_waits=False),
    "TigerBeetle is paused": Away(
        "TigerBeetle", lambda at: paused(at.replica.process), NO_ANSWER, {"before write 3": "3"}
    ),
    "Resonate is down": Away("Resonate", Scene.resonate_down, NO_ANSWER, OF_RESONATE, worker_waits=False),
    "Resonate is paused": Away("Resonate", lambda at: paused(at.resonate.resonate), NO_ANSWER, {"before write 3": "3"}),
    "PostgreSQL is down": Away("PostgreSQL", Scene.postgres_down, "cannot reach", STAGE),
    "PostgreSQL was stopped in order": Away(
        "PostgreSQL", lambda at: at.postgres_down(signal.SIGINT), "cannot reach", STAGE, worker_waits=False
    ),
    "PostgreSQL is frozen": Away("PostgreSQL", lambda at: at.postgres.frozen(), "gave no answer in time", STAGE),
    "PostgreSQL is read-only": Away("PostgreSQL", Scene.postgres_read_only, "accepts no writes", STAGE),
    "PostgreSQL's disk is full": Away(
        "PostgreSQL",
        lambda at: at.postgres.full_disk(at.world.database),
        "No space left on device; free some disk space on the server",
        STAGE,
        run_waits=False,
    ),
    "PostgreSQL's table is locked": Away(
        "PostgreSQL", Scene.table_locked, "gave no answer in time", STAGE, run_waits=False, worker_waits=False
    ),
}


def cases(names: list[str], *, of_runs: bool = True) -> pytest.MarkDecorator:
    """Return the outages as parameters. With a PostgreSQL that is stopped and started, a test is deep."""
    found = [
        pytest.param(name, *point, marks=pytest.mark.deep if "PostgreSQL" in name else (), id=" ".join([name, *point]))
        for name in names
        for point in ([(point,) for point in AWAY[name].points] if of_runs else [()])
    ]
    return pytest.mark.parametrize("name, point" if of_runs else "name", found)


@pytest.fixture
def scene(request: pytest.FixtureRequest, name: str, tmp_path: Path) -> Iterator[Scene]:
    """The unavailable store or server is real. All else is real for a worker, and embedded for a run."""
    store, of_run = AWAY[name].store, "point" in request.fixturenames
    worlds = {"Resonate": "server_world", "PostgreSQL": "postgres_world"}
    world: World = request.getfixturevalue(worlds.get(store, "embedded_world") if of_run else "server_world")
    scene = Scene(world)
    with contextlib.ExitStack() as stack:
        if store == "PostgreSQL":
            scene.postgres = stack.enter_context(Postgres().started())
            world.env["REFERENCE_URL"] = scene.postgres.database()
            if of_run:
                world.run("first")  # it makes the tables
                world.sql("DELETE FROM accounts")
            else:
                scene.world = PostgresServerWorld(world.directory, world.env)
        elif store == "TigerBeetle":
            scene.replica = stack.enter_context(Replica.started(tmp_path))
            world.env["TB_ADDRESS"] = scene.replica.address
            scene.world = World(tmp_path, world.env) if of_run else world
        yield scene


@cases([name for name, away in AWAY.items() if away.run_waits])
def test_run_waits_until_the_outage_ends(scene: Scene, user: str, name: str, point: str) -> None:
    world = scene.world
    with contextlib.ExitStack() as outage:
        with world.paused_at(user, point) as process:
            outage.enter_context(AWAY[name].outage(scene))
        # It ends after the run has met it, and a paused server after the lease has expired.
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3 if name == "Resonate is paused" else 0.5)
    run = world.finish(process)
    assert run.status == 0, run.err
    assert world.rows(user) == world.accounts(user) == [run.guid]


@cases(list(AWAY))
@pytest.mark.slow
def test_run_gives_up_and_a_rerun_resumes(scene: Scene, user: str, name: str, point: str) -> None:
    away = AWAY[name]
    limits = dict.fromkeys(("PATIENCE", "FIRST_ANSWER"), SHORT_TIMEOUT_S)
    with contextlib.ExitStack() as outage:
        with scene.world.paused_at(user, point, **limits) as process:
            outage.enter_context(away.outage(scene))
        run = scene.world.finish(process)
        assert_gave_up(run, away.store, away.words)
        assert PASSWORD not in run.err
    assert_resumes(scene.world, user, list(away.points[point]))


@cases([name for name, away in AWAY.items() if away.worker_waits], of_runs=False)
def test_worker_waits_until_the_outage_ends(scene: Scene, user: str, name: str) -> None:
    """It prints a line when the outage begins and when it ends. Meanwhile no promise is settled."""
    away, uuids = AWAY[name], numbered(user, 20)
    with worker(scene.world, PATIENCE="5") as serving:  # a busy machine can be slow for a second
        scene.worker = serving

        async def main() -> dict[str, str]:
            async with caller(scene.world) as resonate:
                with away.outage(scene):
                    started = [start(resonate, uuid) for uuid in uuids if away.store != "Resonate"]
                    await asyncio.to_thread(wait_until, lambda: bool(serving.said(away.words)))
                    cpu_s, now_s = serving.cpu_seconds(), time.monotonic()
                    await asyncio.sleep(2)
                    assert serving.cpu_seconds() - cpu_s < (time.monotonic() - now_s) / 2, "a busy loop"
                    assert not any(promise.done() for promise in started)
                return await results(started or [start(resonate, uuid) for uuid in uuids])

        assert_exist(scene.world, asyncio.run(main()), uuids)
        _, outage, end = serving.said()
        assert [outage] == serving.said(away.words) == serving.said("this process waits until it recovers")
        assert away.store in outage
        assert [end] == serving.said("is available again")
        assert PASSWORD not in serving.log.read_text()


# -- A command and an application --------------------------------------------


@pytest.mark.parametrize(
    "error", [PlatformError([ServerError(400, "no")]), ServerError(400, "no")], ids=["in a request", "from the SDK"]
)
def test_refused_request_outside_a_step_ends_with_one_line(error: BaseException) -> None:
    async def work() -> None:
        raise error

    with pytest.raises(Unavailable, match=r"refused a request \(server error \(code=400\): no\); run again"):
        asyncio.run(Outages().result_or_raise(work()))


def test_outage_is_raised_to_each_caller_and_its_work_is_cancelled() -> None:
    cancelled: list[str] = []

    async def work(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(name)

    async def main() -> None:
        outages = Outages()
        calls = [asyncio.ensure_future(outages.result_or_raise(work(name))) for name in "ab"]
        await asyncio.sleep(0)
        outages.report(Unavailable("the outage"), "store")
        raised = await asyncio.gather(*calls, return_exceptions=True)
        assert [str(error) for error in raised] == ["the outage"] * 2
        assert sorted(cancelled) == ["a", "b"]

    asyncio.run(main())


def test_call_ends_within_its_time_limit_whatever_was_lost() -> None:
    with pytest.raises(NoAnswer, match="no result within 0 s; what was begun may still finish: call again"):
        asyncio.run(Outages().result_or_raise(asyncio.sleep(HANG_S), timeout_s=0))
