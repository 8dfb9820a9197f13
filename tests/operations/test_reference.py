"""One System of Reference: a process whose store or cluster differs from the recorded one refuses to work."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

import pytest
from resonate.types import Value

from clients.account import PREFIX
from clients.promises.store_pin import LIFETIME_MS, Identity, pin

from ..conftest import HANG_S, PostgresServerWorld, ServerWorld, World, numbered
from .backfills import run
from .commands import Done, assert_adopted, halt, script
from .test_worker import caller, worker

MISMATCH = "promise create-account_reference-1 records store"


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def shared(request: pytest.FixtureRequest, server_world: ServerWorld) -> ServerWorld:
    """A world with a Resonate server of its own."""
    if request.param == "SQLite":
        return server_world
    rows = {"REFERENCE_URL": request.getfixturevalue("postgres").database()}
    return PostgresServerWorld(server_world.directory, server_world.env | rows)


@pytest.fixture
def other(shared: ServerWorld, request: pytest.FixtureRequest) -> World:
    """Another host: the same servers, and a System of Reference of its own."""
    directory = shared.directory / "other"
    directory.mkdir()
    env = shared.env | {"DATA_DIR": str(directory / "data")}
    if "REFERENCE_URL" in env:
        env["REFERENCE_URL"] = request.getfixturevalue("postgres").database()
    return type(shared)(directory, env)


def assert_refused(done: Done, words: str = MISMATCH) -> None:
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert words in line
    assert "`python -m operations reference --accept`" in line


def test_first_process_records_its_store(shared: ServerWorld, user: str) -> None:
    assert script(shared, "reference").stdout.startswith("no record\n")
    assert shared.run(user).status == 0
    done = script(shared, "reference")
    recorded, present = done.stdout.splitlines()
    assert done.returncode == 0
    assert recorded.removeprefix("create-account_reference-1: ") in present


def test_process_with_another_store_refuses_to_work(shared: ServerWorld, other: World, user: str) -> None:
    guid = shared.run(user).guid
    refused = other.run(f"{user}-2")
    assert (refused.status, refused.out, refused.steps) == (1, "", [])
    assert MISMATCH in refused.err
    for command in (["backfill"], ["adopt", user], ["worker"]):
        assert_refused(script(other, *command))
    assert other.sql("SELECT uuid FROM accounts") == []
    assert shared.accounts(user) == [guid]


def test_reading_commands_report_another_store_and_still_read(shared: ServerWorld, other: World, user: str) -> None:
    guid = shared.run(user).guid
    other.run(user)  # it is refused, but makes the empty store
    says = {"check": f"TigerBeetle: account {guid}", "audit": f"holds account {guid}", "halted": "0 halted, 0 adopted"}
    for command, words in says.items():
        done = script(other, command, *[user] * (command == "check"))
        assert MISMATCH in done.stderr
        assert words in done.stdout


def test_process_with_another_cluster_refuses_to_work(shared: ServerWorld, user: str) -> None:
    shared.run(user)
    refused = shared.run(user, TB_CLUSTER_ID="1")
    assert (refused.status, refused.steps) == (1, [])
    assert "and cluster 0, but this process uses" in refused.err


def test_accepted_store_replaces_the_recorded_one(shared: ServerWorld, other: World, user: str) -> None:
    shared.run(user)
    assert script(other, "reference").returncode == 98
    accepted = script(other, "reference", "--accept")
    assert (accepted.returncode, accepted.stdout.partition(":")[0]) == (0, "create-account_reference-2")
    assert script(other, "reference", "--accept").stdout == accepted.stdout, "accepted twice"
    refused = shared.run(f"{user}-2")
    assert (refused.status, refused.steps) == (1, [])
    assert other.run(f"{user}-2").status == 0


def test_running_worker_of_the_old_store_ends_when_another_is_accepted(shared: ServerWorld, other: World) -> None:
    with worker(shared, PATIENCE="1") as serving:
        assert script(other, "reference", "--accept").returncode == 0
        assert serving.end() == 1
        assert len(serving.said("promise create-account_reference-2 records store")) == 1


def test_one_of_two_first_processes_wins(server_world: ServerWorld) -> None:
    async def race() -> None:
        async with caller(server_world) as one, caller(server_world) as two:
            for number in range(1, 21):
                a, b = Identity("a", "0"), Identity("b", "0")
                first, second = await asyncio.gather(pin(one, number, a), pin(two, number, b))
                assert first == second
                assert first in (a, b)

    asyncio.run(race())


def test_only_one_of_two_first_processes_with_different_stores_works(
    shared: ServerWorld, other: World, user: str
) -> None:
    started = [world.start(f"{user}-{number}") for number, world in enumerate((shared, other))]
    runs = [world.finish(process) for world, process in zip((shared, other), started, strict=True)]
    assert sorted(run.status for run in runs) == [0, 1]
    assert any(MISMATCH in run.err for run in runs)


def test_canceled_record_stops_each_process_until_a_store_is_accepted(server_world: ServerWorld, user: str) -> None:
    create_record(server_world, canceled=True)
    assert_refused(script(server_world, "worker"), "promise create-account_reference-1 records no store")
    assert script(server_world, "reference").returncode == 98
    assert script(server_world, "reference", "--accept").returncode == 0
    assert server_world.run(f"{user}-2").status == 0


def test_next_process_completes_the_record_of_a_dead_creator(server_world: ServerWorld, user: str) -> None:
    create_record(server_world)
    assert server_world.run(user).status == 0
    assert script(server_world, "reference").returncode == 0


def create_record(world: ServerWorld, *, canceled: bool = False) -> None:
    """Create the first record's promise, and do not resolve it."""

    async def main() -> None:
        async with caller(world) as resonate:
            await resonate.promises.create("create-account_reference-1", LIFETIME_MS * 2, Value(data=None), {})
            if canceled:
                await resonate.promises.cancel("create-account_reference-1", Value(data=None))

    asyncio.run(main())


