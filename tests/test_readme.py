"""The documents are true: README's commands run as written and print what is shown, and every link resolves."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import create_account
from clients import settings
from clients.errors import HALTED
from clients.settings import VARIABLES

from .conftest import HANG_S, ROOT, ServerWorld, needs, tigerbeetle_server

README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

#: A block of commands: its kind, the commands, and the output that follows, if it is shown.
BLOCKS = re.findall(r"```sh ?([^\n]*)\n(.*?)```\n(?:\n```text\n(.*?)```)?", README, re.DOTALL)


def commands_of(kind: str) -> str:
    return "".join(commands for block, commands, _ in BLOCKS if block == kind)


def runnable(commands: str) -> str:
    """Return the commands without uv, which would install an environment. The tests' own is the same."""
    return commands.replace("uv run python ", "python ").replace("uv run ", f"python {ROOT}/")


def environ() -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return env | {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}


def comparable(text: str) -> str:
    """Return what README shows: guids differ, and two lines of the terminal are left out."""
    lines = [line for line in text.splitlines() if not line.startswith("embedded mode") and "Killed" not in line]
    return re.sub(r"\d{30,}", "<guid>", "\n".join(lines))


@pytest.mark.parametrize(("commands", "output"), [block[1:] for block in BLOCKS if block[0] == "" and block[2]])
def test_the_commands_print_what_is_shown(tmp_path: Path, commands: str, output: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{runnable(commands)}\nexit"],
        env=environ() | {"DATA_DIR": str(tmp_path / "data")},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert comparable(done.stdout) == comparable(output)


def test_the_application_prints_what_is_shown(tmp_path: Path) -> None:
    [(program, output)] = re.findall(r"```python application\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL)
    env = environ() | {"DATA_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert done.stdout == output, done.stderr


@pytest.mark.deep
def test_the_commands_without_uv_install_the_packages_and_create_an_account(tmp_path: Path) -> None:
    for file in ("create_account.py", "requirements.txt", "clients", "operations"):
        (shutil.copytree if (ROOT / file).is_dir() else shutil.copy)(ROOT / file, tmp_path / file)
    python = {"PATH": f"{sys.base_prefix}/bin:{os.environ['PATH']}"}  # not the Python of the tests' environment
    command = ["bash", "-euc", commands_of("venv")]
    done = subprocess.run(command, cwd=tmp_path, env=environ() | python, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("UUID: user-123\nGUID: "), done.stderr


def test_the_commands_for_the_servers_create_their_accounts(tmp_path: Path) -> None:
    """tests/test_containers.py runs them as they are. Here the servers are those on PATH, and no container runs."""
    needs("tigerbeetle")
    needs("resonate")
    commands = commands_of("servers")
    world = ServerWorld(tmp_path, {"DATA_DIR": str(tmp_path / "data")})
    with world.stack:
        world.env["TB_ADDRESS"] = world.stack.enter_context(tigerbeetle_server(tmp_path))
        world.start_resonate()
        for written, here in {
            "docker compose up -d --wait\n": "",
            "docker compose down\n": "",
            "127.0.0.1:3000": world.env["TB_ADDRESS"],
            "http://127.0.0.1:8001": world.env["RESONATE_URL"],
            "docker compose exec resonate resonate-server invoke": f"resonate invoke -S {world.env['RESONATE_URL']}",
            "docker compose exec resonate resonate-server tree": f"resonate tree -S {world.env['RESONATE_URL']}",
        }.items():
            assert written in commands
            commands = commands.replace(written, here)
        done = subprocess.run(
            ["bash", "-euc", f"{runnable(commands)}\nwait"],
            env=environ() | {"DATA_DIR": world.env["DATA_DIR"]},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        for uuid in ("user-7", "user-789"):
            [guid] = world.accounts(uuid)
            assert world.rows(uuid) == [guid]
            assert f"UUID: {uuid}\nGUID: {guid}\n" in done.stdout
        assert "create-account-user-7:3" in done.stdout


def test_the_workflow_is_the_one_that_is_shown() -> None:
    [shown] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert textwrap.indent(shown, "    ").rstrip() in inspect.getsource(create_account.create_account)


def test_every_setting_is_explained() -> None:
    for variable in re.findall(r'env(?:\.get\(|\[)"(\w+)"', inspect.getsource(settings.Settings)):
        assert f"`{variable}`" in README
    for status in (0, 1, 2, HALTED, 130):
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
