"""Create an account for each uuid of a list: `python -m operations backfill [FILE]`, or from stdin.

One uuid per line, UTF-8, any number of lines, in constant memory. Each uuid has its own durable promise,
`create-account-<uuid>`, exactly as with `create_account.py`. A later single run, or a second backfill with
lines added, removed or reordered, finds the same accounts.

stdout gets `uuid<TAB>guid` for each line, in input order, after TigerBeetle is seen to hold the account. If a
backfill is killed and run again with the same input, it prints the whole result, and the same each time. A
uuid that occurs twice is printed twice, with its one account.

An invalid line, also an empty one, is named by its number on stderr and skipped. A panic halts its account
only, and is reported at the end.

Exit status: 98 if an account is halted, else 2 if a line is invalid, else 0; 1 a store or server is
unavailable; 130 Ctrl-C. If the reader of stdout closes it, as `head` does, the backfill ends without an error.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import itertools
import os
import stat
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tqdm import tqdm

from clients.account import UUID_MAX_CHARACTERS, check_uuid, promise_id
from clients.console import HALTED, USAGE, Halted, UsageError, print_diagnostic, print_result
from clients.results import confirmed_guid, settled
from clients.unexecutable import Unexecutable
from create_account import DEADLINE, connect, create_account

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from resonate.handle import ResonateHandle
    from resonate.resonate import Resonate

    from clients.opening import Clients
    from clients.settings import Settings

#: Bytes of a line that are stored: the longest uuid, a carriage return, and one that shows a longer line.
LINE_MAX_BYTES = 4 * UUID_MAX_CHARACTERS + 2

# -- Input -----------------------------------------------------------------


async def ready(add: Callable[..., None], remove: Callable[[int], Any], descriptor: int) -> None:
    """Wait for a pipe or a terminal without blocking the event loop, which renews leases and handles Ctrl-C."""
    event = asyncio.Event()
    try:
        add(descriptor, event.set)
    except PermissionError:
        return  # a regular file is always ready
    try:
        await event.wait()
    finally:
        remove(descriptor)


async def read_lines(descriptor: int) -> AsyncIterator[bytes]:
    """Yield the lines as they arrive, without their ends. A line is cut after `LINE_MAX_BYTES`."""
    loop = asyncio.get_running_loop()
    rest = b""
    while True:
        await ready(loop.add_reader, loop.remove_reader, descriptor)
        chunk = os.read(descriptor, 65_536)
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
        rest = rest[:LINE_MAX_BYTES]
        if not chunk:
            break
    if rest:
        yield rest


def parse(line: bytes) -> str:
    """Return the uuid. Raises ValueError saying what is wrong."""
    if len(line) >= LINE_MAX_BYTES:
        raise ValueError(f"the uuid is too long; the maximum is {UUID_MAX_CHARACTERS} characters")
    try:
        return check_uuid(line.removesuffix(b"\r").decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"the line is not UTF-8: {error.reason}") from error


# -- Accounts --------------------------------------------------------------


@dataclass(frozen=True)
class Account:
    uuid: str
    guid: str = ""
    existed: bool = False
    halted: str = ""
    invalid: str = ""


class Backfill:
    """Reads uuids, creates their accounts, at most `in_flight` at a time, and prints them in order."""

    def __init__(
        self, resonate: Resonate, clients: Clients, in_flight: int, halted: IO[str], bar: tqdm[Any]
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._resonate = resonate
        self._clients = clients
        self._slots = asyncio.Semaphore(in_flight)
        self._halted = halted
        self._bar = bar
        self._asked: dict[str, asyncio.Task[Account]] = {}
        self._order: asyncio.Queue[asyncio.Task[Account] | None] = asyncio.Queue()

    async def run(self, descriptor: int) -> None:
        """Create all accounts. Raises OSError if stdout cannot be written."""
        reading = asyncio.create_task(self._read(descriptor))
        reading.add_done_callback(lambda _: self._order.put_nowait(None))
        try:
            while (task := await self._order.get()) is not None:
                await self._print(await task)
                self._slots.release()
                self._bar.update()
            await reading
        finally:
            for unfinished in (reading, *self._asked.values()):
                unfinished.cancel()

    async def _read(self, descriptor: int) -> None:
        number = 0
        async for line in read_lines(descriptor):
            number += 1
            try:
                uuid = parse(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
            except ValueError as error:
                self.counts["invalid"] += 1
                with tqdm.external_write_mode(sys.stderr):
                    print_diagnostic(f"line {number} is skipped: {error}")
                self._bar.update()
                continue
            await self._slots.acquire()
            if uuid not in self._asked:
                self._asked[uuid] = asyncio.create_task(self._account(uuid))
            self._order.put_nowait(self._asked[uuid])

    async def _account(self, uuid: str) -> Account:
        try:
            existed, promise = await self._promise(uuid)
            guid = await confirmed_guid(promise, uuid, self._clients.record)
        except UsageError as error:
            return Account(uuid, invalid=str(error))
        except (Halted, Unexecutable) as halted:
            return Account(uuid, halted=str(halted))
        return Account(uuid, guid, existed)

    async def _promise(self, uuid: str) -> tuple[bool, ResonateHandle[Any]]:
        """Return a handle to the account's durable promise, and whether the promise was settled before."""
        if promise := await settled(self._resonate, uuid):
            return True, promise
        return False, self._resonate.options(timeout=DEADLINE).run(promise_id(uuid), create_account, uuid)

    async def _print(self, account: Account) -> None:
        repeated = self._asked.pop(account.uuid, None) is None
        if account.invalid:
            self.counts["invalid"] += 1
            with tqdm.external_write_mode(sys.stderr):
                print_diagnostic(f"uuid {account.uuid!r} is skipped: {account.invalid}")
            return
        if account.halted:
            self.counts["halted"] += 1
            print(account.halted, file=self._halted)
            return
        self.counts["existing" if account.existed or repeated else "created"] += 1
        loop = asyncio.get_running_loop()
        await ready(loop.add_writer, loop.remove_writer, sys.stdout.fileno())
        with tqdm.external_write_mode() if sys.stdout.isatty() else contextlib.nullcontext():
            print_result(f"{account.uuid}\t{account.guid}")


