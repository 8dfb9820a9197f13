"""Create many accounts at once in one process: `python -m tests.storm PREFIX COUNT` creates PREFIX-0, PREFIX-1, ...

Prints "started" when the stores are open, then `uuid guid` for each account. Tests kill it.
"""

from __future__ import annotations

import asyncio
import os
import sys

from clients.settings import Settings
from create_account import DEADLINE, connect, create_account

from .crash import set_limits

IN_FLIGHT = 64


async def main(prefix: str, count: int) -> None:
    places = asyncio.Semaphore(IN_FLIGHT)
    async with connect(Settings.read(os.environ)) as (resonate, _):
        print("started", flush=True)

        async def create(uuid: str) -> None:
            async with places:
                promise = resonate.options(timeout=DEADLINE).run(f"create-account-{uuid}", create_account, uuid)
                account = await promise.result()
                print(account["uuid"], account["guid"], flush=True)

        async with asyncio.TaskGroup() as accounts:
            for number in range(count):
                accounts.create_task(create(f"{prefix}-{number}"))


if __name__ == "__main__":
    set_limits()
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
