"""The example without a server: for trying it and for its tests, never for money.

Two stand-ins, each durable in an SQLite file of its own under DATA_DIR:

- `EmbeddedPromises` is the SDK's in-process engine, whose state is in memory only, made durable.
- `EmbeddedLedger` answers the few TigerBeetle requests that the example makes as TigerBeetle would, and
  refuses the rest. It keeps no balances, knows no transfers and is not replicated.

A Resonate server and a TigerBeetle cluster replace them: see `settings.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Self

import msgspec
import tigerbeetle as tb
from resonate.connections import LocalConnection
from resonate.connections.local import (
    DurablePromise,
    PTimeout,
    ServerState,
    Task,
    TTimeout,
    unwrap_request_envelope,
    wrap_response_envelope,
)
from resonate.error import ConnectorError, ServerError
from resonate.timing import Clock, now_ms
from resonate_base import ORIGIN_HEADER

from stores import REACH, Database, Outages, Unavailable, open_private

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

# -- Durable promises ------------------------------------------------------


class _Snapshot(msgspec.Struct):
    promises: dict[str, DurablePromise]
    tasks: dict[str, Task]
    p_timeouts: list[PTimeout]
    t_timeouts: list[TTimeout]


class _Origin:
    """The engine's state for one top-level promise and what was started below it."""

    def __init__(self, saved: bytes | None, now: int) -> None:
        self.state = ServerState()
        self.saved = saved or self.snapshot()  # of nothing: to look for what is not there writes nothing
        self.users = 0
        if saved is not None:
            snapshot = msgspec.json.decode(saved, type=_Snapshot)
            self.state.promises = snapshot.promises
            self.state.tasks = snapshot.tasks
            self.state.p_timeouts = snapshot.p_timeouts
            self.state.t_timeouts = snapshot.t_timeouts
        # One process has the file, and it has just read this origin: whoever held a lease on it is dead.
        for task in self.state.tasks.values():
            if task.state == "acquired":
                self.state.task_release(now, None, {"id": task.id})
        self.state.outgoing.clear()

    def snapshot(self) -> bytes:
        state = self.state
        return msgspec.json.encode(_Snapshot(state.promises, state.tasks, state.p_timeouts, state.t_timeouts))

    @property
    def finished(self) -> bool:
        state = self.state
        return all(p.state != "pending" for p in state.promises.values()) and all(
            t.state == "fulfilled" for t in state.tasks.values()
        )


