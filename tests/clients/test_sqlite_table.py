"""SQLite tables that this program has not made, or that somebody changed. They are refused before a row is written."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

from ..conftest import World, quick_only
from ..operations.commands import script
from .commands import assert_gave_up, assert_resumes

#: What makes the table, and what the line says about it.
TABLES = {
    "CREATE TABLE accounts (uuid TEXT PRIMARY KEY, guid INTEGER NOT NULL UNIQUE)": "lacks column guid TEXT and has column guid INTEGER",
    "CREATE TABLE accounts (uuid INTEGER PRIMARY KEY, guid TEXT NOT NULL UNIQUE)": "has column uuid INTEGER",
    "CREATE TABLE accounts (uuid TEXT COLLATE NOCASE PRIMARY KEY, guid TEXT UNIQUE)": "lacks unique (uuid)",
    "CREATE TABLE accounts (uuid TEXT PRIMARY KEY, guid TEXT)": "lacks unique (guid)",
    "CREATE TABLE accounts (uuid TEXT PRIMARY KEY, guid TEXT, UNIQUE (guid, uuid))": "lacks unique (guid)",
    "CREATE TABLE accounts (uuid TEXT PRIMARY KEY, guid TEXT); CREATE UNIQUE INDEX half ON accounts (guid) WHERE guid > '5'": "lacks unique (guid)",
    "CREATE VIEW accounts AS SELECT '' AS uuid, '' AS guid": "lacks column guid TEXT",
}


@pytest.mark.parametrize("table", quick_only(list(TABLES)[:1], TABLES))
def test_table_of_another_form_is_refused(embedded_world: World, user: str, table: str) -> None:
    embedded_world.run(f"{user}-first")
    path = embedded_world.data / "accounts.db"
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(table)
    run = embedded_world.run(user)
    assert_gave_up(run, f"{path}: the table accounts is not this program's", TABLES[table])
    done = script(embedded_world, "check", user)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == run.err.splitlines()[-1]


def test_table_with_both_keys_is_accepted_whatever_else_it_has(embedded_world: World, user: str) -> None:
    embedded_world.run(f"{user}-first")
    embedded_world.sql("ALTER TABLE accounts ADD created TEXT DEFAULT 'now'")
    embedded_world.sql("CREATE INDEX created ON accounts (created)")
    embedded_world.sql("CREATE UNIQUE INDEX replica_key ON accounts (uuid, guid)")
    embedded_world.sql("CREATE UNIQUE INDEX lower ON accounts (lower(uuid))")
    assert embedded_world.run(user).status == 0


def test_index_that_refuses_a_row_ends_its_run_and_a_rerun_resumes(embedded_world: World, user: str) -> None:
    embedded_world.run(user)
    embedded_world.sql("CREATE UNIQUE INDEX narrow ON accounts (lower(uuid))")
    assert_gave_up(embedded_world.run(user.upper()), "does not store the row", user.upper(), "a key that is not")
    embedded_world.sql("DROP INDEX narrow")
    assert_resumes(embedded_world, user.upper(), ["2", "3"])


def test_conflict_that_no_read_finds_ends_the_run_and_a_rerun_resumes(embedded_world: World, user: str) -> None:
    """The step would write and read without end."""
    embedded_world.run(f"{user}-first")
    embedded_world.sql("CREATE TRIGGER swallow BEFORE INSERT ON accounts BEGIN SELECT RAISE(IGNORE); END")
    assert_gave_up(embedded_world.run(user), "accounts.db", "the table accounts has a trigger", user)
    embedded_world.sql("DROP TRIGGER swallow")
    assert_resumes(embedded_world, user, ["2", "3"])
