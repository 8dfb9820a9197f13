"""Serve account creation to a Resonate server: `python -m operations worker`, any number of workers.

Other programs start an account by name, from any language that has a Resonate SDK, or from a shell:

    resonate invoke create-account-user-123 --func create_account --json-args '["user-123"]' \\
        --target poll://any@create-account --timeout 36500d

The promise's id must be `create-account-<uuid>`, so that all requests for a uuid share one promise.

A worker also resumes the batches of a backfill that died.

If a worker dies, another worker resumes its tasks after their leases expire. All workers share one System of
Reference. With SQLite they share DATA_DIR, on one host. With PostgreSQL (REFERENCE_URL) they run on any number of
hosts. A worker whose store differs from the recorded one refuses to work. A worker waits as long as a store or the
server is unavailable, also at its start. It says so on stderr, once when the outage begins and once when it ends.
A second signal ends the process at once; its leases expire.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

from resonate.error import ResonateError

from clients import limits
from clients.command.console import INTERRUPTED, print_diagnostic
from clients.errors import Unavailable
from clients.promises.server import Requests
from clients.promises.store_pin import Identity, check_or_pin
from operations.batch import register
from operations.opening import connect

if TYPE_CHECKING:
    from pathlib import Path

    from clients.settings import Settings
    from operations.opening import Clients


#: What an outage of the messages is called.
MESSAGES = "the delivery of messages"


async def run(settings: Settings, health_file: Path | None = None) -> int:
    if settings.resonate_url is None:
        raise Unavailable("no Resonate server is configured: set RESONATE_URL, such as http://127.0.0.1:8001")
    received = cancel_at_first_signal()
    try:
        async with connect(settings, serve=True, announce=True) as (resonate, clients):
            register(resonate, clients)  # before the first task arrives: nothing since `connect` waits
            try:
                await clients.outages.result_or_raise(serve(settings, clients, health_file), waits=True)
            finally:
                print_diagnostic("stopping: releasing the tasks in progress")
    except asyncio.CancelledError:
        return 0 if signal.SIGTERM in received else INTERRUPTED
    return 0


async def serve(settings: Settings, clients: Clients, health_file: Path | None) -> None:
    identity = Identity(await clients.reference.identity(), str(settings.tb_cluster_id))
    assert isinstance(clients.network, Requests)
    try:
        await clients.outages.answer(MESSAGES, clients.network.check_delivery)
        print_diagnostic(f"serving create_account to the Resonate server at {settings.resonate_url}")
        await asyncio.gather(watch_promises(clients, clients.network, identity), watch_stores(clients, health_file))
    finally:
        with contextlib.suppress(ResonateError):
            await clients.network.end_delivery()


def cancel_at_first_signal() -> list[signal.Signals]:
    """Cancel this task at the first SIGTERM or SIGINT; a second one ends the process. Returns the signals received."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    received: list[signal.Signals] = []

    def receive(number: signal.Signals) -> None:
        received.append(number)
        for either in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(either)
            signal.signal(either, signal.SIG_DFL)
        if task is not None:
            task.cancel()

    for either in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(either, receive, either)
    return received


async def watch_promises(clients: Clients, network: Requests, identity: Identity) -> None:
    """Ask the server regularly: an idle worker would not notice an outage, lost messages, or an accepted store otherwise."""
    while True:
        await asyncio.sleep(limits.ANSWER_TIMEOUT_S)
        await clients.outages.answer(MESSAGES, network.check_delivery)
        with contextlib.suppress(ResonateError):
            await check_or_pin(clients.resonate, identity)


async def watch_stores(clients: Clients, health_file: Path | None) -> None:
    """Ask both stores regularly, for the same reason. While all answer, touch the file, for a container's health check."""
    while True:
        await clients.reference.rows_of("", "")
        await clients.record.lookup_accounts([0])
        if health_file is not None and not clients.outages.ongoing:
            await asyncio.to_thread(health_file.touch)
        await asyncio.sleep(limits.ANSWER_TIMEOUT_S)
