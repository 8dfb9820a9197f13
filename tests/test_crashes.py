"""SIGKILL at every point of a run: the next run goes on where it stopped, and no recorded step runs again."""

from __future__ import annotations

import time

import pytest

from .child import POINTS, STEPS
from .conftest import World, quick_only

#: Points of steps that are not recorded yet: a run can get there after it was killed there.
IN_A_STEP = [
    point for point in POINTS if point.startswith(("before effect", "after effect", "before record"))
]


def left_to_do(crash: str) -> list[str]:
    """The steps whose results were not recorded before the crash."""
    return [step for step in STEPS if POINTS.index(crash) < POINTS.index(f"after record {step}")]


def assert_survived(world: World, user: str, crash: str) -> None:
    staged, committed = world.rows(user), world.accounts(user)
    assert len(committed) <= len(staged) <= 1, "an account without its row"
    run = world.run(user)
    assert run.status == 0
    assert run.steps == left_to_do(crash)
    assert staged in ([], [run.guid]), "two guids"
    assert world.rows(user) == world.accounts(user) == [run.guid]


@pytest.mark.parametrize("crash", quick_only(["after effect 3"], POINTS))
def test_killed(world: World, user: str, crash: str) -> None:
    killed = world.run(user, crash=crash)
    assert killed.out == ""
    assert_survived(world, user, crash)


# A row that was written once is not written again: that effect has no second time.
@pytest.mark.parametrize("crash", [point for point in IN_A_STEP if point != "after effect 2"])
@pytest.mark.slow
def test_killed_twice_in_a_row(world: World, user: str, crash: str) -> None:
    world.run(user, crash=crash)
    world.run(user, crash=crash)
    assert_survived(world, user, crash)


@pytest.mark.slow
def test_killed_at_every_point_in_turn(world: World, user: str) -> None:
    """A run that never gets further than one step: each one dies one point later than the one before."""
    for crash in IN_A_STEP:
        world.run(user, crash=crash)
    assert_survived(world, user, IN_A_STEP[-1])


@pytest.mark.slow
def test_another_process_takes_over_within_15_seconds(world: World, user: str) -> None:
    """With the example's own lease, and a server that offers undelivered work again only after 30 s."""
    world.run(user, crash="before effect 3", LEASE="10")
    started = time.monotonic()
    assert_survived(world, user, "before effect 3")
    assert time.monotonic() - started < 15
