"""Read what the promises and both stores hold for a uuid, and change nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self
from urllib.parse import quote

import msgspec
from resonate.error import ResonateError, ServerError
from resonate.types import PromiseRecord, Value

from clients.account import accounts_of, check_uuid, differences, id_of, promise_id
from clients.claims import CODEC, batch_of
from clients.console import Unavailable, print_diagnostic
from clients.embedded_ledger import EmbeddedLedger
from clients.one_reference import Identity, mismatch, open_promises
from clients.opening import open_record
from clients.outages import Outages
from clients.postgres import PostgresReference
from clients.sqlite_file import Database, remedy
from clients.system_of_record import SystemOfRecord

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    import tigerbeetle as tb
    from resonate.resonate import Resonate

    from clients.settings import Settings

type Verdict = Literal["exists", "staged", "unreferenced", "absent", "conflict"]

# -- Reading ---------------------------------------------------------------


#: Entries per page. A TigerBeetle request, an SQL statement and a Resonate server can answer this many.
PAGE = 500

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
                    raise Unavailable(
                        f"cannot read {self.path}: {error}; {remedy(error, 'check the file')}"
                    ) from error
                await asyncio.sleep(0.02)
            else:
                if self._files() == seen:
                    return result

    def _files(self) -> tuple[str, object]:
        """Return how to open the file without creating any, and a value that differs after a change.

        SQLite's `mode=ro` creates missing `-wal` and `-shm` files. But if the `-wal` file is empty, the main
        file is complete, and `immutable` reads only the main file. If another process writes meanwhile, the
        result does not count and is read again.
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


@dataclass(frozen=True)
class Promise:
    """A durable promise. Its value is JSON; the pickles in it are not loaded."""

    id: str
    state: str
    value: Any
    param: Any = None
    target: str | None = None  # who executes it; None if nobody does
    batch: str | None = None  # the batch that has claimed the account of a pending promise

    @property
    def message(self) -> str:
        """What a rejected promise says, in one line."""
        message = self.value.get("message", "") if isinstance(self.value, dict) else ""
        return " ".join(str(message).split())

    @property
    def uuid(self) -> str | None:
        """The uuid that a resolved promise records; None for any other promise."""
        return self._result("uuid")

    @property
    def guid(self) -> str | None:
        """The guid that a resolved promise records; None for any other promise."""
        return self._result("guid")

    def _result(self, name: str) -> str | None:
        if self.state != "resolved" or not isinstance(self.value, dict):
            return None
        return str(self.value.get(name))


class ReferenceReader(Protocol):
    """Reads the rows of the System of Reference, as `SqliteReader` and `PostgresReference` do."""

    @property
    def name(self) -> str: ...
    async def open(self) -> Self: ...
    async def close(self) -> None: ...
    async def find(self, uuid: str, guids: list[str]) -> list[tuple[Any, Any]]: ...
    async def staged_among(self, guids: list[str]) -> set[str]: ...
    async def page(self, after: Any, limit: int) -> list[tuple[Any, Any, Any]]: ...
    async def identity(self) -> str | None: ...


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


@dataclass(frozen=True)
class Readers:
    reference: ReferenceReader
    record: SystemOfRecord
    promise: Callable[[str], Awaitable[Promise | None]]
    unresolved: Callable[[], AsyncIterator[Promise]]  # all top-level promises that are not resolved
    outages: Outages


