"""Create an account in two stores that share no transaction: write last, read first.

- SQLite is the System of Reference. A row `(uuid, guid)` stages an account. A row alone is not an account.
- TigerBeetle is the System of Record. The account exists if, and only if, it exists here.

Write to TigerBeetle last, so that each account has its row. Ask TigerBeetle first whether an account exists, because a
row proves nothing.

`create_account` below has three steps, and Resonate saves the result of each. After a crash, the next run is a replay:
the function starts at its top again, each finished step returns its saved result, and the interrupted step runs again.
So side effects belong in steps, and a step must recognize what it wrote before the crash.

    uv run create_account.py user-123
"""

if __name__ == "__main__":  # operations/create.py is the command. It imports the code below.
    from clients.command import console

    console.main("operations.create", first="clients.preconnect")

import contextlib
import types
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import tigerbeetle as tb
from resonate.context import Context
from resonate.handle import ResonateHandle
from resonate.resonate import Resonate
from resonate.retry import Never

from clients import conflicts
from clients.account import account_of, check_request, differences, promise_id
from clients.opening import Clients, open_clients
from clients.panic import Panic
from clients.settings import Settings
from clients.stores.system_of_record import SystemOfRecord
from clients.stores.system_of_reference import SystemOfReference

# -- Outcomes --------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """The result of step 2 or 3, which Resonate saves."""

    type: Literal[
        "created",  # this step wrote it now
        "exists_same",  # it exists and is equal: this workflow wrote it earlier
        "exists_diff",  # something else exists in its place
        "ordering_violated",  # the row is missing or different, or there is another account: a store was lost or restored
    ]
    guid: str  # the guid that the step was given; step 3 takes it from the saved result of step 2
    conflict: str = ""  # what the step found, in words for the operator


def panic_if(condition: bool, name: str, uuid: str, outcome: Outcome) -> None:
    """Stop the workflow for good if the condition holds: an operator must decide."""
    if condition:
        raise Panic(name, uuid, outcome.guid, outcome.conflict)


# -- Steps -----------------------------------------------------------------


def generate_guid(ctx: Context, uuid: str, guid: str) -> str:
    """Step 1: return a new TigerBeetle id, as text, because many JSON readers cannot hold 128 bits in a number."""
    check_request(ctx.info.parent_id, uuid, guid)  # raises ValueError if the request is wrong
    return guid or str(tb.id())


async def stage_account(ctx: Context, uuid: str, guid: str) -> Outcome:
    """Step 2: stage the account. Write its row in the System of Reference."""
    reference, record = ctx.get_dependency(SystemOfReference), ctx.get_dependency(SystemOfRecord)

    # Read first: the guids of the uuid's accounts, and the rows that have this uuid or this guid.
    accounts, rows = await record.guids_of(uuid), await reference.rows_of(uuid, guid)
    if not rows and accounts not in ([], [guid]):
        # The row of an account was lost. A new row, with a new guid, would lead to a second account.
        return Outcome("ordering_violated", guid, conflicts.lost_row(reference, accounts))

    # Write. If another run has just written such a row, this writes nothing and returns that row.
    rows = rows or await reference.stage(uuid, guid)

    if not rows:
        return Outcome("created", guid)
    if rows == [(uuid, guid)]:
        return Outcome("exists_same", guid)
    return Outcome("exists_diff", guid, await conflicts.other_rows(reference, record, rows))


async def commit_account(ctx: Context, uuid: str, guid: str) -> Outcome:
    """Step 3: commit the account. Create it in the System of Record."""
    reference, record = ctx.get_dependency(SystemOfReference), ctx.get_dependency(SystemOfRecord)

    # Read first, and commit only what is staged: a store may have been lost or restored since step 2.
    accounts, rows = await record.guids_of(uuid), await reference.rows_of(uuid, guid)
    if rows != [(uuid, guid)] or accounts not in ([], [guid]):
        return Outcome("ordering_violated", guid, conflicts.not_staged(reference, accounts, rows, guid))

    # Write last. If an account has this guid, this writes nothing and returns that account.
    existing = await record.create(account_of(uuid, guid))

    if existing is None:
        return Outcome("created", guid)
    if not differences(existing, uuid):
        return Outcome("exists_same", guid)
    return Outcome("exists_diff", guid, conflicts.other_account(existing, uuid))


# -- The workflow ----------------------------------------------------------

#: 100 years: in practice, promises have no deadline. The SDK's default is one day, and a step that is resumed after
#: its deadline fails for good.
DEADLINE = timedelta(days=36_500)


@types.coroutine
def create_account(ctx: Context, uuid: str, guid: str = "") -> Any:
    """Write last, read first. Returns `{"uuid": uuid, "guid": guid}`. Raises `Panic`.

    Only an operator's `adopt` gives the guid, of an account that is staged or exists.

    It is a generator, like the TypeScript original: read `yield from X.__await__()` as `await X`. `types.coroutine` makes
    it awaitable.
    """
    ctx = ctx.options(timeout=DEADLINE)
    store = ctx.get_dependency(SystemOfReference).name

    guid = yield from ctx.run(generate_guid, uuid, guid).__await__()

    # Stage the account in the System of Reference.
    staged = yield from ctx.run(stage_account, uuid, guid).__await__()

    panic_if(staged.type == "exists_diff", f"{store} exists_diff", uuid, staged)
    panic_if(staged.type == "ordering_violated", "ordering violated", uuid, staged)

    # Commit the account in the System of Record.
    committed = yield from ctx.run(commit_account, uuid, staged.guid).__await__()

    panic_if(committed.type == "exists_diff", "TigerBeetle exists_diff", uuid, committed)
    panic_if(committed.type == "ordering_violated", "ordering violated", uuid, committed)

    return {"uuid": uuid, "guid": committed.guid}


# -- The run ---------------------------------------------------------------


def start(resonate: Resonate, uuid: str) -> ResonateHandle[Any]:
    """Start the workflow for the uuid, or resume it, or get its result: one uuid has one promise id, `create-account-<uuid>`."""
    return resonate.options(timeout=DEADLINE).run(promise_id(uuid), create_account, uuid)


def register(resonate: Resonate) -> None:
    """Register the workflow. If you change the steps, see docs/operations.md, 'Changing the steps'."""
    resonate.register(create_account, name="create_account")


@contextlib.asynccontextmanager
async def connect(settings: Settings, *, serve: bool = False) -> AsyncIterator[tuple[Resonate, Clients]]:
    """Register the workflow and inject the two stores.

    `serve`: also run the workflow when other programs ask the Resonate server for it, as a worker does. If a store or the
    server does not answer, the body of the `async with` is cancelled, and `Unavailable` is raised.
    """
    async with open_clients(settings, serve=serve) as clients:
        # No retries: any error but an outage would happen again, and by default the SDK retries for decades. During an
        # outage, the step's promise stays pending.
        resonate = Resonate(**clients.resonate_arguments, retry_policy=Never())
        register(resonate)
        resonate.with_dependency(clients.reference).with_dependency(clients.record)
        async with clients.running(resonate):
            yield resonate, clients
