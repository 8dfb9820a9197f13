"""Outages and wrong settings of PostgreSQL: a run ends with one line, or waits. No message has the password."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from ..conftest import EmbeddedPostgresWorld, World, free_port
from ..postgres import PASSWORD, Postgres
from .commands import SHORT_TIMEOUT_S, assert_gave_up, assert_resumes, assert_unavailable, command

LIMITS = {"PATIENCE": SHORT_TIMEOUT_S, "FIRST_ANSWER": SHORT_TIMEOUT_S}


@pytest.fixture
def own_postgres(postgres_world: World) -> Iterator[Postgres]:
    """A server that only this test uses."""
    with Postgres().started() as server:
        postgres_world.env["REFERENCE_URL"] = server.database()
        yield server


def role(postgres: Postgres, name: str, options: str = "") -> None:
    postgres.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}' {options}")


def test_wrong_setting_ends_the_run_with_one_line(
    postgres_world: EmbeddedPostgresWorld, postgres: Postgres, user: str
) -> None:
    right = postgres_world.env["REFERENCE_URL"]
    database = right.rpartition("/")[2]
    role(postgres, f"r_{database}")
    encoding = "ENCODING '{}' LOCALE 'C' TEMPLATE template0"
    for url, words in {
        right.replace(PASSWORD, f"{PASSWORD}-wrong"): "password authentication failed",
        f"{right}-missing": "create the database",
        right.replace("127.0.0.1", "host.invalid"): "cannot reach PostgreSQL at host.invalid",
        right.replace(str(postgres.port), "port"): "REFERENCE_URL is invalid",
        postgres.database(encoding.format("LATIN1")): "is not a UTF-8 database",
        postgres.database(encoding.format("SQL_ASCII")): "is not a UTF-8 database",
        postgres.url(database, f"r_{database}"): "grant this role SELECT and INSERT",
    }.items():
        for verbose in ([], ["-v"]):
            done = command(postgres_world, *verbose, user, env={"REFERENCE_URL": url})
            assert (done.returncode, done.stdout) == (1, "")
            assert words in done.stderr.splitlines()[-1]
            assert PASSWORD not in done.stderr
    assert_unavailable(command(postgres_world, user, env={"REFERENCE_URL": "postgresql://h/d?password=x"}))


def test_debug_logs_have_no_password(postgres_world: EmbeddedPostgresWorld, user: str) -> None:
    done = command(postgres_world, "-v", user)
    assert done.returncode == 0
    assert PASSWORD not in done.stderr


def test_role_that_may_not_create_tables_uses_existing_ones(
    postgres_world: EmbeddedPostgresWorld, postgres: Postgres, user: str
) -> None:
    database = postgres_world.env["REFERENCE_URL"].rpartition("/")[2]
    postgres_world.run(f"{user}-first")
    role(postgres, f"r_{database}")
    postgres.execute(f"GRANT SELECT, INSERT ON accounts, reference TO r_{database}", database)
    postgres_world.env["REFERENCE_URL"] = postgres.url(database, f"r_{database}")
    assert postgres_world.run(user).status == 0


def test_unavailable_server_ends_the_run_with_one_line(
    postgres_world: EmbeddedPostgresWorld, postgres: Postgres, user: str
) -> None:
    right = postgres_world.env["REFERENCE_URL"]
    database = right.rpartition("/")[2]
    role(postgres, f"limited_{database}", "CONNECTION LIMIT 0")
    read_only = postgres.database()
    name = read_only.rpartition("/")[2]
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    for url, words in {
        right.replace(str(postgres.port), str(free_port())): "cannot reach PostgreSQL at 127.0.0.1",
        postgres.url(database, f"limited_{database}"): "raise the connection limit",
        read_only: "accepts no writes",
    }.items():
        run = postgres_world.run(
            user, REFERENCE_URL=url, PATIENCE=SHORT_TIMEOUT_S, FIRST_ANSWER=SHORT_TIMEOUT_S
        )
        assert_gave_up(run, words)
        assert PASSWORD not in run.err
    assert_resumes(postgres_world, user, ["1", "2", "3"])


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGINT], ids=["immediate", "fast"])
def test_run_continues_after_a_restart_of_the_server(
    postgres_world: EmbeddedPostgresWorld, own_postgres: Postgres, user: str, number: signal.Signals
) -> None:
    with postgres_world.held(user, "before effect 2") as process:
        own_postgres.stop(number)
        own_postgres.start()
    run = postgres_world.finish(process)
    assert run.status == 0, run.err
    assert postgres_world.rows(user) == postgres_world.accounts(user) == [run.guid]


def test_run_waits_for_a_stopped_server(
    postgres_world: EmbeddedPostgresWorld, own_postgres: Postgres, user: str
) -> None:
    with postgres_world.held(user, "before effect 2") as process:
        own_postgres.stop(signal.SIGQUIT)
    own_postgres.start()
    assert postgres_world.finish(process).status == 0


def test_run_gives_up_a_stopped_server_and_resumes_later(
    postgres_world: EmbeddedPostgresWorld, own_postgres: Postgres, user: str
) -> None:
    with postgres_world.held(user, "before effect 2", **LIMITS) as process:
        own_postgres.stop(signal.SIGQUIT)
    assert_gave_up(postgres_world.finish(process), "PostgreSQL at 127.0.0.1")
    own_postgres.start()
    assert_resumes(postgres_world, user, ["2", "3"])


def test_run_gives_up_a_frozen_server_and_resumes_later(
    postgres_world: EmbeddedPostgresWorld, own_postgres: Postgres, user: str
) -> None:
    with postgres_world.held(user, "before effect 2", **LIMITS) as process:
        frozen = own_postgres.frozen()
        frozen.__enter__()
    try:
        assert_gave_up(postgres_world.finish(process), "PostgreSQL at 127.0.0.1", "no answer")
    finally:
        frozen.__exit__(None, None, None)
    assert_resumes(postgres_world, user, ["2", "3"])


def test_run_gives_up_a_server_that_became_read_only_and_resumes_later(
    postgres_world: EmbeddedPostgresWorld, own_postgres: Postgres, user: str
) -> None:
    """Reads of open connections still succeed; a new connection is refused."""
    with postgres_world.held(user, "before effect 2", **LIMITS) as process:
        own_postgres.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        own_postgres.execute("SELECT pg_reload_conf()")
    assert_gave_up(postgres_world.finish(process), "accepts no writes")
    own_postgres.execute("ALTER SYSTEM RESET default_transaction_read_only")
    own_postgres.execute("SELECT pg_reload_conf()")
    assert_resumes(postgres_world, user, ["2", "3"])
