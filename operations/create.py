"""Create one account: the command that `python create_account.py UUID` starts."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from clients.account import promise_id
from clients.command.console import Halted, print_diagnostic, print_result, run_async
from clients.promises.cannot_run import Unexecutable
from clients.promises.reading import decode
from clients.promises.results import Claimed, confirmed_guid, read, settled
from create_account import connect, start
from operations.batch import complete
from operations.command_line import EXIT_STATUSES, Parser, add_uuid, add_verbose, parse, print_embedded_notice
from operations.reading import Readers, read_state
from operations.steps import names_of, versions

if TYPE_CHECKING:
    from resonate.resonate import Resonate

    from clients.opening import Clients
    from clients.settings import Settings

DESCRIPTION = f"""\
Create an account, once, and print its uuid and its guid. If the account exists, the same lines are printed.
Without settings, no server is needed. README.md, 'Settings', explains the environment variables.

{EXIT_STATUSES}"""


async def create(uuid: str, resonate: Resonate, clients: Clients) -> tuple[str, bool]:
    """Create the account, or resume its creation. Returns its guid, and whether it existed before.

    Raises `Halted` if an operator must decide.
    """
    while True:
        try:
            finished = await settled(resonate, uuid)
            promise = finished or start(resonate, uuid)
            stores = clients.reference, clients.record
            return await confirmed_guid(promise, uuid, resonate, *stores), finished is not None
        except Claimed as claimed:  # by a backfill: finish its batch, and look again
            await complete(claimed.batch, uuid, resonate, clients)
        except Halted:
            if (guid := await adopted_guid(uuid, resonate, clients)) is None:
                raise
            return guid, True


async def adopted_guid(uuid: str, resonate: Resonate, clients: Clients) -> str | None:
    """Return the account's guid if an operator has adopted it after a panic and both stores hold it, else None."""
    state = await read_state(Readers(clients.reference, clients.record, resonate), uuid)
    if not state.adopted:
        return None
    adoption = state.promises[-1].id
    print_diagnostic(f"promise {promise_id(uuid)} is rejected, but an operator has adopted the account: {adoption}")
    return state.guid


async def saved_steps(uuid: str, resonate: Resonate) -> list[str]:
    """Return the saved results of the steps of the uuid's first run, in words. Its promise records the version."""
    request = await read(resonate, promise_id(uuid))
    call = decode(request.param) if request is not None else None
    workflow = versions(resonate).get(call.get("version", 1)) if isinstance(call, dict) else None
    results: list[str] = []
    for number, name in enumerate(names_of(workflow) if workflow is not None else [], 1):
        promise = await read(resonate, f"{promise_id(uuid)}:{number}")
        if promise is None or promise.state == "pending":
            break
        result = decode(promise.value) if promise.state == "resolved" else promise.state
        if isinstance(result, dict):
            result = ": ".join(filter(None, (result.get("type"), result.get("conflict"))))
        results.append(f"step {number}, {name}: {result or 'cannot be read'}")
    return results


async def run(uuid: str, settings: Settings, *, steps: bool) -> str:
    """Create the account and return its guid. `steps`: say on stderr what each step did, and when."""
    async with connect(settings) as (resonate, clients):
        before = await saved_steps(uuid, resonate) if steps else []

        async def print_steps() -> None:
            for number, step in enumerate(await saved_steps(uuid, resonate) if steps else []):
                print_diagnostic(f"{step} ({'saved before' if number < len(before) else 'ran now'})")

        try:
            guid, _ = await create(uuid, resonate, clients)
        except (Halted, Unexecutable):  # after Ctrl-C and after an outage, nothing is asked any more
            await print_steps()
            raise
        await print_steps()
        return guid


def main() -> int:
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser("create_account.py", description=DESCRIPTION, formatter_class=layout)
    add_uuid(parser)
    parser.add_argument("--steps", action="store_true", help="say on stderr what each step did, and when")
    add_verbose(parser)
    arguments, settings = parse(parser)
    print_embedded_notice(settings)
    guid = run_async(run(arguments.uuid, settings, steps=arguments.steps))
    print_result(f"UUID: {arguments.uuid}\nGUID: {guid}")
    return 0
