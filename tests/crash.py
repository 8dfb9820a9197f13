"""Run a real command, record its steps, and kill it with SIGKILL at a named point.

    CRASH="after write 3" python -m tests.crash user-123
    CRASH="after write 4" python -m tests.crash -m operations backfill FILE

The program has no switch for a crash. This one wraps what the program calls, and reads from the environment:

- `CRASH`: where to kill it, one of `POINTS` (a backfill: one of `BATCH_POINTS`), such as `after write 3` (step 3 is written, but its result is not saved)
- `STEPS_FILE`: a file that gets a line for each step that runs, when its result is about to be saved
- `GUID`: the guids that the process generates, in place of new ones, separated by commas
- `PAUSE`: where to wait until the test removes the file `paused` beside the steps file
- `CLOCK_DAYS`: days by which the clock is ahead
- `FILE_SIZE`: the largest size of a file in bytes, as on a full disk
- `RAISE`: where an unexpected error is raised, one of `BATCH_POINTS`
- `SINGLE_RUNS`: a backfill creates all accounts as single runs
- `FORGET`: a workflow that a worker does not know, as if it was of an older release
- `RESOLVER_HANGS`: the file that is made when a host name is looked up. The look-up never ends
- one of `SECONDS`: seconds in place of the example's
"""

from __future__ import annotations

import asyncio
import builtins
import functools
import importlib
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COMMANDS = ("check", "audit", "halted", "adopt", "backfill", "reference", "worker")

STEPS = ("1", "2", "3")
BATCH_STEPS = ("1", "2", "3", "4", "5")


def points_of(steps: tuple[str, ...]) -> list[str]:
    actions = (f"{action} {step}" for step in steps for action in ("create", "write", "save"))
    return [
        f"{when} {what}"
        for what in ("create the promise", *actions, "settle the promise")
        for when in ("before", "after")
    ]


POINTS = [*points_of(STEPS), "before print"]

#: "between": a part of the promises is created or settled. Embedded promises do this in one transaction.
BATCH_POINTS = [*points_of(BATCH_STEPS), "between write 1", "between write 5"]


def left_to_do(crash: str, steps: Sequence[str], points: Sequence[str]) -> list[str]:
    """Return the steps whose results were not recorded before the crash."""
    return [step for step in steps if points.index(crash) < points.index(f"after save {step}")]


def kill_at(point: str) -> None:
    if os.environ.get("CRASH") == point:
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("RAISE") == point:
        raise RuntimeError("unexpected")


def note(step: str) -> None:
    if path := os.environ.get("STEPS_FILE"):
        with Path(path).open("a") as file:
            file.write(f"{step}\n")


def wrap(owner: Any, name: str, point: Callable[..., str | None]) -> None:
    """Pass `before <point>` and `after <point>` around the coroutine function `owner.name`."""
    real = getattr(owner, name)

    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        where = point(*args, **kwargs)
        if where is None:
            return await real(*args, **kwargs)
        kill_at(f"before {where}")
        await pause_at(f"before {where}")
        if where.startswith("save"):
            note(where.removeprefix("save "))
        result = await real(*args, **kwargs)
        kill_at(f"after {where}")
        await pause_at(f"after {where}")
        return result

    setattr(owner, name, wrapped)


def wrap_call(owner: Any, name: str, what: str) -> None:
    """Pass `before <what>` and `after <what>` around the function `owner.name`."""
    real = getattr(owner, name)

    @functools.wraps(real)
    def wrapped(*args: Any) -> Any:
        kill_at(f"before {what}")
        result = real(*args)
        kill_at(f"after {what}")
        return result

    setattr(owner, name, wrapped)


async def pause_at(point: str) -> None:
    """Wait at the point, once, until the test removes the file. Meanwhile the test changes the stores."""
    if os.environ.get("PAUSE") == point:
        del os.environ["PAUSE"]
        file = Path(os.environ["STEPS_FILE"]).with_name("paused")
        file.touch()
        while file.exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


#: Constants: LEASE: until the lease of a dead process expires. PATIENCE, FIRST_ANSWER: without an answer, until the run
#: gives up. REFRESH: between two requests for a missing result. SILENCE, RELEASE: of a worker.
SECONDS: dict[str, tuple[str, str, Callable[[float], Any]]] = {
    "LEASE": ("clients.promises.server", "LEASE", lambda seconds: timedelta(seconds=seconds)),
    "REFRESH": ("clients.promises.server", "REFRESH_INTERVAL_S", int),
    "SILENCE": ("clients.promises.server", "SILENCE_TIMEOUT_S", float),
    "RELEASE": ("clients.promises.server", "RELEASE_TIMEOUT_S", float),
    "FIRST_ANSWER": ("clients.limits", "FIRST_ANSWER_TIMEOUT_S", float),
    "PATIENCE": ("clients.limits", "ANSWER_TIMEOUT_S", float),
}


