"""After a panic: `python ops/adopt.py uuid` finishes what was staged, `--again` creates what was not.

A panic is for good: the durable promise `create-account-<uuid>` stays rejected, and no step of it ever runs
again. That is what makes it safe to go on here, under a durable id of its own:

- SQLite has a row, and TigerBeetle no account for the uuid: the row's own guid is committed.
- TigerBeetle holds one account for the uuid, and SQLite has no row: its row is staged again.
- Neither, and `--again`: `create_account` runs once more, with a fresh guid.
- Both, and they agree: there is nothing to do.

Then it prints the same two lines as `create_account.py`, read from the stores, as often as it is run.

The ids are `attempt-<number>-create-account-<uuid>`, from 2. They begin with an `a` and a uuid's own with a
`c`, so no uuid can make the two equal; the number has no dash, so no two of them are equal either. Before
an attempt begins, all that went before are settled; and one that is pending is gone on with, not doubled.

Refused, in one line, with nothing written: while the first promise is pending, or if there is none, for
`create_account.py` might then still write; and where the stores say that it would make a second account.

Exit status: 0 the account exists; 98 refused, or a panic; 1 a store or server cannot be used; 2 usage;
130 Ctrl-C.
"""

from __future__ import annotations

if __name__ == "__main__":
    import start

    start.main("adopt")

import argparse
import asyncio
import shlex
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from check import Found, attempt, look, open_readers, read_command_line

from console import note, show
from create_account import (
    DEADLINE,
    Outcome,
    Panic,
    connect,
    create_account,
    owner,
    panic_if,
    tigerbeetle_create_account,
)
from stores import SystemOfRecord, SystemOfReference

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from resonate.context import Context

    from settings import Settings

# -- Workflows -------------------------------------------------------------


@types.coroutine
def commit_staged(ctx: Context, uuid: str, guid: str) -> Generator[Any, Any, dict[str, str]]:
    """Create the account that SQLite stages. Returns and raises what `create_account` does."""
    ctx = ctx.options(timeout=DEADLINE)

    # It reads the row again, and whether there is another account for the uuid by now.
    tigerbeetle = yield from ctx.run(tigerbeetle_create_account, uuid, guid).__await__()

    panic_if(tigerbeetle.type == "exists_diff", "TigerBeetle exists_diff", uuid, guid, tigerbeetle.found)
    panic_if(tigerbeetle.type == "out_of_order", "ordering violated", uuid, guid, tigerbeetle.found)

    return {"uuid": uuid, "guid": guid}


@types.coroutine
def stage_committed(ctx: Context, uuid: str, guid: str) -> Generator[Any, Any, dict[str, str]]:
    """Give the account that TigerBeetle holds its row. Returns and raises what `create_account` does."""
    ctx = ctx.options(timeout=DEADLINE)

    sqlite = yield from ctx.run(sqlite_stage_committed, uuid, guid).__await__()

    panic_if(sqlite.type == "exists_diff", "SQLite exists_diff", uuid, guid, sqlite.found)
    panic_if(sqlite.type == "out_of_order", "ordering violated", uuid, guid, sqlite.found)

    return {"uuid": uuid, "guid": guid}


async def sqlite_stage_committed(ctx: Context, uuid: str, guid: str) -> Outcome:
    """Write the row of an account that is the uuid's only one."""
    sqlite = ctx.get_dependency(SystemOfReference)
    tigerbeetle = ctx.get_dependency(SystemOfRecord)

    held = await tigerbeetle.guids_of(owner(uuid))
    if held != [guid]:
        return Outcome("out_of_order", f"TigerBeetle holds {', '.join(held) or 'no account'}")
    written = await sqlite.write(
        "INSERT INTO accounts (uuid, guid) VALUES (?, ?) ON CONFLICT DO NOTHING", uuid, guid
    )
    rows = await sqlite.read("SELECT uuid, guid FROM accounts WHERE uuid = ? OR guid = ?", uuid, guid)
    if rows == [(uuid, guid)]:
        return Outcome("created" if written else "exists_same")
    return Outcome(
        "exists_diff", f"SQLite stages {' and '.join(f'uuid {u!r} with guid {g}' for u, g in rows)}"
    )


