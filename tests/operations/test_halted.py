"""`halted`: which accounts are halted, and why? And what a promise that cannot be executed does to each command."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from resonate.types import Value

import create_account
from clients.account import promise_id
from clients.settings import Settings
from operations import halted
from operations.batch import batch_id, register
from operations.opening import connect

from ..clients.commands import command
from ..conftest import World, numbered, quick_only
from .commands import SPOILED, Done, assert_adopted, assert_verdict, halt, resolve, script, spoil

if TYPE_CHECKING:
    from collections.abc import Mapping

    from resonate.resonate import Resonate

DEADLINE_MS = 10**14
LACKED = {"func": "create_account", "version": 7, "args": [], "kwargs": {}}


def create_promise(world: World, uuid: str, call: Any, *, task: bool) -> None:
    """Create the uuid's promise as another program might."""
    tags = {"resonate:target": "poll://any@elsewhere"} if task else {}

    async def main() -> None:
        async with connect(Settings.read(world.env)) as (resonate, _):
            await resonate.promises.create(promise_id(uuid), DEADLINE_MS, Value(data=call), tags)

    asyncio.run(main())


#: What another program can have created under the id of a uuid's promise, and what a run says.
STRANGE: Mapping[str, tuple[Any, bool, str]] = {
    "a version that this program lacks": (LACKED, True, "function not found"),
    "a function that this program lacks": (LACKED | {"func": "other"}, True, "other"),
    "no function": ({"hello": 1}, True, "invalid task data"),
    "no task": (None, False, "has no task"),
}


@pytest.mark.parametrize("strange", STRANGE)
def test_single_run_of_a_promise_that_cannot_be_executed_ends_with_one_line(
    world: World, user: str, strange: str
) -> None:
    call, task, cause = STRANGE[strange]
    create_promise(world, user, call, task=task)
    run = world.run(user)
    assert run.status == 1
    line = run.err.splitlines()[-1]
    assert line.startswith(f"cannot execute promise create-account-{user}: ")
    assert cause in line
    assert "stays pending" in line
    assert world.rows(user) == world.accounts(user) == []


@pytest.mark.parametrize("data", quick_only(["no base64"], SPOILED))
def test_single_run_whose_recorded_result_does_not_decode_ends_with_one_line(
    world: World, user: str, data: str
) -> None:
    world.run(user, crash="after save 2")
    spoil(world, f"{promise_id(user)}:2", SPOILED[data])
    run = world.run(user)
    assert (run.status, run.out) == (1, "")
    assert run.err.splitlines()[-1].startswith(f"cannot execute promise create-account-{user}: ")
    assert world.accounts(user) == []


def test_message_about_a_result_that_does_not_decode_claims_nothing_about_the_account(
    embedded_world: World, user: str
) -> None:
    embedded_world.run(user, crash="after save 3")
    spoil(embedded_world, f"{promise_id(user)}:3")
    line = embedded_world.run(user).err.splitlines()[-1]
    assert line.startswith(f"cannot execute promise create-account-{user}: ")
    assert command(embedded_world, "--steps", user).stderr.count("step 3, commit_account: cannot be read") == 1
    assert "`python -m operations check` says whether the account exists" in line
    assert len(embedded_world.accounts(user)) == 1


def backfill(world: World, uuids: list[str]) -> Done:
    return script(world, "backfill", stdin="".join(f"{uuid}\n" for uuid in uuids))


def test_backfill_counts_promises_that_cannot_be_executed_as_halted_and_creates_the_rest(
    world: World, user: str
) -> None:
    """One of them has a recorded result that does not decode."""
    uuids = numbered(user, 10)
    for uuid, (call, task, _) in zip(uuids[3:7], STRANGE.values(), strict=True):
        create_promise(world, uuid, call, task=task)
    world.run(uuids[7], crash="after save 2")
    spoil(world, f"{promise_id(uuids[7])}:2")
    done = backfill(world, uuids)
    assert done.returncode == 98, done.stderr
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == uuids[:3] + uuids[8:]
    assert "created 5, existing 0, halted 5, invalid 0" in done.stderr
    for uuid in uuids[3:8]:
        assert f"cannot execute promise create-account-{uuid}: " in done.stderr


@pytest.mark.parametrize("strange", STRANGE)
def test_accounts_of_a_batch_that_cannot_be_executed_are_halted_and_the_rest_is_created(
    world: World, user: str, strange: str
) -> None:
    *claimed, other = numbered(user, 3)
    batch = batch_id(claimed)
    call, task, cause = STRANGE[strange]

    async def main() -> None:
        async with connect(Settings.read(world.env)) as (resonate, clients):
            tags = {"resonate:target": "poll://any@create-account"} if task else {}
            await resonate.promises.create(batch, DEADLINE_MS, Value(data=call), tags)
            await register(resonate, clients).create(batch, claimed, DEADLINE_MS)

    asyncio.run(main())
    for uuids in ([*claimed, other], claimed):
        done = backfill(world, uuids)
        assert done.returncode == 98, done.stderr
        assert "halted 2, invalid 0" in done.stderr
        assert done.stderr.count(f"cannot execute promise {batch}: ") == 2
        assert cause in done.stderr
    assert world.rows(claimed[0]) == world.accounts(claimed[0]) == []
    assert len(world.accounts(other)) == 1


