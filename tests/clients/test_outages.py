"""How a command ends at an error of the SDK that no step has met."""

from __future__ import annotations

import asyncio

import pytest
from resonate.error import ConnectorError, PlatformError, ServerError

from clients.command.console import Unavailable
from clients.command.outages import Outages


@pytest.mark.parametrize(
    "error", [PlatformError([ServerError(400, "no")]), ServerError(400, "no")], ids=["in a request", "from the SDK"]
)
def test_refused_request_outside_a_step_ends_with_one_line(error: BaseException) -> None:
    async def command() -> None:
        async with Outages().interrupting():
            raise error

    with pytest.raises(Unavailable, match=r"refused a request \(server error \(code=400\): no\); run again"):
        asyncio.run(command())


def test_error_that_follows_from_an_outage_is_not_shown() -> None:
    async def command() -> None:
        outages = Outages()
        async with outages.interrupting():
            with pytest.raises(Unavailable):
                outages.report(Unavailable("the outage"))
            raise PlatformError([ConnectorError(RuntimeError("its consequence"))])

    with pytest.raises(Unavailable, match="the outage"):
        asyncio.run(command())
