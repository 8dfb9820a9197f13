"""Create an account for each uuid of a list: `python backfill.py [FILE]`, or from stdin.

One uuid a line, UTF-8, any number of lines, in constant memory. Each is its own durable promise,
`create-account-<uuid>`, exactly as if `create_account.py` had been asked for it: a later single run, or a
second backfill with lines added, removed or reordered, finds the same accounts.

stdout gets `uuid<TAB>guid` for each line, in the order of the input, once TigerBeetle is seen to hold the
account. So a backfill that was killed and is run again with the same input prints the whole result, and
prints the same every time. A uuid that comes twice is shown twice, with the one account that it has.

Not an account, and not on stdout: a line that is no uuid (settings.py), an empty one included, is named by
number and skipped; a panic halts its account, not its neighbours, and is reported at the end.

Exit status: 98 if an account is halted, else 2 if a line is invalid, else 0; 1 a store or server cannot be
used; 130 Ctrl-C. A reader of stdout that has seen enough, such as `head`, is no error: the rest is left.
"""

from __future__ import annotations

if __name__ == "__main__":
    import console

    console.main("backfill")

import argparse
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
from http import HTTPStatus
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from resonate.error import ResonateError, ServerError
from tqdm import tqdm

from console import log_to_stderr, note, show
from create_account import DEADLINE, Panic, connect, create_account, not_held, owner
from settings import UUID_MAX, Clients, Settings, check_uuid

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from resonate.handle import ResonateHandle
    from resonate.resonate import Resonate

#: As many as the SDK executes at once; more would only wait in it while their leases run.
IN_FLIGHT_MAX = 64

#: Bytes of a line that are kept: the longest uuid, a carriage return, and one that tells that it is longer.
LINE_MAX = 4 * UUID_MAX + 2

INVALID = 2

# -- Input -----------------------------------------------------------------


async def ready(add: Callable[..., None], remove: Callable[[int], Any], descriptor: int) -> None:
    """Wait for a pipe or a terminal, so that neither of them stops leases, or Ctrl-C."""
    event = asyncio.Event()
    try:
        add(descriptor, event.set)
    except PermissionError:
        return  # a file always is
    try:
        await event.wait()
    finally:
        remove(descriptor)


async def read_lines(descriptor: int) -> AsyncIterator[bytes]:
    """Yield the lines as they come, without their ends. Of one that is too long enough is kept to tell."""
    loop = asyncio.get_running_loop()
    rest = b""
    while True:
        await ready(loop.add_reader, loop.remove_reader, descriptor)
        chunk = os.read(descriptor, 65_536)
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
        rest = rest[:LINE_MAX]
        if not chunk:
            break
    if rest:
        yield rest


