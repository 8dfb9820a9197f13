"""The outcomes of a run in each situation: the table in README.md."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from clients.account import promise_id
from clients.panic import Panic
from create_account import DEADLINE, Outcome, create_account, start

from .conftest import World, quick_only
from .operations.commands import commit, connected, stage, unstage

if TYPE_CHECKING:
    from resonate.context import Context
    from resonate.resonate import Resonate

    from operations.opening import Clients


def assert_exists(world: World, user: str, guid: str) -> None:
    """Check that the uuid has one row and one account, with this guid."""
    assert world.rows(user) == [guid]
    assert world.accounts(user) == [guid]


def assert_halted(world: World, user: str, condition: str, *details: str, guid: str = "") -> None:
    """Check that the run panics, and that the next run prints the same panic without running a step."""
    first, again = world.run(user, guid=guid), world.run(user)
    assert (first.status, first.out) == (98, "")
    assert (again.status, again.out, again.steps) == (98, "", [])
    panic = first.err.splitlines()[-1]
    assert panic == again.err.splitlines()[-1]
    for detail in (f"PANIC: {condition}", user, *details):
        assert detail in panic


def test_first_run_creates_the_account_and_a_rerun_prints_the_same_and_runs_no_step(world: World, user: str) -> None:
    first, again = world.run(user), world.run(user)
    assert (first.status, first.steps) == (0, ["1", "2", "3"])
    assert first.out == f"UUID: {user}\nGUID: {first.guid}\n"
    assert (again.status, again.out, again.steps) == (0, first.out, [])
    assert_exists(world, user, first.guid)


@pytest.mark.parametrize("days", quick_only([0], [0, 2]), ids=["at once", "two days later"])
@pytest.mark.parametrize(
    ("crash", "steps"),
    [("after save 2", ["3"]), ("after write 3", ["3"]), ("after save 3", [])],
    ids=[
        "after SQLite, before TigerBeetle",
        "after TigerBeetle, before the result is saved",
        "after the result is saved",
    ],
)
def test_crash_and_the_next_run(world: World, user: str, crash: str, steps: list[str], days: int) -> None:
    """test_crashes.py kills it at every point."""
    if days and "RESONATE_URL" in world.env:
        pytest.skip("the clock of a Resonate server cannot be moved")
    world.run(user, crash=crash)
    rows = world.rows(user)
    run = world.run(user, days=days)
    assert (run.status, run.steps) == (0, steps)
    assert rows == [run.guid], "the guid changed"
    assert_exists(world, user, run.guid)


#: Where the run was killed, what is lost then, and the panic of the next run.
LOST: dict[str, tuple[str, tuple[str, ...], str]] = {
    "the promises": ("", ("promises",), "{} exists_diff"),
    "the promises, before the commit": ("after save 2", ("promises",), "{} exists_diff"),
    "SQLite and the promises": ("", ("sqlite", "promises"), "ordering violated"),
    "the row, after the commit": ("after write 3", ("row",), "ordering violated"),
    "the row, before the commit": ("after save 2", ("row",), "ordering violated"),
}


def lose(world: World, user: str, lost: str) -> tuple[str, str]:
    """Run, and lose this. Returns the panic of the next run, and the guid that was staged."""
    crash, stores, panic = LOST[lost]
    world.run(user, crash=crash)
    [guid] = world.rows(user)
    for store in stores:
        unstage(world, user) if store == "row" else getattr(world, f"lose_{store}")()
    return panic.format(world.reference), guid


@pytest.mark.parametrize("lost", quick_only(list(LOST)[1:4], LOST))
def test_loss_panics_and_nothing_is_written(world: World, user: str, lost: str) -> None:
    panic, guid = lose(world, user, lost)
    rows, accounts = world.rows(user), world.accounts(user)
    held = f"TigerBeetle holds {', '.join(accounts) or 'no account'}"
    assert_halted(world, user, panic, guid, f"with guid {guid}, and {held}" if rows else held)
    assert (world.rows(user), world.accounts(user)) == (rows, accounts)


def test_row_with_the_same_guid_is_committed(world: World, user: str, guid: str) -> None:
    stage(world, user, guid)
    run = world.run(user, guid=guid)
    assert run.status == 0
    assert_exists(world, user, guid)


def test_guid_that_is_staged_for_another_uuid_panics(world: World, user: str, guid: str) -> None:
    stage(world, "another", guid)
    found = f"{world.reference} stages uuid 'another' with guid {guid}"
    assert_halted(world, user, f"{world.reference} exists_diff", found, guid=guid)
    assert world.accounts(user) == []


@pytest.mark.parametrize("field", ["ledger", "code", "user_data_128"])
def test_account_with_the_same_guid_and_another_field_panics(world: World, user: str, guid: str, field: str) -> None:
    commit(world, user, guid, **{field: 2})
    # The row is staged by hand: with this uuid's account in TigerBeetle, step 2 would not stage it.
    stage(world, user, guid)
    assert_halted(world, user, "TigerBeetle exists_diff", guid, f"{field} ", guid=guid)


@pytest.mark.slow
def test_account_with_another_guid_than_the_staged_one_panics(world: World, user: str, guid: str) -> None:
    """SQLite was restored from a backup, and another attempt committed. To commit would create a second account."""
    world.run(user, crash="after save 2")
    [staged] = world.rows(user)
    world.lose_sqlite()
    commit(world, user, guid)
    stage(world, user, staged)
    assert_halted(world, user, "ordering violated", staged, f"TigerBeetle holds {guid}")
    assert world.accounts(user) == [guid], "a second account"


def test_one_of_two_promises_for_one_uuid_panics(world: World, user: str) -> None:
    async def race(resonate: Resonate, _: object) -> list[Any]:
        started = [resonate.options(timeout=DEADLINE).run(f"{name}-{user}", create_account, user) for name in "ab"]
        return await asyncio.gather(*(promise.result() for promise in started), return_exceptions=True)

    winner, loser = sorted(connected(world, race), key=lambda result: isinstance(result, Panic))
    assert isinstance(loser, Panic)
    assert loser.condition == f"{world.reference} exists_diff"
    assert_exists(world, user, winner["guid"])


@pytest.mark.parametrize("uuid", ["this uuid", "another uuid"])
def test_row_that_is_staged_between_read_and_write_is_not_overwritten(
    world: World, user: str, guid: str, uuid: str
) -> None:
    owner = user if uuid == "this uuid" else f"{user}-other"
    with world.paused_at(user, "before write 2", GUID="" if owner == user else guid) as process:
        stage(world, owner, guid)
    run = world.finish(process)
    assert run.status == 98
    assert f"PANIC: {world.reference} exists_diff for uuid {user!r}" in run.err
    assert world.sql("SELECT uuid, guid FROM accounts WHERE guid = ?", guid) == [(owner, guid)]
    assert world.accounts(user) == []


def test_step_that_fails_is_not_retried(world: World, user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default, the SDK retries it for decades. An error that is no outage would look like a hang."""
    attempts = []

    async def stage_account(ctx: Context, uuid: str, guid: str) -> Outcome:
        attempts.append(guid)
        if len(attempts) == 1:
            raise RuntimeError("unexpected")
        return Outcome("exists_diff", guid, "another attempt")

    monkeypatch.setattr("create_account.stage_account", stage_account)
    with pytest.raises(RuntimeError, match="unexpected"):
        connected(world, lambda resonate, _: start(resonate, user).result())
    assert len(attempts) == 1


