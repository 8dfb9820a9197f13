"""Read what another process may be writing, and change nothing."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from clients.errors import Unavailable
from clients.outages import repeat
from clients.stores.sqlite_file import ENDS, Database, check_regular, remedy, text_or_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

#: Size of a -wal file's header. SQLite cannot read a -wal file that ends there, and it holds nothing.
WAL_HEADER_BYTES = 32

#: Seconds that a process which opens, closes or checkpoints the file may keep a reader waiting.
PATIENCE_S = 1.0


class ReadOnlyFile(Database):
    """An SQLite file that another process may be writing. Reads see its newest commit and change nothing.

    SQLite alone would make a missing -wal or -shm file. So the file is read in one of three ways:

    - The -wal file and the journal are empty: the main file is complete, and `immutable` reads only that. If anything
      has changed meanwhile, the result does not count.
    - The -wal file has content, but its -shm file is missing, as in some backups: under an exclusive lock, SQLite needs
      no -shm file.
    - Anything else: in place, with the locks of a living process. A dead process's transaction in a journal is refused,
      because only a writer can roll it back.
    """

    writable = False

    async def open(self) -> Self:
        await self.read("SELECT 1 FROM sqlite_master")
        return self

    async def transact[T](self, work: Callable[[sqlite3.Connection], T], *, writes: bool = True) -> T:
        """Return what `work` reads. Raises `Unavailable` if the file cannot be read."""
        if writes:
            raise NotImplementedError(f"{self.path} is open for reading only")

        async def attempt() -> T:
            return self._read(work)

        try:
            return await repeat(attempt, lambda error: isinstance(error, (sqlite3.Error, OSError)), PATIENCE_S, 0.02)
        except (sqlite3.Error, OSError) as error:
            raise Unavailable(f"cannot read {self.path}: {error}; {remedy(error, 'check the file')}") from error

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
        immutable = wal <= WAL_HEADER_BYTES and not journal
        mode = "immutable=1" if immutable else "mode=ro&readonly_shm=1" if journal or shm else "mode=rw"
        with contextlib.closing(sqlite3.connect(f"file:{quote(os.fsencode(main))}?{mode}", timeout=1, uri=True)) as db:
            db.text_factory = text_or_bytes
            if mode == "mode=rw":  # only a writer may lock it exclusively
                db.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE)
                db.execute("PRAGMA locking_mode=EXCLUSIVE")
            db.execute("BEGIN")
            result = work(db)
        if immutable and [state_of(main, end) for end in ENDS] != states:
            raise BlockingIOError("another process changes it all the time")
        return result


def state_of(main: Path, end: str) -> tuple[int, int, int] | None:
    """Return the inode, the size, and the time of the last change. None: no file."""
    try:
        file = os.stat(f"{main}{end}")  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return None
    return file.st_ino, file.st_size, file.st_mtime_ns
