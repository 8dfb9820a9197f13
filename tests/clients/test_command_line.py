"""The arguments of the command."""

from __future__ import annotations

import pytest

from ..conftest import World, free_port, quick_only
from .commands import command

INVALID: list[list[str]] = [
    [],
    ["a:b"],
    [""],
    ["a\nb"],
    ["a\x85b"],
    ["a\x7fb"],
    ["\udc80"],
    ["x" * 257],
    ["-x"],
    ["a", "b"],
]


@pytest.mark.parametrize("arguments", quick_only(INVALID[:2], INVALID), ids=ascii)
def test_invalid_arguments_end_with_2(embedded_world: World, arguments: list[str]) -> None:
    done = command(embedded_world, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: create_account.py")
    assert not (embedded_world.directory / "data").exists()


HOSTILE = [
    "-starts-with-a-dash",
    "'; DROP TABLE accounts; --",
    "$(touch pwned) `id` && rm -rf *",
    "../../etc/passwd",
    "a.dotted.name",
    "раypal",  # noqa: RUF001 - a Cyrillic look-alike
    "paypal",
    "\u00e9",
    "100% {uuid} %s",
    "🐯" * 256,
]


@pytest.mark.parametrize("uuid", quick_only(HOSTILE[:1], HOSTILE), ids=ascii)
def test_hostile_input_is_data(world: World, uuid: str, user: str) -> None:
    uuid = uuid[: 256 - len(user)] + user  # the tests share a ledger
    first, again = command(world, "--", uuid), command(world, "--", uuid)
    assert (first.returncode, again.stdout) == (0, first.stdout)
    guid = first.stdout.rpartition("GUID: ")[2].strip()
    assert first.stdout == f"UUID: {uuid}\nGUID: {guid}\n"
    assert world.rows(uuid) == [guid]
    assert world.accounts(uuid) == [guid]


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
