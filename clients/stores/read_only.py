"""Read what another process may be writing, and change nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from clients.command.console import Unavailable
from clients.stores.embedded_ledger import EmbeddedLedger
from clients.stores.sqlite_file import Database, remedy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: Size of a -wal file's header. SQLite cannot read a -wal file that ends there.
WAL_HEADER_BYTES = 32


class ReadOnly(Database):
    """An SQLite file that another process may be writing. Reads see its newest commit and change nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, schema="")

    async def open(self) -> ReadOnly:
        await self.read("SELECT 1 FROM sqlite_master")
        return self

    async def transact[T](self, work: Callable[[sqlite3.Connection], T], *, writes: bool = True) -> T:
        """Return what `work` reads. Raises `Unavailable` if the file cannot be read."""
        if writes:
            raise NotImplementedError(f"{self.path} is open for reading only")
        give_up = time.monotonic() + 1  # a process that opens or closes the file blocks it for a moment
        while True:
            mode, _ = seen = self._files()
            try:
                uri = f"file:{quote(os.fsencode(self.path))}?{mode}"
                with contextlib.closing(sqlite3.connect(uri, timeout=1, uri=True)) as db:
                    db.execute("BEGIN")
                    result = work(db)
            except sqlite3.Error as error:
                if time.monotonic() > give_up:
                    raise Unavailable(f"cannot read {self.path}: {error}; {remedy(error, 'check the file')}") from error
                await asyncio.sleep(0.02)
            else:
                if self._files() == seen:
                    return result

    def _files(self) -> tuple[str, object]:
        """Return how to open the file without creating any, and a value that differs after a change.

        SQLite's `mode=ro` creates missing `-wal` and `-shm` files. But if the `-wal` file is empty, the main
        file is complete, and `immutable` reads only the main file. If another process writes meanwhile, the
        file is read again.
        """
        try:
            file = self.path.stat()
        except FileNotFoundError as error:
            raise Unavailable(
                f"{self.path} does not exist: correct DATA_DIR or restore the file (expected only if no account "
                "was ever requested here)"
            ) from error
        if self._size("-wal") > WAL_HEADER_BYTES or self._size("-journal"):
            return "mode=ro&readonly_shm=1" if self._size("-shm") else "mode=ro", None
        return "immutable=1", (file.st_ino, file.st_size, file.st_mtime_ns)

    def _size(self, suffix: str) -> int:
        try:
            return self.path.with_name(self.path.name + suffix).stat().st_size
        except FileNotFoundError:
            return 0


class ReadOnlyLedger(EmbeddedLedger):
    def __init__(self, directory: Path) -> None:
        self._database = ReadOnly(directory / "ledger.db")


class SqliteReader:
    name = "SQLite"

    def __init__(self, path: Path) -> None:
        self._database = ReadOnly(path)

    async def open(self) -> Self:
        await self._database.open()
        return self

    async def close(self) -> None:
        """Do nothing: the file is open only while it is read."""

    async def find(self, uuid: str, guids: list[str]) -> list[tuple[Any, Any]]:
        """Return the rows that have this uuid or one of the guids."""
        select = f"SELECT uuid, guid FROM accounts WHERE uuid = ? OR guid IN ({sql_placeholders(guids)})"  # noqa: S608
        return await self._database.read(select, uuid, *guids)

    async def staged_among(self, guids: list[str]) -> set[str]:
        """Return those of the guids that have a row."""
        select = f"SELECT guid FROM accounts WHERE guid IN ({sql_placeholders(guids)})"  # noqa: S608
        return {guid for (guid,) in await self._database.read(select, *guids)}

    async def page(self, after: Any, limit: int) -> list[tuple[Any, Any, Any]]:
        """Return the next rows in the order of their keys, as (key, uuid, guid). `after`: the last key, None at first."""
        select = "SELECT rowid, uuid, guid FROM accounts WHERE rowid > ? ORDER BY rowid LIMIT ?"
        return await self._database.read(select, -(2**63) if after is None else after, limit)

    async def identity(self) -> str | None:
        """Return the random id of this file; None if it has none yet."""
        if not await self._database.read("SELECT 1 FROM sqlite_master WHERE name = 'reference'"):
            return None
        [(id_,)] = await self._database.read("SELECT id FROM reference")
        return str(id_)


def sql_placeholders(values: list[str]) -> str:
    return ", ".join("?" * len(values))
