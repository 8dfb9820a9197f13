"""A store that changes while a batch is interrupted: the batch panics exactly where a single run panics."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import tigerbeetle as tb

from clients.errors import Halted, Unavailable
from clients.settings import Settings
from operations.batch import batch_id, create_batch
from operations.create import create
from operations.opening import connect

from ..conftest import ServerWorld, World
from .commands import commit, resolve, script, stage


def interrupt_after(world: World, request: str, *uuids: str) -> None:
    """Run a batch that ends at an outage, directly after this request to the System of Reference is carried out."""

    async def run() -> None:
        async with connect(Settings.read(world.env)) as (resonate, clients):
            real = getattr(clients.reference, f"_{request}")

            async def interrupted(*args: Any) -> Any:
                await real(*args)
                raise Unavailable("interrupted")

            setattr(clients.reference, f"_{request}", interrupted)
            await clients.outages.result_or_raise(create_batch(list(uuids), resonate, clients))

    with pytest.raises(Unavailable, match="interrupted"):
        asyncio.run(run())


def resume(world: World, *uuids: str) -> None:
    """Run the batch to its end, and then the first uuid."""

    async def run() -> None:
        async with connect(Settings.read(world.env)) as (resonate, clients):
            await create_batch(list(uuids), resonate, clients)
            await create(uuids[0], resonate, clients)

    asyncio.run(run())


def test_account_of_another_host_is_a_panic_although_the_batch_has_staged_the_row(embedded_world: World) -> None:
    interrupt_after(embedded_world, "stage_many", "a", "b")
    other = str(tb.id())
    commit(embedded_world, "a", other)

    with pytest.raises(Halted, match="PANIC: ordering violated for uuid 'a'"):
        resume(embedded_world, "a", "b")

    assert embedded_world.accounts("a") == [other]


def test_account_in_a_replaced_ledger_is_a_panic_although_the_account_is_old(embedded_world: World) -> None:
    other, ledger = str(tb.id()), embedded_world.data / "ledger.db"
    commit(embedded_world, "a", other)
    before = ledger.read_bytes()
    embedded_world.lose_ledger()
    commit(embedded_world, "c", str(tb.id()))
    interrupt_after(embedded_world, "rows_of_many", "a", "b")
    embedded_world.lose_ledger()
    ledger.write_bytes(before)

    with pytest.raises(Halted, match="PANIC: ordering violated for uuid 'a'"):
        resume(embedded_world, "a", "b")

    assert embedded_world.accounts("a") == [other]


@pytest.mark.parametrize("value", [None, 5, {"guids": ["1"], "newest": 0}, {"guids": ["1", 2], "newest": "x"}])
def test_batch_that_another_program_resolves_does_not_stop_backfill(embedded_world: World, value: object) -> None:
    resolve(embedded_world, batch_id(["a", "b"]), value)
    done = script(embedded_world, "backfill", stdin="a\nb\n")
    assert done.returncode == 0, done.stderr
    assert "created 2, existing 0" in done.stderr


@pytest.mark.slow
def test_batch_with_more_text_in_its_conflicts_than_the_server_accepts_ends(server_world: ServerWorld) -> None:
    uuids = [f"u{number}" for number in range(300)]
    for uuid in uuids:
        stage(server_world, uuid, f"{uuid}-" + "x" * 10_000)

    done = script(server_world, "backfill", stdin="".join(f"{uuid}\n" for uuid in uuids))

    assert done.returncode == 98, done.stderr
    assert "created 0, existing 0, halted 300, invalid 0" in done.stderr
