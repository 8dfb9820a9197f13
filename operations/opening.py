"""Open the stores and the promises that the settings name, and close them again."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from resonate.resonate import Resonate
from resonate.retry import Never

from clients import limits
from clients.command.console import print_diagnostic
from clients.errors import Unavailable
from clients.outages import Outages
from clients.promises import cannot_run, server
from clients.promises.claims import Claims
from clients.promises.embedded import EmbeddedPromises, ReadOnlyPromises
from clients.promises.reading import find_settled, get_promise, handle_of
from clients.promises.server import Requests
from clients.promises.store_pin import Identity, check_or_pin
from clients.stores.embedded_ledger import EmbeddedLedger
from clients.stores.postgres import PostgresReference
from clients.stores.read_only import ReadOnlyFile
from clients.stores.sqlite_file import Database
from clients.stores.system_of_record import SystemOfRecord
from clients.stores.system_of_reference import SqliteReference, SystemOfReference
from clients.stores.tigerbeetle_client import open_client
from create_account import register
from operations import batch
from operations.steps import register_adoptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from resonate.handle import ResonateHandle

    from clients.settings import Settings

#: Seconds between two looks at a promise whose result is missing.
POLL_INTERVAL_S = 0.5

#: Seconds that running workflows have to finish before the stores are closed.
FINISH_TIMEOUT_S = 0.5


class Clients:
    """The two stores, the promises, and the `Resonate` object that runs the workflow with them.

    `serve`: run the workflow also when other programs ask the Resonate server for it, as a worker does.
    `read_only`: read, change nothing, and run nothing. What is registered says what this program can run.
    """

    def __init__(self, settings: Settings, outages: Outages, *, serve: bool = False, read_only: bool = False) -> None:
        self.outages = outages
        self.reference = make_reference(settings, outages, read_only=read_only)
        self.record = make_record(settings, outages, read_only=read_only)
        arguments = resonate_arguments(settings, outages, serve=serve, read_only=read_only)
        self.network: EmbeddedPromises | Requests = arguments["network"]
        self.resonate = Resonate(**arguments, retry_policy=Never(), autostart=False)
        self.claims = Claims(self.network)
        register(self.resonate, self.reference, self.record)
        batch.register(self.resonate, self.claims)
        if not serve:  # else another program could request an adoption
            register_adoptions(self.resonate)
        self._cluster = str(settings.tb_cluster_id)
        self._read_only = read_only
        self._give_up: dict[str, float] = {}

    async def open(self) -> None:
        """Open both stores and the promises. Raises `Unavailable`."""
        await self.network.open()
        # Check the store first, and only then let a worker receive tasks.
        await asyncio.gather(self._open_reference(), self.record.open())
        if not self._read_only:
            self.resonate.start()

    async def _open_reference(self) -> None:
        await self.reference.open()
        if isinstance(self.network, Requests) and not self._read_only:
            await check_or_pin(self.resonate, await self.identity())

    async def identity(self) -> Identity:
        """Return what all processes of a Resonate server must agree about."""
        return Identity(await self.reference.identity(), self._cluster)

    async def close(self) -> None:
        """Let running workflows finish, and close everything. A step that still waits ends without a result."""
        self.network.stopping = True
        give_up = asyncio.get_running_loop().time() + FINISH_TIMEOUT_S
        while self.network.busy and not self.outages.ongoing and asyncio.get_running_loop().time() < give_up:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        stopping = asyncio.ensure_future(self.resonate.stop())
        await asyncio.gather(self.reference.close(), self.record.close())
        await stopping
        await self.network.close()

    async def settled(self, id_: str, start: Callable[[], ResonateHandle[Any]]) -> tuple[ResonateHandle[Any], bool]:
        """Start or resume the workflow of a promise, and wait until it is settled. Returns its handle, and whether it was before.

        The SDK waits for a message, without a limit. A message can be lost, and so can the lease of a process that was
        paused or died. So this looks at the promise regularly, and starts the workflow again if nobody runs it. Which faults
        make this necessary: docs/workarounds.md.

        Raises `Claimed`, `Unexecutable`, `StillLeased`, and `Unavailable` if the promise is lost.
        """
        if settled := await find_settled(self.resonate, id_):
            return settled, True
        handle = start()
        # Raises the error if the promise could not be created. A cancellation must not reach the SDK's creation of it.
        await asyncio.shield(handle.id())
        result = asyncio.ensure_future(handle.result())
        result.add_done_callback(lambda done: done.cancelled() or done.exception())
        waits_for_another = False
        try:
            while not (await asyncio.wait({result}, timeout=POLL_INTERVAL_S))[0]:
                if cause := self.network.unexecutable.get(id_):
                    raise cannot_run.unexecutable(id_, cause)
                match await self.network.lease(id_):
                    case "ended":
                        promise = await get_promise(self.resonate, id_)
                        if promise is None:
                            raise Unavailable(f"the Resonate server no longer has the promise {id_}; run again")
                        if promise.state != "pending":
                            handle = handle_of(promise)
                            break
                    case "free":
                        await asyncio.shield(start().id())
                    case "another's":
                        self._check_patience(id_)
                        if not waits_for_another:
                            print_diagnostic(
                                f"another process holds the lease of {id_}; waiting for its result, or up to "
                                f"{server.LEASE.total_seconds():.0f} s for the lease to expire"
                            )
                        waits_for_another = True
        finally:
            result.cancel()
        self._give_up.pop(id_, None)
        return handle, False

    def _check_patience(self, id_: str) -> None:
        """Raise `StillLeased` if this process has waited too long for another one.

        All runs that wait for the same task give up at the same time: many accounts can wait for one batch.
        """
        now, timeout_s = asyncio.get_running_loop().time(), limits.ANSWER_TIMEOUT_S
        if now > self._give_up.get(id_, -timeout_s) + timeout_s:
            self._give_up[id_] = now + timeout_s
        if now > self._give_up[id_]:
            raise cannot_run.StillLeased(
                f"promise {id_} is still pending after {timeout_s:.0f} s, because another process holds its lease; wait for "
                "that process, or stop it, and run again"
            )


@contextlib.asynccontextmanager
async def connect(
    settings: Settings, *, serve: bool = False, read_only: bool = False, announce: bool = False
) -> AsyncIterator[Clients]:
    """Open everything for the block. Raises `Unavailable`; a worker waits for each store's first answer.

    `announce`: print one line when an outage begins, and one when it ends.
    """
    outages = Outages(print_diagnostic if announce else lambda _: None)
    clients = Clients(settings, outages, serve=serve, read_only=read_only)
    try:
        await outages.result_or_raise(clients.open(), waits=serve)
        yield clients
    finally:
        await clients.close()


def make_record(settings: Settings, outages: Outages, *, read_only: bool = False) -> SystemOfRecord:
    """Return the System of Record that the settings name, not yet open."""
    address, cluster = settings.tb_address, settings.tb_cluster_id
    if address is None:
        ledger = EmbeddedLedger(settings.data_dir, ReadOnlyFile if read_only else Database)
        return SystemOfRecord(lambda: ledger, "the embedded ledger", outages)
    return SystemOfRecord(
        lambda: open_client(address, cluster), f"TigerBeetle at {address} (cluster {cluster})", outages
    )


def make_reference(settings: Settings, outages: Outages, *, read_only: bool = False) -> SystemOfReference:
    """Return the System of Reference that the settings name, not yet open."""
    if settings.reference_url is not None:
        return PostgresReference(settings.reference_url, outages, read_only=read_only)
    return SqliteReference(settings.data_dir / "accounts.db", outages, ReadOnlyFile if read_only else Database)


def resonate_arguments(
    settings: Settings, outages: Outages, *, serve: bool = False, read_only: bool = False
) -> dict[str, Any]:
    """Return the arguments of `Resonate` for the promises that the settings name."""
    if settings.resonate_url is not None:
        arguments = server.resonate_arguments(settings.resonate_url, settings.resonate_token, outages, serve=serve)
        return arguments | ({"sources": []} if read_only else {})
    if read_only:
        return {"network": ReadOnlyPromises(settings.data_dir)}
    # A lease is the right to run a task for some time. Only one process exists here, so 0: it never expires.
    embedded = EmbeddedPromises(settings.data_dir, server.WORKERS, outages)
    return {"network": embedded, "ttl": timedelta(0), "subscription_refresh_secs": 0}
