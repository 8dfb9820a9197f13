"""Starts a command of this folder.

Python puts a script's own folder on the path; the example is one up. This is the one place that adds it,
and it imports next to nothing, so that `console.main` is there before what is slow to import.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from console import main

__all__ = ["main"]
