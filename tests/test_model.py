"""A model of the pattern, tested with generated histories.

    pytest tests/test_model.py --seconds 600

Hypothesis generates histories of runs, crashes, losses, restored backups, foreign rows and accounts, locks,
second attempts with another durable id, and days that pass. Each run is a real process, and a crash is a real
SIGKILL. `Oracle` predicts the outcome in plain Python. The stores must agree with it after each event.
"""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import os
import shutil
import signal
import sqlite3
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import tigerbeetle as tb
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from clients.account import owner_of
from clients.console import Unavailable, log_to_stderr
from clients.panic import Panic
from clients.settings import Settings
from create_account import DEADLINE, connect, create_account

from .child import POINTS, STEPS, watch
from .conftest import EmbeddedPostgresWorld, EmbeddedWorld, ServerWorld, World, needs

# -- One run, in a process of its own --------------------------------------

#: Forks processes from one that has imported the modules already.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["create_account", "tests.child", "tests.test_model"])


async def attempt(promise: str, uuid: str) -> str:
    """Return the outcome of one run: "created GUID", "lost", "unavailable", or the panic's condition."""
    try:
        async with connect(Settings.read(os.environ)) as (resonate, clients):
            handle = resonate.options(timeout=DEADLINE).run(promise, create_account, uuid)
            guid = (await handle.result())["guid"]
            accounts = await clients.record.lookup_accounts([int(guid)])
            return f"created {guid}" if [a.user_data_128 for a in accounts] == [owner_of(uuid)] else "lost"
    except Panic as panic:
        return panic.condition
    except Unavailable:
        return "unavailable"


def process(answer: Connection, env: dict[str, str], promise: str, uuid: str) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(env["DATA_DIR"])
    log_to_stderr(verbose=False)
    watch()
    answer.send(asyncio.run(attempt(promise, uuid)))


def run(env: dict[str, str], promise: str, uuid: str) -> str:
    receiver, sender = PROCESSES.Pipe(duplex=False)
    child = PROCESSES.Process(target=process, args=(sender, env, promise, uuid))
    child.start()
    sender.close()
    outcome = "killed"
    with suppress(EOFError):
        outcome = receiver.recv()
    child.join()
    assert child.exitcode == (-signal.SIGKILL if outcome == "killed" else 0)
    return outcome


# -- The prediction --------------------------------------------------------


class Stop(Exception):
    """The run ends here, with this outcome."""


@dataclass
class Promise:
    guid: str = ""
    created: set[str] = field(default_factory=set)
    recorded: dict[str, str] = field(default_factory=dict)
    settled: str = ""


