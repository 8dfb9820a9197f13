"""Does the SDK still need each workaround? Each test runs the unmodified SDK and fails as soon as it does not.

Then remove the workaround and its test. The paths in the docstrings are those of resonate-sdk 0.8.1. No test
needs a server: the SDK's in-process engine answers, or a small web server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from resonate.connections import HttpConnection, LocalConnection, SSEConnection
from resonate.connections.local import OutgoingMessage
from resonate.connections.sse import SseFramer
from resonate.context import Context
from resonate.error import ApplicationError, ConnectorError, PlatformError, ServerError
from resonate.heartbeat import NoopHeartbeat
from resonate.resonate import Resonate
from resonate.retry import ExponentialBackoff, Never
from resonate.testing import FakeClock, ManualSleeper, RecordingSleeper

from clients.promises import server as resonate_server
from clients.promises.server import Messages
from operations.backfill import SINGLE_RUNS_MAX

from .conftest import HANG_S, ROOT, free_port

DAY_MS = 86_400_000
FOR_EVER_S = 10 * 365 * 86_400


class Server(LocalConnection):
    """The SDK's in-process engine in place of a server. It pushes no messages, and its time stands still."""

    def __init__(self) -> None:
        super().__init__(clock=FakeClock(), sleeper=ManualSleeper())
        self.requests: list[str] = []
        self.unsent: list[Any] = []
        self.hooks: dict[str, Callable[[str], Awaitable[str]]] = {}

    async def send(self, req: str, headers: dict[str, str] | None = None) -> str:
        kind = json.loads(req)["kind"]
        self.requests.append(kind)
        return await (self.hooks[kind](req) if kind in self.hooks else super().send(req, headers))

    async def answer(self, req: str) -> str:
        """Answer as if there was no hook."""
        return await super().send(req)

    def fail(self, kind: str, status: int) -> None:
        """Answer the requests of this kind with an error."""

        async def error(req: str) -> str:
            head = {"corrId": json.loads(req)["head"]["corrId"], "status": status}
            return json.dumps({"kind": kind, "head": head, "data": "an error"})

        self.hooks[kind] = error

    def _dispatch_messages(self, messages: list[OutgoingMessage]) -> None:
        self.unsent += [message.message for message in messages]

    def push(self, message: dict[str, Any]) -> None:
        for receive in self._subscribers:
            receive(json.dumps(message))

    def create_task(self, id_: str, func: str = "", pid: str | None = None) -> None:
        """Create a promise and its task, which the process `pid` has leased."""
        promise = {"id": id_, "timeoutAt": 2**52, "tags": {"resonate:target": "poll://any@default"}}
        if func:
            encoded = Resonate(network=LocalConnection(), env={}, autostart=False)._codec.encode(
                {"func": func, "args": [], "version": 1}
            )
            promise["param"] = {"headers": {}, "data": encoded.data}
        if pid is None:
            self.state.apply(0, {"kind": "promise.create", **promise})
        else:
            action = {"kind": "promise.create", "data": promise}
            self.state.apply(0, {"kind": "task.create", "pid": pid, "ttl": 60_000, "action": action})


def offer(id_: str) -> dict[str, Any]:
    return {"kind": "execute", "data": {"task": {"id": id_, "version": 0}}}


@contextlib.asynccontextmanager
async def sdk(server: Server, **options: Any) -> AsyncIterator[Resonate]:
    defaults: dict[str, Any] = {"network": server, "subscription_refresh_secs": 0, "retry_policy": Never(), "env": {}}
    resonate = Resonate(**(defaults | options))
    try:
        yield resonate
    finally:
        await resonate.stop()


async def idle(resonate: Resonate) -> None:
    """Wait until the SDK has nothing left to do. What it has not done by then, it will not do."""
    while tasks := resonate._runtime.bg_tasks:
        await asyncio.wait(tasks)
        await asyncio.sleep(0)


def run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(HANG_S):
            await main

    asyncio.run(bounded())


async def step(ctx: Context) -> str:
    return "done"


async def workflow(ctx: Context) -> str:
    return await ctx.run(step)


# -- Requests: clients/promises/server.py ----------------------------------


