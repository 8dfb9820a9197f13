"""Requests that no client of ours would make: the workflow checks the promise's id and the uuid before any step."""

from __future__ import annotations

import asyncio
import unicodedata
from typing import Any

import pytest

from clients.account import promise_id
from clients.settings import Settings
from create_account import DEADLINE, create_account
from operations.opening import connect

from .conftest import World
from .operations.commands import assert_adopted, resolve


def request(world: World, id_: str, uuid: str) -> Any:
    """Run the workflow as a worker would, whatever the id and the argument."""

    async def main() -> Any:
        async with connect(Settings.read(world.env)) as clients:
            promise = clients.resonate.options(timeout=DEADLINE).run(id_, create_account, uuid)
            return await promise.result()

    return asyncio.run(main())


def test_promise_of_another_uuid_is_rejected_and_nothing_is_written_until_adopt_again(world: World, user: str) -> None:
    other = f"{user}-other"
    with pytest.raises(ValueError, match=f"belongs to uuid '{user}', but its argument is '{other}'"):
        request(world, promise_id(user), other)
    run = world.run(user)
    assert run.status == 98
    assert "is rejected: promise" in run.err
    for uuid in (user, other):
        assert world.rows(uuid) == world.accounts(uuid) == []
    assert_adopted(world, user, again=True)
    assert world.run(other).status == 0


DECOMPOSED = unicodedata.normalize("NFD", "Zoë")


@pytest.mark.parametrize("uuid", ["", "x" * 5_000, DECOMPOSED], ids=["empty", "long", "not normalized"])
def test_unacceptable_uuid_is_rejected_before_any_step(world: World, user: str, uuid: str) -> None:
    """A caller of a worker does not pass the command line."""
    with pytest.raises(ValueError, match=r"the uuid .*; no account was created"):
        request(world, f"other-{user}", uuid)
    assert (world.sql("SELECT count(*) FROM accounts"), world.accounts(uuid)) == ([(0,)], [])


def test_result_for_another_uuid_is_no_answer(world: World, user: str) -> None:
    """Another program settled the promise with another uuid's result."""
    guid = world.run(f"{user}-other").guid
    resolve(world, promise_id(user), {"uuid": f"{user}-other", "guid": guid})
    run = world.run(user)
    assert run.status == 98
    assert f"promise create-account-{user} is resolved for uuid '{user}-other'" in run.err
