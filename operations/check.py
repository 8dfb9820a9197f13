"""Does this account exist? `python ops/check.py uuid` reads it, and changes nothing.

The System of Record decides. The command prints what the durable promises, TigerBeetle and SQLite hold for
the uuid, and one verdict:

| exit status | verdict | |
|---|---|---|
| 0 | `exists` | TigerBeetle holds the account, and SQLite has its row |
| 3 | `staged` | SQLite has a row, TigerBeetle no account: it does not exist yet |
| 4 | `unreferenced` | TigerBeetle holds an account for the uuid, SQLite has no row |
| 5 | `absent` | neither |
| 98 | `conflict` | they contradict each other, or a promise that says `created`; the line says how |
| 1 | none | it cannot tell: a store or the promises cannot be read |

A file that is not there could not be read: it may be lost, or DATA_DIR may be wrong. It is never taken for
a store that is empty. 2 is usage, 130 Ctrl-C.

It may be run while others create accounts. Those stage the row, commit the account, and settle the promise
last; so it is read in the reverse of that order, and whatever it has seen of the one must be there of the next.
"""

from __future__ import annotations

if __name__ == "__main__":
    import start

    start.main("check")

import argparse
import asyncio
import contextlib
import os
import sqlite3
import time
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import msgspec
import tigerbeetle as tb
from resonate.codec import Codec, NoopEncryptor
from resonate.error import ServerError
from resonate.resonate import Resonate
from resonate.types import Value

from console import log_to_stderr, note, show
from create_account import owner
from embedded import EmbeddedLedger
from server import server
from settings import Settings, check_uuid, open_record
from stores import DIGITS, WAYS_OUT, Database, Outages, SystemOfRecord, Unavailable, owned_by

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

STATUS = {"exists": 0, "staged": 3, "unreferenced": 4, "absent": 5, "conflict": 98}

type Verdict = Literal["exists", "staged", "unreferenced", "absent", "conflict"]

# -- Reading ---------------------------------------------------------------


#: Bytes of a -wal file before its first transaction. SQLite cannot read one that ends there.
WAL_HEADER = 32


