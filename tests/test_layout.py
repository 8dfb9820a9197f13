"""The rules of the layout: which package imports which, and what the environment must not change."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, World

#: The one import against the direction, inside a function: a single run that meets a claimed account needs the batch.
EXCEPTIONS = {"create_account.py": {"operations.create_accounts"}}

#: What each part may import from this project.
ALLOWED = {
    "create_account.py": {"clients"},
    "clients": {"clients"},
    "operations": {"clients", "create_account"},
}
OURS = {"create_account", "clients", "operations", "tests", "benchmarks"}


def sources(part: str) -> list[Path]:
    path = ROOT / part
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Return the names of all absolutely imported modules, also of imports inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_run_in_one_direction(part: str) -> None:
    assert sources(part)
    for path in sources(part):
        names = imported(path) - EXCEPTIONS.get(part, set())
        assert {name.partition(".")[0] for name in names} & OURS <= ALLOWED[part], path


def test_each_exception_is_needed() -> None:
    for part, names in EXCEPTIONS.items():
        assert names <= imported(ROOT / part)


def test_no_file_edits_the_module_search_path() -> None:
    for part in (*ALLOWED, "benchmarks", "tests"):
        for path in sources(part):
            for node in ast.walk(ast.parse(path.read_text())):
                is_path = isinstance(node, ast.Attribute) and node.attr == "path"
                assert not (is_path and ast.unparse(node) == "sys.path"), path


def create(world: World, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "create_account.py", "u"],
        env=world.environ() | env,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_foreign_modules_on_pythonpath_change_nothing(tmp_path: Path) -> None:
    for name in ("settings", "console", "server", "stores"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a foreign module was imported')")
    world = World(tmp_path, {"DATA_DIR": str(tmp_path / "data")})
    assert create(world, tmp_path, PYTHONPATH=str(tmp_path)).returncode == 0
    check = [sys.executable, "-m", "operations", "check", "u"]
    env = world.environ() | {"PYTHONPATH": str(tmp_path)}
    assert subprocess.run(check, env=env, cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_the_default_data_directory_does_not_depend_on_the_working_directory(tmp_path: Path) -> None:
    program = "import os; from clients.settings import Settings; print(Settings.read({}).data_dir)"
    for cwd in (tmp_path, ROOT):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=World(tmp_path).environ(),
            cwd=cwd,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == str(ROOT / "data" / "embedded")


def test_an_installed_copy_requires_a_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clients import console, settings  # noqa: PLC0415

    monkeypatch.setattr(settings, "CHECKOUT", tmp_path)
    with pytest.raises(console.Unavailable, match="set DATA_DIR"):
        settings.Settings.read({})
    assert settings.Settings.read({"DATA_DIR": "x"}).data_dir.is_absolute()
