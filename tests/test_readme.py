"""README.md tells the truth: its commands are run as written, and its output is what they print."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import create_account
from clients import settings
from clients.console import HALTED, INTERRUPTED

from .conftest import ROOT, VARIABLES

README = (ROOT / "README.md").read_text()

#: A block of commands, and the output that follows it, if it is shown.
BLOCKS = re.findall(r"```sh([^\n]*)\n(.*?)```\n(?:\n```text\n(.*?)```)?", README, re.DOTALL)

#: What is installed already, and what would run these tests within these tests.
INSTALL = "python -m pip install uv && "


def comparable(text: str) -> str:
    return re.sub(r"\d{30,}", "<guid>", text)


def test_the_commands_print_what_is_shown(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    env |= {"DATA_DIR": str(tmp_path / "data")}
    env |= {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}
    shown = 0
    for needs, commands, output in BLOCKS:
        if needs or not output:
            continue
        # uv would make an environment of its own; this one is what it makes.
        command = commands.replace(INSTALL, "").replace("python -m uv run python", "python")
        command = command.replace("python -m uv run ", f"python {ROOT}/")
        done = subprocess.run(
            ["bash", "-c", f"{command}\nexit"],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert comparable(done.stdout) == comparable(output), done.stderr
        shown += 1
    assert shown >= 3


def test_the_workflow_is_the_one_that_is_shown() -> None:
    source = inspect.getsource(create_account.create_account)
    assert source.strip() in README


def test_every_setting_is_explained() -> None:
    for variable in re.findall(r'env(?:\.get\(|\[)"(\w+)"', inspect.getsource(settings.Settings)):
        assert f"`{variable}`" in README
    for status in (0, 1, 2, HALTED, INTERRUPTED):
        assert f"\n| {status} |" in README


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!https?://)([^)#]+)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
