"""The durable batch: the three steps of `create_account`, for many accounts at a time.

The batch is one durable workflow. Its promise is `create-accounts-<hash of its uuids>`. Each uuid still has its own
promise, `create-account-<uuid>`, with the same state and value as after a single run. So there are two more steps:

1. claim: create each uuid's promise, with a tag that names the batch. A uuid whose promise exists is left out.
2. generate the guids.
3. stage: write the rows in the System of Reference.
4. commit: create the accounts in the System of Record.
5. settle: resolve each claimed promise with its account, or reject it with its panic.

If an account cannot simply be created, the batch runs the single step of `create_account.py` for it, and that step decides.
So each conflict is defined once. A panic halts its account only.

A single run, or another batch, that meets a claimed account completes the batch first (`complete`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import msgspec
import tigerbeetle as tb
from resonate.error import AlreadyRegisteredError, ApplicationError

from clients.account import account_of, check_request, promise_id
from clients.errors import Unavailable
from clients.panic import Panic, describe, panic_if
from clients.promises import cannot_run
from clients.promises.claims import Claims, batch_of
from clients.promises.reading import get_promise, handle_of
from create_account import DEADLINE, Outcome, Stores, commit_account, stage_account
from operations.steps import are_of_batches, versions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from resonate.context import Context
    from resonate.handle import ResonateHandle
    from resonate.resonate import Resonate
    from resonate.types import PromiseRecord

    from operations.opening import Clients

#: Bytes of a batch's largest step result, at the most. A Resonate server accepts requests of 2 MiB, of Base64.
BYTES_MAX = 1_000_000

#: Bytes of a conflict in a step's result, without the uuid.
CONFLICT_BYTES = 450

# -- The batch -------------------------------------------------------------


def batch_id(uuids: list[str]) -> str:
    """Return the id of the durable promise of a batch of these uuids, in this order."""
    return f"create-accounts-{hashlib.blake2b(msgspec.json.encode(uuids), digest_size=16).hexdigest()}"


def size_of(uuid: str) -> int:
    """Return how much of `BYTES_MAX` the uuid needs if it is in conflict, which quotes it twice."""
    return 2 * len(ascii(uuid)) + CONFLICT_BYTES


def check_batch(id_: str, uuids: list[str]) -> None:
    """Raise ValueError, saying why, if a promise with this id must not create these uuids' accounts."""
    if id_ != batch_id(uuids):
        raise ValueError(f"promise {id_} does not belong to these uuids; no account was created")
    if len(set(uuids)) < len(uuids):
        raise ValueError("a uuid occurs twice in the batch; no account was created")
    for uuid in uuids:
        check_request(promise_id(uuid), uuid)


# -- Steps -----------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """What a step answers for all accounts: the value of its durable promise."""

    first_guid: str  # of the guids that the step wrote
    panics: list[tuple[str, str, str, str]]  # the arguments of each `Panic`
    newest: int = 0  # no account of these uuids is older than this timestamp of TigerBeetle (ns)


async def claim(ctx: Context, batch: str, uuids: list[str], timeout_at: int) -> list[str]:
    """Create the uuids' promises. Returns the uuids that are left out: their promises existed before."""
    return await ctx.get_dependency(Claims).create(batch, uuids, timeout_at)


def generate_guids(ctx: Context, count: int) -> list[str]:
    return [str(tb.id()) for _ in range(count)]


async def stage(ctx: Context, accounts: dict[str, str]) -> Written:
    """Write the rows."""
    reference, record = ctx.get_dependency(Stores)

    # Read first, as in the single step. The time of the newest account is read before the accounts, so that the next
    # step only needs to look for accounts that are newer.
    newest = await record.newest()
    existing = await record.guids_of_many(list(accounts))
    absent = [pair for pair, guids in zip(accounts.items(), existing, strict=True) if not guids]
    written = await reference.stage_many(absent)
    created = {uuid for (uuid, _), done in zip(absent, written, strict=True) if done}
    panics = await judge(ctx, stage_account, reference.name, accounts, created)
    # An account that exists is older than `newest`. Then the commit step must look at all accounts.
    return Written(first(accounts), panics, 0 if any(existing) else newest)


