"""Create an account in two stores that share no transaction: write last, read first.

- SQLite is the System of Reference. A row `(uuid, guid)` stages an account. A row alone is not an account.
- TigerBeetle is the System of Record. The account exists if, and only if, it exists here.

After a crash, the workflow runs again from its top: a finished step returns its saved result, and the interrupted step
runs again. So a step must recognize what it wrote before the crash.
"""

if __name__ == "__main__":  # Start the command before the slow imports. This does not return.
    from clients.command import console

    console.main("operations.create", first="clients.preconnect")

import types
from collections.abc import Generator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import tigerbeetle as tb
from resonate.context import Context, ResonateFuture
from resonate.handle import ResonateHandle
from resonate.resonate import Resonate

from clients.account import account_of, check_request, differences, promise_id
from clients.panic import Panic, found
from clients.stores.system_of_record import SystemOfRecord
from clients.stores.system_of_reference import SystemOfReference

# -- The workflow ----------------------------------------------------------


@types.coroutine  # makes the generator awaitable for the SDK
def create_account(ctx: Context, uuid: str, guid: str = "") -> Any:
    """Return `{"uuid": uuid, "guid": guid}`, or raise `Panic`. Only an operator's `adopt` gives a guid."""
    ctx = ctx.options(timeout=DEADLINE)
    reference = ctx.get_dependency(Stores).reference

    guid = yield from saved(ctx.run(generate_guid, uuid, guid))

    # Stage the account in the System of Reference.
    staged = yield from saved(ctx.run(stage_account, uuid, guid))

    panic_if(staged.type == "exists_diff", f"{reference.name} exists_diff", uuid, staged)
    panic_if(staged.type == "ordering_violated", "ordering violated", uuid, staged)

    # Commit the account in the System of Record. Its guid is the one that was staged: if all promises were lost while
    # this process was paused, another process can have staged another guid.
    committed = yield from saved(ctx.run(commit_account, uuid, staged.guid))

    panic_if(committed.type == "exists_diff", "TigerBeetle exists_diff", uuid, committed)
    panic_if(committed.type == "ordering_violated", "ordering violated", uuid, committed)

    return {"uuid": uuid, "guid": committed.guid}


T = TypeVar("T")


def saved(step: ResonateFuture[T]) -> Generator[Any, Any, T]:  # noqa: UP047 - old Pythons must parse this file
    """Return the saved result of a step.

    The workflow is a generator only to look like the TypeScript original. In your code write `async def create_account`
    and `await ctx.run(...)`: nothing else changes.
    """
    return step.__await__()


#: 100 years: in practice, promises have no deadline. The SDK's default is one day, and a later run would fail for good.
DEADLINE = timedelta(days=36_500)

# -- Outcomes --------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """The result of step 2 or 3, which Resonate saves."""

    type: Literal[
        "created",  # step 2 wrote the row; step 3 created the account
        "exists_same",  # the same row, or the same account, is there: written before a crash
        "exists_diff",  # step 2: another row has this uuid or this guid; step 3: the guid's account has other fields
        "ordering_violated",  # step 2: the uuid has an account, but no row; step 3: no such row, or another account
    ]
    guid: str  # the guid that the step was given
    conflict: str = ""  # what the step found, in words for the operator


def panic_if(condition: bool, name: str, uuid: str, outcome: Outcome) -> None:
    """Stop the workflow for good if the condition holds: an operator must decide."""
    if condition:
        raise Panic(name, uuid, outcome.guid, outcome.conflict)


# -- Steps -----------------------------------------------------------------


def generate_guid(ctx: Context, uuid: str, guid: str) -> str:
    """Step 1: return a new TigerBeetle id, as text, because many JSON readers cannot hold 128 bits in a number."""
    check_request(ctx.info.parent_id, uuid, guid)  # raises ValueError, for example if the uuid is not the promise's
    return guid or str(tb.id())


async def stage_account(ctx: Context, uuid: str, guid: str) -> Outcome:
    """Step 2: stage the account. Write its row in the System of Reference."""
    stores = ctx.get_dependency(Stores)

    # Read first: the guids of the uuid's accounts, and the rows that have this uuid or this guid.
    accounts = await stores.record.guids_of(uuid)
    rows = await stores.reference.rows_of(uuid, guid)
    if not rows and accounts not in ([], [guid]):
        # The row of an account was lost. A new row, with a new guid, would lead to a second account.
        return Outcome("ordering_violated", guid, found(stores.reference.name, rows, accounts))

    # Write. If another run has just written such a row, this writes nothing and returns that row.
    existing_rows = rows or await stores.reference.stage(uuid, guid)

    # Say what happened. If another account of this uuid exists, step 3 finds it.
    if not existing_rows:
        return Outcome("created", guid)
    if existing_rows == [(uuid, guid)]:
        return Outcome("exists_same", guid)
    return Outcome("exists_diff", guid, found(stores.reference.name, existing_rows, accounts))


async def commit_account(ctx: Context, uuid: str, guid: str) -> Outcome:
    """Step 3: commit the account. Create it in the System of Record."""
    stores = ctx.get_dependency(Stores)

    # Read first, and commit only what is staged: a store may have been lost or restored since step 2.
    accounts = await stores.record.guids_of(uuid)
    rows = await stores.reference.rows_of(uuid, guid)
    if rows != [(uuid, guid)] or accounts not in ([], [guid]):
        return Outcome("ordering_violated", guid, found(stores.reference.name, rows, accounts))

    # Write last. If an account has this guid, this writes nothing and returns that account.
    existing_account = await stores.record.create(account_of(uuid, guid))

    # Say what happened.
    if existing_account is None:
        return Outcome("created", guid)
    differing_fields = differences(existing_account, uuid)
    if not differing_fields:
        return Outcome("exists_same", guid)
    return Outcome("exists_diff", guid, f"TigerBeetle's account {guid} has {', '.join(differing_fields)}")


# -- Register, inject, run -------------------------------------------------


@dataclass(frozen=True)
class Stores:
    """The two stores. Each step gets them from its context."""

    reference: SystemOfReference
    record: SystemOfRecord


def register(resonate: Resonate, reference: SystemOfReference, record: SystemOfRecord) -> None:
    """Register the workflow, and inject the two stores.

    Create `Resonate` with `retry_policy=Never()`: a step waits by itself until a store answers, any other error would
    happen again, and by default the SDK retries for decades.
    """
    resonate.register(create_account, name="create_account")  # other steps: see docs/operations.md
    resonate.with_dependency(Stores(reference, record))


def start(resonate: Resonate, uuid: str) -> ResonateHandle[Any]:
    """Start the workflow, resume it, or get its result: one uuid has one promise, `create-account-<uuid>`."""
    return resonate.options(timeout=DEADLINE).run(promise_id(uuid), create_account, uuid)
