"""The embedded ledger, for testing only: it answers as TigerBeetle would, from an SQLite file.

It answers the requests that the example makes. It has no balances, no transfers and no replicas, and checks no account
that the example cannot make. A TigerBeetle cluster replaces it: set TB_ADDRESS.
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
_FILTERED = ("user_data_128", "user_data_64", "user_data_32", "ledger", "code")
_COMPARED = ("flags", *_FILTERED)  # in TigerBeetle's order


class EmbeddedLedger:
    """One process at a time may use it: the lock of `EmbeddedPromises`, which always accompanies it, ensures that."""

    # An SQLite integer has 64 bits, so numbers of up to 128 bits are stored as decimal text.
    SCHEMA = """
        CREATE TABLE IF NOT EXISTS accounts (
          id TEXT PRIMARY KEY,
          debits_pending TEXT, debits_posted TEXT, credits_pending TEXT, credits_posted TEXT,
          user_data_128 TEXT, user_data_64 TEXT, user_data_32 INTEGER,
          ledger INTEGER, code INTEGER, flags INTEGER, timestamp INTEGER UNIQUE
        );
        CREATE INDEX IF NOT EXISTS accounts_user_data_128 ON accounts (user_data_128);
    """

    def __init__(self, directory: Path, file: type[Database] = Database) -> None:
        self._database = file(directory / "ledger.db", self.SCHEMA)
        self._is_open = False

    async def open(self) -> Self:
        """Open the file. The first look-up does it, too, as TigerBeetle's client connects."""
        await self._database.open()
        self._is_open = True
        return self

    async def close(self) -> None:
        await self._database.close()

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(f"the embedded ledger has no {name}: set TB_ADDRESS")

    async def create_accounts(self, accounts: list[tb.Account], /) -> list[tb.CreateAccountResult]:
        # The conversion of the real client, with its check: IntegerOverflowError.
        accounts = [tb.CAccount.from_param(account).to_python() for account in accounts]
        return await self._database.transact(lambda db: _create(db, accounts))

    async def lookup_accounts(self, accounts: list[int], /) -> list[tb.Account]:
        if not self._is_open:
            await self.open()
        return await self._database.transact(
            lambda db: [found for id_ in accounts if (found := _find(db, id_)) is not None], writes=False
        )

    async def query_accounts(self, query_filter: tb.QueryFilter, /) -> list[tb.Account]:
        wanted = [(column, str(value)) for column in _FILTERED if (value := getattr(query_filter, column))]
        conditions = "".join(f" AND {column} = ?" for column, _ in wanted)
        order = "DESC" if query_filter.flags & tb.QueryFilterFlags.REVERSED else "ASC"
        rows = await self._database.read(
            f"SELECT {', '.join(_COLUMNS)} FROM accounts WHERE timestamp >= ?{conditions}"  # noqa: S608
            f" ORDER BY timestamp {order} LIMIT ?",
            query_filter.timestamp_min, *(value for _, value in wanted), query_filter.limit,
        )  # fmt: skip
        return [_account(row) for row in rows]


def _create(db: sqlite3.Connection, accounts: list[tb.Account]) -> list[tb.CreateAccountResult]:
    ((last,),) = db.execute("SELECT ifnull(max(timestamp), 0) FROM accounts")
    results = []
    # Timestamps are unique and increasing, also if the clock goes back.
    for timestamp, account in enumerate(accounts, max(time.time_ns(), last + 1)):
        existing = _find(db, account.id)
        if existing is not None:
            differing = [field.upper() for field in _COMPARED if getattr(account, field) != getattr(existing, field)]
            status = f"EXISTS_WITH_DIFFERENT_{differing[0]}" if differing else "EXISTS"
            results.append(tb.CreateAccountResult(existing.timestamp, tb.CreateAccountStatus[status]))
            continue
        row = [str(int(getattr(account, column))) for column in _COLUMNS[:-1]]
        db.execute(f"INSERT INTO accounts VALUES ({'?, ' * len(row)}?)", (*row, timestamp))  # noqa: S608
        results.append(tb.CreateAccountResult(timestamp, tb.CreateAccountStatus.CREATED))
    return results


def _find(db: sqlite3.Connection, id_: int) -> tb.Account | None:
    row = db.execute(f"SELECT {', '.join(_COLUMNS)} FROM accounts WHERE id = ?", (str(id_),)).fetchone()  # noqa: S608
    return _account(row) if row else None


def _account(row: tuple[Any, ...]) -> tb.Account:
    values: dict[str, Any] = {column: int(value) for column, value in zip(_COLUMNS, row, strict=True)}
    values["flags"] = tb.AccountFlags(values["flags"])
    return tb.Account(**values)
