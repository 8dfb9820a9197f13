"""The rows of the System of Reference in PostgreSQL, which many hosts can share.

Each request is one transaction, which first states and verifies what this program relies on (`begin_sql`). A pooler can
drop what a connection asks for when it starts, and can give each transaction another connection to the server. So no
setting and no prepared statement lives longer than a transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import socket
import ssl
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from clients import limits
from clients.errors import Closed, NoAnswer, Unavailable
from clients.outages import repeat
from clients.stores.batcher import Batcher
from clients.stores.system_of_reference import EXISTS, Row, SystemOfReference, check_form

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    import asyncpg

    from clients.outages import Outages

#: Seconds without a request after which a connection is closed. Load balancers and firewalls forget a connection that was
#: idle for some minutes, and do not say so: its next request would get no answer.
IDLE_MAX_S = 30

# COLLATE "C": an upgrade of the operating system's C library can corrupt an index of another collation.
# CREATE TABLE IF NOT EXISTS fails in a race, and for a role that may not create tables.
TABLES = """
    DO $$ BEGIN
      PERFORM pg_advisory_xact_lock(7246105819); -- other programs must not use this number
      IF to_regclass('accounts') IS NULL THEN
        CREATE TABLE accounts (uuid text COLLATE "C" PRIMARY KEY, guid text COLLATE "C" NOT NULL UNIQUE);
      END IF;
      IF to_regclass('reference') IS NULL THEN
        CREATE TABLE reference (one boolean PRIMARY KEY CHECK (one), id text NOT NULL);
      END IF;
    END $$
"""

READ_ONLY = "accepts no writes"

#: What this program relies on: a condition, and what is wrong if it is false. Each statement verifies them all.
RELIED_ON = {
    # A replica may lack a row that was just staged. To the last step, that would be a panic.
    "NOT current_setting('transaction_read_only')::boolean": READ_ONLY,
    "current_setting('server_encoding') = 'UTF8'": "is not a UTF-8 database; create one with ENCODING 'UTF8'",
    "current_setting('client_encoding') = 'UTF8'": "does not receive UTF-8; correct the proxy before it and run again",
    # Some services switch fsync off because others sync the writes, which a transaction waits for.
    "(current_setting('fsync') = 'on' OR current_setting('synchronous_standby_names') <> '')": "can lose rows in a power cut; set fsync=on and run again",
    "current_setting('synchronous_commit') = 'on'": "ignores SET LOCAL; correct the proxy before it and run again",
    "current_setting('transaction_isolation') = 'read committed'": "ignores BEGIN; correct the proxy before it and run again",
}

REPLACED = "was replaced while this process ran; run `python -m operations check` before you run again"


def begin_sql() -> str:
    """Return the statements that begin a transaction."""
    return f"""
        -- Under a stricter level, the loser of a race for a uuid would get an error and not the winner's row.
        BEGIN ISOLATION LEVEL READ COMMITTED;
        SET LOCAL synchronous_commit = on; -- an answered write survives a power cut
        SET LOCAL row_security = off; -- an error, and no hidden rows
        SET LOCAL statement_timeout = {limits.ANSWER_TIMEOUT_S * 1000:.0f};
        SET LOCAL idle_in_transaction_session_timeout = '10s'; -- the rows of a frozen process would block others
    """


#: The tables' columns and unique keys. With other ones, a row could be missing for a read and exist for a write.
SAFE = {EXISTS, "a write-ahead log", "no row level security"}
FORMS = {
    "accounts": SAFE
    | {'column uuid text COLLATE "C"', 'column guid text COLLATE "C"', "unique (uuid)", "unique (guid)"},
    "reference": SAFE | {"column one boolean", 'column id text COLLATE "default"', "unique (one)"},
}

#: Reads the form of a table, of its columns of these names only. A key that is being rebuilt is valid or has a valid twin.
FORM = f"""
    SELECT '{EXISTS}' WHERE to_regclass($1) IS NOT NULL
    UNION ALL
    SELECT 'column ' || attname || ' ' || format_type(atttypid, atttypmod)
      || coalesce(' COLLATE ' || quote_ident(collname), '')
    FROM pg_attribute LEFT JOIN pg_collation c ON c.oid = attcollation
    WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped AND attname = ANY($2::text[])
    UNION ALL
    SELECT 'unique (' || attname || ')'
    FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0] AND attcollation = indcollation[0]
    WHERE indrelid = to_regclass($1) AND attname = ANY($2::text[])
      AND indisunique AND indisvalid AND indimmediate AND indpred IS NULL AND indnkeyatts = 1
    UNION ALL
    SELECT 'no row level security' WHERE NOT row_security_active(to_regclass($1))
    UNION ALL
    SELECT 'a write-ahead log' FROM pg_class WHERE oid = to_regclass($1) AND relpersistence = 'p'