@dataclass
class Oracle:
    """The two stores and the promises, and the effects of a run."""

    embedded_promises: bool
    reference: str
    rows: dict[str, str] = field(default_factory=dict)
    accounts: dict[str, str] = field(
        default_factory=dict
    )  # the owner's uuid by guid; "" for a foreign account
    promises: dict[str, Promise] = field(default_factory=dict)

    def run(self, name: str, uuid: str, fresh: str, crash: str, locked: str) -> str:
        begun = set(self.promises.get(name, Promise()).created)
        try:
            return self._run(name, uuid, fresh, crash, locked)
        except Stop as stop:
            if self.embedded_promises and str(stop) == "killed" and name in self.promises:
                # Embedded promises write "step started" together with the step's result.
                self.promises[name].created = begun | set(self.promises[name].recorded)
            return str(stop)

    def _run(self, name: str, uuid: str, fresh: str, crash: str, locked: str) -> str:
        def reach(point: str) -> None:
            if point == crash:
                raise Stop("killed")

        reach("before create the promise")
        promise = self.promises.setdefault(name, Promise())
        reach("after create the promise")
        if not promise.settled:
            outcome = self._steps(promise, uuid, fresh, reach, locked)
            reach("before settle the promise")
            promise.settled = outcome
            reach("after settle the promise")
        if promise.settled.startswith("created") and self.accounts.get(promise.guid) != uuid:
            return "lost"
        return promise.settled

    def _steps(
        self, promise: Promise, uuid: str, fresh: str, reach: Callable[[str], None], locked: str
    ) -> str:
        for step in STEPS:
            if step not in promise.created:
                reach(f"before create {step}")
                promise.created.add(step)
                reach(f"after create {step}")
            if step not in promise.recorded:
                result = self._step(step, promise.guid or fresh, uuid, reach, locked)
                reach(f"before record {step}")
                promise.recorded[step] = result
                if step == "1":
                    promise.guid = fresh
                reach(f"after record {step}")
            if promise.recorded[step]:
                return promise.recorded[step]
        return f"created {promise.guid}"

    def _step(self, step: str, guid: str, uuid: str, reach: Callable[[str], None], locked: str) -> str:
        held = [account for account, whose in self.accounts.items() if whose == uuid]
        match step:
            case "1":
                reach("before effect 1")
                reach("after effect 1")
            case "2":
                same = {(u, g) for u, g in self.rows.items() if u == uuid or g == guid}
                if not same:
                    if held:
                        return "ordering violated"
                    self._effect(
                        "2", lambda: self.rows.update({uuid: guid}), reach, locked=locked == "accounts.db"
                    )
                elif same != {(uuid, guid)}:
                    return f"{self.reference} exists_diff"
            case "3":
                if self.rows.get(uuid) != guid or held not in ([], [guid]):
                    return "ordering violated"
                if self.accounts.get(guid, uuid) != uuid:
                    self._effect("3", lambda: None, reach, locked=locked == "ledger.db")
                    return "TigerBeetle exists_diff"
                self._effect(
                    "3", lambda: self.accounts.update({guid: uuid}), reach, locked=locked == "ledger.db"
                )
        return ""

    def _effect(
        self, step: str, write: Callable[[], object], reach: Callable[[str], None], *, locked: bool
    ) -> None:
        reach(f"before effect {step}")
        if locked:
            raise Stop("unavailable")
        write()
        reach(f"after effect {step}")


# -- Histories -------------------------------------------------------------

USERS = "abcd"

#: With more losses and foreign writes than this, all runs of a history panic.
MISCHIEF = 3


def mischief(method: Callable[[Any], None]) -> Callable[[Any], None]:
    """Make the method a rule that runs at most `MISCHIEF` times in a history."""

    @precondition(lambda self: self.mischief < MISCHIEF)
    @rule()
    @functools.wraps(method)
    def limited(self: Any) -> None:
        self.mischief += 1
        method(self)

    return limited


#: The number of runs by outcome.
OUTCOMES: Counter[str] = Counter()


