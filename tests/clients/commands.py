"""Run create_account.py as a user does, and check how it ends."""

from __future__ import annotations

import subprocess
import sys

from ..conftest import HANG_S, ROOT, Run, World

COMMAND = [sys.executable, str(ROOT / "create_account.py")]
EMBEDDED = "embedded "


def command(
    world: World, *arguments: str, env: dict[str, str] | None = None, stdout: int | None = None
) -> subprocess.CompletedProcess[str]:
    process = world.process(*arguments, env=env, stdout=stdout)
    out, err = process.communicate(timeout=HANG_S)
    assert "Traceback" not in err, err
    return subprocess.CompletedProcess([], process.wait(), out, err)


def assert_unavailable(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Check for exit status 1, an empty stdout, and one line that contains the words."""
    assert (done.returncode, done.stdout) == (1, "")
    [line] = [line for line in done.stderr.splitlines() if not line.startswith(EMBEDDED)]
    for word in words:
        assert word in line


#: Seconds without an answer after which the runs of these tests give up.
SHORT_TIMEOUT_S = "1"


def assert_gave_up(run: Run, *words: str) -> None:
    assert (run.status, run.out) == (1, "")
    line = run.err.splitlines()[-1]
    for word in (*words, "run again"):
        assert word in line


def assert_resumes(world: World, user: str, steps: list[str]) -> None:
    run = world.run(user)
    assert (run.status, run.steps) == (0, steps), run.err
    assert world.rows(user) == world.accounts(user) == [run.guid]
