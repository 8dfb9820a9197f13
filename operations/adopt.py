"""Finish an account after a panic: `python -m operations adopt UUID`. `--again` creates it anew.

A panic is final: the durable promise `create-account-<uuid>` stays rejected, and no step of it runs again.
So this command may write, under a durable promise of its own:

- A row is staged, and TigerBeetle holds no account for the uuid: the row's own guid is committed.
- TigerBeetle holds one account for the uuid, and there is no row: its row is staged again.
- Neither, and `--again`: `create_account` runs once more, with a new guid.
- Both, and they agree: no store is written. If a promise names another guid, a line says so.

The promise ids are `create-account_attempt-<number>-<uuid>`, from 2. An attempt begins only after all earlier
attempts are settled; a pending attempt is resumed.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from clients.account import promise_id
from clients.command.console import print_diagnostic, print_result
from clients.errors import Halted, Unavailable
from clients.panic import Panic
from clients.promises.reading import EXISTING
from create_account import DEADLINE, Stores
from operations.opening import connect
from operations.reading import read_state, with_readers
from operations.steps import versions

if TYPE_CHECKING:
    import tigerbeetle as tb

    from clients.outages import Outages
    from clients.settings import Settings
    from clients.stores.system_of_record import SystemOfRecord
    from operations.verdict import AccountState

# -- The decision ----------------------------------------------------------

#: The group of an adoption that may create the account. No worker listens to it, nor to `EXISTING`: only this command
#: resumes an adoption.
OPERATORS = "operators"

RESTORE = "restore TigerBeetle, or use `adopt --again` to recreate the account with the same guid and a zero balance"


class Refused(Exception):
    """Nothing is changed. The message is one line: cause and action."""


@dataclass(frozen=True)
class Attempt:
    id: str
    arguments: tuple[str, ...]
    existing: bool = False  # TigerBeetle holds the account. If it loses the account meanwhile, do not create it again


def decide(state: AccountState, *, again: bool) -> Attempt | None:
    """Return what to do; None if the account exists. Raises `Refused`."""
    uuid, promises = state.uuid, state.promises
    if not promises:
        raise Refused(f"promise {promise_id(uuid)} not found (never created, or lost); run {rerun(uuid)}")
    if promises[-1].state == "pending":
        return resumed(state, again=again)

    next_id = promise_id(uuid, len(promises) + 1)
    if state.agrees and promises[-1].state == "resolved":
        return None
    if state.agrees:  # the next promise records that the account is adopted
        return Attempt(next_id, (uuid, str(state.guid)), existing=True)

    lost = state.broken_promises()
    if state.contradictions() or any(promise.guid != state.guid for promise in lost):
        raise Refused("; ".join(state.reasons()))

    if state.accounts:
        return Attempt(next_id, (uuid, str(state.accounts[0].id)), existing=True)
    if state.guid is None and not again:
        raise Refused("nothing is staged, and TigerBeetle holds no account; use `adopt --again` to create one")
    if state.guid is None:
        return Attempt(next_id, (uuid,))
    if lost and not again:
        raise Refused(f"{'; '.join(state.reasons())}; {RESTORE}")
    if again and not lost:
        raise Refused(f"guid {state.guid} is staged; run adopt without --again to finish it")
    return Attempt(next_id, (uuid, state.guid))


def resumed(state: AccountState, *, again: bool) -> Attempt:
    """Return the pending attempt. Raises `Refused`."""
    last = state.promises[-1]
    if last.halt:
        raise Refused(f"promise {last.id} is {last.halt}; see docs/operations.md, 'A promise that no program resumes'")
    if len(state.promises) == 1:
        waits = f" and {state.waits_for}" if state.waits_for else ""
        raise Refused(f"promise {last.id} is pending{waits}; to resume it, run {rerun(state.uuid)}")
    if last in state.broken_promises() and not again:
        raise Refused(f"{'; '.join(state.reasons())}; {RESTORE}")
    # The promise records its arguments. These are not used.
    return Attempt(last.id, (state.uuid,), existing=last.existing is not None and not again)


def rerun(uuid: str) -> str:
    return f"python create_account.py -- {shlex.quote(uuid)}"


class ExistingAccounts:
    """The System of Record for an adoption of an account that exists: it creates no account."""

    def __init__(self, record: SystemOfRecord, outages: Outages) -> None:
        self._record = record
        self._outages = outages

    def __getattr__(self, name: str) -> Any:
        return getattr(self._record, name)

    async def create(self, account: tb.Account) -> tb.Account:
        async def existing() -> tb.Account:
            if found := await self._record.lookup(str(account.id)):
                return found
            raise Unavailable(
                f"TigerBeetle no longer holds account {account.id}; it was not created again: run adopt again"
            )

        return await self._outages.keep_pending(f"account {account.id}", existing)


async def run(uuid: str, settings: Settings, *, again: bool) -> int:
    state = await read(uuid, settings)
    try:
        attempt = decide(state, again=again)
    except Refused as refused:
        raise Halted(f"refused, nothing changed: {refused}") from refused
    if attempt is not None:
        try:
            await carry_out(attempt, settings)
        except Panic as panic:
            raise Halted(str(panic)) from panic
        state = await read(uuid, settings)
    if not state.agrees:
        raise Halted(state.conflict())
    for promise in state.broken_promises():
        print_diagnostic(
            f"both stores hold this account, but promise {promise.id} names guid {promise.guid} of uuid "
            f"{promise.uuid!r}: use the guid below, and correct it wherever the other one was received"
        )
    print_result(f"UUID: {uuid}\nGUID: {state.guid}")
    return 0


async def read(uuid: str, settings: Settings) -> AccountState:
    return await with_readers(settings, lambda readers: read_state(readers, uuid), refuse=True)


async def carry_out(attempt: Attempt, settings: Settings) -> None:
    """Run or resume the attempt. Raises its `Panic`."""
    async with connect(settings) as clients:
        if attempt.existing:
            existing = cast("SystemOfRecord", ExistingAccounts(clients.record, clients.outages))
            clients.resonate.with_dependency(Stores(clients.reference, existing))
        target, version = EXISTING if attempt.existing else OPERATORS, max(versions(clients.resonate))
        start = clients.resonate.options(timeout=DEADLINE, target=target, version=version).run
        settling = clients.settled(attempt.id, lambda: start(attempt.id, "adopt_account", *attempt.arguments))
        settled, _ = await clients.outages.result_or_raise(settling)
        await settled.result()
