"""The exceptions that a caller meets. Each message is one line: object, cause, action.

This module must parse under old versions of Python: clients/command/console.py imports it to say which version is needed.
"""

HALTED = 98  # the exit status of a halt: the code of the TypeScript SDK's `context.panic`


class Unavailable(Exception):
    """A store, a server or a setting cannot be used now. No account is lost: call again later."""


class NoAnswer(Unavailable):
    """A server did not answer in time. It may later, with the same settings: a worker that starts waits for it."""


class Lasting(Unavailable):
    """An outage that cannot end while this process runs. A worker waits for the end of any other one."""


class Closed(Unavailable):
    """This process closes the connection to the store."""


class UsageError(Exception):
    """The command line, or the uuid, is invalid."""


class Halted(Exception):
    """An operator must decide: the message says what contradicts what, and what to do."""
