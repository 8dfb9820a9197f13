"""What stands between a command and its Resonate server: a reverse proxy, TLS, a name server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from clients import limits
from clients.errors import Unavailable
from clients.outages import Outages
from clients.promises.server import Messages, Requests
from clients.stores import postgres as postgres_rows
from clients.stores.postgres import PostgresReference

from ..conftest import HANG_S, ServerWorld, assert_accounts_exist, free_port, numbered, wait_until
from ..operations.backfills import backfill, done
from ..operations.test_worker import worker
from ..postgres import Postgres
from .commands import assert_unavailable, command

ENVELOPE = {"kind": "promise.get", "head": {"corrId": "1", "status": 404, "version": "1"}, "data": "not found"}
REQUEST = json.dumps({"kind": "promise.get", "head": {"corrId": "1"}, "data": {"id": "create-account-u"}})


class Proxy:
    """A reverse proxy. While it is `broken` it answers in the server's place, as in a rolling restart.

    `forgets_s`: it forgets a connection that was idle for so long, and says nothing, as load balancers do.
    """

    def __init__(self, upstream: int, forgets_s: float = HANG_S) -> None:
        self.port, self.broken, self.answers = free_port(), False, 0
        self._upstream = upstream
        self._forgets_s = forgets_s
        self._busy_at = 0.0
        self._open: set[asyncio.StreamWriter] = set()

    @contextlib.contextmanager
    def started(self) -> Iterator[Proxy]:
        self._loop = loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        listening = asyncio.start_server(self._serve, "127.0.0.1", self.port)
        server = asyncio.run_coroutine_threadsafe(listening, loop).result()
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(server.close)
            self._abort()
            asyncio.run_coroutine_threadsafe(server.wait_closed(), loop).result(HANG_S)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def _abort(self) -> None:
        for writer in list(self._open):
            self._loop.call_soon_threadsafe(writer.transport.abort)

    @contextlib.contextmanager
    def restarting(self) -> Iterator[None]:
        self.broken, before = True, self.answers
        self._abort()
        yield
        wait_until(lambda: self.answers > before + 5)
        self.broken = False

    def has_forgotten(self) -> bool:
        """Return whether all connections were idle for so long."""
        return time.monotonic() - self._busy_at > self._forgets_s

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.broken:
            await reader.readuntil(b"\r\n\r\n")
            body, self.answers = b"<html>503 Service Temporarily Unavailable</html>", self.answers + 1
            head = (
                f"HTTP/1.1 503 x\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            writer.write(head.encode() + body)
            await writer.drain()
            writer.close()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self._upstream)
        self._open |= {writer, back}
        busy_at = time.monotonic()

        async def pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            nonlocal busy_at
            with contextlib.suppress(OSError):
                while data := await source.read(65_536):
                    if time.monotonic() - busy_at > self._forgets_s:
                        continue
                    self._busy_at = busy_at = time.monotonic()
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pipe(reader, back), pipe(there, writer))
        self._open -= {writer, back}


def test_request_after_a_pause_does_not_use_a_connection_that_was_forgotten(
    monkeypatch: pytest.MonkeyPatch, postgres: Postgres
) -> None:
    monkeypatch.setattr(postgres_rows, "IDLE_MAX_S", 0.2)
    monkeypatch.setattr(limits, "ANSWER_TIMEOUT_S", 5)

    async def main() -> None:
        with Proxy(postgres.port, forgets_s=1).started() as proxy:
            url = postgres.database().replace(str(postgres.port), str(proxy.port))
            rows = await PostgresReference(url).open()
            for _ in range(2):
                await asyncio.to_thread(wait_until, proxy.has_forgotten)
                assert await rows.find("u", []) == []
            await rows.close()

    asyncio.run(main())


def test_backfill_and_worker_survive_a_restart_behind_a_reverse_proxy(server_world: ServerWorld, user: str) -> None:
    uuids = numbered(user, 600)
    with Proxy(server_world.port).started() as proxy:
        server_world.env["RESONATE_URL"] = f"http://127.0.0.1:{proxy.port}"
        with worker(server_world, PATIENCE="1") as serving, backfill(server_world, "--chunk", "50") as process:
            process.write(*uuids)
            first = process.readline()
            with proxy.restarting():
                wait_until(lambda: bool(serving.said("a proxy answered with HTTP status 503")))
            many = done(process, *process.communicate(timeout=HANG_S))
            wait_until(lambda: bool(serving.said("is available again")))
    assert many.status == 0, many.err
    printed = many.accounts | dict([first.strip().split("\t")])
    assert set(printed) == set(uuids)
    assert_accounts_exist(server_world, printed)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
@pytest.mark.parametrize("body", ["<html>", '{"message": "no healthy upstream"}', ""])
def test_answer_of_a_proxy_is_an_outage_that_passes(status: int, body: str) -> None:
    async def main() -> None:
        answers = iter([(status, body), (status, body), (404, json.dumps(ENVELOPE))])

        async def answer(_: web.BaseRequest) -> web.StreamResponse:
            code, text = next(answers)
            return web.Response(status=code, text=text)

        async with RawTestServer(answer) as server:
            url = str(server.make_url("/"))
            requests = Requests(url, None, Outages(), Messages(url, None, "pid", "group"), "pid", serve=False)
            await requests.start()
            assert json.loads(await requests.send(REQUEST)) == ENVELOPE
            await requests.stop()

    asyncio.run(asyncio.wait_for(main(), HANG_S))


ENDS = {
    "the proxy keeps answering 503": (
        503,
        "<html>",
        "did not answer within 0 s: a proxy answered with HTTP status 503",
    ),
    "another web server": (200, "<html>", "sent an invalid response"),
    "another path": (404, "", "is no Resonate server: it answered with HTTP status 404; correct RESONATE_URL"),
    "not UTF-8": (200, b"\xff", "sent an invalid response"),
    "a token that the proxy refuses": (401, "<html>", "rejected the token"),
    "a token that the server refuses": (
        403,
        json.dumps(ENVELOPE | {"head": {"corrId": "1", "status": 403}}),
        "rejected the token for promise.get create-account-u; correct RESONATE_TOKEN",
    ),
}


@pytest.mark.parametrize(
    ("case", "waits"), [*((case, False) for case in ENDS), *((case, True) for case in ENDS if "token" in case)]
)
def test_answer_that_does_not_pass_is_named(monkeypatch: pytest.MonkeyPatch, case: str, waits: bool) -> None:
    """A worker waits, but a rejected token ends it, too: its environment cannot change."""
    status, body, words = ENDS[case]
    monkeypatch.setattr(limits, "FIRST_ANSWER_TIMEOUT_S", 0.3 if "did not answer" in words else HANG_S)

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=status, body=body)

    async def main() -> None:
        async with RawTestServer(answer) as server:
            url, outages = str(server.make_url("/")), Outages()
            requests = Requests(url, None, outages, Messages(url, None, "pid", "group"), "pid", serve=waits)
            await requests.start()
            sending = asyncio.create_task(requests.send(REQUEST))
            try:
                await outages.result_or_raise(asyncio.sleep(HANG_S), waits=waits)
            finally:
                sending.cancel()
                await requests.stop()

    with pytest.raises(Unavailable, match=words):
        asyncio.run(main())


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://127.0.0.1:{port}", "[Ss][Ss][Ll]"),  # the server speaks http
        ("http://no-such-host.invalid:8001", "no-such-host.invalid"),
        ("http://127.0.0.1:1", "127.0.0.1:1 "),
    ],
)
def test_server_that_cannot_be_reached_is_named_with_the_cause(server_world: ServerWorld, url: str, words: str) -> None:
    done = command(server_world, "u", env={"RESONATE_URL": url.format(port=server_world.port)})
    assert_unavailable(done, "did not answer within 5 s: ", "correct RESONATE_URL")
    assert re.search(words, done.stderr.partition("5 s: ")[2])
