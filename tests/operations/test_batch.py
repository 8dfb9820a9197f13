"""The durable batch: killed at every point, met by single runs and other batches, ended by an operator.

After a batch each uuid's promise is what a single run leaves.
"""

from __future__ import annotations

import base64
import contextlib
import pickle
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
import tigerbeetle as tb

from clients.account import account_of, owner_of, promise_id
from clients.panic import Panic
from operations.batch import batch_id, create_accounts

from ..conftest import ServerWorld, World, assert_accounts_exist, numbered, quick_only, wait_until
from ..crash import BATCH_POINTS, BATCH_STEPS, left_to_do
from .backfills import cancel, killed, promise_of, run, state_of
from .commands import assert_adopted, commit, connected, resolve, script, stage, unstage
from .test_worker import worker

if TYPE_CHECKING:
    from resonate.resonate import Resonate

    from operations.opening import Clients

#: After the claims exist, and before the batch is settled.
CLAIMED = ["before write 2", "after write 3", "after write 4", "before save 5"]


def assert_all_exist(world: World, uuids: list[str]) -> dict[str, str]:
    """Run backfill, and check that each uuid has one account and a promise that names it. Returns the accounts."""
    many = run(world, *uuids)
    assert (many.status, list(many.accounts)) == (0, uuids), many.err
    assert_accounts_exist(world, many.accounts)
    for uuid, guid in many.accounts.items():
        promise = promise_of(world, promise_id(uuid))
        assert promise is not None
        assert (promise.state, promise.value) == ("resolved", {"uuid": uuid, "guid": guid})
    return many.accounts


def assert_no_account_without_its_row(world: World, uuids: list[str]) -> None:
    for uuid in uuids:
        committed, staged = world.accounts(uuid), world.rows(uuid)
        assert len(committed) <= len(staged) <= 1
        assert committed in ([], staged)


# -- Crashes ---------------------------------------------------------------


@pytest.mark.parametrize("crash", quick_only(["after write 4"], BATCH_POINTS))
def test_killed_batch_is_resumed_by_a_rerun(world: World, user: str, crash: str) -> None:
    uuids = numbered(user, 4)
    if "between" in crash and not isinstance(world, ServerWorld):
        # Embedded promises are claimed and settled in one transaction, so this point does not exist.
        assert run(world, *uuids, CRASH=crash).status == 0
        return
    killed(world, uuids, crash)
    assert_no_account_without_its_row(world, uuids)
    world.steps_file.write_text("")
    many = run(world, *uuids, STEPS_FILE=str(world.steps_file))
    assert (many.status, list(many.accounts)) == (0, uuids), many.err
    assert world.steps_file.read_text().split() == left_to_do(
        crash.replace("between", "after"), BATCH_STEPS, BATCH_POINTS
    )
    assert_all_exist(world, uuids)


@pytest.mark.slow
def test_batch_is_resumed_after_a_kill_at_each_point_in_turn(world: World, user: str) -> None:
    uuids = numbered(user, 4)
    for crash in BATCH_POINTS:
        # Not after a step's effect: a rerun does not pass this point again if the effect is there already.
        if crash.startswith("before"):
            killed(world, uuids, crash)
            assert_no_account_without_its_row(world, uuids)
    assert_all_exist(world, uuids)


@pytest.mark.parametrize("crash", quick_only(["after write 4"], CLAIMED))
def test_single_run_completes_the_batch_that_claimed_its_account(world: World, user: str, crash: str) -> None:
    uuids = numbered(user, 4)
    killed(world, uuids, crash)
    single = world.run(uuids[2])
    assert single.status == 0, single.err
    assert {uuid: world.accounts(uuid) for uuid in uuids} == {uuid: world.rows(uuid) for uuid in uuids}
    again = world.run(uuids[3])
    assert (again.status, again.steps) == (0, []), "the batch has created this account, too"
    assert assert_all_exist(world, uuids)[uuids[2]] == single.guid


@pytest.mark.parametrize("crash", quick_only(["after write 3"], CLAIMED))
def test_batches_with_other_boundaries_find_the_same_accounts(world: World, user: str, crash: str) -> None:
    uuids = numbered(user, 8)
    killed(world, uuids[:4], crash)
    killed(world, [uuids[6], *uuids[2:6]], "after write 3")
    assert_all_exist(world, list(reversed(uuids)))


@pytest.mark.slow
def test_worker_resumes_the_batch_of_a_dead_backfill(server_world: ServerWorld, user: str) -> None:
    uuids = numbered(user, 4)
    with worker(server_world, LEASE="2"):
        killed(server_world, uuids, "after write 4")
        wait_until(lambda: state_of(server_world, batch_id(uuids)) == "resolved")
    assert_all_exist(server_world, uuids)


