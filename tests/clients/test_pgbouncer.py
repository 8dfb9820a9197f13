"""A real PgBouncer between the commands and PostgreSQL. It drops start-up parameters, and shares connections."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clients.stores.postgres import PostgresReference

from ..conftest import World, free_port, numbered, wait_until
from ..operations import backfills
from ..operations.commands import findings
from ..postgres import PASSWORD, USER, Postgres, own
from .commands import assert_gave_up

#: What users set after "unsupported startup parameter". PgBouncer then drops these parameters silently.
IGNORED = "default_transaction_isolation,synchronous_commit,statement_timeout,extra_float_digits,search_path"

MODES = pytest.mark.parametrize("mode", ["session", "transaction"])


@contextlib.contextmanager
def pgbouncer(postgres: Postgres, mode: str, ignored: str = "") -> Iterator[int]:
    """Start PgBouncer in a pooling mode, and yield its port."""
    if shutil.which("pgbouncer") is None:
        pytest.skip("PgBouncer is missing: put `pgbouncer` on PATH")
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as directory:
        port, settings, log = free_port(), Path(directory, "pgbouncer.ini"), Path(directory, "log")
        settings.write_text(
            f"[databases]\n* = host=127.0.0.1 port={postgres.port} user=admin password={PASSWORD}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
            f"pool_mode = {mode}\ndefault_pool_size = 2\nignore_startup_parameters = {ignored}\n"
        )
        own(Path(directory), settings)
        with (
            log.open("wb") as output,
            subprocess.Popen(["pgbouncer", settings], user=USER, stdout=output, stderr=output) as process,
        ):
            try:
                wait_until(lambda: b"process up" in log.read_bytes() or process.poll() is not None)
                assert process.poll() is None, log.read_text()
                yield port
            finally:
                process.kill()


def through(world: World, postgres: Postgres, port: int) -> dict[str, Any]:
    return {"REFERENCE_URL": world.env["REFERENCE_URL"].replace(f":{postgres.port}/", f":{port}/")}


@MODES
@pytest.mark.parametrize("ignored", ["", IGNORED], ids=["strict", "ignoring"])
def test_write_has_its_settings_behind_pgbouncer(
    postgres_world: World, postgres: Postgres, user: str, mode: str, ignored: str
) -> None:
    """The database's defaults are the opposite. A trigger records the settings of the writing transaction."""
    database = postgres_world.database
    postgres_world.run(f"{user}-first")
    wanted = {
        "synchronous_commit": "on",
        "transaction_isolation": "read committed",
        "statement_timeout": "30s",
        "idle_in_transaction_session_timeout": "10s",
    }
    settings = ", ".join(f"current_setting('{name}')" for name in wanted)
    body = f"BEGIN INSERT INTO used VALUES (ARRAY[{settings}]); RETURN NULL; END"  # noqa: S608
    for statement in (
        f"ALTER DATABASE {database} SET synchronous_commit = off",
        f"ALTER DATABASE {database} SET default_transaction_isolation = serializable",
        "CREATE TABLE used (settings text[])",
        f"CREATE FUNCTION record() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$",
        "CREATE TRIGGER record AFTER INSERT ON accounts EXECUTE FUNCTION record()",
    ):
        postgres.execute(statement, database)
    with pgbouncer(postgres, mode, ignored=ignored) as port:
        run = postgres_world.run(user, **through(postgres_world, postgres, port))
    assert run.status == 0, run.err
    assert postgres.execute("SELECT settings FROM used", database) == [(list(wanted.values()),)]


def test_processes_that_share_connections_execute_only_their_own_statements(
    postgres_world: World, postgres: Postgres, user: str
) -> None:
    """Six clients share two connections. A prepared statement of one must not answer another."""

    async def client(url: str, uuids: list[str]) -> None:
        reference = await PostgresReference(url).open()
        for uuid in uuids:
            pair = (uuid, f"guid of {uuid}")
            assert await reference.rows_of_many([pair]) == [[]]
            assert await reference.stage_many([pair]) == [True]
            assert await reference.find(uuid, []) == [pair]
            assert await reference.find("none", [pair[1], "none"]) == [pair]
            assert await reference.rows_of_many([pair, ("none", "none")]) == [[pair], []]
        await reference.close()

    async def clients(url: str) -> None:
        await asyncio.gather(*(client(url, numbered(f"{user}-{number}", 30)) for number in range(6)))

    with pgbouncer(postgres, "transaction") as port:
        asyncio.run(clients(through(postgres_world, postgres, port)["REFERENCE_URL"]))
    rows = {uuid: f"guid of {uuid}" for number in range(6) for uuid in numbered(f"{user}-{number}", 30)}
    assert dict(postgres_world.sql("SELECT uuid, guid FROM accounts")) == rows


@MODES
def test_backfill_and_audit_work_behind_pgbouncer(
    postgres_world: World, postgres: Postgres, user: str, mode: str
) -> None:
    with pgbouncer(postgres, mode) as port:
        postgres_world.env |= through(postgres_world, postgres, port)
        done = backfills.run(postgres_world, *numbered(user, 20))
        assert (done.status, len(done.accounts)) == (0, 20), done.err
        assert findings(postgres_world) == (0, [], "clean; 20 accounts, 20 rows, 0 in progress")


def test_statement_pooling_is_refused_before_a_row_is_written(
    postgres_world: World, postgres: Postgres, user: str
) -> None:
    with pgbouncer(postgres, "statement") as port:
        run = postgres_world.run(user, FIRST_ANSWER="1", **through(postgres_world, postgres, port))
    assert_gave_up(run, "statement pooling mode", "the pooler before it")
    assert postgres_world.sql("SELECT * FROM accounts") == []
