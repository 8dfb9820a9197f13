"""The suite itself: it does not depend on how it was started."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .conftest import HANG_S, ROOT


@pytest.mark.slow
def test_ctrl_c_tests_pass_when_the_suite_is_started_with_sigint_ignored() -> None:
    """A shell script that starts a command in the background ignores SIGINT for it."""
    tests = ["-n0", "-k", "ctrl_c", "tests/operations/test_check.py"]
    command = [sys.executable, "-m", "pytest", *tests]
    ignoring = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]
    done = subprocess.run(ignoring, cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stdout
