"""The documents are true: README's commands run as written and print what is shown, and every link resolves."""

from __future__ import annotations

import inspect
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import create_account
from clients import settings
from clients.command.console import HALTED, INTERRUPTED

from .conftest import ROOT, VARIABLES, ServerWorld, needs, tigerbeetle_server, wait_until

README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

#: A block of commands: what it needs, the commands, and the output that follows, if it is shown.
BLOCKS = re.findall(r"```sh([^\n]*)\n(.*?)```\n(?:\n```text\n(.*?)```)?", README, re.DOTALL)

INSTALL = "python3 -m pip install --quiet --target .uv uv && "


def runnable(commands: str) -> str:
    """Return the commands without uv, which would install an environment. The tests' own is the same."""
    commands = commands.replace(INSTALL, "").replace(".uv/bin/uv run python ", "python ")
    return commands.replace(".uv/bin/uv run ", f"python {ROOT}/")


def environ() -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return env | {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}


def comparable(text: str) -> str:
    return re.sub(r"\d{30,}", "<guid>", text)


def test_the_first_command_installs_uv_and_creates_an_account() -> None:
    """It installs into the checkout, because pip may not be allowed to change the system's Python."""
    assert BLOCKS[0][1] == f"{INSTALL}.uv/bin/uv run create_account.py user-123\n"


def test_the_commands_print_what_is_shown(tmp_path: Path) -> None:
    shown = 0
    for needs_servers, commands, output in BLOCKS:
        if needs_servers or not output:
            continue
        done = subprocess.run(
            ["bash", "-c", f"{runnable(commands)}\nexit"],
            env=environ() | {"DATA_DIR": str(tmp_path / "data")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert comparable(done.stdout) == comparable(output), done.stderr
        shown += 1
    assert shown >= 3


def test_the_commands_for_the_servers_create_their_accounts(tmp_path: Path) -> None:
    """As in CI, which also runs `docker compose`. Here the servers are those on PATH."""
    needs("tigerbeetle")
    needs("resonate")
    commands = "".join(commands for servers, commands, _ in BLOCKS if servers.strip() == "servers")
    world = ServerWorld(tmp_path, {"DATA_DIR": str(tmp_path / "data")})
    with world.stack:
        world.env["TB_ADDRESS"] = world.stack.enter_context(tigerbeetle_server(tmp_path))
        world.start_resonate()
        for written, here in {
            "docker compose up -d --wait\n": "",
            "127.0.0.1:3000": world.env["TB_ADDRESS"],
            "http://127.0.0.1:8001": world.env["RESONATE_URL"],
            "resonate invoke ": f"resonate invoke -S {world.env['RESONATE_URL']} ",
        }.items():
            assert written in commands
            commands = commands.replace(written, here)
        shell = subprocess.Popen(
            ["bash", "-euc", f"{runnable(commands)}\nwait"],
            env=environ() | {"DATA_DIR": world.env["DATA_DIR"]},
            cwd=tmp_path,
            start_new_session=True,
        )
        try:
            wait_until(lambda: bool(world.accounts("user-7")))
        finally:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
        for user in ("user-7", "user-789"):
            assert world.accounts(user) == world.rows(user) != []


def test_the_workflow_is_the_one_that_is_shown() -> None:
    source = inspect.getsource(create_account.create_account)
    assert source.strip() in README


def test_every_setting_is_explained() -> None:
    for variable in re.findall(r'env(?:\.get\(|\[)"(\w+)"', inspect.getsource(settings.Settings)):
        assert f"`{variable}`" in README
    for status in (0, 1, 2, HALTED, INTERRUPTED):
        assert f"\n| {status} |" in README


def prose(document: Path) -> str:
    """Return the text without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(document: Path) -> set[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def relative_links() -> list[tuple[str, str]]:
    return sorted(
        {
            (str(document.relative_to(ROOT)), link)
            for document in DOCUMENTS
            for link in re.findall(r"\]\((?!\w+:)([^)]+)\)", prose(document))
        }
    )


@pytest.mark.parametrize(("document", "link"), relative_links())
def test_a_relative_link_resolves(document: str, link: str) -> None:
    path, _, anchor = link.partition("#")
    target = (ROOT / document).parent / path if path else ROOT / document
    assert target.exists()
    assert not anchor or anchor in anchors(target)


@pytest.mark.parametrize(
    "command",
    sorted(
        {
            command
            for document in DOCUMENTS
            for command in re.findall(r"python -m operations ([a-z]+)", document.read_text())
        }
    ),
)
def test_a_command_that_the_documents_name_exists(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "operations", command, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
