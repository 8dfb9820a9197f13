"""Run `create_account` in another context: without a server, to find its steps, or with a guid that is given.

A batch (batch.py) implements the steps in its own way. So it is used only if it does what `create_account` does. An adoption
(adopt.py) runs `create_account` with the guid of a row or of an account.
"""

from __future__ import annotations

import contextlib
import functools
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from clients.account import check_request, id_of, uuid_of
from clients.panic import Panic
from create_account import Outcome, Stores, commit_account, generate_guid, stage_account

if TYPE_CHECKING:
    from collections.abc import Callable

    from resonate.context import Context
    from resonate.resonate import Resonate

#: A workflow that asks for more steps may wait for a result that is never made up.
STEPS_MAX = 100

_STAGED = [(generate_guid, "u"), (stage_account, "u", "1")]
_COMMITTED = [*_STAGED, (commit_account, "u", "2")]

#: What a batch does for an account, by the outcomes of the steps 2 and 3: the steps with their arguments, and the end.
OF_BATCHES: dict[tuple[Any, ...], tuple[list[Any], Any]] = {
    ("created", "created"): (_COMMITTED, {"uuid": "u", "guid": "3"}),
    ("exists_same", "exists_same"): (_COMMITTED, {"uuid": "u", "guid": "3"}),
    ("exists_diff",): (_STAGED, ("SQLite exists_diff", "u", "2", "")),
    ("ordering_violated",): (_STAGED, ("ordering violated", "u", "2", "")),
    ("created", "exists_diff"): (_COMMITTED, ("TigerBeetle exists_diff", "u", "3", "")),
    ("created", "ordering_violated"): (_COMMITTED, ("ordering violated", "u", "3", "")),
}


class _Context:
    """What `create_account` uses of a `Context`. It notes each step. The guid in the result of step N is N."""

    info = SimpleNamespace(id="create-account-u", parent_id="create-account-u")

    def __init__(self, outcomes: tuple[Any, ...]) -> None:
        self.steps: list[Any] = []
        self._results: list[Any] = ["1", *(Outcome(outcome, str(n)) for n, outcome in enumerate(outcomes, 2))]

    def options(self, **_: object) -> _Context:
        return self

    def get_dependency(self, _: type) -> Any:
        store: Any = SimpleNamespace(name="SQLite")
        return Stores(store, store)

    def run(self, step: Callable[..., Any], *arguments: Any) -> Any:
        assert len(self.steps) < STEPS_MAX
        self.steps.append((step, *arguments))
        return _result(self._results.pop(0) if self._results else None)


async def _result(result: Any) -> Any:
    return result


def _run(workflow: Callable[..., Any], outcomes: tuple[Any, ...]) -> tuple[list[Any], Any]:
    """Return the steps with their arguments, and the end: the result, a panic's arguments, or None after another error."""
    ctx, end = _Context(outcomes), None
    with contextlib.suppress(Exception):
        try:
            workflow(ctx, "u").send(None)
        except StopIteration as stop:
            end = stop.value
        except Panic as panic:
            end = panic.args
    return ctx.steps, end


def names_of(workflow: Callable[..., Any]) -> list[str]:
    """Return the names of the steps of an account that is created."""
    steps, _ = _run(workflow, ("created", "created"))
    return [getattr(step, "__name__", repr(step)) for step, *_ in steps]


@functools.cache
def are_of_batches(workflow: Callable[..., Any]) -> bool:
    """Return whether a batch does what the workflow does."""
    return all(_run(workflow, outcomes) == expected for outcomes, expected in OF_BATCHES.items())


def versions(resonate: Resonate) -> dict[int, Callable[..., Any]]:
    """Return the registered versions of `create_account`."""
    registered = resonate._registry._by_fn.items()
    return {version: workflow for workflow, (name, version) in registered if name == "create_account"}


# -- Adoptions -------------------------------------------------------------


def given_guid(ctx: Context, uuid: str, guid: str) -> str:
    """Step 1 of an adoption: return the guid that it found."""
    check_request(ctx.info.parent_id, uuid)
    if id_of(guid) is None or uuid_of(ctx.info.parent_id) is None:
        raise ValueError(f"promise {ctx.info.parent_id} is no adoption of guid {guid!r}; no account was created")
    return guid


class _Given:
    """A context in which step 1 returns this guid."""

    def __init__(self, ctx: Any, guid: str) -> None:
        self._ctx = ctx
        self._guid = guid

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)

    def options(self, **options: Any) -> _Given:
        return _Given(self._ctx.options(**options), self._guid)

    def run(self, step: Callable[..., Any], *arguments: Any) -> Any:
        if step.__name__ == generate_guid.__name__:
            return self._ctx.run(given_guid, *arguments, self._guid)
        return self._ctx.run(step, *arguments)


def adopting(workflow: Callable[..., Any]) -> Callable[..., Any]:
    """Return the workflow of an adoption. Without a guid, it generates one."""

    def adopt_account(ctx: Context, uuid: str, guid: str = "") -> Any:
        return workflow(_Given(ctx, guid) if guid else ctx, uuid)

    return adopt_account


def register_adoptions(resonate: Resonate) -> None:
    """Register the workflow of an adoption for each version of `create_account`."""
    for version, workflow in versions(resonate).items():
        resonate.register(adopting(workflow), name="adopt_account", version=version)
