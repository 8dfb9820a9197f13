"""Run the real workflows through every interleaving of a small scope, breadth first, each state once.

A process is a coroutine and the answers that it received; a state holds its processes and the stores. Each request
to a store is an await, and each await is a point where the process may wait, or crash. Nothing here is a model of a
step: `create_account`, `create_accounts`, their steps and callers, `Claims`, and `read_state`, `decide` and the
workflows of operations/adopt.py are real. A server answers each claim and each settlement of a batch on its own, and
the queries of a batch's owners, too. Those of one step come in the order of the uuids.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
from collections import deque
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import msgspec
import tigerbeetle as tb
from resonate.error import ApplicationError, ServerError
from resonate.types import PromiseRecord, Value

import create_account as real
from clients.account import owner_of, promise_id
from clients.errors import Halted, Unavailable
from clients.panic import Panic
from clients.promises.cannot_run import CODEC, Unexecutable
from clients.promises.claims import CLAIM, Claims
from clients.promises.reading import find_settled, handle_of
from operations import adopt, backfill
from operations import batch as real_batches
from operations import create as real_create
from operations.reading import read_state
from operations.steps import adopting

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator


FOREIGN_OWNER = 5
Status = tb.CreateAccountStatus

#: What can go wrong, each at any moment, at most once.
FAULTS = ("promises wiped", "SQLite lost", "SQLite rolled back", "foreign account", "second id", "closing transfer")
PROMISES_TAKEN = {"promises wiped", "batch canceled"}

#: The same for batches. "batch canceled": its promise is canceled, or lost with its steps.
BATCH_FAULTS = (*FAULTS[:4], "closing transfer", "batch canceled")

#: What is no fault: nobody may panic because of it.
HARMLESS = {"closing transfer"}

#: A batch's first uuid gets an account, but no row here, before the stage step of the batch has ended. Later, between
#: the commit step's read and its write, no step can see the account.
ANOTHER_HOST = "account of another host"


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
        while not await Ask("stage", uuid, guid):
            if rows := await self.rows_of(uuid, guid):
                return rows
        return []

    async def find(self, uuid: str, guids: list[str]) -> Any:
        return list(await Ask("rows", uuid, tuple(guids)))

    async def rows_of_many(self, pairs: list[tuple[str, str]]) -> Any:
        return [list(rows) for rows in await Ask("rows of many", tuple(pairs))]

    async def stage_many(self, pairs: list[tuple[str, str]]) -> Any:
        return list(await Ask("stage many", tuple(pairs)))


def account(guid: str, owner: int, closed: bool) -> tb.Account:
    """Return the account. A transfer has changed the balance of one that is closed."""
    flags = tb.AccountFlags.CLOSED if closed else tb.AccountFlags.NONE
    return tb.Account(id=int(guid), ledger=1, code=1, user_data_128=owner, flags=flags, credits_posted=7 * closed)


class Record:
    async def guids_of(self, uuid: str) -> Any:
        return list(await Ask("guids", owner_of(uuid)))

    async def lookup(self, guid: str) -> Any:
        found = await Ask("lookup", guid)
        return found and account(guid, *found)

    async def create(self, new: tb.Account) -> Any:
        [status] = await self.create_many([new])
        return None if status == Status.CREATED else await self.lookup(str(new.id))

    async def create_many(self, new: list[tb.Account]) -> Any:
        return list(await Ask("create", tuple((str(one.id), one.user_data_128) for one in new)))

    async def newest(self) -> Any:
        return await Ask("newest")

    async def guids_of_many(self, uuids: list[str], newer_than: int | None = None) -> Any:
        if newer_than is None:
            return [await self.guids_of(uuid) for uuid in uuids]
        return [list(guids) for guids in await Ask("newer", tuple(map(owner_of, uuids)), newer_than)]

    async def query_accounts(self, query: tb.QueryFilter) -> Any:
        return [account(guid, query.user_data_128, closed) for guid, closed in await Ask("query", query.user_data_128)]

    async def lookup_accounts(self, ids: list[int]) -> Any:
        found = [await self.lookup(str(id_)) for id_ in ids]
        return [held for held in found if held]


class Sender:
    """The requests to the Resonate server that need no task."""

    async def promise_get(self, id_: str) -> PromiseRecord:
        if (stored := await Ask("get", id_)) is None:
            raise ServerError(HTTPStatus.NOT_FOUND, "not found")
        return record_of(id_, stored)


class Network:
    """The requests of a batch, which need no task."""

    async def apply_many(self, requests: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
        return [msgspec.to_builtins(await self._apply(**request)) for request in requests]

    async def _apply(self, kind: str, id: str, **request: Any) -> PromiseRecord | None:  # noqa: A002
        if kind == "promise.create":
            return record_of(id, await Ask("begin", id, ("claimed", request["tags"][CLAIM])))
        sent = msgspec.convert(request["value"], Value)
        if request["state"] == "resolved":
            result = CODEC.decode(sent)
            value: tuple[str, ...] = ("resolved", result["uuid"], result["guid"], "without a task")
        else:
            reason = getattr(CODEC.decode_error(sent), "condition", "its batch ended")
            value = ("rejected", reason, "without a task")
        if (stored := await Ask("settle", id, value)) is None:
            return None
        # A state holds the reason of a rejection, not its text.
        held = record_of(id, stored)
        return msgspec.structs.replace(held, value=sent) if stored == value else held


@functools.cache
def record_of(id_: str, stored: tuple[Any, ...]) -> PromiseRecord:
    """Return the promise as a Resonate server answers it."""
    state, value, tags = stored[0], Value(), {"resonate:target": "any"}
    param = Value()
    match stored:
        case ("pending", name, arguments):
            param = CODEC.encode({"func": name, "args": list(map(thawed, arguments))})
        case ("claimed", batch):
            state, tags = "pending", {CLAIM: batch}
        case ("resolved", uuid, str(guid), *_):
            value = CODEC.encode({"uuid": uuid, "guid": guid})
        case ("resolved", guids, newest):
            value = CODEC.encode({"guids": guids, "newest": newest})
        case ("rejected", reason, *_):
            value = CODEC.encode(ApplicationError(reason))
    return PromiseRecord(id=id_, state=state, param=param, value=value, tags=tags, timeout_at=0)


@dataclass
class Handle:
    """A run of a workflow, whose promise other processes may have settled, or created without a task."""

    program: Program
    lacks: frozenset[str]
    promise: str
    request: tuple[Any, ...]

    async def id(self) -> None:
        self.stored = await Ask("begin", self.promise, self.request)
        if self.stored[0] == "claimed" or self.stored[-1] == "without a task":
            raise ServerError(HTTPStatus.UNPROCESSABLE_ENTITY, "Promise exists without a target task")

    async def settle(self) -> None:
        if self.stored[0] == "pending":
            assert self.stored[1] not in self.lacks, "a task that this process can only give back"
            try:
                ended = await self.program.execute(self.promise, *self.stored[1:])
            except ValueError as error:
                ended = ("rejected", str(error))
            self.stored = await Ask("record", self.promise, ended)

    async def result(self) -> Any:
        return await handle_of(record_of(self.promise, self.stored)).result()


class Resonate:
    """What the callers of the workflows use of the SDK."""

    def __init__(self, program: Program, lacks: frozenset[str] = frozenset()) -> None:
        self.promises = SimpleNamespace(sender=Sender())
        self._registry = SimpleNamespace(
            get=lambda name, _: None if name in lacks else program.workflows[name],
            _by_fn={program.workflows["create_account"]: ("create_account", 1)},
        )
        self._program, self._lacks = program, lacks

    def options(self, timeout: Any) -> Resonate:
        assert timeout == real.DEADLINE, "a workflow without the deadline"
        return self

    def run(self, id_: str, workflow: Any, *arguments: Any) -> Handle:
        name = getattr(workflow, "__name__", workflow)
        return Handle(self._program, self._lacks, id_, ("pending", name, tuple(map(frozen, arguments))))


def frozen(result: Any) -> Any:
    """Return a value that a state can hold."""
    if isinstance(result, list):
        return tuple(result)
    if hasattr(result, "panics"):
        return replace(result, panics=tuple(result.panics))
    return result


def thawed(result: Any) -> Any:
    """Return the value that was frozen."""
    if isinstance(result, tuple):
        return list(result)
    if hasattr(result, "panics"):
        return replace(result, panics=list(result.panics))
    return result


class Context:
    def __init__(self, id_: str) -> None:
        self.info = SimpleNamespace(id=id_, parent_id=id_, timeout_at=0)
        self.steps = 0
        self.timeout: Any = None

    def options(self, timeout: Any) -> Context:
        self.timeout = timeout
        return self

    def get_dependency(self, kind: type) -> Any:
        if kind is Claims:
            return Claims(Network())  # type: ignore[arg-type]
        assert kind.__name__ == "Stores"
        return kind(Reference(), Record())

    async def run(self, step: Any, *arguments: Any) -> Any:
        assert self.timeout == real.DEADLINE, "a step without the deadline"
        self.steps += 1
        key = f"{self.info.id}:{self.steps}"
        recorded = await Ask("get", key)
        if recorded is not None:
            return thawed(recorded)
        result = step(self, *arguments)
        return thawed(await Ask("record", key, frozen(await result if inspect.isawaitable(result) else result)))


# -- Processes -------------------------------------------------------------


@dataclass(frozen=True)
class Process:
    command: str  # a method of `Program`
    arguments: tuple[Any, ...]
    fresh: int  # the id that TigerBeetle's client generates
    answers: tuple[Any, ...] = ()


class Program:
    """The commands: a run, an adoption, `create_account.py` from its first read, and a batch."""

    def __init__(self, module: Any = real, batches: Any = real_batches, create: Any = real_create) -> None:
        self._create = create
        self.workflows = {
            "create_account": module.create_account,
            "create_accounts": batches.create_accounts,
            "adopt_account": adopting(module.create_account),
        }
        self._positions: dict[Process, tuple[str, Any]] = {}
        self._began: dict[Process, int] = {}

    async def run(self, id_: str, name: str, *arguments: str) -> tuple[str, Any]:
        """Run or resume the workflow of a promise, and settle the promise."""
        stored = await Ask("begin", id_, ("pending", name, arguments))
        if stored[0] != "pending":
            return "settled", None
        state, *result = await self.execute(id_, *stored[1:])
        await Ask("record", id_, (state, *result))
        return ("done" if state == "resolved" else "panic"), result

    async def execute(self, id_: str, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Execute the workflow of a promise, and return the promise's end."""
        try:
            result = await self.workflows[name](Context(id_), *map(thawed, arguments))
        except Panic as panic:
            return "rejected", panic.condition
        if "guids" in result:
            return "resolved", tuple(result["guids"]), result["newest"]
        return "resolved", result["uuid"], result["guid"]

    async def adopt(self, uuid: str, again: bool) -> tuple[str, Any]:
        state = await read_state(self._clients(Resonate(self)), uuid)
        try:
            attempt = adopt.decide(state, again=again)
        except adopt.Refused:
            return "refused", None
        if attempt is None:
            return "done", (uuid, state.guid)
        return await self.run(attempt.id, "adopt_account", *attempt.arguments)

    def _clients(self, resonate: Any) -> Any:
        async def settled(id_: str, start: Callable[[], Handle]) -> tuple[Any, bool]:
            if found := await find_settled(resonate, id_):
                return found, True
            handle = start()
            await handle.id()
            await handle.settle()
            return handle, False

        claims = Claims(Network())  # type: ignore[arg-type]
        return SimpleNamespace(
            reference=Reference(), record=Record(), claims=claims, resonate=resonate, settled=settled
        )

    async def create(self, uuid: str, *lacks: str) -> tuple[str, Any]:
        resonate: Any = Resonate(self, frozenset(lacks))
        try:
            guid, _ = await self._create.create(uuid, self._clients(resonate))
            return "done", (uuid, guid)
        except Halted:
            return "panic", None
        except Unexecutable:
            return "cannot execute", None
        except Unavailable:
            return "unavailable", None

    async def batch(self, *uuids: str) -> tuple[str, Any]:
        _, guids = await backfill.create_batch(list(uuids), self._clients(Resonate(self)))
        return "done", tuple(itertools.chain(*((u, g) for u, g in zip(uuids, guids, strict=True) if g)))

    def position(self, process: Process) -> tuple[str, Any]:
        """Return what the process does next: ("ask", request), or how it has ended."""
        if process not in self._positions:
            self._positions[process] = self._replay(process)
        return self._positions[process]

    def _replay(self, process: Process) -> tuple[str, Any]:
        """Run the process up to its next request, with its own ids, and one request after another."""
        ids = itertools.count(process.fresh, 10)
        with (
            mock.patch.object(tb, "id", functools.partial(next, ids)),
            mock.patch.object(asyncio, "gather", one_after_another),
        ):
            command = getattr(self, process.command)(*process.arguments)
            began: dict[str, int] = {}
            try:
                request = command.send(None)
                for number, answer_ in enumerate(process.answers):
                    if request[0] in ("get", "begin"):
                        began[request[1]] = number
                    request = command.send(answer_)
            except StopIteration as end:
                ended: tuple[str, Any] = end.value
                return ended
            finally:
                command.close()
        if request[0] == "record" and (":" in request[1] or process.command in ("create", "batch")):
            self._began[process] = began[request[1]]
        return "ask", request

    def after(self, process: Process, result: Any) -> Process:
        """Return the process after an answer.

        A process with the result of a step, or of a workflow, is as one that read this result: the answers in between
        are dropped.
        """
        kept = process.answers[: self._began.get(process)]
        return replace(process, answers=(*kept, result))


