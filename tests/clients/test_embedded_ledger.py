"""The embedded ledger gives the same answers as a real TigerBeetle, or refuses the request.

Hypothesis generates sequences of requests, and the test sends each sequence to both. For a failure it prints
the shortest sequence that shows it, and the line that replays it. To run for minutes instead of seconds:

    EXAMPLES=10000 pytest tests/clients/test_embedded_ledger.py
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import tigerbeetle as tb
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.stores.embedded_ledger import EmbeddedLedger

from ..conftest import EmbeddedLedgerSync

EXAMPLES = int(os.environ.get("EXAMPLES", "100"))

# -- A request, the same for both ------------------------------------------
#
# Both ledgers keep the accounts of earlier sequences, and each has its own clock. So a request contains
# symbols, which each ledger replaces with its own numbers.


@dataclass(frozen=True)
class Own:
    """A number that no other sequence uses: the sequence's random base with the bits of `bits` flipped."""

    bits: int


@dataclass(frozen=True)
class When:
    """The timestamp of the sequence's event number `event`, plus `offset` nanoseconds."""

    event: int
    offset: int = 0


type Request = tuple[str, Any]
type Ask = Callable[[str, Any], list[Any]]

SUPPORTED = {"create_accounts", "lookup_accounts", "query_accounts"}
REOPEN: Request = ("reopen", [])
MAX = 2**128 - 1
TIMESTAMP_MAX = 2**63 - 1
BATCH_MAX = 8189

OWNED: dict[str, Any] = {"user_data_128": Own(0)}
VALID: dict[str, Any] = {"ledger": 1, "code": 1} | OWNED
EVERYTHING = dict.fromkeys(tb.QueryFilter.__dataclass_fields__, 0) | {"limit": BATCH_MAX}

#: Fields of an invalid account, by the status that this account gets.
FAULTS: dict[str, dict[str, Any]] = {
    "TIMESTAMP_MUST_BE_ZERO": {"timestamp": 1},
    "RESERVED_FLAG": {"flags": 1 << 6},
    "ID_MUST_NOT_BE_ZERO": {"id": 0},
    "ID_MUST_NOT_BE_INT_MAX": {"id": MAX},
    "FLAGS_ARE_MUTUALLY_EXCLUSIVE": {
        "flags": tb.AccountFlags.DEBITS_MUST_NOT_EXCEED_CREDITS | tb.AccountFlags.CREDITS_MUST_NOT_EXCEED_DEBITS
    },
    "DEBITS_PENDING_MUST_BE_ZERO": {"debits_pending": MAX},
    "DEBITS_POSTED_MUST_BE_ZERO": {"debits_posted": 1},
    "CREDITS_PENDING_MUST_BE_ZERO": {"credits_pending": 1},
    "CREDITS_POSTED_MUST_BE_ZERO": {"credits_posted": MAX},
    "LEDGER_MUST_NOT_BE_ZERO": {"ledger": 0},
    "CODE_MUST_NOT_BE_ZERO": {"code": 0},
}
#: Fields that differ from those of an existing account, by the status that this account gets.
CONFLICTS: dict[str, dict[str, Any]] = {
    "EXISTS_WITH_DIFFERENT_FLAGS": {"flags": tb.AccountFlags.HISTORY},
    "EXISTS_WITH_DIFFERENT_USER_DATA_128": {"user_data_128": 0},
    "EXISTS_WITH_DIFFERENT_USER_DATA_64": {"user_data_64": 1},
    "EXISTS_WITH_DIFFERENT_USER_DATA_32": {"user_data_32": 1},
    "EXISTS_WITH_DIFFERENT_LEDGER": {"ledger": 2},
    "EXISTS_WITH_DIFFERENT_CODE": {"code": 2},
}


