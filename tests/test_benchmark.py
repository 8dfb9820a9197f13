"""The benchmark runs, and prints a figure for each contender."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clients.settings import VARIABLES

from .conftest import ROOT


@pytest.mark.deep
def test_benchmark_measures_all_contenders() -> None:
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmark", "--count", "70", "--rounds", "1"],
        cwd=ROOT,
        env=clean | {"PATH": str(Path(sys.executable).parent)},  # no server
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines() if "no server |" in line]
    contenders = [(contender, in_flight) for _, _, contender, _, in_flight, *_ in rows]
    single = ("raw", "durable")
    assert contenders == [*((name, n) for n in ("1", "64") for name in single), ("batch", "64")]
    assert all(int(accounts_per_s.replace(",", "")) > 0 for *_, accounts_per_s, _, _ in rows)
