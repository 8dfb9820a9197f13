"""What the TypeScript SDK's context has and the Python SDK has not: `panic_if`, and `saved` for a workflow that is a generator.

The SDK stores an exception under the name of its module. So `Panic` stays here: in create_account.py its name would depend
on how the program was started.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, Protocol

from resonate.error import ResonateError

from clients.errors import HALTED

if TYPE_CHECKING:
    from collections.abc import Generator

    from resonate.context import ResonateFuture

    from clients.stores.system_of_reference import Row


def check_command(uuid: str) -> str:
    """Return the command that shows what the promises and both stores hold for the uuid."""
    return f"python -m operations check -- {shlex.quote(uuid)}"


class Panic(ResonateError):
    """The stores contradict each other, so the workflow stops for good, and an operator decides.

    It rejects the workflow's durable promise. So a rerun gets the same panic and runs no step. `condition` is "ordering
    violated", or a store's name and "exists_diff". The code is that of the TypeScript SDK's `context.panic`.
    """

    code, type = str(HALTED), "Panic"

    def __init__(self, condition: str, uuid: str, guid: str, conflict: str) -> None:
        super().__init__(condition, uuid, guid, conflict)  # the arguments from which a stored panic is loaded
        self.condition, self.uuid, self.guid, self.conflict = condition, uuid, guid, conflict

    def __str__(self) -> str:
        return f"PANIC: {self.condition} for uuid {self.uuid!r}: {self.conflict}. Run: {check_command(self.uuid)}"


class Conflict(Protocol):
    """The part of an outcome that a panic tells."""

    @property
    def guid(self) -> str: ...
    @property
    def conflict(self) -> str: ...


def panic_if(condition: bool, name: str, uuid: str, outcome: Conflict) -> None:  # noqa: FBT001 - as in TypeScript
    """Stop the workflow for good if the condition holds: an operator must decide."""
    if condition:
        raise Panic(name, uuid, outcome.guid, outcome.conflict)


def saved[T](step: ResonateFuture[T]) -> Generator[Any, Any, T]:
    """Wait for the saved result of a step: `yield from saved(ctx.run(...))`. In an `async def` it is `await ctx.run(...)`."""
    return step.__await__()


def describe(reference: str, guid: str, rows: list[Row], accounts: list[str]) -> str:
    """Say what the stores hold: the rows that have the uuid or the guid, and the guids of the uuid's accounts."""
    staged = " and ".join(f"uuid {row[0]!r} with guid {row[1]}" for row in rows)
    staged = staged or "nothing for this uuid" + (f" and guid {guid}" if guid else "")
    return f"{reference} stages {staged}, and TigerBeetle holds {', '.join(accounts) or 'no account'}"
