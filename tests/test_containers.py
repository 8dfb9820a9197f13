"""The Compose files, the image, and the documents' commands for them, run in containers. CI's job `smoke` runs this.

It needs a Docker daemon, Compose and the images, and it pulls none. Its Compose projects have their own names and
volumes, and it works on a copy of the checkout. So it does not touch what is stored in yours.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import hashlib
import json
import re
import shutil
import sqlite3
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .conftest import ROOT, World, answers, completed, numbered, wait_until
from .operations.test_worker import caller, start
from .test_readme import commands_of, environ, runnable

pytestmark = pytest.mark.deep

MANY_HOSTS = "docs/many-hosts/docker-compose.yml"
#: What the Compose files and the Dockerfile use. `create-account` is built from the rest.
IMAGES = [
    *re.findall(r"image: (\S+:\S+)", (ROOT / "docker-compose.yml").read_text() + (ROOT / MANY_HOSTS).read_text()),
    *re.findall(r"FROM (\S+)", (ROOT / "Dockerfile").read_text()),
]
PARTS = ["Dockerfile", ".dockerignore", "requirements.txt", "create_account.py", "clients", "operations", "docs"]


def succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@functools.cache
def missing() -> str | None:
    """Return what these tests lack; None if nothing."""
    if not shutil.which("docker"):
        return "install Docker with Compose"
    if not succeeds("docker", "info"):
        return "start the Docker daemon"
    if not succeeds("docker", "compose", "version"):
        return "install Docker Compose"
    pulls = [
        f"docker pull {image}" for image in dict.fromkeys(IMAGES) if not succeeds("docker", "image", "inspect", image)
    ]
    return f"run {', '.join(pulls)}" if pulls else None


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """A copy of what the containers need. One test at a time: they publish the same ports."""
    if what := missing():
        pytest.skip(f"containers are missing: {what}")
    with (Path(tempfile.gettempdir()) / "create-account-containers.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if answers(3000) or answers(8001):
            pytest.skip("port 3000 or 8001 is in use: run `docker compose down`")
        for part in [*PARTS, "docker-compose.yml"]:
            (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, tmp_path / part)
        (tmp_path / "docs" / "many-hosts" / ".env").unlink(missing_ok=True)
        yield tmp_path


class Shell:
    """Runs commands as a user does, in the checkout's copy and in a Compose project of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.env = environ() | {
            "COMPOSE_PROJECT_NAME": "create-account-test",
            "COMPOSE_FILE": "docker-compose.yml",
            "DATA_DIR": str(directory / "data"),
        }

    def __call__(self, commands: str, stdin: str = "") -> str:
        done = self._completed("bash", "-euo", "pipefail", "-c", runnable(commands), stdin=stdin)
        if done.returncode:
            logs = self._completed("docker", "compose", "logs", "--tail", "30").stdout
            pytest.fail(f"{commands}\n{done.stdout}{done.stderr}{logs}")
        return done.stdout

    def _completed(self, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return completed(command, env=self.env, cwd=self._directory, input=stdin)

    def remove(self) -> None:
        self._completed("docker", "compose", "down", "--volumes", "--timeout", "2")


@pytest.fixture
def shell(checkout: Path) -> Iterator[Shell]:
    made = Shell(checkout)
    yield made
    made.remove()


def guid_of(printed: str, uuid: str) -> str:
    [guid] = re.findall(rf"^UUID: {uuid}\nGUID: (\d+)$", printed, re.MULTILINE)
    return str(guid)


def during(work: Callable[[], object], begun: Callable[[], bool], fault: Callable[[], object]) -> None:
    """Do the work in a thread, and let the fault happen when it has begun."""
    with ThreadPoolExecutor() as thread:
        working = thread.submit(work)
        wait_until(lambda: begun() or working.done())
        fault()
        working.result()


def test_the_two_servers_of_the_compose_file_keep_the_accounts(shell: Shell, tmp_path: Path) -> None:
    guid = guid_of(printed := shell(commands_of("servers") + commands_of("worker")), "user-789")
    assert "create-account-user-7:3" in printed
    shell("docker compose up -d --wait")  # the last command removed the containers, not the volumes
    shell.env |= {"TB_ADDRESS": "127.0.0.1:3000", "RESONATE_URL": "http://127.0.0.1:8001"}
    assert guid_of(shell("uv run create_account.py user-789"), "user-789") == guid

    # Each store holds it once, as its own client says.
    with contextlib.closing(sqlite3.connect(tmp_path / "data" / "accounts.db")) as db:
        assert db.execute("SELECT guid FROM accounts WHERE uuid = 'user-789'").fetchall() == [(guid,)]
    owner = hashlib.blake2b(b"user-789", digest_size=16).hexdigest()
    query = f"query_accounts user_data_128=0x{owner} limit=10"
    repl = f"/tigerbeetle repl --cluster=0 --addresses=3000 --command='{query}'"
    assert str(json.loads(shell(f"timeout 20 docker compose exec -T tigerbeetle {repl}"))["id"]) == guid

    for server in ("tigerbeetle", "resonate"):
        backfill_while_killed(shell, server, tmp_path / server)
    assert shell("uv run python -m operations audit").startswith("clean; 4002 accounts, 4002 rows")


def backfill_while_killed(shell: Shell, server: str, output: Path) -> None:
    uuids = numbered(server, 2000)
    during(
        lambda: shell(f"uv run python -m operations backfill --chunk 100 > {output}", "\n".join(uuids)),
        lambda: output.exists() and output.stat().st_size > 0,
        lambda: shell(f"docker compose kill {server}; docker compose start {server}"),
    )
    assert [line.split("\t")[0] for line in output.read_text().splitlines()] == uuids


def test_the_image_holds_only_what_runs_and_says_what_blocks_io_uring(checkout: Path, tmp_path: Path) -> None:
    subprocess.run(["docker", "build", "--quiet", "--tag", "create-account", "."], cwd=checkout, check=True)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return completed(["docker", "run", "--rm", "--init", *arguments])

    listed = run("create-account", "sh", "-c", "id -u; ls; pip list").stdout.split()
    assert listed[0] != "0"
    assert {"clients", "operations", "create_account.py", "resonate-sdk", "asyncpg"} <= set(listed)
    assert not {"tests", "docs", "data", ".git", "pytest", "mypy"} & set(listed)

    profile = {"names": ["io_uring_setup", "io_uring_enter", "io_uring_register"], "action": "SCMP_ACT_ERRNO"}
    (tmp_path / "seccomp.json").write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [profile]}))
    for option, word in (
        (f"--security-opt=seccomp={tmp_path}/seccomp.json", "seccomp=unconfined"),
        ("--ulimit=memlock=0", "memlock"),
    ):
        env = ["--env=TB_ADDRESS=3000", "--env=DATA_DIR=/tmp/data"]
        blocked = run(option, *env, "create-account", "python", "create_account.py", "u")
        assert (blocked.returncode, blocked.stdout) == (1, "")
        [line] = [line for line in blocked.stderr.splitlines() if not line.startswith("embedded promises")]
        assert "io_uring" in line
        assert word in line


