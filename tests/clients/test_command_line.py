"""The arguments of the command."""

from __future__ import annotations

import pytest

from ..conftest import World, free_port
from .commands import command


@pytest.mark.parametrize("arguments", [[], ["a:b"], ["\udc80"], ["-x"], ["a", "b"]], ids=ascii)
def test_invalid_arguments_end_with_2(embedded_world: World, arguments: list[str]) -> None:
    done = command(embedded_world, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: create_account.py")
    assert not (embedded_world.directory / "data").exists()


def test_hostile_input_is_data(world: World, user: str) -> None:
    uuid = f"-'; DROP TABLE accounts; -- $(touch x) ../ % {{uuid}} %s {user}".ljust(256, "🐯")
    first, again = command(world, "--", uuid), command(world, "--", uuid)
    assert (first.returncode, again.stdout) == (0, first.stdout)
    guid = first.stdout.rpartition("GUID: ")[2].strip()
    assert first.stdout == f"UUID: {uuid}\nGUID: {guid}\n"
    assert world.rows(uuid) == world.accounts(uuid) == [guid]


def test_verbose_writes_the_debug_log(embedded_world: World) -> None:
    assert "resonate" in command(embedded_world, "-v", "u").stderr


@pytest.mark.parametrize("token", ["s3cret-t0ken", 's3cret"t0ken', r"s3cret\t0ken"])
def test_verbose_log_does_not_contain_the_token(embedded_world: World, tb_address: str, token: str) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    secret = {"TB_ADDRESS": tb_address, "RESONATE_URL": url, "RESONATE_TOKEN": token}
    done = command(embedded_world, "-v", "u", env=secret)
    assert "http_req" in done.stderr
    assert "<token>" in done.stderr
    assert "s3cret" not in done.stderr