async def commit(ctx: Context, accounts: dict[str, str], newest: int) -> Written:
    """Create the accounts."""
    reference, record = ctx.get_dependency(Stores)

    # Read first, and commit only with the row, as in the single step.
    existing = await record.guids_of_many(list(accounts), newer_than=newest)
    rows = await reference.rows_of_many(list(accounts.items()))
    staged = [
        (uuid, guid)
        for (uuid, guid), guids, found in zip(accounts.items(), existing, rows, strict=True)
        if found == [(uuid, guid)] and guids in ([], [guid])
    ]
    statuses = await record.create_many([account_of(uuid, guid) for uuid, guid in staged])
    done = (tb.CreateAccountStatus.CREATED, tb.CreateAccountStatus.EXISTS)
    created = {uuid for (uuid, _), status in zip(staged, statuses, strict=True) if status in done}
    return Written(first(accounts), await judge(ctx, commit_account, "TigerBeetle", accounts, created))


async def judge(
    ctx: Context,
    step: Callable[[Context, str, str], Awaitable[Outcome]],
    store: str,
    accounts: dict[str, str],
    created: set[str],
) -> list[tuple[str, str, str, str]]:
    """Run the single step for the accounts that are not simply created. Returns the arguments of the panics."""

    async def panic_of(uuid: str, guid: str) -> Panic | None:
        outcome = await step(ctx, uuid, guid)
        try:
            panic_if(outcome.type == "exists_diff", f"{store} exists_diff", uuid, outcome)
            panic_if(outcome.type == "ordering_violated", "ordering violated", uuid, outcome)
        except Panic as panic:
            return panic
        return None

    doubtful = [pair for pair in accounts.items() if pair[0] not in created]
    panics = [panic for panic in await asyncio.gather(*(panic_of(*pair) for pair in doubtful)) if panic]
    # A conflict quotes the rows of other programs, of any length. A batch with a larger result could never end.
    too_large = sum(len(ascii(panic.conflict)) for panic in panics) > BYTES_MAX
    length = CONFLICT_BYTES if too_large else None
    return [(panic.condition, panic.uuid, panic.guid, panic.conflict[:length]) for panic in panics]


async def settle(ctx: Context, accounts: dict[str, str], panics: list[tuple[str, str, str, str]]) -> list[str]:
    """Settle the claimed promises. Returns the uuids whose promises somebody else settled in another way."""
    results: dict[str, Any] = {uuid: {"uuid": uuid, "guid": guid} for uuid, guid in accounts.items()}
    results |= {panic[1]: Panic(*panic) for panic in panics}
    return await ctx.get_dependency(Claims).settle(results)


# -- The workflow ----------------------------------------------------------


@types.coroutine
def create_accounts(ctx: Context, uuids: list[str]) -> Any:
    """Write last, read first, for a list. Returns `{"guids": [guid or None, ...], "newest": timestamp}`.

    The guids are in the order of the uuids. None: the uuid's own promise says what became of it.
    """
    ctx = ctx.options(timeout=DEADLINE)
    check_batch(ctx.info.id, uuids)

    others = set((yield from ctx.run(claim, ctx.info.id, uuids, ctx.info.timeout_at).__await__()))
    claimed = [uuid for uuid in uuids if uuid not in others]
    if not claimed:
        return {"guids": [None] * len(uuids), "newest": 0}

    guids = yield from ctx.run(generate_guids, len(claimed)).__await__()
    accounts = dict(zip(claimed, guids, strict=True))

    # Stage the accounts in the System of Reference.
    staged = yield from ctx.run(stage, accounts).__await__()
    check_recorded(staged, accounts)
    to_commit = without(accounts, staged.panics)

    # Commit the accounts in the System of Record.
    committed = yield from ctx.run(commit, to_commit, staged.newest).__await__()
    check_recorded(committed, to_commit)
    created = without(to_commit, committed.panics)

    others = set((yield from ctx.run(settle, created, staged.panics + committed.panics).__await__()))
    return {"guids": [None if uuid in others else created.get(uuid) for uuid in uuids], "newest": staged.newest}


def check_recorded(written: Written, accounts: dict[str, str]) -> None:
    """Raise ValueError if the promises were lost and recorded again while another process ran."""
    if written.first_guid != first(accounts):
        raise ValueError(f"the promise of a step records the guid {written.first_guid} of another run")


def first(accounts: dict[str, str]) -> str:
    return next(iter(accounts.values()), "")


def without(accounts: dict[str, str], panics: list[tuple[str, str, str, str]]) -> dict[str, str]:
    halted = {uuid for _, uuid, _, _ in panics}
    return {uuid: guid for uuid, guid in accounts.items() if uuid not in halted}


# -- Callers ---------------------------------------------------------------


def register_workflow(resonate: Resonate) -> None:
    """Register the workflow, if a version of `create_account` has its steps. May be called again.

    Else this program lacks the steps, and a pending batch waits for a program that has them.
    """
    if any(map(are_of_batches, versions(resonate).values())):
        with contextlib.suppress(AlreadyRegisteredError):
            resonate.register(create_accounts, name="create_accounts")


