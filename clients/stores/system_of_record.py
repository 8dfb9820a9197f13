"""The System of Record on TigerBeetle: the account exists if, and only if, it exists here."""

from __future__ import annotations

import asyncio
import functools
import operator
from typing import TYPE_CHECKING, Any, Protocol, Self

import tigerbeetle as tb

from clients import limits
from clients.account import accounts_after, accounts_query, id_of, newest_account, owner_of
from clients.errors import Closed, NoAnswer, Unavailable
from clients.outages import Outages
from clients.stores.batcher import Batcher

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


class Ledger(Protocol):
    """The requests that the example makes, as `tigerbeetle.ClientAsync` and `EmbeddedLedger` answer them."""

    def create_accounts(self, accounts: list[tb.Account], /) -> Coroutine[Any, Any, list[tb.CreateAccountResult]]: ...
    def lookup_accounts(self, accounts: list[int], /) -> Coroutine[Any, Any, list[tb.Account]]: ...
    def query_accounts(self, query_filter: tb.QueryFilter, /) -> Coroutine[Any, Any, list[tb.Account]]: ...
    async def close(self) -> None: ...


#: Queries of a batch that are sent at once. With 128, a batch had 0.8 of the speed.
QUERIES_MAX = 512


class SystemOfRecord:
    """`connect` returns a new client. `store`: the product and its place, for outages."""

    def __init__(
        self, connect: Callable[[], Ledger], store: str = "TigerBeetle", outages: Outages | None = None
    ) -> None:
        self._connect = connect
        self._store = store
        self._outages = outages or Outages()
        self._client: Ledger | None = None
        self._creating = Batcher(self._create_batch)
        self._create_max = 8189  # of TigerBeetle's default message size, 1 MiB
        self._answers = 0

    async def open(self) -> Self:
        """Connect and wait for the first answer. Raises `Unavailable`."""
        self._client = self._connect()
        await self._ask(lambda client: client.lookup_accounts([0]), limits.FIRST_ANSWER_TIMEOUT_S)
        self._outages.recovered(self._store)
        return self

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def create(self, account: tb.Account) -> tb.Account | None:
        """Create the account. If an account has this guid, create nothing and return that account.

        Accounts in flight share a request. Raises ValueError if TigerBeetle rejects the account.
        """
        tb.CAccount.from_param(account)  # an account that cannot be encoded fails here, before it joins a batch
        status = await self._outages.keep_pending(self._store, lambda: self._creating.ask(account))
        if status == tb.CreateAccountStatus.CREATED:
            return None
        # The account that is there decides, not the status: a transfer can have closed it, which changes its flags.
        existing = await self.lookup(str(account.id))
        if existing is None:
            raise ValueError(f"TigerBeetle rejected the account {account.id}: {status!r}")
        return existing

    async def create_many(self, accounts: list[tb.Account]) -> list[tb.CreateAccountStatus]:
        """Create the accounts and return their statuses."""
        return await self._outages.keep_pending(self._store, lambda: self._create_batch(accounts))

    async def guids_of(self, uuid: str) -> list[str]:
        """Return the guids of the uuid's accounts: none, or one; several are a conflict."""
        return [str(account.id) for account in await self.query_accounts(accounts_query(uuid))]

    async def guids_of_many(self, uuids: list[str], newer_than: int | None = None) -> list[list[str]]:
        """Return for each uuid what `guids_of` returns. `newer_than`: a TigerBeetle timestamp (ns). Older accounts may be left out.

        One scan finds the newer accounts, unless there are many more of them than uuids.
        """
        if newer_than is not None and (newer := await self._newer(newer_than, 2 * len(uuids) + 100)) is not None:
            owned: dict[int, list[str]] = {}
            for account in newer:
                owned.setdefault(account.user_data_128, []).append(str(account.id))
            return [owned.get(owner_of(uuid), []) for uuid in uuids]
        guids: list[list[str]] = []
        while queries := [accounts_query(uuid) for uuid in uuids[len(guids) : len(guids) + QUERIES_MAX]]:
            answers = await self._keep_pending(functools.partial(_query_all, queries))
            guids += [[str(account.id) for account in accounts] for accounts in answers]
        return guids

    async def newest(self) -> int:
        """Return the timestamp of the newest account (ns), 0 if there is none. Every later account gets a later one."""
        return max((account.timestamp for account in await self.query_accounts(newest_account())), default=0)

    async def _newer(self, timestamp: int, limit: int) -> list[tb.Account] | None:
        """Return the accounts with a later timestamp; None if there are more than `limit`.

        None also if no account has this timestamp: then TigerBeetle was replaced, and the times cannot be compared.
        """
        found: list[tb.Account] = []
        last = max(timestamp - 1, 0)
        while page := await self.query_accounts(accounts_after(last, limit + 2)):
            found += page
            if len(found) > limit + 1:
                return None
            last = page[-1].timestamp
        if timestamp == 0:
            return found
        return found[1:] if found and found[0].timestamp == timestamp else None

    async def lookup(self, guid: object) -> tb.Account | None:
        """Return the account under a guid, None if TigerBeetle has none or the guid is invalid."""
        id_ = id_of(guid)
        accounts = [] if id_ is None else await self.lookup_accounts([id_])
        return accounts[0] if accounts else None

    async def lookup_accounts(self, ids: list[int]) -> list[tb.Account]:
        return await self._keep_pending(lambda client: client.lookup_accounts(ids))

    async def query_accounts(self, query_filter: tb.QueryFilter) -> list[tb.Account]:
        return await self._keep_pending(lambda client: client.query_accounts(query_filter))

    async def _create_batch(self, accounts: list[tb.Account]) -> list[tb.CreateAccountStatus]:
        statuses: list[tb.CreateAccountStatus] = []
        while rest := accounts[len(statuses) : len(statuses) + self._create_max]:
            try:
                results = await self._ask(operator.methodcaller("create_accounts", rest))
            except tb.TooMuchDataError:  # a server with a smaller message size, as in development mode
                if len(rest) == 1:
                    raise
                self._create_max = len(rest) // 2
            else:
                statuses += [result.status for result in results]
        return statuses

    async def _keep_pending[T](self, request: Callable[[Ledger], Coroutine[Any, Any, T]]) -> T:
        return await self._outages.keep_pending(self._store, lambda: self._ask(request))

    async def _ask[T](self, request: Callable[[Ledger], Coroutine[Any, Any, T]], timeout_s: float | None = None) -> T:
        """Make the request until it is answered. Every request may be repeated safely.

        Each time that no answer comes in time, report the outage. A cancelled request would leak its packet. So it is a
        task that nobody cancels. Closing the client ends it.
        """
        timeout_s = timeout_s or limits.ANSWER_TIMEOUT_S
        answer: asyncio.Future[T] | None = None
        repeated = False
        while (client := self._client) is not None:
            if answer is None:
                answer, answers = asyncio.ensure_future(request(client)), self._answers
                answer.add_done_callback(lambda late: late.cancelled() or late.exception())
            if not (await asyncio.wait({answer}, timeout=timeout_s))[0]:
                is_lost = self._answers != answers  # the client can lose an answer: others came meanwhile
                if repeated or not is_lost:
                    silent = f"{self._store} did not answer within {timeout_s:.0f} s; start it"
                    wrong = ", or correct TB_ADDRESS or TB_CLUSTER_ID (a cluster ignores the clients of another one),"
                    outage = NoAnswer(f"{silent}{'' if self._answers else wrong} and run again")
                    self._outages.report(outage, self._store)
                if is_lost:
                    answer, repeated = None, True
                continue
            try:
                result = answer.result()
            except tb.ClientClosedError:
                pass
            except tb.ClientEvictedError:
                # A cluster keeps 64 sessions and evicts the oldest. Its client needs a new one.
                if self._client is client:
                    self._client = self._connect()
                    await client.close()
            except (tb.ClientReleaseTooLowError, tb.ClientReleaseTooHighError) as error:
                raise Unavailable(
                    f"{self._store} rejected this client version ({error}); "
                    "install the `tigerbeetle` version that matches the server"
                ) from error
            else:
                self._answers += 1
                return result
            answer = None
        raise Closed(f"the connection to {self._store} is closing; run again to resume")


async def _query_all(queries: list[tb.QueryFilter], client: Ledger) -> list[list[tb.Account]]:
    return await asyncio.gather(*map(client.query_accounts, queries))
