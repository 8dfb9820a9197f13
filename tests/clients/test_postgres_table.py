"""PostgreSQL tables that this program has not made, or that somebody changed. They are refused before a row is written."""

from __future__ import annotations

import pytest

from ..conftest import EmbeddedPostgresWorld, quick_only
from ..operations.commands import script
from ..postgres import PASSWORD, Postgres
from .commands import assert_gave_up, assert_resumes

#: What is done to the table, and what the line says about it.
CHANGES = {
    "CREATE UNIQUE INDEX ON accounts (lower(uuid))": ["has unique btree (lower(uuid))"],
    "CREATE UNIQUE INDEX ON accounts (left(guid, 5)) WHERE guid > '5'": ["has unique btree", "WHERE"],
    "ALTER TABLE accounts ADD EXCLUDE (lower(uuid) WITH =)": ["has unique btree (lower(uuid))"],
    "ALTER TABLE accounts DROP CONSTRAINT accounts_guid_key": ["lacks unique btree (guid)"],
    "ALTER TABLE accounts ALTER uuid TYPE varchar(99)": ["has column uuid character varying(99)"],
    "ALTER TABLE accounts ALTER guid TYPE numeric USING 1": ["has column guid numeric", "lacks column guid text"],
    'ALTER TABLE accounts ALTER uuid TYPE text COLLATE "POSIX"': ['lacks column uuid text COLLATE "C"'],
    "ALTER TABLE accounts SET UNLOGGED": ["has no write-ahead log (UNLOGGED)"],
    "ALTER TABLE accounts RENAME TO rows; CREATE VIEW accounts AS SELECT * FROM rows": ["has another kind than TABLE"],
    "ALTER TABLE reference RENAME TO ours; CREATE TABLE reference (id int)": [
        "table reference",
        "lacks column one boolean",
    ],
}


@pytest.mark.parametrize("change", quick_only(list(CHANGES)[:2], CHANGES))
def test_table_of_another_form_is_refused(
    postgres_world: EmbeddedPostgresWorld, postgres: Postgres, user: str, change: str
) -> None:
    postgres_world.run(f"{user}-first")
    database = postgres_world.env["REFERENCE_URL"].rpartition("/")[2]
    for statement in change.split("; "):
        postgres.execute(statement, database)
    run = postgres_world.run(user)
    assert_gave_up(run, "is not this program's", *CHANGES[change])
    done = script(postgres_world, "check", user)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == run.err.splitlines()[-1]


def test_row_level_security_is_refused(postgres_world: EmbeddedPostgresWorld, postgres: Postgres, user: str) -> None:
    """It hides rows from this role."""
    postgres_world.run(f"{user}-first")
    database = postgres_world.env["REFERENCE_URL"].rpartition("/")[2]
    role = f"r_{database}"
    postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
    postgres.execute(f"GRANT SELECT, INSERT ON accounts, reference TO {role}", database)
    postgres.execute("ALTER TABLE accounts ENABLE ROW LEVEL SECURITY", database)
    postgres.execute("CREATE POLICY mine ON accounts USING (guid = '')", database)
    assert_gave_up(postgres_world.run(user, REFERENCE_URL=postgres.url(database, role)), "has row level security")


def test_more_columns_and_indexes_are_allowed(
    postgres_world: EmbeddedPostgresWorld, postgres: Postgres, user: str
) -> None:
    postgres_world.run(f"{user}-first")
    database = postgres_world.env["REFERENCE_URL"].rpartition("/")[2]
    postgres.execute("ALTER TABLE accounts ADD created timestamptz DEFAULT now()", database)
    postgres.execute("CREATE INDEX ON accounts (created)", database)
    assert postgres_world.run(user).status == 0


def test_conflict_that_no_read_finds_ends_the_run_and_a_rerun_resumes(
    postgres_world: EmbeddedPostgresWorld, postgres: Postgres, user: str
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
    postgres_world: EmbeddedPostgresWorld, postgres: Postgres, user: str
) -> None:
    """A pooler can connect its next transaction to a restored server. The connection of this process remains."""
    database = postgres_world.env["REFERENCE_URL"].rpartition("/")[2]
    with postgres_world.paused_at(user, "before write 2") as process:
        postgres.execute("UPDATE reference SET id = repeat('0', 32)", database)
    assert_gave_up(postgres_world.finish(process), "was replaced while this process ran")
    assert postgres_world.rows(user) == []
    assert_resumes(postgres_world, user, ["2", "3"])
