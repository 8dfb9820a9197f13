"""`backfill`: the same accounts as single runs create, in constant memory, and resumed after a kill or outage."""

from __future__ import annotations

import asyncio
import bz2
import codecs
import contextlib
import fcntl
import gzip
import hashlib
import json
import os
import pty
import secrets
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest
import tigerbeetle as tb

from operations.backfill import decode, read_lines

from ..conftest import HANG_S, ServerWorld, World, assert_accounts_exist, locked, numbered, quick_only, wait_until
from .backfills import backfill, done, run
from .commands import connected, stage

if TYPE_CHECKING:
    from resonate.resonate import Resonate

    from operations.opening import Clients

#: For a longer list: `BACKFILL_LINES=100000 BACKFILL_KILLS=10 pytest tests/operations/test_backfill.py -k "memory or killed"`.
LINES = int(os.environ.get("BACKFILL_LINES", "2000"))
KILLS = int(os.environ.get("BACKFILL_KILLS", "0"))


def test_backfill_creates_the_same_accounts_as_single_runs(world: World, user: str) -> None:
    uuids = numbered(user, 100)
    single = world.run(uuids[7])
    many = run(world, *uuids)
    assert many.status == 0
    assert list(many.accounts) == uuids, "not in the order of the input"
    assert many.accounts[uuids[7]] == single.guid
    assert many.counts() == {"created": 99, "existing": 1, "halted": 0, "invalid": 0}
    assert_accounts_exist(world, many.accounts)
    again = world.run(uuids[8])
    assert (again.status, again.guid, again.steps) == (0, many.accounts[uuids[8]], [])
    reordered = run(world, *reversed(uuids[5:]), f"{user}-another")
    assert (reordered.status, reordered.counts()["created"]) == (0, 1)
    assert reordered.shown[:-1] == list(reversed(many.shown[5:]))


def listed(world: World, uuids: Iterable[str]) -> str:
    """Write the list to a file, and return its path."""
    file = world.directory / "uuids"
    file.write_text("".join(f"{uuid}\n" for uuid in uuids))
    return str(file)


