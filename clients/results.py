"""Read the result of an account's durable promise."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from resonate.error import ServerError

from .account import check_new_uuid, promise_id
from .console import Halted, UsageError
from .panic import Panic
from .unexecutable import Unexecutable, unexecutable

if TYPE_CHECKING:
    from resonate.handle import ResonateHandle
    from resonate.resonate import Resonate

    from .system_of_record import SystemOfRecord


async def settled(resonate: Resonate, uuid: str) -> ResonateHandle[Any] | None:
    """Return the account's promise if it is settled; None if it must be run.

    Raises UsageError if the uuid is probably a mistake and no account was requested with it before.
    """
    try:
        promise = await resonate.get(promise_id(uuid))
    except ServerError as error:
        if error.code != HTTPStatus.NOT_FOUND:
            raise
        check_if_acceptable(uuid)
        return None
    return promise if promise.done() else None


def check_if_acceptable(uuid: str) -> None:
    """Raise UsageError if a new account's uuid is probably a mistake."""
    try:
        check_new_uuid(uuid)
    except ValueError as error:
        raise UsageError(f"{error}: correct it and run again") from error


async def confirmed_guid(promise: ResonateHandle[Any], uuid: str, record: SystemOfRecord) -> str:
    """Wait for the promise and return its guid, after TigerBeetle is seen to hold that account.

    Raises `Halted` if the promise is rejected, or if TigerBeetle holds another account or none, and `Unexecutable`.
    """
    try:
        await (
            promise.id()
        )  # raises an error of the creation; without this, `result` would wait without a limit
    except ServerError as error:
        if error.code != HTTPStatus.UNPROCESSABLE_ENTITY:
            raise
        raise unexecutable(promise_id(uuid), "it has no task, because another program created it") from error
    try:
        result = await promise.result()
        guid = str(result["guid"]) if result["uuid"] == uuid else None
    except Panic as panic:
        raise Halted(str(panic)) from panic
    except Unexecutable:
        raise
    except Exception as error:  # any class of error can be stored in a promise
        problem = f"{type(error).__name__}: {error}"
        raise Halted(
            f"PANIC: promise {promise_id(uuid)} settled without an account: {problem}. {ADVICE}"
        ) from error
    if guid is None:
        raise Halted(f"PANIC: promise {promise_id(uuid)} is resolved for uuid {result['uuid']!r}. {ADVICE}")
    # Read first, here too: the System of Record decides whether the account exists.
    existing_guids = await record.guids_of(uuid)
    if existing_guids != [guid]:
        raise Halted(account_mismatch_message(uuid, guid, existing_guids))
    return guid


ADVICE = "What to do: docs/operations.md"


def account_mismatch_message(uuid: str, guid: str, existing_guids: list[str]) -> str:
    held = f"only {', '.join(existing_guids)}" if existing_guids else "no account"
    return (
        f"PANIC: the promise records account {guid} for uuid {uuid!r}, but TigerBeetle holds {held} for this uuid: "
        "the ledger was replaced or restored from an old backup, or another host uses its own System of "
        f"Reference. {ADVICE}"
    )
