"""An application with several `open_accounts`, commands beside it, a disk that fills and empties, and kills.

Each account that was printed has its row and its account, whatever happens afterwards.

pytest -m deep tests/test_storm_of_applications.py --seconds 600 --seed 1
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest

from clients.errors import Unavailable
from clients.settings import Settings
from operations.application import Accounts, open_accounts

from .conftest import HANG_S, ServerWorld, wait_until
from .crash import POINTS, set_limits
from .processes import watch_opened_files
from .test_storm import assert_traceable

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
        command = [sys.executable, "-m", "tests.test_storm_of_applications", prefix]
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
