"""Start the TigerBeetle client before the slow imports.

The client's first answer takes 0.6 s, whatever else happens. The rest of the program takes as long to import.
"""

from __future__ import annotations

import contextlib
import logging
import os

from clients.errors import Unavailable
from clients.settings import Settings
from clients.stores.tigerbeetle_client import connect, early_clients


def main() -> None:
    """Start the client that the settings name. The command finds an error again, after that of its command line."""
    logging.disable()  # logging is switched on later, with -v
    with contextlib.suppress(Unavailable):
        settings = Settings.read(os.environ)
        if settings.tb_address is not None:
            key = (settings.tb_address, settings.tb_cluster_id)
            early_clients[key] = connect(*key)
