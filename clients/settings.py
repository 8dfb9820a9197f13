"""Read the settings, which come from environment variables only: README.md, 'Settings', explains them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from clients.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What a variable needs beside it. Several hosts can share the promises or the rows, but each host has its own embedded
#: ledger, so an account of one host would not exist on another. RESONATE_HOST is the SDK's. Here only the URL counts.
NEEDS = {
    "TB_CLUSTER_ID": "TB_ADDRESS",
    "REFERENCE_URL": "TB_ADDRESS",
    "RESONATE_URL": "TB_ADDRESS",
    "RESONATE_HOST": "RESONATE_URL",
    "RESONATE_TOKEN": "RESONATE_URL",
}

VARIABLES = ("TB_ADDRESS", "DATA_DIR", *NEEDS)

#: Allows REFERENCE_URL beside the embedded ledger, on one host and without anybody's data.
TESTS_ONLY = "TESTS_ONLY_REFERENCE_URL_WITH_EMBEDDED_LEDGER"


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
        """Return the settings. Raises `Unavailable` if a variable is invalid, or missing beside another one."""
        given = {name: env[name] for name in VARIABLES if env.get(name)}
        for name, value in given.items():
            if value.strip(" \t\r\n'\"") != value:
                raise Unavailable(
                    f"{name} begins or ends with a quote or with white space: correct it (a container's --env-file keeps "
                    "quotes)"
                )
        url = given.get("RESONATE_URL")
        if url is not None:
            _check_url(url)
        for name, partner in NEEDS.items():
            allowed = name == "REFERENCE_URL" and env.get(TESTS_ONLY)
            if name in given and partner not in given and not allowed:
                raise Unavailable(f"{name} is set, but {partner} is not: set it, or unset {name}")
        token = given.get("RESONATE_TOKEN")
        if token is not None and not (token.isascii() and token.isprintable()):
            raise Unavailable(
                "RESONATE_TOKEN contains a non-ASCII or non-printable character, such as a newline: correct it"
            )
        cluster = given.get("TB_CLUSTER_ID", "0")
        if not re.fullmatch("[0-9]{1,39}", cluster) or int(cluster) >= 2**128:
            raise Unavailable(f"TB_CLUSTER_ID={cluster!r} is not a cluster id: set it to a number from 0 to 2^128 - 1")
        address = given.get("TB_ADDRESS")
        data_dir = _data_dir(given.get("DATA_DIR"), "embedded" if address is None else f"cluster-{int(cluster)}")
        return cls(address, int(cluster), url, token, data_dir, given.get("REFERENCE_URL"))

    def require_server(self) -> None:
        """Raise `Unavailable` if the promises are embedded: another process cannot reach them."""
        if self.resonate_url is None:
            raise Unavailable("no Resonate server is configured: set RESONATE_URL, such as http://127.0.0.1:8001")

    @property
    def embedded_notice(self) -> str | None:
        """One line that says which parts are embedded; None if none is."""
        if self.tb_address is None:
            return f"embedded mode, for testing only: the ledger and the durable promises are stored in {self.data_dir}"
        if self.resonate_url is None:
            return f"embedded promises, for one process at a time: they are stored in {self.data_dir}"
        return None


def misspelt(env: Mapping[str, str]) -> list[str]:
    """Return one line for each variable whose name looks like one of ours."""
    return [
        f"warning: the environment variable {name} has no effect; is it meant to be {ours}?"
        for name in env
        # The cutoff allows one edit of a name, or two of a long one.
        for ours in get_close_matches(name.upper(), VARIABLES, n=1, cutoff=0.87)
        if name not in VARIABLES
    ]


def _check_url(url: str) -> None:
    """Raise `Unavailable` if this cannot be a Resonate server's URL."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # of the port, or of a bracket
        valid = False
    if not valid or parts.query or parts.fragment or not url.isprintable() or " " in url:
        shown = re.sub("//[^/@]*@", "//", url)  # no password
        raise Unavailable(f"RESONATE_URL is invalid: {shown!r}; the form is http://host:8001 or https://host")


def _data_dir(given: str | None, kind: str) -> Path:
    """Return the absolute path. Without DATA_DIR it does not depend on the working directory.

    If it did, a run from another directory would use other promises, and would panic without a reason.
    """
    if given is None:
        return Path(__file__).resolve().parent.parent / "data" / kind
    if given.startswith("~"):
        raise Unavailable(f"DATA_DIR={given!r} begins with ~, which only a shell replaces: set it to the whole path")
    try:
        return Path(given).absolute()
    except FileNotFoundError as error:
        raise Unavailable(
            f"DATA_DIR={given} is a relative path, but the working directory no longer exists: set an absolute path"
        ) from error
