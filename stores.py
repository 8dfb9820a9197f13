"""The two stores' clients, as the steps of create_account.py get them.

Each is the real client, `sqlite3` or `tigerbeetle`, and one rule: **trouble settles no durable promise**.
A store that is locked, full, gone or being closed makes a step raise the SDK's `PlatformError`, which
releases the step's task and leaves its promise pending, so that the next run goes on at that step.
`Outages` is where whoever waits for the workflow's result hears of it.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, Self

import tigerbeetle as tb
from resonate.error import ConnectorError, PlatformError

from console import note

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from pathlib import Path

#: Seconds that a store or server has for its first answer.
REACH = 5.0

#: Seconds without an answer after which a run gives up; the next one goes on where it stopped.
PATIENCE = 30.0


#: Seconds after which a worker, which does not give up, tries what has failed again.
PAUSE = 0.5


class Unavailable(Exception):
    """A store or server cannot be used now. The message is one line: what, why, and the way out."""


class Outages:
    """The first outage of a run, for whoever waits for the run's result.

    A worker has no result to wait for. It sets `endless`: its steps wait until an outage is over, and one
    line on stderr says that it began, one that it is over.
    """

    def __init__(self) -> None:
        self.endless = False
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ongoing: set[str] = set()

    def report(self, outage: Unavailable, store: str = "") -> None:
        if self.endless:
            if store not in self._ongoing:
                self._ongoing.add(store)
                note(f"{outage}; this worker waits for it")
        elif not self._first.done():
            self._first.set_exception(outage)
            self._first.exception()  # seen: nobody may be waiting

    def over(self, store: str) -> None:
        if store in self._ongoing:
            self._ongoing.remove(store)
            note(f"{store.rstrip(',')}: the outage is over")

    async def keep_pending[T](self, store: str, request: Callable[[], Awaitable[T]]) -> T:
        """Return the answer. An outage is reported, and leaves the step's durable promise pending."""
        while True:
            try:
                return await request()
            except Unavailable as outage:
                self.report(outage, store)
                if not self.endless:
                    raise PlatformError([ConnectorError(outage)]) from outage
            await asyncio.sleep(PAUSE)

    async def race[T](self, result: Coroutine[Any, Any, T]) -> T:
        """Return `result`, or raise the `Unavailable` that keeps it from coming."""
        task = asyncio.create_task(result)
        try:
            either: set[asyncio.Future[Any]] = {task, self._first}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not task.done() or (self._first.done() and task.exception() is not None):
                await self._first
            return await task
        finally:
            task.cancel()


