"""The rules for a uuid, its promise, and the comparison of its account."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from typing import Any

import pytest
import tigerbeetle as tb

from clients import account
from clients.account import (
    account_of,
    accounts_query,
    check_request,
    check_uuid,
    difference,
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
    "u",
    "attempt-2-create-account-u",
    "create-account-u",
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
@pytest.mark.parametrize("attempt", [1, 2, 17])
def test_any_other_uuid_is_accepted_and_has_its_own_promise_ids(uuid: str, attempt: int) -> None:
    assert check_uuid(uuid) == uuid
    check_request(id_ := promise_id(uuid, attempt), uuid)
    with pytest.raises(ValueError, match=r"belongs to uuid .*, but its argument is 'other'; no account was created"):
        check_request(id_, "other")


def test_promise_id_of_another_form_is_allowed() -> None:
    check_request("other-u", "u")
    assert (uuid_of("other-u"), uuid_of(promise_id("a\nb"))) == (None, "a\nb")


OTHER: dict[str, tuple[dict[str, Any], str]] = {
    "equal": ({}, ""),
    "closed": ({"flags": tb.AccountFlags.CLOSED}, ""),
    "imported": ({"flags": tb.AccountFlags.IMPORTED, "timestamp": 1}, ""),
    "imported in a chain": ({"flags": tb.AccountFlags.IMPORTED | tb.AccountFlags.LINKED}, ""),
    "no overdraft": ({"flags": tb.AccountFlags.DEBITS_MUST_NOT_EXCEED_CREDITS}, "flags 2, not 0"),
    "no credit": ({"flags": tb.AccountFlags.CREDITS_MUST_NOT_EXCEED_DEBITS}, "flags 4, not 0"),
    "balance": ({"credits_posted": 7, "timestamp": 8}, ""),
    "flags": ({"flags": tb.AccountFlags.HISTORY | tb.AccountFlags.CLOSED}, "flags 8, not 0"),
    "user_data_128": ({"user_data_128": 5}, f"user_data_128 5, not {owner_of('u')}"),
    "user_data_64": ({"user_data_64": 6}, "user_data_64 6, not 0"),
    "user_data_32": ({"user_data_32": 7}, "user_data_32 7, not 0"),
    "ledger": ({"ledger": 2}, "ledger 2, not 1"),
    "ledger and code": ({"ledger": 2, "code": 3}, "ledger 2, not 1 and code 3, not 1"),
}


@pytest.mark.parametrize(("fields", "expected"), OTHER.values(), ids=OTHER)
def test_each_field_is_compared_but_the_balance_and_flags_that_can_change(
    fields: dict[str, Any], expected: str
) -> None:
    found = difference(replace(account_of("u", "17"), **fields), "u")
    assert found == (expected and f"TigerBeetle's account 17 has {expected}")


NO_GUIDS: list[object] = ["", "0", "01", "-1", "abc", "²", "٣", str(2**128 - 1), "9" * 5000, None, 5]


@pytest.mark.parametrize("guid", ["1", str(2**128 - 2), *NO_GUIDS], ids=ascii)
def test_guid_is_canonical_decimal_digits(guid: Any) -> None:
    assert id_of(guid) == (None if guid in NO_GUIDS else int(guid))


def test_account_is_found_if_the_ledger_and_the_code_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "LEDGER", 7)
    monkeypatch.setattr(account, "CODE", 8)
    query, created = accounts_query("user"), account_of("user", "1")
    assert (query.ledger, query.code) == (created.ledger, created.code) == (7, 8)