@pytest.mark.parametrize("data", quick_only(["no base64"], SPOILED))
def test_rejected_promise_whose_message_does_not_decode_is_halted(world: World, user: str, data: str) -> None:
    halt(world, user)
    spoil(world, promise_id(user), SPOILED[data])
    run = world.run(user)
    assert (run.status, run.out) == (98, "")
    assert f"promise create-account-{user} settled without an account: " in run.err.splitlines()[-1]
    done = backfill(world, [*numbered(user, 2), user])
    assert (done.returncode, len(done.stdout.splitlines())) == (98, 2)
    assert f"promise create-account-{user} settled without an account: " in done.stderr
    listed = [line for line in script(world, "halted").stdout.splitlines() if user in line]
    assert listed == [f"halted: create-account-{user} is rejected; more: python -m operations check -- {user}"]
    assert_adopted(world, user, again=True)


def test_settled_promise_without_a_task_is_an_answer(world: World, user: str) -> None:
    """As an operator's `resonate promises resolve` leaves it."""
    guid = world.run(f"{user}-other").guid
    resolve(world, promise_id(user), {"uuid": user, "guid": guid})
    run = world.run(user)
    assert run.status == 98
    assert f"create-account-{user} is resolved, but TigerBeetle does not hold its account {guid}" in run.err


def test_halted_lists_each_halted_account_with_its_reason(world: World, user: str) -> None:
    panicked, adopted, lacked, fine, begun = numbered(user, 5)
    halt(world, panicked)
    halt(world, adopted)
    assert_adopted(world, adopted, again=True)
    create_promise(world, lacked, LACKED, task=True)
    world.run(fine)
    world.run(begun, crash="after save 1")

    done = script(world, "halted")
    assert done.returncode == 98
    *lines, count = [line for line in done.stdout.splitlines() if user in line or "adopted" in line]
    assert {line.split(" ")[0] + line.split(" ")[1] for line in lines} == {
        f"halted:create-account-{panicked}",
        f"adopted:create-account-{adopted}",
        f"halted:create-account-{lacked}",
    }
    [line] = [line for line in lines if panicked in line]
    assert f"is rejected: PANIC: {world.reference} exists_diff" in line
    assert line.endswith(f"more: python -m operations check -- {panicked}")
    [line] = [line for line in lines if lacked in line]
    assert "is pending and cannot be executed: function not found: create_account (version 7)" in line
    assert count == "2 halted, 1 adopted"


def test_pending_account_of_a_second_registered_version_is_not_halted(
    embedded_world: World, user: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As docs/operations.md registers it: 'Changing the steps'."""
    create_promise(embedded_world, user, LACKED | {"version": 2}, task=True)
    settings, register = Settings.read(embedded_world.env), create_account.register

    def register_both(resonate: Resonate, *stores: Any) -> None:
        register(resonate, *stores)
        resonate.register(create_account.create_account, name="create_account", version=2)

    assert asyncio.run(halted.run(settings)) == 98
    monkeypatch.setattr(create_account, "register", register_both)
    assert asyncio.run(halted.run(settings)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 halted, 0 adopted"


def test_halted_ends_with_0_if_every_halted_account_is_adopted(world: World, user: str) -> None:
    halt(world, user)
    assert_adopted(world, user, again=True)
    done = script(world, "halted")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "0 halted, 1 adopted")


def test_promise_whose_row_in_promises_db_is_not_json_is_halted_and_stops_no_other_account(
    embedded_world: World, user: str
) -> None:
    spoiled, other = numbered(user, 2)
    for uuid in (spoiled, other):
        embedded_world.run(uuid)
    with contextlib.closing(sqlite3.connect(embedded_world.data / "promises.db")) as db, db:
        db.execute("UPDATE origins SET state = 'no JSON' WHERE origin = ?", (promise_id(spoiled),))
    done = script(embedded_world, "halted")
    assert done.returncode == 98
    line, count = done.stdout.splitlines()
    assert line.startswith(f"halted: {promise_id(spoiled)} is pending and cannot be executed: invalid task data")
    assert count == "1 halted, 0 adopted"
    assert_verdict(embedded_world, spoiled, 0, "exists")
    run = embedded_world.run(spoiled)
    assert run.status == 1
    assert run.err.splitlines()[-1].startswith(f"cannot execute promise {promise_id(spoiled)}: invalid task data")
    created = backfill(embedded_world, [spoiled, other, f"{user}-new"])
    assert "created 1, existing 1, halted 1" in created.stderr
    with contextlib.closing(sqlite3.connect(embedded_world.data / "promises.db")) as db:
        assert db.execute("SELECT state FROM origins WHERE origin = ?", (promise_id(spoiled),)).fetchall() == [
            ("no JSON",)
        ]


def test_halted_reads_any_number_of_promises(embedded_world: World, user: str) -> None:
    """More promises than a page."""
    uuids = numbered(user, 1_100)
    assert backfill(embedded_world, uuids).returncode == 0
    halt(embedded_world, f"{user}-z")
    done = script(embedded_world, "halted")
    assert done.returncode == 98
    assert done.stdout.splitlines()[-1] == "1 halted, 0 adopted"
