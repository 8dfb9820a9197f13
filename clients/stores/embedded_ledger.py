"""The embedded ledger, for testing only: it answers as TigerBeetle would, from an SQLite file.

It answers the few requests that the example makes and refuses all others. It keeps no balances, has no
transfers and is not replicated. A TigerBeetle cluster replaces it: set TB_ADDRESS.
"""

from __future__ import annotations

import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Self

import tigerbeetle as tb

from clients.stores.sqlite_file import Database

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

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
    imported accounts raise NotImplementedError, and so does any other request. Only one process at a time
    may use it; the lock of `EmbeddedPromises`, which always accompanies it, ensures that.
    """

    # An SQLite integer has 64 bits, so numbers of up to 128 bits are stored as decimal text.
    SCHEMA = """
        CREATE TABLE IF NOT EXISTS accounts (
          id TEXT PRIMARY KEY,
          debits_pending TEXT, debits_posted TEXT, credits_pending TEXT, credits_posted TEXT,
          user_data_128 TEXT, user_data_64 TEXT, user_data_32 INTEGER,
          ledger INTEGER, code INTEGER, flags INTEGER, timestamp INTEGER UNIQUE
        );
        CREATE INDEX IF NOT EXISTS accounts_user_data_128 ON accounts (user_data_128);
        -- Timestamps are unique and increasing, also those of rejected accounts, if the clock goes back.
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
        # The conversion of the real client, with its check: IntegerOverflowError.
        accounts = [tb.CAccount.from_param(account).to_python() for account in accounts]
        _check_size(len(accounts))
        if any(account.flags & (tb.AccountFlags.LINKED | tb.AccountFlags.IMPORTED) for account in accounts):
            raise NotImplementedError("the embedded ledger accepts no linked or imported accounts: set TB_ADDRESS")
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
        """Return the accounts that exist, in the order of the ids."""
        _check_size(len(accounts))
        ids = [id_ % 2**128 for id_ in accounts]  # the real client truncates ids without a check
        return await self._database.transact(
            lambda db: [found for id_ in ids if (found := _find(db, id_)) is not None], writes=False
        )

    async def query_accounts(self, query_filter: tb.QueryFilter, /) -> list[tb.Account]:
        """Return the accounts that match every non-zero field of the filter, in timestamp order."""
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
    """Return the status of a request to create `account`, and the existing account if the status is EXISTS."""
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
