"""Tables that this program has not made, or that somebody changed. They are refused before a row is written."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

import asyncpg
import pytest

from ..conftest import World, wait_until
from ..operations.commands import script
from ..postgres import PASSWORD, Postgres
from .commands import assert_gave_up, assert_resumes


@dataclass
class Rows:
    """A world whose tables exist, and a way to change them."""

    world: World
    change: Callable[[str], None]


@pytest.fixture
def rows(request: pytest.FixtureRequest, store: str, user: str) -> Rows:
    world: World = request.getfixturevalue("embedded_world" if store == "SQLite" else "postgres_world")
    world.run(f"{user}-first")

    def change(sql: str) -> None:
        if store == "SQLite":
            with contextlib.closing(sqlite3.connect(world.data / "accounts.db")) as db:
                db.executescript(sql)
        else:
            for statement in sql.split("; "):
                request.getfixturevalue("postgres").execute(statement, world.database)

    return Rows(world, change)


postgresql = pytest.mark.parametrize("store", [pytest.param("PostgreSQL", marks=pytest.mark.slow)])
each_store = pytest.mark.parametrize("store", ["SQLite", pytest.param("PostgreSQL", marks=pytest.mark.slow)])

NO_KEY = "ALTER TABLE accounts DROP CONSTRAINT accounts_guid_key"

#: What is done to the table, and what the line says about it.
CHANGES = {
    "SQLite": {
        "CREATE TABLE accounts (uuid TEXT PRIMARY KEY, guid INTEGER NOT NULL UNIQUE)": [
            "lacks column guid TEXT and has column guid INTEGER"
        ],
        "CREATE TABLE accounts (uuid INTEGER PRIMARY KEY, guid TEXT NOT NULL UNIQUE)": ["has column uuid INTEGER"],
        "CREATE TABLE accounts (uuid TEXT COLLATE NOCASE PRIMARY KEY, guid TEXT UNIQUE)": ["lacks unique (uuid)"],
        "CREATE TABLE accounts (uuid TEXT PRIMARY KEY, guid TEXT)": ["lacks unique (guid)"],
        "CREATE TABLE accounts (uuid TEXT PRIMARY KEY, guid TEXT, UNIQUE (guid, uuid))": ["lacks unique (guid)"],
        "CREATE TABLE accounts (uuid TEXT PRIMARY KEY, guid TEXT); "
        "CREATE UNIQUE INDEX half ON accounts (guid) WHERE guid > '5'": ["lacks unique (guid)"],
        "CREATE TABLE accounts (name TEXT)": ["accounts.db", "lacks column guid TEXT", "column uuid TEXT"],
        "CREATE VIEW accounts AS SELECT '' AS uuid, '' AS guid": ["lacks column guid TEXT"],
    },
    "PostgreSQL": {
        f"{NO_KEY}; CREATE UNIQUE INDEX ON accounts (guid) WHERE guid > '5'": ["lacks unique (guid)"],
        f"{NO_KEY}; CREATE UNIQUE INDEX ON accounts (guid, uuid)": ["lacks unique (guid)"],
        f"{NO_KEY}; CREATE UNIQUE INDEX ON accounts (lower(guid))": ["lacks unique (guid)"],
        f"{NO_KEY}; CREATE INDEX ON accounts (guid)": ["lacks unique (guid)"],
        f"{NO_KEY}; ALTER TABLE accounts ADD UNIQUE (guid) DEFERRABLE": ["lacks unique (guid)"],
        f'{NO_KEY}; CREATE UNIQUE INDEX ON accounts (guid COLLATE "POSIX")': ["lacks unique (guid)"],
        "ALTER TABLE accounts ALTER uuid TYPE varchar(99)": ["has column uuid character varying(99)"],
        "ALTER TABLE accounts ALTER guid TYPE numeric USING 1": ["has column guid numeric", "lacks column guid text"],
        'ALTER TABLE accounts ALTER uuid TYPE text COLLATE "POSIX"': ['lacks column uuid text COLLATE "C"'],
        "ALTER TABLE accounts SET UNLOGGED": ["lacks a write-ahead log"],
        "ALTER TABLE accounts RENAME TO rows; CREATE VIEW accounts AS SELECT * FROM rows": ["lacks unique (uuid)"],
        "ALTER TABLE reference RENAME TO ours; CREATE TABLE reference (id int)": [
            "table reference",
            "lacks column one boolean",
        ],
    },
}


@pytest.mark.parametrize(
    ("store", "change"),
    [
        pytest.param(store, change, marks=[pytest.mark.slow] * (store == "PostgreSQL" or number > 0))
        for store, changes in CHANGES.items()
        for number, change in enumerate(changes)
    ],
)
def test_table_of_another_form_is_refused(rows: Rows, user: str, store: str, change: str) -> None:
    rows.change(f"DROP TABLE accounts; {change}" if store == "SQLite" else change)
    run = rows.world.run(user)
    assert_gave_up(run, "is not this program's", *CHANGES[store][change])
    done = script(rows.world, "check", user)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == run.err.splitlines()[-1]


@postgresql
def test_row_level_security_is_refused(rows: Rows, postgres: Postgres, user: str) -> None:
    """It hides rows from this role."""
    role = f"r_{rows.world.database}"
    rows.change(
        f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'; GRANT SELECT, INSERT ON accounts, reference TO {role}"
    )
    rows.change("ALTER TABLE accounts ENABLE ROW LEVEL SECURITY; CREATE POLICY mine ON accounts USING (guid = '')")
    url = postgres.url(rows.world.database, role)
    assert_gave_up(rows.world.run(user, REFERENCE_URL=url), "lacks no row level security")


ALLOWED = {
    "SQLite": "ALTER TABLE accounts ADD created TEXT DEFAULT 'now'; CREATE INDEX created ON accounts (created); "
    "CREATE UNIQUE INDEX replica_key ON accounts (uuid, guid); CREATE UNIQUE INDEX lower ON accounts (lower(uuid))",
    "PostgreSQL": "ALTER TABLE accounts ADD created timestamptz DEFAULT now(); CREATE INDEX ON accounts (created); "
    "CREATE UNIQUE INDEX ON accounts (uuid, guid); CREATE UNIQUE INDEX ON accounts (guid) INCLUDE (uuid); "
    f"{NO_KEY}; ALTER INDEX accounts_pkey SET (fillfactor = 70); CREATE UNIQUE INDEX ON accounts (lower(uuid)); "
    "CREATE UNIQUE INDEX ON accounts (lower(guid)) WHERE guid > '5'",
}


@each_store
def test_table_with_both_keys_is_accepted_whatever_else_it_has(rows: Rows, user: str, store: str) -> None:
    rows.change(ALLOWED[store])
    assert rows.world.run(user).status == 0


@postgresql
def test_table_whose_keys_are_being_rebuilt_is_accepted(rows: Rows, postgres: Postgres, user: str) -> None:
    """REINDEX CONCURRENTLY waits for an older transaction. Meanwhile there is a second index that is not valid."""

    def indexes() -> int:
        return len(postgres.execute("SELECT FROM pg_indexes WHERE tablename = 'accounts'", rows.world.database))

    async def main() -> None:
        older, rebuilding = [await asyncpg.connect(postgres.url(rows.world.database)) for _ in range(2)]
        async with older.transaction():
            await older.execute("INSERT INTO accounts VALUES ('older', '1')")
            rebuilt = asyncio.create_task(rebuilding.execute("REINDEX TABLE CONCURRENTLY accounts"))
            await asyncio.to_thread(wait_until, lambda: indexes() > 2)
            assert (await asyncio.to_thread(rows.world.run, user)).status == 0
        await rebuilt
        await asyncio.gather(older.close(), rebuilding.close())

    asyncio.run(main())


@each_store
def test_index_that_refuses_a_row_ends_its_run_and_a_rerun_resumes(rows: Rows, user: str) -> None:
    rows.world.run(user)
    rows.change("CREATE UNIQUE INDEX narrow ON accounts (lower(uuid))")
    assert_gave_up(rows.world.run(user.upper()), "does not store the row", user.upper(), "a key that is not")
    rows.change("DROP INDEX narrow")
    assert_resumes(rows.world, user.upper(), ["2", "3"])


NULL = "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL;END $$"

#: What swallows a row, what removes that, and what the line says.
SWALLOW = {
    "SQLite": (
        "CREATE TRIGGER swallow BEFORE INSERT ON accounts BEGIN SELECT RAISE(IGNORE); END",
        "DROP TRIGGER swallow",
        ["accounts.db", "the table accounts has a trigger"],
    ),
    "PostgreSQL": (
        f"{NULL}; CREATE TRIGGER swallow BEFORE INSERT ON accounts FOR EACH ROW EXECUTE FUNCTION swallow()",
        "DROP FUNCTION swallow CASCADE",
        ["PostgreSQL", "the table accounts"],
    ),
}


@each_store
def test_conflict_that_no_read_finds_ends_the_run_and_a_rerun_resumes(rows: Rows, user: str, store: str) -> None:
    """It was made while the process ran. The step would write and read without end."""
    swallow, undo, words = SWALLOW[store]
    with rows.world.paused_at(user, "before write 2") as process:
        rows.change(swallow)
    assert_gave_up(rows.world.finish(process), *words, user)
    rows.change(undo)
    assert_resumes(rows.world, user, ["2", "3"])


@postgresql
def test_database_that_is_replaced_under_a_connection_ends_the_run(rows: Rows, user: str) -> None:
    """A pooler can connect its next transaction to a restored server. The connection of this process remains."""
    with rows.world.paused_at(user, "before write 2") as process:
        rows.change("UPDATE reference SET id = repeat('0', 32)")
    assert_gave_up(rows.world.finish(process), "was replaced while this process ran")
    assert rows.world.rows(user) == []
    assert_resumes(rows.world, user, ["2", "3"])
