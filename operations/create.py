"""Create one account: what `python create_account.py UUID` starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clients.account import promise_id
from clients.command.console import print_result, run_async
from clients.promises.results import Claimed, confirmed_guid, settled
from create_account import DEADLINE, connect, create_account
from operations.batch import complete
from operations.command_line import parse_uuid

if TYPE_CHECKING:
    from resonate.resonate import Resonate

    from clients.opening import Clients
    from clients.settings import Settings


async def create(uuid: str, resonate: Resonate, clients: Clients) -> str:
    """Create the account, or resume its creation, and return its guid. Raises `Halted` for an operator."""
    start = resonate.options(timeout=DEADLINE).run
    while True:
        try:
            promise = await settled(resonate, uuid) or start(promise_id(uuid), create_account, uuid)
            return await confirmed_guid(promise, uuid, resonate, clients.record)
        except Claimed as claimed:
            await complete(claimed.batch, uuid, resonate, clients)


async def run(uuid: str, settings: Settings) -> str:
    async with connect(settings) as (resonate, clients):
        return await create(uuid, resonate, clients)


def main() -> int:
    uuid, settings = parse_uuid("create_account.py", "Create an account, once.")
    print_result(f"UUID: {uuid}\nGUID: {run_async(run(uuid, settings))}")
    return 0
