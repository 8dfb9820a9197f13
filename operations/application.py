"""Create and find accounts in an application: README.md, 'Use it in your application'."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from clients.account import check_uuid
from clients.command.console import Halted, UsageError
from clients.panic import check_command
from create_account import connect
from operations.create import create

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from resonate.resonate import Resonate

    from clients.opening import Clients
    from clients.settings import Settings


class Accounts:
    """The accounts. Any number of tasks may use it at the same time.

    If a store or the server gives no answer for 30 s, each call that waits raises `Unavailable`. What was begun goes on
    when the store is available again, so the account may exist later. Call again: it finds the account, or resumes.
    """

    def __init__(self, resonate: Resonate, clients: Clients) -> None:
        self._resonate = resonate
        self._clients = clients
        self._creating: dict[str, asyncio.Task[tuple[str, bool]]] = {}

    async def create(self, uuid: str) -> str:
        """Create the account, once, and return its guid. If the account exists, return the same guid.

        Raises `Halted` if an operator must decide, and `UsageError` if the uuid is invalid.
        """
        try:
            check_uuid(uuid)
        except ValueError as error:
            raise UsageError(str(error)) from error
        task = self._creating.get(uuid)
        if task is None:
            task = self._creating[uuid] = asyncio.create_task(create(uuid, self._resonate, self._clients))
            task.add_done_callback(lambda _: self._creating.pop(uuid))
        guid, _ = await self._clients.outages.result_or_raise(task)
        return guid

    async def find(self, uuid: str) -> str | None:
        """Return the guid of the account; None if it does not exist. It asks TigerBeetle: a row proves nothing.

        Raises `Halted` if the uuid has several accounts.
        """
        guids = await self._clients.outages.result_or_raise(asyncio.create_task(self._clients.record.guids_of(uuid)))
        if len(guids) > 1:
            raise Halted(
                f"CONFLICT: TigerBeetle holds {', '.join(guids)} for uuid {uuid!r}. Run: {check_command(uuid)}"
            )
        return guids[0] if guids else None

    def cancel(self) -> None:
        for task in self._creating.values():
            task.cancel()


@contextlib.asynccontextmanager
async def open_accounts(settings: Settings) -> AsyncIterator[Accounts]:
    """Connect to both stores and to the promises. Raises `Unavailable` if one of them gives no answer within 5 s."""
    async with connect(settings) as (resonate, clients):
        accounts = Accounts(resonate, clients)
        clients.outages.wait_forever = True
        try:
            yield accounts
        finally:
            clients.outages.wait_forever = False
            accounts.cancel()
