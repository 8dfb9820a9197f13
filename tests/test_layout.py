"""The rules of the layout: what each part imports, and what the environment must not change."""

from __future__ import annotations

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

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

PROGRAM = [path for path in MODULES.values() if ROOT / "tests" not in path.parents]


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


def test_each_file_has_a_rule_and_imports_only_what_it_may() -> None:
    assert all(sources(part) for part in ALLOWED)
    for path in PROGRAM:
        rules = {part: allowed for part, allowed in ALLOWED.items() if is_in(path, part)}
        assert rules or path.name == "__init__.py", path
        for other in imported(path):
            package = other.name == "__init__.py" and not other.read_text().count("import")
            assert package or any(is_in(other, room) for room in {*rules}.union(*rules.values())), (
                f"{path} imports {other}"
            )


def test_no_import_circle() -> None:
    TopologicalSorter({path: imported(path) for path in PROGRAM}).prepare()  # raises CycleError


def test_no_file_edits_the_module_search_path() -> None:
    for path in MODULES.values():
        attributes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
        assert "sys.path" not in map(ast.unparse, attributes), path


def test_foreign_modules_on_pythonpath_change_nothing(embedded_world: World, tmp_path: Path) -> None:
    for name in ("settings", "console", "server", "stores"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a foreign module was imported')")
    env = embedded_world.environ() | {"PYTHONPATH": str(tmp_path)}
    for command in ([ROOT / "create_account.py", "u"], ["-m", "operations", "check", "u"]):
        done = completed([sys.executable, *command], env=env, cwd=ROOT if command[0] == "-m" else tmp_path)
        assert done.returncode == 0, done.stderr


def test_the_default_data_directory_does_not_depend_on_the_working_directory(
    embedded_world: World, tmp_path: Path
) -> None:
    program = "from clients.settings import Settings; print(Settings.read({}).data_dir)"
    done = completed([sys.executable, "-c", program], env=embedded_world.environ(), cwd=tmp_path)
    assert done.stdout.strip() == str(ROOT / "data" / "embedded")
