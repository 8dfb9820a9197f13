"""SIGKILL at every point of a run: the next run resumes there, and no recorded step runs again."""

from __future__ import annotations

import pytest

from .conftest import HANG_S, ServerWorld, World, quick_only
from .crash import POINTS, STEPS, left_to_do

#: Points in steps that are not recorded yet. A rerun reaches them again.
IN_A_STEP = [point for point in POINTS if point.startswith(("before write", "after write", "before save"))]


def assert_survived(world: World, user: str, crash: str) -> None:
    staged, committed = world.rows(user), world.accounts(user)
    assert len(committed) <= len(staged) <= 1, "an account without its row"
    run = world.run(user)
    assert run.status == 0
    assert run.steps == left_to_do(crash, STEPS, POINTS)
    assert staged in ([], [run.guid]), "two guids"
    assert world.rows(user) == world.accounts(user) == [run.guid]


@pytest.mark.parametrize("crash", quick_only(["after write 3"], POINTS))
def test_rerun_resumes_after_a_kill(world: World, user: str, crash: str) -> None:
    killed = world.run(user, crash=crash)
    assert killed.out == ""
    assert_survived(world, user, crash)


# Not "after write 2": a row that was written is not written again.
@pytest.mark.parametrize("crash", [point for point in IN_A_STEP if point != "after write 2"])
@pytest.mark.slow
def test_rerun_resumes_after_two_kills_at_the_same_point(world: World, user: str, crash: str) -> None:
    world.run(user, crash=crash)
    world.run(user, crash=crash)
    assert_survived(world, user, crash)


@pytest.mark.slow
def test_rerun_resumes_after_a_kill_at_each_point_in_turn(world: World, user: str) -> None:
    """Each run is killed one point later than the run before."""
    for crash in IN_A_STEP:
        world.run(user, crash=crash)
    assert_survived(world, user, IN_A_STEP[-1])


@pytest.mark.slow
def test_run_takes_over_although_the_server_does_not_offer_the_task_again(world: World, user: str) -> None:
    if isinstance(world, ServerWorld):
        world.start_resonate(redelivery_ms=10 * HANG_S * 1000)
    world.run(user, crash="before write 3")
    assert_survived(world, user, "before write 3")
