"""Every interleaving of a small scope keeps the invariants, except those that no step can keep."""

from __future__ import annotations

from itertools import combinations

import pytest

from .conftest import quick_only
from .explorer import ANOTHER_HOST, BATCH_FAULTS, FAULTS, explore, scope_of

#: What no step can prevent, as docs/operations.md says. Each pair hides the first account from the second attempt:
#: the row is lost after its last read and before TigerBeetle commits, and another attempt has another guid.
UNPREVENTABLE = {
    frozenset(pair): {"second account"}
    for pair in (
        ("promises wiped", "SQLite lost"),
        ("promises wiped", "SQLite rolled back"),
        ("SQLite lost", "second id"),
        ("SQLite rolled back", "second id"),
    )
}
QUICK = [("SQLite lost", "second id"), ("foreign account", "second id")]


@pytest.mark.parametrize("fault", ["", *FAULTS])
def test_no_invariant_is_violated_with_one_fault(fault: str) -> None:
    states, violated = explore(scope_of({fault} - {""}, adoptions=True))
    assert states > 500
    assert violated == set()


def test_no_invariant_is_violated_by_two_processes_and_a_take_over() -> None:
    states, violated = explore(scope_of((), starts=3))
    assert states > 5_000
    assert violated == set()


def test_two_uuids_do_not_disturb_each_other() -> None:
    assert explore(scope_of((), uuids=("u", "v")))[1] == set()


@pytest.mark.parametrize("pair", quick_only(QUICK, combinations(FAULTS, 2), pytest.mark.deep), ids=" and ".join)
def test_two_faults_at_once_violate_exactly_what_no_step_can_prevent(pair: tuple[str, str]) -> None:
    assert explore(scope_of(pair, adoptions=True))[1] == UNPREVENTABLE.get(frozenset(pair), set())


@pytest.mark.deep
@pytest.mark.parametrize("fault", FAULTS[2:])
def test_no_invariant_is_violated_with_one_fault_and_a_take_over(fault: str) -> None:
    assert explore(scope_of({fault}, starts=3))[1] == set()


# -- Batches ---------------------------------------------------------------

BATCH = ("u", "v")


@pytest.mark.parametrize("single", BATCH)
def test_batch_and_a_single_run_of_one_of_its_accounts_keep_the_invariants(single: str) -> None:
    states, violated = explore(scope_of((), uuids=BATCH, batches=(BATCH,), singles=(single,)))
    assert states > 5_000
    assert violated == set()


def test_batch_that_a_second_process_takes_over_keeps_the_invariants() -> None:
    states, violated = explore(scope_of((), uuids=BATCH, batches=(BATCH, BATCH)))
    assert states > 5_000
    assert violated == set()


def test_run_of_a_release_that_cannot_execute_the_batch_changes_nothing() -> None:
    """It reads this without a lease. Before the claim, and after the batch, it creates or finds the account."""
    states, violated = explore(scope_of((), uuids=BATCH, batches=(BATCH,), older=BATCH[:1]))
    assert states > 1_000
    assert violated == set()


def test_batch_creates_no_second_account_if_another_host_creates_one_before_it_has_staged() -> None:
    states, violated = explore(scope_of({ANOTHER_HOST}, batches=(("u",), ("u",))))
    assert states > 2_000
    assert violated == set()


@pytest.mark.slow
@pytest.mark.parametrize("fault", quick_only(BATCH_FAULTS[1:-1], BATCH_FAULTS, pytest.mark.deep))
def test_batch_of_one_beside_a_single_run_keeps_the_invariants_with_one_fault(fault: str) -> None:
    states, violated = explore(scope_of({fault}, batches=(("u",),), singles=("u",)))
    assert states > 5_000
    assert violated == set()


@pytest.mark.deep
@pytest.mark.parametrize("fault", BATCH_FAULTS)
def test_batch_beside_a_single_run_keeps_the_invariants_with_one_fault(fault: str) -> None:
    assert explore(scope_of({fault}, uuids=BATCH, batches=(BATCH,), singles=("v",)))[1] == set()


@pytest.mark.deep
def test_batch_with_a_take_over_beside_a_single_run_keeps_the_invariants() -> None:
    assert explore(scope_of((), uuids=BATCH, batches=(BATCH, BATCH), singles=("v",)))[1] == set()


@pytest.mark.deep
@pytest.mark.parametrize("pair", list(combinations(BATCH_FAULTS[1:4], 2)), ids=" and ".join)
def test_two_faults_of_the_stores_at_once_violate_nothing_for_a_batch(pair: tuple[str, str]) -> None:
    assert explore(scope_of(pair, batches=(("u",),), singles=("u",)))[1] == set()