class Side:
    """One of the two ledgers, during one sequence."""

    def __init__(self, ask: Ask, base: int) -> None:
        self._ask = ask
        self._base = base
        self._times: list[int] = []
        self._events: dict[int, int] = {}

    def answer(self, request: Request) -> Any:
        """Make the request. Returns the answer; each timestamp is replaced with the number of its event."""
        name, argument = request
        try:
            answers = self._ask(name, self._concrete(name, argument))
        except (tb.IntegerOverflowError, tb.TooMuchDataError) as error:
            return repr(error)
        if name == "create_accounts":
            self._note_times(answers)
        return [replace(answer, timestamp=self._events[answer.timestamp]) for answer in answers]

    def _concrete(self, name: str, argument: Any) -> Any:
        if name == "create_accounts":
            return [tb.Account(**self._fields(account)) for account in argument]
        if name == "query_accounts":
            return tb.QueryFilter(**EVERYTHING | self._fields(argument))
        return [self._number(id_) for id_ in argument]

    def _fields(self, given: dict[str, Any]) -> dict[str, Any]:
        return {field: self._number(value, 64 if field == "user_data_64" else 128) for field, value in given.items()}

    def _number(self, value: Any, width: int = 128) -> Any:
        match value:
            case Own(bits):
                return self._base % 2**width ^ bits
            case When(event, offset) if self._times:
                return self._times[event % len(self._times)] + offset
            case When():
                return TIMESTAMP_MAX
        return value

    def _note_times(self, results: list[tb.CreateAccountResult]) -> None:
        """Check that the events of a request are one nanosecond apart and later than all earlier events."""
        starts = {
            result.timestamp - index
            for index, result in enumerate(results)
            if result.status != tb.CreateAccountStatus.EXISTS  # an existing account has the time of its creation
        }
        assert len(starts) <= 1, results
        for start in starts:
            assert start > max(self._times, default=0)
            for timestamp in range(start, start + len(results)):
                self._events[timestamp] = len(self._times)
                self._times.append(timestamp)


@pytest.fixture(scope="module")
def ledgers(tb_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ask, Ask]]:
    """The real TigerBeetle and the embedded ledger. `REOPEN` closes the embedded ledger and opens it again."""
    directory = tmp_path_factory.mktemp("embedded")
    with tb.ClientSync(cluster_id=0, replica_addresses=tb_address) as client, asyncio.Runner() as runner:
        ledger = runner.run(EmbeddedLedger(directory).open())

        def ask_real(name: str, argument: Any) -> Any:
            return [] if name == "reopen" else getattr(client, name)(argument)

        def ask_embedded(name: str, argument: Any) -> Any:
            nonlocal ledger
            if name != "reopen":
                return runner.run(getattr(ledger, name)(argument))
            runner.run(ledger.close())
            ledger = runner.run(EmbeddedLedger(directory).open())
            return []

        yield ask_real, ask_embedded
        runner.run(ledger.close())


def compare(ledgers: tuple[Ask, Ask], sequence: list[Request]) -> list[Any]:
    """Send the requests to both ledgers, check that the answers are equal, and return them."""
    base = secrets.randbits(128)  # random numbers of the system, because Hypothesis seeds `random`
    real, embedded = (Side(ask, base) for ask in ledgers)
    answers = []
    for request in sequence:
        answers.append(real.answer(request))
        assert embedded.answer(request) == answers[-1]
    return answers


# -- Generated sequences ---------------------------------------------------

WIDTHS = {
    **dict.fromkeys(("id", "debits_pending", "debits_posted", "credits_pending", "credits_posted"), 128),
    "user_data_128": 128,
    "user_data_64": 64,
    "user_data_32": 32,
    "ledger": 32,
    "code": 16,
    "timestamp": 64,
    "timestamp_min": 64,
    "timestamp_max": 64,
    "limit": 32,
}
ACCOUNT_OVERFLOWS, FILTER_OVERFLOWS = (
    [(field, value) for field in names if field in WIDTHS for value in (-1, 2 ** WIDTHS[field])]
    for names in (tb.Account.__dataclass_fields__, tb.QueryFilter.__dataclass_fields__)
)
REFUSED = tb.AccountFlags.LINKED | tb.AccountFlags.IMPORTED


def weighted[T](*choices: tuple[int, st.SearchStrategy[T]]) -> st.SearchStrategy[T]:
    return st.sampled_from([choice for weight, choice in choices for _ in range(weight)]).flatmap(lambda choice: choice)


