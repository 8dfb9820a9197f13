"""Serve account creation to a Resonate server: `python -m operations worker`, any number of workers.

docs/operations.md, 'worker', says how other programs request an account. A worker also resumes the tasks of a dead worker,
after their leases expire, and the batches of a dead backfill. It waits as long as a store or the server is unavailable,
also at its start, and says so on stderr: once when the outage begins, and once when it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING

from resonate.error import ResonateError

from clients import limits
from clients.command.console import print_diagnostic, received
from clients.errors import Unavailable
from clients.promises.server import Requests
from clients.promises.store_pin import Identity, check_or_pin
from operations.opening import connect

if TYPE_CHECKING:
    from pathlib import Path

    from clients.settings import Settings
    from operations.opening import Clients


#: What an outage of the messages is called.
MESSAGES = "the delivery of messages"


async def run(settings: Settings, health_file: Path | None = None) -> int:
    settings.require_server()
    health = None if health_file is None else HealthFile(health_file)
    try:
        async with connect(settings, serve=True, announce=True) as clients:
            try:
                await clients.outages.result_or_raise(serve(settings, clients, health), waits=True)
            finally:
                print_diagnostic("stopping: releasing the tasks in progress")
    except asyncio.CancelledError:
        if received != [signal.SIGTERM]:
            raise
        received.clear()  # the usual end of a worker is a success
    return 0


async def serve(settings: Settings, clients: Clients, health: HealthFile | None) -> None:
    identity = await clients.identity()
    assert isinstance(clients.network, Requests)
    try:
        await clients.outages.answer(MESSAGES, clients.network.check_delivery)
        print_diagnostic(f"serving create_account to the Resonate server at {settings.resonate_url}")
        await asyncio.gather(watch_promises(clients, clients.network, identity), watch_stores(clients, health))
    finally:
        with contextlib.suppress(ResonateError):
            await clients.network.end_delivery()


async def watch_promises(clients: Clients, network: Requests, identity: Identity) -> None:
    """Ask the server regularly: an idle worker would not notice an outage, lost messages, or an accepted store otherwise."""
    while True:
        await asyncio.sleep(limits.ANSWER_TIMEOUT_S)
        await clients.outages.answer(MESSAGES, network.check_delivery)
        with contextlib.suppress(ResonateError):
            await check_or_pin(clients.resonate, identity)


async def watch_stores(clients: Clients, health: HealthFile | None) -> None:
    """Ask both stores regularly, for the same reason. While all answer, touch the file, for a container's health check."""
    while True:
        await clients.reference.rows_of("", "")
        await clients.record.lookup_accounts([0])
        if health is not None and not clients.outages.ongoing:
            await asyncio.to_thread(health.touch)
        await asyncio.sleep(limits.ANSWER_TIMEOUT_S)


class HealthFile:
    """The file that a healthy worker touches."""

    def __init__(self, path: Path) -> None:
        """Raise `Unavailable` if the file cannot be written. The file is not touched yet."""
        self._path, self._failing = path, False
        try:
            existed = path.exists()
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_NONBLOCK))  # a pipe is refused, and not waited for
            if not existed:
                path.unlink()
        except OSError as error:
            raise Unavailable(
                f"cannot write --health-file {path}: {error.strerror}; correct it and run again"
            ) from error

    def touch(self) -> None:
        """Touch the file. A failure is said once, and ends no worker: its accounts do not depend on the file."""
        try:
            self._path.touch()
        except OSError as error:
            if not self._failing:
                print_diagnostic(
                    f"cannot write --health-file {self._path}: {error.strerror}; this worker works, but its health check "
                    "will fail; correct it"
                )
            self._failing = True
        else:
            self._failing = False
