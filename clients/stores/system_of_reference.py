"""The System of Reference: a row `(uuid, guid)` stages an account. It decides nothing.

The rows are in SQLite, or, if REFERENCE_URL is set, in PostgreSQL (postgres.py). Both answer the same requests.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, Protocol, Self

from clients.command import limits
from clients.command.console import NoAnswer, Unavailable
from clients.stores.form import EXISTS, check_form
from clients.stores.read_only import ReadOnly
from clients.stores.sqlite_file import Database

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from clients.command.outages import Outages
    from clients.stores.postgres import Row


#: Times that a row is written and then not found. A row that is deleted in between explains one.
STAGE_MAX = 3


class Rows(Protocol):
    """A store of rows. Requests that are in flight at the same time share a transaction."""

    @property
    def name(self) -> str:
        """The product's name, for messages and panics."""

    @property
    def store(self) -> str:
        """The product and its place, for messages about an outage."""

    async def open(self) -> Self: ...
    async def close(self) -> None: ...
    async def rows_of_many(self, pairs: list[Row]) -> list[list[Row]]: ...
    async def stage_many(self, pairs: list[Row]) -> list[bool]: ...
    async def find(self, uuid: str, guids: list[str]) -> list[Row]: ...
    async def page(self, after: Any, limit: int) -> list[tuple[Any, str, str]]: ...
    async def identity(self) -> str | None: ...


class SystemOfReference:
    def __init__(self, rows: Rows, outages: Outages) -> None:
        self.name = rows.name
        self.store = rows.store
        self._rows = rows
        self._outages = outages
        self._failing_writes = False

    async def open(self) -> Self:
        """Open the store. A worker waits for its first answer. Raises `Unavailable`."""
        while True:
            try:
                await self._rows.open()
            except NoAnswer as outage:
                if not self._outages.wait_forever:
                    raise
                self._outages.report(outage, self.store)
                await asyncio.sleep(limits.RETRY_INTERVAL_S)
            else:
                self._outages.over(self.store)
                return self

    async def close(self) -> None:
        await self._rows.close()

    async def rows_of(self, uuid: str, guid: str) -> list[Row]:
        """Return the rows that have this uuid, this guid, or both."""
        [rows] = await self.rows_of_many([(uuid, guid)])
        return rows

    async def stage(self, uuid: str, guid: str) -> list[Row]:
        """Write the row. If a row has this uuid or this guid, write nothing and return these rows."""
        row = f"the row of uuid {uuid!r} in {self.store}"
        rows = await self._outages.keep_pending(row, lambda: self._stage(uuid, guid))
        self._outages.over(row)
        return rows

    async def _stage(self, uuid: str, guid: str) -> list[Row]:
        for _ in range(STAGE_MAX):
            [written] = await self.stage_many([(uuid, guid)])
            rows = [] if written else await self.rows_of(uuid, guid)
            if written or rows:
                return rows
        raise Unavailable(
            f"{self.store} does not store the row of uuid {uuid!r} with guid {guid}, and holds no row with either: "
            "the table accounts has a trigger, a rule or a key that is not this program's; remove it and run again"
        )

    async def rows_of_many(self, pairs: list[Row]) -> list[list[Row]]:
        """Return for each pair the rows that `rows_of` returns."""
        rows = await self._keep_pending(lambda: self._rows.rows_of_many(pairs))
        if not self._failing_writes:  # a read also works on a full disk, so only a write proves that the outage is over
            self._outages.over(self.store)
        return rows

    async def stage_many(self, pairs: list[Row]) -> list[bool]:
        """Write the rows, and return for each whether it was written. All are written in one transaction."""

        async def write() -> list[bool]:
            try:
                return await self._rows.stage_many(pairs)
            except Unavailable:
                self._failing_writes = True
                raise

        written = await self._keep_pending(write)
        self._failing_writes = False
        self._outages.over(self.store)
        return written

    async def find(self, uuid: str, guids: list[str]) -> list[Row]:
        """Return the rows that have this uuid or one of the guids. Another program's row can hold any value."""
        return await self._keep_pending(lambda: self._rows.find(uuid, guids))

    async def page(self, after: Any, limit: int) -> list[tuple[Any, str, str]]:
        """Return the next rows in the order of their keys, as (key, uuid, guid). `after`: the last key, None at first."""
        return await self._keep_pending(lambda: self._rows.page(after, limit))

    async def identity(self) -> str | None:
        """Return the random id of this store. A store that is open for reading only may have none yet."""
        return await self._rows.identity()

    async def _keep_pending[T](self, request: Callable[[], Awaitable[T]]) -> T:
        return await self._outages.keep_pending(self.store, request)


