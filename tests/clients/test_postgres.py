"""Outages and wrong settings of PostgreSQL: a run ends with one line, or waits. No message has the password."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from clients import limits
from clients.errors import Unavailable
from clients.outages import Outages
from clients.stores import postgres as postgres_rows
from clients.stores.postgres import PostgresReference

from ..conftest import Run, World, completed, free_port, wait_until
from ..postgres import PASSWORD, Postgres
from ..proxy import Proxy
from .commands import SHORT_TIMEOUT_S, assert_gave_up, assert_resumes, assert_unavailable, command

pytestmark = pytest.mark.slow

LIMITS: dict[str, Any] = {"PATIENCE": SHORT_TIMEOUT_S, "FIRST_ANSWER": SHORT_TIMEOUT_S}


@pytest.fixture
def own_postgres(postgres_world: World) -> Iterator[Postgres]:
    """A server that only this test uses."""
    with Postgres().started() as server:
        postgres_world.env["REFERENCE_URL"] = server.database()
        yield server


def assert_created(world: World, user: str, run: Run) -> None:
    assert (run.status, run.steps) == (0, ["1", "2", "3"]), run.err
    assert world.rows(user) == world.accounts(user) == [run.guid]


def url_of_a_role(world: World, postgres: Postgres, rights: str = "", options: str = "") -> str:
    """Create a role with these rights on the tables, and return its URL."""
    name = f"r_{uuid4().hex}"
    postgres.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}' {options}")
    if rights:
        postgres.execute(f"GRANT {rights} ON accounts, reference TO {name}", world.database)
    return postgres.url(world.database, name)


def test_wrong_setting_or_unavailable_server_ends_the_run_with_one_line(
    postgres_world: World, postgres: Postgres, user: str
) -> None:
    right = postgres_world.env["REFERENCE_URL"]
    read_only = postgres.database()
    name = read_only.rpartition("/")[2]
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    encoding = "ENCODING '{}' LOCALE 'C' TEMPLATE template0"
    wrong = {
        right.replace(PASSWORD, f"{PASSWORD}-wrong"): "password authentication failed",
        f"{right}-missing": "create the database",
        right.replace("127.0.0.1", "host.invalid"): "cannot reach PostgreSQL at host.invalid",
        right.replace(str(postgres.port), "port"): "REFERENCE_URL is invalid",
        right.replace(str(postgres.port), "70000"): "REFERENCE_URL is invalid",
        f"{right}?sslmode=bogus": "correct REFERENCE_URL",
        f"{right}?sslmode=verify-full&sslrootcert=/missing.pem": "cannot read /missing.pem, a file for TLS",
        f"{right}?sslmode=verify-full&sslrootcert={__file__}": f"(TLS with {__file__}); correct them or REFERENCE_URL",
        f"{right}?connect_timeout=5": "correct REFERENCE_URL",
        postgres.database(encoding.format("LATIN1")): "is not a UTF-8 database",
        postgres.database(encoding.format("SQL_ASCII")): "is not a UTF-8 database",
        url_of_a_role(postgres_world, postgres): "grant this role SELECT and INSERT",
    }
    unavailable = {
        # The message is not changed if the password is a word of it.
        right.replace(f":{PASSWORD}@", ":password@"): 'password authentication failed for user "admin"; correct REF',
        right.replace(str(postgres.port), str(free_port())): "cannot reach PostgreSQL at 127.0.0.1",
        url_of_a_role(postgres_world, postgres, options="CONNECTION LIMIT 0"): "raise the connection limit",
        read_only: "accepts no writes",
    }
    for url, words in (wrong | unavailable).items():
        done = command(postgres_world, "-v", user, env={"REFERENCE_URL": url} | LIMITS)
        assert (done.returncode, done.stdout) == (1, "")
        assert words in (line := done.stderr.splitlines()[-1])
        assert url in wrong or "run again" in line
        assert PASSWORD not in done.stderr
    assert_unavailable(command(postgres_world, user, env={"REFERENCE_URL": "postgresql://h/d?password=x"}))
    assert_resumes(postgres_world, user, ["1", "2", "3"])
    done = command(postgres_world, "-v", f"{user}-2")
    assert (done.returncode, PASSWORD in done.stderr) == (0, False)


def test_invalid_url_is_not_quoted() -> None:
    """The error of Python's parser, which asyncpg passes on, quotes the password if it contains such a character."""
    with pytest.raises(Unavailable, match="REFERENCE_URL is invalid") as error:
        PostgresReference(f"postgresql://user:{PASSWORD}℀@host/accounts")
    assert PASSWORD not in str(error.value)


TLS = "cannot read {}/.postgresql/%s, a file for TLS with PostgreSQL: Is a directory"
PASSWORDS = "REFERENCE_URL has no password, and the password file {}/.pgpass has none: "