class EmbeddedPromises(LocalConnection):
    """The SDK's `LocalConnection`, durable: what it answers is on disk before it is told.

    But for a step that has only begun, and who waits for a result: both are written with the next result,
    since who comes after a crash begins them again.

    A top-level promise and its steps are one row, read when it is asked for and forgotten when it is
    settled, so neither the start nor an account gets slower with how many came before.
    """

    SCHEMA = "CREATE TABLE IF NOT EXISTS origins (origin TEXT PRIMARY KEY, state TEXT NOT NULL)"

    def __init__(self, directory: Path, group: str, outages: Outages, clock: Clock = now_ms) -> None:
        super().__init__(group=group, clock=clock)
        self._database = Database(directory / "promises.db", self.SCHEMA)
        self._outages = outages
        self._origins: dict[str, asyncio.Future[_Origin]] = {}

    async def open(self) -> Self:
        self._alone = await _lock(self._database.path.with_suffix(".lock"))
        await self._database.open()
        return self

    async def stop(self) -> None:
        self._database.hurried = True
        await super().stop()

    async def close(self) -> None:
        await self._database.close()
        if hasattr(self, "_alone"):
            os.close(self._alone)

    async def send(self, req: str, headers: dict[str, str] | None = None) -> str:
        """Apply the request, and answer once what it tells is on disk."""
        request = unwrap_request_envelope(msgspec.json.decode(req))
        if request["kind"].startswith("schedule."):
            raise ServerError(501, "the embedded engine keeps no schedules; start a Resonate server")
        name = (headers or {})[ORIGIN_HEADER]
        origin = await self._enter(name)
        try:
            response = origin.state.apply(self._clock(), request)
            if request["kind"] == "task.fence":
                # Not the task's other steps: it has just run them, or got them when it began.
                response["preload"] = []
            if origin.state.outgoing or not _is_begun(request, response):
                await self._save(name, origin)
        finally:
            self._leave(name, origin)
        return msgspec.json.encode(wrap_response_envelope(response)).decode()

    async def _tick_loop(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                for name in list(self._origins):
                    with contextlib.suppress(ConnectorError):  # reported
                        origin = await self._enter(name)
                        try:
                            origin.state.tick(self._clock())
                            if origin.state.outgoing:
                                await self._save(name, origin)
                        finally:
                            self._leave(name, origin)
                await self._sleeper(self._tick_interval)

    async def _enter(self, name: str) -> _Origin:
        while True:
            if name not in self._origins:
                self._origins[name] = asyncio.ensure_future(self._load(name))
            loading = self._origins[name]
            try:
                origin = await asyncio.shield(loading)
            except Unavailable as outage:
                self._origins.pop(name, None)
                self._outages.report(outage)
                raise ConnectorError(outage) from outage
            if self._origins.get(name) is loading:
                origin.users += 1
                return origin
            # It was forgotten while this one waited: two copies would overwrite each other.

    def _leave(self, name: str, origin: _Origin) -> None:
        origin.users -= 1
        if origin.users == 0 and origin.finished:
            self._origins.pop(name, None)

    async def _load(self, name: str) -> _Origin:
        rows = await self._database.read("SELECT state FROM origins WHERE origin = ?", name)
        return _Origin(rows[0][0].encode() if rows else None, self._clock())

    async def _save(self, name: str, origin: _Origin) -> None:
        outgoing, origin.state.outgoing = origin.state.outgoing, []
        snapshot = origin.snapshot()
        if snapshot != origin.saved:
            try:
                await self._database.write(
                    "INSERT OR REPLACE INTO origins VALUES (?, ?)", name, snapshot.decode()
                )
            except Unavailable as outage:
                self._outages.report(outage)
                raise ConnectorError(outage) from outage
            origin.saved = snapshot
        self._dispatch_messages(outgoing)


def _is_begun(request: dict[str, Any], response: dict[str, Any]) -> bool:
    """Whether this begins a step, or to wait, and tells no result."""
    if request["kind"] not in ("task.fence", "promise.register_listener"):
        return False
    answer = response["action"]["data"] if "action" in response else response
    promise = answer.get("promise")
    return promise is not None and promise["state"] == "pending"


async def _lock(path: Path) -> int:
    """Return a descriptor that holds the file's lock: one process at a time has the promises.

    Raises `Unavailable`, naming the process that has them, when it does not end in time.
    """
    descriptor = open_private(path)
    give_up = time.monotonic() + REACH
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up:
                holder = os.pread(descriptor, 32, 0).decode()
                os.close(descriptor)
                raise Unavailable(
                    f"{path.parent} is in use by process {holder}; wait for it, or start a Resonate server "
                    "(RESONATE_URL), which several processes can share"
                ) from None
            await asyncio.sleep(0.05)
        else:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            return descriptor


# -- Ledger ----------------------------------------------------------------

_COLUMNS = [field.name for field in fields(tb.Account)]
_BATCH_MAX = 8189  # accounts in a message of 1 MiB, as with the real client
_TIMESTAMP_MAX = 2**63 - 1
_COMPARED = ("flags", "user_data_128", "user_data_64", "user_data_32", "ledger", "code")
_KNOWN_FLAGS = sum(tb.AccountFlags)
_KNOWN_QUERY_FLAGS = (tb.QueryFilterFlags.NONE, tb.QueryFilterFlags.REVERSED)
_EXCLUSIVE = tb.AccountFlags.DEBITS_MUST_NOT_EXCEED_CREDITS | tb.AccountFlags.CREDITS_MUST_NOT_EXCEED_DEBITS


class EmbeddedLedger:
    """`create_accounts`, `lookup_accounts` and `query_accounts` as TigerBeetle 0.17 answers them.

    The order of the checks is that of TigerBeetle's `create_account` (src/state_machine.zig). Linked and
    imported accounts raise NotImplementedError, as would any other request. One process at a time may use
    it: `EmbeddedPromises`, which is always beside it, sees to that.
    """

    # 128 bits do not fit an SQLite integer: numbers that may be as large are kept as decimal text.
    SCHEMA = """
        CREATE TABLE IF NOT EXISTS accounts (
          id TEXT PRIMARY KEY,
          debits_pending TEXT, debits_posted TEXT, credits_pending TEXT, credits_posted TEXT,
          user_data_128 TEXT, user_data_64 TEXT, user_data_32 INTEGER,
          ledger INTEGER, code INTEGER, flags INTEGER, timestamp INTEGER UNIQUE
        );
        CREATE INDEX IF NOT EXISTS accounts_user_data_128 ON accounts (user_data_128);
        -- No timestamp is given twice, not even a refused account's, whatever the computer's clock does.
        CREATE TABLE IF NOT EXISTS clock (one INTEGER PRIMARY KEY, last INTEGER);
    """

    def __init__(self, directory: Path) -> None:
        self._database = Database(directory / "ledger.db", self.SCHEMA)

    async def open(self) -> Self:
        await self._database.open()
        return self

    async def close(self) -> None:
        await self._database.close()

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(f"the embedded ledger has no {name}: set TB_ADDRESS")

    async def create_accounts(self, accounts: list[tb.Account], /) -> list[tb.CreateAccountResult]:
        """Return one result per account, in order."""
        # What the real client would send, and its check: IntegerOverflowError.
        accounts = [tb.CAccount.from_param(account).to_python() for account in accounts]
        _check_size(len(accounts))
        if any(account.flags & (tb.AccountFlags.LINKED | tb.AccountFlags.IMPORTED) for account in accounts):
            raise NotImplementedError(
                "the embedded ledger takes no linked or imported accounts: set TB_ADDRESS"
            )
        return await self._database.transact(lambda db: self._create(db, accounts))

    def _create(self, db: sqlite3.Connection, accounts: list[tb.Account]) -> list[tb.CreateAccountResult]:
        ((last,),) = db.execute("SELECT ifnull(max(last), 0) FROM clock")
        first = max(time.time_ns(), last + 1)
        results = []
        for timestamp, account in enumerate(accounts, first):
            status, existing = _judge(db, account)
            if status == tb.CreateAccountStatus.CREATED:
                row = [str(getattr(account, column)) for column in _COLUMNS]
                row[-1] = str(timestamp)
                row[_COLUMNS.index("flags")] = str(int(account.flags))
                db.execute(f"INSERT INTO accounts VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608
            timestamp_result = existing.timestamp if existing is not None else timestamp
            results.append(tb.CreateAccountResult(timestamp_result, status))
        db.execute("INSERT OR REPLACE INTO clock VALUES (1, ?)", (first + len(accounts),))
        return results

    async def lookup_accounts(self, accounts: list[int], /) -> list[tb.Account]:
        """Return the accounts that exist, in the order asked for."""
        _check_size(len(accounts))
        ids = [id_ % 2**128 for id_ in accounts]  # as the real client sends them, unchecked
        return await self._database.transact(
            lambda db: [found for id_ in ids if (found := _find(db, id_)) is not None], writes=False
        )

    async def query_accounts(self, query_filter: tb.QueryFilter, /) -> list[tb.Account]:
        """Return the accounts that have every value that is not zero in the filter, by timestamp."""
        query_filter = tb.CQueryFilter.from_param(query_filter).to_python()
        _check_size(query_filter.limit)
        oldest, newest = query_filter.timestamp_min, query_filter.timestamp_max or _TIMESTAMP_MAX
        if oldest > newest or newest > _TIMESTAMP_MAX or query_filter.flags not in _KNOWN_QUERY_FLAGS:
            return []
        wanted = [
            (column, str(value))
            for column in ("user_data_128", "user_data_64", "user_data_32", "ledger", "code")
            if (value := getattr(query_filter, column))
        ]
        conditions = "".join(f" AND {column} = ?" for column, _ in wanted)
        order = "DESC" if query_filter.flags & tb.QueryFilterFlags.REVERSED else "ASC"
        rows = await self._database.read(
            f"SELECT {', '.join(_COLUMNS)} FROM accounts WHERE timestamp BETWEEN ? AND ?{conditions}"  # noqa: S608
            f" ORDER BY timestamp {order} LIMIT ?",
            oldest, newest, *(value for _, value in wanted), query_filter.limit,
        )  # fmt: skip
        return [_account(row) for row in rows]


def _judge(db: sqlite3.Connection, account: tb.Account) -> tuple[tb.CreateAccountStatus, tb.Account | None]:
    """Return the status of a request to create `account`, and for EXISTS the account that does."""
    status = tb.CreateAccountStatus
    if account.timestamp:
        return status.TIMESTAMP_MUST_BE_ZERO, None
    if account.flags & ~_KNOWN_FLAGS:
        return status.RESERVED_FLAG, None
    if account.id == 0:
        return status.ID_MUST_NOT_BE_ZERO, None
    if account.id == 2**128 - 1:
        return status.ID_MUST_NOT_BE_INT_MAX, None
    if (existing := _find(db, account.id)) is not None:
        for field in _COMPARED:
            if getattr(account, field) != getattr(existing, field):
                return status[f"EXISTS_WITH_DIFFERENT_{field.upper()}"], None
        return status.EXISTS, existing
    if account.flags & _EXCLUSIVE == _EXCLUSIVE:
        return status.FLAGS_ARE_MUTUALLY_EXCLUSIVE, None
    for field in ("debits_pending", "debits_posted", "credits_pending", "credits_posted"):
        if getattr(account, field):
            return status[f"{field.upper()}_MUST_BE_ZERO"], None
    for field in ("ledger", "code"):
        if not getattr(account, field):
            return status[f"{field.upper()}_MUST_NOT_BE_ZERO"], None
    return status.CREATED, None


def _find(db: sqlite3.Connection, id_: int) -> tb.Account | None:
    rows = db.execute(f"SELECT {', '.join(_COLUMNS)} FROM accounts WHERE id = ?", (str(id_),)).fetchall()  # noqa: S608
    return _account(rows[0]) if rows else None


def _account(row: tuple[Any, ...]) -> tb.Account:
    values: dict[str, Any] = {column: int(value) for column, value in zip(_COLUMNS, row, strict=True)}
    values["flags"] = tb.AccountFlags(values["flags"])
    return tb.Account(**values)


def _check_size(count: int) -> None:
    if count > _BATCH_MAX:
        raise tb.TooMuchDataError
