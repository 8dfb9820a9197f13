"""Is each fault of docs/workarounds.md still there? The scripts of the page are the tests: see there if one fails."""

from __future__ import annotations

import contextlib
import importlib
import operator
import re
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, completed, environ, free_port, needs, resonate_server

#: Each script: the text above it, its name, and the program.
SCRIPTS = re.findall(
    r"((?:[^`\n].*\n|`[^`].*\n)+)\n```python (\S+)\n((?:(?!```).*\n)*)```\n", (ROOT / "docs/workarounds.md").read_text()
)
_, _, COMMON = SCRIPTS.pop(0)


@pytest.mark.parametrize(
    ("name", "program"),
    [
        pytest.param(name, program, id=name, marks=[pytest.mark.slow] * name.startswith("server-"))
        for _, name, program in SCRIPTS
    ],
)
def test_fault_is_still_there(request: pytest.FixtureRequest, tmp_path: Path, name: str, program: str) -> None:
    env = environ() | {"PYTHONPATH": ""}
    if name == "tigerbeetle-io-uring" and sys.platform != "linux":
        pytest.skip("only Linux has io_uring")
    with contextlib.ExitStack() as stack:
        if "RESONATE_URL" in program:
            needs("resonate")
            stack.enter_context(resonate_server(tmp_path, port := free_port()))
            env["RESONATE_URL"] = f"http://127.0.0.1:{port}"
        if "TB_ADDRESS" in program:
            env["TB_ADDRESS"] = request.getfixturevalue("tb_address")
        done = completed([sys.executable, "-c", COMMON * name.startswith("sdk-") + program], cwd=tmp_path, env=env)
    prints = re.findall(r"# prints: (.*)", program)
    assert prints
    assert done.stdout.splitlines() == prints, f"see docs/workarounds.md, {name}: {done.stderr}"


def test_each_workaround_is_where_the_page_says() -> None:
    for text, name, _ in SCRIPTS:
        places = re.findall(r"`([\w/]+)\.py`:\s`([\w.]+)`", text)
        assert places, name
        for file, place in places:
            operator.attrgetter(place)(importlib.import_module(file.replace("/", ".")))