class ReadOnly(Database):
    """An SQLite file that another process may be writing: read as of its newest commit, and left as it is."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, schema="")

    async def open(self) -> ReadOnly:
        await self.read("SELECT 1 FROM sqlite_master")
        return self

    async def transact[T](self, work: Callable[[sqlite3.Connection], T], *, writes: bool = True) -> T:
        """Return what `work` reads. Raises `Unavailable` where it cannot be read."""
        if writes:
            raise NotImplementedError(f"{self.path} is open for reading alone")
        give_up = time.monotonic() + 1  # a process that is just opening or leaving the file is in the way
        while True:
            mode, _ = seen = self._files()
            try:
                uri = f"file:{quote(os.fsencode(self.path))}?{mode}"
                with contextlib.closing(sqlite3.connect(uri, timeout=1, uri=True)) as db:
                    db.execute("BEGIN")
                    result = work(db)
            except sqlite3.Error as error:
                if time.monotonic() > give_up:
                    way_out = WAYS_OUT.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, "see to the file")
                    raise Unavailable(f"cannot read {self.path}: {error}; {way_out}") from error
                await asyncio.sleep(0.02)
            else:
                if self._files() == seen:
                    return result

    def _files(self) -> tuple[str, object]:
        """Return how to open the file so that none is made or changed, and what is no longer so if it changes.

        SQLite's `mode=ro` makes the files `-wal` and `-shm` where they are not there. But where nothing is in
        the first, the file itself is complete, and `immutable` reads it alone. Should another process begin
        to write meanwhile, what was read does not count.
        """
        try:
            file = self.path.stat()
        except FileNotFoundError as error:
            raise Unavailable(
                f"{self.path} is not there, and a store that is lost is not an empty one: correct DATA_DIR, or "
                "restore the file, unless no account was ever asked for here"
            ) from error
        if self._size("-wal") > WAL_HEADER or self._size("-journal"):
            return "mode=ro&readonly_shm=1" if self._size("-shm") else "mode=ro", None
        return "immutable=1", (file.st_ino, file.st_size, file.st_mtime_ns)

    def _size(self, suffix: str) -> int:
        try:
            return self.path.with_name(self.path.name + suffix).stat().st_size
        except FileNotFoundError:
            return 0


class ReadOnlyLedger(EmbeddedLedger):
    def __init__(self, directory: Path) -> None:
        self._database = ReadOnly(directory / "ledger.db")


@dataclass(frozen=True)
class Promise:
    """A durable promise. Its value is JSON: the pickles that it may carry are not loaded."""

    id: str
    state: str
    value: Any

    @property
    def guid(self) -> str | None:
        """The account that the promise says is created; None where it says no such thing."""
        if self.state != "resolved" or not isinstance(self.value, dict):
            return None
        return str(self.value.get("guid"))


@dataclass(frozen=True)
class Readers:
    reference: ReadOnly
    record: SystemOfRecord
    promise: Callable[[str], Awaitable[Promise | None]]
    outages: Outages


@contextlib.asynccontextmanager
async def open_readers(settings: Settings) -> AsyncIterator[Readers]:
    """Open both stores and the promises for reading alone. Raises `Unavailable`."""
    outages = Outages()
    async with contextlib.AsyncExitStack() as stack:
        if settings.resonate_url is None:
            promise = _embedded(await ReadOnly(settings.data_dir / "promises.db").open())
        else:
            # No function is registered and no message is listened to: nothing can run here.
            requests = server(settings.resonate_url, settings.resonate_token, outages, serve=False)
            resonate = Resonate(**requests | {"sources": []})
            stack.push_async_callback(resonate.stop)
            promise = _served(resonate)
        reference = await ReadOnly(settings.data_dir / "accounts.db").open()
        if settings.tb_address is None:
            ledger = ReadOnlyLedger(settings.data_dir)
            record = SystemOfRecord(ledger.open, "the embedded ledger", outages)
        else:
            record = open_record(settings, outages)
        stack.push_async_callback(record.close)
        await record.open()
        yield Readers(reference, record, promise, outages)


def _embedded(promises: ReadOnly) -> Callable[[str], Awaitable[Promise | None]]:
    async def get(id_: str) -> Promise | None:
        for (state,) in await promises.read("SELECT state FROM origins WHERE origin = ?", id_):
            promise = msgspec.json.decode(state)["promises"][id_]
            value = msgspec.convert(promise["value"] or {}, Value)
            return Promise(id_, promise["state"], Codec(NoopEncryptor()).decode(value))
        return None

    return get


def _served(resonate: Resonate) -> Callable[[str], Awaitable[Promise | None]]:
    async def get(id_: str) -> Promise | None:
        try:
            promise = await resonate.promises.get(id_)
        except ServerError as error:
            if error.code == HTTPStatus.NOT_FOUND:
                return None
            raise
        return Promise(id_, promise.state, promise.value.data)

    return get


# -- Looking ---------------------------------------------------------------


def attempt(uuid: str, number: int) -> str:
    """Return the durable id of an attempt to create the uuid's account: the first is its own, see adopt.py."""
    return f"create-account-{uuid}" if number == 1 else f"attempt-{number}-create-account-{uuid}"


@dataclass(frozen=True)
class Found:
    """What there is for one uuid."""

    uuid: str
    promises: list[Promise]
    accounts: list[tb.Account]
    rows: list[tuple[Any, Any]]

    @property
    def guid(self) -> str | None:
        """The guid that SQLite stages for the uuid."""
        return next((guid for uuid, guid in self.rows if uuid == self.uuid), None)

    @property
    def verdict(self) -> Verdict:
        if self.reasons():
            return "conflict"
        if self.accounts:
            return "exists" if self.rows else "unreferenced"
        return "staged" if self.rows else "absent"

    def contradictions(self) -> list[str]:
        """Return in what the two stores contradict each other, or the rule of one uuid, one account."""
        found = [
            f"SQLite stages guid {guid} for uuid {uuid!r}" for uuid, guid in self.rows if uuid != self.uuid
        ]
        if self.guid is not None and as_id(self.guid) is None:
            found.append(f"SQLite stages guid {self.guid!r}, which is no id of an account")
        if self.guid is not None or len(self.accounts) > 1:
            others = [str(account.id) for account in self.accounts if str(account.id) != self.guid]
            found += [f"TigerBeetle holds account {guid} for the uuid" for guid in others]
        for account in self.accounts:
            found += differences(self.uuid, account)
        return found

    def broken_promises(self) -> list[Promise]:
        """Return the promises that are kept, and of an account that TigerBeetle does not hold."""
        held = {str(account.id) for account in self.accounts}
        return [
            promise for promise in self.promises if promise.state == "resolved" and promise.guid not in held
        ]

    def reasons(self) -> list[str]:
        """Return what makes it a conflict."""
        return self.contradictions() + [
            f"promise {promise.id} is kept, and TigerBeetle does not hold its account {promise.guid}"
            for promise in self.broken_promises()
        ]


