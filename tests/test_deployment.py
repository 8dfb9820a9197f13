"""The compose file and the workflow have the versions of pyproject.toml and no unnecessary privileges."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml

from .conftest import ROOT

#: The Resonate server that was tested with each release of the SDK. Both must use the same protocol version.
SERVER_FOR_SDK = {"0.8.1": "v0.9.8"}

SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
WORKFLOWS: dict[str, Any] = {
    path.name: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*.y*ml")
}
JOBS = [
    pytest.param(job, id=f"{file}:{name}")
    for file, workflow in WORKFLOWS.items()
    for name, job in workflow["jobs"].items()
]

each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
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
    image: str = SERVICES[service]["image"]
    return image.rpartition(":")[2]


def test_tigerbeetle_image_has_the_version_of_the_client() -> None:
    assert tag("tigerbeetle") == pinned("tigerbeetle")


def test_resonate_image_has_the_version_that_was_tested_with_the_sdk() -> None:
    assert tag("resonate") == SERVER_FOR_SDK[pinned("resonate-sdk")]


@each_service
def test_an_image_has_an_exact_tag(service: dict[str, Any]) -> None:
    assert re.fullmatch(r"[a-z0-9./-]+:v?\d+\.\d+\.\d+", service["image"])


@each_service
def test_a_port_is_published_to_this_machine_only(service: dict[str, Any]) -> None:
    assert "network_mode" not in service
    assert service["ports"]
    for port in service["ports"]:
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


@each_service
def test_a_service_has_no_privilege_and_a_health_check(service: dict[str, Any]) -> None:
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert "no-new-privileges:true" in service["security_opt"]
    assert not service.keys() & {"cap_add", "privileged"}
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
