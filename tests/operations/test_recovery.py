"""The loss and the restoration of a store, as docs/operations.md describes them."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from clients.settings import Settings
from create_account import DEADLINE, create_account
from operations.opening import connect

from ..conftest import Replica, ServerWorld, World, quick_only, wait_until
from .commands import (
    UNREFERENCED,
    assert_adopted,
    assert_halted,
    assert_refused,
    assert_verdict,
    findings,
    load,
    stage,
    unstage,
)
from .test_documented_commands import NAMES, assert_done, documented


@dataclass
class Files:
    """Backups of a world's files. Servers are stopped while their files are copied. PostgreSQL's rows are read."""

    world: World
    replica: Replica | None = None
    rows: list[tuple[str, str]] = field(default_factory=list)

    def back_up(self, store: str) -> None:
        if store == "SQLite" and self.world.reference == "PostgreSQL":
            self.rows = self.world.sql("SELECT uuid, guid FROM accounts")
            return
        (self.world.directory / f"backup of {store}").mkdir()
        with self._stopped(store):
            for path in self._of(store):
                shutil.copy(path, self.world.directory / f"backup of {store}")

    def restore(self, store: str) -> None:
        if store == "SQLite" and self.world.reference == "PostgreSQL":
            self.world.sql("DELETE FROM accounts")
            for row in self.rows:
                self.world.sql("INSERT INTO accounts (uuid, guid) VALUES (?, ?)", *row)
            return
        with self._stopped(store):
            directory = self._of(store)[0].parent
            for path in self._of(store):
                path.unlink()
            for path in (self.world.directory / f"backup of {store}").iterdir():
                shutil.copy(path, directory)

    def _of(self, store: str) -> list[Path]:
        if store == "promises" and isinstance(self.world, ServerWorld):
            return list(self.world.promises.glob("resonate.db*"))
        if store == "TigerBeetle" and self.replica:
            return list(self.replica.directory.glob("*.tigerbeetle"))
        name = {"promises": "promises", "TigerBeetle": "ledger", "SQLite": "accounts"}[store]
        return list(self.world.data.glob(f"{name}.db*"))

    @contextlib.contextmanager
    def _stopped(self, store: str) -> Iterator[None]:
        if store == "promises" and isinstance(self.world, ServerWorld):
            self.world.kill_resonate()
            yield
            self.world.restart_resonate()
        elif store == "TigerBeetle" and self.replica:
            self.replica.kill()
            yield
            self.replica.start()
        else:
            yield


@pytest.fixture
def files(world: World) -> Files:
    """The files of a world. If it has a real TigerBeetle, only this test uses that."""
    files = Files(world)
    if "TB_ADDRESS" in world.env:
        (own := world.directory / "own").mkdir()
        files.replica = world.stack.enter_context(Replica.started(own))
        world.env["TB_ADDRESS"] = files.replica.address
    return files


@pytest.mark.slow
def test_losing_sqlite_and_restoring_an_older_backup(world: World, user: str) -> None:
    """The missing rows are staged again, one by one. No account is created."""
    before = world.run(f"{user}-before").guid
    files = Files(world)
    files.back_up("SQLite")
    after = world.run(f"{user}-after").guid
    world.run(f"{user}-during", crash="after write 3")
    [during] = world.rows(f"{user}-during")

    files.restore("SQLite")
    assert world.run(f"{user}-before").guid == before
    assert world.run(f"{user}-after").guid == after  # the command asks TigerBeetle, not SQLite
    assert_halted(world, f"{user}-during", "ordering violated")
    for name, guid in (("after", after), ("during", during)):
        assert_verdict(world, f"{user}-{name}", UNREFERENCED, "unreferenced")
        assert_adopted(world, f"{user}-{name}", guid)


@pytest.mark.parametrize("row", quick_only(["kept"], ["kept", "lost, too"]))
def test_losing_tigerbeetle(world: World, user: str, row: str) -> None:
    """Only `--again` recreates the account, with the same guid. If only the promise has it, the operator stages it."""
    guid = world.run(user).guid
    world.lose_ledger()
    world.run(f"{user}-2")
    run = world.run(user)
    assert (run.status, run.out) == (98, "")
    if row == "lost, too":
        unstage(world, user)
        for again in (False, True):
            assert_refused(world, user, f"does not hold its account {guid}", again=again)
        stage(world, user, guid)
    assert_refused(world, user, f"does not hold its account {guid}", "restore TigerBeetle", "--again")
    assert_adopted(world, user, guid, again=True)
    assert world.run(user).guid == guid


@pytest.mark.slow
def test_restoring_all_three_in_the_order_in_which_they_are_read(files: Files, user: str) -> None:
    """The order is promises, TigerBeetle, SQLite. So no restored store refers to data that the next one lacks."""
    world, stores = files.world, ("promises", "TigerBeetle", "SQLite")
    guids: dict[str, str] = {}
    for store in (*stores, "none"):
        guids[f"{store} created"] = world.run(f"{user} {store} created").guid
        world.run(f"{user} {store} staged", crash="after save 2")
        [guids[f"{store} staged"]] = world.rows(f"{user} {store} staged")
        if store != "none":
            files.back_up(store)
    for store in stores:
        files.restore(store)

    # No account without its row, and no promise without its account.
    _, lines, count = findings(world)
    assert {line.partition(":")[0] for line in lines} == {"staged"}
    assert count == "3 staged; 2 accounts, 6 rows, 1 in progress"
    for name, guid in guids.items():
        uuid = f"{user} {name}"
        match name.split():
            case ["promises", _]:  # all three backups contain it
                assert world.run(uuid).guid == guid
            case ["none", _]:  # no backup contains it, so it is created again
                assert world.run(uuid).status == 0
            case _:
                assert_halted(world, uuid, f"{world.reference} exists_diff")
                assert_adopted(world, uuid, guid)
    assert findings(world) == (0, [], "clean; 8 accounts, 8 rows, 0 in progress")


@pytest.mark.slow
def test_backing_up_in_that_order_while_accounts_are_created(embedded_world: World, user: str) -> None:

    def back_up(uuids: list[str]) -> None:
        for name in NAMES:
            goal = len(uuids) + 30
            wait_until(lambda goal=goal: len(uuids) > goal)  # type: ignore[misc]
            assert_done(documented("backup", embedded_world, name=name))

    uuids = asyncio.run(load(embedded_world, user, back_up))
    for name in NAMES:
        assert_done(documented("restore", embedded_world, name=name))

    assert {line.partition(":")[0] for line in findings(embedded_world)[1]} <= {"staged"}
    rows = dict(embedded_world.sql("SELECT uuid, guid FROM accounts"))
    halted = asyncio.run(rerun(embedded_world, uuids))
    for uuid in halted:
        assert_adopted(embedded_world, uuid, rows[uuid])
    number = len(uuids)
    assert findings(embedded_world) == (0, [], f"clean; {number} accounts, {number} rows, 0 in progress")
    assert dict(embedded_world.sql("SELECT uuid, guid FROM accounts")).items() >= rows.items()


async def rerun(world: World, uuids: list[str]) -> list[str]:
    """Run each uuid again. Returns those that are halted, because SQLite has their row."""
    async with connect(Settings.read(world.env)) as (resonate, _):
        run = resonate.options(timeout=DEADLINE).run
        promises = [run(f"create-account-{uuid}", create_account, uuid).result() for uuid in uuids]
        results = await asyncio.gather(*promises, return_exceptions=True)
    panics = {uuid: panic for uuid, panic in zip(uuids, results, strict=True) if isinstance(panic, BaseException)}
    assert {getattr(panic, "condition", panic) for panic in panics.values()} <= {"SQLite exists_diff"}
    return list(panics)
