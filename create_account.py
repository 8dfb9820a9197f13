"""Create an account in two stores that share no transaction: write last, read first.

- SQLite is the System of Reference. A row `(uuid, guid)` stages an account. A row alone is not an account.
- TigerBeetle is the System of Record. The account exists if, and only if, it exists here.

Write last: the row is written first and the account last, so each account has its row. Read first: to know whether
an account exists, ask TigerBeetle. A row proves nothing.

`create_account` below does this in three steps. Resonate saves the result of each step. After a crash, the next run
is a replay: the function starts at its top again, each finished step returns its saved result, and the interrupted
step runs again. It can find what it wrote before the crash. So side effects belong in steps, and a step must
recognize its own earlier write. If the stores contradict each other, the workflow panics: it stops for good, and an
operator decides.

    python create_account.py user-123

prints the same two lines each time. Without settings it needs no server: see README.md.
"""

if __name__ == "__main__":
    # The command is in operations/create.py. It starts before the slow imports below, and does not return.
    try:
        from clients.command import console
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}: start it without -I, -P and PYTHONSAFEPATH, which hide its directory") from None

    console.main("operations.create", first="clients.preconnect")

import contextlib
import types
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import tigerbeetle as tb
from resonate.context import Context
from resonate.resonate import Resonate
from resonate.retry import Never

from clients import conflicts
from clients.account import account_of, check_new_account, differences
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
        "exists_same",  # it exists and is equal: this workflow wrote it before a crash
        "exists_diff",  # something else exists in its place
        "ordering_violated",  # there is an account without its row, so a store was lost or restored
    ]
    guid: str  # the guid that the step wrote
    conflict: str = ""  # what the step found, for the operator


def panic_if(condition: bool, name: str, uuid: str, outcome: Outcome) -> None:  # noqa: FBT001
    """Stop the workflow for good if the condition holds. An operator decides."""
    if condition:
        raise Panic(name, uuid, outcome.guid, outcome.conflict)


# -- Steps -----------------------------------------------------------------


def generate_guid(ctx: Context, uuid: str) -> str:
    """Step 1: return a new TigerBeetle id, in decimal digits: JSON numbers of other SDKs do not hold 128 bits."""
    check_new_account(ctx.info.parent_id, uuid)
    return str(tb.id())


async def stage_account(ctx: Context, uuid: str, guid: str) -> Outcome:
    """Step 2: stage the account. Write the row in the System of Reference."""
    reference, record = ctx.get_dependency(SystemOfReference), ctx.get_dependency(SystemOfRecord)

    # Read first. If this uuid has an account but no row, the row was lost. A new row would lead to a second account.
    existing_guids = await record.guids_of(uuid)
    rows = await reference.rows_of(uuid, guid)
    if existing_guids and not rows:
        return Outcome("ordering_violated", guid, conflicts.lost_row(reference, existing_guids))

    if not rows:
        # `stage` overwrites nothing. It returns the rows that another run has written since the read above.
        rows = await reference.stage(uuid, guid)
        if not rows:
            return Outcome("created", guid)
    if rows == [(uuid, guid)]:
        return Outcome("exists_same", guid)
    return Outcome("exists_diff", guid, await conflicts.other_rows(reference, record, rows))


async def commit_account(ctx: Context, uuid: str, guid: str) -> Outcome:
    """Step 3: commit the account. Create it in the System of Record."""
    reference, record = ctx.get_dependency(SystemOfReference), ctx.get_dependency(SystemOfRecord)

    # Read first, and commit only with the row: a store may have been lost or restored since step 2.
    existing_guids = await record.guids_of(uuid)
    rows = await reference.rows_of(uuid, guid)
    if rows != [(uuid, guid)] or existing_guids not in ([], [guid]):
        return Outcome("ordering_violated", guid, conflicts.not_staged(reference, existing_guids, rows, guid))

    # `create` overwrites nothing, too. It returns the account that has this guid already.
    existing = await record.create(account_of(uuid, guid))
    if existing is None:
        return Outcome("created", guid)
    if not differences(existing, uuid):
        return Outcome("exists_same", guid)
    return Outcome("exists_diff", guid, conflicts.other_account(existing, uuid))


# -- The workflow ----------------------------------------------------------

#: How long a promise may stay pending: a hundred years. The SDK's default is one day, and a step that is resumed
#: after its deadline fails for good.
DEADLINE = timedelta(days=36_500)


@types.coroutine
def create_account(ctx: Context, uuid: str) -> Any:
    """Write last, read first. Returns `{"uuid": uuid, "guid": guid}`. Raises `Panic`.

    It is a generator, like the TypeScript original: `yield from ctx.run(step).__await__()` is its
    `yield* ctx.run(step)`. Python also has `async def`, without the decorator, and `await ctx.run(step)`.
    """
    ctx = ctx.options(timeout=DEADLINE)
    store = ctx.get_dependency(SystemOfReference).name

    guid = yield from ctx.run(generate_guid, uuid).__await__()

    # Stage the account in the System of Reference.
    staged = yield from ctx.run(stage_account, uuid, guid).__await__()

    panic_if(staged.type == "exists_diff", f"{store} exists_diff", uuid, staged)
    panic_if(staged.type == "ordering_violated", "ordering violated", uuid, staged)

    # Commit the account in the System of Record.
    committed = yield from ctx.run(commit_account, uuid, staged.guid).__await__()

    panic_if(committed.type == "exists_diff", "TigerBeetle exists_diff", uuid, committed)
    panic_if(committed.type == "ordering_violated", "ordering violated", uuid, committed)

    return {"uuid": uuid, "guid": committed.guid}


# -- Wiring ----------------------------------------------------------------


@contextlib.asynccontextmanager
async def connect(settings: Settings, *, serve: bool = False) -> AsyncIterator[tuple[Resonate, Clients]]:
    """Register the workflow and inject the two stores. Raises `Unavailable` at the first outage."""
    async with open_clients(settings, serve=serve) as clients:
        # No retries: by default, the SDK retries a failed step for decades. An outage fails no step: it stays pending.
        resonate = Resonate(**clients.promises, retry_policy=Never())
        resonate.register(create_account, name="create_account")
        resonate.with_dependency(clients.reference).with_dependency(clients.record)
        async with clients.running(resonate):
            yield resonate, clients
