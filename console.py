"""How a command of this project ends: an exit status and at most one line on stderr, never a traceback."""

from __future__ import annotations

import importlib
import logging
import os
import sys

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main(module: str) -> None:
    """Import `module` and exit with what its `main()` returns; light, so that Ctrl-C is caught early."""
    try:
        status = _status(module)
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = INTERRUPTED
    except OSError as error:  # a full disk, or the reader of a pipe is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = _fail(f"stdout cannot be written: {error.strerror}; run again, nothing is lost")
    sys.exit(status)


def log_to_stderr(*, verbose: bool) -> None:
    """Show the clients' own logging, or keep it out of a normal run."""
    if verbose:
        logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    else:
        logging.disable()


def _status(module: str) -> int:
    if sys.version_info < (3, 12):
        return _fail(f"Python 3.12 or newer is needed, and this is {sys.version.split()[0]}: see README.md")
    try:
        status: int = importlib.import_module(module).main()
        return status
    except ModuleNotFoundError as error:
        return _fail(f"{error.name} is not installed; install what pyproject.toml names: see README.md")
    except OSError:
        raise
    except Exception as error:
        if type(error).__name__ == "Unavailable":  # its module may be what is slow to import
            return _fail(str(error))
        if logging.root.isEnabledFor(logging.DEBUG):
            raise
        return _fail(f"unexpected {type(error).__name__}: {error}; run again with -v for the traceback")


def _fail(line: str) -> int:
    print(" ".join(line.split()), file=sys.stderr)  # noqa: T201
    return 1
