"""Settings that are invalid, or contradict each other."""

from __future__ import annotations

import pytest

from ..conftest import (
    World,
)
from .commands import assert_environment, command


@pytest.mark.parametrize("cluster", ["x", "-1", "²", str(2**128)])
def test_cluster_id_that_is_none(embedded_world: World, cluster: str) -> None:
    assert_environment(
        command(embedded_world, "u", env={"TB_ADDRESS": "3000", "TB_CLUSTER_ID": cluster}), "TB_CLUSTER_ID"
    )


@pytest.mark.parametrize(
    "variable", [{"RESONATE_URL": "http://127.0.0.1:8001"}, {"RESONATE_HOST": "127.0.0.1"}]
)
def test_a_shared_engine_must_not_drive_a_private_ledger(
    embedded_world: World, variable: dict[str, str]
) -> None:
    assert_environment(command(embedded_world, "u", env=variable), "TB_ADDRESS")
