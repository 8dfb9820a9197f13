"""Run the real workflows through every interleaving of a small scope, breadth first, each state once.

A process is a coroutine and the answers that it received; a state holds its processes and the stores. Each request
to a store is an await, and each await is a point where the process may wait, or crash. Nothing here is a model of a
step: `create_account`, its steps, and `read_state`, `decide` and the workflows of operations/adopt.py are real.
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
from clients.account import owner_of, promise_id
from clients.panic import Panic
from clients.system_of_record import SystemOfRecord
from clients.system_of_reference import SystemOfReference
from operations import adopt
from operations.state import Promise, Readers, read_state

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

FOREIGN_OWNER = 5
Status = tb.CreateAccountStatus

#: What can go wrong, each at any moment, at most once.
FAULTS = ("promises wiped", "SQLite lost", "SQLite rolled back", "foreign account", "second id")


# -- What the workflows are injected with ----------------------------------


class Ask:
    """Await one answer of the explorer."""

    def __init__(self, *request: Any) -> None:
        self.request = request

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield self.request)


class Reference:
    name = "SQLite"

    async def rows_of(self, uuid: str, guid: str) -> Any:
        return list(await Ask("rows", uuid, (guid,)))

    async def stage(self, uuid: str, guid: str) -> Any:
        return await Ask("stage", uuid, guid)

    async def find(self, uuid: str, guids: list[str]) -> Any:
        return list(await Ask("rows", uuid, tuple(guids)))


def account(guid: str, owner: int) -> tb.Account:
    return tb.Account(id=int(guid), ledger=1, code=1, user_data_128=owner)


class Record:
    async def guids_of(self, uuid: str) -> Any:
        return list(await Ask("guids", owner_of(uuid)))

    async def lookup(self, guid: str) -> Any:
        owner = await Ask("lookup", guid)
        return owner and account(guid, owner)

    async def create(self, new: tb.Account) -> Any:
        return await Ask("create", str(new.id), new.user_data_128)

    async def query_accounts(self, query: tb.QueryFilter) -> Any:
        return [account(guid, query.user_data_128) for guid in await Ask("guids", query.user_data_128)]

    async def lookup_accounts(self, ids: list[int]) -> Any:
        found = [await self.lookup(str(id_)) for id_ in ids]
        return [held for held in found if held]


async def promise(id_: str) -> Promise | None:
    match await Ask("get", id_):
        case None:
            return None
        case ("resolved", uuid, guid):
            return Promise(id_, "resolved", {"uuid": uuid, "guid": guid})
        case (state, *_):
            return Promise(id_, state, None)
    raise AssertionError(id_)


class Context:
    def __init__(self, id_: str) -> None:
        self.info = SimpleNamespace(id=id_)
        self.steps = 0
        self.timeout: Any = None

    def options(self, timeout: Any) -> Context:
        self.timeout = timeout
        return self

    def get_dependency(self, kind: type) -> Any:
        return {SystemOfReference: Reference, SystemOfRecord: Record}[kind]()

    async def run(self, step: Any, *arguments: Any) -> Any:
        assert self.timeout == real.DEADLINE, "a step without the deadline"
        self.steps += 1
        key = f"{self.info.id}:{self.steps}"
        recorded = await Ask("get", key)
        if recorded is not None:
            return recorded
        result = step(self, *arguments)
        return await Ask("record", key, await result if inspect.isawaitable(result) else result)


# -- Processes -------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    command: str  # a method of `Program`
    arguments: tuple[Any, ...]
    fresh: int  # the id that TigerBeetle's client generates
    answers: tuple[Any, ...] = ()


class Program:
    """The commands: a run, and an adoption."""

    def __init__(self, module: Any) -> None:
        self._workflows = {
            "create_account": module.create_account,
            "commit_staged": adopt.commit_staged,
            "stage_committed": adopt.stage_committed,
        }
        self._positions: dict[Process, tuple[str, Any]] = {}

    async def run(self, id_: str, name: str, *arguments: str) -> tuple[str, Any]:
        """Run or resume the workflow of a promise, and settle the promise."""
        match await Ask("begin", id_, ("pending", name, arguments)):
            case ("pending", name, arguments):
                pass
            case _:
                return "settled", None
        try:
            result = await self._workflows[name](Context(id_), *arguments)
        except Panic as panic:
            await Ask("record", id_, ("rejected", panic.condition))
            return "panic", panic.condition
        await Ask("record", id_, ("resolved", result["uuid"], result["guid"]))
        return "done", (result["uuid"], result["guid"])

    async def adopt(self, uuid: str, again: bool) -> tuple[str, Any]:  # noqa: FBT001
        readers: Any = SimpleNamespace(promise=promise, record=Record(), reference=Reference())
        state = await read_state(_readers(readers), uuid)
        try:
            attempt = adopt.decide(state, again=again)
        except adopt.Refused:
            return "refused", None
        if attempt is None:
            return "done", (uuid, state.guid)
        return await self.run(attempt.id, attempt.workflow.__name__, *attempt.arguments)

    def position(self, process: Process) -> tuple[str, Any]:
        """Return what the process does next: ("ask", request), or how it has ended."""
        if process not in self._positions:
            self._positions[process] = self._replay(process)
        return self._positions[process]

    def _replay(self, process: Process) -> tuple[str, Any]:
        fresh, tb.id = tb.id, lambda: process.fresh
        command = getattr(self, process.command)(*process.arguments)
        try:
            request = command.send(None)
            for answer_ in process.answers:
                request = command.send(answer_)
        except StopIteration as end:
            ended: tuple[str, Any] = end.value
            return ended
        finally:
            tb.id = fresh
            command.close()
        return "ask", request


def _readers(readers: Any) -> Readers:
    """Return what `read_state` uses, typed."""
    typed: Readers = readers
    return typed


# -- States ----------------------------------------------------------------

type Rows = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class State:
    rows: Rows = frozenset()
    backups: frozenset[Rows] = frozenset()  # every earlier set of rows, if SQLite can be rolled back
    accounts: frozenset[tuple[str, int]] = frozenset()
    promises: frozenset[tuple[str, Any]] = frozenset()
    processes: tuple[Process | None, ...] = (None, None)
    late: frozenset[tuple[str, int]] = frozenset()  # creates that were under way when their process died
    starts: int = 0
    faults: frozenset[str] = frozenset()
    unpreventable: frozenset[str] = (
        frozenset()
    )  # guids whose row was taken after the last read before the commit


@dataclass(frozen=True)
class Scope:
    """`adoptions`: an operator adopts, also with --again, as soon as the first promise is rejected."""

    faults: frozenset[str] = frozenset()
    starts: int = 2
    uuids: tuple[str, ...] = ("u",)
    adoptions: bool = False


def answer(state: State, request: tuple[Any, ...]) -> tuple[Any, State]:
    """Answer a request of a process, as the store would."""
    accounts, promises = dict(state.accounts), dict(state.promises)
    match request:
        case ("get", key):
            return promises.get(key), state
        case ("begin", key, value):
            promises.setdefault(key, value)
            return promises[key], replace(state, promises=frozenset(promises.items()))
        case ("record", key, value):
            match promises.get(key):
                case None | ("pending", *_):  # else it has a result, and the first result is final
                    promises[key] = value
            return promises[key], replace(state, promises=frozenset(promises.items()))
        case ("rows", uuid, guids):
            return tuple(sorted((u, g) for u, g in state.rows if u == uuid or g in guids)), state
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


def without_rows(program: Program, state: State, kept: Rows) -> State:
    """Take all rows but these. No step reads again the row of a guid that is committed or is being committed."""
    asked = [program.position(process) for process in filter(None, state.processes)]
    creates = {request[1] for kind, request in asked if kind == "ask" and request[0] == "create"}
    committed = {guid for guid, _ in state.accounts | state.late} | creates
    taken = frozenset(guid for _, guid in state.rows - kept if guid in committed)
    return replace(state, rows=kept, unpreventable=state.unpreventable | taken)


def after_faults(program: Program, state: State, scope: Scope) -> Iterator[State]:
    for fault in scope.faults - state.faults:
        marked = replace(state, faults=state.faults | {fault})
        match fault:
            case "promises wiped":
                yield replace(marked, promises=frozenset())
            case "SQLite lost":
                yield without_rows(program, marked, frozenset())
            case "SQLite rolled back":
                yield from (without_rows(program, marked, rows) for rows in state.backups - {state.rows})
            case "foreign account" if "1" not in dict(state.accounts):
                yield replace(marked, accounts=state.accounts | {("1", FOREIGN_OWNER)})


def commands(state: State, scope: Scope) -> Iterator[tuple[str, tuple[Any, ...], set[str]]]:
    """Yield what can be started: the command, its arguments, and the faults that it is."""
    for uuid in scope.uuids:
        yield "run", (promise_id(uuid), "create_account", uuid), set()
        if "second id" in scope.faults:
            yield "run", (f"other-{uuid}", "create_account", uuid), {"second id"}
        if scope.adoptions and dict(state.promises).get(promise_id(uuid), [""])[0] == "rejected":
            yield from (("adopt", (uuid, again), set()) for again in (False, True))


def put(state: State, slot: int, new: Process | None) -> State:
    processes = tuple(new if i == slot else process for i, process in enumerate(state.processes))
    # The slots are alike, so their order is none of the state.
    return replace(state, processes=tuple(sorted(processes, key=hash)))


def successors(program: Program, state: State, scope: Scope) -> Iterator[State]:
    for create in state.late:
        yield replace(answer(state, ("create", *create))[1], late=state.late - {create})
    yield from after_faults(program, state, scope)
    if None in state.processes and state.starts < scope.starts:
        slot, begun = state.processes.index(None), replace(state, starts=state.starts + 1)
        for command, arguments, faults in commands(state, scope):
            marked = replace(begun, faults=begun.faults | faults)
            yield put(marked, slot, Process(command, arguments, begun.starts))
    for slot, process in enumerate(state.processes):
        if process is None:
            continue
        kind, value = program.position(process)
        if kind != "ask":
            yield put(state, slot, None)
            continue
        result, after = answer(state, value)
        if "SQLite rolled back" in scope.faults and after.rows != state.rows:
            after = replace(after, backups=after.backups | {state.rows})
        yield put(after, slot, replace(process, answers=(*process.answers, result)))
        late = state.late | {value[1:]} if value[0] == "create" else state.late
        yield put(replace(state, late=late), slot, None)  # a crash


def violations(program: Program, state: State, scope: Scope) -> Iterator[str]:
    for uuid in scope.uuids:
        ours = {guid for guid, owner in state.accounts if owner == owner_of(uuid)}
        if len(ours) > 1:
            yield "second account"
            if not ours & state.unpreventable:
                yield "second account without a lost row"
        if any((uuid, guid) not in state.rows for guid in ours - state.unpreventable):
            yield "account without its row"
    for process in filter(None, state.processes):
        kind, value = program.position(process)
        if kind == "panic" and not state.faults:
            yield "panic without a fault"
        if kind == "done" and dict(state.accounts).get(value[1]) != owner_of(value[0]):
            yield "success without the account"


def explore(scope: Scope, module: Any = real, until: str = "") -> tuple[int, set[str]]:
    """Return the number of states and the violated invariants. `until`: end when this invariant is violated."""
    program, violated = Program(module), set[str]()
    seen = {State()}
    queue = deque(seen)
    while queue and until not in violated:
        state = queue.popleft()
        violated.update(violations(program, state, scope))
        for after in successors(program, state, scope):
            if after not in seen:
                seen.add(after)
                queue.append(after)
    return len(seen), violated


def scope_of(faults: Iterable[str], **rest: Any) -> Scope:
    return Scope(frozenset(faults), **rest)


def load(source: str) -> ModuleType:
    """Return create_account.py, perhaps edited, as a module."""
    module = ModuleType("create_account")
    exec(compile(source, "create_account.py", "exec"), vars(module))  # noqa: S102
    return module


SOURCE = Path(real.__file__).read_text()

__all__ = ["FAULTS", "SOURCE", "Scope", "explore", "load", "scope_of"]
