"""A model of the pattern, tested with generated histories.

    pytest tests/test_model.py --seconds 600

Hypothesis generates histories of runs, batches, crashes, losses, restored backups, foreign rows and accounts,
locks, second attempts with another durable id, and days that pass. Each run is a real process, and a crash is a
real SIGKILL. `Oracle` predicts the outcome in plain Python. The stores must agree with it after each event.
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
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import tigerbeetle as tb
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from resonate.resonate import Resonate

from clients.account import owner_of, promise_id
from clients.command.console import Unavailable, log_to_stderr
from clients.opening import Clients
from clients.panic import Panic
from clients.promises import claims
from clients.promises.claims import batch_of
from clients.promises.results import handle_of, read
from clients.settings import Settings
from create_account import DEADLINE, connect, create_account
from operations.batch import complete, create_batch

from .conftest import EmbeddedPostgresWorld, EmbeddedWorld, ServerWorld, World, needs
from .crash import BATCH_POINTS, BATCH_STEPS, POINTS, STEPS, watch, watch_batch

# -- One run, in a process of its own --------------------------------------

#: Forks processes from one that has imported the modules already.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["create_account", "tests.crash", "tests.test_model"])


async def attempt(promise: str, uuid: str, resonate: Resonate, clients: Clients) -> str:
    """Return the outcome of one account: "created GUID", "lost", or the panic's condition."""
    found = await read(resonate, promise)
    if found is not None and (batch := batch_of(found)):
        await complete(batch, uuid, resonate, clients)
        found = await read(resonate, promise)
    if found is not None and found.state != "pending":
        handle = handle_of(found)
    else:
        handle = resonate.options(timeout=DEADLINE).run(promise, create_account, uuid)
    try:
        guid = (await handle.result())["guid"]
    except Panic as panic:
        return panic.condition
    accounts = await clients.record.lookup_accounts([int(guid)])
    return f"created {guid}" if [a.user_data_128 for a in accounts] == [owner_of(uuid)] else "lost"


async def single_run(promise: str, uuid: str) -> str:
    """Return the account's outcome, or "unavailable"."""
    try:
        async with connect(Settings.read(os.environ)) as (resonate, clients):
            return await attempt(promise, uuid, resonate, clients)
    except Unavailable:
        return "unavailable"


async def backfill(*uuids: str) -> str:
    """Return the accounts' outcomes in one line. As the command `backfill`, but one single run after the other."""
    async with connect(Settings.read(os.environ)) as (resonate, clients):
        guids: list[str | None] = [None] * len(uuids)
        if len(uuids) > 1:
            _, guids = await create_batch(list(uuids), resonate, clients)
        return ", ".join(
            [
                f"created {guid}" if guid else await attempt(promise_id(uuid), uuid, resonate, clients)
                for uuid, guid in zip(uuids, guids, strict=True)
            ]
        )


def process(
    answer: Connection,
    env: dict[str, str],
    prepare: Callable[[], None],
    work: Callable[..., Awaitable[str]],
    *arguments: str,
) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(env["DATA_DIR"])
    log_to_stderr(verbose=False)
    claims.REQUESTS_MAX = 1  # so that it is known which promises are settled at a point "between"
    prepare()
    answer.send(asyncio.run(work(*arguments)))  # type: ignore[arg-type]


def run(env: dict[str, str], *what: Any) -> str:
    receiver, sender = PROCESSES.Pipe(duplex=False)
    child = PROCESSES.Process(target=process, args=(sender, env, *what))
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
class Process:
    """What a process meets: the points where it is killed, a locked file, and the guids that it generates."""

    guids: Iterator[str]
    crash: str = ""  # one of POINTS
    batch_crash: str = ""  # one of BATCH_POINTS
    locked: str = ""
    sent: Counter[str] = field(default_factory=Counter)  # requests of batches, by write

    def reach(self, point: str) -> None:
        if point == self.crash:
            raise Stop("killed")

    def reach_in_batch(self, point: str) -> None:
        if point == self.batch_crash:
            raise Stop("killed")

    def send(self, write: str) -> None:
        self.sent[write] += 1
        if self.sent[write] == 2:
            self.reach_in_batch(f"between write {write}")


