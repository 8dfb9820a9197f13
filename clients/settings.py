"""Read the settings. They come from environment variables only.

| variable | default | meaning |
|---|---|---|
| `TB_ADDRESS` | unset: embedded ledger | TigerBeetle replica addresses: ports or IP:port, separated by commas |
| `TB_CLUSTER_ID` | `0` | the TigerBeetle cluster's id |
| `REFERENCE_URL` | unset: SQLite in `DATA_DIR` | a PostgreSQL database, `postgresql://user:password@host:5432/database`, which many hosts can share |
| `RESONATE_URL` | unset: embedded promises | a Resonate server; `RESONATE_HOST` works too, as in the SDK |
| `RESONATE_TOKEN` | unset | sent to the Resonate server |
| `DATA_DIR` | `data/embedded` in the checkout, or `data/cluster-<id>` with a real TigerBeetle | the directory of `accounts.db` and of the embedded files |
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clients.command.console import Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The checkout that these modules belong to.
CHECKOUT = Path(__file__).resolve().parent.parent

CLUSTER_ID_DIGITS = 39  # of 2^128 - 1


@dataclass(frozen=True)
class Settings:
    tb_address: str | None
    tb_cluster_id: int
    resonate_url: str | None
    resonate_token: str | None
    data_dir: Path  # absolute
    reference_url: str | None

    @classmethod
    def read(cls, env: Mapping[str, str]) -> Settings:
        """Return the settings. Raises `Unavailable` if a variable is invalid or missing."""
        address = env.get("TB_ADDRESS") or None
        cluster = _cluster_id(env.get("TB_CLUSTER_ID") or "0")
        url = env.get("RESONATE_URL") or None
        if url is None and env.get("RESONATE_HOST"):
            scheme, port = env.get("RESONATE_SCHEME", "http"), env.get("RESONATE_PORT", "8001")
            url = f"{scheme}://{env['RESONATE_HOST']}:{port}"
        if url is not None and address is None:
            raise Unavailable(
                "RESONATE_URL or RESONATE_HOST is set but TB_ADDRESS is not; a shared Resonate server must not "
                "use a local embedded ledger: set TB_ADDRESS, or unset RESONATE_URL and RESONATE_HOST"
            )
        token = env.get("RESONATE_TOKEN") or None
        if token is not None and not (token.isascii() and token.isprintable()):
            raise Unavailable(
                "RESONATE_TOKEN contains a non-ASCII or non-printable character, such as a newline: correct it"
            )
        reference = env.get("REFERENCE_URL") or None
        kind = "embedded" if address is None else f"cluster-{cluster}"
        return cls(address, cluster, url, token, _data_dir(env.get("DATA_DIR") or None, kind), reference)

    @property
    def embedded_notice(self) -> str | None:
        """One line that says which parts are embedded; None if none is."""
        if self.tb_address is None:
            return f"embedded mode, for testing only: the ledger and the durable promises are stored in {self.data_dir}"
        if self.resonate_url is None:
            return f"embedded promises, for one process at a time: they are stored in {self.data_dir}"
        return None


def _cluster_id(text: str) -> int:
    valid = text.isascii() and text.isdecimal() and len(text) <= CLUSTER_ID_DIGITS and int(text) < 2**128
    if not valid:
        raise Unavailable(f"TB_CLUSTER_ID={text!r} is not a cluster id: set it to a number from 0 to 2^128 - 1")
    return int(text)


def _data_dir(given: str | None, kind: str) -> Path:
    """Return the absolute path. Without DATA_DIR it does not depend on the working directory.

    If it did, a run from another directory would use other promises, and would panic without a reason.
    """
    if given is not None:
        try:
            return Path(given).absolute()
        except FileNotFoundError as error:
            raise Unavailable(
                f"DATA_DIR={given} is a relative path, but the working directory no longer exists: set an absolute path"
            ) from error
    return CHECKOUT / "data" / kind
