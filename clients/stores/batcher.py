"""Share requests between the accounts that are in flight."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


class Batcher[Q, A]:
    """Batch requests: those that arrive while one batch is in flight form the next batch."""

    def __init__(self, send: Callable[[list[Q]], Coroutine[None, None, list[A]]]) -> None:
        self._send = send
        self._waiting: list[tuple[Q, asyncio.Future[A]]] = []
        self._sending: asyncio.Task[None] | None = None

    async def ask(self, request: Q) -> A:
        """Return the answer, or raise the error of the whole batch."""
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, answer))
        if self._sending is None or self._sending.done():  # an eager task may be done when it is created
            self._sending = asyncio.create_task(self._send_waiting())
        return await answer

    async def drain(self) -> None:
        """Wait until no request is waiting or in flight."""
        if self._sending is not None:
            await asyncio.wait({self._sending})  # unlike `await`, this does not pass on a cancellation

    async def _send_waiting(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                answers = await self._send([request for request, _ in batch])
            except Exception as error:  # noqa: BLE001 - those who asked get it
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
            else:
                for (_, answer), value in zip(batch, answers, strict=True):
                    if not answer.done():
                        answer.set_result(value)
