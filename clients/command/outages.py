"""What happens when a store or server is unavailable.

One rule: if a store fails, no result is saved. The step that meets the failure raises the SDK's
`PlatformError`, which releases the step's task and leaves its promise pending. The next run resumes there.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, NoReturn

from resonate.error import ConnectorError, PlatformError, ServerError

from clients.command import limits
from clients.command.console import Unavailable, print_diagnostic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


class Outages:
    """The outages of one process.

    A command ends at its first outage: `interrupting` raises it. A worker sets `wait_forever`: its steps
    wait until the outage is over, and stderr gets one line when it begins and one when it ends. An application does
    the same, and `result_or_raise` raises the outage to each of its callers.
    """

    def __init__(self) -> None:
        self.wait_forever = False
        self._callers: set[asyncio.Future[NoReturn]] | None = None
        self._first: Unavailable | None = None
        self._interrupted: asyncio.Task[object] | None = None
        self._ongoing: set[str] = set()

    @property
    def ongoing(self) -> bool:
        """Whether an outage lasts."""
        return bool(self._ongoing)

    def waits_for_end(self, outage: Unavailable) -> bool:
        """Return whether a step waits until the outage is over."""
        return self.wait_forever and (outage.is_temporary or self._callers is not None)

    def report(self, outage: Unavailable, store: str = "") -> None:
        """End the command. In the main task, raise the outage. In another task, cancel the main task: `interrupting` raises it."""
        for caller in self._callers or ():
            if not caller.done():
                caller.set_exception(outage)
        if self.waits_for_end(outage):
            if store not in self._ongoing:
                self._ongoing.add(store)
                print_diagnostic(f"{outage}; this process waits until it recovers")
        elif self._first is None:
            self._first = outage
            task = self._interrupted
            if task is asyncio.current_task():
                raise outage  # a cancellation would take effect at the next `await`, perhaps in the clean-up code
            if task is not None:
                task.cancel()

    def over(self, store: str) -> None:
        if store in self._ongoing:
            self._ongoing.remove(store)
            print_diagnostic(f"{store} is available again")

    async def result_or_raise[T](self, work: asyncio.Task[T]) -> T:
        """Return the task's result, or raise the next outage. Then the task goes on, and resumes after the outage."""
        outage: asyncio.Future[NoReturn] = asyncio.get_running_loop().create_future()
        callers = self._callers = self._callers if self._callers is not None else set()
        callers.add(outage)
        work.add_done_callback(lambda done: done.cancelled() or done.exception())  # perhaps nobody waits any more
        try:
            either: set[asyncio.Future[Any]] = {work, outage}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return work.result() if work.done() else outage.result()
        finally:
            callers.discard(outage)
            outage.cancel()

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
            if self._first is not None and task.uncancel() == 0:  # not 0: Ctrl-C has cancelled it, too
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
                if not self.waits_for_end(outage):
                    raise PlatformError([ConnectorError(outage)]) from outage
            await asyncio.sleep(limits.RETRY_INTERVAL_S)
