"""The settings: their defaults, and what is refused; and how the command starts beside wrong ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from clients.errors import Unavailable
from clients.settings import Settings, misspelt

from ..conftest import ROOT, World, completed
from .commands import COMMAND, EMBEDDED, assert_unavailable, command

TB = {"TB_ADDRESS": "3000"}
SERVER = TB | {"RESONATE_URL": "http://127.0.0.1:8001"}


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
        ({"RESONATE_URL": ""}, None),
        ({"RESONATE_PORT": "tcp://10.0.0.1:8001"}, None),  # Kubernetes sets it for a service named resonate
    ],
)
def test_resonate_server_is_named_by_its_url(env: dict[str, str], url: str | None) -> None:
    settings = Settings.read(TB | env)
    assert settings.resonate_url == url
    assert (settings.embedded_notice is None) == (url is not None)


INVALID: list[tuple[str, dict[str, str]]] = [
    *(("TB_CLUSTER_ID", TB | {"TB_CLUSTER_ID": cluster}) for cluster in ("x", "-1", "²", str(2**128), "0" * 40)),
    *(
        ("RESONATE_URL", TB | {"RESONATE_URL": url})
        for url in (
            "127.0.0.1:8001",
            "localhost",
            "http:///",
            "http://h:99999",
            "http://h:x",
            "ftp://h",
            "'http://h:8001'",
            "http://a b",
            "http://h/?x",
        )
    ),
    ("RESONATE_TOKEN", SERVER | {"RESONATE_TOKEN": "a\nb"}),
    ("RESONATE_TOKEN", SERVER | {"RESONATE_TOKEN": "é"}),
    ("TB_ADDRESS begins or ends with a quote", {"TB_ADDRESS": '"3000"'}),
    ("DATA_DIR='~/accounts' begins with ~", {"DATA_DIR": "~/accounts"}),
]

#: A variable that has no meaning, or a dangerous one, without another one.
ALONE = {
    "REFERENCE_URL": "postgresql://127.0.0.1/accounts",
    "TB_CLUSTER_ID": "0",
    "RESONATE_URL": "http://127.0.0.1:8001",
    "RESONATE_HOST": "127.0.0.1",
    "RESONATE_TOKEN": "token",
}


@pytest.mark.parametrize(("words", "env"), INVALID, ids=str)
def test_invalid_setting_is_named(words: str, env: dict[str, str]) -> None:
    with pytest.raises(Unavailable, match=re.escape(words)):
        Settings.read(env)


@pytest.mark.parametrize("variable", ALONE)
def test_setting_without_its_partner_is_refused_before_anything_is_written(
    embedded_world: World, variable: str
) -> None:
    done = command(embedded_world, "u", env={variable: ALONE[variable]})
    assert_unavailable(done, f"{variable} is set, but ", f"or unset {variable}")
    assert not embedded_world.data.exists()


@pytest.mark.parametrize("variable", ["RESONATE_HOST", "RESONATE_TOKEN"])
def test_setting_of_a_server_without_a_server_is_refused_beside_a_ledger(variable: str) -> None:
    with pytest.raises(Unavailable, match=f"{variable} is set, but RESONATE_URL is not"):
        Settings.read(TB | {variable: ALONE[variable]})


def test_misspelt_variable_is_named_in_one_line(embedded_world: World) -> None:
    done = command(embedded_world, "u", env={"TB_ADRESS": "3000", "RESONATE_SERVICE_HOST": "10.0.0.1"})
    assert done.returncode == 0
    [line] = [line for line in done.stderr.splitlines() if not line.startswith(EMBEDDED)]
    assert line == "warning: the environment variable TB_ADRESS has no effect; is it meant to be TB_ADDRESS?"


def test_only_names_that_look_like_ours_are_misspelt() -> None:
    wrong = ["TBADDRESS", "tb_address", "TB_ADDRES", "RESONATE_ULR", "DATADIR", "REFERENCE_URI"]
    right = ["PATH", "PGDATA", "XDG_DATA_DIRS", "RESONATE_SERVICE_HOST", "RESONATE_PORT_8001_TCP", "TB_ADDRESS"]
    assert len(misspelt(dict.fromkeys(wrong + right, ""))) == len(wrong)


def python(world: World, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Start Python as a user does: the command's start is part of the test."""
    environ = world.environ() | env
    del environ["PYTHONPATH"]
    return completed([sys.executable, *arguments], env=environ, cwd=ROOT)


def test_system_without_a_module_of_the_standard_library_is_named(embedded_world: World) -> None:
    """As Windows is: it has no fcntl."""
    program = (
        "import sys; sys.modules['fcntl'] = None; sys.argv[1:] = ['u']; "
        "from clients.command import console; console.main('operations.create')"
    )
    assert_unavailable(python(embedded_world, "-c", program), "no fcntl", "Linux and macOS")


def test_uuid_is_utf_8_whatever_the_locale(embedded_world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The locale is ISO-8859-1, and ASCII: cron's is often one of them."""
    locales = tmp_path_factory.mktemp("locales")
    made = subprocess.run(
        ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(locales / "en_US")], capture_output=True, check=False
    )
    env = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LOCPATH": str(locales)}
    names = ["POSIX", *["en_US"] * (made.returncode == 0)]
    wanted = python(embedded_world, COMMAND[1], "café").stdout
    for name in names:
        assert python(embedded_world, COMMAND[1], "café", **env, LC_ALL=name).stdout == wanted
    assert os.fsencode(wanted.splitlines()[0]) == "UUID: café".encode()