def test_resolved_promise_without_an_account_halts(world: World, user: str) -> None:
    guid = world.run(user).guid
    world.lose_ledger()
    run = world.run(user)
    assert (run.status, run.out, run.steps) == (98, "", [])
    assert f"TigerBeetle does not hold its account {guid}" in run.err


def test_panic_has_all_its_fields_in_another_process(world: World, user: str) -> None:
    stage(world, user, "1")
    assert world.run(user).status == 98

    async def result(resonate: Resonate, _: object) -> Any:
        return await (await resonate.get(f"create-account-{user}")).result()

    with pytest.raises(Panic) as caught:
        connected(world, result)
    panic = caught.value
    assert (panic.code, panic.type, panic.uuid) == ("98", "Panic", user)
    assert panic.condition == f"{world.reference} exists_diff"
    assert "guid 1" in panic.conflict


def test_a_pending_workflow_ends_as_the_version_that_it_began_as(world: World, user: str) -> None:
    async def version_2(ctx: Context, uuid: str) -> dict[str, str]:
        return await ctx.run(another_step, uuid)

    def another_step(ctx: Context, uuid: str) -> dict[str, str]:
        return {"uuid": uuid, "guid": "of version 2"}

    async def deploy(resonate: Resonate, clients: Clients) -> list[str]:  # version 1 is registered
        resonate.register(version_2, name="create_account", version=2)
        run = resonate.options(timeout=DEADLINE).run

        async def guid_of(uuid: str) -> str:
            settled, _ = await clients.settled(promise_id(uuid), lambda: run(promise_id(uuid), version_2, uuid))
            return str((await settled.result())["guid"])

        return [await guid_of(user), await guid_of(f"{user}-2")]

    world.run(user, crash="after save 2")
    assert connected(world, deploy) == [*world.rows(user), "of version 2"]
    assert world.accounts(user) == world.rows(user)


@pytest.mark.parametrize("field", ["ledger", "code"])
def test_other_account_of_the_same_customer_is_no_conflict(world: World, user: str, guid: str, field: str) -> None:
    """TigerBeetle's advice: the accounts of a customer share `user_data_128`, one for each ledger."""
    commit(world, user, guid, **{field: 2})
    run = world.run(user)
    assert run.status == 0
    assert_exists(world, user, run.guid)
