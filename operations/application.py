"""Create and find accounts in an application: README.md, 'Use it in your application'."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from clients import limits
from clients.account import check_uuid
from clients.errors import Halted, Unavailable, UsageError
from clients.promises import server
from operations.create import create
from operations.opening import connect
from operations.reading import read_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from clients.settings import Settings
    from operations.opening import Clients

__all__ = ["Accounts", "Halted", "Unavailable", "UsageError", "open_accounts"]

#: Accounts that are created at the same time, as many as the SDK runs. More would wait inside the SDK while their leases
#: expire.
IN_FLIGHT_MAX = 64

#: Seconds that a call takes at the most after it has begun, besides `ANSWER_TIMEOUT_S` and `LEASE`.
MARGIN_S = 5


class Accounts:
    """The accounts. Any number of tasks may use it at the same time. After the end, each call raises `Unavailable`.

    If a store or the server gives no answer for 30 s, each call that waits raises `Unavailable`. Whatever was lost
    meanwhile, a call ends 45 s after it has begun. The account may still be created later. Call again: it finds the
    account, or resumes.
    """

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._in_flight = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._creating: dict[str, asyncio.Task[str]] = {}
        self._closed = False

    async def create(self, uuid: str) -> str:
        """Create the account, once, and return its guid. If the account exists, return the same guid.

        Raises `Halted` if an operator must decide, and `UsageError` if the uuid is invalid.
        """
        try:
            check_uuid(uuid)
        except ValueError as error:
            raise UsageError(str(error)) from error
        self._check_open()
        # Calls for the same uuid share one run. A caller that is cancelled does not cancel the others.
        task = self._creating.get(uuid)
        if task is None or task.done():
            task = self._creating[uuid] = asyncio.ensure_future(self._create(uuid))
            task.add_done_callback(lambda done: self._forget(uuid, done))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                self._check_open()
            raise

    async def find(self, uuid: str) -> str | None:
        """Return the guid of the account; None if it does not exist. It asks TigerBeetle: a row proves nothing.

        Raises `Halted` if the uuid has several accounts.
        """
        self._check_open()
        finding = self._find(uuid)
        return await self._clients.outages.result_or_raise(finding, timeout_s=limits.ANSWER_TIMEOUT_S + MARGIN_S)

    async def _find(self, uuid: str) -> str | None:
        guids = await self._clients.record.guids_of(uuid)
        if len(guids) > 1:
            raise Halted((await read_state(self._clients, uuid)).conflict())
        return guids[0] if guids else None

    async def close(self) -> None:
        """Refuse new calls, and end those that wait."""
        self._closed = True
        for task in self._creating.values():
            task.cancel()
        await asyncio.gather(*self._creating.values(), return_exceptions=True)

    async def _create(self, uuid: str) -> str:
        """Create the account when it is its turn. An outage also ends the wait for that."""
        return await self._clients.outages.result_or_raise(self._create_in_turn(uuid))

    async def _create_in_turn(self, uuid: str) -> str:
        async with self._in_flight:
            guid, _ = await self._clients.outages.result_or_raise(
                create(uuid, self._clients), timeout_s=limits.ANSWER_TIMEOUT_S + server.LEASE.total_seconds() + MARGIN_S
            )
        return guid

    def _forget(self, uuid: str, task: asyncio.Task[str]) -> None:
        if self._creating.get(uuid) is task:
            del self._creating[uuid]
        if not task.cancelled():
            task.exception()  # perhaps nobody waits any more

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the accounts are closed; open them again with open_accounts, and call again")


@contextlib.asynccontextmanager
async def open_accounts(settings: Settings) -> AsyncIterator[Accounts]:
    """Connect to both stores and to the promises. Raises `Unavailable` if one of them gives no answer within 5 s.

    The SDK logs each lost lease with a traceback. If the application has configured no logging, nothing is printed.
    """
    logging.getLogger("resonate").addHandler(logging.NullHandler())
    async with connect(settings, announce=True) as clients:
        accounts = Accounts(clients)
        try:
            yield accounts
        finally:
            await accounts.close()