def fields(names: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Generate one of the fields with one of the values."""
    return st.builds(lambda name, value: {name: value}, st.sampled_from(names.split()), values)


def up_to(count: int, parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.lists(parts, max_size=count).map(lambda chosen: {name: part[name] for part in chosen for name in part})


def edges(bits: int, *more: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([0, 1, 2, 2**bits - 1, *more])


whens = st.builds(When, st.integers(0, 30), st.integers(-1, 1))
indexed = st.one_of(
    fields("user_data_128", edges(128, Own(0), Own(1), Own(1 << 64), Own(1 << 127))),
    fields("user_data_64", edges(64, Own(0), Own(1), Own(1 << 63))),
    fields("user_data_32 ledger", edges(32)),
    fields("code", edges(16)),
)

ids = st.sampled_from([*(Own(bits) for bits in (0, 1, 1 << 63, 1 << 64, 1 << 127)), 0, MAX])
# The known flags, and any number. Of a number with more than 16 bits, the client sends the lower 16.
flags = (st.integers(0, 2**6 - 1) | st.integers(0, 2**17 - 1)).map(lambda bits: bits & ~int(REFUSED))
deviations = st.one_of(
    indexed,
    fields("flags", flags),
    fields("debits_pending debits_posted credits_pending credits_posted", edges(128)),
    fields("timestamp", whens | edges(64, TIMESTAMP_MAX)),
)
accounts = st.builds(lambda id_, other: VALID | {"id": id_} | other, ids, up_to(3, deviations))
# A server with `--development` accepts about 250 accounts in a request.
many_accounts = st.builds(
    lambda first, count: [VALID | {"id": Own(number)} for number in range(first, first + count)],
    st.integers(0, 50),
    st.integers(10, 100),
)
overflowing = st.builds(
    lambda before, overflow, after: [*before, VALID | {"id": Own(0)} | dict([overflow]), *after],
    st.lists(accounts, max_size=1),
    st.sampled_from(ACCOUNT_OVERFLOWS),
    st.lists(accounts, max_size=1),
)

# Of a number with more than 128 bits, the client sends the lower 128: `Own(1 << 128)` finds `Own(0)`.
looked_up = ids | st.sampled_from([Own(1 << 128), Own(-1 << 128), -1, 2**128])

limits = weighted((3, st.integers(1, 10)), (1, st.sampled_from([0, BATCH_MAX, BATCH_MAX + 1, 2**32 - 1])))
bounds = weighted((3, whens), (1, edges(64, TIMESTAMP_MAX, TIMESTAMP_MAX + 1)))
reversals = st.sampled_from([0, 1, 1 << 32, (1 << 32) + 1]) | st.integers(0, 2**32 - 1)
conditions = weighted(
    (4, indexed),
    (2, fields("timestamp_min timestamp_max", bounds)),
    (2, fields("limit", limits)),
    (1, fields("flags", st.just(1))),
    (1, fields("flags", reversals)),
)


def isolated(query_filter: dict[str, Any]) -> dict[str, Any]:
    """Return the filter, restricted to the accounts of this sequence: by owner, or by time.

    A restriction by time requires that no other program uses the TigerBeetle during the test.
    """
    own = (query_filter.get(field) for field in ("user_data_128", "user_data_64", "timestamp_min"))
    return query_filter if any(isinstance(value, Own | When) for value in own) else query_filter | OWNED


filters = up_to(3, conditions).map(isolated)

creations = weighted((6, st.lists(accounts, max_size=8)), (2, many_accounts), (1, overflowing)).map(
    lambda argument: ("create_accounts", argument)
)
lookups = st.lists(looked_up, max_size=8).map(lambda argument: ("lookup_accounts", argument))
queries = weighted((15, filters), (1, st.sampled_from(FILTER_OVERFLOWS).map(lambda overflow: dict([overflow])))).map(
    lambda argument: ("query_accounts", argument)
)
sequences = st.builds(
    lambda first, rest: [first, *rest],
    creations,
    st.lists(weighted((4, creations), (3, lookups), (6, queries), (1, st.just(REOPEN))), max_size=20),
)


@settings(max_examples=EXAMPLES, deadline=None, print_blob=True)
@given(sequence=sequences)
def test_generated_sequences_get_the_same_answers(ledgers: tuple[Ask, Ask], sequence: list[Request]) -> None:
    compare(ledgers, sequence)


# -- Systematic sequences --------------------------------------------------


def test_every_pair_of_faults_gets_the_same_answers(ledgers: tuple[Ask, Ask]) -> None:
    """If an account has two faults, both ledgers report the same one, whether the account exists or not."""
    pairs = [
        one | other
        for one, other in itertools.combinations_with_replacement([*FAULTS.values(), *CONFLICTS.values()], 2)
    ]
    there = [VALID | {"id": Own(0)} | pair for pair in pairs]
    new = [VALID | {"id": Own(number)} | pair for number, pair in enumerate(pairs, 1)]
    created, *answers = compare(
        ledgers, [("create_accounts", request) for request in ([VALID | {"id": Own(0)}], there, new, new)]
    )
    statuses = {result.status.name for result in itertools.chain(created, *answers)}
    assert statuses == {"CREATED", "EXISTS", *FAULTS, *CONFLICTS}


def test_each_status_is_tested_unless_no_client_can_cause_it() -> None:
    rest = {status.name for status in tb.CreateAccountStatus} - {"CREATED", "EXISTS", *FAULTS, *CONFLICTS}
    assert {name for name in rest if not name.startswith(("LINKED_", "IMPORTED_"))} == {"RESERVED_FIELD"}


def test_every_combination_of_flags_gets_the_same_answers(ledgers: tuple[Ask, Ask]) -> None:
    combinations = [flags for flags in range(2**7) if not flags & REFUSED]
    new = [VALID | {"id": Own(flags), "flags": flags} for flags in combinations]
    there = [VALID | {"id": Own(0), "flags": flags} for flags in combinations]
    compare(ledgers, [("create_accounts", new), ("create_accounts", there), ("query_accounts", OWNED)])


def test_every_pair_of_conditions_gets_the_same_answers(ledgers: tuple[Ask, Ask]) -> None:
    """The accounts differ in one or two fields. The filters have one or two conditions."""
    differences = [{}, OWNED | {"user_data_64": Own(1)}, *CONFLICTS.values()]
    several = [
        VALID | {"id": Own(number)} | one | other
        for number, (one, other) in enumerate(itertools.combinations(differences, 2))
    ]
    parts = {
        **{field: [1, 2, 2 ** WIDTHS[field] - 1] for field in ("user_data_32", "ledger", "code")},
        "user_data_64": [1, Own(1)],
        "timestamp_min": [When(3), When(3, 1), 1, TIMESTAMP_MAX, TIMESTAMP_MAX + 1],
        "timestamp_max": [When(3), When(3, -1), 1, TIMESTAMP_MAX, TIMESTAMP_MAX + 1, 2**64 - 1],
        "limit": [0, 2, BATCH_MAX + 1],
        "flags": [1, 2, 3, 1 << 31, 1 << 32],
    }
    conditions = [{field: value} for field, values in parts.items() for value in values]
    compare(
        ledgers,
        [("create_accounts", several)]
        + [
            ("query_accounts", OWNED | one | other)
            for one, other in itertools.combinations_with_replacement(conditions, 2)
        ],
    )


def test_requests_that_are_too_large_get_the_same_answers(ledgers: tuple[Ask, Ask]) -> None:
    accounts = [VALID | {"id": Own(number)} for number in range(BATCH_MAX + 1)]
    answers = compare(
        ledgers,
        [
            ("create_accounts", accounts),
            ("create_accounts", [*accounts, {"id": -1}]),
            ("lookup_accounts", [Own(0)] * len(accounts)),
            ("query_accounts", OWNED | {"limit": len(accounts)}),
            ("query_accounts", OWNED),
        ],
    )
    assert [type(answer) for answer in answers] == [str] * 4 + [list]


# -- Without a server ------------------------------------------------------


@pytest.fixture
def ledger(tmp_path: Path) -> tb.ClientSync:
    """The embedded ledger, opened again for each request, so that its answers come from the disk."""
    return cast("tb.ClientSync", EmbeddedLedgerSync(tmp_path))


def account(**given: Any) -> tb.Account:
    return tb.Account(**VALID | {"id": 7, "user_data_128": 7} | given)


def query(**given: Any) -> tb.QueryFilter:
    return tb.QueryFilter(**EVERYTHING | given)


def everything(ledger: tb.ClientSync) -> list[tb.Account]:
    return ledger.query_accounts(query())


@pytest.mark.parametrize("status", FAULTS)
def test_invalid_account_gets_its_status_and_is_not_stored(ledger: tb.ClientSync, status: str) -> None:
    [result] = ledger.create_accounts([account(**FAULTS[status])])
    assert result.status.name == status
    assert everything(ledger) == []


@pytest.mark.parametrize("status", CONFLICTS)
def test_conflicting_account_gets_its_status_and_changes_nothing(ledger: tb.ClientSync, status: str) -> None:
    ledger.create_accounts([account()])
    before = everything(ledger)
    [result] = ledger.create_accounts([account(**CONFLICTS[status])])
    assert result.status.name == status
    assert result.timestamp > before[0].timestamp
    assert everything(ledger) == before


def test_account_is_stored_with_all_its_fields(ledger: tb.ClientSync) -> None:
    largest = {field: 2 ** WIDTHS[field] - 1 for field in WIDTHS if field.startswith(("user", "ledger", "code"))}
    asked = [account(**largest, flags=tb.AccountFlags.HISTORY), account(id=MAX - 1)]
    created = ledger.create_accounts(asked)
    kept = [replace(one, timestamp=result.timestamp) for one, result in zip(asked, created, strict=True)]
    assert ledger.lookup_accounts([MAX - 1, 8, 7, 7]) == [kept[1], kept[0], kept[0]]
    assert everything(ledger) == kept


def test_timestamps_increase_although_the_clock_goes_back(
    ledger: tb.ClientSync, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create_at(now: int, *ids: int) -> list[tb.CreateAccountResult]:
        monkeypatch.setattr(time, "time_ns", lambda: now)
        return ledger.create_accounts([account(id=id_) for id_ in ids])

    first, second = create_at(1000, 1, 2)
    [refused] = create_at(900, 0)
    [third] = create_at(800, 3)
    [again] = create_at(700, 1)
    [fourth] = create_at(2000, 4)
    assert (first.timestamp, second.timestamp) == (1000, 1001)
    assert 1001 < refused.timestamp < third.timestamp < 2000
    assert (again.status, again.timestamp) == (tb.CreateAccountStatus.EXISTS, 1000)
    assert fourth.timestamp == 2000


def test_concurrent_requests_run_one_after_the_other(tmp_path: Path) -> None:
    async def race() -> list[list[tb.CreateAccountResult]]:
        ledger = await EmbeddedLedger(tmp_path).open()
        try:
            return await asyncio.gather(*(ledger.create_accounts([account()]) for _ in range(20)))
        finally:
            await ledger.close()

    [created], *others = asyncio.run(race())
    assert created.status == tb.CreateAccountStatus.CREATED
    assert others == [[replace(created, status=tb.CreateAccountStatus.EXISTS)]] * 19


REQUESTS = {name for name in dir(tb.AsyncStateMachineMixin) if not name.startswith("_")}


@pytest.mark.parametrize("name", [*sorted(REQUESTS - SUPPORTED), "get_change_events", "anything"])
def test_unsupported_requests_are_refused(ledger: tb.ClientSync, name: str) -> None:
    with pytest.raises(NotImplementedError, match=f"the embedded ledger has no {name}: set TB_ADDRESS"):
        getattr(ledger, name)([])


@pytest.mark.parametrize("flag", [*REFUSED, REFUSED, REFUSED | 1 << 15], ids=repr)
def test_linked_and_imported_accounts_are_refused(ledger: tb.ClientSync, flag: tb.AccountFlags) -> None:
    with pytest.raises(NotImplementedError, match="no linked or imported accounts: set TB_ADDRESS"):
        ledger.create_accounts([account(), account(id=8, flags=flag)])
    assert everything(ledger) == []


@pytest.mark.parametrize(("field", "value"), ACCOUNT_OVERFLOWS)
def test_account_with_a_number_that_is_too_large_is_refused(ledger: tb.ClientSync, field: str, value: int) -> None:
    with pytest.raises(tb.IntegerOverflowError, match=f"{field}=={value} "):
        ledger.create_accounts([account(), account(**{field: value})])
    assert everything(ledger) == []


@pytest.mark.parametrize(("field", "value"), FILTER_OVERFLOWS)
def test_filter_with_a_number_that_is_too_large_is_refused(ledger: tb.ClientSync, field: str, value: int) -> None:
    with pytest.raises(tb.IntegerOverflowError, match=f"{field}=={value} "):
        ledger.query_accounts(query(**{field: value}))


def test_largest_request_is_accepted_and_a_larger_one_refused(ledger: tb.ClientSync) -> None:
    accounts = [account(id=number) for number in range(1, BATCH_MAX + 2)]
    largest = accounts[:-1]
    for ask in (
        lambda: ledger.create_accounts(accounts),
        lambda: ledger.lookup_accounts([1] * len(accounts)),
        lambda: ledger.query_accounts(query(limit=len(accounts))),
    ):
        with pytest.raises(tb.TooMuchDataError):
            ask()
    assert everything(ledger) == []
    created = ledger.create_accounts(largest)
    kept = [replace(one, timestamp=result.timestamp) for one, result in zip(largest, created, strict=True)]
    assert ledger.lookup_accounts([one.id for one in largest]) == kept
    assert everything(ledger) == kept
