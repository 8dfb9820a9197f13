"""The embedded promises, for testing only: the SDK's in-process engine, made durable in an SQLite file.

One process at a time may use them. A Resonate server replaces them: set RESONATE_URL. What works around a fault of the
engine: docs/workarounds.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from typing import TYPE_CHECKING, Any, Self

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
from resonate.timing import Clock, now_ms
from resonate_base import ORIGIN_HEADER

from clients import limits
from clients.errors import Closed, Unavailable
from clients.outages import repeat
from clients.promises import cannot_run
from clients.stores.read_only import ReadOnlyFile
from clients.stores.sqlite_file import Database, cannot_open, check_identity, create_private, identity

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from clients.outages import Outages
    from clients.promises.server import Lease

#: Seconds between two attempts to lock the promises of a process that may be about to end.
LOCK_RETRY_S = 0.05


class _Snapshot(msgspec.Struct):
    promises: dict[str, DurablePromise]
    tasks: dict[str, Task]
    p_timeouts: list[PTimeout]
    t_timeouts: list[TTimeout]


def _loaded(name: str, saved: bytes | str) -> _Snapshot:
    """Return the promises of an origin. A row that this program has not saved becomes a promise that no run can execute."""
    try:
        return msgspec.json.decode(saved, type=_Snapshot)
    except msgspec.MsgspecError:
        unreadable = DurablePromise(
            id=name, state="pending", param={}, value={}, tags={"resonate:target": ""}, timeout_at=2**53,
            created_at=0, settled_at=None, awaiters=set(), subscribers=set(),
        )  # fmt: skip
        return _Snapshot({name: unreadable}, {}, [], [])


_EMPTY = msgspec.json.encode(_Snapshot({}, {}, [], []))


class _StoredWorkflow:
    """One workflow: its promise and the promises of its steps."""

    def __init__(self, name: str, saved: bytes | None, now: int) -> None:
        self.state = ServerState()
        self.saved = _EMPTY  # reading writes nothing: neither an unknown promise nor one that cannot be read
        self.users = 0
        if saved is not None:
            snapshot = _loaded(name, saved)
            self.saved = msgspec.json.encode(snapshot)
            self.state.promises = snapshot.promises
            self.state.tasks = snapshot.tasks
            self.state.p_timeouts = snapshot.p_timeouts
            self.state.t_timeouts = snapshot.t_timeouts
            # This process has the file's lock. So no other living process has a lease.
            for task in self.state.tasks.values():
                if task.state == "acquired":
                    self.state.task_release(now, None, {"id": task.id})
            self.state.outgoing.clear()

    def snapshot(self) -> bytes:
        state = self.state
        return msgspec.json.encode(_Snapshot(state.promises, state.tasks, state.p_timeouts, state.t_timeouts))

    @property
    def idle(self) -> bool:
        """Whether nothing happens to the promises without a request, and nobody waits for them."""
        state = self.state
        return all(t.state == "fulfilled" for t in state.tasks.values()) and not any(
            p.subscribers for p in state.promises.values()
        )


class EmbeddedPromises(LocalConnection):
    """The SDK's `LocalConnection`, made durable: state is on disk before the response is returned.

    Two kinds of changes are not written immediately: "step started" and "listener registered". They are written with the
    next result, because a rerun repeats them.

    A top-level promise and its steps are one row. It is read on the first request and released when it is
    settled. So a run does not get slower when there are many promises.
    """

    SCHEMA = "CREATE TABLE IF NOT EXISTS origins (origin TEXT PRIMARY KEY, state TEXT NOT NULL)"

    def __init__(self, directory: Path, group: str, outages: Outages, clock: Clock = now_ms) -> None:
        super().__init__(group=group, clock=clock)
        self._database = Database(directory / "promises.db", self.SCHEMA)
        self._lock_path = self._database.path.with_suffix(".lock")
        self._outages = outages
        self.stopping = False
        self._origins: dict[str, asyncio.Future[_StoredWorkflow]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.unexecutable: dict[str, ResonateError] = {}

    async def open(self) -> Self:
        self._lock_fd = await _lock(self._lock_path)
        await self._database.open()
        return self

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
        read = [origin.result() for origin in self._origins.values() if origin.done() and not origin.exception()]
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
                await self._save({name: origin})
        return msgspec.json.encode(wrap_response_envelope(response)).decode()

    async def apply_many(self, requests: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
        """Apply requests for different top-level promises, and return the promises. None: not found.

        One transaction reads them all, and one writes them. Raises ConnectorError if this process ends.
        """
        names = [request["id"] for request in requests]
        async with self._entered(names) as origins:
            now = self._clock()
            responses = [origin.state.apply(now, request) for origin, request in zip(origins, requests, strict=True)]
            await self._save(dict(zip(names, origins, strict=True)))
        return [response.get("promise") for response in responses]

    async def _tick_loop(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                for name in list(self._origins):
                    with contextlib.suppress(ConnectorError):
                        async with self._entered([name]) as [origin]:
                            origin.state.tick(self._clock())
                            if origin.state.outgoing:
                                await self._save({name: origin})
                await self._sleeper(self._tick_interval)

    @contextlib.asynccontextmanager
    async def _entered(self, names: list[str]) -> AsyncIterator[list[_StoredWorkflow]]:
        """Hold the origins in memory during the block. Those that are not in memory are read in one transaction."""
        self._read([name for name in names if name not in self._origins])
        entered: dict[str, _StoredWorkflow] = {}
        try:
            for name in names:
                entered[name] = await self._enter(name)
            yield list(entered.values())
        finally:
            for name, origin in entered.items():
                origin.users -= 1
                if origin.users == 0 and origin.idle:
                    self._origins.pop(name, None)

    async def _enter(self, name: str) -> _StoredWorkflow:
        while True:
            if name not in self._origins:  # it was released while this request waited
                self._read([name])
            reading = self._origins[name]
            origin = reading.result() if reading.done() else await asyncio.shield(reading)
            if self._origins.get(name) is reading:
                origin.users += 1
                return origin
            # It was released while this request waited. Two copies would overwrite each other.

    def _read(self, names: list[str]) -> None:
        """Begin to read the origins. If a request is cancelled meanwhile, the other requests still get them."""
        if names:
            reading = {name: asyncio.get_running_loop().create_future() for name in names}
            self._origins |= reading
            task = asyncio.create_task(self._finish_reading(reading))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _finish_reading(self, reading: dict[str, asyncio.Future[_StoredWorkflow]]) -> None:
        select = "SELECT state FROM origins WHERE origin = ?"
        try:
            rows = await self._transact(
                lambda db: [db.execute(select, (name,)).fetchone() for name in reading], writes=False
            )
        except ConnectorError as closed:
            for name, origin in reading.items():
                self._origins.pop(name, None)
                origin.set_exception(closed)
                origin.exception()  # perhaps nobody waits any more
        else:
            now = self._clock()
            for (name, origin), row in zip(reading.items(), rows, strict=True):
                origin.set_result(_StoredWorkflow(name, row[0].encode() if row else None, now))

    async def _save(self, origins: dict[str, _StoredWorkflow]) -> None:
        """Write the changed origins in one transaction, and then send the messages that follow from the changes."""
        changed = {
            name: snapshot for name, origin in origins.items() if (snapshot := origin.snapshot()) != origin.saved
        }
        outgoing = [message for origin in origins.values() for message in origin.state.outgoing]
        for origin in origins.values():
            origin.state.outgoing = []
        if changed:
            rows = [(name, snapshot.decode()) for name, snapshot in changed.items()]
            await self._transact(lambda db: db.executemany("INSERT OR REPLACE INTO origins VALUES (?, ?)", rows))
            for name, snapshot in changed.items():
                origins[name].saved = snapshot
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

    async def open(self) -> Self:
        await self._database.open()
        return self

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
            response = _StoredWorkflow(name, rows[0][0].encode() if rows else None, now_ms()).state.apply(
                now_ms(), request
            )
        return msgspec.json.encode(wrap_response_envelope(response)).decode()

    async def _search(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the next workflows' promises that have this state."""
        select = "SELECT origin, state FROM origins WHERE origin > ? ORDER BY origin LIMIT ?"
        page = await self._database.read(select, request.get("cursor", ""), request["limit"])
        states = {origin: _loaded(origin, state).promises.get(origin) for origin, state in page}
        found = [promise.to_record() for promise in states.values() if promise and promise.state == request["state"]]
        return {"promises": found, "cursor": page[-1][0] if page else None}


def _refusal(state: ServerState, request: dict[str, Any]) -> dict[str, Any] | None:
    """Refuse to run a promise without a task, as the Resonate server does.

    The engine answers 409, as if another process had leased the task, and the SDK waits for that process.
    """
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
