"""Deliberate faults in the workflows. The explorer catches each.

A mutant names the text, its replacement, the scope, and the invariant that catches it. No listed fault is without
effect.
"""

from __future__ import annotations

import pytest

from .explorer import ANOTHER_HOST, BATCH_SOURCE, CREATE_SOURCE, SOURCE, Scope, explore, load, scope_of

pytestmark = pytest.mark.deep

RESOLVED, CLAIMED = "resolved without the account", "claim of an ended batch"
FALSE_PANIC, NO_ACCOUNT, SECOND = "panic without a fault", "success without the account", "second account"
NO_ROW = "account without its row"

#: The text, its replacement, the faults of the scope, and the invariant that catches the edit.
EXPLORED = {
    "the guid is not recorded": (
        "guid = yield from saved(ctx.run(generate_guid, uuid))", "guid = str(tb.id())", set(), FALSE_PANIC,
    ),
    "the two writes are swapped": (
        "ctx.run(stage_account", "ctx.run(commit_account", set(), FALSE_PANIC,
    ),
    "the stage step writes no row": ("await reference.stage(uuid, guid)", "rows", set(), FALSE_PANIC),
    "a written row is a conflict": (
        'if not existing_rows:\n        return Outcome("created", guid)', 'if not existing_rows:\n        return Outcome("exists_diff", guid)', set(),
        FALSE_PANIC,
    ),
    "a row that this workflow wrote is a conflict": (
        '(uuid, guid)]:\n        return Outcome("exists_same", guid)', '(uuid, guid)]:\n        return Outcome("exists_diff", guid)',
        set(), FALSE_PANIC,
    ),
    "every staged outcome panics": (
        'panic_if(staged.type == "exists_diff"', 'panic_if(staged.type != "exists_diff"', set(), FALSE_PANIC,
    ),
    "the commit step reads an account of its own as another": (
        "if other_accounts or rows", "if accounts or rows", set(), FALSE_PANIC,
    ),
    "the commit step creates nothing": (
        "existing_account = await record.create(account_of(uuid, guid))", "existing_account = None",
        set(), NO_ACCOUNT,
    ),
    "the owner is left out": (
        "create(account_of(uuid, guid))", "create(tb.Account(id=int(guid), ledger=1, code=1))", set(), NO_ACCOUNT,
    ),
    "a created account is a conflict": (
        'existing_account is None:\n        return Outcome("created", guid)', 'existing_account is None:\n        return Outcome("exists_diff", guid)', set(),
        FALSE_PANIC,
    ),
    "an account that this workflow created is a conflict": (
        'differing:\n        return Outcome("exists_same", guid)', 'differing:\n        return Outcome("exists_diff", guid)', set(),
        FALSE_PANIC,
    ),
    "a closed account is taken for another": (
        "if not differing:", "if existing_account == account_of(uuid, guid):", {"closing transfer"}, FALSE_PANIC,
    ),
    "an account with other fields is taken for this one": (
        'return Outcome("exists_diff", guid, differing)', 'return Outcome("exists_same", guid, differing)',
        {"foreign account"}, NO_ACCOUNT,
    ),
    "the panic of a foreign account is forgotten": (
        'panic_if(committed.type == "exists_diff"', "panic_if(False", {"foreign account"}, NO_ACCOUNT,
    ),
    "the panic of a missing row at the commit is forgotten": (
        'panic_if(committed.type == "ordering_violated"', "panic_if(False", {"SQLite lost"}, NO_ACCOUNT,
    ),
    "the row is not read before the commit": (
        "if other_accounts or rows != [(uuid, guid)]:", "if other_accounts:", {"SQLite lost"}, NO_ROW,
    ),
    "a missing row at the commit is an account": (
        'rows != [(uuid, guid)]:\n        return Outcome("ordering_violated"', 'rows != [(uuid, guid)]:\n        return Outcome("exists_same"',
        {"SQLite lost"}, NO_ACCOUNT,
    ),
    "the workflow returns its own guid, not the recorded one": (
        '"guid": committed.guid}', '"guid": guid}', {"promises wiped"}, NO_ACCOUNT,
    ),
}  # fmt: skip


def edited(text: str, edit: str, source: str = SOURCE) -> str:
    assert source.count(text) == 1, text
    return source.replace(text, edit)


@pytest.mark.parametrize("name", EXPLORED)
def test_explorer_catches_the_fault(name: str) -> None:
    text, edit, faults, invariant = EXPLORED[name]
    source = edited(text, edit)
    if name == "the two writes are swapped":  # the second one, too
        source = SOURCE.replace(text, "SWAP").replace(edit, text).replace("SWAP", edit)
    assert len(faults) <= 1  # without the edit, one fault violates nothing (test_explorer.py)
    assert invariant in explore(scope_of(faults), load(source), until=invariant)[1]


def test_explorer_refuses_a_step_with_the_default_deadline() -> None:
    """The embedded engine does not expire a step, and the clock of a Resonate server cannot be moved."""
    source = edited("ctx = ctx.options(timeout=DEADLINE)\n    reference", "reference")
    with pytest.raises(AssertionError, match="a step without the deadline"):
        explore(scope_of(()), load(source))


