"""Programs at the same time, SIGKILL at random, and a disk that fills and empties. Each printed account stays.

pytest -m deep tests/test_storm.py --seconds 600 --seed 1
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from clients.errors import Unavailable
from clients.settings import Settings
from operations.application import Accounts, open_accounts

from .conftest import HANG_S, ServerWorld, World, numbered, wait_until
from .crash import BATCH_POINTS, POINTS, set_limits
from .operations.backfills import run
from .operations.test_worker import worker
from .processes import Process, watch_opened_files

# -- Backfills and single runs ---------------------------------------------

# Backfills with other boundaries over the same uuids, single runs among them, and SIGKILL at random, until all exist. None
# is lost, none exists twice, and no printed line ever changes.

COUNT = 300

#: Uuids in a chunk. A chunk of one is a single run.
CHUNKS = (2, 7, 30, 100)

#: Backfills and single runs at the same time, on a Resonate server. Embedded promises allow one process.
PROCESSES = 4


def assert_traceable(world: World, uuids: list[str], guids: dict[str, str]) -> dict[str, list[str]]:
    """Check the stores between two runs: an account has a row, a uuid has one account, and its guid never changes."""
    accounts = world.all_accounts(uuids)
    # The rows are read after the accounts, because an account is staged before it is committed.
    rows: dict[str, str] = dict(world.sql("SELECT uuid, guid FROM accounts"))
    for uuid, found in accounts.items():
        assert len(found) <= 1, f"{uuid} has {len(found)} accounts"
        assert not found or found == [rows.get(uuid)], f"{uuid}: account {found}, row {rows.get(uuid)}"
    for uuid, guid in guids.items():
        assert rows.get(uuid, guid) == guid, f"{uuid} had {guid} and has {rows[uuid]}"
    guids |= rows
    return accounts


@dataclass
class Storm:
    world: World
    uuids: list[str]
    dice: random.Random
    kills: int = 0
    printed: dict[str, str] = field(default_factory=dict)
    guids: dict[str, str] = field(default_factory=dict)

    def start(self, number: int, *, whole: bool = False) -> Process:
        """Start a backfill of a part of the uuids in any order, or of one uuid. Some create no batches, but single runs.

        Half of them kill themselves at a point of a batch, if they come to this point.
        """
        share = 1 if whole else self.dice.choice((0, 0.2, 0.5, 1))
        lines = self.dice.sample(self.uuids, max(1, int(share * len(self.uuids))))
        if self.dice.random() < 0.5:
            lines.sort(key=self.uuids.index)
        source = self.world.directory / f"lines-{number}"
        source.write_text("".join(f"{uuid}\n" for uuid in lines))
        crash = "" if whole else self.dice.choice(("", self.dice.choice(BATCH_POINTS)))
        env = {"LEASE": "2", "CRASH": crash, "SINGLE_RUNS": self.dice.choice(("", "", "1"))}
        chunk = str(self.dice.choice(CHUNKS))
        return self.world.process("-m", "operations", "backfill", "--chunk", chunk, str(source), env=env)

    def read(self, process: Process) -> None:
        """Check what an ended backfill has printed."""
        out, errors = process.communicate(timeout=HANG_S)
        assert process.returncode in (0, -signal.SIGKILL), errors
        assert "PANIC" not in errors
        assert "Traceback" not in errors
        for line in out.split("\n")[:-1]:  # a kill cuts off the text after the last newline
            uuid, guid = line.split("\t")
            assert self.printed.setdefault(uuid, guid) == guid, f"{uuid} was {self.printed[uuid]} and is {guid}"

    def round(self, count: int) -> None:
        """Run backfills at the same time, and kill each at a random moment if it has not ended.

        The more were killed, the longer they run, so that a storm ends on a slow machine, too.
        """
        running = [self.start(number) for number in range(count)]
        for process in running:
            try:
                process.wait(self.dice.uniform(0.5, 3 + self.kills / 10))
            except subprocess.TimeoutExpired:
                process.kill()
            self.kills += process.wait() == -signal.SIGKILL
            self.read(process)
        accounts = assert_traceable(self.world, self.uuids, self.guids)
        assert all(accounts[uuid] == [guid] for uuid, guid in self.printed.items())

    def end(self) -> None:
        """Run a backfill of all uuids to its end, and check that each has its one account."""
        process = self.start(0, whole=True)
        process.wait(timeout=HANG_S)
        self.read(process)
        assert process.returncode == 0
        accounts = assert_traceable(self.world, self.uuids, self.guids)
        assert accounts == {uuid: [self.printed[uuid]] for uuid in self.uuids}
        assert {uuid: self.guids[uuid] for uuid in self.uuids} == self.printed


@pytest.mark.deep
def test_accounts_survive_kills_of_batches_and_single_runs(
    world: World, user: str, pytestconfig: pytest.Config
) -> None:
    seed: Any = pytestconfig.getoption("seed")
    dice = random.Random(seed)
    end = time.monotonic() + pytestconfig.getoption("seconds")
    shared = isinstance(world, ServerWorld)
    storms = kills = 0
    run(world, user)  # the stores exist from here on
    with worker(world, LEASE="2") if shared else contextlib.nullcontext():
        while not storms or time.monotonic() < end:
            storms += 1
            storm = Storm(world, numbered(f"{user}-{storms}", COUNT), dice)
            while len(storm.printed) < 0.9 * COUNT:
                storm.round(PROCESSES if shared else 1)
            storm.end()
            kills += storm.kills
    print(f"storms {storms}, accounts {storms * COUNT}, kills {kills}, seed {seed}")


# -- Applications ----------------------------------------------------------

# An application with several `open_accounts`, commands beside it, a disk that fills and empties, and kills.

#: A limit for the size of a file under which each write of SQLite fails.
FULL = 3000


async def application(prefix: str) -> None:
    """Create accounts without end: through two connections, and through one for each request."""
    settings = Settings.read(os.environ)

    async def create(accounts: Accounts, uuid: str) -> None:
        while True:
            try:
                print(f"{uuid}\t{await accounts.create(uuid)}", flush=True)
            except Unavailable:
                await asyncio.sleep(0.1)
            else:
                return

    async def connected(accounts: Accounts, name: str) -> None:
        for number in itertools.count():
            await create(accounts, f"{prefix}-{name}-{number}")

    async def per_request() -> None:
        for number in itertools.count():
            try:
                async with open_accounts(settings) as accounts, asyncio.timeout(10):
                    await create(accounts, f"{prefix}-request-{number}")
            except (Unavailable, TimeoutError):
                await asyncio.sleep(0.1)

    async with open_accounts(settings) as one, open_accounts(settings) as two:
        tasks = [
            connected(accounts, f"{name}-{n}") for name, accounts in (("one", one), ("two", two)) for n in range(3)
        ]
        await asyncio.gather(*tasks, per_request())


class Application:
    """The application in a process of its own, with its output."""

    def __init__(self, world: ServerWorld, prefix: str) -> None:
        command = [sys.executable, "-m", "tests.test_storm", prefix]
        env = world.environ() | {"LEASE": "2"}
        self.log = world.directory / f"{prefix}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=log, text=True)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            self.lines.extend(lines)

    def wait_for(self, count: int) -> None:
        """Wait until it has printed some more accounts."""
        goal = len(self.lines) + count
        wait_until(lambda: len(self.lines) >= goal or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()[-2000:]

    def limit(self, size: int) -> None:
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def kill(self) -> dict[str, str]:
        """Kill it, and return the accounts that it has printed."""
        self.process.kill()
        self._reader.join(HANG_S)
        assert self.process.wait() == -signal.SIGKILL, self.log.read_text()[-2000:]
        return dict(line.rstrip("\n").split("\t") for line in self.lines if line.endswith("\n"))


@pytest.mark.deep
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux can change another process's limits")
def test_printed_accounts_survive_full_disks_and_kills(
    server_world: ServerWorld, user: str, pytestconfig: pytest.Config
) -> None:
    world, dice = server_world, random.Random(pytestconfig.getoption("seed"))
    printed: dict[str, str] = {}
    guids: dict[str, str] = {}
    end = time.monotonic() + pytestconfig.getoption("seconds")
    rounds = failed = 0
    while not rounds or time.monotonic() < end:
        rounds += 1
        application = Application(world, f"{user}-{rounds}")
        try:
            application.wait_for(10)
            for number in range(4):
                if dice.random() < 0.7:
                    application.limit(FULL)
                    time.sleep(dice.uniform(0, 1))  # the fault is random
                    application.limit(resource.RLIM_INFINITY)
                uuid = f"{user}-{rounds}-beside-{number}"
                crash = dice.choice(("", "", dice.choice(POINTS)))
                run = world.finish(world.start(uuid, LEASE="2", CRASH=crash))
                assert run.status in (0, -signal.SIGKILL), run.err
                if run.status == 0:
                    printed[uuid] = run.guid
                application.wait_for(dice.randrange(20))
            failed += "this process waits until it recovers" in application.log.read_text()
        finally:
            printed |= application.kill()
        accounts = assert_traceable(world, list(printed), guids)
        assert {uuid: [guid] for uuid, guid in printed.items()} == accounts
    print(f"rounds {rounds}, with a full disk {failed}, accounts {len(printed)}")


if __name__ == "__main__":
    watch_opened_files()
    set_limits()
    asyncio.run(application(sys.argv[1]))