def test_outages_are_retried_silently_without_a_limit() -> None:
    """connections/http.py: `HttpConnection.send` has no last attempt."""

    async def main() -> None:
        enough = asyncio.Event()
        sleeper = RecordingSleeper()

        async def sleep(seconds: float) -> None:
            await sleeper(seconds)
            if sleeper.total > FOR_EVER_S:
                enough.set()
                await asyncio.Event().wait()

        backoff = ExponentialBackoff(max_delay=FOR_EVER_S)
        connection = HttpConnection(f"http://127.0.0.1:{free_port()}", backoff=backoff, sleeper=sleep)
        await connection.start()
        sending = asyncio.create_task(connection.send("{}"))
        waiting = asyncio.create_task(enough.wait())
        await asyncio.wait({sending, waiting}, return_when=asyncio.FIRST_COMPLETED)
        assert not sending.done(), "it gave up"
        await connection.stop()
        with pytest.raises(ConnectorError):
            await sending
        waiting.cancel()

    run(main())


def test_backoff_ends_at_an_overflow() -> None:
    """retry.py: `ExponentialBackoff.delay` computes 2.0**attempt. The listener and the requests end at this error."""
    with pytest.raises(OverflowError):
        ExponentialBackoff(max_delay=5).delay(1024)
    assert resonate_server.RECONNECT.delay(10**6) == 5


def test_http_status_is_ignored() -> None:
    """connections/http.py: `HttpConnection.send` returns the body of any response, also of a proxy's 503."""

    async def unavailable(_: web.Request) -> web.StreamResponse:
        return web.Response(status=503, text="<html>")

    async def main() -> None:
        async with web_server(unavailable) as url:
            connection = HttpConnection(url)
            await connection.start()
            assert await connection.send("{}") == "<html>"
            await connection.stop()

    run(main())


def test_each_canary_that_a_workaround_names_exists() -> None:
    for path in (ROOT / "clients/promises").glob("*.py"):
        for name in re.findall(r"\btest_\w+(?!\w*\.py)\b", path.read_text()):
            assert name == "test_canaries" or name in globals(), f"{path}: {name}"


def test_server_error_ends_the_execution() -> None:
    """core.py: `Core.execute_until_blocked_outer` releases the task after one response with a 5xx."""

    async def main() -> None:
        server = Server()
        server.fail("task.fence", 500)
        async with sdk(server) as resonate:
            resonate.register(workflow)
            handle = resonate.run("p", workflow)
            await idle(resonate)
            assert [kind for kind in server.requests if kind.startswith("task.")] == [
                "task.create",
                "task.fence",
                "task.release",
            ]
            assert not handle.done()

    run(main())


def test_time_out_of_aiohttp_is_no_error_of_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """connections/http.py: `HttpConnection.send` handles `aiohttp.ClientError`, but a `TimeoutError` is no `ClientError`."""
    monkeypatch.setattr(aiohttp.client, "DEFAULT_TIMEOUT", aiohttp.ClientTimeout(total=0.05))

    async def main() -> None:
        async with web_server(silence) as url:
            connection = HttpConnection(url)
            await connection.start()
            with pytest.raises(TimeoutError):
                await connection.send("{}")
            await connection.stop()

    run(main())


def test_unexpected_error_of_a_request_ends_the_execution_without_a_release() -> None:
    """effects.py: only a `ResonateError` becomes a `PlatformError`, and core.py releases after these two alone."""

    async def main() -> None:
        server = Server()

        async def time_out(req: str) -> str:
            if json.loads(req)["data"]["action"]["kind"] == "promise.create":
                return await server.answer(req)
            raise TimeoutError("five minutes")

        server.hooks["task.fence"] = time_out
        async with sdk(server) as resonate:
            resonate.register(workflow)
            handle = resonate.run("p", workflow)
            await idle(resonate)
            assert server.requests[-1] == "task.fence"
            assert server.state.tasks["p"].state == "acquired"
            assert not handle.done()

    run(main())


def test_task_that_another_process_had_leased_is_not_requested_again() -> None:
    """resonate.py: after a conflict, `Resonate.run` only registers listeners."""

    async def main() -> None:
        server, sleeper = Server(), ManualSleeper()
        server.create_task("p", func="workflow", pid="dead")
        async with sdk(server, subscription_refresh_secs=1, sleeper=sleeper) as resonate:
            resonate.register(workflow)
            handle = resonate.run("p", workflow)
            await idle(resonate)
            server.state.apply(0, {"kind": "task.release", "id": "p", "version": 0})  # the lease expires
            await sleeper.tick(20)
            assert set(server.requests) == {"task.create", "promise.register_listener"}
            assert server.state.tasks["p"].state == "pending"
            assert not handle.done()

    run(main())


