"""Read the result of an account's durable promise."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from resonate.error import ServerError
from resonate.handle import PromiseResult, ResonateHandle, Subscription

from clients.account import promise_id
from clients.command.console import Halted, Unavailable, print_diagnostic
from clients.panic import Panic, check_command
from clients.promises import cannot_run
from clients.promises.cannot_run import CODEC, StillLeased, Unexecutable
from clients.promises.claims import batch_of

if TYPE_CHECKING:
    from resonate.resonate import Resonate
    from resonate.types import PromiseRecord

    from clients.stores.system_of_record import SystemOfRecord
    from clients.stores.system_of_reference import SystemOfReference


class Claimed(Exception):
    """A batch has claimed the account: it settles the account's promise."""

    def __init__(self, batch: str) -> None:
        super().__init__(f"claimed by {batch}")
        self.batch = batch


async def read(resonate: Resonate, id_: str) -> PromiseRecord | None:
    """Return the promise; None if it is not found. Its value is not decoded."""
    try:
        return await resonate.promises.sender.promise_get(id_)
    except ServerError as error:
        if error.code != HTTPStatus.NOT_FOUND:
            raise
    return None


async def settled(resonate: Resonate, uuid: str) -> ResonateHandle[Any] | None:
    """Return the account's promise if it is settled; None if it must be run.

    Raises `Claimed` if a batch settles it, and `Unexecutable` if this program cannot run it.
    """
    promise = await read(resonate, promise_id(uuid))
    if promise is None:
        return None
    if promise.state != "pending":
        return handle_of(promise)
    if batch := batch_of(promise):
        raise Claimed(batch)
    cannot_run.check(promise, resonate)
    return None


def handle_of(promise: PromiseRecord) -> ResonateHandle[Any]:
    """Return a handle to a settled promise. The SDK's own is useless if a run under this id has failed before."""
    result, created = Subscription(), asyncio.get_running_loop().create_future()
    result.settle(PromiseResult(state=promise.state, value=promise.value))
    created.set_result(None)
    return ResonateHandle(promise.id, result, CODEC, Any, created)


async def confirmed_guid(
    promise: ResonateHandle[Any], uuid: str, resonate: Resonate, reference: SystemOfReference, record: SystemOfRecord
) -> str:
    """Wait for the promise and return its guid, after TigerBeetle is seen to hold that account.

    Prints one line if the account's row was lost since. Raises `Halted` if the promise is rejected, or if TigerBeetle
    holds another account or none, and the errors of `settled`.
    """
    try:
        await promise.id()  # raises the error if the promise could not be created; `result` would wait without a limit
    except ServerError as error:
        if error.code != HTTPStatus.UNPROCESSABLE_ENTITY:
            raise
        # Another process has created the promise meanwhile, and nobody can run it: for a batch, for example.
        settled_promise = await settled(resonate, uuid)
        if settled_promise is None:
            raise Unavailable(f"promise {promise_id(uuid)} is changing; run again") from error
        promise = settled_promise
    try:
        result = await promise.result()
        guid = str(result["guid"]) if result["uuid"] == uuid else None
    except Panic as panic:
        raise Halted(str(panic)) from panic
    except (Unexecutable, StillLeased):
        raise
    except Exception as error:  # any class of error can be stored in a promise
        problem = f"{type(error).__name__}: {error}"
        raise Halted(
            f"PANIC: promise {promise_id(uuid)} settled without an account: {problem}. Run: {check_command(uuid)}"
        ) from error
    if guid is None:
        raise Halted(
            f"CONFLICT: promise {promise_id(uuid)} is resolved for uuid {result['uuid']!r}. Run: {check_command(uuid)}"
        )
    # Read first, here too: the System of Record decides whether the account exists.
    existing_guids = await record.guids_of(uuid)
    if existing_guids != [guid]:
        raise Halted(account_mismatch_message(uuid, guid, existing_guids))
    if await reference.rows_of(uuid, guid) != [(uuid, guid)]:
        print_diagnostic(
            f"account {guid} of uuid {uuid!r} exists, but {reference.name} no longer has its row. Run: {check_command(uuid)}"
        )
    return guid


def account_mismatch_message(uuid: str, guid: str, existing_guids: list[str]) -> str:
    held = f"only {', '.join(existing_guids)}" if existing_guids else "no account"
    return (
        f"CONFLICT: the promise records account {guid} for uuid {uuid!r}, but TigerBeetle holds {held} for this uuid. "
        f"Run: {check_command(uuid)}"
    )