async def one_after_another(*requests: Coroutine[Any, Any, Any]) -> list[Any]:
    try:
        return [await request for request in requests]
    finally:
        for request in requests:
            request.close()


# -- States ----------------------------------------------------------------

type Rows = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class State:
    rows: Rows = frozenset()
    backups: frozenset[Rows] = frozenset()  # every earlier set of rows, if SQLite can be rolled back
    accounts: tuple[tuple[str, int], ...] = ()  # the oldest first: an account's timestamp is its position, from 1
    closed: frozenset[str] = frozenset()
    promises: frozenset[tuple[str, Any]] = frozenset()
    processes: tuple[Process | None, ...] = (None, None)
    late: frozenset[tuple[tuple[str, int], ...]] = frozenset()  # creates that were under way when their process died
    starts: int = 0
    started: frozenset[int] = frozenset()  # of a scope's batches and singles
    faults: frozenset[str] = frozenset()
    #: The guids whose row was taken after the last read before the commit, or never written here.
    unpreventable: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Scope:
    """`adoptions`: an operator adopts, also with --again, as soon as the first promise is rejected.

    `batches`: of these uuids, each started once. Beside them, `create_account.py` creates `singles`, each once,
    and a release that cannot execute batches creates `older`.
    """

    faults: frozenset[str] = frozenset()
    starts: int = 2
    uuids: tuple[str, ...] = ("u",)
    adoptions: bool = False
    batches: tuple[tuple[str, ...], ...] = ()
    singles: tuple[str, ...] = ()
    older: tuple[str, ...] = ()


