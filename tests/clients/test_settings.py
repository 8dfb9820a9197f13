"""Settings that are invalid, or contradict each other."""

from __future__ import annotations

import pytest

from ..conftest import World
from .commands import assert_unavailable, command


@pytest.mark.parametrize("cluster", ["x", "-1", "²", str(2**128)])
def test_invalid_cluster_id_is_named(embedded_world: World, cluster: str) -> None:
    assert_unavailable(
        command(embedded_world, "u", env={"TB_ADDRESS": "3000", "TB_CLUSTER_ID": cluster}), "TB_CLUSTER_ID"
    )


@pytest.mark.parametrize("variable", [{"RESONATE_URL": "http://127.0.0.1:8001"}, {"RESONATE_HOST": "127.0.0.1"}])
def test_resonate_server_without_tb_address_is_refused(embedded_world: World, variable: dict[str, str]) -> None:
    assert_unavailable(command(embedded_world, "u", env=variable), "TB_ADDRESS")