@pytest.mark.slow
def test_killed_backfill_prints_the_whole_result_on_a_rerun(world: World, user: str) -> None:
    uuids = numbered(user, LINES if KILLS else 200)
    file = listed(world, uuids)
    seen: dict[str, str] = {}
    for lines in [LINES * kill // KILLS for kill in range(KILLS)] or (0, 1, 60, 120):
        with backfill(world, file) as process:
            assert process.stdout is not None
            shown = [process.stdout.readline().decode() for _ in range(lines)]
            process.send_signal(signal.SIGKILL)
            shown += process.stdout.read().decode().splitlines(keepends=True)
        for line in shown:
            if line.endswith("\n"):  # a line without its end was cut off by the kill
                uuid, guid = line.rstrip("\n").split("\t")
                assert seen.setdefault(uuid, guid) == guid, "a second guid"
    with backfill(world, file) as process:
        last = done(process, *process.communicate(timeout=HANG_S + len(uuids) / 10))
    assert last.status == 0
    assert list(last.accounts) == uuids, "the result is incomplete"
    assert seen.items() <= last.accounts.items()
    assert_accounts_exist(world, last.accounts)


def test_panic_halts_only_its_own_account(world: World, user: str) -> None:
    uuids = numbered(user, 10)
    stage(world, uuids[4], "1")
    many = run(world, *uuids, "")
    assert many.status == 98, "a halted account outranks the invalid line"
    assert list(many.accounts) == uuids[:4] + uuids[5:]
    assert many.counts() == {"created": 9, "existing": 0, "halted": 1, "invalid": 1}
    single = world.run(uuids[4])
    assert single.status == 98
    assert many.err.splitlines()[-2] == single.err.splitlines()[-1], "the same line as a single run prints"


@pytest.mark.slow
def test_account_that_the_ledger_lost_is_not_printed(embedded_world: World, user: str) -> None:
    lost = run(embedded_world, user)
    embedded_world.lose_ledger()
    many = run(embedded_world, user, f"{user}-new")
    assert (many.status, list(many.accounts)) == (98, [f"{user}-new"])
    panic = many.err.splitlines()[-2]
    assert panic == embedded_world.run(user).err.splitlines()[-1]
    assert lost.accounts[user] in panic


INVALID = {
    "the uuid is empty": b"",
    "colon": b"a:b",
    "'\\t'": b"a\tb",
    "has more than 256 characters": b"x" * 257,
    "has more than 256": "🐯".encode() * 300,
    "more than 256": b"user-1," * 1_500_000,
}


def test_invalid_line_is_named_by_its_number_and_skipped(embedded_world: World, user: str) -> None:
    many = run(embedded_world, user, *INVALID.values(), f"{user}-last")
    assert (many.status, list(many.accounts)) == (2, [user, f"{user}-last"])
    assert many.counts() == {"created": 2, "existing": 0, "halted": 0, "invalid": len(INVALID)}
    said = [line for line in many.err.splitlines() if line.startswith("skipped ")]
    for number, (words, line) in enumerate(zip(INVALID, said, strict=True), start=2):
        assert line.startswith(f"skipped line {number}: ")
        assert words in line


def test_many_invalid_lines_are_counted_and_not_named(embedded_world: World, user: str) -> None:
    many = run(embedded_world, *numbered(user, 600), *["a:b"] * 500)
    assert (many.status, len(many.accounts), many.counts()["invalid"]) == (2, 600, 500)
    assert many.err.count("skipped line ") == 100
    assert many.err.count("not named") == 1


NOT_FOUND = "<html>\r\n<head><title>404 Not Found</title></head>\r\n<body>\r\nnginx\r\n</body>\r\n</html>\r\n"


UUIDS = [hashlib.sha1(b"%d" % number, usedforsecurity=False).hexdigest() for number in range(20)]
TEXT = "".join(f"{uuid}\n" for uuid in UUIDS)

#: Wrong files that people pass, and words of the refusal.
NO_LISTS: dict[str, tuple[bytes, str]] = {
    "gzip": (gzip.compress(TEXT.encode()), "line 1 of the input is not UTF-8 text"),
    "bzip2": (bz2.compress(TEXT.encode()), "is not UTF-8 text"),
    "zip": (b"PK\x03\x04" + bytes(26), "is not UTF-8 text"),
    "SQLite": (b"SQLite format 3\0" + bytes(84), "is not UTF-8 text"),
    "UTF-16 with a byte order mark": (TEXT.encode("utf-16"), "is not UTF-8 text"),
    "UTF-16": (TEXT.encode("utf-16-le"), "is not UTF-8 text"),
    "UTF-32": (TEXT.encode("utf-32-be"), "is not UTF-8 text"),
    "Latin-1": ((TEXT + "café\n").encode("latin-1"), "line 21 of the input is not UTF-8 text"),
    "NUL between the uuids": (TEXT.replace("\n", "\0").encode(), "is not UTF-8 text"),
    "a list and then gzip": (TEXT.encode() + gzip.compress(TEXT.encode()), "line 21 of the input"),
    "JSON lines": ("".join(f"{json.dumps({'uuid': uuid})}\n" for uuid in UUIDS).encode(), "begins with"),
    "a JSON array": (json.dumps(UUIDS).encode(), "begins with"),
    "a JSON array in lines": (json.dumps(UUIDS, indent=0).encode(), "begins with '['"),
    "JSON texts": ("".join(f"{json.dumps(uuid)}\n" for uuid in UUIDS).encode(), "in quotes"),
    "CSV with a header": (f"name,uuid\nAlice,{UUIDS[0]}\nBob,{UUIDS[1]}\n".encode(), "header, 'name,uuid'"),
    "one column with a header": (f'"UUID"\r\n"{UUIDS[0]}"\r\n'.encode(), "header"),
    "psql": (f"  uuid  \n--------\n {UUIDS[0]}\n(1 row)\n\n".encode(), "header, 'uuid'"),
    "the output of a backfill": ("".join(f"{uuid}\t1\n" for uuid in UUIDS).encode(), "20 of its first 20 lines"),
    "an answer of a web server": (NOT_FOUND.encode(), "begins with '<html>'"),
}


def test_input_that_is_no_list_is_refused_before_the_first_account(embedded_world: World) -> None:
    for name, (content, words) in NO_LISTS.items():
        refused = run(embedded_world, content, end=b"")
        assert (refused.status, refused.shown) == (2, []), name
        [_, line] = refused.err.splitlines()  # the first one says that this is embedded mode
        assert words in line, name
        assert "run again" in line, name
    assert embedded_world.sql("SELECT uuid FROM accounts") == []


def test_binary_data_after_some_accounts_ends_the_backfill(embedded_world: World, user: str) -> None:
    with backfill(embedded_world) as process:
        process.write(user)
        process.readline()
        ended = done(process, *process.communicate(b"next\n" + gzip.compress(b"x"), timeout=HANG_S))
    assert ended.status == 2
    assert "line 3 of the input is not UTF-8 text" in ended.err.splitlines()[-1]
    assert "next" not in str(ended.shown)


UNUSUAL = {
    "commas": ["Smith, John", "Doe, Jane"],
    "braces": ["{5b1e}", "{5b1f}"],
    "quotes": ['"The Rock"', "x"],
    "one uuid in quotes": ['"The Rock"'],
    "angle brackets": ["<a@b>", "<c@d>"],
    "others": ["# 1", "[x] y"],
    "hostile": ["'; DROP TABLE accounts; --", "🐯", "-x", "x y", "%s", "x" * 256],
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_list_with_unusual_uuids_is_a_list(embedded_world: World, kind: str) -> None:
    uuids = UNUSUAL[kind]
    many = run(embedded_world, *uuids)
    assert (many.status, list(many.accounts)) == (0, uuids)
    assert_accounts_exist(embedded_world, many.accounts)


@pytest.mark.slow
def test_byte_order_mark_and_line_ends_are_not_part_of_a_uuid(embedded_world: World, user: str) -> None:
    """The list has a byte order mark, CRLF, or a last line without a line end."""
    many = run(embedded_world, b"\xef\xbb\xbf" + user.encode(), f"{user}-2", end=b"\r\n")
    assert (many.status, list(many.accounts)) == (0, [user, f"{user}-2"])
    last = run(embedded_world, f"{user}\n{user}-2", end=b"")
    assert last.shown == many.shown


def test_longest_uuid_after_a_byte_order_mark_is_read_in_two_parts() -> None:
    async def main() -> list[bytes]:
        reader, writer = os.pipe()
        os.write(writer, codecs.BOM_UTF8 + longest.encode())
        lines: list[bytes] = []
        async for line in read_lines(reader):
            if line is None and not lines:  # a pause
                os.write(writer, b"\nnext\n")
                os.close(writer)
            elif line is not None:
                lines.append(line)
        return lines

    longest = "🐯" * 256
    first, second = asyncio.run(main())
    assert (decode(1, first.removeprefix(codecs.BOM_UTF8)), second) == (longest, b"next")


def test_uuid_that_occurs_twice_has_one_account(world: World, user: str) -> None:
    uuids = numbered(user, 100)
    many = run(world, user, user, *uuids, user)
    assert many.status == 0
    assert [line.split("\t")[0] for line in many.shown] == [user, user, *uuids, user]
    assert len({line for line in many.shown if line.startswith(f"{user}\t")}) == 1
    assert many.counts() == {"created": 101, "existing": 2, "halted": 0, "invalid": 0}
    assert_accounts_exist(world, many.accounts)


def test_each_account_is_printed_before_the_next_line_is_read(world: World, user: str) -> None:
    """A program may write one line at a time and wait for each account."""
    with backfill(world) as process:
        for uuid in numbered(user, 3):
            process.write(uuid)
            assert process.readline().startswith(f"{uuid}\t")
        process.communicate(timeout=HANG_S)
        assert process.returncode == 0


def test_each_account_of_a_shared_request_gets_its_own_answer(world: World) -> None:
    account = tb.Account(id=tb.id(), ledger=1, code=1, user_data_128=secrets.randbits(127))
    asked = [
        account,
        replace(account, id=2**128),  # cannot be encoded
        replace(account, user_data_64=1),
        replace(account, id=tb.id(), ledger=0 if "TB_ADDRESS" in world.env else 1),
        account,
    ]

    async def create(_: Resonate, clients: Clients) -> list[Any]:
        answers = (clients.record.create(account) for account in asked)
        return await asyncio.gather(*answers, return_exceptions=True)

    created, error, different, invalid, same = connected(world, create)
    assert created is None
    assert isinstance(error, tb.IntegerOverflowError)
    assert different.id == same.id == account.id
    assert invalid is None or "LEDGER_MUST_NOT_BE_ZERO" in str(invalid)


@pytest.mark.parametrize("chunk", ["1", "3"])
@pytest.mark.slow
def test_all_accounts_are_created_in_smaller_batches(embedded_world: World, chunk: str) -> None:
    few = run(embedded_world, *map(str, range(10)), arguments=["--chunk", chunk])
    assert (few.status, list(few.accounts)) == (0, [str(number) for number in range(10)])
    assert few.counts() == {"created": 10, "existing": 0, "halted": 0, "invalid": 0}


def test_reader_that_closes_stdout_causes_no_error(embedded_world: World) -> None:
    with backfill(embedded_world, listed(embedded_world, map(str, range(5_000)))) as process:
        head = subprocess.run(["head", "-2"], stdin=process.stdout, capture_output=True, check=True)
        assert process.stdout is not None
        process.stdout.close()
        _, err = process.communicate(timeout=HANG_S)
    assert len(head.stdout.splitlines()) == 2
    some = done(process, "", err)
    assert (some.status, len(some.err.splitlines())) == (0, 2), "not only the embedded notice and the summary"
    assert some.counts()["created"] < 5_000


def test_full_stdout_is_an_error_and_the_account_exists(embedded_world: World) -> None:
    with backfill(embedded_world, stdout=os.open("/dev/full", os.O_WRONLY)) as process:
        _, err = process.communicate(b"1\n2\n", timeout=HANG_S)
    assert process.returncode == 1
    assert "cannot write to stdout" in err.splitlines()[-1]
    assert list(run(embedded_world, "1", "2").accounts) == ["1", "2"]


@pytest.mark.parametrize("waiting_for", quick_only(["an account"], ["a line", "its reader", "an account"]))
def test_backfill_dies_of_ctrl_c(embedded_world: World, waiting_for: str) -> None:
    uuids = [f"{number:0200}" for number in range(3_000)]
    arguments = [] if waiting_for == "a line" else [listed(embedded_world, uuids)]
    with backfill(embedded_world, *arguments) as process:
        if waiting_for == "a line":
            process.write(uuids[0])
        process.readline()
        if waiting_for == "its reader":
            wait_until(lambda: is_full(process.stdout))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=HANG_S)
    assert process.returncode == -signal.SIGINT
    assert len(embedded_world.sql("SELECT uuid FROM accounts")) < len(uuids)
    assert "run again with the same input" in err
    assert "Traceback" not in err
    again = run(embedded_world, *uuids[:300])
    assert (again.status, len(again.accounts)) == (0, 300)
    assert_accounts_exist(embedded_world, again.accounts)


def is_full(pipe: IO[bytes] | None) -> bool:
    """Return whether the writer must wait. Lines do not fill the pages of a pipe to the last byte."""
    assert pipe is not None
    unread = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]
    return bool(unread > fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) * 7 / 8)


