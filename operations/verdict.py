"""The verdict over one account: what the promises and both stores say together. It reads nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from clients.account import difference, id_of
from clients.panic import check_command

if TYPE_CHECKING:
    import tigerbeetle as tb

    from clients.promises.reading import Promise

type Verdict = Literal["exists", "staged", "unreferenced", "absent", "conflict"]


@dataclass(frozen=True)
class AccountState:
    """What the promises and both stores hold for one uuid. `promises`: the first run, then the adoptions.

    `batch`: the promise of the batch that has claimed the account; None if there is none, or if it was not found.
    """

    uuid: str
    promises: list[Promise]
    accounts: list[tb.Account]
    rows: list[tuple[Any, Any]]
    reference: str  # the name of the System of Reference
    batch: Promise | None = None

    @property
    def claim(self) -> str | None:
        """The id of the batch that has claimed the account of the pending promise."""
        return self.promises[0].batch if self.promises else None

    @property
    def batch_is_pending(self) -> bool:
        """Whether the batch that has claimed the account will settle its promise."""
        return self.batch is not None and self.batch.state == "pending"

    @property
    def waits_for(self) -> str:
        """Say what the pending promise of a claimed account waits for; empty for any other account."""
        how = "was not found" if self.batch is None else f"is {self.batch.halt or self.batch.state}"
        return f"waits for batch {self.claim}, which {how}" if self.claim is not None else ""

    def halt(self, promise: Promise) -> str:
        """Return `Promise.halt`. The promise of a claimed account is halted if its batch is, or has ended."""
        if promise.batch is None:
            return promise.halt
        if self.batch and self.batch_is_pending:
            return self.batch.halt and f"pending and {self.waits_for}"
        return f"pending and {self.waits_for}; a run of create_account.py ends this"

    @property
    def in_progress(self) -> bool:
        """Whether a run or a batch is pending that will create the account."""
        last = self.promises[-1] if self.promises else None
        if last is not None and last.batch is not None:
            return self.batch_is_pending
        return last is not None and last.state == "pending"

    @property
    def guid(self) -> str | None:
        """The guid that the System of Reference stages for the uuid."""
        return next((guid for uuid, guid in self.rows if uuid == self.uuid), None)

    @property
    def verdict(self) -> Verdict:
        if self.reasons():
            return "conflict"
        if self.accounts:
            return "exists" if self.rows else "unreferenced"
        return "staged" if self.rows else "absent"

    def contradictions(self) -> list[str]:
        """Return how the stores contradict each other, or the rule of one account per uuid."""
        problems = [
            f"{self.reference} stages guid {guid} for uuid {uuid!r}" for uuid, guid in self.rows if uuid != self.uuid
        ]
        if self.guid is not None and id_of(self.guid) is None:
            problems.append(f"{self.reference} stages guid {self.guid!r}, which is not a valid account id")
        if self.guid is not None or len(self.accounts) > 1:
            others = [str(account.id) for account in self.accounts if str(account.id) != self.guid]
            problems += [f"TigerBeetle holds account {guid} for the uuid" for guid in others]
        return problems + [differing for account in self.accounts if (differing := difference(account, self.uuid))]

    @property
    def agrees(self) -> bool:
        """Whether both stores hold this account. A promise may still name another guid."""
        return bool(self.accounts and self.rows) and not self.contradictions()

    @property
    def created(self) -> bool:
        """Whether a rerun prints the account because the first run's promise records it."""
        first, guids = self.promises[:1], [str(account.id) for account in self.accounts]
        return any(p.state == "resolved" and (p.uuid, [p.guid]) == (self.uuid, guids) for p in first)

    @property
    def adopted(self) -> bool:
        """Whether a rerun prints the account because an operator has adopted it."""
        last = self.promises[1:][-1:]
        return self.agrees and any((p.state, p.guid) == ("resolved", self.guid) for p in last)

    def broken_promises(self) -> list[Promise]:
        """Return the promises that record an account which TigerBeetle does not hold, or that are for another uuid."""
        held = {str(account.id) for account in self.accounts}
        return [
            promise
            for promise in self.promises
            if (promise.state == "resolved" or promise.existing)
            and (promise.guid not in held or promise.uuid != self.uuid)
        ]

    def conflict(self) -> str:
        """Say in one line why a run does not print the account, and what to run."""
        halted = [f"promise {promise.id} is {why}" for promise in self.promises[-1:] if (why := self.halt(promise))]
        reasons = self.reasons() or halted or [f"it is {self.verdict}, because a store has just changed"]
        return f"CONFLICT for uuid {self.uuid!r}: {'; '.join(reasons)}. Run: {check_command(self.uuid)}"

    def reasons(self) -> list[str]:
        """Return the reasons for the verdict `conflict`."""
        return self.contradictions() + [
            f"promise {promise.id} is {promise.state}, but TigerBeetle does not hold its account {promise.guid}"
            if promise.uuid == self.uuid
            else f"promise {promise.id} is resolved for uuid {promise.uuid!r}"
            for promise in self.broken_promises()
        ]
