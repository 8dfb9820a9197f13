"""Every interleaving of a small scope keeps the invariants, except those that no step can keep."""

from __future__ import annotations

import pytest

from .explorer import explore

SINGLE = ["", "promises wiped", "SQLite lost", "foreign account", "second id"]


@pytest.mark.parametrize("fault", SINGLE)
def test_no_invariant_is_violated_with_one_fault(fault: str) -> None:
    states, violated = explore(faults={fault} - {""})
    assert states > 100
    assert violated == set()


def test_sqlite_lost_and_a_second_id_at_once_create_a_second_account() -> None:
    assert explore(faults={"SQLite lost", "second id"})[1] == {"second account"}