class History(RuleBasedStateMachine):
    new_world: Callable[[Path], World]

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.world = type(self).new_world(self.directory)
        self.world.data.mkdir(mode=0o700)
        self.embedded = isinstance(self.world, EmbeddedWorld)
        self.oracle = Oracle(
            embedded_promises=not isinstance(self.world, ServerWorld), reference=self.world.reference
        )
        self.backup: dict[str, str] | None = None
        self.planned = str(tb.id())
        self.days = self.mischief = 0
        self.name = uuid.uuid4().hex[:12]  # the histories share a ledger

    def teardown(self) -> None:
        self.world.stack.close()
        shutil.rmtree(self.directory)

    @rule(user=st.sampled_from(USERS), second=st.booleans(), crash=st.sampled_from(["", "", *POINTS[:-1]]))
    def run(self, user: str, second: bool, crash: str, locked: str = "") -> None:  # noqa: FBT001
        uuid = f"{self.name}-{user}"
        promise = f"{'again' if second else 'create'}-account-{uuid}"
        expected = self.oracle.run(promise, uuid, self.planned, crash, locked)
        env = self.world.environ() | {
            "CRASH": crash,
            "GUID": self.planned,
            "CLOCK_DAYS": str(self.days),
            "LEASE": "1",
            "PATIENCE": "1" if locked else "30",
        }
        assert run(env, promise, uuid) == expected
        OUTCOMES[expected.split()[0] if expected.startswith("created") else expected] += 1
        self.planned = str(tb.id())

    @precondition(lambda self: self.embedded)
    @rule(
        user=st.sampled_from(USERS), second=st.booleans(), file=st.sampled_from(["accounts.db", "ledger.db"])
    )
    def run_while_a_store_is_locked(self, user: str, second: bool, file: str) -> None:  # noqa: FBT001
        if (self.world.data / file).exists():
            with locked(self.world.data / file):
                self.run(user, second, "", file)

    @precondition(lambda self: self.embedded)
    @rule()
    def two_days_go_by(self) -> None:
        self.days += 2

    @mischief
    def the_promises_are_lost(self) -> None:
        self.world.lose_promises()
        self.oracle.promises.clear()

    @mischief
    def sqlite_is_lost(self) -> None:
        self.world.lose_sqlite()
        self.oracle.rows.clear()

    @rule()
    def sqlite_is_backed_up(self) -> None:
        self.backup = dict(self.oracle.rows)

    @precondition(lambda self: self.backup is not None)
    @mischief
    def sqlite_is_restored(self) -> None:
        assert self.backup is not None
        self.world.sql("DELETE FROM accounts")
        for row in self.backup.items():
            self.world.sql("INSERT INTO accounts (uuid, guid) VALUES (?, ?)", *row)
        self.oracle.rows = dict(self.backup)

    @mischief
    def a_foreign_row(self) -> None:
        self.insert(f"{self.name}-a", str(tb.id()))

    @mischief
    def a_foreign_row_with_the_next_guid(self) -> None:
        self.insert(f"{self.name}-b", self.planned)

    @mischief
    def somebody_elses_row_with_the_next_guid(self) -> None:
        self.insert(f"{self.name}-somebody-else", self.planned)

    def insert(self, uuid: str, guid: str) -> None:
        if uuid not in self.oracle.rows and guid not in self.oracle.rows.values():
            self.world.sql("INSERT INTO accounts (uuid, guid) VALUES (?, ?)", uuid, guid)
            self.oracle.rows[uuid] = guid

    @mischief
    def a_foreign_account_under_the_next_guid(self) -> None:
        if self.planned not in self.oracle.accounts:
            account = tb.Account(id=int(self.planned), ledger=2, code=3)
            self.world.ledger(lambda client: client.create_accounts([account]))
            self.oracle.accounts[self.planned] = ""

    @invariant()
    def the_stores_hold_what_they_must(self) -> None:
        rows = dict(self.world.sql("SELECT uuid, guid FROM accounts"))
        assert rows == self.oracle.rows
        uuids = [f"{self.name}-{user}" for user in USERS]
        accounts = self.world.all_accounts(uuids) if self.oracle.accounts else {}
        for uuid_, guids in accounts.items():
            assert len(guids) <= 1, "a second account"
            assert guids == [guid for guid, whose in self.oracle.accounts.items() if whose == uuid_]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")  # as a run leaves it, so that the next run can open the file
        db.execute("BEGIN IMMEDIATE")
        yield


@pytest.mark.slow
@pytest.mark.parametrize("on", ["embedded", "postgres", "tigerbeetle", "servers"])
def test_stores_agree_with_the_model(
    on: str, pytestconfig: pytest.Config, request: pytest.FixtureRequest
) -> None:
    address = "" if on in ("embedded", "postgres") else request.getfixturevalue("tb_address")
    if on == "servers":
        needs("resonate")

    def new_world(directory: Path) -> World:
        kinds: dict[str, type[World]] = {
            "embedded": EmbeddedWorld,
            "postgres": EmbeddedPostgresWorld,
            "tigerbeetle": World,
            "servers": ServerWorld,
        }
        world = kinds[on](directory, {"DATA_DIR": str(directory / "data")})
        if on == "postgres":
            world.env["REFERENCE_URL"] = request.getfixturevalue("postgres").database()
        if address:
            world.env["TB_ADDRESS"] = address
        if isinstance(world, ServerWorld):
            world.start_resonate()
        return world

    machine = type("History", (History,), {"new_world": staticmethod(new_world)})
    quickly = settings(
        max_examples=10 if address == "" else 3,  # per call, after which the loop compares the time
        stateful_step_count=20,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    end = time.monotonic() + pytestconfig.getoption("seconds")
    OUTCOMES.clear()
    while not OUTCOMES or time.monotonic() < end:
        run_state_machine_as_test(machine, settings=quickly)
    print(
        f"runs {OUTCOMES.total()}: {', '.join(f'{number} {outcome}' for outcome, number in OUTCOMES.most_common())}"
    )