# -- What to do ------------------------------------------------------------

#: No worker serves it: only this command knows these workflows, and goes on with one that it finds pending.
GROUP = "operators"


class Refused(Exception):
    """Nothing is done. The message is one line: why, and the way out."""


@dataclass(frozen=True)
class Attempt:
    id: str
    workflow: Callable[..., Any]
    arguments: tuple[str, ...]


def decide(found: Found, *, again: bool) -> Attempt | None:
    """Return what is to be done, None where the account exists. Raises `Refused`."""
    uuid, promises = found.uuid, found.promises
    first, run = attempt(uuid, 1), f"python create_account.py -- {shlex.quote(uuid)}"
    if not promises:
        raise Refused(f"promise {first} is not there: nobody has asked for it, or it is lost; {run}")
    if promises[-1].state == "pending":
        if len(promises) == 1:
            raise Refused(f"promise {first} is pending, and a run goes on with it; {run}")
        return Attempt(promises[-1].id, create_account, (uuid,))  # it goes on as what it was begun as

    lost = found.broken_promises()
    if found.contradictions() or any(promise.guid != found.guid for promise in lost):
        raise Refused("; ".join(found.reasons()))
    if found.accounts and found.rows:
        return None

    following = attempt(uuid, len(promises) + 1)
    if found.accounts:
        return Attempt(following, stage_committed, (uuid, str(found.accounts[0].id)))
    if found.guid is None and not again:
        raise Refused("nothing is staged, and TigerBeetle holds no account; --again creates one")
    if found.guid is None:
        return Attempt(following, create_account, (uuid,))
    if lost and not again:
        raise Refused(f"{'; '.join(found.reasons())}; restore it, or --again creates it anew, and empty")
    if again and not lost:
        raise Refused(f"SQLite stages guid {found.guid}; finish that one, without --again")
    return Attempt(following, commit_staged, (uuid, found.guid))


async def run(uuid: str, settings: Settings, *, again: bool) -> int:
    found = await read(uuid, settings)
    try:
        todo = decide(found, again=again)
    except Refused as refused:
        note(f"nothing is done: {refused}")
        return int(Panic.code)
    if todo is not None:
        try:
            await carry_out(todo, settings)
        except Panic as panic:
            note(str(panic))
            return int(Panic.code)
        found = await read(uuid, settings)
    if found.verdict != "exists":
        note(f"PANIC: uuid {uuid!r} is {found.verdict}: {'; '.join(found.reasons())}")
        return int(Panic.code)
    show(f"UUID: {uuid}\nGUID: {found.guid}")
    return 0


async def read(uuid: str, settings: Settings) -> Found:
    async with open_readers(settings) as readers:
        return await readers.outages.race(look(readers, uuid))


async def carry_out(todo: Attempt, settings: Settings) -> None:
    """Run the attempt, or go on with it. Raises its `Panic`."""
    async with connect(settings) as (resonate, clients):
        resonate.register(commit_staged, name="commit_staged")
        resonate.register(stage_committed, name="stage_committed")
        start = resonate.options(timeout=DEADLINE, target=GROUP).run
        promise = start(todo.id, todo.workflow, *todo.arguments)
        await clients.outages.race(promise.id())
        await clients.outages.race(promise.result())


# -- Command line ----------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser("adopt.py", description="Finish an account that a panic has left.")
    parser.add_argument("uuid", help="whose account")
    parser.add_argument("--again", action="store_true", help="create it where nothing of it is left")
    arguments, settings = read_command_line(parser)
    return asyncio.run(run(arguments.uuid, settings, again=arguments.again))
