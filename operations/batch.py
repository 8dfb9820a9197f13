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

A single run, or another batch, that meets a claimed account completes the batch first: `complete` in create.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import tigerbeetle as tb

from clients.account import account_of, check_request, promise_id
from clients.panic import Panic, panic_if
from clients.promises.claims import Claims
from create_account import DEADLINE, Outcome, Stores, commit_account, stage_account
from operations.steps import are_of_batches, versions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from resonate.context import Context
    from resonate.resonate import Resonate

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


# -- Registration ----------------------------------------------------------


def register(resonate: Resonate, claims: Claims) -> None:
    """Register the workflow, if a version of `create_account` has its steps, and inject what it needs besides the stores.

    Else this program lacks the steps, and a pending batch waits for a program that has them.
    """
    if any(map(are_of_batches, versions(resonate).values())):
        resonate.register(create_accounts, name="create_accounts")
    resonate.with_dependency(claims)
