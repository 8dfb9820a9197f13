"""The settings: their defaults, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from clients.command.console import Unavailable
from clients.settings import Settings

from ..conftest import ROOT

TB = {"TB_ADDRESS": "3000"}


def test_defaults_are_embedded_and_in_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    default = Settings.read({})
    assert (default.tb_address, default.resonate_url, default.reference_url) == (None, None, None)
    assert default.data_dir == ROOT / "data" / "embedded"
    assert "embedded mode, for testing only" in str(default.embedded_notice)
    assert Settings.read({"DATA_DIR": "here"}).data_dir == tmp_path / "here"


def test_a_real_tigerbeetle_has_a_directory_for_each_cluster() -> None:
    settings = Settings.read(TB | {"TB_CLUSTER_ID": str(2**128 - 1)})
    assert settings.tb_cluster_id == 2**128 - 1
    assert settings.data_dir == ROOT / "data" / f"cluster-{2**128 - 1}"
    assert "embedded promises" in str(settings.embedded_notice)


@pytest.mark.parametrize(
    ("env", "url"),
    [
        ({"RESONATE_URL": "http://a:1", "RESONATE_HOST": "b"}, "http://a:1"),
        ({"RESONATE_HOST": "b"}, "http://b:8001"),
        ({"RESONATE_HOST": "b", "RESONATE_PORT": "2", "RESONATE_SCHEME": "https"}, "https://b:2"),
        ({"RESONATE_URL": ""}, None),
    ],
)
def test_resonate_server_is_named_by_its_url_or_its_host(env: dict[str, str], url: str | None) -> None:
    settings = Settings.read(TB | env)
    assert settings.resonate_url == url
    assert (settings.embedded_notice is None) == (url is not None)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        *((TB | {"TB_CLUSTER_ID": cluster}, "TB_CLUSTER_ID") for cluster in ("x", "-1", "²", str(2**128), "0" * 40)),
        ({"RESONATE_URL": "http://127.0.0.1:8001"}, "TB_ADDRESS"),
        ({"RESONATE_HOST": "127.0.0.1"}, "TB_ADDRESS"),
        (TB | {"RESONATE_TOKEN": "a\nb"}, "RESONATE_TOKEN"),
        (TB | {"RESONATE_TOKEN": "é"}, "RESONATE_TOKEN"),
    ],
    ids=str,
)
def test_invalid_setting_is_named(env: dict[str, str], words: str) -> None:
    with pytest.raises(Unavailable, match=words):
        Settings.read(env)
