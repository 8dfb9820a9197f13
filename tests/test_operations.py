"""What docs/operations.md says, performed: looking at the stores, and going on after each panic and loss."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tigerbeetle as tb

from clients.account import owner_of
from clients.console import HALTED, Halted
from clients.settings import Settings
from create_account import DEADLINE, connect, create_account
from operations import adopt, audit, check

from .conftest import (
    ROOT,
    EmbeddedWorld,
    ServerWorld,
    World,
    answers,
    free_port,
    needs,
    server,
    wait_until,
)

if TYPE_CHECKING:
    from resonate.context import Context

EXISTS, STAGED, UNREFERENCED, ABSENT, CONFLICT = 0, 3, 4, 5, 98
REFUSED = DISAGREE = 98


Done = subprocess.CompletedProcess[str]


def script(world: World, command: str, *arguments: str, env: dict[str, str] | None = None) -> Done:
    """Run one of the operator's commands as it is written in docs/operations.md, in the project's folder."""
    environ = world.environ() | (env or {})
    del environ["PYTHONPATH"]
    done = subprocess.run(
        [sys.executable, "-m", "operations", command, *arguments],
        env=environ,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def operate(world: World, command: str, *uuid: str, **options: bool) -> Done:
    """Run it in this process: to start Python takes longer than to do it."""
    out, err = io.StringIO(), io.StringIO()
    run: Any = {"check": check.run, "audit": audit.run, "adopt": adopt.run}[command]
    if command == "adopt":
        options = {"again": False} | options
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = asyncio.run(run(*uuid, settings=Settings.read(world.env), **options))
        except Halted as halted:
            status = HALTED
            print(halted, file=sys.stderr)
    return Done([], status, out.getvalue(), err.getvalue())


def assert_verdict(world: World, uuid: str, status: int, verdict: str, *reasons: str) -> None:
    done = operate(world, "check", uuid)
    line = done.stdout.splitlines()[-1]
    assert (done.returncode, line.partition(":")[0]) == (status, verdict)
    for reason in reasons:
        assert reason in line


def assert_adopted(world: World, uuid: str, guid: str = "", *, again: bool = False) -> str:
    """The account exists, once: the command reads it, and so do the stores' other clients."""
    done = operate(world, "adopt", uuid, again=again)
    assert done.returncode == 0, done.stderr
    [adopted] = world.accounts(uuid)
    assert world.rows(uuid) == [adopted]
    assert done.stdout == f"UUID: {uuid}\nGUID: {adopted}\n"
    assert adopted == (guid or adopted)
    return adopted


def assert_refused(world: World, uuid: str, *words: str, again: bool = False) -> None:
    """One line that says why, and nothing is written."""
    rows, accounts = world.rows(uuid), world.accounts(uuid)
    done = operate(world, "adopt", uuid, again=again)
    assert (done.returncode, done.stdout) == (REFUSED, "")
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
    fields: dict[str, Any] = {
        "id": int(guid),
        "ledger": 1,
        "code": 1,
        "user_data_128": owner_of(uuid),
    } | other
    [result] = world.ledger(lambda client: client.create_accounts([tb.Account(**fields)]))
    assert result.status == tb.CreateAccountStatus.CREATED


def stage(world: World, uuid: str, guid: str) -> None:
    world.sql("INSERT INTO accounts (uuid, guid) VALUES (?, ?)", uuid, guid)


def unstage(world: World, uuid: str) -> None:
    world.sql("DELETE FROM accounts WHERE uuid = ?", uuid)


@pytest.fixture
def alone(world: World) -> World:
    """No other test's accounts: a ledger of its own."""
    world.lose_ledger()
    return world


@pytest.fixture
def here(tmp_path: Path) -> World:
    """No server."""
    return EmbeddedWorld(tmp_path, {"DATA_DIR": str(tmp_path / "data")})


@pytest.fixture
def guid() -> str:
    return str(tb.id())


# -- check -----------------------------------------------------------------


def test_check_exists(world: World, user: str) -> None:
    guid = world.run(user).guid
    done = script(world, "check", user)
    assert done.returncode == EXISTS
    assert done.stdout.splitlines() == [
        f"promise create-account-{user}: resolved, account {guid}",
        f"TigerBeetle: account {guid}",
        f"SQLite: row with guid {guid}",
        "exists",
    ]


def test_check_staged(world: World, user: str) -> None:
    world.run(user, crash="after record 2")
    done = operate(world, "check", user)
    assert done.returncode == STAGED
    assert done.stdout.splitlines() == [
        f"promise create-account-{user}: pending",
        "TigerBeetle: no account",
        f"SQLite: row with guid {world.rows(user)[0]}",
        "staged",
    ]


