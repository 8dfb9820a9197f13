"""PostgreSQL tables that this program has not made, or that somebody changed. They are refused before a row is written."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from ..conftest import World, quick_only, wait_until
from ..operations.commands import script
from ..postgres import PASSWORD, Postgres
from .commands import assert_gave_up, assert_resumes

NO_KEY = "ALTER TABLE accounts DROP CONSTRAINT accounts_guid_key"

#: What is done to the table, and what the line says about it.
CHANGES = {
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
}


@pytest.mark.parametrize("change", quick_only(list(CHANGES)[:2], CHANGES))
def test_table_of_another_form_is_refused(postgres_world: World, postgres: Postgres, user: str, change: str) -> None:
    postgres_world.run(f"{user}-first")
    database = postgres_world.env["REFERENCE_URL"].rpartition("/")[2]
    for statement in change.split("; "):
        postgres.execute(statement, database)
    run = postgres_world.run(user)
    assert_gave_up(run, "is not this program's", *CHANGES[change])
    done = script(postgres_world, "check", user)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == run.err.splitlines()[-1]


def test_row_level_security_is_refused(postgres_world: World, postgres: Postgres, user: str) -> None:
    """It hides rows from this role."""
    postgres_world.run(f"{user}-first")
    database = postgres_world.env["REFERENCE_URL"].rpartition("/")[2]
    role = f"r_{database}"
    postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
    postgres.execute(f"GRANT SELECT, INSERT ON accounts, reference TO {role}", database)
    postgres.execute("ALTER TABLE accounts ENABLE ROW LEVEL SECURITY", database)
    postgres.execute("CREATE POLICY mine ON accounts USING (guid = '')", database)
    assert_gave_up(postgres_world.run(user, REFERENCE_URL=postgres.url(database, role)), "lacks no row level security")


ALLOWED = [
    "ALTER TABLE accounts ADD created timestamptz DEFAULT now()",
    "CREATE INDEX ON accounts (created)",
    "CREATE UNIQUE INDEX ON accounts (uuid, guid)",
    "CREATE UNIQUE INDEX ON accounts (guid) INCLUDE (uuid)",
    NO_KEY,
    "ALTER INDEX accounts_pkey SET (fillfactor = 70)",
    "CREATE UNIQUE INDEX ON accounts (lower(uuid))",
    "CREATE UNIQUE INDEX ON accounts (lower(guid)) WHERE guid > '5'",
]


def test_table_with_both_keys_is_accepted_whatever_else_it_has(
    postgres_world: World, postgres: Postgres, user: str
) -> None:
    postgres_world.run(f"{user}-first")
    database = postgres_world.env["REFERENCE_URL"].rpartition("/")[2]
    for statement in ALLOWED:
        postgres.execute(statement, database)
    assert postgres_world.run(user).status == 0


def test_table_whose_keys_are_being_rebuilt_is_accepted(postgres_world: World, postgres: Postgres, user: str) -> None:
    """REINDEX CONCURRENTLY waits for an older transaction. Meanwhile there is a second index that is not valid."""
    postgres_world.run(f"{user}-first")
    database = postgres_world.env["REFERENCE_URL"].rpartition("/")[2]

    def indexes() -> int:
        return len(postgres.execute("SELECT FROM pg_indexes WHERE tablename = 'accounts'", database))

    async def main() -> None:
        older, rebuilding = [await asyncpg.connect(postgres.url(database)) for _ in range(2)]
        async with older.transaction():
            await older.execute("INSERT INTO accounts VALUES ('older', '1')")
            rebuilt = asyncio.create_task(rebuilding.execute("REINDEX TABLE CONCURRENTLY accounts"))
            await asyncio.to_thread(wait_until, lambda: indexes() > 2)
            assert (await asyncio.to_thread(postgres_world.run, user)).status == 0
        await rebuilt
        await asyncio.gather(older.close(), rebuilding.close())

    asyncio.run(main())


def test_index_that_refuses_a_row_ends_its_run_and_a_rerun_resumes(
    postgres_world: World, postgres: Postgres, user: str
) -> None:
    database = postgres_world.env["REFERENCE_URL"].rpartition("/")[2]
    postgres_world.run(user)
    postgres.execute("CREATE UNIQUE INDEX narrow ON accounts (lower(uuid))", database)
    assert_gave_up(postgres_world.run(user.upper()), "does not store the row", user.upper(), "a key that is not")
    postgres.execute("DROP INDEX narrow", database)
    assert_resumes(postgres_world, user.upper(), ["2", "3"])


def test_conflict_that_no_read_finds_ends_the_run_and_a_rerun_resumes(
    postgres_world: World, postgres: Postgres, user: str
) -> None:
    """A rule that was made while the process ran swallows the row. The step would write and read without end."""
    database = postgres_world.env["REFERENCE_URL"].rpartition("/")[2]
    with postgres_world.paused_at(user, "before write 2") as process:
        swallow = "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$"
        postgres.execute(swallow, database)
        trigger = "CREATE TRIGGER swallow BEFORE INSERT ON accounts FOR EACH ROW EXECUTE FUNCTION swallow()"
        postgres.execute(trigger, database)
    run = postgres_world.finish(process)
    assert_gave_up(run, "PostgreSQL", "the table accounts", user)
    postgres.execute("DROP FUNCTION swallow CASCADE", database)
    assert_resumes(postgres_world, user, ["2", "3"])


def test_database_that_is_replaced_under_a_connection_ends_the_run(
    postgres_world: World, postgres: Postgres, user: str
) -> None:
    """A pooler can connect its next transaction to a restored server. The connection of this process remains."""
    database = postgres_world.env["REFERENCE_URL"].rpartition("/")[2]
    with postgres_world.paused_at(user, "before write 2") as process:
        postgres.execute("UPDATE reference SET id = repeat('0', 32)", database)
    assert_gave_up(postgres_world.finish(process), "was replaced while this process ran")
    assert postgres_world.rows(user) == []
    assert_resumes(postgres_world, user, ["2", "3"])
