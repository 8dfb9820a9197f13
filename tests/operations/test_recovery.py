"""The loss and the restoration of a store, as docs/operations.md describes them."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from resonate.resonate import Resonate

from create_account import start

from ..conftest import Replica, ServerWorld, World, quick_only, wait_until
from .commands import (
    UNREFERENCED,
    assert_adopted,
    assert_halted,
    assert_refused,
    assert_verdict,
    connected,
    findings,
    load,
    stage,
    unstage,
)
from .test_documented_commands import NAMES, assert_done, documented


@dataclass
class Backups:
    """Backups of a world's stores. Servers are stopped while their files are copied. Rows are read."""

    world: World
    replica: Replica | None = None
    rows: list[tuple[str, str]] = field(default_factory=list)

    def back_up(self, store: str) -> None:
        if store == "SQLite":
            self.rows = self.world.sql("SELECT uuid, guid FROM accounts")
            return
        with self._stopped(store) as files:
            self._copies(store).mkdir()
            for path in files:
                shutil.copy(path, self._copies(store))

    def restore(self, store: str) -> None:
        if store == "SQLite":
            self.world.sql("DELETE FROM accounts")
            for row in self.rows:
                stage(self.world, *row)
            return
        with self._stopped(store) as files:
            for path in files:
                path.unlink()
            for path in self._copies(store).iterdir():
                shutil.copy(path, files[0].parent)

    def _copies(self, store: str) -> Path:
        return self.world.directory / f"backup of {store}"

    @contextlib.contextmanager
    def _stopped(self, store: str) -> Iterator[list[Path]]:
        """Stop the server of the promises or of TigerBeetle, if there is one, and yield its files."""
        if store == "promises" and isinstance(self.world, ServerWorld):
            self.world.kill_resonate()
            yield list(self.world.promises.glob("resonate.db*"))
            self.world.restart_resonate()
        elif store == "TigerBeetle" and self.replica:
            self.replica.kill()
            yield list(self.replica.directory.glob("*.tigerbeetle"))
            self.replica.start()
        else:
            yield list(self.world.data.glob({"promises": "promises.db*", "TigerBeetle": "ledger.db*"}[store]))


@pytest.fixture
def backups(world: World) -> Backups:
    """If the world has a real TigerBeetle, only this test uses that."""
    backups = Backups(world)
    if "TB_ADDRESS" in world.env:
        (own := world.directory / "own").mkdir()
        backups.replica = world.stack.enter_context(Replica.started(own))
        world.env["TB_ADDRESS"] = backups.replica.address
    return backups


@pytest.mark.slow
def test_losing_sqlite_and_restoring_an_older_backup(world: World, user: str) -> None:
    """The missing rows are staged again, one by one. No account is created."""
    before = world.run(f"{user}-before").guid
    backups = Backups(world)
    backups.back_up("SQLite")
    after = world.run(f"{user}-after").guid
    world.run(f"{user}-during", crash="after write 3")
    [during] = world.rows(f"{user}-during")

    backups.restore("SQLite")
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
    if row == "lost, too":
        unstage(world, user)
        for again in (False, True):
            assert_refused(world, user, f"does not hold its account {guid}", again=again)
        stage(world, user, guid)
    assert_refused(world, user, f"does not hold its account {guid}", "restore TigerBeetle", "--again")
    assert_adopted(world, user, guid, again=True)
    assert world.run(user).guid == guid


@pytest.mark.slow
def test_restoring_all_three_in_the_order_in_which_they_are_read(backups: Backups, user: str) -> None:
    """The order is promises, TigerBeetle, SQLite. So no restored store refers to data that the next one lacks."""
    world, stores = backups.world, ("promises", "TigerBeetle", "SQLite")
    guids: dict[str, str] = {}
    for store in (*stores, "none"):
        guids[f"{store} created"] = world.run(f"{user} {store} created").guid
        world.run(f"{user} {store} staged", crash="after save 2")
        [guids[f"{store} staged"]] = world.rows(f"{user} {store} staged")
        if store != "none":
            backups.back_up(store)
    for store in stores:
        backups.restore(store)

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

    uuids = load(embedded_world, user, back_up)
    for name in NAMES:
        assert_done(documented("restore", embedded_world, name=name))

    assert {line.partition(":")[0] for line in findings(embedded_world)[1]} <= {"staged"}
    rows = dict(embedded_world.sql("SELECT uuid, guid FROM accounts"))

    async def rerun(resonate: Resonate, _: object) -> list[Any]:
        return await asyncio.gather(*(start(resonate, uuid).result() for uuid in uuids), return_exceptions=True)

    results = connected(embedded_world, rerun)
    panics = {uuid: panic for uuid, panic in zip(uuids, results, strict=True) if isinstance(panic, BaseException)}
    assert {getattr(panic, "condition", panic) for panic in panics.values()} <= {"SQLite exists_diff"}
    for uuid in panics:
        assert_adopted(embedded_world, uuid, rows[uuid])
    number = len(uuids)
    assert findings(embedded_world) == (0, [], f"clean; {number} accounts, {number} rows, 0 in progress")
    assert dict(embedded_world.sql("SELECT uuid, guid FROM accounts")).items() >= rows.items()
