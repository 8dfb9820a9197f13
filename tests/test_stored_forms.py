"""The forms in which results are stored. Promises outlive a release, so a release must read what an older one stored."""

from __future__ import annotations

import base64
import json
from datetime import timedelta

from resonate.codec import Codec, NoopEncryptor
from resonate.types import Value

from clients.account import promise_id
from clients.panic import Panic
from clients.promises.claims import CLAIM
from clients.promises.reading import EXISTING
from clients.promises.server import WORKERS
from create_account import DEADLINE, Outcome, commit_account, create_account, generate_guid, stage_account
from operations.adopt import OPERATORS
from operations.batch import batch_id

CODEC = Codec(NoopEncryptor())

#: Panic("SQLite exists_diff", "u", "17", "c"), as the release before stored it.
PANIC = (
    "gASVdAAAAAAAAACMDWNsaWVudHMucGFuaWOUjAVQYW5pY5STlCiMElNRTGl0ZSBleGlzdHNfZGlmZpSMAXWUjAIxN5SMAWOUdJRSlH2U"
    "KIwJY29uZGl0aW9ulGgDjAR1dWlklGgEjARndWlklGgFjAhjb25mbGljdJRoBnViLg=="
)


def test_outcome_is_stored_as_a_type_a_guid_and_a_conflict() -> None:
    form = {"type": "exists_diff", "guid": "17", "conflict": "SQLite stages ..."}
    outcome = Outcome("exists_diff", "17", "SQLite stages ...")
    assert json.loads(base64.b64decode(str(CODEC.encode(outcome).data))) == form
    assert CODEC.convert(form, Outcome) == outcome


def test_panic_is_stored_under_its_module_with_its_four_arguments() -> None:
    form = {"__type": "error", "message": "PANIC", "__py_pickle": PANIC}
    panic = CODEC.decode_error(Value(data=base64.b64encode(json.dumps(form).encode()).decode()))
    assert isinstance(panic, Panic)
    assert (panic.condition, panic.uuid, panic.guid, panic.conflict) == ("SQLite exists_diff", "u", "17", "c")


def test_names_and_ids_that_promises_record_stay() -> None:
    """Steps are found by position. The workflow's name is registered in `connect`."""
    names = [step.__name__ for step in (create_account, generate_guid, stage_account, commit_account)]
    assert names == ["create_account", "generate_guid", "stage_account", "commit_account"]
    assert (WORKERS, OPERATORS, EXISTING) == ("create-account", "operators", "operators-of-existing-accounts")
    assert CLAIM == "claimed-by"
    assert (promise_id("u"), promise_id("u", 2)) == ("create-account-u", "create-account_attempt-2-u")
    assert batch_id(["u", "v"]) == "create-accounts-bcc4884ec2b8a123eefc5d9d490eb1ee"


def test_promises_expire_after_a_hundred_years() -> None:
    """A promise that expires earlier is rejected, and its account is halted."""
    assert timedelta(days=36_500) == DEADLINE
