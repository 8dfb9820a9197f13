"""A PgBouncer of the tests' own, in front of the tests' PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import free_port, wait_until
from .postgres import PASSWORD, Postgres


@contextlib.contextmanager
def pgbouncer(postgres: Postgres, mode: str, pool_size: int = 2, ignored: str = "") -> Iterator[int]:
    """Start PgBouncer in a pooling mode, and yield its port. It refuses root, so root starts it as `nobody`."""
    if shutil.which("pgbouncer") is None:
        pytest.skip("PgBouncer is missing: put `pgbouncer` on PATH")
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as directory:
        port, settings, log = free_port(), Path(directory, "pgbouncer.ini"), Path(directory, "log")
        settings.write_text(
            f"[databases]\n* = host=127.0.0.1 port={postgres.port} user=admin password={PASSWORD}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
            f"pool_mode = {mode}\ndefault_pool_size = {pool_size}\nignore_startup_parameters = {ignored}\n"
        )
        user = "nobody" if os.getuid() == 0 else None
        for path in (directory, settings):
            if user:
                shutil.chown(path, user)
        with (
            log.open("wb") as output,
            subprocess.Popen(["pgbouncer", settings], user=user, stdout=output, stderr=output) as process,
        ):
            try:
                wait_until(lambda: b"process up" in log.read_bytes() or process.poll() is not None)
                assert process.poll() is None, log.read_text()
                yield port
            finally:
                process.kill()
