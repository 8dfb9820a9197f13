"""One SQLite file, used from asyncio: neither a lock nor a sync to disk stops the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from clients import limits
from clients.errors import Closed, Lasting, Unavailable
from clients.outages import repeat
from clients.stores.batcher import Batcher

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

#: Seconds between two attempts to use a file that another process has locked.
LOCK_RETRY_S = 0.005

WRITABLE = "set DATA_DIR to a writable directory and run again"
LOCAL = "set DATA_DIR to a directory of a local file system, not 9p, FUSE or NFS, and run again"

#: What the user can do, by the extended or the primary code of the error.
SQLITE_REMEDIES = {
    sqlite3.SQLITE_CANTOPEN: WRITABLE,
    sqlite3.SQLITE_CORRUPT: "end all processes, remove the file together with its -wal and -shm files, and only then copy a "
    "backup there (an old -wal destroys a restored file): docs/operations.md, 'Backing up and restoring'",
    sqlite3.SQLITE_FULL: "free some disk space and run again",
    sqlite3.SQLITE_IOERR: "check the disk and run again",
    sqlite3.SQLITE_IOERR_LOCK: f"it cannot be locked: make the file writable, or {LOCAL}",
    sqlite3.SQLITE_IOERR_SHMMAP: f"its -shm file cannot be mapped to memory: {LOCAL}",
    sqlite3.SQLITE_IOERR_SHMLOCK: f"its -shm file cannot be locked: {LOCAL}",
    sqlite3.SQLITE_IOERR_SHMSIZE: "its -shm file cannot grow: free some disk space and run again",
    sqlite3.SQLITE_NOTADB: "move the file away or choose another DATA_DIR",
    sqlite3.SQLITE_READONLY_ROLLBACK: "a process died while it wrote to it: run create_account.py, which restores the last "
    "commit, and run again",
    sqlite3.SQLITE_READONLY: "make the file and its directory writable and run again",
}

#: The same by the number of the operating system's error.
OS_REMEDIES = {
    errno.EISDIR: "remove it, or choose another DATA_DIR, and run again",
    errno.ELOOP: "correct the link and run again",
    errno.EMFILE: "raise the limit of open files, as with `ulimit -n`, and run again",
    errno.ENFILE: "raise the system's limit of open files and run again",
    errno.ENOSPC: "free some disk space and run again",
}

#: The ends of the names of SQLite's files.
ENDS = ("", "-journal", "-wal", "-shm")

#: Held while a file is created, so that no connection of this process has it open when its descriptor is closed.
CREATING = threading.Lock()


def remedy(error: sqlite3.Error | OSError | ValueError, default: str) -> str:
    """Return what the user can do about the error."""
    if isinstance(error, OSError):
        return OS_REMEDIES.get(error.errno or 0, default)
    try:  # SQLite does not tell that a limit of open files is the cause
        with contextlib.ExitStack() as opened:
            for _ in ENDS:
                opened.enter_context(Path(os.devnull).open())
    except OSError as cause:
        if cause.errno in OS_REMEDIES:
            return f"{cause.strerror}: {OS_REMEDIES[cause.errno]}"
    code = getattr(error, "sqlite_errorcode", 0)
    return SQLITE_REMEDIES.get(code, SQLITE_REMEDIES.get(code & 0xFF, default))


def check_regular(path: Path) -> None:
    """Raise `Unavailable` if one of SQLite's files is a directory, a pipe or a device. SQLite can wait for a pipe."""
    main = os.path.realpath(path)  # SQLite follows a link, and the other files are beside the target
    for file in (Path(f"{main}{end}") for end in ENDS):
        if (file.exists() or file.is_symlink()) and not file.is_file():
            raise Unavailable(f"{file} is not a regular file: remove it, or choose another DATA_DIR, and run again")


