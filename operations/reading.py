"""Read what the promises and both stores hold for a uuid, and change nothing."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import create_account
from clients.account import accounts_query, check_uuid, id_of, promise_id
from clients.command.console import print_diagnostic
from clients.errors import Unavailable
from clients.outages import Outages
from clients.promises import reading
from clients.promises.store_pin import mismatch
from operations.batch import register_workflow
from operations.opening import identity_of, make_record, make_reference, open_promises
from operations.steps import register_adoptions
from operations.verdict import AccountState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from resonate.resonate import Resonate

    from clients.promises.reading import Promise
    from clients.settings import Settings
    from clients.stores.system_of_record import SystemOfRecord
    from clients.stores.system_of_reference import SystemOfReference

#: Rows and accounts per page. A TigerBeetle request and an SQL statement can answer this many.
PAGE = 500


@dataclass(frozen=True)
class Readers:
    reference: SystemOfReference
    record: SystemOfRecord
    resonate: Resonate

    async def promise(self, id_: str) -> Promise | None:
        return await reading.read_promise(self.resonate, id_)

    def unresolved(self) -> AsyncIterator[Promise]:
        return reading.unresolved(self.resonate)


async def with_readers[T](
    settings: Settings, work: Callable[[Readers], Coroutine[Any, Any, T]], *, refuse: bool = False
) -> T:
    """Open both stores and the promises for reading only, and return the result of the work. Raises `Unavailable`.

    If this is not the pinned System of Reference, print so, or with `refuse` raise it.
    """
    outages = Outages(lambda _: None)

    async def read() -> T:
        async with open_readers(settings, outages) as readers:
            line = await mismatch(readers.resonate, await identity_of(readers.reference, settings))
            if line and refuse:
                raise Unavailable(line)
            if line:
                print_diagnostic(line)
            return await work(readers)

    return await outages.result_or_raise(read())


@contextlib.asynccontextmanager
async def open_readers(settings: Settings, outages: Outages) -> AsyncIterator[Readers]:
    async with contextlib.AsyncExitStack() as stack:
        resonate = await stack.enter_async_context(open_promises(settings, outages))
        reference = make_reference(settings, outages, read_only=True)
        stack.push_async_callback(reference.close)
        await reference.open()
        record = make_record(settings, outages, read_only=True)
        stack.push_async_callback(record.close)
        await record.open()
        create_account.register(resonate, reference, record)  # runs nothing here: it says what this program can run
        register_workflow(resonate)
        register_adoptions(resonate)
        yield Readers(reference, record, resonate)


async def read_state(readers: Readers, uuid: str) -> AccountState:
    """Read the promises, then TigerBeetle, then the System of Reference.

    A run writes them in the reverse order. So if a promise has a result, the later read sees its account. If there is an
    account, the later read sees its row. This also holds while a run is in progress.
    """
    promises: list[Promise] = []
    while is_uuid(uuid) and (promise := await readers.promise(promise_id(uuid, len(promises) + 1))):
        promises.append(promise)
    batch = None
    if promises and (claim := promises[0].batch) is not None:
        batch = await readers.promise(claim)
        if batch is None or batch.state != "pending":  # a batch settles its accounts' promises before it ends
            promises[0] = await readers.promise(promises[0].id) or promises[0]
    accounts = await readers.record.query_accounts(accounts_query(uuid))
    guids = [str(account.id) for account in accounts]
    rows = await readers.reference.find(uuid, guids)
    staged = [id_of(guid) for _, guid in rows if guid not in guids]
    accounts += await readers.record.lookup_accounts([id_ for id_ in staged if id_ is not None])
    return AccountState(uuid, promises, accounts, rows, readers.reference.name, batch)


def is_uuid(uuid: str) -> bool:
    """Return whether an account can have been requested with it. Another program's row can hold any text."""
    try:
        check_uuid(uuid)
    except ValueError:
        return False
    return True
