"""Read what the promises and both stores hold for a uuid, and change nothing."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import create_account
from clients.account import accounts_of, check_uuid, id_of, promise_id
from clients.command.console import Unavailable, print_diagnostic
from clients.command.outages import Outages
from clients.opening import open_promises, open_record, open_reference
from clients.promises import reading
from clients.promises.one_reference import Identity, mismatch
from operations.batch import register_workflow
from operations.verdict import AccountState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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
        return await reading.get(self.resonate, id_)

    def unresolved(self) -> AsyncIterator[Promise]:
        return reading.unresolved(self.resonate)


@contextlib.asynccontextmanager
async def open_readers(settings: Settings, *, refuse: bool = False) -> AsyncIterator[Readers]:
    """Open both stores and the promises for reading only. Raises `Unavailable`, also in the block.

    If this is not the recorded System of Reference, print so, or with `refuse` raise it.
    """
    outages = Outages()
    async with contextlib.AsyncExitStack() as stack:
        resonate = await stack.enter_async_context(open_promises(settings, outages))
        create_account.register(resonate)  # runs nothing here: it says what this program can run
        register_workflow(resonate)
        reference = open_reference(settings, outages, read_only=True)
        stack.push_async_callback(reference.close)
        await reference.open()
        await stack.enter_async_context(outages.interrupting())
        if settings.resonate_url is not None:
            line = await mismatch(resonate, Identity(await reference.identity(), str(settings.tb_cluster_id)))
            if line and refuse:
                raise Unavailable(line)
            if line:
                print_diagnostic(line)
        record = open_record(settings, outages, read_only=True)
        stack.push_async_callback(record.close)
        await record.open()
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
    accounts = await readers.record.query_accounts(accounts_of(uuid))
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