class Shared[Q, A]:
    """Answers at once, next, whatever was asked for while it was busy with the last."""

    def __init__(self, answer: Callable[[list[Q]], Coroutine[Any, Any, list[A]]]) -> None:
        self._answer = answer
        self._waiting: list[tuple[Q, asyncio.Future[A]]] = []
        self._busy: asyncio.Task[None] | None = None

    async def ask(self, question: Q) -> A:
        """Return the answer, or raise what all who shared it get."""
        done: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, done))
        if self._busy is None:
            self._busy = asyncio.create_task(self._answer_waiting())
        return await done

    async def rest(self) -> None:
        """Wait until nothing is asked for."""
        if self._busy is not None:
            await asyncio.wait({self._busy})  # which, unlike `await`, passes no cancellation on to it

    async def _answer_waiting(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                answers = await self._answer([question for question, _ in batch])
            except Exception as error:  # noqa: BLE001 - it goes to those who asked
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
            else:
                for (_, done), answer in zip(batch, answers, strict=True):
                    if not done.done():
                        done.set_result(answer)
        self._busy = None


# -- SQLite ----------------------------------------------------------------

WAYS_OUT = {
    sqlite3.SQLITE_CANTOPEN: "make DATA_DIR a directory that you may write and run again",
    sqlite3.SQLITE_CORRUPT: "restore it from a backup",
    sqlite3.SQLITE_FULL: "free some disk space and run again",
    sqlite3.SQLITE_NOTADB: "move the file away or choose another DATA_DIR",
    sqlite3.SQLITE_READONLY: "make the file and its directory writable and run again",
}


def open_private(path: Path) -> int:
    """Open a file, made with its directory where they are not there, for its owner alone; a descriptor."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise Unavailable(f"cannot open {path}: {error}; {WAYS_OUT[sqlite3.SQLITE_CANTOPEN]}") from error


#: What to do, and whether it writes.
type Transaction = tuple[Callable[[sqlite3.Connection], Any], bool]


class Database:
    """One SQLite file, of which neither a lock nor a sync to disk stops the event loop.

    Whatever was asked for while a transaction was being committed shares the next one, and so its sync
    (`synchronous=FULL`: what has been answered survives a power cut). An answer comes after the commit.
    Statements take microseconds, less than handing them to another thread; the commit is another thread's.
    """

    def __init__(self, path: Path, schema: str, patience: float | None = None) -> None:
        self.path = path
        self._schema = schema
        self._patience = PATIENCE if patience is None else patience
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=path.name)
        self._transactions = Shared(self._commit_patiently)
        self._db: sqlite3.Connection | None = None
        self._closed = False
        self.hurried = False  # a lock is not waited for any more

    async def open(self) -> Self:
        """Create the file where there is none, readable by its owner alone, and open it."""
        await self._patiently(functools.partial(self._on_thread, self._connect), REACH)
        return self

    async def close(self) -> None:
        """Refuse what comes, answer what waits, and let go of the file. May be called again."""
        self._closed = True
        await self._transactions.rest()
        if self._db is not None:
            await self._on_thread(self._db.close)
            self._db = None
        self._thread.shutdown()

    async def read(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Return the rows."""
        return await self.transact(lambda db: db.execute(sql, parameters).fetchall(), writes=False)

    async def write(self, sql: str, *parameters: Any) -> int:
        """Return how many rows were written, once they are on disk."""
        return await self.transact(lambda db: db.execute(sql, parameters).rowcount)

    async def transact[T](self, work: Callable[[sqlite3.Connection], T], *, writes: bool = True) -> T:
        """Run `work` in a transaction and return its result, once that has committed.

        Raises `Unavailable` where SQLite cannot: nothing of `work` is known to be kept then.
        """
        if self._closed:
            raise Unavailable(f"{self.path} is being closed; run again to go on")
        result: T = await self._transactions.ask((work, writes))
        return result

    def _connect(self) -> None:
        os.close(open_private(self.path))
        # isolation_level=None: transactions begin where this class says so, not where sqlite3 guesses.
        db = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("PRAGMA wal_checkpoint")  # what a killed process has written may not be synced yet
            db.executescript(self._schema)
        except sqlite3.Error:
            db.close()
            raise
        self._db = db

    async def _commit_patiently(self, batch: list[Transaction]) -> list[Any]:
        return await self._patiently(functools.partial(self._commit, batch), self._patience)

    async def _commit(self, batch: list[Transaction]) -> list[Any]:
        db = self._db
        if db is None:
            raise Unavailable(f"{self.path} is closed; run again to go on")
        writes = any(writes for _, writes in batch)
        db.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
        try:
            results = [work(db) for work, _ in batch]
            if writes:
                await self._on_thread(functools.partial(db.execute, "COMMIT"))
            else:
                db.execute("COMMIT")
        except Exception:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        return results

    async def _on_thread[T](self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _patiently[T](self, attempt: Callable[[], Awaitable[T]], patience: float) -> T:
        """Make the attempt; while another process has the file locked, make it again."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + patience
        while True:
            try:
                return await attempt()
            except sqlite3.Error as error:
                primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
                if primary not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    way_out = WAYS_OUT.get(primary, "see to the file and run again")
                    raise Unavailable(f"cannot use {self.path}: {error}; {way_out}") from error
                if loop.time() > give_up or self._closed or self.hurried:
                    raise Unavailable(
                        f"{self.path} is locked by another process; end that process and run again"
                    ) from error
                await asyncio.sleep(0.005)


class SystemOfReference:
    """SQLite. A row `(uuid, guid)` stages an account; it decides nothing."""

    SCHEMA = "CREATE TABLE IF NOT EXISTS accounts (uuid TEXT PRIMARY KEY, guid TEXT NOT NULL UNIQUE)"

    def __init__(self, database: Database, outages: Outages) -> None:
        self._database = database
        self._name = str(database.path)
        self._outages = outages

    async def read(self, sql: str, *parameters: str) -> list[tuple[Any, ...]]:
        """Return the rows."""
        return await self._outages.keep_pending(self._name, lambda: self._database.read(sql, *parameters))

    async def write(self, sql: str, *parameters: str) -> int:
        """Return how many rows were written, once they are on disk."""
        count = await self._outages.keep_pending(self._name, lambda: self._database.write(sql, *parameters))
        self._outages.over(self._name)  # a full disk can still be read
        return count


# -- TigerBeetle -----------------------------------------------------------


#: Of 2^128 - 1.
DIGITS = 39


class Ledger(Protocol):
    """The requests that the example makes, as `tigerbeetle.ClientAsync` and `EmbeddedLedger` answer them."""

    def create_accounts(
        self, accounts: list[tb.Account], /
    ) -> Coroutine[Any, Any, list[tb.CreateAccountResult]]: ...
    def lookup_accounts(self, accounts: list[int], /) -> Coroutine[Any, Any, list[tb.Account]]: ...
    def query_accounts(self, query_filter: tb.QueryFilter, /) -> Coroutine[Any, Any, list[tb.Account]]: ...
    async def close(self) -> None: ...


def owned_by(owner: int) -> tb.QueryFilter:
    flags = tb.QueryFilterFlags.NONE
    return tb.QueryFilter(owner, 0, 0, 0, 0, timestamp_min=0, timestamp_max=0, limit=10, flags=flags)


class SystemOfRecord:
    """TigerBeetle. The account exists if, and only if, it exists here."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[Ledger]],
        name: str,
        outages: Outages,
        patience: float | None = None,
    ) -> None:
        self._connect = connect
        self._name = name
        self._outages = outages
        self._patience = PATIENCE if patience is None else patience
        self._client: Ledger | None = None
        self._creating = Shared(self._create)

    async def open(self) -> Self:
        """Connect, and wait for the first answer."""
        self._client = await self._connect()
        await self._ask(lambda client: client.lookup_accounts([0]), REACH)
        return self

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def create_accounts(self, accounts: list[tb.Account]) -> list[tb.CreateAccountResult]:
        for account in accounts:
            tb.CAccount.from_param(account)  # what cannot be sent fails here, and not with its neighbours
        return await self._outages.keep_pending(self._name, lambda: self._creating.ask(accounts))

    async def _create(self, asked: list[list[tb.Account]]) -> list[list[tb.CreateAccountResult]]:
        together = [account for accounts in asked for account in accounts]
        results = iter(await self._ask(lambda client: client.create_accounts(together), self._patience))
        return [[next(results) for _ in accounts] for accounts in asked]

    async def lookup_accounts(self, ids: list[int]) -> list[tb.Account]:
        return await self._pending(lambda client: client.lookup_accounts(ids))

    async def query_accounts(self, query_filter: tb.QueryFilter) -> list[tb.Account]:
        return await self._pending(lambda client: client.query_accounts(query_filter))

    async def guids_of(self, owner: int) -> list[str]:
        """Return the ids of the accounts with this `user_data_128`, as decimal digits: none, or one."""
        return [str(account.id) for account in await self.query_accounts(owned_by(owner))]

    async def holds(self, guid: object) -> bool:
        """Return whether there is an account under the id; what is no id, in a foreign row, is that of none."""
        guid = str(guid)
        id_ = int(guid) if guid.isascii() and guid.isdecimal() and len(guid) <= DIGITS else 0
        return id_ < 2**128 and bool(await self.lookup_accounts([id_]))

    async def _pending[T](self, request: Callable[[Ledger], Coroutine[Any, Any, T]]) -> T:
        return await self._outages.keep_pending(self._name, lambda: self._ask(request, self._patience))

    async def _ask[T](self, request: Callable[[Ledger], Coroutine[Any, Any, T]], patience: float) -> T:
        """Make the request until it is answered; every one of them may be made again."""
        while (client := self._client) is not None:
            # The client waits for its server for ever, and cancelling a request leaks its packet: so the
            # request is a task of its own that nobody cancels, and that ends when the client is closed.
            answer = asyncio.create_task(request(client))
            while not (await asyncio.wait({answer}, timeout=patience))[0]:
                outage = Unavailable(
                    f"{self._name} did not answer within {patience:.0f} s; start it, or correct the settings, "
                    "and run again"
                )
                if not self._outages.endless:
                    answer.add_done_callback(lambda late: late.exception())
                    raise outage
                self._outages.report(outage, self._name)
            try:
                result = answer.result()
            except tb.ClientClosedError:
                continue
            except tb.ClientEvictedError:
                # 64 sessions a cluster: the oldest makes room, and makes a new one when it is used again.
                if self._client is client:
                    self._client = await self._connect()
                    await client.close()
            except (tb.ClientReleaseTooLowError, tb.ClientReleaseTooHighError) as error:
                raise Unavailable(
                    f"{self._name} refuses this release of the client ({error}); "
                    "install the release of `tigerbeetle` that its server has"
                ) from error
            else:
                self._outages.over(self._name)
                return result
        raise Unavailable(f"the connection to {self._name} is being closed; run again to go on")
