"""Create an account in two stores that share no transaction: write last, read first.

- SQLite is the System of Reference. A row `(uuid, guid)` stages the account. It decides nothing.
- TigerBeetle is the System of Record. The account exists if, and only if, it exists here.

So the System of Record is written last, and read first. `create_account` below does it in three durable
steps: each step's result is a durable promise, kept by Resonate, so a process that dies between two of
them is followed by one that goes on at the next. Where the stores contradict each other it panics: the
workflow halts for good, and an operator decides.

    python create_account.py user-123

prints the same two lines however often it is run. Without settings it needs no server (embedded.py);
settings.py lists the variables that name a TigerBeetle cluster and a Resonate server.

Exit status: 0 created, now or before; 1 a store or server cannot be used; 2 usage; 98 a panic; 130 Ctrl-C.
"""

if __name__ == "__main__":
    # Run as `create_account`, not as `__main__`: a Panic is stored under its module's name, and another
    # process finds it by that name. Before the imports, so that Ctrl-C during them is no traceback either.
    import console

    console.main("create_account")

import argparse
import asyncio
import contextlib
import hashlib
import os
import types
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import tigerbeetle as tb
from resonate.context import Context
from resonate.error import ResonateError
from resonate.resonate import Resonate
from resonate.retry import Never

from console import log_to_stderr, note, show
from settings import Clients, Settings, check_uuid, open_clients
from stores import SystemOfRecord, SystemOfReference

if TYPE_CHECKING:
    # Not at run time: the SDK would decode the workflow's result to its annotation, a Generator. All others
    # are no text (`from __future__ import annotations`): the SDK would evaluate it anew for every step.
    from collections.abc import Generator

# -- Outcomes --------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a write answers, and where that is a conflict, what it found: a durable promise's value."""

    type: Literal["created", "exists_same", "exists_diff", "out_of_order"]
    found: str = ""


class Panic(ResonateError):
    """Halts the workflow for an operator: the stores contradict each other.

    It settles the workflow's durable promise as rejected, so a rerun gets the same answer and runs no
    step. The code and the type are those of the TypeScript SDK's `context.panic`.
    """

    code, type = "98", "Panic"

    def __init__(self, condition: str, uuid: str, guid: str, found: str) -> None:
        super().__init__(condition, uuid, guid, found)  # what another process makes it from
        self.condition, self.uuid, self.guid, self.found = condition, uuid, guid, found

    def __str__(self) -> str:
        what = f"PANIC: {self.condition} for uuid {self.uuid!r} with guid {self.guid}"
        return f"{what}: {self.found}. {WHAT_NOW[self.condition]} How to go on: docs/operations.md"


WHAT_NOW = {
    "SQLite exists_diff": "Nothing was written; an account exists if TigerBeetle holds the guid that is staged for this uuid.",
    "TigerBeetle exists_diff": "Another writer took the guid; find out whose account it is.",
    "ordering violated": "SQLite was lost, rolled back, or is another host's; do not create a second account.",
}


def panic_if(halt: bool, *details: str) -> None:  # noqa: FBT001
    if halt:
        raise Panic(*details)


# -- Steps -----------------------------------------------------------------


def owner(uuid: str) -> int:
    """Return the account's `user_data_128`, by which TigerBeetle itself knows whose it is."""
    return int.from_bytes(hashlib.blake2b(uuid.encode(), digest_size=16).digest())


def generate_guid(ctx: Context) -> str:
    """Return a TigerBeetle id as decimal digits: JSON numbers do not hold 128 bits in every SDK."""
    return str(tb.id())


async def sqlite_create_account(ctx: Context, uuid: str, guid: str) -> Outcome:
    """Stage the account in the System of Reference."""
    sqlite = ctx.get_dependency(SystemOfReference)
    tigerbeetle = ctx.get_dependency(SystemOfRecord)
    select = "SELECT uuid, guid FROM accounts WHERE uuid = ? OR guid = ?"
    insert = "INSERT INTO accounts (uuid, guid) VALUES (?, ?) ON CONFLICT DO NOTHING"

    # Read first. Nothing is committed before it is staged, so an account without a row means that SQLite
    # was lost or rolled back; staging a fresh guid would make a second account.
    held = await tigerbeetle.guids_of(owner(uuid))
    while not (rows := await sqlite.read(select, uuid, guid)):
        if held:
            return Outcome(
                "out_of_order", f"SQLite has no row for it, and TigerBeetle holds {', '.join(held)}"
            )
        if await sqlite.write(insert, uuid, guid):
            return Outcome("created")
    if rows == [(uuid, guid)]:
        return Outcome("exists_same")
    found = [
        f"uuid {u!r} with guid {g}, which TigerBeetle {'holds' if await tigerbeetle.holds(g) else 'does not hold'}"
        for u, g in rows
    ]
    return Outcome("exists_diff", f"SQLite stages {' and '.join(found)}")