@pytest.mark.parametrize(("file", "cause"), [("missing", "no such file or directory"), (".", "is a directory")])
def test_list_that_cannot_be_read_is_named(embedded_world: World, file: str, cause: str) -> None:
    unread = run(embedded_world, arguments=[file])
    assert (unread.status, unread.shown) == (1, [])
    assert unread.err.splitlines()[-1] == f"cannot read {file}: {cause}"


@pytest.mark.slow
def test_outage_ends_backfill_with_one_line_and_a_rerun_resumes(embedded_world: World, user: str) -> None:
    """SQLite stays locked for longer than a run waits."""
    run(embedded_world, user)
    with backfill(embedded_world, PATIENCE="1") as process:
        process.write("1")
        process.readline()
        with locked(embedded_world.data / "accounts.db"):
            rest = done(process, *process.communicate(b"2\n3\n", timeout=HANG_S))
    assert (rest.status, rest.shown) == (1, [])
    assert "accounts.db is locked by another process" in rest.err.splitlines()[-1]
    assert list(run(embedded_world, "1", "2", "3").accounts) == ["1", "2", "3"]


def test_backfill_waits_while_the_resonate_server_fails(server_world: ServerWorld, user: str) -> None:
    """The server's database is locked, so it answers with status 500. No account is given up."""
    uuids = numbered(user, 100)
    log = server_world.promises / "resonate.log"
    with backfill(server_world) as process:
        with locked(server_world.promises / "resonate.db"):
            process.write(*uuids)
            wait_until(lambda: b"failed with internal error" in log.read_bytes())
        many = done(process, *process.communicate(timeout=HANG_S))
    assert (many.status, list(many.accounts)) == (0, uuids)
    assert_accounts_exist(server_world, many.accounts)


