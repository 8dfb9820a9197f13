"""Start and end each command: exit status, messages, signals. No command ends with a traceback.

This module imports only the standard library, so that Ctrl-C is caught from the start. It must also parse
under old versions of Python, because it is what tells their users which version is needed.
"""

import contextlib
import importlib
import io
import os
import signal
import sys
import warnings
from typing import TYPE_CHECKING, Any

from clients.errors import HALTED, Halted, Unavailable, UsageError

if TYPE_CHECKING:
    from collections.abc import Coroutine

UNAVAILABLE = 1
USAGE = 2

#: Packages that have another name than their module.
PACKAGES = {"resonate": "resonate-sdk", "resonate_base": "resonate-base"}


def main(module: str, *, first: str = "") -> None:
    """Import `module`, call its `main()`, and exit with the status that it returns.

    After Ctrl-C the process dies of SIGINT. If it exited, with any status, a shell would go on with the next command of
    a loop. The same holds for SIGTERM and SIGHUP.

    `first`: a module whose `main()` is called before the slow imports.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # a uuid is Unicode, whatever the locale
    status = 0
    try:
        status = _status(module, first)
    except KeyboardInterrupt:
        received.append(signal.SIGINT)  # unless another signal is the first
        sys.unraisablehook = lambda _: None  # half-initialized objects would print warnings now
        warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from here on Ctrl-C changes nothing
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError):
            stream.flush()
    for number in received[:1]:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        status = 128 + number  # the kernel does not end process 1 of a container by a signal
    os._exit(status)  # sys.exit would wait for a thread that looks up a host name, perhaps for minutes


#: The signals that have cancelled the command, the first one first.
received: "list[int]" = []


def run_async(command: "Coroutine[Any, Any, Any]") -> Any:
    """Run the coroutine as `asyncio.run` does, but exit even if a thread still looks up a host name.

    SIGINT, SIGTERM and SIGHUP cancel it, so that it releases its leases; a second one ends the process at once. Raises
    KeyboardInterrupt if the command does not return then. A signal stays ignored if it was, as after `nohup`.
    """
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    class Threads(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
            super().shutdown(wait=False, cancel_futures=cancel_futures)

    async def cancellable() -> Any:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        numbers = [number for number in ending if signal.getsignal(number) != signal.SIG_IGN]

        def receive(number: int) -> None:
            received.append(number)
            for each in numbers:
                loop.remove_signal_handler(each)
                signal.signal(each, signal.SIG_DFL)
            task.cancel()

        for number in numbers:
            loop.add_signal_handler(number, receive, number)
        return await command

    runner = asyncio.Runner()
    try:
        runner.get_loop().set_default_executor(Threads())
    except OSError as error:
        command.close()  # Python would print that it was never awaited, and how the unfinished loop is closed
        sys.unraisablehook = lambda _: None
        raise Unavailable(
            f"cannot start: {error.strerror}; raise the limit of open files, as with `ulimit -n`, and run again"
        ) from error
    with runner:
        try:
            return runner.run(cancellable())
        except asyncio.CancelledError:
            if received:
                raise KeyboardInterrupt from None
            raise


def print_result(text: str) -> None:
    """Write a result to stdout at once. Raises OSError if stdout is full, closed or has no reader."""
    if sys.stdout is None:
        raise OSError("stdout is closed")
    try:
        print(text, flush=True)  # noqa: T201
    except OSError as error:
        # The rest of the buffer would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(f"cannot write to stdout: {error.strerror}") from error


def print_diagnostic(text: str) -> None:
    """Write one line to stderr. A failure is ignored: an account does not depend on its diagnostics."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)  # it may quote a foreign row
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)  # noqa: T201


def log_to_stderr(*, verbose: bool) -> None:
    """Write the debug logs of the SDK and the clients to stderr, without secrets; or disable them."""
    import json
    import logging

    class WithoutSecrets(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            text = super().format(record)
            for name, shown in (("RESONATE_TOKEN", "<token>"), ("REFERENCE_URL", "<REFERENCE_URL>")):
                if secret := os.environ.get(name):
                    for form in (secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]):
                        text = text.replace(form, shown)
            return text

    if verbose:
        logging.disable(logging.NOTSET)
        logging.basicConfig(level=logging.DEBUG)
        logging.root.handlers[0].setFormatter(WithoutSecrets("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    else:
        logging.disable()


def _status(module: str, first: str) -> int:
    if sys.version_info < (3, 12):
        return _fail(f"Python 3.12 or newer is required; this is {sys.version.split()[0]}: see README.md")
    try:
        if first and len(sys.argv) > 1 and not {"-h", "--help"} & set(sys.argv):
            importlib.import_module(first).main()
        return int(importlib.import_module(module).main())
    except ModuleNotFoundError as error:
        if error.name in getattr(sys, "stdlib_module_names", ()):
            return _fail(f"this system has no {error.name}: only Linux and macOS are supported; on Windows use WSL")
        package = PACKAGES.get(str(error.name), error.name)
        return _fail(
            f"the package {package} is not installed; use `uv run`, or run: pip install --require-hashes -r requirements.txt"
        )
    except UsageError as error:
        return _fail(str(error), USAGE)
    except Halted as error:
        return _fail(str(error), HALTED)
    except Unavailable as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error}; fix the cause and run again: an account that is begun is resumed")
    except Exception as error:
        if "can't start new thread" in str(error):
            return _fail(
                "cannot start a thread; raise the limits of processes and memory, as with `ulimit -u`, or a container's "
                "limit of pids, and run again: an account that is begun is resumed"
            )
        if {"-v", "--verbose"} & set(sys.argv):
            raise
        return _fail(f"unexpected {type(error).__name__}: {error}; run again with -v for the traceback")


def _fail(line: str, status: int = UNAVAILABLE) -> int:
    print_diagnostic(" ".join(line.split()))
    return status