@pytest.mark.slow
def test_worker_that_does_not_know_batches_leaves_the_batch_to_others(server_world: ServerWorld, user: str) -> None:
    """A worker of an older release: it names the batch once and does not settle it."""
    uuids = numbered(user, 4)
    with worker(server_world, LEASE="1", FORGET="create_accounts") as older:
        killed(server_world, uuids, "after write 3")
        wait_until(lambda: bool(older.said(f"cannot run {batch_id(uuids)}")))
        assert state_of(server_world, batch_id(uuids)) == "pending"
        assert server_world.run(uuids[0]).status == 0
    assert_all_exist(server_world, uuids)


def test_single_run_that_starts_before_the_claim_waits_for_the_batch(server_world: ServerWorld, user: str) -> None:
    """It read that the promise does not exist. Then the batch claims the account, and the server answers 422."""
    uuids = numbered(user, 3)
    with server_world.paused_at(uuids[1], "before create the promise") as single:
        many = run(server_world, *uuids)
    done = server_world.finish(single)
    assert (done.status, done.guid) == (0, many.accounts[uuids[1]])
    assert_all_exist(server_world, uuids)


@pytest.mark.slow
def test_batch_leaves_an_account_to_the_single_run_that_has_begun_it(world: World, user: str) -> None:
    uuids = numbered(user, 3)
    world.run(uuids[1], crash="before write 3")
    staged = world.rows(uuids[1])
    assert [assert_all_exist(world, uuids)[uuids[1]]] == staged


def test_batch_of_one_is_a_single_run(embedded_world: World, user: str) -> None:
    many = run(embedded_world, user)
    assert many.status == 0
    assert state_of(embedded_world, batch_id([user])) == "not found"
    again = embedded_world.run(user)
    assert (again.guid, again.steps) == (many.accounts[user], [])


# -- One promise, one meaning ----------------------------------------------


SITUATIONS = [
    "nothing", "another row", "the row of another uuid", "an account without its row", "the account of another uuid"
]  # fmt: skip


def prepare(situation: str, world: World, uuid: str, guid: str) -> str:
    """Put something in the uuid's way. Returns its guid."""
    other = str(tb.id()) if situation in ("another row", "an account without its row") else guid
    match situation:
        case "another row":
            stage(world, uuid, other)
        case "the row of another uuid":
            stage(world, f"{uuid} of another", guid)
        case "an account without its row":
            commit(world, uuid, other)
        case "the account of another uuid":
            commit(world, "another", guid, code=2)
    return other


def normalized(thing: Any, names: dict[str, str]) -> Any:
    """Replace the uuid and the guids by their roles, also inside a stored panic."""
    if isinstance(thing, dict) and "__py_pickle" in thing:
        panic = pickle.loads(base64.b64decode(thing["__py_pickle"]))  # noqa: S301
        assert isinstance(panic, Panic)
        thing = {key: value for key, value in thing.items() if key != "__py_pickle"} | {"args": panic.args}
    text = repr(thing)
    for name, role in names.items():
        text = text.replace(name, role)
    return text


@pytest.mark.parametrize("situation", SITUATIONS)
def test_batch_leaves_the_promise_that_a_single_run_leaves(world: World, user: str, situation: str) -> None:
    seen: list[Any] = []
    for way in ("single", "batch"):
        uuid, guid = f"{user}-{way}", str(tb.id())
        names = {prepare(situation, world, uuid, guid): "OTHER"}
        names |= {uuid: "UUID", guid: "GUID", str(owner_of(uuid)): "OWNER"}
        if way == "single":
            first = world.run(uuid, guid=guid)
            status, said = first.status, first.err.splitlines()[-1:] if first.status else []
        else:
            many = run(world, uuid, f"{user}-companion", GUID=guid)
            status, said = many.status, many.err.splitlines()[:-1][-1:] if many.status else []
            assert f"{user}-companion" in many.accounts, "a panic halts its account only"
        promise = promise_of(world, promise_id(uuid))
        assert promise is not None
        rerun, checked = world.run(uuid), script(world, "check", uuid)
        record = (status, said, promise.state, rerun.status, rerun.steps, rerun.out, rerun.err.splitlines()[-1:])
        seen.append([normalized(promise.value, names), normalized(record, names), normalized(checked.stdout, names)])
    single, batch = seen
    assert single == batch


# -- Faults between two runs of a batch -------------------------------------


@pytest.mark.parametrize(
    ("crash", "fault"), [("after write 3", "an account of another host"), ("after save 3", "no row")]
)
def test_fault_between_two_runs_of_a_batch_halts_its_account(world: World, user: str, crash: str, fault: str) -> None:
    uuids = numbered(user, 3)
    killed(world, uuids, crash)
    if fault == "no row":
        unstage(world, uuids[0])
    else:
        commit(world, uuids[0], str(tb.id()))
    assert_halts_the_first(world, uuids)


