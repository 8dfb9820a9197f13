"""The one way to start the program: fork it from a process that has imported it already.

The imports take ten times as long as a run. Each process is a real one, with its own memory, files and signals.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

from . import crash, opened_files

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["asyncpg", "tests.processes", *(f"operations.{name}" for name in ("create", "commands", *crash.COMMANDS))]
)


#: multiprocessing's status of a process whose fork server was killed. The process itself may still run.
UNKNOWN = 255


class Process:
    """Run the program with these arguments and with the points of crash.py.

    Its methods are those of `subprocess.Popen`. Its output goes to the files `out` and `err`, or to `stdout` and
    `stderr`. A stream that is `PIPE` is a binary file here.
    """

    def __init__(
        self,
        *arguments: str,
        env: Mapping[str, str],
        cwd: Path,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> None:
        directory = Path(tempfile.mkdtemp(prefix="process-", dir=cwd))
        self.out, self.err = directory / "out", directory / "err"
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        if stdin == subprocess.PIPE:
            stdin, ours = os.pipe()
            self.stdin = os.fdopen(ours, "wb")
        elif stdin is None:
            stdin = os.open(os.devnull, os.O_RDONLY)
        if stdout == subprocess.PIPE:
            ours, stdout = os.pipe()
            self.stdout = os.fdopen(ours, "rb")
        elif stdout is None:
            stdout = os.open(self.out, os.O_CREAT | os.O_WRONLY)
        if stderr is None:
            stderr = os.open(self.err, os.O_CREAT | os.O_WRONLY)
        streams = [Connection(stdin), *(Connection(fd, readable=False) for fd in (stdout, stderr))]
        self._process = SERVER.Process(target=_run, args=(arguments, dict(env), cwd, streams), daemon=True)
        self._process.start()
        for stream in streams:
            stream.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired("the program", timeout)
        assert self._process.exitcode != UNKNOWN, "something killed the fork server of these tests, not the program"
        return self._process.exitcode

    def write(self, *lines: str) -> None:
        """Write the lines to its stdin."""
        assert self.stdin is not None
        self.stdin.write("".join(f"{line}\n" for line in lines).encode())
        self.stdin.flush()

    def readline(self) -> str:
        """Wait for a line of its stdout."""
        assert self.stdout is not None
        return self.stdout.readline().decode()

    def communicate(self, lines: bytes = b"", *, timeout: float) -> tuple[str, str]:
        """Write the lines, wait for the end, and return what the process has written since the last read."""
        writer = threading.Thread(target=self._write, args=(lines,))
        end = threading.Timer(timeout, self.send_signal, [signal.SIGABRT])
        writer.start()
        end.start()
        out = b"" if self.stdout is None or self.stdout.closed else self.stdout.read()
        self.wait()
        end.cancel()
        writer.join()
        assert self.returncode != -signal.SIGABRT, f"the process did not end within {timeout} s"
        if self.out.exists():
            out = self.out.read_bytes()
        err = self.err.read_bytes() if self.err.exists() else b""
        return out.decode(errors="surrogateescape"), err.decode(errors="surrogateescape")

    def _write(self, lines: bytes) -> None:
        if self.stdin is not None:
            with contextlib.suppress(BrokenPipeError), self.stdin:  # the process may have ended
                self.stdin.write(lines)

    def send_signal(self, number: int) -> None:
        if self.returncode in (None, UNKNOWN):
            with contextlib.suppress(ProcessLookupError):  # it has just ended: the fork server has reaped it
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End the process, wait for its end, and close the streams."""
        self.send_signal(signal.SIGKILL)
        self._process.join()
        for stream in filter(None, (self.stdin, self.stdout)):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def _run(arguments: tuple[str, ...], env: dict[str, str], cwd: Path, streams: list[Connection]) -> None:
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
        stream.close()
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False, errors="backslashreplace")
    watch_opened_files()
    crash.main(arguments)


def watch_opened_files() -> None:
    """End this process if it opens a file of SQLite's. Only the program runs here, so it has no reason to."""

    def end(line: str) -> None:
        os.write(2, f"{line}\n".encode())
        os._exit(97)  # no handler of the program may catch it

    opened_files.watch(end, always=True)