#: The columns of SQLite's table and its unique keys. With other ones, a row could be missing for a read and exist for a
#: write, or a guid could be rounded to a float.
SQLITE_FORM = {EXISTS, "column uuid TEXT", "column guid TEXT", "unique (uuid)", "unique (guid)"}


def check_sqlite_form(path: Path, db: sqlite3.Connection) -> None:
    """Raise `Unavailable` if the table of rows has another form."""
    columns = db.execute("SELECT name, type FROM pragma_table_info('accounts')").fetchall()
    found = {f"column {name} {kind.upper()}" for name, kind in columns if name in ("uuid", "guid")}
    found |= {EXISTS} if columns else set()
    for index, partial in db.execute(
        "SELECT name, partial FROM pragma_index_list('accounts') WHERE \"unique\""
    ).fetchall():
        keys = db.execute("SELECT name, coll FROM pragma_index_xinfo(?) WHERE key", (index,)).fetchall()
        found |= {f"unique ({name})" for name, order in keys if len(keys) == 1 and order == "BINARY" and not partial}
    check_form(str(path), "accounts", found, SQLITE_FORM, "move the file away, or set another DATA_DIR,")


class SqliteRows:
    """The rows in an SQLite file."""

    name = "SQLite"
    SCHEMA = "CREATE TABLE IF NOT EXISTS accounts (uuid TEXT PRIMARY KEY, guid TEXT NOT NULL UNIQUE)"

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.store = str(path)
        self._read_only = read_only
        self._database = ReadOnly(path) if read_only else Database(path, self.SCHEMA)

    async def open(self) -> Self:
        await self._database.open()
        await self._database.transact(functools.partial(check_sqlite_form, self._database.path), writes=False)
        return self

    async def close(self) -> None:
        await self._database.close()

    async def rows_of_many(self, pairs: list[Row]) -> list[list[Row]]:
        select = "SELECT uuid, guid FROM accounts WHERE uuid = ? OR guid = ?"

        def read(db: sqlite3.Connection) -> list[list[Row]]:
            return [db.execute(select, pair).fetchall() for pair in pairs]

        return await self._database.transact(read, writes=False)

    async def stage_many(self, pairs: list[Row]) -> list[bool]:
        insert = "INSERT INTO accounts (uuid, guid) VALUES (?, ?) ON CONFLICT DO NOTHING"

        def write(db: sqlite3.Connection) -> list[bool]:
            return [bool(db.execute(insert, pair).rowcount) for pair in pairs]

        return await self._database.transact(write)

    async def find(self, uuid: str, guids: list[str]) -> list[Row]:
        placeholders = ", ".join("?" * len(guids))
        select = f"SELECT uuid, guid FROM accounts WHERE uuid = ? OR guid IN ({placeholders})"  # noqa: S608
        return await self._database.read(select, uuid, *guids)

    async def page(self, after: Any, limit: int) -> list[tuple[Any, str, str]]:
        select = "SELECT rowid, uuid, guid FROM accounts WHERE rowid > ? ORDER BY rowid LIMIT ?"
        return await self._database.read(select, -(2**63) if after is None else after, limit)

    async def identity(self) -> str | None:
        def make(db: sqlite3.Connection) -> None:
            db.execute("CREATE TABLE IF NOT EXISTS reference (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT)")
            db.execute("INSERT INTO reference VALUES (1, lower(hex(randomblob(16)))) ON CONFLICT DO NOTHING")

        if not self._read_only:
            await self._database.transact(make)
        if not await self._database.read("SELECT 1 FROM sqlite_master WHERE name = 'reference'"):
            return None
        [(id_,)] = await self._database.read("SELECT id FROM reference")
        return str(id_)
