"""The arguments of the command."""

from __future__ import annotations

import pytest

from ..conftest import World, free_port
from .commands import command

OPERATIONS = "-m operations"

#: Wrong arguments, and words of the line about them.
WRONG = {
    "": "required",
    "a:b": "colon",
    "\udc80": "unpaired surrogate",
    "-x": "if the uuid begins with a dash, write -- before it\n",
    "a b": "unrecognized",
    f"{OPERATIONS} -- nothing": "invalid choice",
    f"{OPERATIONS} check a b": "unrecognized",
    f"{OPERATIONS} audit a b": "unrecognized",
    f"{OPERATIONS} adopt a b": "unrecognized",
    f"{OPERATIONS} check a:b": "colon",
    f"{OPERATIONS} adopt a:b": "colon",
    f"{OPERATIONS} backfill a b": "unrecognized",
    f"{OPERATIONS} backfill --chunk 0": "from 1 to 2000",
    f"{OPERATIONS} backfill --chunk 2001": "from 1 to 2000",
    f"{OPERATIONS} backfill --chunk x": "from 1 to 2000",
}


@pytest.mark.parametrize("arguments", WRONG, ids=ascii)
@pytest.mark.parametrize("env", [{}, {"TB_ADDRESS": "3000", "TB_CLUSTER_ID": "x"}], ids=["", "and a wrong setting"])
def test_invalid_arguments_end_with_2(embedded_world: World, arguments: str, env: dict[str, str]) -> None:
    done = command(embedded_world, *arguments.split(), env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "usage: python -m operations" if OPERATIONS in arguments else "usage: create_account.py"
    )
    assert WRONG[arguments] in done.stderr
    assert not (embedded_world.directory / "data").exists()


def test_dash_before_a_uuid_and_options_after_it_are_read(embedded_world: World) -> None:
    assert command(embedded_world, "--", "-x").stdout.startswith("UUID: -x\n")
    for arguments in ("check -x", "-v check u -v", "check -h", "audit -h", "adopt -h"):
        done = command(embedded_world, *OPERATIONS.split(), *arguments.split())
        assert "unrecognized" not in done.stderr
        assert done.returncode == 0 or "-h" not in arguments


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
