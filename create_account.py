"""Create an account in two stores that share no transaction: write last, read first.

- SQLite is the System of Reference. A row `(uuid, guid)` stages the account. It decides nothing.
- TigerBeetle is the System of Record. The account exists if, and only if, it exists here.

The rule: write to the System of Record last, and read from it first. `create_account` below does this in
three durable steps. Resonate stores each step's result as a durable promise, so after a crash the next run
resumes at the first step without a result. If the stores contradict each other, the workflow panics: it
halts for good, and an operator decides.

    python create_account.py user-123

prints the same two lines each time. Without settings it needs no server: see `clients/settings.py`.

Exit status: 0 the account exists; 1 a store or server is unavailable; 2 usage; 98 a panic; 130 Ctrl-C.
"""

if __name__ == "__main__":
    # Before the imports below: Ctrl-C during them prints no traceback, and TigerBeetle connects meanwhile.
    from clients import console

    console.main("create_account", connect_early=True)

import contextlib
import types
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import tigerbeetle as tb
from resonate.context import Context
from resonate.resonate import Resonate
from resonate.retry import Never

from clients.account import account_of, check_new_uuid, check_request, differences, promise_id
from clients.command_line import parse_uuid
from clients.console import print_result, run_async
from clients.opening import Clients, open_clients
from clients.panic import Panic
from clients.results import Claimed, confirmed_guid, settled
from clients.settings import Settings
from clients.system_of_record import SystemOfRecord
from clients.system_of_reference import SystemOfReference

if TYPE_CHECKING:
    # Not at run time: the SDK would decode the workflow's result to its annotation, a Generator. The other
    # annotations are not text (`from __future__ import annotations`): the SDK would evaluate it at each step.
    from collections.abc import Generator

# -- Outcomes --------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a write answers: the value of a step's durable promise."""

    type: Literal["created", "exists_same", "exists_diff", "ordering_violated"]
    guid: str  # the guid that the step wrote
    conflict: str = ""


def panic_if(violated: bool, condition: str, uuid: str, guid: str, outcome: Outcome) -> None:  # noqa: FBT001
    """Halt the workflow for an operator."""
    if outcome.guid != guid:  # the promises were lost and recorded again while another process ran
        raise Panic(condition, uuid, guid, f"the promise of this step records the guid {outcome.guid}")
    if violated:
        raise Panic(condition, uuid, guid, outcome.conflict)


# -- Steps -----------------------------------------------------------------


def generate_guid(ctx: Context, uuid: str) -> str:
    """Return a new TigerBeetle id as decimal digits: JSON numbers of other SDKs do not hold 128 bits."""
    check_new_uuid(uuid)
    return str(tb.id())


async def stage_account(ctx: Context, uuid: str, guid: str) -> Outcome:
    """Stage the account: write the row in the System of Reference."""
    sqlite, tigerbeetle = ctx.get_dependency(SystemOfReference), ctx.get_dependency(SystemOfRecord)

    # Read first. An account is committed only after its row. So an account without a row shows that the row
    # was lost, and a row with a new guid would lead to a second account.
    existing_guids = await tigerbeetle.guids_of(uuid)
    while not (rows := await sqlite.rows_of(uuid, guid)):
        if existing_guids:
            held = ", ".join(existing_guids)
            conflict = f"{sqlite.name} has no row for this uuid, but TigerBeetle holds {held}"
            return Outcome("ordering_violated", guid, conflict)
        if await sqlite.stage(uuid, guid):
            return Outcome("created", guid)
    if rows == [(uuid, guid)]:
        return Outcome("exists_same", guid)  # written by this workflow, before a crash
    staged = [
        f"uuid {u!r} with guid {g}, which TigerBeetle {'holds' if await tigerbeetle.lookup(g) else 'does not hold'}"
        for u, g in rows
    ]
    return Outcome("exists_diff", guid, f"{sqlite.name} stages {' and '.join(staged)}")


