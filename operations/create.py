"""Create one account: the command that `python create_account.py UUID` starts."""

from __future__ import annotations

import argparse
import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from resonate.error import ApplicationError, ServerError

from clients.account import promise_id
from clients.command.console import print_diagnostic, print_result, run_async
from clients.errors import Halted, Unavailable
from clients.panic import Panic, check_command, describe
from clients.promises.cannot_run import Unexecutable
from clients.promises.reading import Claimed, decode, get_promise, read_promise
from create_account import DEADLINE, start
from operations.command_line import EXIT_STATUSES, Parser, add_uuid, add_verbose, parse, print_embedded_notice
from operations.opening import connect
from operations.reading import read_state
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


async def create(uuid: str, clients: Clients) -> tuple[str, bool]:
    """Create the account, or resume its creation. Returns its guid, and whether it existed before.

    TigerBeetle is seen to hold that account. Prints one line if the account's row was lost since. Raises `Halted` if an
    operator must decide.
    """
    id_ = promise_id(uuid)
    while True:
        try:
            settled, existed = await clients.settled(id_, lambda: start(clients.resonate, uuid))
            break
        except Claimed as claimed:  # by a backfill: finish its batch, and look again
            await complete(claimed.batch, uuid, clients)
        except ServerError as error:  # another process has created the promise meanwhile, without a task: look again
            if error.code != HTTPStatus.UNPROCESSABLE_ENTITY:
                raise
    guid, panic = None, None
    try:
        result = await settled.result()
        guid = str(result["guid"]) if result["uuid"] == uuid else None
    except Exception as error:  # noqa: BLE001 - any class of error can be stored in a promise
        panic = error if isinstance(error, Panic) else None
    # Read first, here too: the System of Record decides whether the account exists.
    if guid is not None and await clients.record.guids_of(uuid) == [guid]:
        if await clients.reference.rows_of(uuid, guid) != [(uuid, guid)]:
            lost = f"account {guid} of uuid {uuid!r} exists, but {clients.reference.name} no longer has its row"
            print_diagnostic(f"{lost}. Run: {check_command(uuid)}")
        return guid, existed
    state = await read_state(clients, uuid)
    if not state.adopted:
        raise Halted(str(panic or state.conflict()))
    print_diagnostic(f"promise {id_} is rejected, but an operator has adopted the account: {state.promises[-1].id}")
    return str(state.guid), True


async def run_batch(id_: str, uuids: list[str], clients: Clients) -> tuple[ResonateHandle[Any], bool]:
    """Run or resume the batch, and wait until its promise is settled. Returns its handle, and whether it was before."""
    begin = clients.resonate.options(timeout=DEADLINE).run
    return await clients.settled(id_, lambda: begin(id_, "create_accounts", uuids))


#: A lock for each batch that this process completes: two requests may need the same batch.
_completing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()


async def complete(batch: str, uuid: str, clients: Clients) -> None:
    """Settle the promise of an account that a batch has claimed: run the batch to its end.

    If the batch ended but did not settle the promise, nobody else will. Then the promise is resolved if both stores
    hold the account, and otherwise rejected with the reason, so that an operator can finish the account.
    """
    lock = _completing.setdefault(batch, asyncio.Lock())
    async with lock:
        promise = await read_promise(clients.resonate, promise_id(uuid))
        if promise is None or promise.batch != batch:  # settled while this call waited for the lock
            return
        state = await read_state(clients, uuid)
        if state.claim == batch and state.batch_is_pending:
            # The promise has recorded all uuids of the batch. A resumed run takes those, not this argument.
            await run_batch(batch, [uuid], clients)
            state = await read_state(clients, uuid)
        if state.claim != batch:
            return
        if state.batch_is_pending:
            raise Unavailable(f"batch {batch} is still pending; run again")
        result: dict[str, Any] | ApplicationError = {"uuid": uuid, "guid": state.guid}
        if not state.agrees:
            accounts = [str(account.id) for account in state.accounts]
            found = describe(state.reference, state.guid or "", state.rows, accounts)
            result = ApplicationError(f"uuid {uuid!r} {state.waits_for} and did not settle it: {found}")
        await clients.claims.settle({uuid: result})


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
    async with connect(settings) as clients:
        return await clients.outages.result_or_raise(create_and_show(uuid, clients, steps=steps))


async def create_and_show(uuid: str, clients: Clients, *, steps: bool) -> str:
    before = await saved_steps(uuid, clients.resonate) if steps else []

    async def print_steps() -> None:
        for number, step in enumerate(await saved_steps(uuid, clients.resonate) if steps else []):
            print_diagnostic(f"{step} ({'saved before' if number < len(before) else 'ran now'})")

    try:
        guid, _ = await create(uuid, clients)
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