def set_limits() -> None:
    """Set the limits that the environment names."""
    for variable, (module, constant, kind) in SECONDS.items():
        if seconds := os.environ.get(variable):
            setattr(importlib.import_module(module), constant, kind(float(seconds)))
    if size := os.environ.get("FILE_SIZE"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))
    if path := os.environ.get("RESOLVER_HANGS"):

        def hang(*_: Any, **__: Any) -> Any:
            Path(path).touch()
            threading.Event().wait()

        socket.getaddrinfo = hang


def prepare(points: list[str]) -> None:
    """Set the clock, and then the limits; generate the guids that the environment names, and then new ones."""
    for variable in ("CRASH", "PAUSE"):
        if os.environ.get(variable, "") not in ("", *points):
            sys.exit(f"{variable} must be one of: {', '.join(points)}")
    ahead_ns, real_time_ns = int(os.environ.get("CLOCK_DAYS", "0")) * 86_400 * 10**9, time.time_ns
    time.time_ns = lambda: real_time_ns() + ahead_ns

    import tigerbeetle as tb

    set_limits()
    real_id, planned = tb.id, iter(os.environ.get("GUID", "").split(","))
    tb.id = lambda: int(next(planned, "") or real_id())


def watch() -> None:
    """Wrap the functions that the example calls. The environment says how."""
    prepare(POINTS)

    import tigerbeetle as tb

    from clients.stores.system_of_record import SystemOfRecord
    from clients.stores.system_of_reference import SystemOfReference
    from operations.adopt import ExistingAccounts

    wrap_call(tb, "id", "write 1")
    wrap(SystemOfReference, "stage", lambda *_: "write 2")
    wrap(SystemOfRecord, "create", lambda *_: "write 3")
    wrap(ExistingAccounts, "create", lambda *_: "write 3")

    watch_promises(batches=False)

    real_print = builtins.print

    def last_print(*args: Any, **kwargs: Any) -> None:
        if kwargs.get("file") is None:
            kill_at("before print")
        real_print(*args, **kwargs)

    builtins.print = last_print


def watch_promises(*, batches: bool) -> None:
    """Pass the points of the batches' workflows, or those of all others."""
    from resonate.send import Sender

    def point(id_: str, action: str) -> str | None:
        if id_.startswith("create-accounts-") != batches:
            return None
        return f"{action} {id_.partition(':')[2] or 'the promise'}"

    wrap(Sender, "task_create_or_conflict", lambda *args: point(args[3].id, "create"))
    wrap(Sender, "task_fence_create", lambda *args: point(args[3].id, "create"))
    wrap(Sender, "task_fence_settle", lambda *args: point(args[3].id, "save"))
    wrap(Sender, "task_fulfill", lambda *args: point(args[1], "settle"))


async def no_batch(uuids: list[str], *_: Any) -> tuple[bool, list[str | None]]:
    """Create no batch, as `create_batch` does if a batch failed. Then a backfill creates single runs."""
    return False, [None] * len(uuids)


def watch_batch() -> None:
    """Wrap the functions that the steps of a batch call. The environment says how."""
    prepare(BATCH_POINTS)

    from clients.promises.claims import Claims
    from clients.promises.server import Requests
    from clients.stores.system_of_record import SystemOfRecord
    from clients.stores.system_of_reference import SystemOfReference
    from operations import backfill
    from operations import batch as create_accounts

    wrap_call(create_accounts, "generate_guids", "write 2")
    if os.environ.get("SINGLE_RUNS"):
        setattr(backfill, "create_batch", no_batch)  # noqa: B010
    wrap(Claims, "create", lambda *_: "write 1")
    wrap(SystemOfReference, "stage_many", lambda *_: "write 3")
    wrap(SystemOfRecord, "create_many", lambda *_: "write 4")
    wrap(Claims, "settle", lambda *_: "write 5")
    watch_promises(batches=True)

    real_ask = Requests._ask
    sent: Counter[str] = Counter()

    async def ask(self: Requests, kind: str, **data: Any) -> Any:
        reply = await real_ask(self, kind, **data)
        sent[kind] += 1
        if sent[kind] == 2:
            kill_at("between write 5" if kind == "promise.settle" else "between write 1")
        return reply

    Requests._ask = ask  # type: ignore[method-assign]


def forget(workflow: str) -> None:
    from resonate.registry import Registry

    get = Registry.get
    Registry.get = lambda *asked: None if asked[1] == workflow else get(*asked)  # type: ignore[method-assign]


def main(arguments: Sequence[str]) -> None:
    """Run `create_account.py` with these arguments, or `-m operations` and an operator's command."""
    from clients.command import console

    operations = list(arguments[:2]) == ["-m", "operations"]
    command = arguments[2] if operations and len(arguments) > 2 else ""
    if command == "worker":
        set_limits()
        forget(os.environ.get("FORGET", ""))
    elif command == "backfill":
        watch_batch()
    else:
        watch()
    sys.argv = ["python -m operations", *arguments[2:]] if operations else ["create_account.py", *arguments]
    console.main("operations.commands" if operations else "operations.create")


if __name__ == "__main__":
    main(sys.argv[1:])