def test_own_result_is_not_delivered_before_the_server_pushes_it() -> None:
    """resonate.py: `Resonate.run` drops what `Core.execute_until_blocked_outer` returns."""

    async def main() -> None:
        server, listening = Server(), asyncio.Event()

        async def listen(req: str) -> str:
            response = await server.answer(req)
            listening.set()
            return response

        async def waits(ctx: Context) -> str:
            await listening.wait()
            return "done"

        server.hooks["promise.register_listener"] = listen
        async with sdk(server) as resonate:
            resonate.register(waits)
            handle = resonate.run("p", waits)
            await idle(resonate)
            assert server.state.promises["p"].state == "resolved"
            assert not handle.done()

    run(main())


def test_worker_releases_a_task_that_it_cannot_execute_and_is_offered_it_at_once() -> None:
    """core.py: `Core.on_message` and `execute_until_blocked_outer` release whatever was wrong: a busy loop."""

    async def main() -> None:
        server = Server()
        server.create_task("p", func="lacked")
        server.unsent.clear()
        async with sdk(server) as resonate:
            server.push(offer("p"))
            await idle(resonate)
            assert server.requests == ["task.acquire", "task.release"]
            assert [message["kind"] for message in server.unsent] == ["execute"]

    run(main())


def test_command_waits_for_a_task_that_it_cannot_execute() -> None:
    """resonate.py: `_spawn` only logs the error of an execution, and the handle waits."""

    async def main() -> None:
        server = Server()
        server.create_task("p", func="lacked")
        async with sdk(server) as resonate:
            resonate.register(workflow)
            handle = resonate.run("p", workflow)
            await idle(resonate)
            assert "task.release" in server.requests
            assert not handle.done()

    run(main())


def test_listener_takes_a_404_for_the_end_of_a_promise_that_is_being_created() -> None:
    """resonate.py: `_run_refresh` asks for each subscription, and `run` subscribes before it creates the promise."""

    async def main() -> None:
        server, sleeper, held = Server(), ManualSleeper(), asyncio.Event()

        async def hold(req: str) -> str:
            await held.wait()
            return await server.answer(req)

        server.hooks["task.create"] = hold
        async with sdk(server, subscription_refresh_secs=1, sleeper=sleeper) as resonate:
            resonate.register(workflow)
            handle = resonate.run("p", workflow)
            await sleeper.tick(2)
            held.set()
            await idle(resonate)
            assert server.state.promises["p"].state == "resolved"
            with pytest.raises(ApplicationError, match="not found"):
                await handle.result()

    run(main())


def test_stop_closes_the_connection_before_running_tasks_are_released() -> None:
    """resonate.py: `Resonate.stop` stops the connections first. A release then fails, and the lease must expire."""

    async def main() -> None:
        server, started = Server(), asyncio.Event()

        async def answer(request: web.Request) -> web.Response:
            return web.Response(text=await server.send(await request.text()))

        async with web_server(answer) as url:
            connection = HttpConnection(url)

            async def interrupted(ctx: Context) -> None:
                started.set()
                await connection._stop_event.wait()
                raise PlatformError([ConnectorError(RuntimeError("the store is closing"))])

            async with sdk(server, network=connection, sources=[]) as resonate:
                resonate.register(interrupted)
                resonate.run("p", interrupted)
                await started.wait()
        assert "task.release" not in server.requests
        assert server.state.tasks["p"].state == "acquired"

    run(main())


# -- Messages: clients/promises/server.py ----------------------------------


CLOSING = web.AppKey("closing", asyncio.Event)


