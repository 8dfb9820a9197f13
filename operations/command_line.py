"""What the command lines of all commands share."""

from __future__ import annotations

import argparse
import os

from clients.account import UUID_MAX_CHARACTERS, check_uuid
from clients.command.console import log_to_stderr, print_diagnostic
from clients.settings import Settings


def add_uuid(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "uuid",
        help=f"your application's id for the account: up to {UUID_MAX_CHARACTERS} characters, without colons and "
        "control characters; if it begins with a dash, write -- before it",
    )


def add_verbose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="write debug logs of the SDK and clients to stderr"
    )


def parse_uuid(program: str, description: str) -> tuple[str, Settings]:
    """Read the command line of a program whose only argument is a uuid, and the settings."""
    parser = argparse.ArgumentParser(program, description=description)
    add_uuid(parser)
    add_verbose(parser)
    arguments, settings = parse(parser)
    print_embedded_notice(settings)
    return arguments.uuid, settings


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Settings]:
    """Read the command line and the settings. Raises `Unavailable`."""
    arguments = parser.parse_args()
    if "uuid" in arguments:
        try:
            check_uuid(arguments.uuid)
        except ValueError as error:
            parser.error(str(error))
    log_to_stderr(verbose=arguments.verbose)
    return arguments, Settings.read(os.environ)


def print_embedded_notice(settings: Settings) -> None:
    if settings.embedded_notice:
        print_diagnostic(settings.embedded_notice)
