"""Run the operators' commands, and change the stores beside them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import sqlite3
import subprocess
from collections.abc import Awaitable, Callable
from typing import Any

import tigerbeetle as tb
from resonate.resonate import Resonate
from resonate.types import Value

from clients.account import owner_of
from clients.settings import Settings
from create_account import start
from operations.opening import Clients, connect

from ..conftest import HANG_S, ServerWorld, World

EXISTS, STAGED, UNREFERENCED, ABSENT, CONFLICT = 0, 3, 4, 5, 98

#: A promise's deadline, later than any test.
DEADLINE_MS = 10**14

Done = subprocess.CompletedProcess[str]


def script(world: World, command: str, *arguments: str, env: dict[str, str] | None = None, stdin: str = "") -> Done:
    """Run an operator's command."""
    process = world.process("-m", "operations", command, *arguments, env=env, stdin=subprocess.PIPE)
    out, err = process.communicate(stdin.encode(), timeout=HANG_S)
    assert "Traceback" not in err, err
    return Done([], process.wait(), out, err)


def assert_verdict(world: World, uuid: str, status: int, verdict: str, *reasons: str) -> None:
    done = script(world, "check", "--", uuid)
    line = done.stdout.splitlines()[-1]
    assert (done.returncode, line.partition(":")[0]) == (status, verdict)
    for reason in reasons:
        assert reason in line


def assert_adopted(world: World, uuid: str, guid: str = "", *, again: bool = False) -> str:
    """Run adopt, and check that exactly one account exists. Returns its guid."""
    done = script(world, "adopt", *["--again"] * again, "--", uuid)
    assert done.returncode == 0, done.stderr
    [adopted] = world.accounts(uuid)
    assert world.rows(uuid) == [adopted]
    assert done.stdout == f"UUID: {uuid}\nGUID: {adopted}\n"
    assert adopted == (guid or adopted)
    return adopted


def assert_refused(world: World, uuid: str, *words: str, again: bool = False) -> None:
    """Run adopt, and check that it prints one line with the reason and writes nothing."""
    rows, accounts = world.rows(uuid), world.accounts(uuid)
    done = script(world, "adopt", *["--again"] * again, "--", uuid)
    assert (done.returncode, done.stdout) == (98, "")
    line = done.stderr.splitlines()[-1]
    assert line.startswith("refused, nothing changed: ")
    for word in words:
        assert word in line
    assert (world.rows(uuid), world.accounts(uuid)) == (rows, accounts)


def assert_halted(world: World, uuid: str, panic: str, guid: str = "") -> None:
    run = world.run(uuid, guid=guid)
    assert run.status == 98
    assert f"PANIC: {panic} for uuid" in run.err


def commit(world: World, uuid: str, guid: str, **other: Any) -> None:
    """Create an account in TigerBeetle through another client."""
    world.data.mkdir(mode=0o700, exist_ok=True)
    fields: dict[str, Any] = {"id": int(guid), "ledger": 1, "code": 1, "user_data_128": owner_of(uuid)} | other
    [result] = world.ledger(lambda client: client.create_accounts([tb.Account(**fields)]))
    assert result.status == tb.CreateAccountStatus.CREATED


def stage(world: World, uuid: str, guid: str) -> None:
    world.sql("INSERT INTO accounts (uuid, guid) VALUES (?, ?)", uuid, guid)


def unstage(world: World, uuid: str) -> None:
    world.sql("DELETE FROM accounts WHERE uuid = ?", uuid)


def findings(world: World) -> tuple[int, list[str], str]:
    done = script(world, "audit")
    *lines, count = done.stdout.splitlines()
    return done.returncode, lines, count


#: Values of promises that do not decode to what this program records.
SPOILED = {
    "no base64": "no base64",
    "no JSON": base64.b64encode(b"no JSON").decode(),
    "another type": base64.b64encode(b'{"other": 1}').decode(),
}


def spoil(world: World, id_: str, data: str = SPOILED["no base64"]) -> None:
    """Replace the value of a settled promise in the database that holds it."""
    if isinstance(world, ServerWorld):
        with contextlib.closing(sqlite3.connect(world.promises / "resonate.db", timeout=HANG_S)) as db, db:
            changed = db.execute("UPDATE promises SET value_data = ? WHERE id = ?", (data, id_)).rowcount
    else:
        origin = id_.partition(":")[0]
        with contextlib.closing(sqlite3.connect(world.data / "promises.db")) as db, db:
            [(text,)] = db.execute("SELECT state FROM origins WHERE origin = ?", (origin,))
            state = json.loads(text)
            state["promises"][id_]["value"]["data"] = data
            update = "UPDATE origins SET state = ? WHERE origin = ?"
            changed = db.execute(update, (json.dumps(state), origin)).rowcount
    assert changed == 1


def halt(world: World, user: str) -> None:
    """Make the uuid's promise rejected, without a row and without an account."""
    stage(world, user, str(tb.id()))
    assert_halted(world, user, f"{world.reference} exists_diff")
    unstage(world, user)


def connected[T](world: World, work: Callable[[Resonate, Clients], Awaitable[T]]) -> T:
    """Connect as a command does, and return the result of the work."""

    async def main() -> T:
        async with connect(Settings.read(world.env)) as clients:
            return await work(clients.resonate, clients)

    return asyncio.run(main())


def resolve(world: World, id_: str, result: object) -> None:
    """Create and resolve a promise, as another program can."""

    async def both(resonate: Resonate, _: Clients) -> None:
        await resonate.promises.create(id_, DEADLINE_MS, Value(data=None), {})
        await resonate.promises.resolve(id_, Value(data=result))

    connected(world, both)


def load(world: World, user: str, meanwhile: Callable[[list[str]], None]) -> list[str]:
    """Create accounts, eight at a time, until `meanwhile` returns. Returns their uuids."""
    uuids: list[str] = []

    async def main(resonate: Resonate, __: Clients) -> None:
        begun, enough = asyncio.Event(), asyncio.Event()

        async def create() -> None:
            while not enough.is_set():
                uuids.append(uuid := f"{user}-{len(uuids)}")
                await start(resonate, uuid).result()
                begun.set()

        async with asyncio.TaskGroup() as creating:
            for _ in range(8):
                creating.create_task(create())
            await begun.wait()
            try:
                await asyncio.to_thread(meanwhile, uuids)
            finally:
                enough.set()

    connected(world, main)
    return uuids
