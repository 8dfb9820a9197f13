"""The rules of the layout: what each part imports, and what the environment must not change."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from .conftest import ROOT, World, completed

#: What each part may import from this project. A folder's own modules are always allowed. The order is the order of
#: the floors: a part stands above all that it may import.
ALLOWED = {
    "clients/errors.py": set(),
    "clients/limits.py": set(),
    "clients/account.py": set(),
    "clients/outages.py": {"clients/errors.py", "clients/limits.py"},
    "clients/command": {"clients/errors.py"},
    "clients/settings.py": {"clients/errors.py"},
    "clients/stores": {"clients/account.py", "clients/errors.py", "clients/limits.py", "clients/outages.py"},
    "clients/panic.py": {"clients/account.py", "clients/errors.py", "clients/stores"},
    "create_account.py": {"clients/account.py", "clients/panic.py", "clients/stores"},
    "clients/preconnect.py": {"clients/errors.py", "clients/stores", "clients/settings.py"},
    "clients/promises": {
        "clients/account.py", "clients/command", "clients/errors.py", "clients/limits.py", "clients/outages.py",
        "clients/panic.py", "clients/stores",
    },
    "operations": {"clients", "create_account.py"},
}  # fmt: skip

#: The command is started from the example's `__main__` block, which does not return. It is no import of the example.
STARTED = {"create_account.py": {"clients.command.console", "operations.create", "clients.preconnect"}}


def sources(part: str) -> list[Path]:
    path = ROOT / part
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


MODULES = {
    str(path.relative_to(ROOT)).removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
    for part in ("create_account.py", "clients", "operations", "tests")
    for path in sources(part)
}


def imported(path: Path) -> set[Path]:
    """Return this project's files that a file imports, also late, for type checking, or by a name in a string."""
    text = path.read_text()
    package = ".".join(path.relative_to(ROOT).parent.parts)
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import():
                names |= {alias.name for alias in node.names}
            case ast.ImportFrom():
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                module = ".".join([*above, *filter(None, [node.module])])
                names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
            case ast.Constant(value=str(name)):
                names.add(name)
    names -= STARTED.get(str(path.relative_to(ROOT)), set())
    return {MODULES[name] for name in names if name in MODULES} - {path}


def is_in(path: Path, part: str) -> bool:
    return path == ROOT / part or ROOT / part in path.parents


def test_each_part_imports_only_what_it_may() -> None:
    for part, allowed in ALLOWED.items():
        assert sources(part)
        for path in sources(part):
            for other in imported(path):
                package = other.name == "__init__.py" and not other.read_text().count("import")
                assert package or any(is_in(other, room) for room in {part} | allowed), f"{path} imports {other}"


def test_each_part_of_the_program_has_a_rule() -> None:
    for path in MODULES.values():
        if path.name != "__init__.py" and not is_in(path, "tests"):
            assert any(is_in(path, part) for part in ALLOWED), path


def test_no_import_circle() -> None:
    graph = {path: imported(path) for path in MODULES.values() if not is_in(path, "tests")}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_no_file_edits_the_module_search_path() -> None:
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            is_path = isinstance(node, ast.Attribute) and node.attr == "path"
            assert not (is_path and ast.unparse(node) == "sys.path"), path


def run(world: World, cwd: Path, *command: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return completed([sys.executable, *command], env=world.environ() | env, cwd=cwd)


def test_foreign_modules_on_pythonpath_change_nothing(embedded_world: World, tmp_path: Path) -> None:
    for name in ("settings", "console", "server", "stores"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a foreign module was imported')")
    env = {"PYTHONPATH": str(tmp_path)}
    assert run(embedded_world, tmp_path, ROOT / "create_account.py", "u", **env).returncode == 0
    assert run(embedded_world, ROOT, "-m", "operations", "check", "u", **env).returncode == 0


@pytest.mark.parametrize("cwd", ["here", "elsewhere"])
def test_the_default_data_directory_does_not_depend_on_the_working_directory(
    embedded_world: World, tmp_path: Path, cwd: str
) -> None:
    program = "from clients.settings import Settings; print(Settings.read({}).data_dir)"
    done = run(embedded_world, ROOT if cwd == "here" else tmp_path, "-c", program)
    assert done.stdout.strip() == str(ROOT / "data" / "embedded")
