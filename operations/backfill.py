"""Create an account for each uuid of a list: `python -m operations backfill [FILE]`, or from stdin.

The accounts are created in batches (batch.py), in constant memory. Each uuid has its own durable promise, exactly as
with `create_account.py`. So a single run, or a backfill with lines added, removed or reordered, finds the same accounts.

A batch ends at `--chunk` lines, or when the input pauses. A batch of one is a single run. If a backfill is killed and run
again with the same input, it prints the whole result, and the same each time.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import re
import select
import stat
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tqdm import tqdm

from clients.account import UUID_MAX_CHARACTERS, check_uuid
from clients.command.console import UNAVAILABLE, USAGE, print_diagnostic, print_result
from clients.errors import HALTED, Halted, Unavailable, UsageError
from clients.promises.cannot_run import StillLeased, Unexecutable
from create_account import create_account
from operations.batch import BYTES_MAX, batch_id, size_of
from operations.create import create, run_batch
from operations.opening import connect
from operations.steps import are_of_batches

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from clients.settings import Settings
    from operations.opening import Clients

#: Bytes of a line that are read: a character more than the longest uuid, and a carriage return.
LINE_MAX_BYTES = 4 * (UUID_MAX_CHARACTERS + 1) + 1

#: What the uuid needs that needs most of `BYTES_MAX`.
LARGEST = size_of("\U0010ffff" * UUID_MAX_CHARACTERS)

#: Seconds without a line after which the lines that have arrived become a batch.
PAUSE_S = 0.1

#: Invalid lines that are named. Further ones are only counted.
NAMED_MAX = 100

#: Invalid lines of the first block that make it another kind of file, if most lines are invalid.
INVALID_MAX = 10

#: How a JSON array, a page of HTML or XML, and a key begin.
OTHER_FORMAT = re.compile(r'[\[{]$|[\[{]"|<(?:!doctype|html|\?xml)\b|-----BEGIN ', re.IGNORECASE)

#: Single runs at the same time, as many as the SDK runs. More would wait inside the SDK while their leases expire.
SINGLE_RUNS_MAX = 64

# -- Input -----------------------------------------------------------------


async def read_lines(descriptor: int) -> AsyncIterator[bytes | None]:
    """Yield the lines as they arrive, without their ends. A line longer than `LINE_MAX_BYTES` is cut. None: a pause."""
    rest, chunk = b"", b"\n"
    while chunk:
        # In a thread: the event loop renews leases and handles Ctrl-C, which does not wait for the thread.
        reading = asyncio.ensure_future(asyncio.to_thread(os.read, descriptor, 65_536))
        if not (await asyncio.wait({reading}, timeout=PAUSE_S))[0]:
            yield None
        chunk = await reading
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
        rest = rest[: LINE_MAX_BYTES + len(codecs.BOM_UTF8)]
    if rest:
        yield rest


async def read_blocks(descriptor: int, lines_max: int) -> AsyncIterator[list[tuple[int, str]]]:
    """Yield the lines with their numbers, in blocks. A block ends at `lines_max` lines, when it is large, and at a pause.

    Raises `UsageError` if a line is no text.
    """
    block: list[tuple[int, str]] = []
    number = size = 0
    async for line in read_lines(descriptor):
        if line is not None:
            number += 1
            text = decode(number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
            block.append((number, text))
            size += size_of(text)
        if block and (line is None or len(block) == lines_max or size > BYTES_MAX - LARGEST):
            yield block
            block, size = [], 0
    if block:
        yield block


def decode(number: int, line: bytes) -> str:
    """Return the text of a line, of which too long ones are cut. Raises `UsageError` if it is no text."""
    line = line.removesuffix(b"\r")[:LINE_MAX_BYTES]
    try:
        if b"\0" in line:
            raise ValueError("it contains a NUL")
        # A cut can divide a character.
        return codecs.getincrementaldecoder("utf-8")().decode(line, final=len(line) < LINE_MAX_BYTES)
    except ValueError as error:
        raise UsageError(
            f"line {number} of the input is not UTF-8 text; no account of this line or of a later one was created; "
            "decompress the input or convert it, to one uuid per line in UTF-8, and run again"
        ) from error


def check_list(lines: list[str], invalid: list[str]) -> None:
    """Raise `UsageError` if the first lines cannot be a list. A single uuid may contain commas, braces and quotes."""
    first = lines[0].strip()
    if OTHER_FORMAT.match(first):
        problem = f"it begins with {first[:40]!r}"
    elif "uuid" in (field.strip(" \"'").casefold() for field in re.split(r"[,;|\t]", first)):
        problem = f"its first line is a header, {first[:40]!r}"
    elif len(lines) > 1 and all(re.fullmatch(r'".*"|\'.*\'', line) for line in lines):
        problem = "its lines are in quotes"
    elif len(invalid) >= INVALID_MAX and len(invalid) > len(lines) / 2:
        problem = f"{len(invalid):,} of its first {len(lines):,} lines are invalid; {invalid[0]}"
    else:
        return
    raise UsageError(
        f"the input is no list of uuids: {problem}; nothing was created; pass one uuid per line and run again"
    )


# -- Accounts --------------------------------------------------------------


async def create_batch(uuids: list[str], clients: Clients) -> tuple[bool, list[str | None]]:
    """Create the accounts as a batch, or resume it. Returns whether it had ended before, and the guids.

    TigerBeetle is seen to hold the account of each guid. None: a single run says what became of the uuid, also if the
    account exists, but its row was lost since.
    """
    try:
        batch, ended = await run_batch(batch_id(uuids), uuids, clients)
        result = await batch.result()
        guids = dict(zip(uuids, result["guids"], strict=True))
        # The accounts of a batch that ended before are not among the newest.
        newer_than = None if ended else int(result["newest"])
    except Exception:  # noqa: BLE001 - any error or value can be stored in a promise; the single runs report it
        return False, [None] * len(uuids)
    # Read first, here too.
    existing = await clients.record.guids_of_many(uuids, newer_than)
    rows = await clients.reference.rows_of_many([(uuid, guid or "") for uuid, guid in guids.items()])
    return ended, [
        guid if held == [guid] and found == [(uuid, guid)] else None
        for (uuid, guid), held, found in zip(guids.items(), existing, rows, strict=True)
    ]


@dataclass(frozen=True)
class Account:
    uuid: str
    guid: str = ""
    existed: bool = False
    halted: str = ""
    pending: str = ""


class Backfill:
    """Reads uuids, creates their accounts in batches of at most `chunk` lines, and prints them in order."""

    def __init__(self, clients: Clients, chunk: int, unfinished: IO[str], bar: tqdm[Any]) -> None:
        self.counts: Counter[str] = Counter()
        self._clients = clients
        self._chunk = chunk
        self._unfinished = unfinished
        self._bar = bar
        self._in_batches = are_of_batches(create_account)

    async def run(self, descriptor: int) -> None:
        """Create all accounts. Raises OSError if stdout cannot be written."""
        if not self._in_batches:
            print_diagnostic(
                "create_account has other steps than a batch: each account is a single run, which is slower"
            )
        async for lines in self._chunks(descriptor):
            uuids = list(dict.fromkeys(lines))
            accounts = await self._batch(uuids)
            in_flight = asyncio.Semaphore(SINGLE_RUNS_MAX)
            singles = {
                uuid: asyncio.create_task(self._single(uuid, in_flight)) for uuid in uuids if uuid not in accounts
            }
            try:
                await self._print(lines, accounts, singles)
            finally:
                for single in singles.values():
                    single.cancel()
            self._bar.update(len(lines))

    async def _chunks(self, descriptor: int) -> AsyncIterator[list[str]]:
        """Yield the uuids of the lines. Reads on when the caller has used them. Raises `UsageError` if it is no list."""
        begun = False
        async for block in read_blocks(descriptor, self._chunk):
            uuids: list[str] = []
            invalid: list[str] = []
            for number, line in block:
                try:
                    uuids.append(check_uuid(line))
                except ValueError as error:
                    invalid.append(f"line {number}: {error}")
            if not begun:
                check_list([line for _, line in block], invalid)
            for problem in invalid:
                self._skip(problem)
            if uuids:
                begun = True
                yield uuids

    async def _batch(self, uuids: list[str]) -> dict[str, Account]:
        """Create the accounts as a batch, if there are several. Those that are left out need a single run."""
        if len(uuids) <= 1 or not self._in_batches:
            return {}
        ended, guids = await create_batch(uuids, self._clients)
        return {uuid: Account(uuid, guid, ended) for uuid, guid in zip(uuids, guids, strict=True) if guid is not None}

    async def _single(self, uuid: str, in_flight: asyncio.Semaphore) -> Account:
        """Create one account, or say what became of it, as `create_account.py` does."""
        async with in_flight:
            try:
                return Account(uuid, *await create(uuid, self._clients))
            except (Halted, Unexecutable) as halted:
                return Account(uuid, halted=str(halted))
            except StillLeased as pending:
                return Account(uuid, pending=str(pending))

    async def _print(
        self, uuids: list[str], accounts: dict[str, Account], singles: dict[str, asyncio.Task[Account]]
    ) -> None:
        """Print the accounts in this order, each as soon as the order permits."""
        block, printed = "", set[str]()
        for uuid in uuids:
            if uuid not in accounts:
                if block and not singles[uuid].done():
                    await self._write(block)
                    block = ""
                accounts[uuid] = await singles[uuid]
            account = accounts[uuid]
            if account.halted or account.pending:
                self.counts["halted" if account.halted else "pending"] += 1
                print(account.halted or account.pending, file=self._unfinished)
            else:
                self.counts["existing" if account.existed or account.uuid in printed else "created"] += 1
                printed.add(account.uuid)
                line = f"{account.uuid}\t{account.guid}\n"
                if len((block + line).encode()) > select.PIPE_BUF:
                    await self._write(block)
                    block = ""
                block += line
        if block:
            await self._write(block)

    async def _write(self, block: str) -> None:
        """Write to stdout. A pipe takes a block of PIPE_BUF bytes as a whole, or not at all."""
        with tqdm.external_write_mode() if sys.stdout.isatty() else contextlib.nullcontext():
            await asyncio.to_thread(print_result, block.removesuffix("\n"))

    def _skip(self, problem: str) -> None:
        self.counts["invalid"] += 1
        if self.counts["invalid"] <= NAMED_MAX:
            with tqdm.external_write_mode(sys.stderr):
                print_diagnostic(f"skipped {problem}")
        elif self.counts["invalid"] == NAMED_MAX + 1:
            print_diagnostic("further invalid lines are skipped and counted, but not named")
        self._bar.update()


# -- Command line ----------------------------------------------------------


async def backfill(descriptor: int, chunk: int, settings: Settings) -> int:
    with tempfile.SpooledTemporaryFile(1 << 20, "w+", encoding="utf-8") as unfinished:
        async with connect(settings) as clients:
            visible = sys.stderr is not None and sys.stderr.isatty()
            total = count_lines(descriptor) if visible else None
            bar = tqdm(total=total, unit=" accounts", disable=not visible)
            work = Backfill(clients, chunk, unfinished, bar)
            started = time.monotonic()
            try:
                await clients.outages.result_or_raise(work.run(descriptor))
            except OSError as error:
                if not isinstance(error.__cause__, BrokenPipeError):
                    raise
            finally:
                bar.close()
                if work.counts or not isinstance(sys.exception(), UsageError):  # an input that is refused gets one line
                    report(work.counts, unfinished, time.monotonic() - started)
    if work.counts["halted"]:
        return HALTED
    if work.counts["pending"]:
        return UNAVAILABLE
    return USAGE if work.counts["invalid"] else 0


def report(counts: Counter[str], unfinished: IO[str], seconds: float) -> None:
    """Print the halted and the pending accounts, and the counts, to stderr."""
    unfinished.seek(0)
    for line in unfinished:
        print_diagnostic(line.rstrip("\n"))
    names = ("created", "existing", "halted", "invalid", *["pending"] * ("pending" in counts))
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


async def run(file: str | None, chunk: int, settings: Settings) -> int:
    try:
        lines = Path(file).open("rb") if file else sys.stdin  # noqa: SIM115, ASYNC230
    except OSError as error:
        raise Unavailable(f"cannot read {file}: {str(error.strerror).lower()}") from error
    if lines is None or sys.stdout is None:
        raise OSError("stdin or stdout is closed")
    if lines.isatty():
        print_diagnostic("reading uuids from the terminal, one per line; end with Ctrl-D")
    try:
        return await backfill(lines.fileno(), chunk, settings)
    except asyncio.CancelledError:
        print_diagnostic("interrupted: run again with the same input, and it prints the whole result")
        raise