def state_of(state: State, key: str) -> str:
    """Return the state of the promise."""
    return str(dict(state.promises).get(key, ("not found",))[0])


def with_promise(state: State, key: str, value: Any) -> State:
    return replace(state, promises=frozenset((dict(state.promises) | {key: value}).items()))


def answer(state: State, request: tuple[Any, ...]) -> tuple[Any, State]:
    """Answer a request of a process, as the store would."""
    accounts = dict(state.accounts)
    match request:
        case ("rows", uuid, guids):
            return tuple(sorted((u, g) for u, g in state.rows if u == uuid or g in guids)), state
        case ("rows of many", pairs):
            return tuple(answer(state, ("rows", uuid, (guid,)))[0] for uuid, guid in pairs), state
        case ("stage", uuid, guid):
            if any(u == uuid or g == guid for u, g in state.rows):
                return False, state
            return True, replace(state, rows=state.rows | {(uuid, guid)})
        case ("stage many", pairs):
            written = []
            for uuid, guid in pairs:
                staged, state = answer(state, ("stage", uuid, guid))
                written.append(staged)
            return tuple(written), state
        case ("guids", owner):
            return tuple(sorted(g for g, o in state.accounts if o == owner)), state
        case ("query", owner):
            return tuple(sorted((g, g in state.closed) for g, o in state.accounts if o == owner)), state
        case ("lookup", guid):
            return (accounts[guid], guid in state.closed) if guid in accounts else None, state
        case ("newest",):
            return len(state.accounts), state
        case ("newer", owners, timestamp):
            newer = state.accounts[timestamp:]
            return tuple(tuple(g for g, o in newer if o == owner) for owner in owners), state
        case ("create", new):
            statuses = tuple(status_of(accounts, state.closed, *one) for one in new)
            return statuses, replace(state, accounts=tuple(accounts.items()))
    return answer_of_promises(state, *request)