def as_id(guid: object) -> int | None:
    """Return the id that a row's guid is, which is digits as `str` writes them; None where it is none."""
    if not (isinstance(guid, str) and guid.isascii() and guid.isdecimal() and len(guid) <= DIGITS):
        return None
    id_ = int(guid)
    return id_ if str(id_) == guid and 0 < id_ < 2**128 - 1 else None


def differences(uuid: str, account: tb.Account) -> list[str]:
    """Return in what the account is not the one that `create_account` makes for the uuid.

    That it is closed is no difference: a transfer closes an account, and it stays the uuid's.
    """
    ours = tb.Account(id=account.id, ledger=1, code=1, user_data_128=owner(uuid))
    held = replace(account, flags=account.flags & ~tb.AccountFlags.CLOSED)
    return [
        f"TigerBeetle's account {account.id} has {field} {getattr(held, field)}, not {getattr(ours, field)}"
        for field in ("flags", "user_data_128", "user_data_64", "user_data_32", "ledger", "code")
        if getattr(held, field) != getattr(ours, field)
    ]


async def look(readers: Readers, uuid: str) -> Found:
    """Read what there is for the uuid, the last written first."""
    promises: list[Promise] = []
    while is_uuid(uuid) and (promise := await readers.promise(attempt(uuid, len(promises) + 1))):
        promises.append(promise)
    accounts = await readers.record.query_accounts(owned_by(owner(uuid)))
    guids = [str(account.id) for account in accounts]
    rows = await readers.reference.read(
        f"SELECT uuid, guid FROM accounts WHERE uuid = ? OR guid IN ({marks(guids)})",  # noqa: S608
        uuid, *guids,
    )  # fmt: skip
    staged = [as_id(guid) for _, guid in rows if guid not in guids]
    accounts += await readers.record.lookup_accounts([id_ for id_ in staged if id_ is not None])
    return Found(uuid, promises, accounts, rows)


def is_uuid(uuid: str) -> bool:
    """Return whether it can have been asked for: a row that another program wrote can have any text."""
    try:
        check_uuid(uuid)
    except ValueError:
        return False
    return True


def marks(values: list[str]) -> str:
    return ", ".join("?" * len(values))


# -- Command line ----------------------------------------------------------


def report(found: Found) -> None:
    for promise in found.promises:
        message = promise.value.get("message", "") if isinstance(promise.value, dict) else ""
        detail = f"account {promise.guid}" if promise.guid is not None else " ".join(str(message).split())
        show(f"promise {promise.id}: {promise.state}" + (f", {detail}" if detail else ""))
    if not found.promises:
        show(f"promise {attempt(found.uuid, 1)}: none")
    for account in found.accounts:
        show(f"TigerBeetle: account {account.id}")
    if not found.accounts:
        show("TigerBeetle: no account")
    show("SQLite: " + (f"row with guid {found.guid}" if found.guid is not None else "no row"))
    reasons = "; ".join(found.reasons())
    show(f"{found.verdict}: {reasons}" if reasons else found.verdict)


def read_command_line(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Settings]:
    parser.add_argument("-v", "--verbose", action="store_true", help="show the clients' own logging")
    arguments = parser.parse_args()
    if "uuid" in arguments:
        try:
            check_uuid(arguments.uuid)
        except ValueError as error:
            parser.error(str(error))
    log_to_stderr(verbose=arguments.verbose)
    settings = Settings.read(os.environ)
    if settings.stand_ins:
        note(settings.stand_ins)
    return arguments, settings


async def run(uuid: str, settings: Settings) -> int:
    async with open_readers(settings) as readers:
        found = await readers.outages.race(look(readers, uuid))
    report(found)
    return STATUS[found.verdict]


def main() -> int:
    parser = argparse.ArgumentParser("check.py", description="Does this account exist? Nothing is changed.")
    parser.add_argument("uuid", help="whose account")
    arguments, settings = read_command_line(parser)
    return asyncio.run(run(arguments.uuid, settings))