def test_check_unreferenced(world: World, user: str) -> None:
    world.run(user)
    unstage(world, user)
    assert_verdict(world, user, UNREFERENCED, "unreferenced")


def test_check_absent(world: World, user: str) -> None:
    world.run(user)
    done = script(world, "check", f"{user}-2")
    assert done.returncode == ABSENT
    assert done.stdout.splitlines() == [
        f"promise create-account-{user}-2: not found",
        "TigerBeetle: no account",
        "SQLite: no row",
        "absent",
    ]


OTHER: dict[str, dict[str, Any]] = {
    "flags 8": {"flags": tb.AccountFlags.HISTORY},
    "user_data_128 5": {"user_data_128": 5},
    "user_data_64 6": {"user_data_64": 6},
    "user_data_32 7": {"user_data_32": 7},
    "ledger 2": {"ledger": 2},
    "code 2": {"code": 2},
}


def test_check_conflict_the_account_is_another(world: World, user: str) -> None:
    world.run(user)
    for number, (other, fields) in enumerate(OTHER.items()):
        uuid, guid = f"{user}-{number}", str(tb.id())
        commit(world, uuid, guid, **fields)
        stage(world, uuid, guid)
        assert_verdict(world, uuid, CONFLICT, "conflict", guid, f"has {other}, not ")


def test_check_conflict_the_uuid_has_an_account_under_another_guid(
    world: World, user: str, guid: str
) -> None:
    held = world.run(user).guid
    world.sql("UPDATE accounts SET guid = ? WHERE uuid = ?", guid, user)
    assert_verdict(world, user, CONFLICT, "conflict", f"TigerBeetle holds account {held}")


def test_check_conflict_several_accounts(world: World, user: str, guid: str) -> None:
    held = world.run(user).guid
    commit(world, user, guid)
    assert_verdict(world, user, CONFLICT, "conflict", f"TigerBeetle holds account {guid}")
    unstage(world, user)
    assert_verdict(world, user, CONFLICT, "conflict", guid, held)


def test_check_conflict_the_guid_is_staged_for_another_uuid(world: World, user: str) -> None:
    guid = world.run(user).guid
    world.sql("UPDATE accounts SET uuid = 'another' WHERE uuid = ?", user)
    assert_verdict(world, user, CONFLICT, "conflict", f"stages guid {guid} for uuid 'another'")


def test_check_conflict_the_guid_is_none(world: World, user: str) -> None:
    world.run(user)
    for number, text in enumerate(["", "abc", "0", "007", "-1", "²", str(2**128), "9" * 5000]):
        stage(world, f"{user}-{number}", text)
        assert_verdict(world, f"{user}-{number}", CONFLICT, "conflict", "which is not a valid account id")


def test_check_conflict_the_promise_is_kept_and_the_account_is_gone(world: World, user: str) -> None:
    """Neither `staged` nor `absent`: no run will make it, and an application may have been told of it."""
    guid = world.run(user).guid
    world.lose_ledger()
    world.run(f"{user}-2")
    assert_verdict(world, user, CONFLICT, "conflict", f"does not hold its account {guid}")
    unstage(world, user)
    assert_verdict(world, user, CONFLICT, "conflict", f"does not hold its account {guid}")


def test_check_says_that_a_closed_account_exists(world: World, user: str, guid: str) -> None:
    """Whether a transfer closed it is nothing that the example decides."""
    world.run(f"{user}-2")
    commit(world, user, guid, flags=tb.AccountFlags.CLOSED)
    stage(world, user, guid)
    assert_verdict(world, user, EXISTS, "exists")


@pytest.mark.parametrize("crash", ["", "after effect 3"])
def test_looking_changes_nothing(world: World, user: str, crash: str) -> None:
    """Neither after a clean end, when SQLite has removed its -wal and -shm files, nor after a crash."""

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in world.data.iterdir()}

    world.run(user, crash=crash)
    before = files()
    script(world, "check", user)
    script(world, "audit")
    script(world, "adopt", user)  # refused, or nothing to do
    assert files() == before


def test_a_file_whose_writer_was_killed_at_its_first_write(world: World, user: str) -> None:
    """Its -wal file ends with the header: SQLite itself gives up there, with "locking protocol"."""
    world.run(user)
    file = world.data / "accounts.db"
    wal, index = (file.with_name(f"{file.name}-{end}") for end in ("wal", "shm"))
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("SELECT uuid FROM accounts").fetchall()
        index_before = index.read_bytes()
        db.execute("PRAGMA user_version = 1")
        header = wal.read_bytes()[:32]
    wal.write_bytes(header)
    index.write_bytes(index_before)
    assert_verdict(world, user, EXISTS, "exists")