def test_many_hosts_survive_each_fault_that_the_document_names(shell: Shell) -> None:
    document = (ROOT / "docs" / "many-hosts.md").read_text()
    blocks = dict(re.findall(r"```sh (\w+)\n(.*?)```", document, re.DOTALL))
    shell.env["COMPOSE_FILE"] = MANY_HOSTS
    assert shell(blocks["start"]).endswith("exists\n")
    for number, fault in enumerate(blocks["faults"].strip().splitlines(), 1):
        create_during(shell, fault, numbered(f"fault-{number}", 200))
        clean = shell("docker compose exec -T worker-2 python -m operations audit")
        assert clean.startswith(f"clean; {200 * number + 1} accounts, {200 * number + 1} rows, 0 in progress"), fault
    shell("docker compose rm --force --stop tigerbeetle-0; docker volume rm create-account-test_tigerbeetle-0")
    shell(blocks["recover"])
    create_during(shell, "docker compose stop tigerbeetle-1", numbered("recovered", 200))
    for role, command in (
        ("accounts", "DELETE FROM accounts"),
        ("accounts", "UPDATE accounts SET guid = uuid"),
        ("accounts", "CREATE TABLE other (id integer)"),
        ("resonate", "SELECT FROM accounts"),
    ):
        psql = f"docker compose exec -T postgres psql --username={role} --dbname=accounts --command='{command}'"
        assert "permission denied" in shell(f"{psql} 2>&1 || true")
    shell("docker compose stop worker-1")
    assert json.loads(shell("docker compose ps --all --format json worker-1"))["ExitCode"] == 0, (
        "SIGTERM did not end it"
    )


def create_during(shell: Shell, fault: str, uuids: list[str]) -> None:
    """Let the workers create the accounts while the fault happens."""
    created: list[str] = []
    requested = threading.Event()

    async def request() -> None:
        async with caller(World(Path(), {"RESONATE_URL": "http://127.0.0.1:8001"})) as resonate:
            started = [start(resonate, uuid) for uuid in uuids]
            await asyncio.gather(*(promise.id() for promise in started))  # a caller's request may fail in an outage
            requested.set()
            created.extend([account["uuid"] for account in await asyncio.gather(*(p.result() for p in started))])

    during(lambda: asyncio.run(request()), requested.is_set, lambda: shell(fault))
    assert created == uuids