@contextlib.asynccontextmanager
async def open_readers(settings: Settings, *, refuse: bool = False) -> AsyncIterator[Readers]:
    """Open both stores and the promises for reading only. Raises `Unavailable`.

    If this is not the recorded System of Reference, print so, or with `refuse` raise it.
    """
    outages = Outages()
    resonate: Resonate | None = None
    async with contextlib.AsyncExitStack() as stack:
        if settings.resonate_url is None:
            database = await ReadOnly(settings.data_dir / "promises.db").open()
            promise, unresolved = _embedded(database), _embedded_unresolved(database)
        else:
            resonate = await stack.enter_async_context(open_promises(settings, outages))
            promise, unresolved = _served(resonate), _served_unresolved(resonate)
        reference: ReferenceReader
        if settings.reference_url is None:
            reference = SqliteReader(settings.data_dir / "accounts.db")
        else:
            reference = PostgresReference(settings.reference_url, create=False)
        stack.push_async_callback(reference.close)
        await reference.open()
        if resonate is not None:
            identity = Identity(await reference.identity(), str(settings.tb_cluster_id))
            async with outages.interrupting():
                line = await mismatch(resonate, identity)
            if line and refuse:
                raise Unavailable(line)
            if line:
                print_diagnostic(line)
        if settings.tb_address is None:
            ledger = ReadOnlyLedger(settings.data_dir)
            record = SystemOfRecord(ledger.open, "the embedded ledger", outages)
        else:
            record = open_record(settings, outages)
        stack.push_async_callback(record.close)
        await record.open()
        yield Readers(reference, record, promise, unresolved, outages)


def _embedded(promises: ReadOnly) -> Callable[[str], Awaitable[Promise | None]]:
    async def get(id_: str) -> Promise | None:
        for (state,) in await promises.read("SELECT state FROM origins WHERE origin = ?", id_):
            return _decoded(_record(msgspec.json.decode(state)["promises"][id_]))
        return None

    return get


def _embedded_unresolved(promises: ReadOnly) -> Callable[[], AsyncIterator[Promise]]:
    async def search() -> AsyncIterator[Promise]:
        last, select = "", "SELECT origin, state FROM origins WHERE origin > ? ORDER BY origin LIMIT ?"
        while page := await promises.read(select, last, PAGE):
            for origin, state in page:
                promise = msgspec.json.decode(state)["promises"].get(origin)
                if promise is not None and promise["state"] != "resolved":
                    yield _decoded(_record(promise))
            last = page[-1][0]

    return search


def _record(promise: dict[str, Any]) -> PromiseRecord:
    """Return a promise of the embedded engine as a server would."""
    return msgspec.convert(
        {
            "id": promise["id"],
            "state": promise["state"],
            "param": promise["param"] or {},
            "value": promise["value"] or {},
            "tags": promise["tags"],
            "timeoutAt": promise["timeout_at"],
        },
        PromiseRecord,
    )


def _served(resonate: Resonate) -> Callable[[str], Awaitable[Promise | None]]:
    async def get(id_: str) -> Promise | None:
        try:
            promise = await resonate.promises.sender.promise_get(id_)
        except ServerError as error:
            if error.code == HTTPStatus.NOT_FOUND:
                return None
            raise
        return _decoded(promise)

    return get


def _served_unresolved(resonate: Resonate) -> Callable[[], AsyncIterator[Promise]]:
    async def search() -> AsyncIterator[Promise]:
        for state in ("rejected", "rejected_canceled", "rejected_timedout", "pending"):
            cursor, more = None, True
            while more:
                page = await resonate.promises.sender.promise_search(state, None, PAGE, cursor)
                for promise in page.promises:
                    if ":" not in promise.id:  # else it is a step
                        yield _decoded(promise)
                cursor, more = page.cursor, page.cursor is not None

    return search


def _decoded(promise: PromiseRecord) -> Promise:
    """Return the promise. What cannot be decoded is None."""

    def decode(value: Value) -> Any:
        with contextlib.suppress(ResonateError, msgspec.MsgspecError):
            return CODEC.decode(value)
        return None

    target, batch = promise.tags.get("resonate:target"), batch_of(promise)
    return Promise(promise.id, promise.state, decode(promise.value), decode(promise.param), target, batch)


# -- The state of one account ----------------------------------------------


