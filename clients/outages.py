"""What happens while a store or the server gives no answer.

One rule: an outage saves no result. The step repeats its request until the outage is over, and its promise stays pending.
If the process ends first, the next run resumes there. A caller that waits for a result does not wait for the end of the
outage: it gets the exception `Unavailable`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, NoReturn

from resonate.error import ConnectorError, PlatformError, ServerError

from clients import limits
from clients.errors import Closed, Lasting, NoAnswer, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

LOGGER = logging.getLogger(__name__)


async def repeat[T](
    attempt: Callable[[], Awaitable[T]], passes: Callable[[Exception], bool], timeout_s: float, interval_s: float
) -> T:
    """Return the result of an attempt. While its error passes, repeat it, for this time at most; then raise the error."""
    give_up = time.monotonic() + timeout_s
    while True:
        try:
            return await attempt()
        except Exception as error:
            if not passes(error) or time.monotonic() > give_up:
                raise
        await asyncio.sleep(interval_s)


class Outages:
    """The outages of one process. `announce` gets one line when an outage begins, and one when it ends."""

    def __init__(self, announce: Callable[[str], object] = LOGGER.warning) -> None:
        self._announce = announce
        self._ongoing: dict[str, bool] = {}  # the stores, and whether only a write proves that the outage is over
        self._callers: dict[asyncio.Future[NoReturn], bool] = {}

    @property
    def ongoing(self) -> bool:
        """Whether an outage lasts."""
        return bool(self._ongoing)

    def report(self, outage: Unavailable, store: str, *, writes: bool = False) -> None:
        """Raise the outage to each caller that waits. Every failed attempt is reported, so no caller waits in silence."""
        for caller, waits in self._callers.items():
            if not caller.done() and not (waits and not isinstance(outage, Lasting)):
                caller.set_exception(outage)
        if store not in self._ongoing and not isinstance(outage, Lasting):
            self._announce(f"{outage}; this process waits until it recovers")
        self._ongoing[store] = writes or self._ongoing.get(store, False)

    def recovered(self, store: str, *, writes: bool = False) -> None:
        if store in self._ongoing and writes >= self._ongoing[store]:  # on a full disk, reads succeed
            del self._ongoing[store]
            self._announce(f"{store} is available again")

    async def answer[T](
        self,
        store: str,
        request: Callable[[], Awaitable[T]],
        kind: type[Unavailable] = Unavailable,
        *,
        writes: bool = False,
    ) -> T:
        """Return the answer to a request, and repeat it during an outage of this kind. Raises `Closed`."""
        while True:
            try:
                answer = await request()
            except Closed:
                raise
            except kind as outage:
                self.report(outage, store, writes=writes)
            else:
                self.recovered(store, writes=writes)
                return answer
            await asyncio.sleep(limits.RETRY_INTERVAL_S)

    async def keep_pending[T](self, store: str, request: Callable[[], Awaitable[T]], *, writes: bool = False) -> T:
        """Return the answer to a step's request. If the store closes, leave the step's promise pending.

        The SDK's `PlatformError` does that: it releases the step's task and saves no result.
        """
        try:
            return await self.answer(store, request, writes=writes)
        except Closed as closed:
            raise PlatformError([ConnectorError(closed)]) from closed

    async def result_or_raise[T](
        self, work: Coroutine[Any, Any, T], *, waits: bool = False, timeout_s: float | None = None
    ) -> T:
        """Return the result of the work, or raise the first outage, and cancel the work.

        `waits`: raise only an outage that cannot end while this process runs, as a worker does.
        `timeout_s`: seconds after which `NoAnswer` is raised, whatever was lost.
        """
        outage: asyncio.Future[NoReturn] = asyncio.get_running_loop().create_future()
        self._callers[outage] = waits
        task = asyncio.ensure_future(_unwrapped(work))
        try:
            either: set[asyncio.Future[Any]] = {task, outage}
            done, _ = await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if outage in done:
                raise outage.exception() or AssertionError
            if not done:
                raise NoAnswer(f"no result within {timeout_s:.0f} s; what was begun may still finish: call again")
            return task.result()
        finally:
            del self._callers[outage]
            outage.cancel()
            if task.cancel():
                await asyncio.wait({task}, timeout=limits.FIRST_ANSWER_TIMEOUT_S)  # it closes its connections


async def _unwrapped[T](work: Coroutine[Any, Any, T]) -> T:
    """Return the result of the work. Raise the cause of a `PlatformError`, which is no `Exception`, in its place."""
    error: BaseException
    try:
        return await work
    except PlatformError as failed:
        error = failed.cause
    except ServerError as refused:
        error = refused
    if isinstance(error, ConnectorError) and isinstance(error.error, Unavailable):
        error = error.error
    if isinstance(error, ServerError):
        error = Unavailable(f"the Resonate server refused a request ({error}); run again")
    raise error
