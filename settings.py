"""Where the example's stores and promises are, read from the environment, and how they are opened.

| variable | default | meaning |
|---|---|---|
| `TB_ADDRESS` | unset: embedded | TigerBeetle replica addresses, as its client takes them |
| `TB_CLUSTER_ID` | `0` | |
| `RESONATE_URL` | unset: embedded | a Resonate server; `RESONATE_HOST` counts too, as in the SDK |
| `RESONATE_TOKEN` | unset | passed on to the server |
| `DATA_DIR` | `data/embedded`, or `data/cluster-<id>` with a real TigerBeetle | `accounts.db` and the embedded parts |
"""

from __future__ import annotations

import asyncio
import contextlib
import unicodedata
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tigerbeetle as tb

from embedded import EmbeddedLedger, EmbeddedPromises
from server import GROUP, server
from stores import DIGITS, Database, Outages, SystemOfRecord, SystemOfReference, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from stores import Ledger

UUID_MAX = 256


@dataclass(frozen=True)
class Settings:
    tb_address: str | None
    tb_cluster_id: int
    resonate_url: str | None
    resonate_token: str | None
    data_dir: Path

    @classmethod
    def read(cls, env: Mapping[str, str]) -> Settings:
        """Read the variables above. Raises `Unavailable` where they cannot mean anything."""
        address = env.get("TB_ADDRESS") or None
        cluster = env.get("TB_CLUSTER_ID") or "0"
        if not (
            cluster.isascii() and cluster.isdecimal() and len(cluster) <= DIGITS and int(cluster) < 2**128
        ):
            raise Unavailable(
                f"TB_CLUSTER_ID={cluster!r} is no cluster id: set it to a number from 0 to 2^128 - 1"
            )
        url = env.get("RESONATE_URL") or None
        if url is None and env.get("RESONATE_HOST"):
            scheme, port = env.get("RESONATE_SCHEME", "http"), env.get("RESONATE_PORT", "8001")
            url = f"{scheme}://{env['RESONATE_HOST']}:{port}"
        if url is not None and address is None:
            raise Unavailable(
                "a Resonate server is set but no TB_ADDRESS, and a shared engine must not drive a private ledger: "
                "set TB_ADDRESS, or unset RESONATE_URL and RESONATE_HOST"
            )
        token = env.get("RESONATE_TOKEN") or None
        if token is not None and not (token.isascii() and token.isprintable()):
            raise Unavailable(
                "RESONATE_TOKEN has a character that no token has, perhaps a newline: correct it"
            )
        default = Path("data") / ("embedded" if address is None else f"cluster-{int(cluster)}")
        data_dir = Path(env["DATA_DIR"]) if env.get("DATA_DIR") else default
        return cls(address, int(cluster), url, token, data_dir)

    @property
    def stand_ins(self) -> str | None:
        """One line that says which parts are embedded, if any."""
        if self.tb_address is None:
            return f"embedded: the ledger and the durable promises are stand-ins for trying, kept in {self.data_dir}"
        if self.resonate_url is None:
            return f"embedded: the durable promises are kept in {self.data_dir}, for one process at a time"
        return None


@dataclass(frozen=True)
class Clients:
    """What `create_account` is wired to, open."""

    reference: SystemOfReference
    record: SystemOfRecord
    promises: dict[str, Any]  # arguments of `Resonate`
    outages: Outages
    _database: Database

    async def close_stores(self) -> None:
        await asyncio.gather(self._database.close(), self.record.close())


@contextlib.asynccontextmanager
async def open_clients(settings: Settings, *, serve: bool = False) -> AsyncIterator[Clients]:
    """Open both stores and the connection to the promises. Raises `Unavailable`.

    `serve`: take work that others have started, as a worker does; a command does only its own.
    """
    outages = Outages()
    async with contextlib.AsyncExitStack() as stack:
        promises: dict[str, Any]
        if settings.resonate_url is None:
            engine = EmbeddedPromises(settings.data_dir, GROUP, outages)
            stack.push_async_callback(engine.close)
            await engine.open()
            # No other process can take over, so no lease ever ends; nothing is pushed, so nothing is polled.
            promises = {"network": engine, "ttl": timedelta(0), "subscription_refresh_secs": 0}
        else:
            promises = server(settings.resonate_url, settings.resonate_token, outages, serve=serve)
        database = Database(settings.data_dir / "accounts.db", SystemOfReference.SCHEMA)
        stack.push_async_callback(database.close)
        record = open_record(settings, outages)
        stack.push_async_callback(record.close)
        await asyncio.gather(database.open(), record.open())
        yield Clients(SystemOfReference(database, outages), record, promises, outages, database)


def open_record(settings: Settings, outages: Outages) -> SystemOfRecord:
    address, cluster = settings.tb_address, settings.tb_cluster_id
    if address is None:
        return SystemOfRecord(EmbeddedLedger(settings.data_dir).open, "the embedded ledger", outages)

    async def connect() -> Ledger:
        try:
            return tb.ClientAsync(cluster_id=cluster, replica_addresses=address)
        except (tb.client.InitError, UnicodeEncodeError) as error:
            reason = getattr(error.args[0], "name", "not ASCII")
            raise Unavailable(
                f"no TigerBeetle client for TB_ADDRESS={address!r} ({reason}); it takes ports or IP:port, separated "
                "by commas, such as 3000 or 127.0.0.1:3000, and no host names"
            ) from error

    return SystemOfRecord(connect, f"TigerBeetle at {address}, cluster {cluster},", outages)


def check_uuid(uuid: str) -> str:
    """Return `uuid`, which becomes part of a durable promise's id. Raises ValueError saying what is wrong."""
    if not uuid:
        raise ValueError("the uuid is empty")
    if len(uuid) > UUID_MAX:
        raise ValueError(f"the uuid has {len(uuid)} characters; {UUID_MAX} is the most")
    if ":" in uuid:
        raise ValueError("the uuid has a colon, which separates the parts of a promise's id")
    for character in uuid:
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise ValueError(
                f"the uuid has the character {character!a}: a control character or half of a pair"
            )
    return uuid
