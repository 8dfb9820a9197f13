"""What happens when a store or server is unavailable.

One rule: a store failure never settles a durable promise. The step that meets the failure raises the SDK's
`PlatformError`, which releases the step's task and leaves its promise pending. The next run resumes there.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from resonate.error import ConnectorError, PlatformError, ServerError

from clients.command import limits
from clients.command.console import Unavailable, print_diagnostic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


class Outages:
    """The outages of one process.

    A command ends at its first outage: `interrupting` raises it. A worker sets `wait_forever`: its steps
    wait until the outage is over, and stderr gets one line when it begins and one when it ends.
    """

    def __init__(self) -> None:
        self.wait_forever = False
        self._first: Unavailable | None = None
        self._interrupted: asyncio.Task[object] | None = None
        self._ongoing: set[str] = set()

    def report(self, outage: Unavailable, store: str = "") -> None:
        """End the command: raise the outage in the task of `interrupting`, or from another task cancel that one."""
        if self.wait_forever and outage.passes:
            if store not in self._ongoing:
                self._ongoing.add(store)
                print_diagnostic(f"{outage}; this worker waits until it recovers")
        elif self._first is None:
            self._first = outage
            task = self._interrupted
            if task is asyncio.current_task():
                raise outage  # a cancellation would strike at the next `await`, which may be one of the clean-up
            if task is not None:
                task.cancel()

    def over(self, store: str) -> None:
        if store in self._ongoing:
            self._ongoing.remove(store)
            print_diagnostic(f"{store} is available again")

    @contextlib.asynccontextmanager
    async def interrupting(self) -> AsyncIterator[None]:
        """Run the block. An outage cancels it and is raised in its place."""
        task = self._interrupted = asyncio.current_task()
        assert task is not None
        try:
            if self._first is not None:
                raise self._first
            yield
        except asyncio.CancelledError:
            if self._first is not None and task.uncancel() == 0:  # else Ctrl-C cancels it, too
                raise self._first from None
            raise
        except (Exception, PlatformError) as error:  # a PlatformError is no Exception
            if self._first is not None:  # the error follows from the outage
                raise self._first from None
            cause = error.cause if isinstance(error, PlatformError) else error
            if isinstance(cause, ServerError):
                raise Unavailable(f"the Resonate server refused a request ({cause}); run again") from error
            if isinstance(error, PlatformError):
                raise cause from error
            raise
        finally:
            self._interrupted = None

    async def keep_pending[T](self, store: str, request: Callable[[], Awaitable[T]]) -> T:
        """Return the answer to a step's request. An outage is reported and leaves the step's promise pending."""
        while True:
            try:
                return await request()
            except Unavailable as outage:
                self.report(outage, store)
                if not (self.wait_forever and outage.passes):
                    raise PlatformError([ConnectorError(outage)]) from outage
            await asyncio.sleep(limits.RETRY_INTERVAL_S)