def register(resonate: Resonate, clients: Clients) -> Claims:
    """Register the workflow and inject what it needs besides the two stores. May be called again."""
    claims = Claims(resonate, clients.network)
    register_workflow(resonate)
    resonate.with_dependency(claims)
    return claims


async def create_batch(uuids: list[str], resonate: Resonate, clients: Clients) -> tuple[bool, list[str | None]]:
    """Create the accounts as a batch, or resume it. Returns whether it had ended before, and the guids.

    TigerBeetle is seen to hold the account of each guid. None: a single run says what became of the uuid, also if the
    account exists, but its row was lost since.
    """
    register(resonate, clients)
    promise = await get_promise(resonate, batch_id(uuids))
    ended = promise is not None and promise.state != "pending"
    try:
        if promise is not None and ended:
            batch = handle_of(promise)
        else:
            if promise is not None:
                cannot_run.raise_if_unexecutable(promise, resonate)
            batch = await run_batch(batch_id(uuids), uuids, resonate, clients)
        result = await batch.result()
        guids = dict(zip(uuids, result["guids"], strict=True))
        # The accounts of a batch that ended before are not among the newest.
        newer_than = None if ended else int(result["newest"])
    except Exception:  # noqa: BLE001 - any error or value can be stored in a promise; the single runs report it
        return False, [None] * len(uuids)
    # Read first, here too.
    existing = await clients.record.guids_of_many(uuids, newer_than)
    rows = await clients.reference.rows_of_many([(uuid, guid or "") for uuid, guid in guids.items()])
    return ended, [
        guid if held == [guid] and found == [(uuid, guid)] else None
        for (uuid, guid), held, found in zip(guids.items(), existing, rows, strict=True)
    ]


async def run_batch(id_: str, uuids: list[str], resonate: Resonate, clients: Clients) -> ResonateHandle[Any]:
    """Run or resume the batch, and wait until its promise is settled."""
    start = resonate.options(timeout=DEADLINE).run
    return await clients.settled(id_, lambda: start(id_, create_accounts, uuids))


#: A lock for each batch that this process completes: two requests may need the same batch.
_completing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()


async def complete(batch: str, uuid: str, resonate: Resonate, clients: Clients) -> None:
    """Settle the promise of an account that a batch has claimed: run the batch to its end.

    If the batch ended but did not settle the promise, nobody else will. Then the promise is resolved if both stores
    hold the account, and otherwise rejected with the reason, so that an operator can finish the account.
    """

    async def is_claimed() -> bool:
        promise = await get_promise(resonate, promise_id(uuid))
        return promise is not None and batch_of(promise) == batch

    claims = register(resonate, clients)
    lock = _completing.setdefault(batch, asyncio.Lock())
    async with lock:
        if not await is_claimed():
            return
        promise = await get_promise(resonate, batch)
        if promise is not None and promise.state == "pending":
            cannot_run.raise_if_unexecutable(promise, resonate)
            # The promise has recorded all uuids of the batch. A resumed run takes those, not this argument.
            await run_batch(batch, [uuid], resonate, clients)
            promise = await get_promise(resonate, batch)
        if promise is not None and promise.state == "pending":
            raise Unavailable(f"batch {batch} is still pending; run again")
        if await is_claimed():
            await claims.settle({uuid: await final_result(uuid, await describe_end(promise, batch), clients)})


async def describe_end(promise: PromiseRecord | None, batch: str) -> str:
    """Say how the batch ended."""
    if promise is None:
        return f"batch {batch} was not found"
    try:
        await handle_of(promise).result()
    except Exception as error:  # noqa: BLE001 - any error can be stored in a promise
        return f"batch {batch} is {promise.state}: {error}"
    return f"batch {batch} is {promise.state}"


async def final_result(uuid: str, ended: str, clients: Clients) -> dict[str, str] | ApplicationError:
    """Return the result of a claimed account whose batch ended without a result for it."""
    # Read first: the System of Record decides whether the account exists.
    guids = await clients.record.guids_of(uuid)
    guid = guids[0] if guids else ""
    rows = await clients.reference.rows_of(uuid, guid)
    if len(guids) == 1 and rows == [(uuid, guids[0])]:
        return {"uuid": uuid, "guid": guids[0]}
    conflict = describe(clients.reference.name, guid, rows, guids)
    return ApplicationError(f"{ended}, and it did not settle uuid {uuid!r}: {conflict}")
