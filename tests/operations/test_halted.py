"""`halted`: which accounts are halted, and why? And what a promise that cannot be executed does to each command."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from resonate.types import Value

from clients.account import promise_id
from operations.batch import batch_id

from ..clients.commands import command
from ..conftest import World, numbered, quick_only
from .backfills import run
from .commands import DEADLINE_MS, SPOILED, assert_adopted, assert_verdict, connected, halt, script, spoil

if TYPE_CHECKING:
    from resonate.resonate import Resonate

    from operations.opening import Clients

LACKED = {"func": "create_account", "version": 7, "args": [], "kwargs": {}}


def create_promise(world: World, uuid: str, call: Any, *, task: bool) -> None:
    """Create the uuid's promise as another program might."""
    tags = {"resonate:target": "poll://any@elsewhere"} if task else {}
    connected(
        world, lambda resonate, _: resonate.promises.create(promise_id(uuid), DEADLINE_MS, Value(data=call), tags)
    )


#: What another program can have created under the id of a uuid's promise, and what a run says.
STRANGE: dict[str, tuple[Any, bool, str]] = {
    "a version that this program lacks": (LACKED, True, "function not found"),
    "a function that this program lacks": (LACKED | {"func": "other"}, True, "other"),
    "no function": ({"hello": 1}, True, "invalid task data"),
    "no task": (None, False, "has no task"),
}


@pytest.mark.parametrize("data", quick_only(["no base64"], SPOILED))
@pytest.mark.parametrize("step", ["2", "3"])
def test_single_run_whose_recorded_result_does_not_decode_claims_nothing_about_the_account(
    world: World, user: str, step: str, data: str
) -> None:
    world.run(user, crash=f"after save {step}")
    spoil(world, f"{promise_id(user)}:{step}", SPOILED[data])
    done = command(world, "--steps", user)
    assert (done.returncode, done.stdout) == (1, "")
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"cannot execute promise create-account-{user}: ")
    assert "`python -m operations check` says whether the account exists" in line
    [unread] = [line for line in done.stderr.splitlines() if "cannot be read" in line]
    assert unread.startswith(f"step {step}, ")
    assert len(world.accounts(user)) == (step == "3")


def test_promises_that_cannot_be_executed_are_halted_and_the_rest_is_created(world: World, user: str) -> None:
    """A single run of each ends with the line that backfill prints. One has a recorded result that does not decode."""
    uuids = numbered(user, 10)
    causes = dict.fromkeys(uuids[7:8], "")
    world.run(uuids[7], crash="after save 2")
    spoil(world, f"{promise_id(uuids[7])}:2")
    for uuid, (call, task, cause) in zip(uuids[3:7], STRANGE.values(), strict=True):
        create_promise(world, uuid, call, task=task)
        causes[uuid] = cause
    many = run(world, *uuids)
    assert (many.status, list(many.accounts)) == (98, uuids[:3] + uuids[8:]), many.err
    assert many.counts() == {"created": 5, "existing": 0, "halted": 5, "invalid": 0}
    for uuid, cause in causes.items():
        single = world.run(uuid)
        line = single.err.splitlines()[-1]
        assert (single.status, single.out) == (1, "")
        assert line.startswith(f"cannot execute promise {promise_id(uuid)}: ")
        assert cause in line
        assert "stays pending" in line
        assert line in many.err.splitlines()
        assert world.accounts(uuid) == []
        assert not cause or world.rows(uuid) == []


@pytest.mark.parametrize("strange", STRANGE)
def test_accounts_of_a_batch_that_cannot_be_executed_are_halted_and_the_rest_is_created(
    world: World, user: str, strange: str
) -> None:
    *claimed, other = numbered(user, 3)
    batch = batch_id(claimed)
    call, task, cause = STRANGE[strange]

    async def claim(resonate: Resonate, clients: Clients) -> None:
        tags = {"resonate:target": "poll://any@create-account"} if task else {}
        await resonate.promises.create(batch, DEADLINE_MS, Value(data=call), tags)
        await clients.claims.create(batch, claimed, DEADLINE_MS)

    connected(world, claim)
    for uuids in ([*claimed, other], claimed):
        done = run(world, *uuids)
        assert (done.status, done.counts()["halted"]) == (98, 2), done.err
        assert done.err.count(f"cannot execute promise {batch}: ") == 2
        assert cause in done.err
    assert world.rows(claimed[0]) == world.accounts(claimed[0]) == []
    assert len(world.accounts(other)) == 1


