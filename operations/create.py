"""Create one account: the command that `python create_account.py UUID` starts."""

from __future__ import annotations

import argparse
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from resonate.error import ServerError

from clients.account import promise_id
from clients.command.console import print_diagnostic, print_result, run_async
from clients.errors import Halted
from clients.panic import Panic, check_command
from clients.promises import cannot_run
from clients.promises.cannot_run import Unexecutable
from clients.promises.claims import batch_of
from clients.promises.reading import decode, get_promise, handle_of
from create_account import start
from operations.batch import complete
from operations.command_line import EXIT_STATUSES, Parser, add_uuid, add_verbose, parse, print_embedded_notice
from operations.opening import connect
from operations.reading import Readers, read_state
from operations.steps import names_of, versions

if TYPE_CHECKING:
    from resonate.handle import ResonateHandle
    from resonate.resonate import Resonate

    from clients.settings import Settings
    from operations.opening import Clients

DESCRIPTION = f"""\
Create an account, once, and print its uuid and its guid. If the account exists, the same lines are printed.
Without settings, no server is needed. README.md, 'Settings', explains the environment variables.

{EXIT_STATUSES}"""


async def create(uuid: str, resonate: Resonate, clients: Clients) -> tuple[str, bool]:
    """Create the account, or resume its creation. Returns its guid, and whether it existed before.

    TigerBeetle is seen to hold that account. Prints one line if the account's row was lost since. Raises `Halted` if an
    operator must decide.
    """
    id_ = promise_id(uuid)
    while True:
        promise = await get_promise(resonate, id_)
        existed = promise is not None and promise.state != "pending"
        if promise is not None and not existed:
            if batch := batch_of(promise):  # a backfill has claimed the account: finish its batch, and look again
                await complete(batch, uuid, resonate, clients)
                continue
            cannot_run.raise_if_unexecutable(promise, resonate)
        try:
            if promise is not None and existed:
                settled = handle_of(promise)
            else:
                settled = await clients.settled(id_, lambda: start(resonate, uuid))
        except ServerError as error:
            if error.code != HTTPStatus.UNPROCESSABLE_ENTITY:
                raise
            continue  # another process has created the promise meanwhile, and it has no task: look again
        try:
            return await verified_guid(settled, uuid, resonate, clients), existed
        except Halted:
            if (guid := await adopted_guid(uuid, resonate, clients)) is None:
                raise
            return guid, True


async def verified_guid(settled: ResonateHandle[Any], uuid: str, resonate: Resonate, clients: Clients) -> str:
    """Return the guid of a settled promise, after TigerBeetle is seen to hold that account. Raises `Halted`."""
    id_ = promise_id(uuid)
    try:
        result = await settled.result()
        guid = str(result["guid"]) if result["uuid"] == uuid else None
    except Panic as panic:
        raise Halted(str(panic)) from panic
    except Exception as error:  # any class of error can be stored in a promise
        problem = f"{type(error).__name__}: {error}"
        raise Halted(
            f"PANIC: promise {id_} settled without an account: {problem}. Run: {check_command(uuid)}"
        ) from error
    # Read first, here too: the System of Record decides whether the account exists.
    if guid is None or await clients.record.guids_of(uuid) != [guid]:
        state = await read_state(Readers(clients.reference, clients.record, resonate), uuid)
        reasons = "; ".join(state.reasons()) or "a store has just changed"
        raise Halted(f"CONFLICT for uuid {uuid!r}: {reasons}. Run: {check_command(uuid)}")
    if await clients.reference.rows_of(uuid, guid) != [(uuid, guid)]:
        print_diagnostic(
            f"account {guid} of uuid {uuid!r} exists, but {clients.reference.name} no longer has its row. "
            f"Run: {check_command(uuid)}"
        )
    return guid


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
    request = await get_promise(resonate, promise_id(uuid))
    call = decode(request.param) if request is not None else None
    workflow = versions(resonate).get(call.get("version", 1)) if isinstance(call, dict) else None
    results: list[str] = []
    for number, name in enumerate(names_of(workflow) if workflow is not None else [], 1):
        promise = await get_promise(resonate, f"{promise_id(uuid)}:{number}")
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
        return await clients.outages.result_or_raise(create_and_show(uuid, resonate, clients, steps=steps))


async def create_and_show(uuid: str, resonate: Resonate, clients: Clients, *, steps: bool) -> str:
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