def answer_of_promises(state: State, kind: str, key: str, *value: Any) -> tuple[Any, State]:
    """Answer a request to the Resonate server. The first result of a promise is final."""
    stored = dict(state.promises).get(key)
    match kind, stored:
        case ("begin" | "record", None) | ("record" | "settle", ("pending", *_)) | ("settle", ("claimed", *_)):
            return (*value, with_promise(state, key, *value))
    return stored, state


def status_of(accounts: dict[str, int], closed: frozenset[str], guid: str, owner: int) -> Status:
    """Create the account in `accounts`, and return TigerBeetle's status."""
    if guid not in accounts:
        accounts[guid] = owner
        return Status.CREATED
    if guid in closed:
        return Status.EXISTS_WITH_DIFFERENT_FLAGS
    return Status.EXISTS if accounts[guid] == owner else Status.EXISTS_WITH_DIFFERENT_USER_DATA_128


def without_rows(program: Program, state: State, kept: Rows) -> State:
    """Take all rows but these. No step reads again the row of a guid that is committed or is being committed."""
    asked = [program.position(process) for process in filter(None, state.processes)]
    creates = [request[1] for kind, request in asked if kind == "ask" and request[0] == "create"]
    committed = {guid for accounts in (state.accounts, *state.late, *creates) for guid, _ in accounts}
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
                yield replace(marked, accounts=(*state.accounts, ("1", FOREIGN_OWNER)))
            case "closing transfer":
                yield from (replace(marked, closed=state.closed | {guid}) for guid, _ in state.accounts)
            case "account of another host":
                for batch in scope.batches:
                    owner, staged = owner_of(batch[0]), f"{real_batches.batch_id(list(batch))}:3"
                    if staged not in dict(state.promises) and owner not in dict(state.accounts).values():
                        rowless = state.unpreventable | {"9"}
                        yield replace(marked, accounts=(*state.accounts, ("9", owner)), unpreventable=rowless)
            case "batch canceled":
                for batch in scope.batches:
                    yield from without_batch(marked, real_batches.batch_id(list(batch)))


