"""The verdict over one account, and what `adopt` decides: pure functions of what the promises and both stores hold."""

from __future__ import annotations

import re
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


AGAIN = "does not hold its account 1; restore TigerBeetle, or use `adopt --again`"
RERUN, WAITS = "is pending; to resume it, run python create_account.py", "is pending and waits for batch b"
THIRD = Attempt(promise_id("u", 3), ("u", "1"))
NEW, STAGED, EXISTING = Attempt(SECOND, ("u",)), Attempt(SECOND, ("u", "1")), Attempt(SECOND, ("u", "1"), existing=True)
STILL_EXISTING = replace(NEW, existing=True)  # a pending attempt has recorded its arguments

#: What is found, the verdict, and what adopt does without and with --again: its attempt, or words of the refusal.
STATES: dict[str, tuple[AccountState, str, Any, Any]] = {
    "both, resolved": (state(resolved(), ROW, OURS), "exists", None, None),
    "both, rejected": (state(REJECTED, ROW, OURS), "exists", EXISTING, EXISTING),
    "both, closed": (state(REJECTED, ROW, replace(OURS, flags=tb.AccountFlags.CLOSED)), "exists", EXISTING, EXISTING),
    "both, attempt pending": (after("pending", ROW, OURS, existing="1"), "exists", STILL_EXISTING, NEW),
    "row, never requested": (state(None, ROW), "staged", "not found", "not found"),
    "row, pending": (state(PENDING, ROW), "staged", RERUN, RERUN),
    "row, claimed": (state(CLAIMED, ROW), "staged", WAITS, WAITS),
    "row, rejected": (state(REJECTED, ROW), "staged", STAGED, "guid 1 is staged; run adopt without --again"),
    "row, attempt pending": (after("pending", ROW), "staged", NEW, NEW),
    "account, resolved": (state(resolved(), OURS), "unreferenced", EXISTING, EXISTING),
    "account, rejected": (state(REJECTED, OURS), "unreferenced", EXISTING, EXISTING),
    "nothing, never requested": (state(None), "absent", "not found", "not found"),
    "nothing, rejected": (state(REJECTED), "absent", "nothing is staged", NEW),
    "account lost": (state(resolved(), ROW), f"is resolved, but TigerBeetle {AGAIN}", AGAIN, STAGED),
    "account lost, attempt pending": (after("pending", ROW, existing="1"), AGAIN, AGAIN, NEW),
    "account lost, attempt rejected": (after("rejected", ROW, existing="1"), AGAIN, AGAIN, THIRD),
    "promise of another guid": (state(resolved("2"), ROW, OURS), "does not hold its account 2", None, None),
    "promise of another uuid": (state(resolved(uuid="v"), ROW, OURS), "is resolved for uuid 'v'", None, None),
}

#: The same for what adopt refuses, with or without --again, for the reason of the verdict.
CONFLICTS = {
    "another field": (state(REJECTED, ROW, replace(OURS, code=2)), "account 1 has code 2, not 1"),
    "another guid": (state(REJECTED, ("u", "2"), OURS), "TigerBeetle holds account 1 for the uuid"),
    "two accounts": (state(REJECTED, OURS, replace(OURS, id=2)), "holds account 2 for the uuid"),
    "two accounts and a row": (state(REJECTED, ROW, OURS, replace(OURS, id=2)), "holds account 2"),
    "row of another uuid": (state(REJECTED, ("v", "1"), OURS), "SQLite stages guid 1 for uuid 'v'"),
    "no guid": (state(REJECTED, ("u", "abc")), "SQLite stages guid 'abc', which is not a valid account id"),
    "all lost": (state(resolved()), "does not hold its account 1"),
    "account lost, other guid staged": (state(resolved("2"), ROW), "does not hold its account 2"),
}
STATES |= {name: (found, reason, reason, reason) for name, (found, reason) in CONFLICTS.items()}


@pytest.mark.parametrize("name", STATES)
def test_verdict_and_decision_of_adopt(name: str) -> None:
    """The verdict is `conflict` if there is a reason."""
    found, verdict, *decisions = STATES[name]
    if found.reasons():
        assert found.verdict == "conflict"
        assert verdict.partition(";")[0] in "; ".join(found.reasons())
    else:
        assert found.verdict == verdict
    for again, expected in zip((False, True), decisions, strict=True):
        if isinstance(expected, str):
            with pytest.raises(Refused, match=re.escape(expected)):
                decide(found, again=again)
        else:
            assert decide(found, again=again) == expected


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