def test_progress_bar_is_drawn_if_stderr_is_a_terminal(embedded_world: World) -> None:
    file = listed(embedded_world, map(str, range(20)))
    terminal, stderr = pty.openpty()
    termios.tcsetwinsize(stderr, (24, 80))
    with backfill(embedded_world, file, stderr=stderr) as process:
        out, _ = process.communicate(timeout=HANG_S)
    drawn = os.read(terminal, 65_536).decode()
    os.close(terminal)
    assert len(out.splitlines()) == 20
    assert "0/20 [" in drawn
    assert "created 20" in drawn


def peak(world: World, lines: int) -> int:
    """Run backfill and return its peak memory in bytes."""
    file = listed(world, (f"{number}" if number % 2 else f"{number}:" for number in range(lines)))
    peak_kb = 0
    with backfill(world, file, stdout=os.open(os.devnull, os.O_WRONLY)) as process:
        while process.returncode is None:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, IndexError):  # it has ended
                status = Path(f"/proc/{process.pid}/status").read_text()
                peak_kb = int(status.partition("VmHWM:")[2].split()[0])
            time.sleep(0.01)
    assert process.returncode == 2
    return peak_kb * 1024


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_the_list(embedded_world: World) -> None:
    few, many = peak(embedded_world, LINES // 10), peak(embedded_world, LINES)
    assert many - few < 10 * 2**20
    assert many < 200 * 2**20
