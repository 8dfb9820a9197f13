"""An application that connects once and creates accounts in many tasks."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from clients import limits
from clients.errors import Halted, NoAnswer, Unavailable, UsageError
from clients.promises import server
from clients.promises.cannot_run import Unexecutable
from clients.settings import Settings
from operations import application
from operations.application import IN_FLIGHT_MAX, Accounts, open_accounts

from ..conftest import HANG_S, Replica, Run, ServerWorld, World, assert_accounts_exist, locked, numbered
from .commands import commit, spoil, stage


def opened[T](world: World, work: Callable[[Accounts], Awaitable[T]], task_factory: Any = None) -> T:
    """Run the work of an application."""

    async def main() -> T:
        asyncio.get_running_loop().set_task_factory(task_factory)
        async with open_accounts(Settings.read(world.env)) as accounts:
            return await work(accounts)

    return asyncio.run(main())


@pytest.mark.parametrize("task_factory", [None, asyncio.eager_task_factory], ids=["tasks", "eager tasks"])
def test_calls_at_the_same_time_create_each_account_once(world: World, user: str, task_factory: Any) -> None:
    """An application can set the factory of eager tasks. A task may then be done when it is created."""
    uuids = numbered(user, 5) * 3

    async def work(accounts: Accounts) -> tuple[list[str], list[str | None]]:
        async with asyncio.timeout(HANG_S):
            created = await asyncio.gather(*map(accounts.create, uuids))
            return created, [await accounts.find(uuid) for uuid in (*uuids, f"{user}-nobody")]

    created, found = opened(world, work, task_factory)
    assert found == [*created, None]
    assert [world.rows(uuid) for uuid in uuids] == [world.accounts(uuid) for uuid in uuids] == [[g] for g in created]


def test_panic_reaches_its_caller_only(embedded_world: World, user: str, guid: str) -> None:
    stage(embedded_world, user, guid)

    async def work(accounts: Accounts) -> list[Any]:
        calls = (accounts.create(uuid) for uuid in (user, f"{user}-2", "a:b"))
        return await asyncio.gather(*calls, accounts.find(user), return_exceptions=True)

    panic, guid, invalid, found = opened(embedded_world, work)
    assert isinstance(panic, Halted)
    assert isinstance(invalid, UsageError)
    assert found is None, "a row is no account"
    assert embedded_world.accounts(f"{user}-2") == [guid]


def test_promise_that_cannot_be_executed_reaches_its_caller(world: World, user: str) -> None:
    world.run(user, crash="after save 2")
    spoil(world, f"create-account-{user}:2")

    async def work(accounts: Accounts) -> str:
        with pytest.raises(Unexecutable, match=f"create-account-{user}"):
            await accounts.create(user)
        return await accounts.create(f"{user}-2")

    guid = opened(world, work)
    assert world.accounts(f"{user}-2") == [guid]


def test_several_accounts_of_a_uuid_are_a_conflict(embedded_world: World, user: str, guid: str) -> None:
    commit(embedded_world, user, guid)
    commit(embedded_world, user, str(int(guid) + 1))

    with pytest.raises(Halted, match=r"CONFLICT for uuid .* TigerBeetle holds account"):
        opened(embedded_world, lambda accounts: accounts.find(user))


@pytest.mark.parametrize("in_flight_max", [IN_FLIGHT_MAX, 1], ids=["at the same time", "one after the other"])
def test_outage_reaches_each_caller_and_the_accounts_are_created_afterwards(
    embedded_world: World,
    user: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    in_flight_max: int,
) -> None:
    """SQLite is locked for longer than a request waits. The application goes on with the same connection."""
    uuids = numbered(user, 10)
    monkeypatch.setattr(application, "IN_FLIGHT_MAX", in_flight_max)

    async def work(accounts: Accounts) -> list[str]:
        monkeypatch.setattr(limits, "ANSWER_TIMEOUT_S", 0.1)
        with locked(embedded_world.data / "accounts.db"):
            calls = [asyncio.ensure_future(accounts.create(uuid)) for uuid in uuids]
            await asyncio.wait(calls, return_when=asyncio.FIRST_EXCEPTION)
            await asyncio.wait(calls, timeout=limits.RETRY_INTERVAL_S)
        assert {type(call.exception()) for call in calls if call.done()} == {Unavailable}
        assert all(call.done() for call in calls)
        monkeypatch.setattr(limits, "ANSWER_TIMEOUT_S", 30.0)
        return await asyncio.gather(*map(accounts.create, uuids))

    created = opened(embedded_world, work)
    assert_accounts_exist(embedded_world, dict(zip(uuids, created, strict=True)))
    err = capsys.readouterr().err
    assert err.count("this process waits until it recovers") == err.count("is available again") == 1


def test_application_ends_while_a_store_is_unavailable(
    embedded_world: World, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as locks:

        async def work(accounts: Accounts) -> None:
            monkeypatch.setattr(limits, "ANSWER_TIMEOUT_S", 0.1)
            locks.enter_context(locked(embedded_world.data / "accounts.db"))
            with pytest.raises(Unavailable, match="is locked by another"):
                await accounts.create(user)

        opened(embedded_world, work)
    assert embedded_world.run(user).status == 0


def test_application_that_ends_with_calls_in_flight_prints_nothing_and_releases_all_leases(
    world: World, user: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The calls raise `Unavailable`. Another process need not wait for a lease."""
    monkeypatch.setattr(server, "LEASE", timedelta(seconds=10 * HANG_S))
    uuids = numbered(user, 50)

    async def main() -> list[Any]:
        async with open_accounts(Settings.read(world.env)) as accounts:
            calls = [asyncio.ensure_future(accounts.create(uuid)) for uuid in uuids]
            await accounts.create(f"{user}-first")
        ended = await asyncio.gather(*calls, accounts.find(user), accounts.create(user), return_exceptions=True)
        return list(ended)

    *created, find, create = asyncio.run(main())
    assert {type(result) for result in created} <= {str, Unavailable}
    assert str(find) == str(create) == "the accounts are closed; open them again with open_accounts, and call again"
    assert capfd.readouterr().err == ""

    async def again(accounts: Accounts) -> None:
        await asyncio.gather(*map(accounts.create, uuids))  # raises `Unavailable` if a lease is left

    opened(world, again)


