"""Run the real command in its own process, record its steps, and kill it with SIGKILL at a named point.

    CRASH="after effect 3" python -m tests.child user-123

`create_account.py` has no switch for a crash. This program wraps what it calls, and reads from the
environment:

- `CRASH`: where to kill it, one of `POINTS`, such as `after effect 3` (step 3 is written but not recorded)
- `WITNESS`: a file that gets a line for each step that runs, when its result is about to be recorded
- `GUID`: the guid that step 1 generates, in place of a new one
- `HOLD`: where to wait until the test removes the file `held` beside the witness
- `CLOCK_DAYS`: days by which the clock is ahead
- `LEASE`: seconds until the lease of a dead process expires, in place of the example's 10
- `FILE_SIZE`: the largest size of a file in bytes, as on a full disk
- `PATIENCE`: seconds without an answer after which the run gives up, in place of the example's 30
- `FIRST_ANSWER`: the same for the first answer, in place of the example's 5
- `REFRESH`: seconds between two requests for a missing result, in place of the example's 5
"""

from __future__ import annotations

import asyncio
import builtins
import os
import resource
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = ("1", "2", "3")
POINTS = [
    f"{when} {what}"
    for what in (
        "create the promise",
        *(f"{action} {step}" for step in STEPS for action in ("create", "effect", "record")),
        "settle the promise",
    )
    for when in ("before", "after")
] + ["before print"]


def kill_at(point: str) -> None:
    if os.environ.get("CRASH") == point:
        os.kill(os.getpid(), signal.SIGKILL)


def witness(step: str) -> None:
    if path := os.environ.get("WITNESS"):
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
        await hold_at(f"before {where}")
        if where.startswith("record"):
            witness(where.removeprefix("record "))
        result = await real(*args, **kwargs)
        kill_at(f"after {where}")
        await hold_at(f"after {where}")
        return result

    setattr(owner, name, wrapped)


async def hold_at(point: str) -> None:
    """Wait at the point, once, until the test removes the file. Meanwhile the test changes the stores."""
    if os.environ.get("HOLD") == point:
        del os.environ["HOLD"]
        file = Path(os.environ["WITNESS"]).with_name("held")
        file.touch()
        while file.exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def set_limits() -> None:
    """Set the limits that the environment names."""
    from clients import outages, resonate_server

    if lease := os.environ.get("LEASE"):
        resonate_server.LEASE = timedelta(seconds=float(lease))
    if refresh := os.environ.get("REFRESH"):
        resonate_server.REFRESH_INTERVAL_S = int(refresh)
    if first_answer := os.environ.get("FIRST_ANSWER"):
        outages.FIRST_ANSWER_TIMEOUT_S = float(first_answer)
    if patience := os.environ.get("PATIENCE"):
        outages.ANSWER_TIMEOUT_S = float(patience)
    if size := os.environ.get("FILE_SIZE"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))


def watch() -> None:
    """Wrap the functions that the example calls. The environment says how."""
    days = int(os.environ.get("CLOCK_DAYS", "0"))
    real_time_ns = time.time_ns
    time.time_ns = lambda: real_time_ns() + days * 86_400 * 10**9

    import tigerbeetle as tb
    from resonate.send import Sender

    from clients.system_of_record import SystemOfRecord
    from clients.system_of_reference import SystemOfReference

    set_limits()
    for variable in ("CRASH", "HOLD"):
        if os.environ.get(variable, "") not in ("", *POINTS):
            sys.exit(f"{variable} must be one of: {', '.join(POINTS)}")

    real_id = tb.id

    def generate() -> int:
        kill_at("before effect 1")
        guid = int(os.environ.get("GUID") or real_id())
        kill_at("after effect 1")
        return guid

    tb.id = generate
    wrap(SystemOfReference, "stage", lambda *_: "effect 2")
    wrap(SystemOfRecord, "create", lambda *_: "effect 3")

    def step_of(promise_id: str) -> str:
        return promise_id.rpartition(":")[2]

    wrap(Sender, "task_create_or_conflict", lambda *_: "create the promise")
    wrap(Sender, "task_fence_create", lambda *args: f"create {step_of(args[3].id)}")
    wrap(Sender, "task_fence_settle", lambda *args: f"record {step_of(args[3].id)}")
    wrap(Sender, "task_fulfill", lambda *_: "settle the promise")

    real_print = builtins.print

    def last_print(*args: Any, **kwargs: Any) -> None:
        if kwargs.get("file") is None:
            kill_at("before print")
        real_print(*args, **kwargs)

    builtins.print = last_print


if __name__ == "__main__":
    watch()
    from clients import console

    sys.argv[0] = "create_account.py"
    console.main("create_account")
