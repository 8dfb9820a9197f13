"""What the command lines of all commands share."""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

from clients.account import UUID_MAX_CHARACTERS, check_uuid
from clients.command.console import log_to_stderr, print_diagnostic
from clients.settings import Settings, misspelt

EXIT_STATUSES = """\
Exit status:
  0    the account exists
  1    a store, a server or a setting is unavailable or invalid; run again later, nothing is lost
  2    the command line or the uuid is invalid
  98   an operator must decide: `python -m operations check UUID` shows what the stores hold
  130  Ctrl-C: the command dies of SIGINT (143: SIGTERM, 129: SIGHUP); run again to resume
"""


class Parser(argparse.ArgumentParser):
    """A parser that says how to write a uuid which begins with a dash."""

    def error(self, message: str) -> NoReturn:
        takes_uuid = any(action.dest == "uuid" for action in self._actions)
        if takes_uuid and any(argument.startswith("-") for argument in sys.argv[1:]) and "--" not in sys.argv:
            message += "; if the uuid begins with a dash, write -- before it"
        super().error(message)


def add_uuid(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "uuid",
        help=f"your application's id for the account: up to {UUID_MAX_CHARACTERS} characters, without colons and "
        "control characters; if it begins with a dash, write -- before it",
    )


def add_verbose(parser: argparse.ArgumentParser) -> None:
    # SUPPRESS: a command's parser does not reset what was given before the command.
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        default=argparse.SUPPRESS,
        help="write debug logs of the SDK and clients to stderr",
    )


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Settings]:
    """Read the command line and the settings. Raises `Unavailable`."""
    arguments = parser.parse_args()
    if "uuid" in arguments:
        arguments.uuid = os.fsencode(arguments.uuid).decode(errors="surrogateescape")  # UTF-8, whatever the locale
        try:
            check_uuid(arguments.uuid)
        except ValueError as error:
            parser.error(str(error))
    log_to_stderr(verbose="verbose" in arguments)
    for warning in misspelt(os.environ):
        print_diagnostic(warning)
    return arguments, Settings.read(os.environ)


def print_embedded_notice(settings: Settings) -> None:
    if settings.embedded_notice:
        print_diagnostic(settings.embedded_notice)
