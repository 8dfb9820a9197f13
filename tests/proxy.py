"""A proxy between the program and a server, with the faults of proxies and of networks."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from .conftest import HANG_S, free_port, wait_until


@dataclass
class Proxy:
    """It forwards connections to the port `upstream`. While it is `broken` it answers in the server's place with 503.

    `forgets_s`: it forgets a connection that was idle for so long, and says nothing, as load balancers do.
    `loses`: the first answer that contains it, after a request that contains `after`, is lost. Its connection is closed
    then; `silent`: it stays open, and nothing comes any more.
    """

    upstream: int
    forgets_s: float = HANG_S
    loses: bytes | None = None
    after: bytes | None = None
    silent: bool = False
    port: int = field(default_factory=free_port)
    broken = losing = lost = False
    answers = 0
    busy_at = 0.0

    @contextlib.contextmanager
    def started(self) -> Iterator[Proxy]:
        listening = threading.Event()
        thread = threading.Thread(target=asyncio.run, args=[self._listen(listening)])
        thread.start()
        listening.wait()
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._end.set)
            thread.join()
        assert self.lost or self.loses is None

    async def _listen(self, listening: threading.Event) -> None:
        self._loop, self._end, self._open = asyncio.get_running_loop(), asyncio.Event(), set[asyncio.StreamWriter]()
        async with await asyncio.start_server(self._serve, "127.0.0.1", self.port):
            listening.set()
            await self._end.wait()
            self._abort()

    def _abort(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    @contextlib.contextmanager
    def restarting(self) -> Iterator[None]:
        """Break as in a rolling restart, until it has answered some requests."""
        self.broken, before = True, self.answers
        self._loop.call_soon_threadsafe(self._abort)
        yield
        wait_until(lambda: self.answers > before + 5)
        self.broken = False

    def has_forgotten(self) -> bool:
        """Return whether all connections were idle for so long."""
        return time.monotonic() - self.busy_at > self.forgets_s

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.broken:
            await reader.readuntil(b"\r\n\r\n")
            self.answers += 1
            head = b"HTTP/1.1 503 x\r\nContent-Type: text/html\r\nContent-Length: 6\r\nConnection: close\r\n\r\n"
            writer.write(head + b"<html>")
            await writer.drain()
            writer.close()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self.upstream)
        self._open |= {writer, back}
        busy_at, loses_all = time.monotonic(), False

        async def pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            nonlocal busy_at, loses_all
            with contextlib.suppress(OSError):
                while data := await source.read(65_536):
                    if time.monotonic() - busy_at > self.forgets_s:
                        continue
                    self.busy_at = busy_at = time.monotonic()
                    if sink is back and self.after is not None and self.after in data:
                        self.losing = True
                    if (
                        sink is writer
                        and self.losing
                        and not self.lost
                        and self.loses is not None
                        and self.loses in data
                    ):
                        self.lost = loses_all = True
                    if sink is back or not loses_all:
                        sink.write(data)
                        await sink.drain()
                    elif not self.silent:
                        break
            sink.close()

        await asyncio.gather(pipe(reader, back), pipe(there, writer))
        self._open -= {writer, back}
