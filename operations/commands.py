"""The operators' command line: what each command is for, and its arguments."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from clients.command.console import USAGE, run_async
from operations.command_line import Parser, add_uuid, add_verbose, parse, print_embedded_notice

#: Accounts of a batch: with more, backfill is not faster.
CHUNK = 1000

#: Accounts of a batch, at the most.
CHUNK_MAX = 2000

DESCRIPTION = """\
Commands for operators of create_account.py.

  check UUID           Does this account exist? Prints what the promises and both stores hold.
  list                 Which uuids, rows and accounts do the stores hold? For small numbers.
  audit                Do TigerBeetle and the System of Reference agree about all accounts?
  halted               Which accounts stopped with a panic, or cannot be executed, and why?
  adopt UUID           After a panic: finish the account. With --again: create it if nothing is left.
  backfill [FILE]      Create an account for each uuid of a list, one per line.
  reference            Which store is the System of Reference? With --accept: record the present store.
  worker               Create the accounts that other programs request from a Resonate server.

check, list, audit and halted change nothing. All commands read the same environment variables as create_account.py:
see README.md, 'Settings'. `%(prog)s COMMAND --help` explains one command.
"""

COMMON = """\
  1    a store, a server or a setting is unavailable or invalid
  2    the command line is invalid
  130  Ctrl-C: the command dies of SIGINT (143: SIGTERM, 129: SIGHUP)
"""

#: What each command decides, and its exit statuses besides the common ones.
HELP = {
    "check": """\
Does this account exist? Reads the promises and both stores, and changes nothing. The last line is the verdict, and
what to run next.

Exit status:
  0    exists: TigerBeetle holds the account, and its row exists
  3    staged: a row exists, but no account. The account does not exist yet
  4    unreferenced: TigerBeetle holds an account, but there is no row
  5    absent: neither
  98   conflict: the stores contradict each other, or a promise; the line says how
""",
    "list": """\
List each uuid with its guid, and whether it has a row, an account and a promise. Changes nothing.
An account without a row has no known uuid, because TigerBeetle holds only a hash of it.

Exit status:
  0    listed; a line on stderr says if the list is cut
""",
    "audit": """\
Do the two stores agree? Reads all of both, and changes nothing. One finding per line:

  unreferenced   TigerBeetle holds an account, but there is no row for it
  staged         a row has no account, and no pending promise will create it
  conflict       the stores disagree about an account, or a resolved promise has no account

Exit status:
  0    the stores agree
  98   there are findings
""",
    "halted": """\
Which accounts are halted, and why? Reads all promises, and changes nothing. An account is halted if its promise was
rejected (a panic) or canceled, or if this program cannot execute it. `adopted`: a rerun prints the account.
A resolved promise whose account is lost is no halted account: `audit` and `check` find it.

Exit status:
  0    no account is halted
  98   at least one account is halted: a rerun of create_account.py does not print it
""",
    "adopt": """\
After a panic: finish the account, and print the same two lines as create_account.py. Run it again at any time.

It commits an account that is staged, or stages the row of an account that exists. It refuses, and changes nothing, if
the promise is pending or not found, or if an operator must decide first, because it would create a second account.

Exit status:
  0    the account exists
  98   refused, or another panic
""",
    "backfill": """\
Create an account for each uuid of a list, once. One uuid per line, UTF-8. Prints uuid<TAB>guid in the order of the
input. If it is interrupted, run it again with the same input: it prints the whole result.

Exit status:
  0    all accounts exist
  1    a store, a server or a setting is unavailable or invalid, or another process works on an account for longer than
       30 s; run again
  2    the command line is invalid, or the input is no list of uuids, or a line is invalid; it is named and skipped
  98   an account is halted; it is named at the end
  130  Ctrl-C: the command dies of SIGINT (143: SIGTERM, 129: SIGHUP)
""",
    "reference": """\
Which store is the System of Reference? All processes of a Resonate server must use the same one, and the same
TigerBeetle cluster. A durable promise records both, and a process that uses others refuses to work.

Exit status:
  0    the record and the present store agree
  98   they differ
""",
    "worker": """\
Create the accounts that other programs request from the Resonate server of RESONATE_URL, until SIGTERM or Ctrl-C.
It waits, also at its start, while a store or the server gives no answer, and says so.

Exit status:
  0    SIGTERM, after the tasks in progress are released
""",
}


def main() -> int:
    parser = _parser()
    if len(sys.argv) == 1:
        parser.print_help(sys.stderr)
        return USAGE
    arguments, settings = parse(parser)
    given = vars(arguments)
    command = given.pop("command")
    given.pop("verbose", None)
    if command != "worker":  # a worker uses nothing embedded
        print_embedded_notice(settings)
    module = importlib.import_module(f"operations.{command}")
    return int(run_async(module.run(settings=settings, **given)))


def _parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        "python -m operations", usage="%(prog)s [-h] [-v] COMMAND ...", description=DESCRIPTION, formatter_class=layout
    )
    add_verbose(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", help=argparse.SUPPRESS)
    parsers = {
        name: commands.add_parser(name, description=text if "\n  1 " in text else text + COMMON, formatter_class=layout)
        for name, text in HELP.items()
    }
    for command in parsers.values():
        add_verbose(command)
    add_uuid(parsers["check"])
    add_uuid(parsers["adopt"])
    parsers["adopt"].add_argument(
        "--again",
        action="store_true",
        help="create a new account if nothing is staged, or recreate one that TigerBeetle lost",
    )
    parsers["backfill"].add_argument(
        "file", metavar="FILE", nargs="?", help="uuids, one per line; without FILE they are read from stdin"
    )
    parsers["backfill"].add_argument(
        "--chunk",
        metavar="N",
        type=_chunk,
        default=CHUNK,
        help=f"accounts in a batch, 1 to {CHUNK_MAX}; %(default)s by default",
    )
    parsers["reference"].add_argument(
        "--accept", action="store_true", help="record the present store, after a restore or a move"
    )
    parsers["worker"].add_argument(
        "--health-file", metavar="FILE", type=Path, help="touch FILE every 30 s while the stores and the server answer"
    )
    return parser


def _chunk(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= CHUNK_MAX):
        raise argparse.ArgumentTypeError(f"must be a number from 1 to {CHUNK_MAX}")
    return int(text)