@contextlib.asynccontextmanager
async def web_server(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    app = web.Application()
    app[CLOSING] = asyncio.Event()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        [address] = runner.addresses
        yield f"http://127.0.0.1:{address[1]}"
    finally:
        app[CLOSING].set()
        await runner.cleanup()


async def silence(request: web.Request) -> web.StreamResponse:
    """Begin a response, and send nothing more."""
    response = web.StreamResponse()
    await response.prepare(request)
    await request.app[CLOSING].wait()
    return response


def test_listener_ends_for_good_at_the_time_limit_of_aiohttp(monkeypatch: pytest.MonkeyPatch) -> None:
    """connections/sse.py: `SSEConnection._sse_loop` handles `aiohttp.ClientError`, but a `TimeoutError` is no `ClientError`."""
    monkeypatch.setattr(aiohttp.client, "DEFAULT_TIMEOUT", aiohttp.ClientTimeout(total=0.05))

    async def main() -> None:
        async with web_server(silence) as url:
            listener = SSEConnection(url=url)
            await listener.start()
            loop = listener._sse_handle
            assert loop is not None
            with pytest.raises(TimeoutError):
                await loop
            with pytest.raises(TimeoutError):
                await listener.stop()
            await listener.stop()

    run(main())


def test_listener_of_this_program_reconnects_after_a_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiohttp.client, "DEFAULT_TIMEOUT", aiohttp.ClientTimeout(total=0.05))
    monkeypatch.setattr(resonate_server, "SILENCE_TIMEOUT_S", 0.05)

    async def main() -> None:
        polls: list[str] = []
        heard = asyncio.Event()

        async def second_speaks(request: web.Request) -> web.StreamResponse:
            polls.append(request.path)
            if len(polls) == 1:
                return await silence(request)
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(f"data: {json.dumps(offer('p'))}\n\n".encode())
            return response

        async with web_server(second_speaks) as url:
            listener = Messages(url, None, "pid", "group")
            listener.recv(lambda _: heard.set())
            await listener.start()
            await heard.wait()
            await listener.stop()

    run(main())


def test_sdk_queues_a_task_each_time_that_it_is_offered() -> None:
    """resonate.py: `Resonate._on_message` starts an asyncio task for each message."""

    async def main() -> None:
        server, offers = Server(), 1000
        server.create_task("p", func="workflow")
        async with sdk(server) as resonate:
            queued = len(resonate._runtime.bg_tasks)
            for _ in range(offers):
                server.push(offer("p"))
            assert len(resonate._runtime.bg_tasks) == queued + offers

    run(main())


def test_line_separator_in_a_message_splits_it() -> None:
    """connections/sse.py: `_data_lines` uses `str.splitlines`. So account.py refuses U+2028 and U+2029."""
    for separator in "\u2028\u2029\x85":
        data = json.dumps({"id": f"a{separator}b"}, ensure_ascii=False)
        assert SseFramer().feed(f"data: {data}\n\n".encode()) == ['{"id": "a']


# -- Handles and leases: clients/promises/results.py, operations/backfill.py


def test_handle_waits_for_a_promise_whose_creation_failed() -> None:
    """resonate.py: `Resonate.run` passes the error to `handle.id()` alone. So results.py awaits that first."""

    async def main() -> None:
        server = Server()
        server.fail("task.create", 422)
        async with sdk(server) as resonate:
            resonate.register(workflow)
            handle = resonate.run("p", workflow)
            await idle(resonate)
            with pytest.raises(ServerError):
                await handle.id()
            assert not handle.done()

    run(main())


def test_run_leases_a_task_before_it_may_execute_it() -> None:
    """resonate.py: `Resonate.run` leases, and `_bounded_execute` waits. So a backfill starts at most that many."""

    async def main() -> None:
        server, end, slots = Server(), asyncio.Event(), asyncio.Semaphore(0)

        async def waits(ctx: Context) -> None:
            slots.release()
            await end.wait()

        async with sdk(server) as resonate:
            resonate.register(waits)
            handles = [resonate.run(f"p{number}", waits) for number in range(SINGLE_RUNS_MAX + 1)]
            for handle in handles:
                await handle.id()
            for _ in range(SINGLE_RUNS_MAX):
                await slots.acquire()
            states = [task.state for task in server.state.tasks.values()]
            full = resonate._runtime.execute_sema.locked()
            end.set()
        assert states == ["acquired"] * len(handles)
        assert full

    run(main())


# -- The engine: clients/promises/embedded.py -------------------------------


def test_engine_answers_a_promise_without_a_task_as_if_another_process_had_leased_it() -> None:
    """connections/local.py: `ServerState.task_create`. The Resonate server answers 422."""
    server = Server()
    server.state.apply(0, {"kind": "promise.create", "id": "p", "timeoutAt": 2**52})
    action = {"kind": "promise.create", "data": {"id": "p", "timeoutAt": 2**52}}
    reply = server.state.apply(0, {"kind": "task.create", "pid": "1", "ttl": 1, "action": action})
    assert reply["status"] == 409


def test_engine_renews_no_lease() -> None:
    """resonate.py: `Resonate.__init__` has no heartbeat for a `LocalConnection`. So opening.py sets ttl 0."""

    async def main() -> None:
        async with sdk(Server()) as resonate:
            assert isinstance(resonate._heartbeat, NoopHeartbeat)

    run(main())