#: What is done in the home directory, and words of the line.
HOME = {
    "mkdir -p .postgresql/postgresql.crt": [TLS % "postgresql.crt"],
    "mkdir -p .postgresql/root.crl": [TLS % "root.crl"],
    "true": [PASSWORDS, "No such file"],
    "echo 'other:*:*:*:x' > .pgpass; chmod 644 .pgpass": [PASSWORDS, "run chmod 600"],
    "echo 'other:*:*:*:x' > .pgpass; chmod 600 .pgpass": [PASSWORDS, "no line fits"],
}


@pytest.mark.parametrize("set_up", HOME)
def test_wrong_file_of_the_home_directory_is_named(postgres_world: World, user: str, set_up: str) -> None:
    """A directory in place of a file cannot be read by anybody, root included."""
    home, url, words = postgres_world.directory, postgres_world.env["REFERENCE_URL"], HOME[set_up]
    assert completed(["sh", "-c", set_up], cwd=home).returncode == 0
    url = url.replace(f":{PASSWORD}@", "@") if PASSWORDS in words else f"{url}?sslmode=require"
    run = postgres_world.run(user, HOME=str(home), REFERENCE_URL=url)
    assert_gave_up(run, *(word.format(home) for word in words))
    assert len(run.err.splitlines()) == 2