@dataclass
class Promise:
    guid: str = ""
    created: set[str] = field(default_factory=set)
    recorded: dict[str, str] = field(default_factory=dict)
    settled: str = ""
    claimed_by: tuple[str, ...] = ()  # the uuids of the batch


@dataclass
class Batch:
    created: set[str] = field(default_factory=set)
    recorded: dict[str, Any] = field(default_factory=dict)
    settled: bool = False


@dataclass
class Oracle:
    """The two stores and the promises, and the effects of a run."""

    embedded_promises: bool
    reference: str
    rows: dict[str, str] = field(default_factory=dict)
    accounts: dict[str, str] = field(default_factory=dict)  # the owner's uuid by guid; "" for a foreign account
    promises: dict[str, Promise] = field(default_factory=dict)
    batches: dict[tuple[str, ...], Batch] = field(default_factory=dict)  # by their uuids

    def is_claimed(self, name: str) -> bool:
        promise = self.promises.get(name, Promise())
        return bool(promise.claimed_by) and not promise.settled

    def run(self, name: str, uuid: str, process: Process) -> str:
        return self._until_stop(lambda: self._run(name, uuid, process))

    def backfill(self, uuids: tuple[str, ...], process: Process) -> str:
        return self._until_stop(lambda: self._backfill(uuids, process))

    def _until_stop(self, outcome: Callable[[], str]) -> str:
        begun = {id(workflow): set(workflow.created) for workflow in self._workflows()}
        try:
            return outcome()
        except Stop as stop:
            if self.embedded_promises and str(stop) == "killed":
                # Embedded promises write "step started" together with the step's result.
                for workflow in self._workflows():
                    workflow.created = begun.get(id(workflow), set()) | set(workflow.recorded)
            return str(stop)

    def _workflows(self) -> list[Promise | Batch]:
        return [*self.promises.values(), *self.batches.values()]

    # A single run.

    def _run(self, name: str, uuid: str, process: Process) -> str:
        if self.is_claimed(name):
            self._complete(self.promises[name].claimed_by, process)
        promise = self.promises.get(name, Promise())
        if not promise.settled:
            process.reach("before create the promise")
            self.promises[name] = promise
            process.reach("after create the promise")
            outcome = self._steps(promise, uuid, process)
            process.reach("before settle the promise")
            promise.settled = outcome
            process.reach("after settle the promise")
        if promise.settled.startswith("created") and self.accounts.get(promise.guid) != uuid:
            return "lost"
        return promise.settled

    def _steps(self, promise: Promise, uuid: str, process: Process) -> str:
        for step in STEPS:
            if step not in promise.created:
                process.reach(f"before create {step}")
                promise.created.add(step)
                process.reach(f"after create {step}")
            if step not in promise.recorded:
                guid = promise.guid or next(process.guids)
                result = self._step(step, guid, uuid, process)
                process.reach(f"before save {step}")
                promise.recorded[step] = result
                promise.guid = guid
                process.reach(f"after save {step}")
            if promise.recorded[step]:
                return promise.recorded[step]
        return f"created {promise.guid}"

    def _step(self, step: str, guid: str, uuid: str, process: Process) -> str:
        conflict = "" if step == "1" else self._conflict(step, guid, uuid)
        writes = {
            "1": True,
            "2": not conflict and uuid not in self.rows,
            "3": conflict in ("", "TigerBeetle exists_diff"),
        }
        if writes[step]:
            process.reach(f"before write {step}")
            if (step, process.locked) in (("2", "accounts.db"), ("3", "ledger.db")):
                raise Stop("unavailable")
            if step == "2":
                self.rows[uuid] = guid
            if step == "3":
                self.accounts.setdefault(guid, uuid)
            process.reach(f"after write {step}")
        return conflict

    def _conflict(self, step: str, guid: str, uuid: str) -> str:
        """Return the condition of the panic to which step 2 or 3 leads; empty if it leads to none."""
        held = [account for account, whose in self.accounts.items() if whose == uuid]
        if step == "2":
            same = {(u, g) for u, g in self.rows.items() if u == uuid or g == guid}
            if not same:
                return "ordering violated" if held else ""
            return "" if same == {(uuid, guid)} else f"{self.reference} exists_diff"
        if self.rows.get(uuid) != guid or held not in ([], [guid]):
            return "ordering violated"
        return "" if self.accounts.get(guid, uuid) == uuid else "TigerBeetle exists_diff"

    # A batch.

    def _backfill(self, uuids: tuple[str, ...], process: Process) -> str:
        if len(uuids) > 1 and not self.batches.get(uuids, Batch()).settled:
            self._complete(uuids, process)
        return ", ".join([self._run(f"create-account-{uuid}", uuid, process) for uuid in uuids])

    def _complete(self, uuids: tuple[str, ...], process: Process) -> None:
        """Run the batch of these uuids to its end."""
        reach = process.reach_in_batch
        reach("before create the promise")
        batch = self.batches.setdefault(uuids, Batch())
        reach("after create the promise")
        for step in BATCH_STEPS:
            if step not in batch.created:
                reach(f"before create {step}")
                batch.created.add(step)
                reach(f"after create {step}")
            if step not in batch.recorded:
                result = self._batch_step(step, uuids, batch.recorded, process)
                reach(f"before save {step}")
                batch.recorded[step] = result
                reach(f"after save {step}")
            if batch.recorded["1"] == []:
                break
        reach("before settle the promise")
        batch.settled = True
        reach("after settle the promise")

    def _batch_step(self, step: str, uuids: tuple[str, ...], recorded: dict[str, Any], process: Process) -> Any:
        """Return the claimed uuids, their guids, the conflicts of the rows, or those of the accounts."""
        claimed, guids = recorded.get("1", []), recorded.get("2", {})
        conflicts: dict[str, str] = recorded.get("3", {}) | recorded.get("4", {})
        to_commit = {uuid: guid for uuid, guid in guids.items() if uuid not in conflicts}
        process.reach_in_batch(f"before write {step}")
        result: Any = None
        match step:
            case "1":
                for uuid in uuids:
                    self.promises.setdefault(f"create-account-{uuid}", Promise(claimed_by=uuids))
                    self._send("1", process)
                promises = [(uuid, self.promises[f"create-account-{uuid}"]) for uuid in uuids]
                result = [uuid for uuid, found in promises if found.claimed_by == uuids and not found.settled]
            case "2":
                result = {uuid: next(process.guids) for uuid in claimed}
            case "3":
                if process.locked == "accounts.db":
                    raise Stop("unavailable")
                for uuid, guid in guids.items():
                    if not self._conflict("2", guid, uuid):
                        self.rows[uuid] = guid
                judged = {uuid: self._conflict("2", guid, uuid) for uuid, guid in guids.items()}
                result = {uuid: conflict for uuid, conflict in judged.items() if conflict}
            case "4":
                judged = {uuid: self._conflict("3", guid, uuid) for uuid, guid in to_commit.items()}
                if process.locked == "ledger.db" and set(judged.values()) - {"ordering violated"}:
                    raise Stop("unavailable")
                self.accounts |= {guid: uuid for uuid, guid in to_commit.items() if not judged[uuid]}
                result = {uuid: conflict for uuid, conflict in judged.items() if conflict}
            case "5":
                for uuid in (*to_commit, *conflicts):
                    promise = self.promises[f"create-account-{uuid}"]
                    promise.guid = guids[uuid]
                    promise.settled = conflicts.get(uuid) or f"created {promise.guid}"
                    self._send("5", process)
        process.reach_in_batch(f"after write {step}")
        return result

    def _send(self, write: str, process: Process) -> None:
        if not self.embedded_promises:  # else all promises are written in one transaction
            process.send(write)