def test_account_in_a_replaced_ledger_halts_its_batch_although_the_account_is_old(
    embedded_world: World, user: str, guid: str
) -> None:
    """The batch read the time of the newest account in the other ledger. There it is later than this account."""
    uuids, ledger = numbered(user, 2), embedded_world.data / "ledger.db"
    commit(embedded_world, uuids[0], guid)
    before = ledger.read_bytes()
    embedded_world.lose_ledger()
    commit(embedded_world, f"{user}-other", str(tb.id()))
    killed(embedded_world, uuids, "before write 4")
    embedded_world.lose_ledger()
    ledger.write_bytes(before)
    assert_halts_the_first(embedded_world, uuids)


def assert_halts_the_first(world: World, uuids: list[str]) -> None:
    """Run the batch to its end, and check that only its first uuid panics, and gets no other account."""
    accounts = world.accounts(uuids[0])
    many = run(world, *uuids)
    assert (many.status, list(many.accounts)) == (98, uuids[1:])
    assert f"PANIC: ordering violated for uuid {uuids[0]!r}" in many.err
    assert world.accounts(uuids[0]) == accounts, "another account"


# -- Nothing is orphaned ---------------------------------------------------


@pytest.mark.parametrize("crash", quick_only(["after write 3"], CLAIMED))
def test_claims_of_a_canceled_batch_are_settled_by_the_next_run(world: World, user: str, crash: str) -> None:
    """Where both stores hold the account, the promise is resolved. Otherwise it is rejected, and adopt finishes it."""
    uuids = numbered(user, 3)
    killed(world, uuids, crash)
    cancel(world, batch_id(uuids))
    exist = [bool(world.accounts(uuid)) for uuid in uuids]
    single, many = world.run(uuids[0]), run(world, *uuids)
    if all(exist):
        assert (single.status, many.status) == (0, 0)
        assert_all_exist(world, uuids)
        return
    assert (single.status, many.status, many.shown) == (98, 98, [])
    [reason] = [line for line in many.err.splitlines() if f"{uuids[0]!r}" in line]
    assert reason == single.err.splitlines()[-1]
    assert f"batch {batch_id(uuids)}, which is rejected_canceled" in reason
    assert "TigerBeetle holds no account" in reason
    staged = world.rows(uuids[0])
    assert ("stages nothing" in reason) == (staged == [])
    for uuid in uuids:
        assert_adopted(world, uuid, again=not staged)


def test_claim_of_a_lost_batch_is_settled_by_the_next_run(embedded_world: World, user: str) -> None:
    uuids = numbered(user, 3)
    killed(embedded_world, uuids, "after write 3")
    lose(embedded_world, batch_id(uuids))
    single = embedded_world.run(uuids[0])
    assert single.status == 98
    assert f"batch {batch_id(uuids)}, which was not found" in single.err
    assert_adopted(embedded_world, uuids[0], embedded_world.rows(uuids[0])[0])


def test_batch_that_is_lost_and_created_again_does_not_take_the_old_claims(embedded_world: World, user: str) -> None:
    """It would stage other guids: panics over correct stores."""
    uuids = numbered(user, 3)
    killed(embedded_world, uuids, "after write 4")
    lose(embedded_world, batch_id(uuids))
    assert_all_exist(embedded_world, uuids)


def lose(world: World, origin: str) -> None:
    with contextlib.closing(sqlite3.connect(world.data / "promises.db")) as db, db:
        assert db.execute("DELETE FROM origins WHERE origin = ?", (origin,)).rowcount == 1


@pytest.mark.parametrize("error", ["before write 3", "before write 4"])
def test_unexpected_error_in_a_step_halts_no_account_for_ever(world: World, user: str, error: str) -> None:
    """The batch is rejected. The same run settles the claims, and says why the accounts are halted."""
    uuids = numbered(user, 3)
    many = run(world, *uuids, RAISE=error)
    assert many.status == 98
    assert many.counts()["halted"] == 3
    assert "is rejected: unexpected" in many.err
    for uuid in uuids:
        assert state_of(world, promise_id(uuid)) == "rejected"
        assert_adopted(world, uuid, again=error == "before write 3")


@pytest.mark.slow
def test_conflicts_of_a_whole_list_of_the_longest_uuids_are_recorded(world: World, user: str) -> None:
    """The promises are lost. A batch is smaller if its uuids are long, because a server limits its requests."""
    uuids = [f"{number:03}{user:🐯<253}" for number in range(400)]
    assert run(world, *uuids).counts()["created"] == 400
    world.lose_promises()
    many = run(world, *uuids)
    assert (many.status, many.shown) == (98, [])
    assert many.counts()["halted"] == 400
    assert many.err.count(f"PANIC: {world.reference} exists_diff for uuid") == 400
    assert state_of(world, promise_id(uuids[-1])) == "rejected"


