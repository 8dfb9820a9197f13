"""The embedded promises: one process at a time."""

from __future__ import annotations

import fcntl

import pytest

from ..conftest import (
    World,
)
from .commands import assert_environment, command


@pytest.mark.slow
def test_embedded_promises_of_a_process_that_is_busy(embedded_world: World) -> None:
    embedded_world.directory.joinpath("promises.lock").write_text("4711")
    with embedded_world.directory.joinpath("promises.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert_environment(
            command(embedded_world, "u", env={"DATA_DIR": "."}), "process 4711", "RESONATE_URL"
        )
