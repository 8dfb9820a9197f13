"""A TigerBeetle that is unavailable: a run waits for it, or ends with one line, and no promise is settled."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path
from typing import cast

import pytest
import tigerbeetle as tb

from clients.command.console import print_diagnostic
from clients.limits import ANSWER_TIMEOUT_S
from clients.outages import Outages
from clients.stores.system_of_record import Ledger, SystemOfRecord

from ..conftest import Replica, World, quick_only
from ..proxy import Proxy
from .commands import SHORT_TIMEOUT_S, assert_gave_up, assert_resumes, assert_unavailable, command

INVALID = ["localhost:3000", "nonsense", "127.0.0.1:99999", "é"]
WRONG = {
    "nobody listens": ({"TB_ADDRESS": "127.0.0.1:1", "FIRST_ANSWER": "1"}, ["TigerBeetle at 127.0.0.1:1 ", "start it"]),
    "another cluster": ({"TB_CLUSTER_ID": "7"}, ["cluster 7", "correct TB_ADDRESS or TB_CLUSTER_ID"]),
    **{address: ({"TB_ADDRESS": address}, ["TB_ADDRESS", "127.0.0.1:3000"]) for address in INVALID},
}


@pytest.mark.parametrize("name", quick_only([*INVALID, "another cluster"], WRONG))
def test_wrong_address_or_cluster_is_named(embedded_world: World, request: pytest.FixtureRequest, name: str) -> None:
    env, words = WRONG[name]
    if "TB_ADDRESS" not in env:
        env = env | {"TB_ADDRESS": request.getfixturevalue("tb_address")}
    assert_unavailable(command(embedded_world, "u", env=env), *words)


def test_rerun_resumes_after_the_answer_of_tigerbeetle_is_lost(tmp_path: Path, user: str) -> None:
    """The account is committed, but the run does not learn of it. The next run gets EXISTS, which is no panic."""
    with Replica.started(tmp_path) as replica:
        world = World(tmp_path, {"DATA_DIR": str(tmp_path / "data"), "TB_ADDRESS": replica.address})
        with Proxy(replica.port, loses=b"", silent=True).started() as proxy:
            lossy = {"PATIENCE": SHORT_TIMEOUT_S, "TB_ADDRESS": f"127.0.0.1:{proxy.port}"}
            with world.paused_at(user, "before write 3", **lossy) as process:
                proxy.losing = True
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

    async def main() -> None:
        slow = SlowLedger()
        slow.answers[0].set()
        record = await SystemOfRecord(lambda: cast("Ledger", slow)).open()
        lost = asyncio.create_task(record.lookup("1"))
        await clock.move(0)
        slow.answers[1] = slow.answers[2] = slow.answers[0]  # the first answer to the look-up of 1 never comes
        await record.lookup("2")
        await clock.move(ANSWER_TIMEOUT_S)
        assert lost.result() is None

    clock = Clock()
    with asyncio.Runner(loop_factory=lambda: clock) as runner:
        runner.run(main())