# -- Batches ---------------------------------------------------------------

#: A batch beside a single run, and a batch that a second process takes over.
BESIDE = {"uuids": ("u", "v"), "batches": (("u", "v"),), "singles": ("v",)}
TAKEN_OVER = {"uuids": ("u", "v"), "batches": (("u", "v"), ("u", "v"))}

#: The text, its replacement, the scope, and the invariant that catches the edit.
EXPLORED_OF_BATCHES: dict[str, tuple[str, str, Scope, str]] = {
    "the claim is dropped": (
        "return await ctx.get_dependency(Claims).create(batch, uuids, timeout_at)", "return []",
        scope_of((), **BESIDE), FALSE_PANIC,
    ),
    "accounts of others are not left out": (
        "claimed = [uuid for uuid in uuids if uuid not in others]", "claimed = uuids", scope_of((), **BESIDE), FALSE_PANIC,
    ),
    "the guids are not recorded": (
        "guids = yield from ctx.run(generate_guids, len(claimed)).__await__()", "guids = generate_guids(ctx, len(claimed))",
        scope_of((), **TAKEN_OVER), CLAIMED,
    ),
    "the owners are not queried before the stage": (
        "existing = await record.guids_of_many(list(accounts))\n    absent", "existing = [[] for _ in accounts]\n    absent",
        scope_of({ANOTHER_HOST}, **TAKEN_OVER), SECOND,
    ),
    "the newest account is read after the owners are queried": (
        "    newest = await record.newest()\n    existing = await record.guids_of_many(list(accounts))\n",
        "    existing = await record.guids_of_many(list(accounts))\n    newest = await record.newest()\n",
        scope_of({ANOTHER_HOST}, **TAKEN_OVER), SECOND,
    ),
    "the commit looks for newer accounts although older ones exist": (
        "0 if any(existing) else newest", "newest", scope_of({ANOTHER_HOST}, **TAKEN_OVER), SECOND,
    ),
    "the accounts are not read before the commit": (
        "existing = await record.guids_of_many(list(accounts), newer_than=newest)", "existing = [[] for _ in accounts]",
        scope_of({ANOTHER_HOST}, **TAKEN_OVER), SECOND,
    ),
    "the stage step writes no row": (
        "written = await reference.stage_many(absent)", "written = [True] * len(absent)", scope_of((), **BESIDE), FALSE_PANIC,
    ),
    "the commit step creates nothing": (
        "statuses = await record.create_many([account_of(uuid, guid) for uuid, guid in staged])",
        "statuses = [tb.CreateAccountStatus.CREATED] * len(staged)", scope_of((), **BESIDE), RESOLVED,
    ),
    "an account with other fields is taken for this one": (
        "done = (tb.CreateAccountStatus.CREATED, tb.CreateAccountStatus.EXISTS)", "done = tuple(tb.CreateAccountStatus)",
        scope_of({"foreign account"}, **BESIDE), RESOLVED,
    ),
    "a conflict is judged as no panic": (
        'panic_if(outcome.type == "exists_diff"', "panic_if(False", scope_of({"foreign account"}, **BESIDE), RESOLVED,
    ),
    "the panics are not settled": (
        "    results |= {panic[1]: Panic(*panic) for panic in panics}\n", "", scope_of({"foreign account"}, **BESIDE), CLAIMED,
    ),
    "nothing is settled": (
        "return await ctx.get_dependency(Claims).settle(results)", "return []", scope_of((), **BESIDE), CLAIMED,
    ),
    "the accounts are settled before they are committed": (
        "    committed = yield from ctx.run(commit,",
        "    yield from ctx.run(settle, to_commit, []).__await__()\n    committed = yield from ctx.run(commit,",
        scope_of((), **BESIDE), RESOLVED,
    ),
    "the guid of a recorded result is not compared": (
        "if written.first_guid != first(accounts):", "if False:",
        scope_of({"promises wiped"}, batches=(("u",), ("u",))), RESOLVED,
    ),
    "a claim of an ended batch is resolved without a read of TigerBeetle": (
        "if not state.agrees:", "if not state.rows:",
        scope_of({"batch canceled"}, **BESIDE), RESOLVED,
    ),
    "a claim is settled before its batch has ended": (
        "state.batch_is_pending:", "False:", scope_of((), **BESIDE), FALSE_PANIC,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPLORED_OF_BATCHES)
def test_explorer_catches_the_fault_of_a_batch(name: str) -> None:
    text, edit, scope, invariant = EXPLORED_OF_BATCHES[name]
    if text in CREATE_SOURCE:
        mutant = {"create": load(CREATE_SOURCE.replace(text, edit), "operations.create")}
    else:
        mutant = {"batches": load(edited(text, edit, BATCH_SOURCE), "operations.batch")}
    assert invariant in explore(scope, until=invariant, **mutant)[1]