def parse(line: bytes) -> str:
    """Return the uuid. Raises ValueError saying what is wrong."""
    if len(line) >= LINE_MAX:
        raise ValueError(f"the uuid is too long; {UUID_MAX} characters is the most")
    try:
        return check_uuid(line.removesuffix(b"\r").decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8: {error.reason}") from error


# -- Accounts --------------------------------------------------------------


@dataclass(frozen=True)
class Account:
    uuid: str
    guid: str = ""
    existed: bool = False
    halted: str = ""


class Backfill:
    """Reads, creates and shows, with at most `in_flight` accounts in between."""

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
        """Raises what `console.show` raises. Of outages tells `Outages.race`."""
        reading = asyncio.create_task(self._read(descriptor))
        reading.add_done_callback(lambda _: self._order.put_nowait(None))
        try:
            while (task := await self._order.get()) is not None:
                await self._show(await task)
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
                    note(f"line {number} is skipped: {error}")
                self._bar.update()
                continue
            await self._slots.acquire()
            if uuid not in self._asked:
                self._asked[uuid] = asyncio.create_task(self._account(uuid))
            self._order.put_nowait(self._asked[uuid])

    async def _account(self, uuid: str) -> Account:
        existed, promise = await self._promise(uuid)
        try:
            guid = (await promise.result())["guid"]
        except Panic as panic:
            return Account(uuid, halted=str(panic))
        except (ResonateError, LookupError, TypeError) as error:  # canceled, say, or another program's
            what = f"{type(error).__name__}: {error}"
            return Account(uuid, halted=f"PANIC: promise create-account-{uuid} holds no account: {what}")
        # Read first, here too: what is shown as an account is the one that TigerBeetle holds now.
        held = await self._clients.record.guids_of(owner(uuid))
        if held != [guid]:
            return Account(uuid, halted=not_held(uuid, guid, held))
        return Account(uuid, guid, existed)

    async def _promise(self, uuid: str) -> tuple[bool, ResonateHandle[Any]]:
        """Return whether the account's durable promise was settled before, and a handle to it."""
        name = f"create-account-{uuid}"
        try:
            promise = await self._resonate.get(name)
            if promise.done():
                return True, promise
        except ServerError as error:
            if error.code != HTTPStatus.NOT_FOUND:
                raise
        promise = self._resonate.options(timeout=DEADLINE).run(name, create_account, uuid)
        await promise.id()  # kept, or an error: a promise that is not has no result
        return False, promise

    async def _show(self, account: Account) -> None:
        again = self._asked.pop(account.uuid, None) is None
        if account.halted:
            self.counts["halted"] += 1
            print(account.halted, file=self._halted)
            return
        self.counts["existing" if account.existed or again else "created"] += 1
        loop = asyncio.get_running_loop()
        await ready(loop.add_writer, loop.remove_writer, sys.stdout.fileno())
        with tqdm.external_write_mode() if sys.stdout.isatty() else contextlib.nullcontext():
            show(f"{account.uuid}\t{account.guid}")


def number_requests(resonate: Resonate) -> None:
    """Tell the SDK's requests apart by numbers, which within a process is enough.

    It takes random bytes, of the system's, and each time the interpreter goes to another thread that waits
    for it: a fifth of the whole time. (This is no public part of the SDK, whose release is pinned. One that
    does not know of it is slower, and no more than that.)
    """
    numbers = itertools.count()
    resonate._sender._corr_id = lambda: str(next(numbers))


# -- Command line ----------------------------------------------------------


async def backfill(descriptor: int, in_flight: int, settings: Settings) -> int:
    with tempfile.SpooledTemporaryFile(1 << 20, "w+", encoding="utf-8") as halted:
        async with connect(settings) as (resonate, clients):
            number_requests(resonate)
            seen = sys.stderr is not None and sys.stderr.isatty()
            bar = tqdm(total=count_lines(descriptor) if seen else None, unit=" accounts", disable=not seen)
            work = Backfill(resonate, clients, in_flight, halted, bar)
            started = time.monotonic()
            try:
                await clients.outages.race(work.run(descriptor))
            except OSError as error:
                if not isinstance(error.__cause__, BrokenPipeError):
                    raise
            finally:
                bar.close()
                report(work.counts, halted, time.monotonic() - started)
    if work.counts["halted"]:
        return int(Panic.code)
    return INVALID if work.counts["invalid"] else 0


def report(counts: Counter[str], halted: IO[str], seconds: float) -> None:
    """Say on stderr what became of the lines."""
    halted.seek(0)
    for line in halted:
        note(line.rstrip("\n"))
    names = ("created", "existing", "halted", "invalid")
    rate = (counts["created"] + counts["existing"]) / seconds
    note(", ".join(f"{name} {counts[name]:,}" for name in names) + f"; {rate:,.0f} accounts/s")


def count_lines(descriptor: int) -> int | None:
    """Return how many lines a file has, from where it is read; None for what is no file."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return None
    here = os.lseek(descriptor, 0, os.SEEK_CUR)
    count = 0
    while chunk := os.read(descriptor, 1 << 20):
        count += chunk.count(b"\n")
    os.lseek(descriptor, here, os.SEEK_SET)
    return count


def number_in_flight(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= IN_FLIGHT_MAX):
        raise argparse.ArgumentTypeError(f"a number from 1 to {IN_FLIGHT_MAX}")
    return int(text)


def main() -> int:
    parser = argparse.ArgumentParser("backfill.py", description="Create an account for each uuid, once.")
    parser.add_argument("file", metavar="FILE", nargs="?", help="uuids, one a line; without it: stdin")
    parser.add_argument(
        "--in-flight",
        metavar="N",
        type=number_in_flight,
        default=IN_FLIGHT_MAX,
        help="accounts at once, 1 to %(default)s",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show the clients' own logging")
    arguments = parser.parse_args()
    log_to_stderr(verbose=arguments.verbose)
    settings = Settings.read(os.environ)
    if settings.stand_ins:
        note(settings.stand_ins)
    lines = Path(arguments.file).open("rb") if arguments.file else sys.stdin  # noqa: SIM115
    if lines is None or sys.stdout is None:
        raise OSError("stdin or stdout is closed")
    return asyncio.run(backfill(lines.fileno(), arguments.in_flight, settings))
