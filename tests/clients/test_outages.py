"""How a command ends at an error of the SDK that no step has met."""

from __future__ import annotations

import asyncio

import pytest
from resonate.error import PlatformError, ServerError

from clients.errors import NoAnswer, Unavailable
from clients.outages import Outages

from ..conftest import HANG_S


@pytest.mark.parametrize(
    "error", [PlatformError([ServerError(400, "no")]), ServerError(400, "no")], ids=["in a request", "from the SDK"]
)
def test_refused_request_outside_a_step_ends_with_one_line(error: BaseException) -> None:
    async def command() -> None:
        async def work() -> None:
            raise error

        await Outages().result_or_raise(work())

    with pytest.raises(Unavailable, match=r"refused a request \(server error \(code=400\): no\); run again"):
        asyncio.run(command())


def test_outage_is_raised_to_each_caller_and_its_work_is_cancelled() -> None:
    cancelled: list[str] = []

    async def work(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(name)

    async def main() -> list[object]:
        outages = Outages()
        calls = [asyncio.ensure_future(outages.result_or_raise(work(name))) for name in "ab"]
        await asyncio.sleep(0)
        outages.report(Unavailable("the outage"), "store")
        return list(await asyncio.gather(*calls, return_exceptions=True))

    assert [str(error) for error in asyncio.run(main())] == ["the outage"] * 2
    assert sorted(cancelled) == ["a", "b"]


def test_call_ends_within_its_time_limit_whatever_was_lost() -> None:
    with pytest.raises(NoAnswer, match="no result within 0 s; what was begun may still finish: call again"):
        asyncio.run(Outages().result_or_raise(asyncio.sleep(HANG_S), timeout_s=0))
