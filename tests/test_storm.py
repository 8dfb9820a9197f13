"""Backfills with other boundaries over the same uuids, single runs among them, and SIGKILL at random, until all exist.

None is lost, none exists twice, and no printed line ever changes.

pytest -m deep tests/test_storm.py --seconds 600 --seed 1
"""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from .conftest import HANG_S, ServerWorld, World, numbered
from .crash import BATCH_POINTS
from .operations.backfills import run
from .operations.test_worker import worker
from .processes import Process

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
