"""Show or accept the System of Reference that all processes must use: `python -m operations reference`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clients.command.console import HALTED, Unavailable, print_result
from clients.command.outages import Outages
from clients.opening import open_promises, open_reference
from clients.promises.one_reference import Identity, record, record_id, recorded

if TYPE_CHECKING:
    from clients.settings import Settings


async def run(settings: Settings, *, accept: bool) -> int:
    if settings.resonate_url is None:
        raise Unavailable("no Resonate server is configured, so no store is recorded: set RESONATE_URL")
    outages = Outages()
    reference = open_reference(settings, outages)
    try:
        await reference.open()
        present = Identity(await reference.identity(), str(settings.tb_cluster_id))
        async with open_promises(settings, outages) as resonate, outages.interrupting():
            number, last = await recorded(resonate)
            if accept and last != present:
                number, last = number + 1, await record(resonate, number + 1, present)
    finally:
        await reference.close()
    print_result(f"{record_id(number)}: {last or 'no store'}" if number else "no record")
    print_result(f"present: {present}, {reference.store}")
    return 0 if number == 0 or last == present else HALTED
