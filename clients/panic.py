"""The exception that halts a workflow for an operator.

It has a module of its own because the SDK stores an exception under its module's name: the name must not
depend on how the program was started.
"""

from __future__ import annotations

from resonate.error import ResonateError

from clients.command.console import HALTED

PANIC_ADVICE = {
    "TigerBeetle exists_diff": "TigerBeetle has this guid with different fields; find out which program created that account.",
    "ordering violated": "The System of Reference was lost, was rolled back, or belongs to another host; do not create a second account.",
}
REFERENCE_ADVICE = (
    "This step wrote nothing. The account exists only if TigerBeetle holds the guid that is staged for this uuid."
)


class Panic(ResonateError):
    """Halts the workflow: the stores contradict each other, and an operator must decide.

    It rejects the workflow's durable promise, so a rerun gets the same answer and runs no step. The code and
    the type are those of the TypeScript SDK's `context.panic`. `condition` is "ordering violated", or a store's
    name and "exists_diff".
    """

    code, type = str(HALTED), "Panic"

    def __init__(self, condition: str, uuid: str, guid: str, conflict: str) -> None:
        super().__init__(condition, uuid, guid, conflict)  # the arguments from which a stored panic is loaded
        self.condition, self.uuid, self.guid, self.conflict = condition, uuid, guid, conflict

    def __str__(self) -> str:
        advice = PANIC_ADVICE.get(self.condition, REFERENCE_ADVICE)
        subject = f"PANIC: {self.condition} for uuid {self.uuid!r} with guid {self.guid}"
        return f"{subject}: {self.conflict}. {advice} What to do: docs/operations.md"
