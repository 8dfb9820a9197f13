"""The embedded promises: one process at a time."""

from __future__ import annotations

import fcntl

import pytest

from ..conftest import World
from .commands import assert_unavailable, command


@pytest.mark.slow
def test_promises_in_use_by_another_process_are_refused(embedded_world: World) -> None:
    embedded_world.directory.joinpath("promises.lock").write_text("4711")
    with embedded_world.directory.joinpath("promises.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert_unavailable(
            command(embedded_world, "u", env={"DATA_DIR": ".", "FIRST_ANSWER": "1"}), "process 4711", "RESONATE_URL"
        )