def test_check_while_a_run_is_in_progress(world: World, user: str) -> None:
    for point, status in (
        ("before effect 2", ABSENT),
        ("before effect 3", STAGED),
        ("after effect 3", EXISTS),
    ):
        uuid = f"{user}-{status}"
        with world.held(uuid, point) as process:
            done = script(world, "check", uuid)
            assert done.stdout.splitlines()[0] == f"promise create-account-{uuid}: pending"
            assert done.returncode == status
        assert world.finish(process).status == 0
        assert_verdict(world, uuid, EXISTS, "exists")


COMMANDS: list[Callable[[str], list[str]]] = [
    lambda uuid: ["check", uuid],
    lambda _: ["audit"],
    lambda uuid: ["adopt", uuid],
]


def assert_cannot_tell(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert (done.returncode, done.stdout) == (1, "")
    line = done.stderr.splitlines()[-1]
    for word in words:
        assert word in line


@pytest.mark.parametrize("file", ["accounts.db", "promises.db", "ledger.db"])
def test_a_file_that_is_not_there_or_no_database_is_no_empty_store(
    world: World, user: str, file: str
) -> None:
    world.run(user)
    if not (world.data / file).exists():
        pytest.skip("it is a server's")
    (world.data / file).rename(world.data / "elsewhere")
    for command in COMMANDS:
        assert_cannot_tell(script(world, *command(user)), file, "does not exist", "DATA_DIR")
    assert not (world.data / file).exists()
    (world.data / file).write_text("no database, but longer than nothing")
    assert_cannot_tell(script(world, "check", user), file, "not a database")


def test_a_directory_that_is_not_there_is_no_empty_store(world: World, user: str) -> None:
    for command in COMMANDS:
        assert_cannot_tell(script(world, *command(user)), str(world.data), "does not exist", "DATA_DIR")
    assert not world.data.exists()


def test_a_server_that_does_not_answer_tells_nothing(world: World, user: str) -> None:
    world.run(user)
    for variable, address in (("TB_ADDRESS", "127.0.0.1:{}"), ("RESONATE_URL", "http://127.0.0.1:{}")):
        if variable in world.env:
            nowhere = {variable: address.format(free_port())}
            assert_cannot_tell(script(world, "check", user, env=nowhere), nowhere[variable], "did not answer")


def test_ctrl_c_is_130(here: World, user: str) -> None:
    here.run(user)
    command = [sys.executable, "-m", "operations", "check", user]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = {"TB_ADDRESS": f"127.0.0.1:{silent.getsockname()[1]}"}
        with subprocess.Popen(
            command, cwd=ROOT, env=here.environ() | address, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            with silent.accept()[0]:  # and now it waits for an answer
                process.send_signal(signal.SIGINT)
                assert process.wait(timeout=60) == 130
            [line] = process.stderr.read().splitlines()
            assert line.startswith("embedded ")


def test_usage(here: World) -> None:
    for command in ("check", "audit", "adopt"):
        done = script(here, command, "a", "b")
        assert done.returncode == 2
        assert done.stderr.startswith("usage: python -m operations")
        assert script(here, command, "-h").returncode == 0
    for command in ("check", "adopt"):
        assert script(here, command, "a:b").returncode == 2


# -- audit -----------------------------------------------------------------


def findings(world: World, run: Callable[..., Done] = operate) -> tuple[int, list[str], str]:
    done = run(world, "audit")
    *lines, count = done.stdout.splitlines()
    return done.returncode, lines, count


def test_audit_finds_that_they_agree(alone: World, user: str) -> None:
    """More than a page of each."""
    guids = [str(tb.id()) for _ in range(1200)]
    alone.run(user)
    for start in range(0, len(guids), 200):
        accounts = [
            tb.Account(id=int(guid), ledger=1, code=1, user_data_128=owner_of(f"{user}-{guid}"))
            for guid in guids[start : start + 200]
        ]
        alone.ledger(lambda client, accounts=accounts: client.create_accounts(accounts))  # type: ignore[misc]
    values = ", ".join(f"('{user}-{guid}', '{guid}')" for guid in guids)
    alone.sql(f"INSERT INTO accounts (uuid, guid) VALUES {values}")  # noqa: S608
    assert findings(alone) == (0, [], "clean; 1201 accounts, 1201 rows, 0 in progress")

    # And each of them that is missing is found, wherever it is.
    alone.sql("DELETE FROM accounts WHERE rowid % 2")
    status, lines, _ = findings(alone)
    rows = {guid for (guid,) in alone.sql("SELECT guid FROM accounts")}
    missing = [guid for guid in [*alone.accounts(user), *guids] if guid not in rows]
    assert status == DISAGREE
    assert lines == [
        f"unreferenced: TigerBeetle holds account {guid}, but SQLite has no row for it" for guid in missing
    ]


def test_audit_names_each_disagreement_once(alone: World, user: str) -> None:
    alone.run(f"{user}-fine")
    unreferenced, other, foreign, second, crossed = (str(tb.id()) for _ in range(5))
    commit(alone, f"{user}-unreferenced", unreferenced)
    stage(alone, f"{user}-staged", str(tb.id()))
    stage(alone, f"{user}-halted", str(tb.id()))
    alone.run(f"{user}-halted")
    commit(alone, f"{user}-code", other, code=2)
    stage(alone, f"{user}-code", other)
    commit(alone, f"{user}-foreign", foreign, user_data_128=5)
    stage(alone, f"{user}-foreign", foreign)
    alone.run(f"{user}-twice")
    commit(alone, f"{user}-twice", second)
    commit(alone, f"{user}-crossed", crossed)
    stage(alone, "another:one\n\x1b[2J", crossed)
    stage(alone, f"{user}-text", "abc")
    alone.sql("INSERT INTO accounts (guid) VALUES ('5')")
    status, lines, count = findings(alone)
    assert status == DISAGREE
    kinds = [line.partition(":")[0] for line in lines]
    assert kinds == [*["unreferenced"] * 2, *["staged"] * 2, *["conflict"] * 5]
    for line, words in zip(
        lines,
        [
            [unreferenced],
            [second],
            ["-staged'", "promise was not found"],
            ["-halted'", "promise is rejected"],
            ["-code'", "has code 2, not 1"],
            ["-foreign'", "has user_data_128 5"],
            ["'another:one\\n\\x1b[2J'", "has user_data_128"],
            ["-text'", "'abc'"],
            ["guid 5 for None, which is not a valid uuid"],
        ],
        strict=True,
    ):
        assert all(word in line for word in words), line
    assert count == "2 unreferenced, 2 staged, 5 conflict; 6 accounts, 9 rows, 0 in progress"


def test_audit_counts_what_is_in_progress_and_finds_nothing(alone: World, user: str) -> None:
    alone.run(user, crash="after record 2")
    assert findings(alone) == (0, [], "clean; 0 accounts, 1 rows, 1 in progress")
    alone.run(user)
    assert findings(alone) == (0, [], "clean; 1 accounts, 1 rows, 0 in progress")


def test_audit_finds_promises_that_are_kept_of_nothing(world: World, user: str) -> None:
    guid = world.run(user).guid
    world.lose_ledger()
    world.run(f"{user}-2")
    status, [line], _ = findings(world)
    assert status == DISAGREE
    assert line.startswith(f"conflict: uuid '{user}': ")
    assert f"does not hold its account {guid}" in line


def test_audit_raises_no_false_alarm_under_load(alone: World, user: str) -> None:
    def audit_it(uuids: list[str]) -> None:
        for _ in range(3):
            status, lines, count = findings(alone, script)
            assert (status, lines) == (0, []), count

    created = len(asyncio.run(load(alone, user, audit_it)))
    assert findings(alone) == (0, [], f"clean; {created} accounts, {created} rows, 0 in progress")


async def load(world: World, user: str, meanwhile: Callable[[list[str]], None]) -> list[str]:
    """Create accounts, eight at a time, until `meanwhile` returns; return their uuids."""
    uuids: list[str] = []
    begun, enough = asyncio.Event(), asyncio.Event()

    async def create(run: Callable[..., Any]) -> None:
        while not enough.is_set():
            uuids.append(uuid := f"{user}-{len(uuids)}")
            await run(f"create-account-{uuid}", create_account, uuid).result()
            begun.set()

    async with connect(Settings.read(world.env)) as (resonate, _):
        run = resonate.options(timeout=DEADLINE).run
        async with asyncio.TaskGroup() as creating:
            for _ in range(8):
                creating.create_task(create(run))
            await begun.wait()
            try:
                await asyncio.to_thread(meanwhile, uuids)
            finally:
                enough.set()
    return uuids


# -- adopt -----------------------------------------------------------------


def test_sqlite_exists_diff_and_tigerbeetle_holds_it(world: World, user: str) -> None:
    guid = world.run(user).guid
    world.lose_promises()
    assert_halted(world, user, "SQLite exists_diff")
    assert_verdict(world, user, EXISTS, "exists")
    assert_adopted(world, user, guid)


def test_sqlite_exists_diff_and_tigerbeetle_does_not_hold_it(world: World, user: str) -> None:
    world.run(user, crash="after record 2")
    [guid] = world.rows(user)
    world.lose_promises()
    assert_halted(world, user, "SQLite exists_diff")
    assert_verdict(world, user, STAGED, "staged")
    assert_adopted(world, user, guid)


def test_sqlite_exists_diff_and_the_guid_is_staged_for_another_uuid(
    world: World, user: str, guid: str
) -> None:
    stage(world, "another", guid)
    assert_halted(world, user, "SQLite exists_diff", guid)
    assert_verdict(world, user, ABSENT, "absent")
    assert_refused(world, user, "nothing is staged", "--again")
    assert assert_adopted(world, user, again=True) != guid


def test_tigerbeetle_exists_diff(world: World, user: str, guid: str) -> None:
    """The row is removed by hand: nobody but the operator can say whose account it is."""
    commit(world, f"{user}-other", guid)
    stage(world, user, guid)
    assert_halted(world, user, "TigerBeetle exists_diff", guid)
    assert_verdict(world, user, CONFLICT, "conflict", "has user_data_128")
    for again in (False, True):
        assert_refused(world, user, "has user_data_128", again=again)
    unstage(world, user)
    assert assert_adopted(world, user, again=True) != guid
    assert world.accounts(f"{user}-other") == [guid]


def test_ordering_violated_and_tigerbeetle_holds_it(world: World, user: str) -> None:
    guid = world.run(user).guid
    world.lose_sqlite()
    world.lose_promises()
    assert_halted(world, user, "ordering violated")
    assert_verdict(world, user, UNREFERENCED, "unreferenced")
    assert_adopted(world, user, guid)


def test_ordering_violated_and_the_row_vanished_after_the_commit(world: World, user: str) -> None:
    world.run(user, crash="after effect 3")
    [guid] = world.rows(user)
    unstage(world, user)
    assert_halted(world, user, "ordering violated")
    assert_verdict(world, user, UNREFERENCED, "unreferenced")
    assert_adopted(world, user, guid)


def test_ordering_violated_and_nobody_holds_it(world: World, user: str) -> None:
    world.run(user, crash="after record 2")
    unstage(world, user)
    assert_halted(world, user, "ordering violated")
    assert_verdict(world, user, ABSENT, "absent")
    assert_adopted(world, user, again=True)


def test_adopt_says_the_same_as_often_as_it_is_run_and_so_does_create_account(
    world: World, user: str
) -> None:
    """Its promise is rejected for good: an application goes on by the stores, as check does."""
    world.run(user, crash="after record 2")
    [guid] = world.rows(user)
    world.lose_promises()
    before = world.run(user)
    first, again = (script(world, "adopt", user) for _ in range(2))
    assert first.stdout == again.stdout == f"UUID: {user}\nGUID: {guid}\n"
    after = world.run(user)
    assert (after.status, after.err.splitlines()[-1]) == (98, before.err.splitlines()[-1])
    assert_verdict(world, user, EXISTS, "exists")


def test_adopt_is_refused_while_the_first_promise_is_pending(world: World, user: str) -> None:
    """A dead run's, or a live one's."""
    world.run(user, crash="after record 2")
    for again in (False, True):
        assert_refused(world, user, f"create-account-{user} is pending", "create_account.py", again=again)
    with world.held(user, "before effect 3") as process:
        assert_refused(world, user, f"create-account-{user} is pending")
    assert world.finish(process).status == 0


def test_adopt_is_refused_before_the_uuid_was_asked_for(world: World, user: str, guid: str) -> None:
    world.run(f"{user}-2")
    for again in (False, True):
        assert_refused(world, user, f"create-account-{user} not found", again=again)
    stage(world, user, guid)
    assert_refused(world, user, f"create-account-{user} not found")


def halt(world: World, user: str) -> None:
    """Let the uuid's promise be rejected, and leave nothing of an account."""
    stage(world, user, str(tb.id()))
    assert_halted(world, user, "SQLite exists_diff")
    unstage(world, user)


def test_adopt_is_refused_where_it_would_make_a_second_account(world: World, user: str, guid: str) -> None:
    halt(world, user)
    held = str(tb.id())
    commit(world, user, held)
    stage(world, user, guid)
    for again in (False, True):
        assert_refused(world, user, f"TigerBeetle holds account {held}", again=again)

    # Which of the two is right, only the operator can say. Here it is the one that exists.
    unstage(world, user)
    assert_adopted(world, user, held)


def test_again_is_refused_where_there_is_something_to_finish(world: World, user: str, guid: str) -> None:
    halt(world, user)
    stage(world, user, guid)
    assert_refused(world, user, f"guid {guid} is staged", again=True)
    assert_adopted(world, user, guid)
    assert_adopted(world, user, guid, again=True)  # nothing to do


def test_adopt_is_refused_where_several_accounts_are_held(world: World, user: str) -> None:
    halt(world, user)
    for _ in range(2):
        commit(world, user, str(tb.id()))
    for again in (False, True):
        assert_refused(world, user, "TigerBeetle holds account", again=again)


def test_adopt_is_refused_where_the_guid_is_staged_for_another_uuid(
    world: World, user: str, guid: str
) -> None:
    halt(world, user)
    commit(world, user, guid)
    stage(world, "another", guid)
    assert_refused(world, user, "for uuid 'another'")


def test_adopt_after_the_first_promise_was_canceled(world: World, user: str) -> None:
    """How an operator ends a promise that nobody can go on with."""
    if "RESONATE_URL" not in world.env:
        pytest.skip("the embedded promises have no command to cancel one")
    world.run(user, crash="after record 2")
    [guid] = world.rows(user)
    cancel = ["resonate", "promises", "-S", world.env["RESONATE_URL"], "cancel", f"create-account-{user}"]
    subprocess.run(cancel, check=True, capture_output=True)
    done = script(world, "adopt", user)
    assert (done.returncode, done.stdout) == (0, f"UUID: {user}\nGUID: {guid}\n")


@pytest.mark.parametrize(
    "point", ["after create the promise", "after create 1", "after effect", "after record 1", "before print"]
)
@pytest.mark.parametrize("held", [True, False], ids=["held", "staged"])
def test_adopt_survives_a_crash(world: World, user: str, guid: str, point: str, held: bool) -> None:  # noqa: FBT001
    """The attempt is gone on with, and is the only one."""
    halt(world, user)
    if held:
        commit(world, user, guid)
    else:
        stage(world, user, guid)
    crash(world, user, point.replace("effect", "effect 2" if held else "effect 3"))
    assert_adopted(world, user, guid)
    _, attempt, *others = [
        line for line in operate(world, "check", user).stdout.splitlines() if "promise" in line
    ]
    assert (attempt, others) == (f"promise attempt-2-create-account-{user}: resolved, account {guid}", [])


@pytest.mark.parametrize("point", ["after record 2", "after effect 3"])
def test_again_survives_a_crash(world: World, user: str, point: str) -> None:
    halt(world, user)
    crash(world, user, point, "--again")
    rows = world.rows(user)
    guid = assert_adopted(world, user)  # with --again or without: it is gone on with
    assert rows in ([], [guid])


def crash(world: World, user: str, point: str, *options: str) -> None:
    """Run `adopt` as `child.py` runs create_account.py, and kill it at the point."""
    program = (
        "from tests.child import watch; watch(); "
        "from clients import console; console.main('operations.commands')"
    )
    watched = {"WITNESS": str(world.witness), "CRASH": point, "LEASE": "2"}
    environ = world.environ() | watched
    done = subprocess.run(
        [sys.executable, "-c", program, "adopt", *options, user],
        env=environ,
        cwd=world.directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done


def test_a_panic_of_an_attempt_is_no_end(world: World, user: str, guid: str) -> None:
    """It is as final as the first, and the next attempt is another."""
    halt(world, user)
    stage(world, user, guid)
    crash(world, user, "before effect 3")
    unstage(world, user)
    done = operate(world, "adopt", user)
    assert done.returncode == 98
    assert "PANIC: ordering violated" in done.stderr
    assert_refused(world, user, "nothing is staged")
    assert_adopted(world, user, again=True)
    promises = [line.split(": ") for line in operate(world, "check", user).stdout.splitlines()[:3]]
    assert [name for name, *_ in promises] == [
        f"promise create-account-{user}",
        f"promise attempt-2-create-account-{user}",
        f"promise attempt-3-create-account-{user}",
    ]


def test_the_longest_and_strangest_uuid_is_adopted(world: World, user: str) -> None:
    uuid = f"-'; $(x) 🐯{user}".ljust(256, "🐯")
    halt(world, uuid)
    assert_adopted(world, uuid, again=True)


# -- Losing and restoring a store ------------------------------------------


@dataclass
class Files:
    """A world's files, copied and put back while nobody uses them."""

    world: World
    tigerbeetle: subprocess.Popen[bytes] | None = None

    def back_up(self, store: str) -> None:
        (self.world.directory / f"backup of {store}").mkdir()
        with self._stopped(store):
            for path in self._of(store):
                shutil.copy(path, self.world.directory / f"backup of {store}")

    def restore(self, store: str) -> None:
        with self._stopped(store):
            directory = self._of(store)[0].parent
            for path in self._of(store):
                path.unlink()
            for path in (self.world.directory / f"backup of {store}").iterdir():
                shutil.copy(path, directory)

    def start_tigerbeetle(self) -> None:
        file, address = self.world.directory / "own" / "0_0.tigerbeetle", self.world.env["TB_ADDRESS"]
        command = ["tigerbeetle", "start", f"--addresses={address}", "--development", str(file)]
        self.tigerbeetle = self.world.stack.enter_context(server(command, file.with_name("log")))
        wait_until(lambda: answers(int(address.rpartition(":")[2])))

    def _of(self, store: str) -> list[Path]:
        if store == "promises" and isinstance(self.world, ServerWorld):
            return list(self.world.promises.glob("resonate.db*"))
        if store == "TigerBeetle" and self.tigerbeetle:
            return list((self.world.directory / "own").glob("*.tigerbeetle"))
        name = {"promises": "promises", "TigerBeetle": "ledger", "SQLite": "accounts"}[store]
        return list(self.world.data.glob(f"{name}.db*"))

    @contextlib.contextmanager
    def _stopped(self, store: str) -> Iterator[None]:
        if store == "promises" and isinstance(self.world, ServerWorld):
            self.world.resonate.kill()
            self.world.resonate.wait()
            yield
            self.world.restart_resonate()
        elif store == "TigerBeetle" and self.tigerbeetle:
            self.tigerbeetle.kill()
            self.tigerbeetle.wait()
            yield
            self.start_tigerbeetle()
        else:
            yield


@pytest.fixture
def files(world: World) -> Files:
    """Of a TigerBeetle of this test's own, where there is one."""
    files = Files(world)
    if "TB_ADDRESS" in world.env:
        needs("tigerbeetle")
        world.env["TB_ADDRESS"] = f"127.0.0.1:{free_port()}"
        (world.directory / "own").mkdir()
        identity = ["--cluster=0", "--replica=0", "--replica-count=1", "--development"]
        file = world.directory / "own" / "0_0.tigerbeetle"
        subprocess.run(["tigerbeetle", "format", *identity, file], check=True, capture_output=True)
        files.start_tigerbeetle()
    return files


def test_losing_sqlite_and_restoring_an_older_backup(world: World, user: str) -> None:
    """What it lacks is staged again, account by account; nothing is created."""
    before = world.run(f"{user}-before").guid
    files = Files(world)
    files.back_up("SQLite")
    after = world.run(f"{user}-after").guid
    world.run(f"{user}-during", crash="after effect 3")
    [during] = world.rows(f"{user}-during")

    files.restore("SQLite")
    assert world.run(f"{user}-before").guid == before
    assert world.run(f"{user}-after").guid == after  # it asks TigerBeetle, which decides
    assert_halted(world, f"{user}-during", "ordering violated")
    for name, guid in (("after", after), ("during", during)):
        assert_verdict(world, f"{user}-{name}", UNREFERENCED, "unreferenced")
        assert_adopted(world, f"{user}-{name}", guid)


def test_losing_the_promises(world: World, user: str) -> None:
    """What had begun panics; what exists, exists; what is staged is finished; what is new is created."""
    created = world.run(f"{user}-created").guid
    world.run(f"{user}-staged", crash="after record 2")
    [staged] = world.rows(f"{user}-staged")
    world.lose_promises()
    for name, guid in (("created", created), ("staged", staged)):
        assert_halted(world, f"{user}-{name}", "SQLite exists_diff")
        assert_adopted(world, f"{user}-{name}", guid)
    assert world.run(f"{user}-new").status == 0


def test_losing_tigerbeetle(world: World, user: str) -> None:
    """The promise says that the account was created: only `--again` makes it anew, under its own guid."""
    guid = world.run(user).guid
    world.lose_ledger()
    world.run(f"{user}-2")
    run = world.run(user)
    assert (run.status, run.out) == (98, "")
    assert_refused(world, user, f"does not hold its account {guid}", "restore TigerBeetle", "--again")
    assert_adopted(world, user, guid, again=True)
    assert world.run(user).guid == guid


def test_losing_tigerbeetle_and_the_row(world: World, user: str) -> None:
    """The promise alone knows the guid; the operator stages it by hand."""
    guid = world.run(user).guid
    world.lose_ledger()
    unstage(world, user)
    world.run(f"{user}-2")
    for again in (False, True):
        assert_refused(world, user, f"does not hold its account {guid}", again=again)
    stage(world, user, guid)
    assert_adopted(world, user, guid, again=True)
    assert world.run(user).guid == guid


def test_restoring_all_three_in_the_order_in_which_they_are_read(files: Files, user: str) -> None:
    """Promises, TigerBeetle, SQLite: then nothing that is restored speaks of what is not there."""
    world, stores = files.world, ("promises", "TigerBeetle", "SQLite")
    guids: dict[str, str] = {}
    for store in (*stores, "none"):
        guids[f"{store} created"] = world.run(f"{user} {store} created").guid
        world.run(f"{user} {store} staged", crash="after record 2")
        [guids[f"{store} staged"]] = world.rows(f"{user} {store} staged")
        if store != "none":
            files.back_up(store)
    for store in stores:
        files.restore(store)

    # No account without its row, and no promise without its account.
    _, lines, count = findings(world)
    assert {line.partition(":")[0] for line in lines} == {"staged"}
    assert count == "3 staged; 2 accounts, 6 rows, 1 in progress"
    for name, guid in guids.items():
        uuid = f"{user} {name}"
        match name.split():
            case ["promises", _]:  # all three know it
                assert world.run(uuid).guid == guid
            case ["none", _]:  # none does, and it begins anew
                assert world.run(uuid).status == 0
            case _:
                assert_halted(world, uuid, "SQLite exists_diff")
                assert_adopted(world, uuid, guid)
    assert findings(world) == (0, [], "clean; 8 accounts, 8 rows, 0 in progress")


def test_backing_up_in_that_order_while_accounts_are_created(here: World, user: str) -> None:
    names = ("promises.db", "ledger.db", "accounts.db")

    def back_up(uuids: list[str]) -> None:
        for name in names:
            goal = len(uuids) + 30
            wait_until(lambda goal=goal: len(uuids) > goal)  # type: ignore[misc]
            with (
                contextlib.closing(sqlite3.connect(here.data / name)) as live,
                contextlib.closing(sqlite3.connect(here.directory / name)) as copy,
            ):
                live.backup(copy)

    uuids = asyncio.run(load(here, user, back_up))
    for name in names:
        for path in here.data.glob(f"{name}*"):
            path.unlink()
        (here.directory / name).rename(here.data / name)

    assert {line.partition(":")[0] for line in findings(here)[1]} <= {"staged"}
    rows = dict(here.sql("SELECT uuid, guid FROM accounts"))
    halted = asyncio.run(rerun(here, uuids))
    for uuid in halted:
        assert_adopted(here, uuid, rows[uuid])
    number = len(uuids)
    assert findings(here) == (0, [], f"clean; {number} accounts, {number} rows, 0 in progress")
    assert dict(here.sql("SELECT uuid, guid FROM accounts")).items() >= rows.items()


async def rerun(world: World, uuids: list[str]) -> list[str]:
    """Run each again and return those that are halted, which is for the one reason that there is a row."""
    async with connect(Settings.read(world.env)) as (resonate, _):
        run = resonate.options(timeout=DEADLINE).run
        promises = [run(f"create-account-{uuid}", create_account, uuid).result() for uuid in uuids]
        results = await asyncio.gather(*promises, return_exceptions=True)
    panics = {
        uuid: panic for uuid, panic in zip(uuids, results, strict=True) if isinstance(panic, BaseException)
    }
    assert {getattr(panic, "condition", panic) for panic in panics.values()} <= {"SQLite exists_diff"}
    return list(panics)


# -- Changing the steps ----------------------------------------------------


def test_a_pending_workflow_ends_as_the_version_that_it_began_as(world: World, user: str) -> None:
    async def version_2(ctx: Context, uuid: str) -> dict[str, str]:
        return await ctx.run(another_step, uuid)

    def another_step(ctx: Context, uuid: str) -> dict[str, str]:
        return {"uuid": uuid, "guid": "of version 2"}

    async def deploy() -> tuple[str, str]:
        async with connect(Settings.read(world.env)) as (resonate, _):  # which registers version 1
            resonate.register(version_2, name="create_account", version=2)
            start = resonate.options(timeout=DEADLINE).run
            old = await start(f"create-account-{user}", version_2, user).result()
            new = await start(f"create-account-{user}-2", version_2, f"{user}-2").result()
            return old["guid"], new["guid"]

    world.run(user, crash="after record 2")
    assert asyncio.run(deploy()) == (world.rows(user)[0], "of version 2")
    assert world.accounts(user) == world.rows(user)


# -- The page --------------------------------------------------------------


def test_the_page_names_every_recovery_and_no_other() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    assert named <= globals().keys()
    recoveries = {
        name for name in globals() if re.match("test_(sqlite|tigerbeetle|ordering|losing|restoring)_", name)
    }
    assert recoveries <= named
