"""A TigerBeetle that is unavailable: a run waits for it, or ends with one line, and no promise is settled."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from pathlib import Path
from typing import cast

import pytest
import tigerbeetle as tb

from clients.command.console import print_diagnostic
from clients.limits import ANSWER_TIMEOUT_S
from clients.outages import Outages
from clients.stores.system_of_record import Ledger, SystemOfRecord

from ..conftest import Replica, World, free_port
from ..postgres import lossy_proxy
from .commands import SHORT_TIMEOUT_S, assert_gave_up, assert_resumes, assert_unavailable, command


@pytest.mark.slow
def test_unavailable_tigerbeetle_is_named(embedded_world: World) -> None:
    address = f"127.0.0.1:{free_port()}"
    assert_unavailable(
        command(embedded_world, "u", env={"TB_ADDRESS": address, "FIRST_ANSWER": "1"}),
        "TigerBeetle",
        address,
        "start it",
    )


@pytest.mark.parametrize("address", ["localhost:3000", "nonsense", "127.0.0.1:99999", "é"])
def test_invalid_tigerbeetle_address_is_named(embedded_world: World, address: str) -> None:
    assert_unavailable(command(embedded_world, "u", env={"TB_ADDRESS": address}), "TB_ADDRESS", "127.0.0.1:3000")


def test_cluster_id_of_another_cluster_is_an_error(embedded_world: World, tb_address: str) -> None:
    assert_unavailable(
        command(embedded_world, "u", env={"TB_ADDRESS": tb_address, "TB_CLUSTER_ID": "7"}),
        "cluster 7",
        "correct TB_ADDRESS or TB_CLUSTER_ID",
    )


def test_rerun_resumes_after_the_answer_of_tigerbeetle_is_lost(tmp_path: Path, user: str) -> None:
    """The account is committed, but the run does not learn of it. The next run gets EXISTS, which is no panic."""
    with Replica.started(tmp_path) as replica:
        world = World(tmp_path, {"DATA_DIR": str(tmp_path / "data"), "TB_ADDRESS": replica.address})
        lost = threading.Event()
        with lossy_proxy(replica.port, b"", silent=True, after=lost) as port:
            lossy = {"PATIENCE": SHORT_TIMEOUT_S, "TB_ADDRESS": f"127.0.0.1:{port}"}
            with world.paused_at(user, "before write 3", **lossy) as process:
                lost.set()
            assert_gave_up(world.finish(process), "TigerBeetle")
        assert len(world.accounts(user)) == 1
        assert_resumes(world, user, ["3"])


# -- A worker --------------------------------------------------------------


class Clock(asyncio.SelectorEventLoop):
    """An event loop whose time the test moves."""

    now_s = 0.0

    def time(self) -> float:
        return self.now_s

    async def move(self, seconds: float) -> None:
        self.now_s += seconds
        for _ in range(10):  # callbacks of callbacks
            await asyncio.sleep(0)


class SlowLedger:
    """Answers a look-up when the test says so. A real server cannot be held between two answers."""

    def __init__(self) -> None:
        self.answers: dict[int, asyncio.Event] = defaultdict(asyncio.Event)

    async def lookup_accounts(self, ids: list[int]) -> list[tb.Account]:
        await self.answers[ids[0]].wait()
        return []

    async def close(self) -> None:
        pass


def test_late_answer_is_no_second_outage_while_others_are_answered(capsys: pytest.CaptureFixture[str]) -> None:
    def said() -> list[str]:
        return capsys.readouterr().err.splitlines()

    async def main() -> None:
        slow = SlowLedger()
        ledger = cast("Ledger", slow)
        slow.answers[0].set()
        record = await SystemOfRecord(lambda: ledger, "TigerBeetle", Outages(print_diagnostic)).open()
        first, second, third = (asyncio.create_task(record.lookup(guid)) for guid in "123")
        await clock.move(0)  # they are sent
        await clock.move(ANSWER_TIMEOUT_S)
        assert len(said()) == 1, "no request is answered: an outage"
        await clock.move(1)
        slow.answers[1].set()
        await first
        assert said() == ["TigerBeetle is available again"]
        await clock.move(ANSWER_TIMEOUT_S)
        assert said() == [], "a request was answered meanwhile"
        slow.answers[2].set()
        await second
        await clock.move(ANSWER_TIMEOUT_S)
        await clock.move(ANSWER_TIMEOUT_S)
        assert len(said()) == 1, "no request was answered meanwhile: another outage"
        slow.answers[3].set()
        await third
        assert said() == ["TigerBeetle is available again"]

    clock = Clock()
    with asyncio.Runner(loop_factory=lambda: clock) as runner:
        runner.run(main())


def test_request_whose_answer_is_lost_is_repeated() -> None:
    """The client can lose an answer, for example if its callback raises MemoryError. Other requests are answered."""

    class LosesOneAnswer(SlowLedger):
        lost = 0

        async def lookup_accounts(self, ids: list[int]) -> list[tb.Account]:
            if ids == [1] and not self.lost:
                self.lost = 1
                await asyncio.Event().wait()
            return []

    async def main() -> None:
        ledger = cast("Ledger", LosesOneAnswer())
        record = await SystemOfRecord(lambda: ledger).open()
        lost = asyncio.create_task(record.lookup("1"))
        await clock.move(0)
        await record.lookup("2")
        await clock.move(ANSWER_TIMEOUT_S)
        assert await lost is None

    clock = Clock()
    with asyncio.Runner(loop_factory=lambda: clock) as runner:
        runner.run(main())