def test_missing_thread_for_the_look_up_of_a_host_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another error would end the step, and so the workflow, for good."""
    monkeypatch.setattr(limits, "FIRST_ANSWER_TIMEOUT_S", 0.2)

    async def main() -> None:
        threading.stack_size(2**46)  # more than the address space: no thread starts
        try:
            outages = Outages(lambda _: None)
            reference = PostgresReference("postgresql://user:x@localhost/accounts", outages)
            await outages.result_or_raise(reference.open())
        finally:
            threading.stack_size(0)

    with pytest.raises(Unavailable, match="cannot reach PostgreSQL at localhost/accounts: can't start new thread"):
        asyncio.run(main())


def test_role_that_may_not_create_tables_uses_existing_ones_and_must_be_allowed_to_write(
    postgres_world: World, postgres: Postgres, user: str
) -> None:
    postgres_world.run(f"{user}-first")
    run = postgres_world.run(user, REFERENCE_URL=url_of_a_role(postgres_world, postgres, "SELECT"))
    assert_gave_up(run, "grant this role SELECT and INSERT")
    postgres_world.env["REFERENCE_URL"] = url_of_a_role(postgres_world, postgres, "SELECT, INSERT")
    assert_resumes(postgres_world, user, ["2", "3"])


def test_run_waits_for_a_server_that_is_starting(postgres_world: World, own_postgres: Postgres, user: str) -> None:
    """A replica with hot_standby=off answers as a starting server does, until it is promoted."""
    with Postgres(own_postgres).started("-c", "hot_standby=off", ready=False) as starting:
        process = postgres_world.start(user, REFERENCE_URL=starting.url(postgres_world.database), FIRST_ANSWER="60")
        wait_until(lambda: starting.log.count("FATAL:  the database system is not") > 2)
        starting.promote()
        assert postgres_world.finish(process).status == 0


def test_run_continues_after_its_statement_was_killed(postgres_world: World, own_postgres: Postgres, user: str) -> None:
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with contextlib.ExitStack() as locked:
        with postgres_world.paused_at(user, "before write 2") as process:
            locked.enter_context(own_postgres.locked(postgres_world.database))
        wait_until(lambda: len(own_postgres.execute(kill)) == 1)
    assert_created(postgres_world, user, postgres_world.finish(process))


#: The answer that is lost, the request before it, the limit that ends the run, and the steps that a rerun repeats. The
#: limit of the first answer is for connecting and preparing together.
LOST = {
    "of a commit": (b"COMMIT\0", b"INSERT INTO accounts", "PATIENCE", ["2", "3"]),
    "while the tables are made": (b"C\0\0\0\x07DO\0", b"", "FIRST_ANSWER", ["1", "2", "3"]),
}


@pytest.mark.parametrize("name", LOST)
def test_lost_answer_ends_the_run_and_a_rerun_resumes(
    postgres_world: World, postgres: Postgres, user: str, name: str
) -> None:
    words, request, limit, steps = LOST[name]
    short: dict[str, Any] = {limit: SHORT_TIMEOUT_S}
    with Proxy(postgres.port, loses=words, after=request, silent=True).started() as proxy:
        url = postgres_world.env["REFERENCE_URL"].replace(str(postgres.port), str(proxy.port))
        assert_gave_up(postgres_world.run(user, REFERENCE_URL=url, **short), "no answer in time")
    staged = postgres_world.rows(user) if request else []  # else it would make the tables
    assert len(staged) == bool(request)
    assert_resumes(postgres_world, user, steps)
    assert set(staged) <= set(postgres_world.rows(user))


def test_lost_answer_of_a_commit_is_settled_by_reading(postgres_world: World, postgres: Postgres, user: str) -> None:
    """The server has committed the row, but the connection closes before its answer arrives."""
    with Proxy(postgres.port, loses=b"COMMIT\0", after=b"INSERT INTO accounts").started() as proxy:
        url = postgres_world.env["REFERENCE_URL"].replace(str(postgres.port), str(proxy.port))
        run = postgres_world.run(user, REFERENCE_URL=url)
    assert_created(postgres_world, user, run)


def test_account_is_not_committed_while_the_synchronous_standby_is_missing(
    postgres_world: World, own_postgres: Postgres, user: str
) -> None:
    """Only the primary has the row. A cancelled write would make it visible."""
    with postgres_world.paused_at(user, "before write 2", **LIMITS) as process:
        own_postgres.configure(synchronous_standby_names="missing")
    assert_gave_up(postgres_world.finish(process), "synchronous standby")
    for _ in range(2):
        assert_gave_up(postgres_world.run(user, **LIMITS), "PostgreSQL at 127.0.0.1")
    assert postgres_world.rows(user) == postgres_world.accounts(user) == []
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    assert len(own_postgres.execute(waiting)) == 1, "each run leaves a statement behind"
    own_postgres.configure(synchronous_standby_names=None)
    wait_until(lambda: own_postgres.execute(waiting) == [])
    assert_resumes(postgres_world, user, ["2", "3"])


def test_server_without_fsync_is_refused_unless_others_sync_the_writes(
    postgres_world: World, own_postgres: Postgres, user: str
) -> None:
    own_postgres.configure(fsync="off")
    assert_gave_up(postgres_world.run(user, **LIMITS), "can lose rows in a power cut")
    own_postgres.configure(synchronous_standby_names="missing")
    assert_gave_up(postgres_world.run(user, **LIMITS), "synchronous standby")
    assert postgres_world.accounts(user) == []


def test_replica_is_refused(postgres_world: World, own_postgres: Postgres, user: str) -> None:
    """It may lack a row that was just staged: a panic for nothing."""
    name = postgres_world.database
    assert postgres_world.run(f"{user}-first").status == 0
    with Postgres(own_postgres).started() as replica:
        run = postgres_world.run(user, REFERENCE_URL=replica.url(name), **LIMITS)
        assert_gave_up(run, "accepts no writes", "primary")
        both = replica.url(name).replace(f"/{name}", f",127.0.0.1:{own_postgres.port}/{name}")
        assert postgres_world.run(user, REFERENCE_URL=both).status == 0


def test_run_continues_on_the_promoted_replica(postgres_world: World, own_postgres: Postgres, user: str) -> None:
    with second_host(postgres_world, own_postgres) as replica:
        with postgres_world.paused_at(user, "before write 2") as process:
            own_postgres.stop(signal.SIGQUIT)
            replica.promote()
        assert_created(postgres_world, user, postgres_world.finish(process))


def test_host_that_gives_no_answer_does_not_hide_the_next_one(
    postgres_world: World, own_postgres: Postgres, user: str
) -> None:
    """A host that has lost its power refuses no connection."""
    with second_host(postgres_world, own_postgres) as replica, own_postgres.frozen():
        replica.promote()
        assert postgres_world.run(user).status == 0


def test_request_after_a_pause_does_not_use_a_connection_that_was_forgotten(
    monkeypatch: pytest.MonkeyPatch, postgres: Postgres
) -> None:
    monkeypatch.setattr(postgres_rows, "IDLE_MAX_S", 0.2)
    monkeypatch.setattr(limits, "ANSWER_TIMEOUT_S", 5)

    async def main() -> None:
        with Proxy(postgres.port, forgets_s=1).started() as proxy:
            url = postgres.database().replace(str(postgres.port), str(proxy.port))
            rows = await PostgresReference(url, Outages(outages.append)).open()
            for _ in range(2):
                await asyncio.to_thread(wait_until, proxy.has_forgotten)
                assert await rows.find("u", []) == []
            await rows.close()

    outages: list[str] = []
    asyncio.run(main())
    assert outages == []


@contextlib.contextmanager
def second_host(world: World, primary: Postgres) -> Iterator[Postgres]:
    """Start a replica, and add it to REFERENCE_URL."""
    world.run("first")  # it makes the tables
    with Postgres(primary).started() as replica:
        first = f"127.0.0.1:{primary.port}"
        world.env["REFERENCE_URL"] = world.env["REFERENCE_URL"].replace(first, f"{first},127.0.0.1:{replica.port}")
        yield replica
