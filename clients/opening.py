"""Open the clients that the settings name, and close them again."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from resonate.resonate import Resonate

from clients.command.outages import Outages
from clients.promises.embedded import EmbeddedPromises, ReadOnlyPromises
from clients.promises.one_reference import Identity, check_or_record
from clients.promises.server import GROUP, server
from clients.stores.embedded_ledger import EmbeddedLedger
from clients.stores.postgres import PostgresRows
from clients.stores.system_of_record import SystemOfRecord, open_client
from clients.stores.system_of_reference import SqliteRows, SystemOfReference

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from clients.settings import Settings
    from clients.stores.system_of_record import Ledger
    from clients.stores.system_of_reference import Rows


@dataclass(frozen=True)
class Clients:
    """The open clients, and the arguments of `Resonate`."""

    reference: SystemOfReference
    record: SystemOfRecord
    resonate_arguments: dict[str, Any]
    outages: Outages

    @contextlib.asynccontextmanager
    async def running(self, resonate: Resonate) -> AsyncIterator[None]:
        """Run the block, raise the outage that ends it, and stop the SDK.

        When the stores close, a waiting step ends without a result. The next run repeats it.
        """
        try:
            async with self.outages.interrupting():
                yield
        finally:
            stopping = asyncio.create_task(resonate.stop())
            await asyncio.gather(self.reference.close(), self.record.close())
            await stopping


@contextlib.asynccontextmanager
async def open_clients(settings: Settings, *, serve: bool = False) -> AsyncIterator[Clients]:
    """Open both stores and the connection to the promises. Raises `Unavailable`.

    `serve`: receive the tasks that others have created, as a worker does, and wait for each store's first answer.
    A command runs only its own tasks, and ends if a store does not answer.
    """
    outages = Outages()
    outages.wait_forever = serve
    async with contextlib.AsyncExitStack() as stack:
        arguments: dict[str, Any]
        if settings.resonate_url is None:
            engine = EmbeddedPromises(settings.data_dir, GROUP, outages)
            stack.push_async_callback(engine.close)
            await engine.open()
            # A lease is the right to run a task for some time. Only one process exists here, so a lease need not expire: 0.
            arguments = {"network": engine, "ttl": timedelta(0), "subscription_refresh_secs": 0}
        else:
            arguments = server(settings.resonate_url, settings.resonate_token, outages, serve=serve)
        reference = open_reference(settings, outages)
        stack.push_async_callback(reference.close)
        record = open_record(settings, outages)
        stack.push_async_callback(record.close)

        async def open_reference_and_check() -> None:
            await reference.open()
            if settings.resonate_url is not None:
                identity = Identity(await reference.identity(), str(settings.tb_cluster_id))
                async with open_promises(settings, outages) as resonate, outages.interrupting():
                    await check_or_record(resonate, identity)

        # Check the store first, and only then let a worker receive tasks.
        await asyncio.gather(open_reference_and_check(), record.open())
        yield Clients(reference, record, arguments, outages)


def open_record(settings: Settings, outages: Outages, *, read_only: bool = False) -> SystemOfRecord:
    """Return the System of Record that the settings name, not yet open."""
    address, cluster = settings.tb_address, settings.tb_cluster_id
    if address is None:
        ledger = EmbeddedLedger(settings.data_dir, read_only=read_only)
        return SystemOfRecord(ledger.open, "the embedded ledger", outages)

    async def connect() -> Ledger:
        return open_client(address, cluster)

    return SystemOfRecord(connect, f"TigerBeetle at {address} (cluster {cluster})", outages)


def open_reference(settings: Settings, outages: Outages, *, read_only: bool = False) -> SystemOfReference:
    """Return the System of Reference that the settings name, not yet open."""
    rows: Rows
    if settings.reference_url is None:
        rows = SqliteRows(settings.data_dir / "accounts.db", read_only=read_only)
    else:
        rows = PostgresRows(settings.reference_url, read_only=read_only)
    return SystemOfReference(rows, outages)


@contextlib.asynccontextmanager
async def open_promises(settings: Settings, outages: Outages) -> AsyncIterator[Resonate]:
    """Connect to the promises, to read them. No workflow can run here: there is no function and no listener."""
    if settings.resonate_url is None:
        arguments: dict[str, Any] = {"network": await ReadOnlyPromises(settings.data_dir).open()}
    else:
        arguments = server(settings.resonate_url, settings.resonate_token, outages, serve=False)
    resonate = Resonate(**arguments | {"sources": []})
    try:
        yield resonate
    finally:
        await resonate.stop()
