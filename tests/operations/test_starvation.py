"""Nothing starves: a promise that a process cannot execute, or that another one holds, delays no other account.

The leases are longer than a test. So a process that keeps a lease which it cannot use is a hang.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import pytest
from resonate.types import Value

from clients.account import promise_id

from ..conftest import HANG_S, ServerWorld, World, assert_accounts_exist, numbered, wait_until
from .backfills import backfill, done, run
from .commands import DEADLINE_MS, spoil
from .test_worker import TARGET, ask, caller, worker

LONG = str(10 * HANG_S)
CALL = {"func": "create_account", "args": ["u"], "kwargs": {}, "version": 1}

#: What no process here can execute.
POISON: dict[str, Any] = {
    "another function": CALL | {"func": "poison"},
    "another version": CALL | {"version": 7},
    "no call": {"hello": 1},
}


def poison(world: World, calls: dict[str, Any]) -> None:
    """Create each uuid's promise with this call, for the workers."""

    async def main() -> None:
        async with caller(world) as resonate:
            for uuid, call in calls.items():
                tags = {"resonate:target": TARGET}
                await resonate.promises.create(promise_id(uuid), DEADLINE_MS, Value(data=call), tags)

    asyncio.run(main())


@pytest.mark.parametrize("kind", [*POISON, "a recorded result that does not decode"])
def test_run_and_backfill_say_at_once_that_nobody_can_execute_a_promise_although_workers_are_offered_it(
    server_world: ServerWorld, user: str, kind: str
) -> None:
    uuids = numbered(user, 3)
    if kind not in POISON:
        server_world.run(uuids[1], crash="after save 2")
        spoil(server_world, f"{promise_id(uuids[1])}:2")
    with worker(server_world, LEASE=LONG) as serving:
        poison(server_world, {uuids[1]: POISON[kind]} if kind in POISON else {})
        wait_until(lambda: bool(serving.said(f"cannot run {promise_id(uuids[1])}")))
        single = server_world.run(uuids[1], LEASE=LONG)
        many = run(server_world, *uuids)
    assert single.status == 1
    assert f"cannot execute promise {promise_id(uuids[1])}: " in single.err
    assert (many.status, list(many.accounts)) == (98, [uuids[0], uuids[2]]), many.err
    assert many.counts()["halted"] == 1
    assert server_world.accounts(uuids[1]) == []


def test_worker_leaves_a_task_that_it_cannot_execute_to_a_worker_that_can(server_world: ServerWorld, user: str) -> None:
    uuids = numbered(user, 40)
    with worker(server_world, FORGET="create_account", LEASE=LONG) as older, worker(server_world, LEASE=LONG):
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
    """For more accounts: `STORM_ACCOUNTS=10000 pytest -n0 -s -m deep tests/operations/test_starvation.py`."""
    count = int(os.environ.get("STORM_ACCOUNTS", "300"))
    uuids = numbered(user, count)
    kinds = list(POISON.values())
    poisoned = {uuid: kinds[number % len(kinds)] for number, uuid in enumerate(uuids[50::100])}
    healthy = [uuid for uuid in uuids if uuid not in poisoned]
    requested = healthy[::10]  # by name, from the workers
    with worker(server_world, LEASE=LONG), worker(server_world, LEASE=LONG), worker(server_world, LEASE=LONG):
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
