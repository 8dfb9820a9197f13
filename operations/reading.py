"""Read what the promises and both stores hold for a uuid, and change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clients.account import accounts_query, check_uuid, id_of, promise_id
from clients.command.console import print_diagnostic
from clients.errors import Unavailable
from clients.promises.reading import read_promise
from clients.promises.store_pin import mismatch
from operations.opening import connect
from operations.verdict import AccountState

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from clients.promises.reading import Promise
    from clients.settings import Settings
    from operations.opening import Clients

#: Rows and accounts per page. A TigerBeetle request and an SQL statement can answer this many.
PAGE = 500


async def with_readers[T](
    settings: Settings, work: Callable[[Clients], Coroutine[Any, Any, T]], *, refuse: bool = False
) -> T:
    """Open both stores and the promises for reading only, and return the result of the work. Raises `Unavailable`.

    If this is not the pinned System of Reference, print so, or with `refuse` raise it.
    """
    async with connect(settings, read_only=True) as readers:

        async def read() -> T:
            line = await mismatch(readers.resonate, await readers.identity())
            if line and refuse:
                raise Unavailable(line)
            if line:
                print_diagnostic(line)
            return await work(readers)

        return await readers.outages.result_or_raise(read())


async def read_state(clients: Clients, uuid: str) -> AccountState:
    """Read the promises, then TigerBeetle, then the System of Reference.

    A run writes them in the reverse order. So if a promise has a result, the later read sees its account. If there is an
    account, the later read sees its row. This also holds while a run is in progress.
    """
    promises: list[Promise] = []
    while is_uuid(uuid) and (promise := await read_promise(clients.resonate, promise_id(uuid, len(promises) + 1))):
        promises.append(promise)
    batch = None
    if promises and (claim := promises[0].batch) is not None:
        batch = await read_promise(clients.resonate, claim)
        if batch is None or batch.state != "pending":  # a batch settles its accounts' promises before it ends
            promises[0] = await read_promise(clients.resonate, promises[0].id) or promises[0]
    accounts = await clients.record.query_accounts(accounts_query(uuid))
    guids = [str(account.id) for account in accounts]
    rows = await clients.reference.find(uuid, guids)
    staged = [id_of(guid) for _, guid in rows if guid not in guids]
    accounts += await clients.record.lookup_accounts([id_ for id_ in staged if id_ is not None])
    return AccountState(uuid, promises, accounts, rows, clients.reference.name, batch)


def is_uuid(uuid: str) -> bool:
    """Return whether an account can have been requested with it. Another program's row can hold any text."""
    try:
        check_uuid(uuid)
    except ValueError:
        return False
    return True
