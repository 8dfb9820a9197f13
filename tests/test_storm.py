"""Many accounts in flight and SIGKILL at random, until all exist. None is lost, and none exists twice.

pytest tests/test_storm.py --seconds 600 --seed 1
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time

import pytest

from .conftest import World, wait_until

COUNT = 300


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


@pytest.mark.slow
def test_accounts_survive_kills_at_random(world: World, user: str, pytestconfig: pytest.Config) -> None:
    seed = pytestconfig.getoption("seed")
    dice = random.Random(seed)
    end = time.monotonic() + pytestconfig.getoption("seconds")
    output = world.directory / "output"
    storms = kills = 0
    while not storms or time.monotonic() < end:
        storms += 1
        prefix = f"{user}-{storms}"
        uuids = [f"{prefix}-{number}" for number in range(COUNT)]
        guids: dict[str, str] = {}
        done: dict[str, str] = {}
        while True:
            with output.open("w") as file:
                process = subprocess.Popen(
                    [sys.executable, "-m", "tests.storm", prefix, str(COUNT)],
                    env=world.environ() | {"LEASE": "2"},
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            wait_until(lambda: "started\n" in output.read_text())
            try:
                process.wait(dice.uniform(0, 0.5 + len(done) / COUNT))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
            for line in output.read_text().split("\n")[:-1]:  # text after the last newline was cut off by the kill
                if line.startswith(prefix):
                    uuid, guid = line.split()
                    assert done.setdefault(uuid, guid) == guid, f"{uuid} was {done[uuid]} and is {guid}"
            accounts = assert_traceable(world, uuids, guids)
            if process.returncode != -signal.SIGKILL:
                assert process.returncode == 0, output.read_text()
                break
        assert accounts == {uuid: [guid] for uuid, guid in done.items()}
        assert set(done) == set(uuids)
        assert {uuid: guids[uuid] for uuid in uuids} == done
    print(f"storms {storms}, accounts {storms * COUNT}, kills {kills}, seed {seed}")
