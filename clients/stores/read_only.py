"""Read what another process may be writing, and change nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from clients.errors import Unavailable
from clients.stores.sqlite_file import ENDS, Database, check_regular, primary_code, remedy, text_or_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

#: Size of a -wal file's header. SQLite cannot read a -wal file that ends there, and it holds nothing.
WAL_HEADER_BYTES = 32

#: Seconds that a process which opens, closes or checkpoints the file may keep a reader waiting.
PATIENCE_S = 1.0

#: Errors of reading in place that a private copy can do without.
IN_PLACE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR)

#: What tells one state of a file from another: its inode, its size, and the time of its last change. None: no file.
type State = tuple[int, int, int] | None


class ReadOnly(Database):
    """An SQLite file that another process may be writing. Reads see its newest commit and change nothing.

    SQLite alone would change something: it makes a missing -wal or -shm file, and it rolls back the journal of a dead
    process. So the file is read in one of three ways:

    - The -wal file and the journal are empty: the main file is complete, and `immutable` reads only that. If anything
      has changed meanwhile, the result does not count.
    - The -wal file has content, and there is a -shm file, which a living process may use: in place, with its locks.
    - Anything else: SQLite opens a private copy, and may change that.
    """

    writable = False

    def __init__(self, path: Path, schema: str = "") -> None:
        super().__init__(path, schema)
        self._copy: tuple[list[State], tempfile.TemporaryDirectory[str]] | None = None

    async def open(self) -> ReadOnly:
        await self.read("SELECT 1 FROM sqlite_master")
        return self

    async def close(self) -> None:
        await super().close()
        self._remove_copy()

    async def transact[T](self, work: Callable[[sqlite3.Connection], T], *, writes: bool = True) -> T:
        """Return what `work` reads. Raises `Unavailable` if the file cannot be read."""
        if writes:
            raise NotImplementedError(f"{self.path} is open for reading only")
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._read(work)
            except (sqlite3.Error, OSError) as error:
                if time.monotonic() > give_up:
                    action = remedy(error, self.path, "check the file")
                    raise Unavailable(f"cannot read {self.path}: {error}; {action}") from error
                await asyncio.sleep(0.02)

    def _read[T](self, work: Callable[[sqlite3.Connection], T]) -> T:
        main = Path(os.path.realpath(self.path))  # SQLite follows a link, and the other files are beside the target
        check_regular(main)
        states = [state_of(main, end) for end in ENDS]
        if states[0] is None:
            raise Unavailable(
                f"{main} does not exist: correct DATA_DIR or restore the file (expected only if no account "
                "was ever requested here)"
            )
        _, journal, wal, shm = (state[1] if state else 0 for state in states)
        if wal > WAL_HEADER_BYTES and shm:
            try:
                return work_on(main, "mode=ro&readonly_shm=1", work)
            except sqlite3.Error as error:
                if primary_code(error) not in IN_PLACE:
                    raise
        elif wal <= WAL_HEADER_BYTES and not journal:
            result = work_on(main, "immutable=1", work)
            check_unchanged(main, states)
            return result
        return work_on(self._copied(main, states[:3]), "mode=rw", work)

    def _copied(self, main: Path, states: list[State]) -> Path:
        """Return a private copy of the files. It is kept until they change."""
        if self._copy is None or self._copy[0] != states:
            self._remove_copy()
            directory = tempfile.TemporaryDirectory(prefix="read-only-")
            self._copy = states, directory
            for end in ENDS[:3]:
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(f"{main}{end}", Path(directory.name, f"{main.name}{end}"))
            try:
                check_unchanged(main, states)
            except OSError:
                self._remove_copy()
                raise
        return Path(self._copy[1].name, main.name)

    def _remove_copy(self) -> None:
        if self._copy is not None:
            self._copy[1].cleanup()
            self._copy = None


def state_of(main: Path, end: str) -> State:
    try:
        file = os.stat(f"{main}{end}")  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return None
    return file.st_ino, file.st_size, file.st_mtime_ns


def check_unchanged(main: Path, states: list[State]) -> None:
    """Raise BlockingIOError if another process has changed the files meanwhile."""
    if [state_of(main, end) for end in ENDS[: len(states)]] != states:
        raise BlockingIOError("another process changes it all the time")


def work_on[T](main: Path, mode: str, work: Callable[[sqlite3.Connection], T]) -> T:
    with contextlib.closing(sqlite3.connect(f"file:{quote(os.fsencode(main))}?{mode}", timeout=1, uri=True)) as db:
        db.text_factory = text_or_bytes
        db.execute("BEGIN")
        return work(db)