def without_batch(state: State, id_: str) -> Iterator[State]:
    """Cancel the batch's promise, or lose it with its steps, if the batch has not ended."""
    if state_of(state, id_) == "pending":
        yield with_promise(state, id_, ("rejected_canceled",))
        yield replace(state, promises=frozenset(one for one in state.promises if one[0].partition(":")[0] != id_))


def starts(state: State, scope: Scope) -> Iterator[tuple[Process, State]]:
    """Yield what can be started, and the state that notes it."""
    older = [("create", (uuid, "create_accounts")) for uuid in scope.older]
    once = [*(("batch", b) for b in scope.batches), *(("create", (uuid,)) for uuid in scope.singles), *older]
    for number, (command, arguments) in enumerate(once, 1):
        if number not in state.started:
            yield Process(command, arguments, number), replace(state, started=state.started | {number})
    if once or state.starts == scope.starts:
        return
    begun = replace(state, starts=state.starts + 1)
    for uuid in scope.uuids:
        yield Process("run", (promise_id(uuid), "create_account", uuid), begun.starts), begun
        if "second id" in scope.faults:
            marked = replace(begun, faults=begun.faults | {"second id"})
            yield Process("run", (f"other-{uuid}", "create_account", uuid), begun.starts), marked
        if scope.adoptions and state_of(state, promise_id(uuid)) == "rejected":
            yield from ((Process("adopt", (uuid, again), begun.starts), begun) for again in (False, True))