def text_or_bytes(raw: bytes) -> str | bytes:
    """Return a text of the file. A foreign one that is not UTF-8 is returned as bytes, and not as an error."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def create_private(path: Path) -> None:
    """Create an empty file, and its directory, that only their owner may use. A file that exists is not opened.

    POSIX ends all locks of a process on a file if the process closes any descriptor of it, and SQLite knows only its own
    descriptors. So nobody else may open a file that SQLite has open.
    """
    try:
        check_regular(path)
        if os.path.islink(path) and not os.path.exists(path):  # noqa: PTH110, PTH114 - they raise nothing
            raise Unavailable(
                f"{path} is a link to a missing file: restore the file, or correct the link, and run again"
            )
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with CREATING, contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise cannot_open(path, error) from error


def cannot_open(path: Path, error: OSError | ValueError) -> Unavailable:
    return Unavailable(f"cannot open {path}: {error}; {remedy(error, WRITABLE)}")


def identity(file: Path | int) -> tuple[int, int] | None:
    """Return the device and the inode of a file; None if it does not exist."""
    try:
        status = os.stat(file)  # noqa: PTH116 - it takes a file descriptor, too
    except OSError:
        return None
    return status.st_dev, status.st_ino


def check_identity(path: Path, opened: tuple[int, int] | None) -> None:
    """Raise `Lasting` if the path no longer names the file that was opened: what this process writes is lost.

    A file that is overwritten in place is not noticed.
    """
    if identity(path) != opened:
        raise Lasting(
            f"{path} was removed or replaced while this process used it; nothing more was recorded: "
            "restore the file, unless it is a -wal file, and run again"
        )


#: The work, and whether it writes.
type Transaction = tuple[Callable[[sqlite3.Connection], Any], bool]


class Database:
    """One SQLite file with `synchronous=FULL`: an answered write survives a power cut.

    Transactions that arrive while one is being committed share the next one, and so its sync to disk. Statements run on
    the event loop, because they take less time than a change of threads. The commit runs on a thread of its own.
    """

    writable = True

    def __init__(self, path: Path, schema: str) -> None:
        self.path = path
        self._schema = schema
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=path.name)
        self._transactions = Batcher(self._commit_patiently)
        self._db: sqlite3.Connection | None = None
        self._identities: dict[Path, tuple[int, int] | None] = {}
        self._closed = False
        self.fail_if_locked = False  # do not wait for another process's lock any more

    async def open(self) -> Self:
        """Open the file. If it does not exist, create it, readable by its owner alone."""
        await self._retry_while_locked(lambda: self._on_thread(self._connect), limits.FIRST_ANSWER_TIMEOUT_S)
        return self

    async def close(self) -> None:
        """Refuse new requests, answer the waiting ones, and close the file. May be called again."""
        self._closed = True
        await self._transactions.drain()
        if self._db is not None:
            await self._on_thread(self._db.close)
            self._db = None
        self._thread.shutdown()

    async def read(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Return the rows."""
        return await self.transact(lambda db: db.execute(sql, parameters).fetchall(), writes=False)

    async def transact[T](self, work: Callable[[sqlite3.Connection], T], *, writes: bool = True) -> T:
        """Run `work` in a transaction and return its result after the commit. After `Unavailable`, its effects are unknown."""
        if self._closed:
            raise Closed(f"{self.path} is closing; run again to resume")
        result: T = await self._transactions.ask((work, writes))
        return result

    def _connect(self) -> None:
        create_private(self.path)
        # isolation_level=None: this class begins transactions; sqlite3 would guess.
        db = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
        db.text_factory = text_or_bytes
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("PRAGMA fullfsync=ON")  # macOS: fsync alone leaves the data in the disk's cache
            db.execute("PRAGMA checkpoint_fullfsync=ON")
            db.execute("PRAGMA wal_checkpoint")  # the last writes of a killed process may not be synced yet
            db.executescript(self._schema)
        except sqlite3.Error:
            db.close()
            raise
        wal = Path(f"{os.path.realpath(self.path)}-wal")  # it exists as long as the file is open
        self._db, self._identities = db, {path: identity(path) for path in (self.path, wal)}

    async def _commit_patiently(self, batch: list[Transaction]) -> list[Any]:
        return await self._retry_while_locked(lambda: self._commit(batch), limits.ANSWER_TIMEOUT_S)

    async def _commit(self, batch: list[Transaction]) -> list[Any]:
        db = self._db
        if db is None:
            raise Closed(f"{self.path} is closed; run again to resume")
        writes = any(writes for _, writes in batch)
        db.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
        try:
            results = [work(db) for work, _ in batch]
            if writes:
                await self._on_thread(lambda: db.execute("COMMIT"))
            else:
                db.execute("COMMIT")
        except Exception:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        for path, opened in self._identities.items():
            check_identity(path, opened)
        return results

    async def _on_thread[T](self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _retry_while_locked[T](self, attempt: Callable[[], Awaitable[T]], timeout_s: float) -> T:
        def passes(error: Exception) -> bool:
            return is_locked(error) and not (self._closed or self.fail_if_locked)

        try:
            return await repeat(attempt, passes, timeout_s, LOCK_RETRY_S)
        except sqlite3.Error as error:
            problem = f"cannot use {self.path}: {error}; {remedy(error, 'check the file and run again')}"
            if is_locked(error):
                problem = f"{self.path} is locked by another process, or its file system has no locks; end that process, or {LOCAL}"
            raise Unavailable(problem) from error


def is_locked(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
