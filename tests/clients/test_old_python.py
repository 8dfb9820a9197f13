"""Each command tells the user of an older Python, in one line, which version it needs."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ..conftest import ROOT, World, completed

#: Tried in this order.
OLD_VERSIONS = ["python3.8", "python3.9", "python3.10", "python3.11"]

#: What Python compiles before it reaches the line that compares the version.
FIRST_FILES = [
    "create_account.py",
    "clients/__init__.py",
    "clients/command/console.py",
    "operations/__init__.py",
    "operations/__main__.py",
    "tests/benchmark.py",
]

COMMANDS = [["create_account.py", "u"], ["-m", "operations", "check", "u"], ["-m", "tests.benchmark"]]


def old_python() -> str:
    """Return the oldest of these Pythons that is on PATH and starts."""
    for version in OLD_VERSIONS:
        for directory in os.get_exec_path():
            found = shutil.which(version, path=directory)
            if found and subprocess.run([found, "-V"], capture_output=True, check=False).returncode == 0:
                return found
    pytest.skip(f"no older Python is on PATH: {', '.join(OLD_VERSIONS)}")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_older_python_is_told_the_version_in_one_line(tmp_path: Path, command: list[str]) -> None:
    done = completed([old_python(), *command], env=World(tmp_path).environ(), cwd=ROOT, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("Python 3.12 or newer is required; this is 3.")


@pytest.mark.parametrize("file", FIRST_FILES)
def test_first_files_have_only_syntax_of_python_3_8(file: str) -> None:
    ast.parse((ROOT / file).read_text(), feature_version=(3, 8))
