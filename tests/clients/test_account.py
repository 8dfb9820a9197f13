"""The rules for a uuid, its promise, and the comparison of its account."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
import tigerbeetle as tb

from clients import account
from clients.account import (
    account_of,
    accounts_query,
    check_request,
    check_uuid,
    differences,
    id_of,
    owner_of,
    promise_id,
    uuid_of,
)

#: What no promise's id can contain, and what looks like another uuid.
INVALID = [
    "", "x" * 257, "a:b", "a\nb", "a\x85b", "a\x7fb", "\udc80",
    " u", "u\u00a0", "u\u00a0v", "u\u3000v", "u\u200bv", "u\ufeff", "u\u2028v", "u\u2029v", "u ",
    unicodedata.normalize("NFD", "Zoë"),
]  # fmt: skip

#: Everything else is data, also what looks like another uuid.
VALID = [
    "-starts-with-a-dash",
    "'; DROP TABLE accounts; --",
    "$(touch pwned) `id` && rm -rf *",
    "../../etc/passwd",
    "раypal",  # noqa: RUF001
    "paypal",
    "\u00e9",
    "a b",
    "\ue000",
    "100% {uuid} %s",
    "🐯" * 256,
]


@pytest.mark.parametrize("uuid", INVALID, ids=ascii)
def test_invalid_uuid_is_rejected(uuid: str) -> None:
    with pytest.raises(ValueError, match=r"^the uuid "):
        check_uuid(uuid)
    with pytest.raises(ValueError, match="no account was created"):
        check_request("any", uuid)


@pytest.mark.parametrize("uuid", VALID, ids=ascii)
def test_any_other_uuid_is_accepted(uuid: str) -> None:
    assert check_uuid(uuid) == uuid
    for attempt in (1, 2):
        check_request(promise_id(uuid, attempt), uuid)


@pytest.mark.parametrize("uuid", ["u", "attempt-2-create-account-u", "create-account-u", "a\nb"], ids=ascii)
@pytest.mark.parametrize("attempt", [1, 2, 17])
def test_promise_id_belongs_to_one_uuid(uuid: str, attempt: int) -> None:
    id_ = promise_id(uuid, attempt)
    assert uuid_of(id_) == uuid
    with pytest.raises(ValueError, match=r"belongs to uuid .*, but its argument is 'other'; no account was created"):
        check_request(id_, "other")


def test_promise_id_of_another_form_is_allowed() -> None:
    assert uuid_of("other-u") is None
    check_request("other-u", "u")


OTHER: dict[str, tuple[dict[str, Any], list[str]]] = {
    "equal": ({}, []),
    "closed": ({"flags": tb.AccountFlags.CLOSED}, []),
    "imported": ({"flags": tb.AccountFlags.IMPORTED, "timestamp": 1}, []),
    "imported in a chain": ({"flags": tb.AccountFlags.IMPORTED | tb.AccountFlags.LINKED}, []),
    "no overdraft": ({"flags": tb.AccountFlags.DEBITS_MUST_NOT_EXCEED_CREDITS}, ["flags 2, not 0"]),
    "no credit": ({"flags": tb.AccountFlags.CREDITS_MUST_NOT_EXCEED_DEBITS}, ["flags 4, not 0"]),
    "balance": ({"credits_posted": 7, "timestamp": 8}, []),
    "flags": ({"flags": tb.AccountFlags.HISTORY | tb.AccountFlags.CLOSED}, ["flags 8, not 0"]),
    "user_data_128": ({"user_data_128": 5}, [f"user_data_128 5, not {owner_of('u')}"]),
    "user_data_64": ({"user_data_64": 6}, ["user_data_64 6, not 0"]),
    "user_data_32": ({"user_data_32": 7}, ["user_data_32 7, not 0"]),
    "ledger": ({"ledger": 2}, ["ledger 2, not 1"]),
    "ledger and code": ({"ledger": 2, "code": 3}, ["ledger 2, not 1", "code 3, not 1"]),
}


@pytest.mark.parametrize("name", OTHER)
def test_each_field_is_compared_but_the_balance_and_flags_that_can_change(name: str) -> None:
    fields, expected = OTHER[name]
    ours: dict[str, Any] = {"id": 17, "ledger": 1, "code": 1, "user_data_128": owner_of("u")}
    assert differences(tb.Account(**ours | fields), "u") == expected


@pytest.mark.parametrize("guid", ["1", str(2**128 - 2)])
def test_guid_is_canonical_decimal_digits(guid: str) -> None:
    assert id_of(guid) == int(guid)


@pytest.mark.parametrize(
    "guid", ["", "0", "01", "-1", "abc", "²", "٣", str(2**128 - 1), "9" * 5000, None, 5], ids=ascii
)
def test_other_text_in_a_row_is_no_guid(guid: object) -> None:
    assert id_of(guid) is None


def test_account_is_found_if_the_ledger_and_the_code_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "LEDGER", 7)
    monkeypatch.setattr(account, "CODE", 8)
    query, created = accounts_query("user"), account_of("user", "1")
    assert (query.ledger, query.code) == (created.ledger, created.code) == (7, 8)
