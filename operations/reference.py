"""Show or accept the System of Reference that all processes must use: `python -m operations reference`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clients.command.console import print_result
from clients.errors import HALTED
from clients.outages import Outages
from clients.promises.store_pin import Identity, pin, pin_id, pinned
from operations.opening import identity_of, make_reference, open_promises

if TYPE_CHECKING:
    from clients.settings import Settings


async def run(settings: Settings, *, accept: bool) -> int:
    settings.require_server()
    outages = Outages(lambda _: None)
    reference = make_reference(settings, outages)

    async def compare() -> tuple[int, Identity | None, Identity]:
        await reference.open()
        present = await identity_of(reference, settings)
        async with open_promises(settings, outages) as resonate:
            number, last = await pinned(resonate)
            if accept and last != present:
                number, last = number + 1, await pin(resonate, number + 1, present)
        return number, last, present

    try:
        number, last, present = await outages.result_or_raise(compare())
    finally:
        await reference.close()
    print_result(f"{pin_id(number)}: {last or 'no store'}" if number else "no record")
    print_result(f"present: {present}, {reference.place}")
    return 0 if number == 0 or last == present else HALTED
