"""Create an account in two stores that share no transaction: write last, read first. README.md explains the rule."""

if __name__ == "__main__":  # Skip this: it starts the command, which imports this file as a module.
    from clients.command import console

    console.main("operations.create", first="clients.preconnect")

import types
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, NamedTuple

import tigerbeetle as tb
from resonate.context import Context
from resonate.handle import ResonateHandle
from resonate.resonate import Resonate

from clients.account import account_of, check_request, difference, promise_id
from clients.panic import describe, panic_if, saved
from clients.stores.system_of_record import SystemOfRecord
from clients.stores.system_of_reference import SystemOfReference

# -- The workflow ----------------------------------------------------------


@types.coroutine  # lets the SDK await this generator; in your code, write `async def` and `await ctx.run(...)`
def create_account(ctx: Context, uuid: str) -> Any:
    """Return `{"uuid": uuid, "guid": guid}`, or raise `Panic`. To add a step: docs/operations.md, 'Changing the steps'."""
    ctx = ctx.options(timeout=DEADLINE)
    reference = ctx.get_dependency(Stores).reference

    # Step 1: generate the guid.
    guid = yield from saved(ctx.run(generate_guid, uuid))

    # Step 2: stage the account in the System of Reference.
    staged = yield from saved(ctx.run(stage_account, uuid, guid))

    panic_if(staged.type == "exists_diff", f"{reference.name} exists_diff", uuid, staged)
    panic_if(staged.type == "ordering_violated", "ordering violated", uuid, staged)

    # Step 3: commit the account that was staged, in the System of Record.
    committed = yield from saved(ctx.run(commit_account, uuid, staged.guid))

    panic_if(committed.type == "exists_diff", "TigerBeetle exists_diff", uuid, committed)
    panic_if(committed.type == "ordering_violated", "ordering violated", uuid, committed)

    return {"uuid": uuid, "guid": committed.guid}


#: 100 years, for the workflow and for its steps. The SDK's default is one day: a rerun after one day would fail.
DEADLINE = timedelta(days=36_500)


@dataclass(frozen=True)
class Outcome:
    """The result of step 2 or 3."""

    type: Literal["created", "exists_same", "exists_diff", "ordering_violated"]
    guid: str  # the guid that this step used; the next step uses this one
    conflict: str = ""  # what the step found, in words for the operator


# -- Steps -----------------------------------------------------------------


def generate_guid(ctx: Context, uuid: str) -> str:
    """Step 1: return a new TigerBeetle id, as text, because many JSON readers cannot hold 128 bits in a number."""
    check_request(ctx.info.parent_id, uuid)  # ValueError if the workflow's id names another uuid
    return str(tb.id())


async def stage_account(ctx: Context, uuid: str, guid: str) -> Outcome:
    """Step 2: write the row in the System of Reference."""
    reference, record = ctx.get_dependency(Stores)

    # Read first. Does the uuid have an account with another guid?
    # - If there is no row, the row was lost. Do not stage a second account.
    # - If there is a row, go on. The write below compares the row, and step 3 compares the accounts.
    accounts = await record.guids_of(uuid)
    rows = await reference.rows_of(uuid, guid)  # those that have this uuid or this guid
    other_accounts = set(accounts) - {guid}
    if other_accounts and not rows:
        return Outcome("ordering_violated", guid, describe(reference.name, guid, rows, accounts))

    # Write. If rows have this uuid or this guid, this writes nothing and returns them.
    existing_rows = await reference.stage(uuid, guid)

    if not existing_rows:
        return Outcome("created", guid)
    if existing_rows == [(uuid, guid)]:
        return Outcome("exists_same", guid)
    # Another row has this uuid or this guid.
    return Outcome("exists_diff", guid, describe(reference.name, guid, existing_rows, accounts))


async def commit_account(ctx: Context, uuid: str, guid: str) -> Outcome:
    """Step 3: create the account in the System of Record."""
    reference, record = ctx.get_dependency(Stores)

    # Read first, again: since step 2, a store may have been lost, or another program may have created an account.
    accounts = await record.guids_of(uuid)
    rows = await reference.rows_of(uuid, guid)
    other_accounts = set(accounts) - {guid}
    if other_accounts or rows != [(uuid, guid)]:
        return Outcome("ordering_violated", guid, describe(reference.name, guid, rows, accounts))

    # Write last. If an account has this guid, this creates nothing and returns that account.
    existing_account = await record.create(account_of(uuid, guid))

    if existing_account is None:
        return Outcome("created", guid)
    differing = difference(existing_account, uuid)
    if not differing:
        return Outcome("exists_same", guid)
    # An account with this guid has different fields.
    return Outcome("exists_diff", guid, differing)


# -- Register, inject, run -------------------------------------------------


class Stores(NamedTuple):
    """The two stores. Each step gets them from its context."""

    reference: SystemOfReference  # SQLite or PostgreSQL: a row stages an account, and decides nothing
    record: SystemOfRecord  # TigerBeetle: the account exists if, and only if, it exists here


def register(resonate: Resonate, reference: SystemOfReference, record: SystemOfRecord) -> None:
    """Register the workflow, and inject the two stores.

    `resonate` must have `retry_policy=Never()`: by default, the SDK retries a failed step 30 times, which takes decades.
    An outage is no failure: the stores' methods wait.
    """
    resonate.register(create_account, name="create_account")
    resonate.with_dependency(Stores(reference, record))


def start(resonate: Resonate, uuid: str) -> ResonateHandle[Any]:
    """Start the workflow, resume it, or get its saved result. Its id is `create-account-<uuid>`."""
    return resonate.options(timeout=DEADLINE).run(promise_id(uuid), create_account, uuid)