# -- Histories -------------------------------------------------------------

USERS = "abcd"

#: The users of a backfill. A list with one user is a single run.
LISTS = ("ab", "ab", "bcd", "dca", "a", "c")

#: Guids that a process may generate: for each of three users a batch of three, and a single run.
GUIDS = 12

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


#: The number of accounts, and of killed processes, by outcome.
OUTCOMES: Counter[str] = Counter()


class History(RuleBasedStateMachine):
    new_world: Callable[[Path], World]

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.world = type(self).new_world(self.directory)
        self.world.data.mkdir(mode=0o700)
        self.embedded = isinstance(self.world, EmbeddedWorld)
        self.oracle = Oracle(embedded_promises=not isinstance(self.world, ServerWorld), reference=self.world.reference)
        self.backup: dict[str, str] | None = None
        self.planned = [str(tb.id()) for _ in range(GUIDS)]
        self.days = self.mischief = 0
        self.name = uuid.uuid4().hex[:12]  # the histories share a ledger

    def teardown(self) -> None:
        self.world.stack.close()
        shutil.rmtree(self.directory)

    @rule(user=st.sampled_from(USERS), second=st.booleans(), crash=st.sampled_from(["", "", *POINTS[:-1]]))
    def run(self, user: str, second: bool, crash: str, locked: str = "") -> None:  # noqa: FBT001
        uuid = f"{self.name}-{user}"
        promise = f"{'again' if second else 'create'}-account-{uuid}"
        if self.oracle.is_claimed(promise):
            crash = ""  # the run completes a batch, and its points are those of `backfill`
        process = Process(iter(self.planned), crash=crash, locked=locked)
        expected = self.oracle.run(promise, uuid, process)
        self.check(expected, crash, watch, single_run, promise, uuid, PATIENCE="1" if locked else "30")

    @rule(users=st.sampled_from(LISTS), crash=st.sampled_from(["", "", *BATCH_POINTS]))
    def backfill(self, users: str, crash: str) -> None:
        uuids = tuple(f"{self.name}-{user}" for user in users)
        # A single run also stages with the function at which a batch passes its write 3.
        crash_of_single_run = crash.replace("3", "2") if crash.endswith("write 3") else ""
        process = Process(iter(self.planned), crash=crash_of_single_run, batch_crash=crash)
        expected = self.oracle.backfill(uuids, process)
        self.check(expected, crash, watch_batch, backfill, *uuids)

    def check(self, expected: str, crash: str, *what: Any, **env: str) -> None:
        """Run the process, and check that it has the expected outcome."""
        env = {"CRASH": crash, "GUID": ",".join(self.planned), "CLOCK_DAYS": str(self.days), "LEASE": "1", **env}
        assert run(self.world.environ() | env, *what) == expected
        for outcome in expected.split(", "):
            kind = "created" if outcome.startswith("created") else outcome
            OUTCOMES[f"{kind} in a backfill" if backfill in what else kind] += 1
        self.planned = [str(tb.id()) for _ in range(GUIDS)]

    @precondition(lambda self: self.embedded)
    @rule(user=st.sampled_from(USERS), second=st.booleans(), file=st.sampled_from(["accounts.db", "ledger.db"]))
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
        self.oracle.batches.clear()

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
        self.insert(f"{self.name}-b", self.planned[0])

    @mischief
    def somebody_elses_row_with_the_next_guid(self) -> None:
        self.insert(f"{self.name}-somebody-else", self.planned[0])

    def insert(self, uuid: str, guid: str) -> None:
        if uuid not in self.oracle.rows and guid not in self.oracle.rows.values():
            self.world.sql("INSERT INTO accounts (uuid, guid) VALUES (?, ?)", uuid, guid)
            self.oracle.rows[uuid] = guid

    @mischief
    def a_foreign_account_under_the_next_guid(self) -> None:
        if self.planned[0] not in self.oracle.accounts:
            account = tb.Account(id=int(self.planned[0]), ledger=2, code=3)
            self.world.ledger(lambda client: client.create_accounts([account]))
            self.oracle.accounts[self.planned[0]] = ""

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
def test_stores_agree_with_the_model(on: str, pytestconfig: pytest.Config, request: pytest.FixtureRequest) -> None:
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
        f"outcomes {OUTCOMES.total()}: {', '.join(f'{number} {outcome}' for outcome, number in OUTCOMES.most_common())}"
    )
