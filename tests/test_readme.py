"""The documents are true: README's commands run as written and print what is shown, and every link resolves."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import create_account
from clients import settings
from clients.settings import VARIABLES

from .conftest import HANG_S, ROOT, ServerWorld, needs, tigerbeetle_server

README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def blocks(kind: str, document: str = README) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", document, re.DOTALL | re.MULTILINE)


def commands_of(kind: str) -> str:
    return "".join(block for document in (README, OPERATIONS) for block in blocks(f"sh {kind}", document))


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


@pytest.mark.parametrize("block", blocks("console"))
def test_the_commands_print_what_is_shown(tmp_path: Path, block: str) -> None:
    """A line that begins with `$` is a command. Its output follows."""
    commands = [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]
    script = "".join(f"echo {shlex.quote('$ ' + command)}\n{runnable(command)}\n" for command in commands)
    done = subprocess.run(
        ["bash", "-c", f"{script}exit"],
        env=environ() | {"DATA_DIR": str(tmp_path / "data")},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert comparable(done.stdout) == comparable(block)


def test_the_application_prints_what_is_shown(tmp_path: Path) -> None:
    [(program, output)] = re.findall(r"```python application\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL)
    env = environ() | {"DATA_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert done.stdout == output, done.stderr


def test_the_listed_files_are_those_that_the_example_imports() -> None:
    """Nothing of the SDK that is not public, no command, no batch: at most 12 files and 1,300 lines."""
    program = (
        "import create_account, sys; print(*(m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ(), cwd=ROOT, capture_output=True, text=True, check=True
    )
    imported = {Path(file) for file in done.stdout.split()}
    ours = {str(file.relative_to(ROOT)) for file in imported if file.is_relative_to(ROOT) and ".venv" not in file.parts}
    [listed] = blocks("text files")
    assert sorted(ours) == sorted(listed.split())
    assert len(ours) <= 12
    sources = {file: (ROOT / file).read_text() for file in ours}
    assert sum(len(source.splitlines()) for source in sources.values()) <= 1_300
    for file, source in sources.items():
        private = re.findall(r"\bresonate[\w.]*\._\w+|from resonate[\w.]* import _", source)
        assert not private, file


def test_the_listed_files_are_enough_for_an_own_resonate_object(tmp_path: Path) -> None:
    needs("tigerbeetle")
    needs("resonate")
    [listed], [program] = blocks("text files"), blocks("python own-resonate")
    for file in listed.split():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    world = ServerWorld(tmp_path, {"DATA_DIR": str(tmp_path / "data")})
    with world.stack:
        world.env["TB_ADDRESS"] = world.stack.enter_context(tigerbeetle_server(tmp_path))
        world.start_resonate()
        env = environ() | world.env | {"PYTHONPATH": ""}
        guids = []
        for _ in range(2):  # the second one returns the saved result
            done = subprocess.run(
                [sys.executable, "-c", program],
                cwd=tmp_path,
                env=env,
                capture_output=True,
                text=True,
                timeout=HANG_S,
                check=False,
            )
            assert (done.returncode, done.stderr) == (0, "")
            guids += done.stdout.split()
        assert [*world.accounts("user-123"), *world.rows("user-123")] == guids


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
    commands = commands_of("servers") + commands_of("worker")
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
    [shown] = blocks("python")
    assert textwrap.indent(shown, "    ").rstrip() in inspect.getsource(create_account.create_account)


def test_every_setting_is_explained() -> None:
    for variable in re.findall(r'env(?:\.get\(|\[)"(\w+)"', inspect.getsource(settings.Settings)):
        assert f"`{variable}`" in README


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