async def tigerbeetle_create_account(ctx: Context, uuid: str, guid: str) -> Outcome:
    """Commit the account in the System of Record."""
    sqlite = ctx.get_dependency(SystemOfReference)
    tigerbeetle = ctx.get_dependency(SystemOfRecord)
    account = tb.Account(id=int(guid), ledger=1, code=1, user_data_128=owner(uuid))

    # Read first; and no row, no commit. This SQLite may be another host's, or restored from a backup.
    held = await tigerbeetle.guids_of(owner(uuid))
    staged = await sqlite.read("SELECT 1 FROM accounts WHERE uuid = ? AND guid = ?", uuid, guid)
    if not staged or held not in ([], [guid]):
        row = "stages it" if staged else "has lost its row"
        return Outcome(
            "out_of_order", f"SQLite {row}, and TigerBeetle holds {', '.join(held) or 'no account'}"
        )

    [result] = await tigerbeetle.create_accounts([account])
    match result.status:
        case tb.CreateAccountStatus.CREATED:
            return Outcome("created")
        case tb.CreateAccountStatus.EXISTS:
            # Every field is the same, the owner included: it is our own earlier write.
            return Outcome("exists_same")
        case status if status.name.startswith("EXISTS_WITH_DIFFERENT_"):
            [other] = await tigerbeetle.lookup_accounts([account.id])
            fields = ("flags", "user_data_128", "user_data_64", "user_data_32", "ledger", "code")
            differ = [f"{f} {getattr(other, f)}" for f in fields if getattr(other, f) != getattr(account, f)]
            return Outcome(
                "exists_diff", f"SQLite stages it, and TigerBeetle's account has {', '.join(differ)}"
            )
        case status:
            raise ValueError(f"TigerBeetle does not take {account}: {status!r}")


# -- The workflow ----------------------------------------------------------

#: The SDK's deadlines are a day; a step that is resumed after its deadline fails for good.
DEADLINE = timedelta(days=36_500)


@types.coroutine
def create_account(ctx: Context, uuid: str) -> "Generator[Any, Any, dict[str, str]]":
    """Write last, read first. Returns `{"uuid": uuid, "guid": guid}`; raises `Panic`.

    A generator, so that it can be read beside the TypeScript original: `yield from ctx.run(f).__await__()`
    is its `yield* ctx.run(f)`. Its twin is `async def create_account(ctx, uuid) -> dict[str, str]`, without
    the decorator, and with `await ctx.run(f)`.
    """
    ctx = ctx.options(timeout=DEADLINE)

    guid = yield from ctx.run(generate_guid).__await__()

    # Stage it in the System of Reference.
    sqlite = yield from ctx.run(sqlite_create_account, uuid, guid).__await__()

    panic_if(sqlite.type == "exists_diff", "SQLite exists_diff", uuid, guid, sqlite.found)
    panic_if(sqlite.type == "out_of_order", "ordering violated", uuid, guid, sqlite.found)

    # Commit it in the System of Record.
    tigerbeetle = yield from ctx.run(tigerbeetle_create_account, uuid, guid).__await__()

    panic_if(tigerbeetle.type == "exists_diff", "TigerBeetle exists_diff", uuid, guid, tigerbeetle.found)
    panic_if(tigerbeetle.type == "out_of_order", "ordering violated", uuid, guid, tigerbeetle.found)

    return {"uuid": uuid, "guid": guid}


# -- Wiring ----------------------------------------------------------------


@contextlib.asynccontextmanager
async def connect(settings: Settings, *, serve: bool = False) -> AsyncIterator[tuple[Resonate, Clients]]:
    """Register the workflow and inject the two stores. Raises `stores.Unavailable`."""
    async with open_clients(settings, serve=serve) as clients:
        # Never: a failed step is not tried again behind our back for years. Trouble that passes does not
        # fail a step at all, see stores.py; what is left is an error in this program.
        resonate = Resonate(**clients.promises, retry_policy=Never())
        resonate.register(create_account, name="create_account")
        resonate.with_dependency(clients.reference).with_dependency(clients.record)
        try:
            yield resonate, clients
        finally:
            stopping = asyncio.create_task(resonate.stop())
            await clients.close_stores()  # a step that waits for an answer gets none, and stays pending
            await stopping


async def run(uuid: str, settings: Settings) -> int:
    async with connect(settings) as (resonate, clients):
        promise = resonate.options(timeout=DEADLINE).run(f"create-account-{uuid}", create_account, uuid)
        await clients.outages.race(promise.id())  # kept, or an error: a promise that is not has no result
        try:
            guid = (await clients.outages.race(promise.result()))["guid"]
        except Panic as panic:
            note(str(panic))
            return int(Panic.code)
        except (ResonateError, LookupError, TypeError) as error:  # canceled, say, or another program's
            note(f"PANIC: promise create-account-{uuid} holds no account: {type(error).__name__}: {error}")
            return int(Panic.code)
        # Read first, here too: what is shown as an account is the one that TigerBeetle holds now.
        held = await clients.outages.race(clients.record.guids_of(owner(uuid)))
        if held != [guid]:
            note(not_held(uuid, guid, held))
            return int(Panic.code)
    show(f"UUID: {uuid}\nGUID: {guid}")
    return 0


def not_held(uuid: str, guid: str, held: list[str]) -> str:
    return (
        f"PANIC: the workflow created account {guid} for uuid {uuid!r}, and TigerBeetle does not hold it for "
        f"that uuid, but {', '.join(held) or 'none'}: the ledger was replaced, or restored from before, or "
        "another host has an SQLite of its own. How to go on: docs/operations.md"
    )


# -- Command line ----------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(
        "create_account.py", "%(prog)s [-h] [-v] [--] uuid", "Create an account, once."
    )
    parser.add_argument("uuid", help="whose account: up to 256 characters, no colon, no control character")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the clients' own logging")
    arguments = parser.parse_args()
    try:
        check_uuid(arguments.uuid)
    except ValueError as error:
        parser.error(str(error))
    log_to_stderr(verbose=arguments.verbose)
    settings = Settings.read(os.environ)
    if settings.stand_ins:
        note(settings.stand_ins)
    return asyncio.run(run(arguments.uuid, settings))
