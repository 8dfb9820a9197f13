"""How fast: `python benchmarks/run.py` runs the contenders in turn, several rounds, and prints the medians.

A contender creates accounts in a process of its own, with new stores; a real TigerBeetle, a real Resonate
server, or both are used where TB_ADDRESS and RESONATE_URL name them. Only ratios within one run travel to
another machine, so each line ends with its ratio to `raw`: INSERT, commit, create_accounts, and nothing
durable in between.

    python benchmarks/run.py                     # the table
    python benchmarks/run.py --long 100000       # one long run: flatness, memory
    python benchmarks/run.py --behind 100000     # what finished accounts cost those that come after
"""

from __future__ import annotations

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import argparse
import asyncio
import json
import os
import platform
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import tigerbeetle as tb
from resonate.resonate import Resonate
from resonate.retry import Never

from create_account import DEADLINE, connect, create_account, owner
from embedded import EmbeddedPromises
from settings import Settings, open_clients
from stores import Database, SystemOfReference

type Create = Callable[[str], Awaitable[Any]]

# -- Contenders ------------------------------------------------------------


async def raw(count: int, in_flight: int) -> list[float]:
    settings = Settings.read(os.environ)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    async with open_clients(settings) as clients:
        with closing(sqlite3.connect(settings.data_dir / "accounts.db", isolation_level=None)) as db:
            db.execute("PRAGMA synchronous=FULL")

            async def create(uuid: str) -> None:
                guid = tb.id()
                db.execute("INSERT INTO accounts (uuid, guid) VALUES (?, ?)", (uuid, str(guid)))
                account = tb.Account(id=guid, ledger=1, code=1, user_data_128=owner(uuid))
                [result] = await clients.record.create_accounts([account])
                assert result.status == tb.CreateAccountStatus.CREATED

            return await timed(create, count, in_flight)


async def ours(count: int, in_flight: int) -> list[float]:
    async with connect(Settings.read(os.environ)) as (resonate, clients):

        async def create(uuid: str) -> None:
            promise = resonate.options(timeout=DEADLINE).run(f"create-account-{uuid}", create_account, uuid)
            await clients.outages.race(promise.result())

        return await timed(create, count, in_flight)


async def memory(count: int, in_flight: int) -> list[float]:
    """The same steps on the SDK's own in-process engine, whose promises are gone with the process."""
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


# -- Measuring -------------------------------------------------------------