"""  # noqa: S608

_HOST = r"(?:[\w.-]+|\[[0-9a-fA-F:.]+\])(?::\d+)?"
_URL = re.compile(
    rf"postgres(?:ql)?://(?:[^@/?#:]*(?::(?P<password>[^@/?#]*))?@)?(?P<place>(?P<hosts>(?:{_HOST}(?:,{_HOST})*)?)(?:/[^@/?#]*)?)"
    r"(?:\?(?!(?:.*&)?(?:password|passfile)=)[^@#]*)?",
    re.ASCII,
)

#: The files that asyncpg reads for TLS, by a parameter of the URL (sslcert) or a variable (PGSSLCERT), and by default.
TLS_FILES = {
    "PGSSLROOTCERT": "~/.postgresql/root.crt",
    "PGSSLCERT": "~/.postgresql/postgresql.crt",
    "PGSSLKEY": "~/.postgresql/postgresql.key",
    "PGSSLCRL": "~/.postgresql/root.crl",
}

#: SQLSTATEs, or their classes, of errors that end without a change of settings.
PASSING = ("08", "25006", "25P03", "40", "53300", "55P03", "57")

#: Those of a host that cannot be used now, so that the next one is tried.
AWAY = ("08", "25006", "57P03")

ACTIONS = {
    "28": "correct REFERENCE_URL",
    "3D000": "correct REFERENCE_URL or create the database",
    "42704": "correct REFERENCE_URL",
    "42501": "grant this role SELECT and INSERT on the tables, or let it create them",
    "42P01": "correct REFERENCE_URL or restore the database (expected only if no account was ever requested here)",
    "53100": "free some disk space on the server",
    "53300": "raise the connection limit",
}


def parsed(url: str) -> re.Match[str]:
    """Return the parts of REFERENCE_URL. Raises `Unavailable`, and does not quote it: it may contain a password."""
    match = _URL.fullmatch(url)
    ports = re.findall(r":(\d+)(?:,|$)", match["hosts"]) if match else []
    try:
        urlsplit(url)  # asyncpg does the same, and the error would quote the password
    except ValueError:
        match = None
    if match is None or not all(int(port) in range(1, 2**16) for port in ports):
        raise Unavailable(
            "REFERENCE_URL is invalid; set it to postgresql://user:password@host:5432/database, with the special "
            "characters of user and password percent-encoded"
        )
    return match


def tls_files(url: str) -> dict[str, bool]:
    """Return the files that asyncpg reads for TLS, and whether each is named, by the URL or by a variable."""
    named = os.environ | {f"PG{name.upper()}": path for name, path in parse_qsl(url.partition("?")[2])}
    files = {name: named.get(name) or os.path.expanduser(default) for name, default in TLS_FILES.items()}  # noqa: PTH111 - it raises nothing
    return {file: name in named for name, file in files.items()}


def check_files(url: str) -> None:
    """Raise `Unavailable` if a file for TLS cannot be read. asyncpg's error does not name it."""
    for path, named in tls_files(url).items():
        try:
            Path(path).open("rb").close()
        except OSError as error:
            if named or not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                raise Unavailable(
                    f"cannot read {path}, a file for TLS with PostgreSQL: {error.strerror}; correct it, or name another "
                    "file in REFERENCE_URL, and run again"
                ) from error


