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


#: The points at which it is killed, one run after the other. Not "after write 2" twice: a row is written once.
KILLS = {
    **{point: [point] for point in POINTS},
    **{f"{point}, twice": [point, point] for point in IN_A_STEP if point != "after write 2"},
    "each point in a step, in turn": IN_A_STEP,
}


@pytest.mark.parametrize("kills", quick_only(["after write 3"], KILLS))
def test_rerun_resumes_after_kills(world: World, user: str, kills: str) -> None:
    for crash in KILLS[kills]:
        assert world.run(user, crash=crash).out == ""
    assert_survived(world, user, KILLS[kills][-1])


@pytest.mark.slow
def test_run_takes_over_although_the_server_does_not_offer_the_task_again(
    server_world: ServerWorld, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESONATE_TASKS__RETRY_TIMEOUT", str(10 * HANG_S * 1000))
    server_world.start_resonate()
    server_world.run(user, crash="before write 3")
    assert_survived(server_world, user, "before write 3")
