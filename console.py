"""How a command of this project ends: an exit status and at most one line on stderr, never a traceback.

It imports next to nothing, so that Ctrl-C is caught from the start.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import warnings

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main(module: str) -> None:
    """Import `module` and exit with the status that its `main()` returns."""
    os.umask(0o077)  # promises can carry code: what is written is its owner's alone
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # a uuid is Unicode, whatever the locale
    try:
        status = _status(module)
    except KeyboardInterrupt:
        status = INTERRUPTED
        sys.unraisablehook = lambda _: None  # what was interrupted half made has nothing more to say
        warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # too late to interrupt: only Python itself is left to end
    sys.exit(status)


def show(text: str) -> None:
    """Write a result to stdout, now. Raises OSError where it cannot be: a full disk, a reader that is gone."""
    if sys.stdout is None:
        raise OSError("stdout is closed")
    try:
        print(text, flush=True)  # noqa: T201
    except OSError as error:
        # What is left in the buffer would fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(f"stdout cannot be written: {error.strerror}") from error


def note(text: str) -> None:
    """Tell the operator, on stderr: stdout is for results. That nobody can be told stops no account."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)  # it may quote a foreign row
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)  # noqa: T201


def log_to_stderr(*, verbose: bool) -> None:
    """Show the clients' own logging, but no token, or keep it out of a normal run."""
    import logging

    def hide_token(record: logging.LogRecord) -> bool:
        if token := os.environ.get("RESONATE_TOKEN"):
            record.msg, record.args = record.getMessage().replace(token, "<token>"), ()
        return True

    if verbose:
        logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        logging.root.handlers[0].addFilter(hide_token)
    else:
        logging.disable()


def _status(module: str) -> int:
    if sys.version_info < (3, 12):
        return _fail(f"Python 3.12 or newer is needed, and this is {sys.version.split()[0]}: see README.md")
    try:
        status: int = __import__(module).main()
    except ModuleNotFoundError as error:
        return _fail(f"{error.name} is not installed; install what pyproject.toml names: see README.md")
    except OSError as error:
        return _fail(f"{error}; nothing is lost: run again once that is mended")
    except Exception as error:
        if type(error).__name__ == "Unavailable":  # by name: its module is one that is slow to import
            return _fail(str(error))
        if {"-v", "--verbose"} & set(sys.argv):
            raise
        return _fail(f"unexpected {type(error).__name__}: {error}; run again with -v for the traceback")
    return status


def _fail(line: str) -> int:
    note(" ".join(line.split()))
    return 1