def number_requests(resonate: Resonate) -> None:
    """Number the SDK's requests. Within a process, numbers are unique enough.

    The SDK takes random bytes from the system. Each time, the interpreter may switch to another thread, which
    costs a fifth of the whole time. `_corr_id` is private, and the SDK's release is pinned. A release without
    it would be slower, but correct.
    """
    numbers = itertools.count()
    resonate._sender._corr_id = lambda: str(next(numbers))


# -- Command line ----------------------------------------------------------


async def backfill(descriptor: int, in_flight: int, settings: Settings) -> int:
    with tempfile.SpooledTemporaryFile(1 << 20, "w+", encoding="utf-8") as halted:
        async with connect(settings) as (resonate, clients):
            number_requests(resonate)
            visible = sys.stderr is not None and sys.stderr.isatty()
            total = count_lines(descriptor) if visible else None
            bar = tqdm(total=total, unit=" accounts", disable=not visible)
            work = Backfill(resonate, clients, in_flight, halted, bar)
            started = time.monotonic()
            try:
                await work.run(descriptor)
            except OSError as error:
                if not isinstance(error.__cause__, BrokenPipeError):
                    raise
            finally:
                bar.close()
                report(work.counts, halted, time.monotonic() - started)
    if work.counts["halted"]:
        return HALTED
    return USAGE if work.counts["invalid"] else 0


def report(counts: Counter[str], halted: IO[str], seconds: float) -> None:
    """Print the halted accounts and the counts to stderr."""
    halted.seek(0)
    for line in halted:
        print_diagnostic(line.rstrip("\n"))
    names = ("created", "existing", "halted", "invalid")
    rate = (counts["created"] + counts["existing"]) / seconds
    print_diagnostic(", ".join(f"{name} {counts[name]:,}" for name in names) + f"; {rate:,.0f} accounts/s")


def count_lines(descriptor: int) -> int | None:
    """Return the number of lines from the current position; None if it is not a regular file."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return None
    start = os.lseek(descriptor, 0, os.SEEK_CUR)
    count = 0
    while chunk := os.read(descriptor, 1 << 20):
        count += chunk.count(b"\n")
    os.lseek(descriptor, start, os.SEEK_SET)
    return count


async def run(file: str | None, in_flight: int, settings: Settings) -> int:
    lines = Path(file).open("rb") if file else sys.stdin  # noqa: SIM115, ASYNC230
    if lines is None or sys.stdout is None:
        raise OSError("stdin or stdout is closed")
    return await backfill(lines.fileno(), in_flight, settings)
