"""A Resonate server that other applications share: one prefix covers our promises, and a foreign promise stops nobody."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

import pytest
from resonate.types import PromiseCreateReq, PromiseSettleReq, Value

from clients.account import PREFIX, former_id, promise_id, uuid_of
from clients.command.outages import Outages
from clients.opening import open_promises
from clients.promises.one_reference import Identity, recorded
from clients.settings import Settings
from create_account import DEADLINE, connect, create_account

from ..conftest import HANG_S, ServerWorld, World, numbered
from .backfills import run
from .commands import assert_adopted, assert_verdict, halt, script
from .test_worker import worker

FOR_EVER_MS = 10**14


def with_promises(world: World, use: Any) -> Any:
    async def main() -> Any:
        async with open_promises(Settings.read(world.env), Outages()) as resonate, asyncio.timeout(HANG_S):
            return await use(resonate)

    return asyncio.run(main())


def create(world: World, id_: str, **settle: Any) -> None:
    """Create a promise without a task, and with `settle` settle it."""

    async def use(resonate: Any) -> None:
        await resonate.promises.sender.promise_create(PromiseCreateReq(id=id_, timeout_at=FOR_EVER_MS))
        if settle:
            await resonate.promises.sender.promise_settle(PromiseSettleReq(id=id_, **settle))

    with_promises(world, use)


def encoded(value: object) -> Value:
    return Value(data=base64.b64encode(json.dumps(value).encode()).decode())


FOREIGN: dict[str, dict[str, Any]] = {
    "resolved": {"state": "resolved", "value": encoded({"invoice": 1})},
    "with more than our form": {"state": "resolved", "value": encoded({"store": "x", "cluster": "0", "more": 1})},
    "not decodable": {"state": "resolved", "value": Value(data="no base64")},
    "canceled": {"state": "rejected_canceled", "value": Value()},
    "pending": {},
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_promise_reference_1_stops_nobody_and_is_not_changed(
    server_world: ServerWorld, user: str, kind: str
) -> None:
    create(server_world, "reference-1", **FOREIGN[kind])
    single = server_world.run(user)
    assert single.status == 0, single.err
    promise = with_promises(server_world, lambda resonate: resonate.promises.sender.promise_get("reference-1"))
    assert promise.state == FOREIGN[kind].get("state", "pending")


def test_record_of_a_former_release_is_found_and_copied(server_world: ServerWorld, user: str) -> None:
    server_world.run(user)
    _, identity = with_promises(server_world, recorded)
    server_world.lose_promises()
    create(server_world, "reference-1", **FOREIGN["resolved"])
    other = {"store": "another", "cluster": identity.cluster}
    create(server_world, "reference-2", state="resolved", value=encoded(other))
    refused = server_world.run(f"{user}-2")
    assert (refused.status, refused.steps) == (1, [])
    assert "records store another and cluster 0, but this process uses" in refused.err
    assert with_promises(server_world, recorded) == (1, Identity("another", "0"))
    assert script(server_world, "reference", "--accept").returncode == 0
    assert with_promises(server_world, recorded) == (2, identity)
    assert server_world.run(f"{user}-2").status == 0


def test_reading_command_reports_the_record_of_a_former_release(server_world: ServerWorld, user: str) -> None:
    other = {"store": "another", "cluster": "0"}
    create(server_world, "reference-1", state="resolved", value=encoded(other))
    server_world.run(user)
    server_world.lose_promises()
    create(server_world, "reference-1", state="resolved", value=encoded(other))
    assert "records store another" in script(server_world, "check", user).stderr
    assert script(server_world, "reference").stdout.startswith("record of a former release: store another")
    assert with_promises(server_world, recorded) == (0, Identity("another", "0")), "a reading command has written"


def test_attempt_of_a_former_release_is_found(world: World, user: str) -> None:
    halt(world, user)
    former = former_id(promise_id(user, 2))
    assert former == f"attempt-2-create-account-{user}"
    assert uuid_of(former) == uuid_of(promise_id(user, 2)) == user

    async def adopt() -> None:
        async with connect(Settings.read(world.env)) as (resonate, _):
            await resonate.options(timeout=DEADLINE, target="operators").run(former, create_account, user).result()

    asyncio.run(adopt())
    guid = assert_adopted(world, user)
    assert f"promise {former}: resolved, account {guid}" in script(world, "check", user).stdout
    assert_verdict(world, user, 0, "exists")
    assert world.run(user).guid == guid


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
