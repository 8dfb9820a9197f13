"""A durable promise that this program cannot execute.

It asks for a function, or a version of it, that this program lacks, or a recorded result cannot be decoded. Another
attempt would fail in the same way. The SDK releases the task, logs the reason, and waits for the result without
a limit. Here the wait ends with `Unexecutable`, and the promise stays pending.
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec
from resonate.codec import Codec, NoopEncryptor
from resonate.error import (
    Base64DecodeError,
    DecodingError,
    FunctionNotFoundError,
    PlatformError,
    ResonateError,
    SerializationError,
)
from resonate.types import PromiseRecord

from clients.command.console import Unavailable

ADVICE = (
    "The promise stays pending, and this program created nothing for it. Run the release that it was created with. "
    "Otherwise see docs/operations.md, 'A promise that no program resumes'"
)


class Unexecutable(Unavailable):
    """The message is one line: the promise, the cause, what to do."""


def unexecutable(id_: str, cause: object) -> Unexecutable:
    return Unexecutable(f"cannot execute promise {id_}: {cause}. {ADVICE}")


def cause_of_release() -> ResonateError | None:
    """Return why the SDK releases a task just now, if it cannot be executed here. None for any other reason."""
    error = sys.exception()  # the SDK releases where it handles what went wrong
    cause = error.cause if isinstance(error, PlatformError) else error
    hopeless = (FunctionNotFoundError, DecodingError, SerializationError, Base64DecodeError)
    return cause if isinstance(cause, hopeless) else None


def message(id_: str, cause: ResonateError) -> dict[str, Any]:
    """Return the message that makes the SDK end its wait for the promise, by raising `Unexecutable`."""
    value = Codec(NoopEncryptor()).encode(unexecutable(id_, cause))
    promise = PromiseRecord(id=id_, state="rejected", value=value, timeout_at=0)
    return {"kind": "unblock", "data": {"promise": msgspec.to_builtins(promise)}}
