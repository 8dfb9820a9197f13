"""The documents are true: README's commands run as written and print what is shown, and every link resolves."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import shutil
import sys
import textwrap
from pathlib import Path

import pytest

import create_account
from clients import settings

from . import conftest
from .conftest import ROOT, ServerWorld, completed

README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(kind: str, document: str = README) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", document, re.DOTALL | re.MULTILINE)


def commands_of(kind: str) -> str:
    return "".join(block for document in (README, OPERATIONS) for block in blocks(f"sh {kind}", document))


def runnable(commands: str) -> str:
    """Return the commands without uv, which would install an environment. The tests' own is the same."""
    return commands.replace("uv run python ", "python ").replace("uv run ", f"python {ROOT}/")


def environ() -> dict[str, str]:
    return conftest.environ() | {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def comparable(text: str) -> str:
    """Return what README shows: guids differ, and two lines of the terminal are left out."""
    lines = [line for line in text.splitlines() if not line.startswith("embedded mode") and "Killed" not in line]
    return re.sub(r"\d{30,}", "<guid>", "\n".join(lines))


@pytest.mark.parametrize("block", blocks("console"))
def test_the_commands_print_what_is_shown(tmp_path: Path, block: str) -> None:
    """A line that begins with `$` is a command. Its output follows."""
    commands = [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]
    script = "".join(f"echo {shlex.quote('$ ' + command)}\n{runnable(command)}\n" for command in commands)
    env = environ() | {"DATA_DIR": str(tmp_path / "data")}
    done = completed(["bash", "-c", f"exec 2>&1\n{script}exit"], env=env, cwd=tmp_path)
    assert comparable(done.stdout) == comparable(block)


def test_the_application_prints_what_is_shown(tmp_path: Path) -> None:
    [(program, output)] = re.findall(r"```python application\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL)
    done = completed([sys.executable, "-c", program], env=environ() | {"DATA_DIR": str(tmp_path)})
    assert done.stdout == output, done.stderr


def test_the_listed_files_are_those_that_the_example_imports() -> None:
    """Nothing of the SDK that is not public, no command, no batch: at most 12 files and 1,300 lines."""
    program = (
        "import create_account, sys; print(*(m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)))"
    )
    done = completed([sys.executable, "-c", program], env=environ(), cwd=ROOT)
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


def test_the_listed_files_are_enough_for_an_own_resonate_object(server_world: ServerWorld, tmp_path: Path) -> None:
    server_world.lose_ledger()  # another test has created the account
    [listed], [program] = blocks("text files"), blocks("python own-resonate")
    for file in listed.split():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    guids = []
    for _ in range(2):  # the second one returns the saved result
        env = environ() | server_world.env | {"PYTHONPATH": ""}
        done = completed([sys.executable, "-c", program], cwd=tmp_path, env=env)
        assert (done.returncode, done.stderr) == (0, "")
        guids += done.stdout.split()
    assert [*server_world.accounts("user-123"), *server_world.rows("user-123")] == guids


@pytest.mark.deep
def test_the_commands_without_uv_install_the_packages_and_create_an_account(tmp_path: Path) -> None:
    for file in ("create_account.py", "requirements.txt", "clients", "operations"):
        (shutil.copytree if (ROOT / file).is_dir() else shutil.copy)(ROOT / file, tmp_path / file)
    python = {"PATH": f"{sys.base_prefix}/bin:{os.environ['PATH']}"}  # not the Python of the tests' environment
    done = completed(["bash", "-euc", commands_of("venv")], cwd=tmp_path, env=environ() | python)
    assert done.stdout.startswith("UUID: user-123\nGUID: "), done.stderr


def test_the_commands_for_the_servers_create_their_accounts(server_world: ServerWorld) -> None:
    """tests/test_containers.py runs them as they are. Here the servers are those on PATH, and no container runs."""
    server_world.lose_ledger()  # another test has created the accounts
    commands, url = commands_of("servers") + commands_of("worker"), server_world.env["RESONATE_URL"]
    for written, here in {
        "docker compose up -d --wait\n": "",
        "docker compose down\n": "",
        "127.0.0.1:3000": server_world.env["TB_ADDRESS"],
        "http://127.0.0.1:8001": url,
        "docker compose exec resonate resonate-server invoke": f"resonate invoke -S {url}",
        "docker compose exec resonate resonate-server tree": f"resonate tree -S {url}",
    }.items():
        assert written in commands
        commands = commands.replace(written, here)
    env = environ() | {"DATA_DIR": server_world.env["DATA_DIR"]}
    done = completed(["bash", "-euc", f"{runnable(commands)}\nwait"], env=env, cwd=server_world.directory)
    assert done.returncode == 0, done.stderr
    for uuid in ("user-7", "user-789"):
        [guid] = server_world.accounts(uuid)
        assert server_world.rows(uuid) == [guid]
        assert f"UUID: {uuid}\nGUID: {guid}\n" in done.stdout
    assert "create-account-user-7:3" in done.stdout


@pytest.mark.deep
def test_the_benchmark_measures_all_contenders() -> None:
    command = [sys.executable, "-m", "tests.benchmark", "--count", "70", "--rounds", "1"]
    no_server = conftest.environ() | {"PATH": str(Path(sys.executable).parent)}
    done = completed(command, cwd=ROOT, env=no_server)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines() if "no server |" in line]
    contenders = [(contender, in_flight) for _, _, contender, _, in_flight, *_ in rows]
    assert contenders == [("raw", "1"), ("durable", "1"), ("raw", "64"), ("durable", "64"), ("batch", "64")]
    assert all(int(accounts_per_s.replace(",", "")) > 0 for *_, accounts_per_s, _, _ in rows)


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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_each_relative_link_resolves(document: Path) -> None:
    for link in re.findall(r"\]\((?!\w+:)([^)]+)\)", prose(document)):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_each_command_that_the_documents_name_exists() -> None:
    documents = "".join(document.read_text() for document in DOCUMENTS)
    for command in set(re.findall(r"python -m operations ([a-z]+)", documents)):
        done = completed([sys.executable, "-m", "operations", command, "--help"], cwd=ROOT)
        assert done.returncode == 0, done.stderr
