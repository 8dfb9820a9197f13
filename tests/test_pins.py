"""The pins of pyproject.toml, which uv reads, and those of constraints.txt, which pip reads, are the same."""

from __future__ import annotations

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
HASHED = re.findall(
    r"^([a-z0-9][^\n]*?) \\\n(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n?)+",
    (ROOT / "constraints.txt").read_text(),
    re.MULTILINE,
)


def test_the_hashed_pins_are_those_of_pyproject() -> None:
    hashed = {
        canonicalize_name(requirement.name): (requirement.specifier, requirement.marker)
        for requirement in map(Requirement, HASHED)
    }
    assert hashed == {name: (pin.specifier, pin.marker) for name, pin in PINS.items()}
    assert all(re.fullmatch("==[^,*]+", str(pin.specifier)) for pin in PINS.values())


def test_no_tracked_file_names_the_host_of_a_package_registry() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this copy of the project is not a git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    hosts = re.compile("|".join([r"pypi\.%s" % "org", r"pythonhosted\.%s" % "org", r"registry\.npmjs"]))  # noqa: UP031
    for file in map(ROOT.joinpath, listed.stdout.splitlines()):
        content = file.read_text(errors="replace") if file.is_file() else ""
        assert not hosts.search(content), f"{file} names a package registry's host"
