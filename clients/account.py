"""The account that is created: its uuid, its promise, and its fields in TigerBeetle."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import replace

import tigerbeetle as tb

#: The account's TigerBeetle ledger and code. Changing either needs a migration: see docs/operations.md.
LEDGER, CODE = 1, 1

UUID_MAX_CHARACTERS = 256


def check_uuid(uuid: str) -> str:
    """Return `uuid`. Raises ValueError, saying why, if it cannot be part of a promise's id, or is probably a mistake.

    Two uuids are the same if their code points are the same; nothing is normalized. So a uuid is rejected if it
    contains an invisible character, or white space other than U+0020, or if NFC changes it. Letters of different
    alphabets that look alike are accepted: they are different uuids.
    """
    if not uuid:
        raise ValueError("the uuid is empty")
    if len(uuid) > UUID_MAX_CHARACTERS:
        raise ValueError(f"the uuid has more than {UUID_MAX_CHARACTERS} characters")
    if ":" in uuid:
        raise ValueError("the uuid contains a colon, which separates the parts of a promise's id")
    for character in [] if uuid.isprintable() else uuid:
        if character != " " and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs"):
            raise ValueError(
                f"the uuid contains the character {character!a}: a control or invisible character, an unpaired surrogate, "
                "or white space other than U+0020"
            )
    if uuid != uuid.strip():
        raise ValueError("the uuid begins or ends with white space")
    if not unicodedata.is_normalized("NFC", uuid):
        raise ValueError("the uuid is not in Unicode normalization form NFC")
    return uuid


#: Each promise's id begins with it, so that one prefix in a token of a shared Resonate server covers all.
PREFIX = "create-account"


def promise_id(uuid: str, attempt: int = 1) -> str:
    """Return the id of the durable promise of the uuid's first run, or of a later attempt (an adoption).

    Two different pairs of uuid and attempt never have the same id.
    """
    return f"{PREFIX}-{uuid}" if attempt == 1 else f"{PREFIX}_attempt-{attempt}-{uuid}"


def uuid_of(id_: str) -> str | None:
    """Return the uuid that a promise's id belongs to, of a first run or of a later attempt; None for other ids."""
    match = re.fullmatch(rf"{PREFIX}(?:_attempt-(?:[2-9]|[1-9][0-9]+))?-(.*)", id_, re.DOTALL)
    return match[1] if match else None


def check_request(id_: str, uuid: str) -> None:
    """Raise ValueError, saying why, if a promise with this id must not create this uuid's account.

    The ids of `promise_id` belong to one uuid each. An id of another form is allowed: nobody else looks for it.
    """
    try:
        check_uuid(uuid)
    except ValueError as error:
        raise ValueError(f"{error}; no account was created") from error
    if uuid_of(id_) not in (None, uuid):
        raise ValueError(
            f"promise {id_} belongs to uuid {uuid_of(id_)!r}, but its argument is {uuid!r}; no account was created"
        )


def owner_of(uuid: str) -> int:
    """Return the account's `user_data_128`: a 128-bit hash of the uuid, by which TigerBeetle finds the account."""
    return int.from_bytes(hashlib.blake2b(uuid.encode(), digest_size=16).digest())


def account_of(uuid: str, guid: str) -> tb.Account:
    """Return the account that TigerBeetle must hold for the uuid under the guid."""
    return tb.Account(id=int(guid), ledger=LEDGER, code=CODE, user_data_128=owner_of(uuid))


def accounts_query(uuid: str) -> tb.QueryFilter:
    """Return the query for the uuid's accounts. The limit is 10; one is normal, two are a conflict.

    Other programs may use the same `user_data_128` on another ledger or with another code: those are
    other accounts of the same customer, and the query does not find them.
    """
    return replace(accounts_after(0, limit=10), user_data_128=owner_of(uuid))


def accounts_after(timestamp: int, limit: int) -> tb.QueryFilter:
    """Return the query for this example's accounts with a later timestamp (ns), the oldest first.

    TigerBeetle may answer fewer than `limit` accounts although there are more. Only an empty answer is the end.
    """
    return tb.QueryFilter(
        user_data_128=0, user_data_64=0, user_data_32=0, ledger=LEDGER, code=CODE,
        timestamp_min=timestamp + 1, timestamp_max=0, limit=limit, flags=tb.QueryFilterFlags.NONE,
    )  # fmt: skip


def newest_account() -> tb.QueryFilter:
    """Return the query for the newest of this example's accounts."""
    return replace(accounts_after(0, limit=1), flags=tb.QueryFilterFlags.REVERSED)


#: The flags that do not say which account it is. A transfer sets CLOSED and another one removes it. A move to another
#: cluster sets IMPORTED, which keeps the time of creation, and LINKED, which was only about the import's request. The
#: other flags are chosen when the account is created and never change: they say what transfers it accepts
#: (DEBITS_MUST_NOT_EXCEED_CREDITS, CREDITS_MUST_NOT_EXCEED_DEBITS) and whether its balances are recorded (HISTORY).
IGNORED_FLAGS = tb.AccountFlags.CLOSED | tb.AccountFlags.IMPORTED | tb.AccountFlags.LINKED


def difference(held: tb.Account, uuid: str) -> str:
    """Say how an account differs from the uuid's, as `TigerBeetle's account 7 has code 2, not 1`. Empty if it does not."""
    wanted = account_of(uuid, str(held.id))
    held = replace(held, flags=held.flags & ~IGNORED_FLAGS)
    differing = [
        f"{field} {getattr(held, field)}, not {getattr(wanted, field)}"
        for field in ("flags", "user_data_128", "user_data_64", "user_data_32", "ledger", "code")
        if getattr(held, field) != getattr(wanted, field)
    ]
    return f"TigerBeetle's account {held.id} has {' and '.join(differing)}" if differing else ""


def id_of(guid: object) -> int | None:
    """Return the TigerBeetle id that a guid in a row stands for: canonical decimal digits. None if it is invalid."""
    if isinstance(guid, str) and re.fullmatch("[1-9][0-9]{0,38}", guid) and int(guid) < 2**128 - 1:
        return int(guid)
    return None