def put(state: State, slot: int, new: Process | None) -> State:
    processes = tuple(new if i == slot else process for i, process in enumerate(state.processes))
    # The slots are alike, so their order does not matter.
    return replace(state, processes=tuple(sorted(processes, key=hash)))


def independent(program: Program, state: State, scope: Scope) -> State | None:
    """Return the state after an event that neither affects others nor is affected by them. The others can wait."""
    for slot, process in enumerate(state.processes):
        if process is None:
            continue
        kind, request = program.position(process)
        if kind != "ask":
            return put(state, slot, None)
        if request[0] == "get" and ":" in request[1] and not (scope.faults - state.faults) & PROMISES_TAKEN:
            recorded = dict(state.promises).get(request[1])
            if recorded is not None:
                return put(state, slot, program.after(process, recorded))
    return None


def successors(program: Program, state: State, scope: Scope) -> Iterator[State]:
    if (after := independent(program, state, scope)) is not None:
        yield after
        return
    for create in state.late:
        yield replace(answer(state, ("create", create))[1], late=state.late - {create})
    yield from after_faults(program, state, scope)
    if None in state.processes:
        slot = state.processes.index(None)
        yield from (put(marked, slot, started) for started, marked in starts(state, scope))
    for slot, process in enumerate(state.processes):
        if process is None:
            continue
        _, value = program.position(process)
        result, after = answer(state, value)
        if "SQLite rolled back" in scope.faults and after.rows != state.rows:
            after = replace(after, backups=after.backups | {state.rows})
        yield put(after, slot, program.after(process, result))
        late = state.late | {value[1]} if value[0] == "create" else state.late
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
        if kind == "panic" and not state.faults - HARMLESS:
            yield "panic without a fault"
        if kind == "cannot execute" and len(process.arguments) == 1:
            yield "refused by a process that can execute it"
        if kind == "unavailable" and not state.faults - HARMLESS:
            yield "no answer without a fault"
        if kind == "done" and any(not exists(state, *pair) for pair in itertools.batched(value, 2)):
            yield "success without the account"
    yield from violations_of_batches(state, scope)


def exists(state: State, uuid: str, guid: str) -> bool:
    return dict(state.accounts).get(guid) == owner_of(uuid)


def violations_of_batches(state: State, scope: Scope) -> Iterator[str]:
    promises = dict(state.promises)
    for batch in scope.batches:
        own = [promises.get(promise_id(uuid), ("not found",)) for uuid in batch]
        if any(stored[0] == "resolved" and not exists(state, *stored[1:3]) for stored in own):
            yield "resolved without the account"
        id_ = real_batches.batch_id(list(batch))
        ended = state_of(state, id_) not in ("not found", "pending")
        if ended and ("claimed", id_) in own and not state.faults & PROMISES_TAKEN:
            yield "claim of an ended batch"


def explore(
    scope: Scope, module: Any = real, until: str = "", batches: Any = real_batches, create: Any = real_create
) -> tuple[int, set[str]]:
    """Return the number of states and the violated invariants. `until`: end when this invariant is violated."""
    program, violated, seen = Program(module, batches, create), set[str](), {State()}
    queue = deque(seen)

    async def main() -> None:  # the clients create futures and locks, but nothing waits for the event loop
        while queue and until not in violated:
            state = queue.popleft()
            violated.update(violations(program, state, scope))
            for after in successors(program, state, scope):
                if after not in seen:
                    seen.add(after)
                    queue.append(after)

    asyncio.run(main())
    return len(seen), violated


def scope_of(faults: Iterable[str], **rest: Any) -> Scope:
    return Scope(frozenset(faults), **rest)


def load(source: str, name: str = "create_account") -> ModuleType:
    """Return the module of this name, perhaps edited."""
    module = ModuleType(name)
    exec(compile(source, f"{name}.py", "exec"), vars(module))  # noqa: S102
    return module


SOURCE = Path(real.__file__).read_text()
BATCH_SOURCE, CREATE_SOURCE = Path(real_batches.__file__).read_text(), Path(real_create.__file__).read_text()