@dataclass(frozen=True)
class AccountState:
    """What the promises and both stores hold for one uuid. `promises`: the first run, then the adoptions.

    `batch`: the promise of the batch that has claimed the account; None if there is none, or if it was not found.
    """

    uuid: str
    promises: list[Promise]
    accounts: list[tb.Account]
    rows: list[tuple[Any, Any]]
    reference: str  # the name of the System of Reference
    batch: Promise | None = None

    @property
    def waits_for(self) -> str:
        """Say what the pending promise of a claimed account waits for; empty for any other account."""
        claim = self.promises[0].batch if self.promises else None
        how = "was not found" if self.batch is None else f"is {self.batch.state}"
        return f"waits for batch {claim}, which {how}" if claim is not None else ""

    @property
    def in_progress(self) -> bool:
        """Whether a run or a batch is pending that will create the account."""
        last = self.promises[-1] if self.promises else None
        if last is not None and last.batch is not None:
            last = self.batch
        return last is not None and last.state == "pending"

    @property
    def guid(self) -> str | None:
        """The guid that the System of Reference stages for the uuid."""
        return next((guid for uuid, guid in self.rows if uuid == self.uuid), None)

    @property
    def verdict(self) -> Verdict:
        if self.reasons():
            return "conflict"
        if self.accounts:
            return "exists" if self.rows else "unreferenced"
        return "staged" if self.rows else "absent"

    def contradictions(self) -> list[str]:
        """Return how the stores contradict each other, or the rule of one account per uuid."""
        problems = [
            f"{self.reference} stages guid {guid} for uuid {uuid!r}"
            for uuid, guid in self.rows
            if uuid != self.uuid
        ]
        if self.guid is not None and id_of(self.guid) is None:
            problems.append(f"{self.reference} stages guid {self.guid!r}, which is not a valid account id")
        if self.guid is not None or len(self.accounts) > 1:
            others = [str(account.id) for account in self.accounts if str(account.id) != self.guid]
            problems += [f"TigerBeetle holds account {guid} for the uuid" for guid in others]
        for account in self.accounts:
            problems += [
                f"TigerBeetle's account {account.id} has {difference}"
                for difference in differences(account, self.uuid)
            ]
        return problems

    @property
    def agrees(self) -> bool:
        """Whether both stores hold this account. A promise may still name another guid."""
        return bool(self.accounts and self.rows) and not self.contradictions()

    def broken_promises(self) -> list[Promise]:
        """Return the resolved promises whose account TigerBeetle does not hold, or that are for another uuid."""
        held = {str(account.id) for account in self.accounts}
        return [
            promise
            for promise in self.promises
            if promise.state == "resolved" and (promise.guid not in held or promise.uuid != self.uuid)
        ]

    def reasons(self) -> list[str]:
        """Return the reasons for the verdict `conflict`."""
        return self.contradictions() + [
            f"promise {promise.id} is resolved, but TigerBeetle does not hold its account {promise.guid}"
            if promise.uuid == self.uuid
            else f"promise {promise.id} is resolved for uuid {promise.uuid!r}"
            for promise in self.broken_promises()
        ]


async def read_state(readers: Readers, uuid: str) -> AccountState:
    """Read the promises, then TigerBeetle, then the System of Reference.

    A run writes them in the reverse order, so each object already read implies that the next read finds its
    counterpart, also while a run is in progress.
    """
    promises: list[Promise] = []
    while is_uuid(uuid) and (promise := await readers.promise(promise_id(uuid, len(promises) + 1))):
        promises.append(promise)
    batch = None
    if promises and promises[0].batch is not None:
        promises[0], batch = await read_batch(readers, promises[0])
    accounts = await readers.record.query_accounts(accounts_of(uuid))
    guids = [str(account.id) for account in accounts]
    rows = await readers.reference.find(uuid, guids)
    staged = [id_of(guid) for _, guid in rows if guid not in guids]
    accounts += await readers.record.lookup_accounts([id_ for id_ in staged if id_ is not None])
    return AccountState(uuid, promises, accounts, rows, readers.reference.name, batch)


async def read_batch(readers: Readers, promise: Promise) -> tuple[Promise, Promise | None]:
    """Return the promise of a claimed account, and its batch's promise, None if it was not found."""
    assert promise.batch is not None
    batch = await readers.promise(promise.batch)
    if batch is None or batch.state != "pending":  # a batch settles its accounts' promises before it ends
        promise = await readers.promise(promise.id) or promise
    return promise, batch


def is_uuid(uuid: str) -> bool:
    """Return whether an account can have been requested with it. Another program's row can hold any text."""
    try:
        check_uuid(uuid)
    except ValueError:
        return False
    return True


def sql_placeholders(values: list[str]) -> str:
    return ", ".join("?" * len(values))
