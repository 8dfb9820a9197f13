"""The verdict over one account, and what `adopt` decides: pure functions of what the promises and both stores hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import tigerbeetle as tb

from clients.account import account_of, promise_id
from clients.promises.reading import Promise
from operations.adopt import Attempt, Refused, decide
from operations.verdict import AccountState

ROW, OURS = ("u", "1"), account_of("u", "1")
FIRST = "create-account-u"


def resolved(guid: str = "1", uuid: str = "u") -> Promise:
    return Promise(FIRST, "resolved", {"uuid": uuid, "guid": guid})


REJECTED = Promise(FIRST, "rejected", {"message": "PANIC"})
PENDING = Promise(FIRST, "pending", None)
CLAIMED = Promise(FIRST, "pending", None, batch="b")


def state(promise: Promise | None, *stores: tuple[Any, Any] | tb.Account, **more: Any) -> AccountState:
    return AccountState(
        "u",
        [promise] if promise else [],
        [one for one in stores if isinstance(one, tb.Account)],
        [one for one in stores if not isinstance(one, tb.Account)],
        "SQLite",
        **more,
    )


SECOND = promise_id("u", 2)


def after(attempt: str, *stores: tuple[Any, Any] | tb.Account, existing: str | None = None) -> AccountState:
    """The state in which the second attempt has this state. `existing`: when it began, TigerBeetle held the account."""
    return replace(state(None, *stores), promises=[REJECTED, Promise(SECOND, attempt, None, existing=existing)])


#: What is found, the verdict, and words of the reason.
VERDICTS: dict[str, tuple[AccountState, str, str]] = {
    "both": (state(resolved(), ROW, OURS), "exists", ""),
    "both, promise rejected": (state(REJECTED, ROW, OURS), "exists", ""),
    "both, closed": (state(None, ROW, replace(OURS, flags=tb.AccountFlags.CLOSED)), "exists", ""),
    "row only": (state(PENDING, ROW), "staged", ""),
    "account only": (state(resolved(), OURS), "unreferenced", ""),
    "nothing": (state(None), "absent", ""),
    "nothing, promise rejected": (state(REJECTED), "absent", ""),
    "another field": (state(None, ROW, replace(OURS, code=2)), "conflict", "account 1 has code 2, not 1"),
    "another guid": (state(None, ("u", "2"), OURS), "conflict", "TigerBeetle holds account 1 for the uuid"),
    "two accounts": (state(None, OURS, replace(OURS, id=2)), "conflict", "holds account 2 for the uuid"),
    "two accounts and a row": (state(None, ROW, OURS, replace(OURS, id=2)), "conflict", "holds account 2"),
    "row of another uuid": (state(None, ("v", "1"), OURS), "conflict", "SQLite stages guid 1 for uuid 'v'"),
    "no guid": (state(None, ("u", "abc")), "conflict", "SQLite stages guid 'abc', which is not a valid account id"),
    "account lost": (state(resolved(), ROW), "conflict", "is resolved, but TigerBeetle does not hold its account 1"),
    "all lost": (state(resolved()), "conflict", "does not hold its account 1"),
    "promise of another guid": (state(resolved("2"), ROW, OURS), "conflict", "does not hold its account 2"),
    "promise of another uuid": (state(resolved(uuid="v"), ROW, OURS), "conflict", "is resolved for uuid 'v'"),
    "attempt pending, account lost": (after("pending", ROW, existing="1"), "conflict", "does not hold its account 1"),
    "attempt rejected, account lost": (after("rejected", ROW, existing="1"), "conflict", "does not hold its account 1"),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_verdict_and_its_reason(name: str) -> None:
    found, verdict, reason = VERDICTS[name]
    assert found.verdict == verdict
    assert bool(found.reasons()) == (verdict == "conflict")
    assert reason in "; ".join(found.reasons())


BATCH = Promise("b", "pending", None)


@pytest.mark.parametrize(
    ("found", "waits_for", "in_progress"),
    [
        (state(None), "", False),
        (state(PENDING), "", True),
        (state(REJECTED), "", False),
        (state(CLAIMED), "waits for batch b, which was not found", False),
        (state(CLAIMED, batch=BATCH), "waits for batch b, which is pending", True),
        (state(CLAIMED, batch=replace(BATCH, state="rejected")), "waits for batch b, which is rejected", False),
    ],
)
def test_pending_promise_is_in_progress_if_something_will_settle_it(
    found: AccountState, waits_for: str, in_progress: bool
) -> None:
    assert (found.waits_for, found.in_progress) == (waits_for, in_progress)


LOST = "does not hold its account 1; restore TigerBeetle, or use `adopt --again`"
RESUMED = Attempt(SECOND, ("u",))
STAGED, EXISTING = Attempt(SECOND, ("u", "1")), Attempt(SECOND, ("u", "1"), existing=True)

#: What is found, and what adopt does without and with --again: its attempt, or words of the refusal.
DECISIONS: dict[str, tuple[AccountState, Any, Any]] = {
    "never requested": (state(None), "not found", "not found"),
    "never requested, staged": (state(None, ROW), "not found", "not found"),
    "pending": (state(PENDING, ROW), "is pending; to resume it, run", "is pending; to resume it, run"),
    "claimed": (state(CLAIMED, ROW), "is pending and waits for batch b", "is pending and waits for batch b"),
    "exists": (state(resolved(), ROW, OURS), None, None),
    "exists, rejected": (state(REJECTED, ROW, OURS), EXISTING, EXISTING),
    "staged": (state(REJECTED, ROW), STAGED, "guid 1 is staged; run adopt without --again"),
    "unreferenced": (state(REJECTED, OURS), EXISTING, EXISTING),
    "absent": (state(REJECTED), "nothing is staged", Attempt(SECOND, ("u",))),
    "account lost": (state(resolved(), ROW), "restore TigerBeetle", STAGED),
    "all lost": (state(resolved()), "does not hold its account 1", "does not hold its account 1"),
    "lost, other guid staged": (state(resolved("2"), ROW), "hold its account 2", "hold its account 2"),
    "conflict": (state(REJECTED, ("u", "2"), OURS), "holds account 1", "holds account 1"),
    "attempt pending": (after("pending", ROW), RESUMED, RESUMED),
    "attempt for an account that exists": (
        after("pending", ROW, OURS, existing="1"), replace(RESUMED, existing=True), RESUMED
    ),
    "attempt for an account that TigerBeetle lost": (after("pending", ROW, existing="1"), LOST, RESUMED),
    "attempt rejected, TigerBeetle lost the account": (
        after("rejected", ROW, existing="1"), LOST, Attempt(promise_id("u", 3), ("u", "1"))
    ),
}  # fmt: skip


@pytest.mark.parametrize("again", [False, True], ids=["adopt", "adopt --again"])
@pytest.mark.parametrize("name", DECISIONS)
def test_decision_of_adopt(name: str, again: bool) -> None:
    found, *expected = DECISIONS[name]
    match expected[again]:
        case None:
            assert decide(found, again=again) is None
        case str(words):
            with pytest.raises(Refused, match=words):
                decide(found, again=again)
        case attempt:
            assert decide(found, again=again) == attempt


ADOPTED, PANICKED = (replace(promise, id=SECOND) for promise in (resolved(), REJECTED))


@pytest.mark.parametrize(
    ("promises", "stores", "created", "adopted"),
    [
        ([], [ROW, OURS], False, False),
        ([resolved()], [ROW, OURS], True, False),
        ([resolved()], [OURS], True, False),
        ([resolved()], [ROW], False, False),
        ([resolved()], [ROW, OURS, replace(OURS, id=2)], False, False),
        ([resolved("2")], [ROW, OURS], False, False),
        ([resolved(uuid="v")], [ROW, OURS], False, False),
        ([resolved(), PANICKED], [ROW, OURS], True, False),
        ([REJECTED], [ROW, OURS], False, False),
        ([REJECTED, ADOPTED], [ROW, OURS], False, True),
        ([REJECTED, ADOPTED], [OURS], False, False),
        ([REJECTED, ADOPTED], [ROW], False, False),
        ([REJECTED, PANICKED], [ROW, OURS], False, False),
        ([REJECTED, ADOPTED, PANICKED], [ROW, OURS], False, False),
    ],
)
def test_rerun_prints_an_account_that_its_promise_records_or_that_was_adopted(
    promises: list[Promise], stores: list[Any], created: bool, adopted: bool
) -> None:
    found = replace(state(None, *stores), promises=promises)
    assert (found.created, found.adopted) == (created, adopted)
