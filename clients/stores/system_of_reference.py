"""The System of Reference: a row `(uuid, guid)` stages an account. It decides nothing.

The rows are in SQLite, or on several hosts in PostgreSQL (postgres.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Self

from clients.errors import NoAnswer, Unavailable
from clients.outages import Outages
from clients.stores.sqlite_file import Database

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

#: A uuid and its guid.
type Row = tuple[str, str]


class SystemOfReference(ABC):
    """A store of rows. Requests that are in flight at the same time share a transaction.

    `name`: the product's name, for panics. `place`: the product and its place, for outages.
    """

    name: str
    place: str

    def __init__(self, outages: Outages | None) -> None:
        self._outages = outages or Outages()

    async def open(self) -> Self:
        """Open the store. Raises `Unavailable` if another attempt would fail, too."""
        await self._outages.answer(self.place, self._open, NoAnswer)
        return self

    async def rows_of(self, uuid: str, guid: str) -> list[Row]:
        """Return the rows that have this uuid, this guid, or both."""
        [rows] = await self.rows_of_many([(uuid, guid)])
        return rows

    async def find(self, uuid: str, guids: list[str]) -> list[Row]:
        """Return the rows that have this uuid or one of the guids. Another program's row can hold any value."""
        found = await self.rows_of_many([(uuid, guid) for guid in guids or [""]])
        return list(dict.fromkeys(row for rows in found for row in rows))

    async def rows_of_many(self, pairs: list[Row]) -> list[list[Row]]:
        """Return for each pair the rows that `rows_of` returns."""
        return await self._outages.keep_pending(self.place, lambda: self._rows_of_many(pairs))

    async def stage(self, uuid: str, guid: str) -> list[Row]:
        """Write the row. If a row has this uuid or this guid, write nothing and return these rows."""
        return await self._outages.keep_pending(
            f"the row of uuid {uuid!r} in {self.place}", lambda: self._stage(uuid, guid)
        )

    async def _stage(self, uuid: str, guid: str) -> list[Row]:
        for _ in range(3):  # a row that is deleted in between explains one failure
            [written] = await self.stage_many([(uuid, guid)])
            rows = [] if written else await self.rows_of(uuid, guid)
            if written or rows:
                return rows
        raise Unavailable(
            f"{self.place} does not store the row of uuid {uuid!r} with guid {guid}, and holds no row with either: "
            "the table accounts has a trigger, a rule or a key that is not this program's; remove it and run again"
        )

    async def stage_many(self, pairs: list[Row]) -> list[bool]:
        """Write the rows, and return for each whether it was written. All are written in one transaction."""
        return await self._outages.keep_pending(self.place, lambda: self._stage_many(pairs), writes=True)

    async def page(self, after: Any, limit: int) -> list[tuple[Any, str, str]]:
        """Return the next rows in the order of their keys, as (key, uuid, guid). `after`: the last key, None at first."""
        return await self._outages.keep_pending(self.place, lambda: self._page(after, limit))

    @abstractmethod
    async def identity(self) -> str | None:
        """Return the random id of this store. A store that is open for reading only may have none yet."""

    @abstractmethod
    async def close(self) -> None: ...
    @abstractmethod
    async def _open(self) -> None: ...
    @abstractmethod
    async def _rows_of_many(self, pairs: list[Row]) -> list[list[Row]]: ...
    @abstractmethod
    async def _stage_many(self, pairs: list[Row]) -> list[bool]: ...
    @abstractmethod
    async def _page(self, after: Any, limit: int) -> list[tuple[Any, str, str]]: ...


# What this program relies on, and nothing else: other columns and other indexes do not matter. An index that refuses a row
# is found when it does, and loses nothing.

#: The part of a form that says that there is a table at all.
EXISTS = "a table"


def check_form(store: str, table: str, found: set[str], form: set[str], action: str) -> None:
    """Raise `Unavailable`, in one line that says what differs, if a table lacks a part of the form."""
    if EXISTS not in found:
        raise Unavailable(
            f"{store} has no table {table} (expected only if no account was ever requested here); {action} and run again"
        )
    if lacking := sorted(form - found):
        problems = [f"lacks {part}" for part in lacking] + [f"has {part}" for part in sorted(found - form)]
        raise Unavailable(
            f"{store}: the table {table} is not this program's: it {' and '.join(problems)}; {action} and run again"
        )


#: The columns of SQLite's table and its unique keys. With other ones, a row could be missing for a read and exist for a
#: write, or a guid could be rounded to a float.
SQLITE_FORM = {EXISTS, "column uuid TEXT", "column guid TEXT", "unique (uuid)", "unique (guid)"}

#: Reads the form of SQLite's table, of its columns of these names only.
FIND_SQLITE_FORM = f"""
    SELECT '{EXISTS}' FROM pragma_table_info('accounts')
    UNION
    SELECT 'column ' || name || ' ' || upper(type) FROM pragma_table_info('accounts') WHERE name IN ('uuid', 'guid')
    UNION
    SELECT 'unique (' || max(key.name) || ')'
    FROM pragma_index_list('accounts') AS list JOIN pragma_index_xinfo(list.name) AS key ON key.key
    WHERE list."unique" AND NOT list.partial
    GROUP BY list.name HAVING count(*) = 1 AND max(key.coll) = 'BINARY' AND max(key.name) NOTNULL
"""  # noqa: S608


class SqliteReference(SystemOfReference):
    """The rows in an SQLite file. `file`: how it is opened."""

    name = "SQLite"
    SCHEMA = "CREATE TABLE IF NOT EXISTS accounts (uuid TEXT PRIMARY KEY, guid TEXT NOT NULL UNIQUE)"

    def __init__(self, path: Path, outages: Outages | None = None, file: type[Database] = Database) -> None:
        super().__init__(outages)
        self.place = str(path)
        self._file = file(path, self.SCHEMA)

    async def close(self) -> None:
        await self._file.close()

    async def identity(self) -> str | None:
        def make(db: sqlite3.Connection) -> None:
            db.execute("CREATE TABLE IF NOT EXISTS reference (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT)")
            db.execute("INSERT INTO reference VALUES (1, lower(hex(randomblob(16)))) ON CONFLICT DO NOTHING")

        if self._file.writable:
            await self._file.transact(make)
        if not await self._file.read("SELECT 1 FROM sqlite_master WHERE name = 'reference'"):
            return None
        [(id_,)] = await self._file.read("SELECT id FROM reference")
        return str(id_)

    async def _open(self) -> None:
        await self._file.open()
        found = {part for (part,) in await self._file.read(FIND_SQLITE_FORM)}
        check_form(self.place, "accounts", found, SQLITE_FORM, "move the file away, or set another DATA_DIR,")

    async def _rows_of_many(self, pairs: list[Row]) -> list[list[Row]]:
        select = "SELECT uuid, guid FROM accounts WHERE uuid = ? OR guid = ?"
        return await self._file.transact(
            lambda db: [db.execute(select, pair).fetchall() for pair in pairs], writes=False
        )

    async def _stage_many(self, pairs: list[Row]) -> list[bool]:
        insert = "INSERT INTO accounts (uuid, guid) VALUES (?, ?) ON CONFLICT DO NOTHING"
        return await self._file.transact(lambda db: [bool(db.execute(insert, pair).rowcount) for pair in pairs])

    async def _page(self, after: Any, limit: int) -> list[tuple[Any, str, str]]:
        select = "SELECT rowid, uuid, guid FROM accounts WHERE rowid > ? ORDER BY rowid LIMIT ?"
        return await self._file.read(select, -(2**63) if after is None else after, limit)