def measure(
    name: str, count: int, in_flight: int, env: Mapping[str, str], data: Path | None = None
) -> dict[str, float]:
    """Run a contender in a process of its own and return its figures."""
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            [
                sys.executable,
                __file__,
                "--contender",
                name,
                "--count",
                str(count),
                "--in-flight",
                str(in_flight),
            ],
            env={**env, "DATA_DIR": str(data or directory)},
            stdout=subprocess.PIPE,
            check=True,
        )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def contend(name: str, count: int, in_flight: int) -> None:
    started = time.perf_counter()
    done = asyncio.run({"raw": raw, "ours": ours, "memory": memory}[name](count, in_flight))
    tenth = max(len(done) // 10, 1)
    figures = {
        "rate": len(done) / done[-1],
        "first_tenth": tenth / done[tenth - 1],
        "last_tenth": tenth / (done[-1] - done[-tenth - 1]) if len(done) > tenth else len(done) / done[-1],
        "start": time.perf_counter() - started - done[-1],
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(figures))


def places() -> dict[str, dict[str, str]]:
    """Return the environments to measure in: embedded, and the servers that are set."""
    plain = {name: value for name, value in os.environ.items() if name not in ("TB_ADDRESS", "RESONATE_URL")}
    found = {"embedded": plain}
    if address := os.environ.get("TB_ADDRESS"):
        found["TigerBeetle"] = plain | {"TB_ADDRESS": address}
        if url := os.environ.get("RESONATE_URL"):
            found["TigerBeetle and Resonate"] = plain | {"TB_ADDRESS": address, "RESONATE_URL": url}
    return found


def table(count: int, rounds: int) -> None:
    lines: list[tuple[str, str, str, int, int]] = []
    for place in places():
        for in_flight in (1, 64):
            if "Resonate" not in place:
                lines.append(("raw", place, "raw", count, in_flight))
                lines.append(("in memory, SDK", place, "memory", 200, in_flight))
            lines.append(("durable, ours", place, "ours", count, in_flight))
    rates: dict[int, list[float]] = {number: [] for number in range(len(lines))}
    for _ in range(rounds):
        for number, (_, place, name, accounts, in_flight) in enumerate(lines):
            rates[number].append(measure(name, accounts, in_flight, places()[place])["rate"])
    print(
        "| ledger and promises | contender | accounts | in flight | accounts/s, median | ratio to raw |\n|---|---|---|---|---|---|"
    )
    medians = {number: statistics.median(values) for number, values in rates.items()}
    for number, (label, place, _, accounts, in_flight) in enumerate(lines):
        like = place.removesuffix(" and Resonate")
        base = next(
            medians[n] for n, line in enumerate(lines) if line[1:3] == (like, "raw") and line[4] == in_flight
        )
        print(
            f"| {place} | {label} | {accounts:,} | {in_flight} | {medians[number]:,.0f} | {medians[number] / base:.2f} |"
        )


def long(count: int) -> None:
    for place, env in places().items():
        if "Resonate" in place:
            continue
        figures = measure("ours", count, 64, env)
        print(
            f"{place}: {count:,} accounts, {figures['rate']:,.0f} accounts/s; the last tenth at "
            f"{figures['last_tenth'] / figures['first_tenth']:.2f} of the first; {figures['megabytes']:.0f} MB"
        )


def behind(count: int, rounds: int) -> None:
    for place, env in places().items():
        if "Resonate" in place:
            continue
        with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryDirectory() as full:
            asyncio.run(finish(Path(full), count))
            figures: dict[str, list[dict[str, float]]] = {empty: [], full: []}
            for _ in range(rounds):
                for directory, rows in figures.items():
                    rows.append(measure("ours", 1000, 64, env, Path(directory)))
            for what in ("rate", "start"):
                before, after = (statistics.median(row[what] for row in figures[d]) for d in (empty, full))
                print(
                    f"{place}: {what} with {count:,} finished accounts behind it: {after / before:.2f} of without"
                )


async def finish(directory: Path, count: int) -> None:
    """Fill the files with finished accounts: one is created, and the others are its copies."""
    env = {"DATA_DIR": str(directory)}
    async with connect(Settings.read(env)) as (resonate, _):
        account = await resonate.run("create-account-0", create_account, "0").result()
    promises = await Database(directory / "promises.db", EmbeddedPromises.SCHEMA).open()
    [(state,)] = await promises.read("SELECT state FROM origins")
    copies = [
        (f"create-account-{n}", state.replace("create-account-0", f"create-account-{n}"))
        for n in range(1, count)
    ]
    await promises.transact(lambda db: db.executemany("INSERT INTO origins VALUES (?, ?)", copies) and None)
    await promises.close()
    rows = [(str(n), str(int(account["guid"]) - n)) for n in range(1, count)]
    accounts = await Database(directory / "accounts.db", SystemOfReference.SCHEMA).open()
    await accounts.transact(lambda db: db.executemany("INSERT INTO accounts VALUES (?, ?)", rows) and None)
    await accounts.close()
    ledger = await Database(directory / "ledger.db", "").open()
    [row] = await ledger.read("SELECT * FROM accounts")
    others = [
        (str(int(row[0]) - n), *row[1:5], str(owner(str(n))), *row[6:-1], row[-1] - n)
        for n in range(1, count)
    ]
    marks = ", ".join("?" * len(row))
    await ledger.transact(
        lambda db: db.executemany(f"INSERT INTO accounts VALUES ({marks})", others) and None  # noqa: S608
    )
    await ledger.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure account creation.")
    parser.add_argument("--count", type=int, default=2000, help="accounts of a contender in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--long", type=int, metavar="N", help="one run of N accounts")
    parser.add_argument("--behind", type=int, metavar="N", help="runs with N finished accounts behind them")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--in-flight", type=int, default=64, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        contend(arguments.contender, arguments.count, arguments.in_flight)
        return
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    )
    if arguments.long:
        long(arguments.long)
    elif arguments.behind:
        behind(arguments.behind, arguments.rounds)
    else:
        table(arguments.count, arguments.rounds)


if __name__ == "__main__":
    main()
