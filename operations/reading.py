"""Read what the promises and both stores hold for a uuid, and change nothing."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from clients.account import accounts_of, check_uuid, id_of, promise_id
from clients.command.console import Unavailable, print_diagnostic
from clients.command.outages import Outages
from clients.opening import open_promises, open_record
from clients.promises.one_reference import Identity, mismatch
from clients.promises.reading import embedded, embedded_unresolved, served, served_unresolved
from clients.stores.postgres import PostgresReference
from clients.stores.read_only import ReadOnly, ReadOnlyLedger, SqliteReader
from clients.stores.system_of_record import SystemOfRecord
from operations.verdict import AccountState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from resonate.resonate import Resonate

    from clients.promises.reading import Promise
    from clients.settings import Settings

#: Rows and accounts per page. A TigerBeetle request and an SQL statement can answer this many.
PAGE = 500


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
            database = ReadOnly(settings.data_dir / "promises.db")
            stack.push_async_callback(database.close)
            await database.open()
            promise, unresolved = embedded(database), embedded_unresolved(database)
        else:
            resonate = await stack.enter_async_context(open_promises(settings, outages))
            promise, unresolved = served(resonate), served_unresolved(resonate)
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


async def read_state(readers: Readers, uuid: str) -> AccountState:
    """Read the promises, then TigerBeetle, then the System of Reference.

    A run writes them in the reverse order. So if a promise has a result, the later read sees its account. If there is an
    account, the later read sees its row. This also holds while a run is in progress.
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
