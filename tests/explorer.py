"""Run the real `create_account` through every interleaving of a small scope, breadth first.

A process is the real generator and the answers that it received. A state is rebuilt by replaying them.
"""

from __future__ import annotations

import inspect
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import tigerbeetle as tb

import create_account as real
from clients.account import owner_of
from clients.panic import Panic
from clients.system_of_record import SystemOfRecord
from clients.system_of_reference import SystemOfReference

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

UUID = "u"
FOREIGN_OWNER = 5
Status = tb.CreateAccountStatus


class Ask:
    """Await one answer of the explorer."""

    def __init__(self, *request: Any) -> None:
        self.request = request

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield self.request)


class Reference:
    name = "SQLite"

    async def rows_of(self, uuid: str, guid: str) -> Any:
        return list(await Ask("rows", uuid, guid))

    async def stage(self, uuid: str, guid: str) -> Any:
        return await Ask("stage", uuid, guid)


class Record:
    async def guids_of(self, uuid: str) -> Any:
        return list(await Ask("guids", owner_of(uuid)))

    async def lookup(self, guid: str) -> Any:
        owner = await Ask("lookup", guid)
        return owner and tb.Account(id=int(guid), ledger=1, code=1, user_data_128=owner)

    async def create(self, account: tb.Account) -> Any:
        return await Ask("create", str(account.id), account.user_data_128)


class Context:
    def __init__(self, id_: str) -> None:
        self.info = SimpleNamespace(id=id_)
        self.steps = 0

    def options(self, **_: Any) -> Context:
        return self

    def get_dependency(self, kind: type) -> Any:
        return {SystemOfReference: Reference, SystemOfRecord: Record}[kind]()

    async def run(self, step: Any, *arguments: Any) -> Any:
        self.steps += 1
        key = f"{self.info.id}.{self.steps}"
        recorded = await Ask("get", key)
        if recorded is not None:
            return recorded
        result = step(self, *arguments)
        return await Ask("record", key, await result if inspect.isawaitable(result) else result)


@dataclass(frozen=True)
class Process:
    id: str
    fresh: int
    answers: tuple[Any, ...] = ()


@dataclass(frozen=True)
class State:
    rows: frozenset[tuple[str, str]] = frozenset()
    accounts: frozenset[tuple[str, int]] = frozenset()
    promises: frozenset[tuple[str, Any]] = frozenset()
    processes: tuple[Process | None, ...] = (None, None)
    late: frozenset[tuple[str, int]] = frozenset()  # creates under way when their process died
    starts: int = 0
    faults: frozenset[str] = frozenset()


def load(source: str) -> ModuleType:
    """Return create_account.py, perhaps edited, as a module."""
    module = ModuleType("create_account")
    exec(compile(source, "create_account.py", "exec"), vars(module))  # noqa: S102
    return module


SOURCE = Path(real.__file__).read_text()


def position(module: Any, process: Process) -> tuple[str, Any]:
    """Replay the process. Return ("ask", request), ("done", guid) or ("panic", condition)."""
    fresh, tb.id = tb.id, lambda: process.fresh
    try:
        workflow = module.create_account(Context(process.id), UUID)
        request = workflow.send(None)
        for answer in process.answers:
            request = workflow.send(answer)
    except StopIteration as end:
        return "done", end.value["guid"]
    except Panic as panic:
        return "panic", panic.condition
    finally:
        tb.id = fresh
    return "ask", request


def answer(state: State, request: tuple[Any, ...]) -> tuple[Any, State]:
    accounts, promises = dict(state.accounts), dict(state.promises)
    match request:
        case ("get", key):
            return promises.get(key), state
        case ("record", key, value):
            promises.setdefault(key, value)
            return promises[key], replace(state, promises=frozenset(promises.items()))
        case ("rows", uuid, guid):
            return tuple(sorted((u, g) for u, g in state.rows if u == uuid or g == guid)), state
        case ("stage", uuid, guid):
            if any(u == uuid or g == guid for u, g in state.rows):
                return False, state
            return True, replace(state, rows=state.rows | {(uuid, guid)})
        case ("guids", owner):
            return tuple(sorted(g for g, o in state.accounts if o == owner)), state
        case ("lookup", guid):
            return accounts.get(guid), state
        case ("create", guid, owner):
            if guid in accounts:
                same = accounts[guid] == owner
                return Status.EXISTS if same else Status.EXISTS_WITH_DIFFERENT_USER_DATA_128, state
            return Status.CREATED, replace(state, accounts=state.accounts | {(guid, owner)})
    raise AssertionError(request)


def successors(module: Any, state: State, faults: set[str], starts: int, bad: set[str]) -> Iterator[State]:
    for create in state.late:
        yield replace(answer(state, ("create", *create))[1], late=state.late - {create})
    for fault in faults - state.faults:
        marked = replace(state, faults=state.faults | {fault})
        if fault == "promises wiped":
            yield replace(marked, promises=frozenset())
        elif fault == "SQLite lost":
            yield replace(marked, rows=frozenset())
        elif fault == "foreign account" and "1" not in dict(state.accounts):
            yield replace(marked, accounts=state.accounts | {("1", FOREIGN_OWNER)})
    for slot, process in enumerate(state.processes):

        def put(base: State, new: Process | None, slot: int = slot) -> State:
            return replace(
                base, processes=tuple(new if i == slot else p for i, p in enumerate(base.processes))
            )

        if process is None:
            if state.starts < starts:
                begun = replace(state, starts=state.starts + 1)
                yield put(begun, Process("p1", begun.starts))
                if "second id" in faults:
                    marked = replace(begun, faults=begun.faults | {"second id"})
                    yield put(marked, Process("p2", begun.starts))
            continue
        kind, value = position(module, process)
        if kind == "ask":
            result, after = answer(state, value)
            yield put(after, replace(process, answers=(*process.answers, result)))
            late = state.late | {value[1:]} if value[0] == "create" else state.late
            yield put(replace(state, late=late), None)  # a crash
            continue
        if kind == "panic" and not state.faults:
            bad.add("panic without a fault")
        if kind == "done" and dict(state.accounts).get(value) != owner_of(UUID):
            bad.add("success without the account")
        yield put(state, None)


def explore(module: Any = real, faults: set[str] | None = None, starts: int = 2) -> tuple[int, set[str]]:
    """Return the number of states and the violated invariants."""
    bad: set[str] = set()
    seen = {State()}
    queue = deque(seen)
    while queue:
        state = queue.popleft()
        ours = {g for g, owner in state.accounts if owner == owner_of(UUID)}
        if len(ours) > 1:
            bad.add("second account")
        if "SQLite lost" not in state.faults and any((UUID, g) not in state.rows for g in ours):
            bad.add("account without its row")
        for after in successors(module, state, faults or set(), starts, bad):
            if after not in seen:
                seen.add(after)
                queue.append(after)
    return len(seen), bad
