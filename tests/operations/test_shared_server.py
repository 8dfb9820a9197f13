"""A Resonate server that other applications share: one prefix covers our promises."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest

from clients.account import PREFIX

from ..conftest import HANG_S, ServerWorld, numbered
from .backfills import run
from .commands import assert_adopted, halt, script
from .test_worker import worker


def token(**claims: object) -> str:
    """Return a token for a server that checks no signatures."""
    parts = ({"alg": "HS256", "typ": "JWT"}, {"exp": int(time.time()) + 3600} | claims)
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + ".x"


@pytest.fixture
def guarded_world(server_world: ServerWorld, monkeypatch: pytest.MonkeyPatch) -> ServerWorld:
    """The server asks for a token, and each command has one with our prefix."""
    monkeypatch.setenv("RESONATE_AUTH__PUBLICKEY", "none")
    server_world.start_resonate()
    server_world.env["RESONATE_TOKEN"] = token(prefix=PREFIX)
    return server_world


def test_token_with_one_prefix_is_enough(guarded_world: ServerWorld, user: str) -> None:
    single, other, *many = numbered(user, 6)
    with worker(guarded_world) as serving:
        assert guarded_world.run(single).status == 0
        backfilled = run(guarded_world, *many)
        assert (backfilled.status, list(backfilled.accounts)) == (0, many), backfilled.err
        halt(guarded_world, other)
        assert_adopted(guarded_world, other, again=True)
        assert script(guarded_world, "reference").returncode == 0
        assert script(guarded_world, "audit").returncode in (0, 98)
        assert serving.said() == serving.said("serving")
    done = script(guarded_world, "halted")
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert "rejected the token for promise.search" in line


@pytest.mark.parametrize("claims", [{"prefix": "other"}, {}, {"prefix": "", "exp": 1}], ids=str)
def test_token_that_does_not_fit_is_named(guarded_world: ServerWorld, user: str, claims: dict[str, Any]) -> None:
    run = guarded_world.run(user, RESONATE_TOKEN=token(**claims))
    assert (run.status, run.steps) == (1, [])
    assert "rejected the token" in run.err.splitlines()[-1]


def test_worker_whose_token_expires_ends_with_1(guarded_world: ServerWorld) -> None:
    soon = token(prefix=PREFIX, exp=int(time.time()) - 50)  # the server tolerates a minute
    with worker(guarded_world, PATIENCE="0.3", RESONATE_TOKEN=soon) as serving:
        assert serving.process.wait(HANG_S) == 1
        [line] = serving.said("rejected the token")
        assert "correct RESONATE_TOKEN" in line
