"""Every interleaving of a small scope keeps the invariants, except those that no step can keep."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from .explorer import ANOTHER_HOST, BATCH_FAULTS, FAULTS, Scope, explore, scope_of

#: What no step can prevent, as docs/operations.md says. Each pair hides the first account from the second attempt:
#: the row is lost after its last read and before TigerBeetle commits, and another attempt has another guid.
UNPREVENTABLE = {
    frozenset((another_guid, row_lost)): {"second account"}
    for another_guid in ("promises wiped", "second id")
    for row_lost in ("SQLite lost", "SQLite rolled back")
}

ONE, TWO = ("u",), ("u", "v")

#: The scopes, and how many states they have at least. A release that cannot execute a batch reads this without a lease.
#: Before the claim, and after the batch, it creates or finds the account.
SCOPES = {
    **{f"one fault: {fault or 'none'}": (scope_of({fault} - {""}, adoptions=True), 500) for fault in ("", *FAULTS)},
    "two processes and a take-over": (scope_of((), starts=3), 5_000),
    "two uuids": (scope_of((), uuids=TWO), 4_000),
    "two faults: SQLite lost and second id": (scope_of(("SQLite lost", "second id"), adoptions=True), 10_000),
    "two faults: foreign account and second id": (scope_of(("foreign account", "second id"), adoptions=True), 5_000),
    "a batch beside a single run of its first account": (scope_of((), uuids=TWO, batches=(TWO,), singles=ONE), 5_000),
    "a batch beside a single run of its last account": (scope_of((), uuids=TWO, batches=(TWO,), singles=("v",)), 5_000),
    "a batch and a take-over": (scope_of((), uuids=TWO, batches=(TWO, TWO)), 5_000),
    "a batch and a release that cannot execute it": (scope_of((), uuids=TWO, batches=(TWO,), older=ONE), 1_000),
    "a batch and an account of another host": (scope_of({ANOTHER_HOST}, batches=(ONE, ONE)), 2_000),
}


def beside(*faults: str) -> Scope:
    """A batch of one beside a single run."""
    return scope_of(faults, batches=(ONE,), singles=ONE)


SLOW = {f"a batch of one beside a single run: {fault}": (beside(fault), 5_000) for fault in BATCH_FAULTS[1:-1]}
DEEP = {
    **{
        f"two faults: {' and '.join(pair)}": (scope_of(pair, adoptions=True), 5_000) for pair in combinations(FAULTS, 2)
    },
    **{f"two processes and a take-over: {fault}": (scope_of({fault}, starts=3), 5_000) for fault in FAULTS[2:]},
    **{f"a batch of one beside a single run: {fault}": (beside(fault), 5_000) for fault in BATCH_FAULTS},
    **{
        f"a batch beside a single run: {fault}": (scope_of({fault}, uuids=TWO, batches=(TWO,), singles=("v",)), 5_000)
        for fault in BATCH_FAULTS
    },
    "a batch and a take-over beside a single run": (scope_of((), uuids=TWO, batches=(TWO, TWO), singles=("v",)), 5_000),
    **{
        f"a batch of one beside a single run: {' and '.join(pair)}": (beside(*pair), 5_000)
        for pair in combinations(BATCH_FAULTS[1:4], 2)
    },
}


def marked() -> list[Any]:
    slow, deep = pytest.mark.slow, pytest.mark.deep
    marks = {name: [deep] for name in DEEP} | {name: [slow] for name in SLOW} | {name: [] for name in SCOPES}
    return [pytest.param(name, marks=mark) for name, mark in marks.items()]


@pytest.mark.parametrize("name", marked())
def test_scope_violates_exactly_what_no_step_can_prevent(name: str) -> None:
    scope, states_min = (DEEP | SLOW | SCOPES)[name]
    states, violated = explore(scope)
    assert states > states_min
    assert violated == UNPREVENTABLE.get(scope.faults, set())
