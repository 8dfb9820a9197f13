"""An application that connects once and creates accounts in many tasks."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from clients.command import limits
from clients.command.console import Halted, Unavailable, UsageError
from clients.promises.cannot_run import Unexecutable
from clients.settings import Settings
from operations.application import open_accounts

from ..conftest import EmbeddedWorld, Run, World, locked, numbered
from .commands import commit, spoil, stage


def test_calls_at_the_same_time_create_each_account_once(world: World, user: str) -> None:
    uuids = numbered(user, 5) * 3

    async def main() -> tuple[list[str], list[str | None]]:
        async with open_accounts(Settings.read(world.env)) as accounts:
            created = await asyncio.gather(*map(accounts.create, uuids))
            return created, [await accounts.find(uuid) for uuid in (*uuids, f"{user}-nobody")]

    created, found = asyncio.run(main())
    assert found == [*created, None]
    assert [world.rows(uuid) for uuid in uuids] == [world.accounts(uuid) for uuid in uuids] == [[g] for g in created]


def test_row_without_an_account_is_no_account(embedded_world: World, user: str, guid: str) -> None:
    stage(embedded_world, user, guid)

    async def main() -> str | None:
        async with open_accounts(Settings.read(embedded_world.env)) as accounts:
            return await accounts.find(user)

    assert asyncio.run(main()) is None


def test_panic_reaches_its_caller_only(embedded_world: World, user: str, guid: str) -> None:
    stage(embedded_world, user, guid)

    async def main() -> list[Any]:
        async with open_accounts(Settings.read(embedded_world.env)) as accounts:
            calls = (accounts.create(uuid) for uuid in (user, f"{user}-2", "a:b"))
            return await asyncio.gather(*calls, return_exceptions=True)

    panic, guid, invalid = asyncio.run(main())
    assert isinstance(panic, Halted)
    assert isinstance(invalid, UsageError)
    assert embedded_world.accounts(f"{user}-2") == [guid]


def test_promise_that_cannot_be_executed_reaches_its_caller(world: World, user: str) -> None:
    world.run(user, crash="after save 2")
    spoil(world, f"create-account-{user}:2")

    async def main() -> tuple[Any, str]:
        async with open_accounts(Settings.read(world.env)) as accounts:
            with pytest.raises(Unexecutable) as caught:
                await accounts.create(user)
            return caught.value, await accounts.create(f"{user}-2")

    error, guid = asyncio.run(main())
    assert f"create-account-{user}" in str(error)
    assert world.accounts(f"{user}-2") == [guid]


def test_several_accounts_of_a_uuid_are_a_conflict(embedded_world: World, user: str, guid: str) -> None:
    commit(embedded_world, user, guid)
    commit(embedded_world, user, str(int(guid) + 1))

    async def main() -> None:
        async with open_accounts(Settings.read(embedded_world.env)) as accounts:
            await accounts.find(user)

    with pytest.raises(Halted, match="CONFLICT: TigerBeetle holds"):
        asyncio.run(main())


def test_outage_reaches_each_caller_and_the_accounts_are_created_afterwards(
    embedded_world: EmbeddedWorld, user: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SQLite is locked for longer than a request waits. The application goes on with the same connection."""
    uuids = numbered(user, 3)

    async def main() -> tuple[list[Any], list[str]]:
        async with open_accounts(Settings.read(embedded_world.env)) as accounts:
            monkeypatch.setattr(limits, "ANSWER_TIMEOUT_S", 0.1)
            with locked(embedded_world.data / "accounts.db"):
                failed = await asyncio.gather(*map(accounts.create, uuids), return_exceptions=True)
            monkeypatch.setattr(limits, "ANSWER_TIMEOUT_S", 30.0)
            return failed, await asyncio.gather(*map(accounts.create, uuids))

    failed, created = asyncio.run(main())
    assert {type(error) for error in failed} == {Unavailable}
    assert [embedded_world.rows(uuid) for uuid in uuids] == [[guid] for guid in created]
    assert [embedded_world.accounts(uuid) for uuid in uuids] == [[guid] for guid in created]
    err = capsys.readouterr().err
    assert err.count("this process waits until it recovers") == err.count("is available again") == 1


def test_application_ends_while_a_store_is_unavailable(
    embedded_world: EmbeddedWorld, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with open_accounts(Settings.read(embedded_world.env)) as accounts:
            monkeypatch.setattr(limits, "ANSWER_TIMEOUT_S", 0.1)
            with locked(embedded_world.data / "accounts.db"), pytest.raises(Unavailable, match="is locked by another"):
                await accounts.create(user)

    asyncio.run(main())
    assert embedded_world.run(user).status == 0


def test_second_connection_to_embedded_promises_is_refused_and_the_first_one_keeps_its_lock(
    embedded_world: EmbeddedWorld, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FIRST_ANSWER_TIMEOUT_S", 0.1)

    async def main() -> Run:
        settings = Settings.read(embedded_world.env)
        async with open_accounts(settings) as accounts:
            with pytest.raises(Unavailable, match=r"is in use by process \d+ \(this one\)"):
                async with open_accounts(settings):
                    pass
            await accounts.create(user)
            return await asyncio.to_thread(embedded_world.run, user, FIRST_ANSWER="0.1")

    beside = asyncio.run(main())
    assert beside.status == 1
    assert f"is in use by process {os.getpid()};" in beside.err
