"""Watch that only SQLite opens SQLite's files.

POSIX ends all locks of a process on a file as soon as the process closes any descriptor of this file. SQLite knows only
its own descriptors. If another process then believes that it is the last one, it removes the -wal file that is in use.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Callable

ENDS = ("", "-journal", "-wal", "-shm")


def watch(fail: Callable[[str], None], *, always: bool) -> None:
    """Call `fail` if this process opens a file of an open connection. `always`: any file whose name is such a file's.

    A file that is created, with O_EXCL, cannot have a connection yet. A hook cannot be removed.
    """
    connections: list[tuple[str, sqlite3.Connection]] = []
    local = threading.local()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "sqlite3.connect":
            local.path = arguments[0]
        elif event == "sqlite3.connect/handle":
            connections[:] = [(path, connection) for path, connection in connections if is_open(connection)]
            name = os.fsdecode(local.path)
            if name.startswith("file:"):
                name = unquote(name.removeprefix("file:").partition("?")[0])
            connections.append((os.path.realpath(name), arguments[0]))
        elif event == "open" and not isinstance(arguments[0], int) and arguments[0] is not None:
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if not path.endswith(tuple(f".db{end}" for end in ENDS)) or arguments[2] & os.O_EXCL:
                return
            if always or any(path.startswith(own) and is_open(connection) for own, connection in connections):
                fail(f"{path} was opened, but not by SQLite: all locks of this process on it may be lost")

    sys.addaudithook(hook)


def is_open(connection: sqlite3.Connection) -> bool:
    try:
        return connection.total_changes >= 0
    except sqlite3.ProgrammingError:
        return False
