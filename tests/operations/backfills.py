"""Run backfills, also such as are killed or held at a point of a batch, and read the promises that they leave."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from resonate.types import Value

from clients.promises.reading import Promise, read_promise
from clients.settings import Settings
from operations.opening import connect

from ..conftest import HANG_S, World
from ..processes import Process
from .commands import connected


@dataclass
class Done:
    status: int
    shown: list[str]
    """Lines of stdout: uuid, tab, guid."""
    err: str

    @property
    def accounts(self) -> dict[str, str]:
        return dict(line.split("\t") for line in self.shown)

    def counts(self) -> dict[str, int]:
        summary = self.err.splitlines()[-1]
        assert re.search(r"; [\d,]+ accounts/s$", summary)
        return {name: int(count) for name, count in re.findall(r"(\w+) (\d+)(?=[,;])", summary)}


@contextmanager
def backfill(
    world: World,
    *arguments: str,
    stdin: int = subprocess.PIPE,
    stdout: int = subprocess.PIPE,
    stderr: int | None = None,
    **env: str,
) -> Iterator[Process]:
    streams = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
    process = world.process("-m", "operations", "backfill", *arguments, env={"LEASE": "2"} | env, **streams)
    try:
        yield process
    finally:
        process.kill()


def run(world: World, *lines: str | bytes, end: bytes = b"\n", arguments: Sequence[str] = (), **env: Any) -> Done:
    """Run backfill to its end with these lines on stdin."""
    content = b"".join((line if isinstance(line, bytes) else line.encode()) + end for line in lines)
    with backfill(world, *arguments, **env) as process:
        return done(process, *process.communicate(content, timeout=HANG_S))


def killed(world: World, uuids: list[str], crash: str, **env: Any) -> None:
    """Run backfill until it is killed at the point, one of `BATCH_POINTS`."""
    many = run(world, *uuids, CRASH=crash, **env)
    assert (many.status, many.shown) == (-signal.SIGKILL, []), many.err


def promise_of(world: World, id_: str) -> Promise | None:
    """Return the durable promise; None if it is not found."""

    async def read() -> Promise | None:
        async with connect(Settings.read(world.env), read_only=True) as clients:
            return await read_promise(clients.resonate, id_)

    return asyncio.run(read())


def state_of(world: World, id_: str) -> str:
    promise = promise_of(world, id_)
    return "not found" if promise is None else promise.state


def cancel(world: World, id_: str) -> None:
    """Cancel a promise, as an operator does."""
    connected(world, lambda resonate, _: resonate.promises.cancel(id_, Value(data=None)))


def done(process: Process, out: str, err: str) -> Done:
    assert "Traceback" not in err, err
    return Done(process.wait(), out.split("\n")[:-1], err)