async def commit_account(ctx: Context, uuid: str, guid: str) -> Outcome:
    """Commit the account: create it in the System of Record."""
    sqlite, tigerbeetle = ctx.get_dependency(SystemOfReference), ctx.get_dependency(SystemOfRecord)

    # Read first, and commit only with the row: SQLite may have been lost or restored since the last step.
    existing_guids = await tigerbeetle.guids_of(uuid)
    staged = await sqlite.rows_of(uuid, guid) == [(uuid, guid)]
    if not staged or existing_guids not in ([], [guid]):
        row = "stages" if staged else "no longer stages"
        held = ", ".join(existing_guids) or "no account"
        conflict = f"{sqlite.name} {row} this guid, and TigerBeetle holds {held} for this uuid"
        return Outcome("ordering_violated", guid, conflict)

    status = await tigerbeetle.create(account_of(uuid, guid))
    if status == tb.CreateAccountStatus.CREATED:
        return Outcome("created", guid)
    if status == tb.CreateAccountStatus.EXISTS:
        return Outcome("exists_same", guid)  # all fields are equal, also the owner: written before a crash
    if status.name.startswith("EXISTS_WITH_DIFFERENT_"):
        other = await tigerbeetle.lookup(guid)
        assert other is not None  # TigerBeetle deletes no account
        conflict = f"TigerBeetle's account has {', '.join(differences(other, uuid))}"
        return Outcome("exists_diff", guid, conflict)
    raise ValueError(f"TigerBeetle rejected the account {guid}: {status!r}")


# -- The workflow ----------------------------------------------------------

#: Of the promises. The SDK's default is one day, and a step that is resumed after its deadline fails for good.
DEADLINE = timedelta(days=36_500)


@types.coroutine
def create_account(ctx: Context, uuid: str) -> "Generator[Any, Any, dict[str, str]]":
    """Write last, read first. Returns `{"uuid": uuid, "guid": guid}`. Raises `Panic`.

    It is a generator, like the TypeScript original: `yield from ctx.run(step).__await__()` corresponds to
    `yield* ctx.run(step)`. The same as a coroutine: `async def` without the decorator, and `await ctx.run(step)`.
    """
    ctx = ctx.options(timeout=DEADLINE)
    check_request(ctx.info.id, uuid)
    reference = ctx.get_dependency(SystemOfReference).name

    guid = yield from ctx.run(generate_guid, uuid).__await__()

    # Stage the account in the System of Reference.
    staged = yield from ctx.run(stage_account, uuid, guid).__await__()

    panic_if(staged.type == "exists_diff", f"{reference} exists_diff", uuid, guid, staged)
    panic_if(staged.type == "ordering_violated", "ordering violated", uuid, guid, staged)

    # Commit the account in the System of Record.
    committed = yield from ctx.run(commit_account, uuid, guid).__await__()

    panic_if(committed.type == "exists_diff", "TigerBeetle exists_diff", uuid, guid, committed)
    panic_if(committed.type == "ordering_violated", "ordering violated", uuid, guid, committed)

    return {"uuid": uuid, "guid": guid}


# -- Wiring ----------------------------------------------------------------


@contextlib.asynccontextmanager
async def connect(settings: Settings, *, serve: bool = False) -> AsyncIterator[tuple[Resonate, Clients]]:
    """Register the workflow and inject the two stores. Raises `Unavailable` at the first outage."""
    async with open_clients(settings, serve=serve) as clients:
        # Never: by default the SDK retries a failed step for decades. An outage fails no step (clients/outages.py).
        resonate = Resonate(**clients.promises, retry_policy=Never())
        resonate.register(create_account, name="create_account")
        resonate.with_dependency(clients.reference).with_dependency(clients.record)
        async with clients.running(resonate):
            yield resonate, clients


async def create(uuid: str, resonate: Resonate, clients: Clients) -> str:
    """Create the account, or resume its creation, and return its guid. Raises `Halted` for an operator."""
    start = resonate.options(timeout=DEADLINE).run
    while True:
        try:
            promise = await settled(resonate, uuid) or start(promise_id(uuid), create_account, uuid)
            return await confirmed_guid(promise, uuid, resonate, clients.record)
        except Claimed as claimed:
            from operations.create_accounts import complete  # noqa: PLC0415 - few accounts are claimed

            await complete(claimed.batch, uuid, resonate, clients)


async def run(uuid: str, settings: Settings) -> str:
    async with connect(settings) as (resonate, clients):
        return await create(uuid, resonate, clients)


def main() -> int:
    uuid, settings = parse_uuid("create_account.py", "Create an account, once.")
    print_result(f"UUID: {uuid}\nGUID: {run_async(run(uuid, settings))}")
    return 0
