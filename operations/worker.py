"""Serve account creation to a Resonate server: `python worker.py`, as many as you like on one host.

Other programs start an account by name, from any language that has a Resonate SDK, or from a shell:

    resonate invoke create-account-user-123 --func create_account --json-args '["user-123"]' \\
        --target poll://any@create-account --timeout 36500d

The promise's id must be `create-account-<uuid>`, as here: by it, all who ask for a uuid ask for one account.

What a worker that dies was doing another one finishes, once its lease is over. All of them share DATA_DIR:
SQLite is a local file, so they are on one host. A worker waits for as long as a store or the server is away,
and says so on stderr, once when it begins and once when it is over.

Exit status: 0 SIGTERM, and 130 Ctrl-C, once what runs is handed back; 1 no server is set, or it or a store
cannot be used at the start; 2 usage. A second signal ends it at once, and the lease does the rest.
"""

from __future__ import annotations

if __name__ == "__main__":
    import console

    console.main("worker")

import argparse
import asyncio
import contextlib
import os
import signal
from http import HTTPStatus
from typing import TYPE_CHECKING

from resonate.error import ResonateError, ServerError

import stores
from console import INTERRUPTED, log_to_stderr, note
from create_account import connect
from settings import Settings

if TYPE_CHECKING:
    from resonate.resonate import Resonate


async def serve(settings: Settings) -> int:
    received = cancel_at_first_signal()
    try:
        async with connect(settings, serve=True) as (resonate, clients):
            await clients.outages.race(ask(resonate))
            clients.outages.endless = True
            note(f"serving create_account to the Resonate server at {settings.resonate_url}")
            try:
                await watch(resonate)
            finally:
                clients.outages.endless = False
                note("ending: what runs is handed back")
    except asyncio.CancelledError:
        return 0 if signal.SIGTERM in received else INTERRUPTED
    return 0


def cancel_at_first_signal() -> list[signal.Signals]:
    """Cancel this task at the first SIGTERM or SIGINT, returned in a list; the second one ends the process."""
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


async def watch(resonate: Resonate) -> None:
    """Ask the server now and then: where there is nothing to do, nothing else would notice that it is away."""
    while True:
        await asyncio.sleep(stores.PATIENCE)
        with contextlib.suppress(ResonateError):
            await ask(resonate)


async def ask(resonate: Resonate) -> None:
    try:
        await resonate.promises.get("create-account")
    except ServerError as error:
        if error.code != HTTPStatus.NOT_FOUND:
            raise


def main() -> int:
    parser = argparse.ArgumentParser(
        "worker.py", description="Create the accounts that other programs ask for."
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show the clients' own logging")
    arguments = parser.parse_args()
    log_to_stderr(verbose=arguments.verbose)
    settings = Settings.read(os.environ)
    if settings.resonate_url is None:
        raise stores.Unavailable(
            "a worker serves a Resonate server, and none is set: set RESONATE_URL, such as http://127.0.0.1:8001"
        )
    return asyncio.run(serve(settings))