# -- A Resonate server that other applications share -------------------------


def token(**claims: object) -> str:
    """Return a token for a server that checks no signatures."""
    parts = ({"alg": "HS256", "typ": "JWT"}, {"exp": int(time.time()) + 3600} | claims)
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + ".x"


@pytest.fixture
def guarded_world(server_world: ServerWorld, monkeypatch: pytest.MonkeyPatch) -> ServerWorld:
    """The server asks for a token, and each command has one with our prefix."""
    monkeypatch.setenv("RESONATE_AUTH__PUBLICKEY", "none")
    server_world.start_resonate()
    server_world.env["RESONATE_TOKEN"] = token(prefix=PREFIX)
    return server_world


def test_token_with_one_prefix_is_enough(guarded_world: ServerWorld, user: str) -> None:
    single, other, *many = numbered(user, 6)
    with worker(guarded_world) as serving:
        assert guarded_world.run(single).status == 0
        backfilled = run(guarded_world, *many)
        assert (backfilled.status, list(backfilled.accounts)) == (0, many), backfilled.err
        halt(guarded_world, other)
        assert_adopted(guarded_world, other, again=True)
        assert script(guarded_world, "reference").returncode == 0
        assert script(guarded_world, "audit").returncode in (0, 98)
        assert serving.said() == serving.said("serving")
    done = script(guarded_world, "halted")
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert "rejected the token for promise.search" in line


@pytest.mark.parametrize("claims", [{"prefix": "other"}, {}, {"prefix": "", "exp": 1}], ids=str)
def test_token_that_does_not_fit_is_named(guarded_world: ServerWorld, user: str, claims: dict[str, Any]) -> None:
    run = guarded_world.run(user, RESONATE_TOKEN=token(**claims))
    assert (run.status, run.steps) == (1, [])
    assert "rejected the token" in run.err.splitlines()[-1]


def test_worker_whose_token_expires_ends_with_1(guarded_world: ServerWorld) -> None:
    soon = token(prefix=PREFIX, exp=int(time.time()) - 50)  # the server tolerates a minute
    with worker(guarded_world, PATIENCE="0.3", RESONATE_TOKEN=soon) as serving:
        assert serving.process.wait(HANG_S) == 1
        [line] = serving.said("rejected the token")
        assert "correct RESONATE_TOKEN" in line
