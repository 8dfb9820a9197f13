"""The embedded promises, for testing only: the SDK's in-process engine, made durable in an SQLite file.

One process at a time may use them. A Resonate server replaces them: set RESONATE_URL.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from typing import TYPE_CHECKING, Any

import msgspec
from resonate.connections import LocalConnection
from resonate.connections.local import (
    DurablePromise,
    PTimeout,
    ServerState,
    Task,
    TTimeout,
    extract_action_data,
    unwrap_request_envelope,
    wrap_response_envelope,
)
from resonate.error import ConnectorError, ResonateError, ServerError
from resonate.timing import now_ms
from resonate_base import ORIGIN_HEADER

from clients import limits
from clients.errors import Closed, Unavailable
from clients.outages import repeat
from clients.promises import cannot_run
from clients.stores.read_only import ReadOnlyFile
from clients.stores.sqlite_file import LOCK_RETRY_S, Database, cannot_open, check_identity, create_private, identity

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from clients.outages import Outages
    from clients.promises.server import Lease


class _Snapshot(msgspec.Struct):
    promises: dict[str, DurablePromise]
    tasks: dict[str, Task]
    p_timeouts: list[PTimeout]
    t_timeouts: list[TTimeout]


def _loaded(name: str, saved: bytes | str) -> _Snapshot:
    """Return what is in the file. A row that this program has not saved becomes a promise that no run can execute."""
    try:
        return msgspec.json.decode(saved, type=_Snapshot)
    except msgspec.MsgspecError:
        unreadable = DurablePromise(
            id=name, state="pending", param={}, value={}, tags={"resonate:target": ""}, timeout_at=2**53,
            created_at=0, settled_at=None, awaiters=set(), subscribers=set(),
        )  # fmt: skip
        return _Snapshot({name: unreadable}, {}, [], [])


class _StoredWorkflow:
    """One workflow: its promise and the promises of its steps."""

    def __init__(self, name: str, saved: bytes | str | None, now: int) -> None:
        self.name = name
        self.state = ServerState()
        self.users = 0
        if saved is not None:
            vars(self.state).update(msgspec.structs.asdict(_loaded(name, saved)))
        # What is in the file. Reading writes nothing: neither an unknown promise nor one that cannot be read.
        self.saved = self.snapshot()
        # This process has the file's lock. So no other living process has a lease.
        for task in self.state.tasks.values():
            if task.state == "acquired":
                self.state.task_release(now, None, {"id": task.id})
        self.state.outgoing.clear()

    def snapshot(self) -> str:
        state = self.state
        snapshot = _Snapshot(state.promises, state.tasks, state.p_timeouts, state.t_timeouts)
        return msgspec.json.encode(snapshot).decode()

    @property
    def idle(self) -> bool:
        """Whether nothing happens to the promises without a request, and nobody waits for them."""
        tasks, promises = self.state.tasks.values(), self.state.promises.values()
        return all(task.state == "fulfilled" for task in tasks) and not any(one.subscribers for one in promises)


class EmbeddedPromises(LocalConnection):
    """The SDK's `LocalConnection`, made durable: state is on disk before the response is returned.

    Two kinds of changes are not written immediately: "step started" and "listener registered". They are written with the
    next result, because a rerun repeats them.

    A top-level promise and its steps are one row, which is in memory only while it is in use.
    """

    SCHEMA = "CREATE TABLE IF NOT EXISTS origins (origin TEXT PRIMARY KEY, state TEXT NOT NULL)"

    def __init__(self, directory: Path, group: str, outages: Outages) -> None:
        super().__init__(group=group)
        self._database = Database(directory / "promises.db", self.SCHEMA)
        self._lock_path = self._database.path.with_suffix(".lock")
        self._outages = outages
        self.stopping = False
        #: The workflows in memory, each in the result of the task that has read it, or still reads it.
        self._reading: dict[str, asyncio.Task[dict[str, _StoredWorkflow]]] = {}
        self.unexecutable: dict[str, ResonateError] = {}

    async def open(self) -> None:
        self._lock_fd = await _lock(self._lock_path)
        await self._database.open()

    async def stop(self) -> None:
        self.stopping = self._database.fail_if_locked = True
        await super().stop()

    async def close(self) -> None:
        await self._database.close()
        if hasattr(self, "_lock_fd"):
            os.close(self._lock_fd)

    @property
    def busy(self) -> bool:
        """Whether a workflow runs in this process."""
        done = [(name, task) for name, task in self._reading.items() if task.done()]
        read = [task.result()[name] for name, task in done if not (task.cancelled() or task.exception())]
        return any(task.state == "acquired" for origin in read for task in origin.state.tasks.values())

    async def lease(self, _: str) -> Lease:
        """Return who holds the lease of a workflow's task: no other process can."""
        return "ours"

    async def send(self, req: str, headers: dict[str, str] | None = None) -> str:
        """Apply the request and return the response after the new state is on disk."""
        request = unwrap_request_envelope(msgspec.json.decode(req))
        if request["kind"].startswith("schedule."):
            raise ServerError(501, "embedded promises have no schedules; start a Resonate server")
        if request["kind"] == "task.release" and (cause := cannot_run.cause_of_release()):
            self.unexecutable[request["id"]] = cause
            raise ConnectorError(cause)  # not released: the engine would offer it again at once, in a loop
        name = (headers or {})[ORIGIN_HEADER]
        async with self._entered([name]) as [origin]:
            response = _refusal(origin.state, request) or origin.state.apply(self._clock(), request)
            if request["kind"] == "task.fence":
                # The SDK already knows the task's other steps: it ran them, or got them at the start.
                response["preload"] = []
            if origin.state.outgoing or not _is_repeatable(request, response):
                await self._save([origin])
        return msgspec.json.encode(wrap_response_envelope(response)).decode()

    async def apply_many(self, requests: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
        """Apply requests for different top-level promises, and return the promises. None: not found.

        One transaction reads them all, and one writes them. Raises ConnectorError if this process ends.
        """
        async with self._entered([request["id"] for request in requests]) as origins:
            now = self._clock()
            responses = [origin.state.apply(now, request) for origin, request in zip(origins, requests, strict=True)]
            await self._save(origins)
        return [response.get("promise") for response in responses]

    async def _tick_loop(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                for name in list(self._reading):
                    with contextlib.suppress(ConnectorError):
                        async with self._entered([name]) as [origin]:
                            origin.state.tick(self._clock())
                            if origin.state.outgoing:
                                await self._save([origin])
                await self._sleeper(self._tick_interval)

    @contextlib.asynccontextmanager
    async def _entered(self, names: list[str]) -> AsyncIterator[list[_StoredWorkflow]]:
        """Hold the origins in memory during the block. Those that are not in memory are read in one transaction."""
        self._begin_to_read(names)
        entered: list[_StoredWorkflow] = []
        try:
            for name in names:
                entered += [await self._enter(name)]
            yield entered
        finally:
            for origin in entered:
                origin.users -= 1
                if origin.users == 0 and origin.idle:
                    self._reading.pop(origin.name, None)

    async def _enter(self, name: str) -> _StoredWorkflow:
        while True:
            self._begin_to_read([name])
            task = self._reading[name]
            origins = await asyncio.shield(task)  # if this request is cancelled, others still get them
            if self._reading.get(name) is task:
                origins[name].users += 1
                return origins[name]
            # It was released while this request waited. Two copies would overwrite each other.

    def _begin_to_read(self, names: list[str]) -> None:
        if missing := [name for name in names if name not in self._reading]:
            task = asyncio.create_task(self._read(missing))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # perhaps nobody waits any more
            self._reading |= dict.fromkeys(missing, task)

    async def _read(self, names: list[str]) -> dict[str, _StoredWorkflow]:
        select = "SELECT state FROM origins WHERE origin = ?"
        rows = await self._transact(lambda db: [db.execute(select, (name,)).fetchone() for name in names], writes=False)
        now = self._clock()
        return {name: _StoredWorkflow(name, row and row[0], now) for name, row in zip(names, rows, strict=True)}

    async def _save(self, origins: list[_StoredWorkflow]) -> None:
        """Write the changed origins in one transaction, and then send the messages that follow from the changes."""
        changed = [(origin, snapshot) for origin in origins if (snapshot := origin.snapshot()) != origin.saved]
        outgoing = [message for origin in origins for message in origin.state.outgoing]
        for origin in origins:
            origin.state.outgoing = []
        if changed:
            rows = [(origin.name, snapshot) for origin, snapshot in changed]
            await self._transact(lambda db: db.executemany("INSERT OR REPLACE INTO origins VALUES (?, ?)", rows))
            for origin, snapshot in changed:
                origin.saved = snapshot
        self._dispatch_messages(outgoing)

    async def _transact[T](self, work: Callable[[sqlite3.Connection], T], *, writes: bool = True) -> T:
        """Return the result of the work, and wait during an outage. Raises ConnectorError if this process ends."""

        async def attempt() -> T:
            try:
                if writes:
                    check_identity(self._lock_path, identity(self._lock_fd))  # else another process may use them, too
                return await self._database.transact(work, writes=writes)
            except Unavailable as outage:
                raise Closed(str(outage)) if self.stopping else outage from outage

        try:
            return await self._outages.answer(str(self._database.path), attempt)
        except Closed as closed:
            raise ConnectorError(closed) from closed


class ReadOnlyPromises:
    """Answers `promise.get` and `promise.search` from the file, without its lock, and changes nothing."""

    busy, stopping = False, False

    def __init__(self, directory: Path) -> None:
        self._database = ReadOnlyFile(directory / "promises.db", schema="")

    async def open(self) -> None:
        await self._database.open()

    async def start(self) -> None: ...
    async def stop(self) -> None: ...

    async def close(self) -> None:
        await self._database.close()

    async def send(self, req: str, headers: dict[str, str] | None = None) -> str:
        request = unwrap_request_envelope(msgspec.json.decode(req))
        if request["kind"] == "promise.search":
            response = {"kind": request["kind"], "corrId": request["corrId"], **await self._search(request)}
        else:
            name = (headers or {})[ORIGIN_HEADER]
            rows = await self._database.read("SELECT state FROM origins WHERE origin = ?", name)
            stored = _StoredWorkflow(name, rows[0][0] if rows else None, now_ms())
            response = stored.state.apply(now_ms(), request)
        return msgspec.json.encode(wrap_response_envelope(response)).decode()

    async def _search(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the next workflows' promises that have this state."""
        select = "SELECT origin, state FROM origins WHERE origin > ? ORDER BY origin LIMIT ?"
        page = await self._database.read(select, request.get("cursor", ""), request["limit"])
        promises = [_loaded(name, saved).promises.get(name) for name, saved in page]
        found = [promise.to_record() for promise in promises if promise and promise.state == request["state"]]
        return {"promises": found, "cursor": page[-1][0] if page else None}


def _refusal(state: ServerState, request: dict[str, Any]) -> dict[str, Any] | None:
    """Refuse to run a promise without a task, as the Resonate server does: docs/workarounds.md."""
    if request["kind"] != "task.create":
        return None
    id_ = extract_action_data(request["action"])["id"]
    if id_ not in state.promises or id_ in state.tasks:
        return None
    error = "Promise exists without a target task"
    return {"kind": "task.create", "corrId": request.get("corrId"), "status": 422, "error": error}


def _is_repeatable(request: dict[str, Any], response: dict[str, Any]) -> bool:
    """Return whether the request only starts a step or a wait, and the response carries no result."""
    if request["kind"] not in ("task.fence", "promise.register_listener"):
        return False
    answer = response["action"]["data"] if "action" in response else response
    promise = answer.get("promise")
    return promise is not None and promise["state"] == "pending"


async def _lock(path: Path) -> int:
    """Lock the file, so that one process at a time uses the promises. Returns the file descriptor.

    Raises `Unavailable`, naming the other process, if it does not end in time.
    """
    create_private(path)
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError as error:
        raise cannot_open(path, error) from error

    async def lock() -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    try:
        timeout_s = limits.FIRST_ANSWER_TIMEOUT_S
        await repeat(lock, lambda error: isinstance(error, BlockingIOError), timeout_s, LOCK_RETRY_S)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode()
        os.close(descriptor)
        this = " (this one)" if holder == str(os.getpid()) else ""
        raise Unavailable(
            f"{path.parent} is in use by process {holder}{this}; wait for it, or start a Resonate server "
            "(RESONATE_URL), which several processes can share"
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor
