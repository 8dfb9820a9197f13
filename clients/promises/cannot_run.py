"""A durable promise that this program cannot execute, or not now.

It requests a function, or a version of it, that this program lacks, or it cannot be decoded. Another attempt would
fail in the same way. `obstacle` reads this from the promise, which needs no lease. A recorded result that cannot be
decoded is found by the execution.

The SDK releases such a task, logs the reason, and waits for the result without a limit. `Clients.settled` ends the wait,
and the promise stays pending: see docs/workarounds.md.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from resonate.codec import Codec, NoopEncryptor
from resonate.error import (
    Base64DecodeError,
    DecodingError,
    FunctionNotFoundError,
    PlatformError,
    ResonateError,
    SerializationError,
)
from resonate.types import TaskData

from clients.errors import Unavailable

if TYPE_CHECKING:
    from resonate.resonate import Resonate
    from resonate.types import PromiseRecord

CODEC = Codec(NoopEncryptor())

ADVICE = (
    "The promise stays pending. `python -m operations check` says whether the account exists. Run the release that the "
    "promise was created with. Otherwise see docs/operations.md, 'A promise that no program resumes'"
)


class Unexecutable(Unavailable):
    """This program cannot execute a promise. The message is one line: the promise, the cause, what to do."""


class StillLeased(Unavailable):
    """Another process has held the lease of a promise's task for too long. The message is one line."""


def unexecutable(id_: str, cause: object) -> Unexecutable:
    return Unexecutable(f"cannot execute promise {id_}: {cause}. {ADVICE}")


def obstacle(promise: PromiseRecord, resonate: Resonate) -> str | None:
    """Return why this program cannot execute the pending promise; None if it can."""
    if "resonate:target" not in promise.tags:
        return "it has no task, because another program created it"
    try:
        call = CODEC.convert(CODEC.decode(promise.param), TaskData)
    except ResonateError as error:
        return f"invalid task data: {error}"
    if resonate._registry.get(call.func, call.version) is None:
        return str(FunctionNotFoundError(call.func, call.version))
    return None


def cause_of_release() -> ResonateError | None:
    """Return why the SDK releases a task just now, if it cannot be executed here. None for any other reason."""
    error = sys.exception()  # the error that the SDK handles while it calls this
    cause = error.cause if isinstance(error, PlatformError) else error
    hopeless = (FunctionNotFoundError, DecodingError, SerializationError, Base64DecodeError)
    return cause if isinstance(cause, hopeless) else None
