"""Show or accept the System of Reference that all processes must use: `python -m operations reference`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clients.command.console import print_result
from clients.errors import HALTED
from clients.outages import Outages
from clients.promises.store_pin import Identity, pin, pin_id, pinned
from operations.opening import Clients

if TYPE_CHECKING:
    from clients.settings import Settings


async def run(settings: Settings, *, accept: bool) -> int:
    settings.require_server()
    clients = Clients(settings, Outages(lambda _: None))

    async def compare() -> tuple[int, Identity | None, Identity]:
        await clients.network.open()
        await clients.reference.open()
        present = await clients.identity()
        number, last = await pinned(clients.resonate)
        if accept and last != present:
            number, last = number + 1, await pin(clients.resonate, number + 1, present)
        return number, last, present

    try:
        number, last, present = await clients.outages.result_or_raise(compare())
    finally:
        await clients.close()
    print_result(f"{pin_id(number)}: {last or 'no store'}" if number else "no record")
    print_result(f"present: {present}, {clients.reference.place}")
    return 0 if number == 0 or last == present else HALTED