#: Seconds of a lease, and without an answer, in place of 10 and 30. A pause is shorter than both, between them, or longer.
LEASE_S, PATIENCE_S = 2, 5


@pytest.mark.slow
@pytest.mark.parametrize("pause", [(part, s) for part in ("Resonate", "TigerBeetle", "application") for s in (1, 3, 8)])
def test_each_call_ends_after_a_pause_and_the_next_one_returns_the_account(
    server_world: ServerWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pause: tuple[str, int]
) -> None:
    """A lease, a message or a task can be lost meanwhile. No worker is there to resume."""
    part, pause_s = pause
    user = f"{part}-{pause_s}"
    uuids = numbered(user, 64)
    monkeypatch.setattr(server, "LEASE", timedelta(seconds=LEASE_S))
    monkeypatch.setattr(limits, "ANSWER_TIMEOUT_S", PATIENCE_S)
    with Replica.started(tmp_path) as replica:
        server_world.env["TB_ADDRESS"] = replica.address
        pids = {"Resonate": server_world.resonate.pid, "TigerBeetle": replica.process.pid, "application": os.getpid()}
        wake = f"kill -STOP {pids[part]}; sleep {pause_s}; kill -CONT {pids[part]}"

        async def work(accounts: Accounts) -> tuple[list[Any], list[str], list[str | None]]:
            await accounts.create(f"{user}-warm")
            tasks = len(asyncio.all_tasks())
            calls = asyncio.gather(*map(accounts.create, uuids), return_exceptions=True)
            pausing = await asyncio.create_subprocess_shell(wake)
            async with asyncio.timeout(HANG_S):
                ended = await calls
                await pausing.wait()
                created = await asyncio.gather(*map(accounts.create, uuids))
                found = await asyncio.gather(*map(accounts.find, uuids))
                while len(asyncio.all_tasks()) > tasks:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            return ended, created, found

        ended, created, found = opened(server_world, work)
        assert {type(result) for result in ended} <= {str, Unavailable, NoAnswer}
        assert created == found
        assert server_world.all_accounts(uuids) == {uuid: [guid] for uuid, guid in zip(uuids, created, strict=True)}


def test_second_connection_to_embedded_promises_is_refused_and_the_first_one_keeps_its_lock(
    embedded_world: World, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FIRST_ANSWER_TIMEOUT_S", 0.1)

    async def work(accounts: Accounts) -> Run:
        with pytest.raises(Unavailable, match=r"is in use by process \d+ \(this one\)"):
            async with open_accounts(Settings.read(embedded_world.env)):
                pass
        await accounts.create(user)
        return await asyncio.to_thread(embedded_world.run, user, FIRST_ANSWER="0.1")

    beside = opened(embedded_world, work)
    assert beside.status == 1
    assert f"is in use by process {os.getpid()};" in beside.err