# -- What operators see ----------------------------------------------------


def test_operators_commands_say_what_a_claimed_account_waits_for(world_with_own_ledger: World, user: str) -> None:
    world, uuids = world_with_own_ledger, numbered(user, 3)
    killed(world, uuids, "after write 3")
    waits = f"waits for batch {batch_id(uuids)}, which is"
    checked = script(world, "check", uuids[0])
    assert f"promise {promise_id(uuids[0])}: pending and {waits} pending" in checked.stdout
    assert script(world, "audit").stdout == "clean; 0 accounts, 3 rows, 3 in progress\n"
    assert script(world, "halted").stdout == "0 halted, 0 adopted\n"
    refused = script(world, "adopt", uuids[0])
    assert f"is pending and {waits} pending; to resume it, run" in refused.stderr

    cancel(world, batch_id(uuids))
    assert f"pending and {waits} rejected_canceled" in script(world, "check", uuids[0]).stdout
    audited = script(world, "audit")
    assert audited.returncode == 98
    assert audited.stdout.count(f"its promise is pending and {waits} rejected_canceled") == 3
    halted = script(world, "halted")
    assert halted.returncode == 98
    assert halted.stdout.count(f"is pending and {waits} rejected_canceled") == 3


# -- Requests --------------------------------------------------------------


REFUSED = {
    "an id of other uuids": ([], batch_id(["other"]), "does not belong to these uuids"),
    "any other id": ([], "my-batch", "does not belong to these uuids"),
    "a uuid twice": (["twice", "twice"], "", "occurs twice"),
    "a colon": (["a:b"], "", "colon"),
    "a look-alike": ([" a"], "", "white space"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_batch_that_must_not_run_writes_nothing(embedded_world: World, user: str, name: str) -> None:
    more, id_, words = REFUSED[name]
    uuids = [user, *more]

    async def ask(resonate: Resonate, clients: Clients) -> Any:
        return await resonate.run(id_ or batch_id(uuids), create_accounts, uuids).result()

    with pytest.raises(ValueError, match=words):
        connected(embedded_world, ask)
    assert embedded_world.rows(user) == embedded_world.accounts(user) == []
    assert state_of(embedded_world, promise_id(user)) == "not found"


def test_look_alikes_in_a_list_are_skipped_and_the_rest_is_a_batch(embedded_world: World) -> None:
    many = run(embedded_world, "a", " b", "c")
    assert (many.status, list(many.accounts)) == (2, ["a", "c"])
    assert many.counts() == {"created": 2, "existing": 0, "halted": 0, "invalid": 1}
    assert state_of(embedded_world, batch_id(["a", "c"])) == "resolved"


# -- The stores ------------------------------------------------------------


def test_batch_finds_newer_accounts_by_a_scan_or_by_their_owners(
    world_with_own_ledger: World, user: str, guid: str
) -> None:
    """A scan reads all newer accounts. If there are many, each owner is asked for. Both find the same."""
    world, uuids = world_with_own_ledger, numbered(user, 3)
    commit(world, uuids[0], str(tb.id()))

    async def newer(_: Resonate, clients: Clients) -> tuple[list[list[str]], list[list[str]]]:
        record = clients.record
        newest = await record.newest()
        await record.create_many([account_of(uuids[1], guid)])
        by_scan = await record.guids_of_many(uuids, newer_than=newest)
        await record.create_many([tb.Account(tb.id(), ledger=1, code=1) for _ in range(600)])
        return by_scan, await record.guids_of_many(uuids, newer_than=newest)

    by_scan, by_owner = connected(world, newer)
    assert by_scan == [[], [guid], []], "the first account is older"
    assert by_owner == [world.accounts(uuids[0]), [guid], []]


# -- Batches of other programs -----------------------------------------------


@pytest.mark.parametrize("value", [None, 5, {"guids": ["1"], "newest": 0}, {"guids": ["1", 2], "newest": "x"}])
def test_batch_that_another_program_resolves_does_not_stop_backfill(embedded_world: World, value: object) -> None:
    resolve(embedded_world, batch_id(["a", "b"]), value)
    many = run(embedded_world, "a", "b")
    assert (many.status, many.counts()["created"]) == (0, 2), many.err


@pytest.mark.slow
def test_batch_with_more_text_in_its_conflicts_than_the_server_accepts_ends(server_world: ServerWorld) -> None:
    uuids = numbered("u", 300)
    for uuid in uuids:
        stage(server_world, uuid, f"{uuid}-" + "x" * 10_000)
    many = run(server_world, *uuids)
    assert (many.status, many.counts()["halted"]) == (98, 300), many.err