def password_file() -> str:
    """Return what is wrong with the file that asyncpg reads if there is no other password."""
    path = Path(os.environ.get("PGPASSFILE") or os.path.expanduser("~/.pgpass"))  # noqa: PTH111 - it raises nothing
    problem = "no line fits, or its password is wrong"
    try:
        with path.open("rb"):
            if path.stat().st_mode & 0o077:
                problem = "others may read it; run chmod 600"
    except OSError as error:
        problem = str(error.strerror)
    return f"; REFERENCE_URL has no password, and the password file {path} has none: {problem}"


class PostgresReference(SystemOfReference):
    """The rows, requested in batches: requests that arrive while a batch is in flight form the next batch."""

    name = "PostgreSQL"

    def __init__(self, url: str, outages: Outages | None = None, *, read_only: bool = False) -> None:
        """`read_only`: do not make missing tables."""
        super().__init__(outages)
        match = parsed(url)
        self.place = f"PostgreSQL at {match['place']}"
        self._url = url
        self._urls = [
            url[: match.start("hosts")] + host + url[match.end("hosts") :] for host in match["hosts"].split(",")
        ]
        self._has_password = bool(match["password"])
        self._read_only = read_only
        self._reads = Batcher(self._read_batch)
        self._writes = Batcher(self._write_batch)
        self._idle: dict[asyncpg.Connection, asyncio.TimerHandle] = {}
        self._used: set[asyncpg.Connection] = set()
        self._id: str | None = None
        self._closed = False

    async def _open(self) -> None:
        """Connect, and make the tables. Raises `Unavailable`."""
        try:
            import asyncpg  # noqa: F401, PLC0415 - an optional package
        except ModuleNotFoundError as error:
            raise Unavailable(
                "REFERENCE_URL needs the package asyncpg, which is not installed; run: pip install asyncpg"
            ) from error
        warnings.filterwarnings("ignore", message="password file")  # `password_file` says it, if it matters
        await self._patiently(self._prepare, limits.FIRST_ANSWER_TIMEOUT_S)

    async def close(self) -> None:
        """Refuse new requests, and close the connections. May be called again.

        A request that gets no answer in time ends. If its commit was sent, the next run reads the row.
        """
        self._closed = True
        draining = {asyncio.create_task(batcher.drain()) for batcher in (self._reads, self._writes)}
        await asyncio.wait(draining, timeout=0.5)
        for connection in (*self._idle, *self._used):
            connection.terminate()
        self._idle.clear()
        await asyncio.wait(draining)

    async def _rows_of_many(self, pairs: list[Row]) -> list[list[Row]]:
        return await self._reads.ask(pairs)

    async def _stage_many(self, pairs: list[Row]) -> list[bool]:
        return await self._writes.ask(pairs)

    async def _read_batch(self, batch: list[list[Row]]) -> list[list[list[Row]]]:
        pairs = {pair for request in batch for pair in request}
        select = "SELECT uuid, guid FROM accounts WHERE uuid = ANY($1::text[]) OR guid = ANY($2::text[])"
        rows = await self._fetch(select, sorted({uuid for uuid, _ in pairs}), sorted({guid for _, guid in pairs}))
        of_uuid = {uuid: (uuid, guid) for uuid, guid in rows}
        of_guid = {guid: (uuid, guid) for uuid, guid in rows}

        def found(uuid: str, guid: str) -> list[Row]:
            return list(dict.fromkeys(filter(None, (of_uuid.get(uuid), of_guid.get(guid)))))

        return [[found(*pair) for pair in request] for request in batch]

    async def _write_batch(self, batch: list[list[Row]]) -> list[list[bool]]:
        # Sorted: two hosts that write the same rows in different orders would deadlock.
        pairs = sorted({pair for request in batch for pair in request})
        insert = (
            "INSERT INTO accounts (uuid, guid) SELECT * FROM unnest($1::text[], $2::text[]) "
            "ON CONFLICT DO NOTHING RETURNING uuid, guid"
        )
        written = set(await self._fetch(insert, [uuid for uuid, _ in pairs], [guid for _, guid in pairs]))
        answers: list[list[bool]] = []
        for request in batch:
            answers.append([pair in written for pair in request])
            written -= set(request)  # who asked first has written it
        return answers

    async def _page(self, after: Any, limit: int) -> list[tuple[Any, str, str]]:
        select = (
            "SELECT uuid AS key, uuid, guid FROM accounts WHERE $1::text IS NULL OR uuid > $1 ORDER BY uuid LIMIT $2"
        )
        return sorted(await self._fetch(select, after, limit))

    async def identity(self) -> str | None:
        """Return the random id of this database; None if it has none yet."""
        return self._id

    async def _fetch(self, sql: str, *parameters: Any) -> list[Any]:
        return await self._patiently(
            lambda connection: self._run(connection, sql, *parameters), limits.ANSWER_TIMEOUT_S
        )

    async def _prepare(self, connection: asyncpg.Connection) -> None:
        if not self._read_only:
            await connection.execute(TABLES)
        for table, form in FORMS.items():
            found = await self._run(connection, FORM, table, ["uuid", "guid", "one", "id"])
            check_form(self.place, table, {text for (text,) in found}, form, "correct REFERENCE_URL or the table")
        ids = await self._run(connection, "SELECT id FROM reference")
        if not self._read_only and not ids:
            insert = "INSERT INTO reference VALUES (true, replace(gen_random_uuid()::text, '-', '')) RETURNING id"
            ids = await self._run(connection, insert)
        [(self._id,)] = ids or [(None,)]

    async def _run(self, connection: asyncpg.Connection, sql: str, *parameters: Any) -> list[Any]:
        """Return the statement's rows. Raises an error if the server is not what is relied on, or no longer this database."""
        import asyncpg  # noqa: PLC0415

        relied_on = RELIED_ON
        if self._id is not None:
            parameters = (*parameters, self._id)
            relied_on = RELIED_ON | {f"EXISTS (SELECT FROM reference WHERE id = ${len(parameters)})": REPLACED}
        cases = " ".join(f"WHEN NOT {true} THEN '{wrong.replace("'", "''")}'" for true, wrong in relied_on.items())
        checks = f"SELECT CASE {cases} END AS problem"
        rows = await connection.fetch(  # one at least: with the problem
            f"WITH answer AS ({sql}) SELECT problem, answer.* FROM ({checks}) AS checks LEFT JOIN answer ON true",  # noqa: S608
            *parameters,
        )
        problem = rows[0][0]
        if problem == READ_ONLY:
            raise asyncpg.ReadOnlySQLTransactionError(problem)
        if problem is not None:
            raise Unavailable(f"{self.place} {problem}")
        return [tuple(row)[1:] for row in rows if row[1] is not None]

    async def _connect(self) -> asyncpg.Connection:
        """Connect to the first host that accepts writes, and begin a transaction there."""
        import asyncpg  # noqa: PLC0415
        from asyncpg.connect_utils import SessionAttribute  # noqa: PLC0415

        # For each host. asyncpg has one limit for all: it would never reach the host after a frozen one.
        limit_s = limits.FIRST_ANSWER_TIMEOUT_S / len(self._urls)
        away: Exception | None = None
        for url in self._urls:
            try:
                connection: asyncpg.Connection = await asyncpg.connect(
                    url,
                    timeout=limit_s,
                    server_settings={"application_name": "create-account"},
                    statement_cache_size=0,  # a pooler can give the name of a statement to another process
                    target_session_attrs=SessionAttribute.any,  # else asyncpg asks outside a transaction
                )
                with terminating_at(connection, asyncio.get_running_loop().time() + limit_s):
                    await connection.execute(begin_sql())
                    await self._run(connection, "SELECT 1")
            except (OSError, asyncpg.PostgresError) as error:
                if isinstance(error, OSError):
                    if error.errno in (errno.EACCES, errno.ENOENT, errno.EISDIR):
                        check_files(url)
                elif not sqlstate(error).startswith(AWAY):
                    raise
                away = error
            else:
                return connection
        assert away is not None
        raise away

    async def _patiently[T](self, request: Callable[[asyncpg.Connection], Awaitable[T]], timeout_s: float) -> T:
        """Return the answer. Passing errors are repeated until the time is over; every request may be repeated."""
        import asyncpg  # noqa: PLC0415

        try:
            return await repeat(lambda: self._ask(request, timeout_s), is_passing, timeout_s, limits.RETRY_INTERVAL_S)
        except (
            Closed,
            OSError,
            ValueError,
            RuntimeError,  # no thread is left to look up a host name
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
        ) as error:
            if self._closed:
                raise Closed(f"the connection to {self.place} is closing; run again to resume") from error
            outage = NoAnswer if is_passing(error) or isinstance(error, socket.gaierror) else Unavailable
            raise outage(self._explain(error)) from error

    async def _ask[T](self, request: Callable[[asyncpg.Connection], Awaitable[T]], timeout_s: float) -> T:
        """Make one attempt, of at most `timeout_s`. Raises TimeoutError."""
        if self._closed:
            raise Closed
        loop = asyncio.get_running_loop()
        give_up = loop.time() + timeout_s
        known = None
        while self._idle and known is None:
            idle, timer = self._idle.popitem()
            timer.cancel()
            known = None if idle.is_closed() else idle
        connection = known or await self._connect()
        self._used.add(connection)
        try:
            with terminating_at(connection, give_up):
                if known:
                    await connection.execute(begin_sql())
                answer = await request(connection)
                if await connection.execute("COMMIT") != "COMMIT":
                    raise ConnectionError("the transaction was rolled back")
        except BaseException:
            # After an error, nothing that was open is trusted: the server may have become a replica.
            for other in self._idle:
                other.terminate()
            self._idle.clear()
            raise
        finally:
            self._used.discard(connection)
        if self._closed:
            connection.terminate()
        else:
            self._idle[connection] = loop.call_later(IDLE_MAX_S, connection.terminate)
        return answer

    def _explain(self, error: Exception) -> str:
        text = " ".join(str(error).split()) or type(error).__name__
        state = sqlstate(error)
        if isinstance(error, TimeoutError):
            return (
                f"{self.place} gave no answer in time; start it, or check its locks and its synchronous standby, "
                "and run again"
            )
        if state == "25006":
            return f"{self.place} {READ_ONLY}; correct REFERENCE_URL so that it names the primary server and run again"
        cannot = "use"
        if isinstance(error, ssl.SSLError):
            files = ", ".join(path for path in tls_files(self._url) if Path(path).exists()) or "no files"
            text, action = f"{text} (TLS with {files})", "correct them or REFERENCE_URL"
        elif isinstance(error, ValueError):
            action = "correct REFERENCE_URL"
        elif isinstance(error, RuntimeError):
            cannot, action = "reach", "raise the limits of processes and memory,"
        elif not state and isinstance(error, OSError):
            cannot, action = "reach", "start it, or correct REFERENCE_URL,"
        else:
            known = (do for code, do in ACTIONS.items() if state.startswith(code))
            action = next(known, "check the server, or the pooler before it")
            if state.startswith("28") and not (self._has_password or os.environ.get("PGPASSWORD")):
                text += password_file()
        return f"cannot {cannot} {self.place}: {text}; {action} and run again"


@contextlib.contextmanager
def terminating_at(connection: asyncpg.Connection, give_up: float) -> Iterator[None]:
    """Run the block. An error ends the connection; so does the time `give_up`, and then TimeoutError is raised.

    No request is cancelled: if a synchronous standby is missing, a cancelled write becomes visible although no standby
    has the row.
    """
    loop = asyncio.get_running_loop()
    timer = loop.call_at(give_up, connection.terminate)
    try:
        yield
    except BaseException as error:
        connection.terminate()
        if isinstance(error, Exception) and loop.time() >= give_up:
            raise TimeoutError from error
        raise
    finally:
        timer.cancel()


def sqlstate(error: Exception) -> str:
    return str(getattr(error, "sqlstate", None) or "")


def is_passing(error: Exception) -> bool:
    """Return whether a later attempt can succeed without a change of settings."""
    if state := sqlstate(error):
        return state.startswith(PASSING)
    return not isinstance(error, (Unavailable, ValueError, socket.gaierror))