@pytest.mark.parametrize("data", quick_only(["no base64"], SPOILED))
def test_rejected_promise_whose_message_does_not_decode_is_halted(world: World, user: str, data: str) -> None:
    halt(world, user)
    spoil(world, promise_id(user), SPOILED[data])
    single, many = world.run(user), run(world, *numbered(user, 2), user)
    assert (single.status, single.out) == (98, "")
    assert f"promise create-account-{user} is rejected" in single.err.splitlines()[-1]
    assert (many.status, list(many.accounts)) == (98, numbered(user, 2))
    assert single.err.splitlines()[-1] in many.err
    listed = [line for line in script(world, "halted").stdout.splitlines() if user in line]
    assert listed == [f"halted: create-account-{user} is rejected; more: python -m operations check -- {user}"]
    assert_adopted(world, user, again=True)


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
    words = [("halted:", panicked), ("adopted:", adopted), ("halted:", lacked)]
    assert {tuple(line.split()[:2]) for line in lines} == {(word, promise_id(uuid)) for word, uuid in words}
    [line] = [line for line in lines if panicked in line]
    assert f"is rejected: PANIC: {world.reference} exists_diff" in line
    assert line.endswith(f"more: python -m operations check -- {panicked}")
    [line] = [line for line in lines if lacked in line]
    assert "is pending and cannot be executed: function not found: create_account (version 7)" in line
    assert count == "2 halted, 1 adopted"


@pytest.mark.parametrize("state", ["'no JSON'", "x'ff'"], ids=["no JSON", "not UTF-8"])
def test_promise_whose_row_in_promises_db_cannot_be_read_is_halted_and_stops_no_other_account(
    embedded_world: World, user: str, state: str
) -> None:
    spoiled, other = numbered(user, 2)
    for uuid in (spoiled, other):
        embedded_world.run(uuid)
    with contextlib.closing(sqlite3.connect(embedded_world.data / "promises.db")) as db, db:
        db.execute(f"UPDATE origins SET state = {state} WHERE origin = ?", (promise_id(spoiled),))  # noqa: S608
    done = script(embedded_world, "halted")
    assert done.returncode == 98
    line, count = done.stdout.splitlines()
    assert line.startswith(f"halted: {promise_id(spoiled)} is pending and cannot be executed: invalid task data")
    assert count == "1 halted, 0 adopted"
    assert_verdict(embedded_world, spoiled, 0, "exists")
    single = embedded_world.run(spoiled)
    assert single.status == 1
    assert single.err.splitlines()[-1].startswith(f"cannot execute promise {promise_id(spoiled)}: invalid task data")
    many = run(embedded_world, spoiled, other, f"{user}-new")
    assert many.counts() == {"created": 1, "existing": 1, "halted": 1, "invalid": 0}
    with contextlib.closing(sqlite3.connect(embedded_world.data / "promises.db")) as db:
        unchanged = f"SELECT 1 FROM origins WHERE origin = ? AND state = {state}"  # noqa: S608
        assert db.execute(unchanged, (promise_id(spoiled),)).fetchall()


def test_halted_reads_any_number_of_promises(embedded_world: World, user: str) -> None:
    """More promises than a page."""
    assert run(embedded_world, *numbered(user, 1_100)).status == 0
    halt(embedded_world, f"{user}-z")
    done = script(embedded_world, "halted")
    assert done.returncode == 98
    assert done.stdout.splitlines()[-1] == "1 halted, 0 adopted"
