"""The System of Reference on SQLite: a row `(uuid, guid)` stages an account. It decides nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .outages import Outages
    from .sqlite_file import Database


class SystemOfReference:
    name = "SQLite"

    SCHEMA = "CREATE TABLE IF NOT EXISTS accounts (uuid TEXT PRIMARY KEY, guid TEXT NOT NULL UNIQUE)"

    def __init__(self, database: Database, outages: Outages) -> None:
        self._database = database
        self._store = str(database.path)
        self._outages = outages

    async def rows_of(self, uuid: str, guid: str) -> list[tuple[Any, Any]]:
        """Return the rows that have this uuid, this guid, or both."""
        select = "SELECT uuid, guid FROM accounts WHERE uuid = ? OR guid = ?"
        return await self._outages.keep_pending(self._store, lambda: self._database.read(select, uuid, guid))

    async def stage(self, uuid: str, guid: str) -> bool:
        """Write the row. Returns False, and writes nothing, if a row has this uuid or this guid."""
        insert = "INSERT INTO accounts (uuid, guid) VALUES (?, ?) ON CONFLICT DO NOTHING"
        written = await self._outages.keep_pending(
            self._store, lambda: self._database.write(insert, uuid, guid)
        )
        self._outages.over(self._store)  # only a write shows that a full disk has recovered
        return bool(written)
