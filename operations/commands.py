"""The operators' command line: what each command is for, and its arguments."""

from __future__ import annotations

import argparse
import importlib

from clients.command.console import run_async
from operations.command_line import add_uuid, add_verbose, parse, print_embedded_notice

#: Accounts of a batch: with more, backfill is not faster.
CHUNK = 1000

#: Accounts of a batch, at the most.
CHUNK_MAX = 2000

DESCRIPTION = """\
Commands for operators of create_account.py.

  check UUID           Does this account exist? Prints what the promises and both stores hold.
  audit                Do TigerBeetle and the System of Reference agree about all accounts?
  halted               Which accounts are halted, and why?
  adopt UUID           After a panic: finish the account. With --again: create it if nothing is left.
  backfill [FILE]      Create an account for each uuid of a list, one per line.
  reference            Which store is the System of Reference? With --accept: record the present store.
  worker               Create the accounts that other programs request from a Resonate server.

check, audit and halted change nothing. All commands read the same settings as create_account.py.
`%(prog)s COMMAND --help` explains one command.
"""


def main() -> int:
    arguments, settings = parse(_parser())
    given = vars(arguments)
    command = given.pop("command")
    del given["verbose"]
    if command != "worker":  # a worker uses nothing embedded
        print_embedded_notice(settings)
    module = importlib.import_module(f"operations.{command}")
    return int(run_async(module.run(settings=settings, **given)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m operations", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", help="see above")

    def add(name: str, description: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, description=description)
        add_verbose(command)
        return command

    add_uuid(add("check", "Does this account exist? Reads everything and changes nothing."))
    add("audit", "Do the two stores agree? Reads all of both and changes nothing.")
    add("halted", "Which accounts are halted, and why? Reads all promises and changes nothing.")
    adopt = add("adopt", "After a panic: finish the account.")
    add_uuid(adopt)
    adopt.add_argument(
        "--again",
        action="store_true",
        help="create a new account if nothing is staged, or recreate one that TigerBeetle lost",
    )
    backfill = add("backfill", "Create an account for each uuid of a list, once.")
    backfill.add_argument(
        "file", metavar="FILE", nargs="?", help="uuids, one per line; without FILE they are read from stdin"
    )
    backfill.add_argument(
        "--chunk",
        metavar="N",
        type=_chunk,
        default=CHUNK,
        help=f"accounts in a batch, 1 to {CHUNK_MAX}; %(default)s by default",
    )
    reference = add("reference", "Which store is the System of Reference?")
    reference.add_argument("--accept", action="store_true", help="record the present store, after a restore or a move")
    add("worker", "Create the accounts that other programs request from a Resonate server.")
    return parser


def _chunk(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= CHUNK_MAX):
        raise argparse.ArgumentTypeError(f"must be a number from 1 to {CHUNK_MAX}")
    return int(text)
