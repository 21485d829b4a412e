"""The endpoints of one chain, as one: reads go to a good one, transactions to all of them.

An endpoint is looked at before it is used and every few seconds while it is: one that is on another chain,
lags behind the others, or gives no answer is set aside, said so in the log, and looked at again later; who
is asked when is decided by roster.py. A call that fails in transport goes on to the next endpoint; a
JSON-RPC error is an answer, and stays one. No more of a URL than its host is told.

What endpoints of one chain say does not fit together: one may have a block that the other has not. Who
asks one for the count of an account's transactions, and another for their receipts, finds a nonce that is
used and nothing that used it, and takes its own transaction for lost. So decisions are made in a `view`:
all reads in it are one endpoint's, and its head is no lower than any block that was shown before, in
whatever view, nor than the one that the reader names because it has it on disk. What was once seen and is
not there in a view is gone indeed; no replica that is behind or stands still can say so. If the endpoint
fails in the middle, or goes back, as one does behind whose name there are several, the view fails as a
whole: nothing is decided, and the reader tries again. A chain that really went back is believed once all
endpoints have said so for ten minutes.

One endpoint alone is looked at as well, as it may move to another chain; there is nobody to be behind of.

The sender makes each of its steps in one view, and asks in it for count, receipts and head, the head last.
Plain reads go to the endpoint that is current, and are not held up by any of this.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import structlog
from eth_utils.conversions import to_bytes, to_hex
from web3.providers.async_base import AsyncJSONBaseProvider
from web3.types import RPCEndpoint, RPCResponse

from tallystick.endpoint import CALL_TIMEOUT, CHAIN_ID, HEAD, Asked, Endpoint
from tallystick.errors import ChainError, RpcError, WrongChain
from tallystick.fees import Answer, read_answer
from tallystick.keccak import keccak
from tallystick.roster import Member, Roster, State, Status

HEAD_START = 1.0
"""Seconds that the others get, once one endpoint has answered, to show that it is behind."""

SEND = RPCEndpoint("eth_sendRawTransaction")

# Of several refusals the first of these is told: what says most of the transaction, and last what would have
# its nonce given away.
_TELLING = (Answer.NONCE_TOO_LOW, Answer.UNDERPRICED, Answer.NO_FUNDS, Answer.SILENCE, Answer.REFUSED)

log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _View:
    """Reads that are one endpoint's, and the highest block that they showed."""

    endpoints: Endpoints
    member: Member
    shown: int


_view: ContextVar[_View | None] = ContextVar("view", default=None)


class Endpoints(AsyncJSONBaseProvider):
    """Endpoints of one chain, as one provider for web3. `timeout`: seconds for a call to each of them."""

    global_ccip_read_enabled = False

    def __init__(
        self,
        urls: Sequence[str],
        chain_id: int,
        timeout: float = CALL_TIMEOUT,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        endpoints = [Endpoint(url, timeout) for url in urls]
        self._roster = Roster([endpoint.host for endpoint in endpoints], chain_id)
        self._endpoints = dict(zip(self._roster.members, endpoints, strict=True))
        self._clock = clock
        self._looks: dict[Member, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._told = dict.fromkeys(self._roster.members, State.UNKNOWN)

    @property
    def host(self) -> str:
        """Host and port of the endpoint that is asked now."""
        return self._roster.current.host

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """As of one endpoint. ChainError: none that may be asked has answered. WrongChain: none is on it."""
        await self._look_around()
        if method == SEND:
            return await self._send(params)
        if (view := self._present_view()) is not None:
            return await self._ask_in(view, method, params)
        return await self._ask_anybody(lambda member: self._ask(member, method, params))

    async def ask_all(self, calls: Sequence[Asked]) -> list[Any | RpcError]:
        """As of one endpoint: all answers are from the same. Blocks that they come from are not noticed."""
        await self._look_around()
        if (view := self._present_view()) is not None:
            return await self._ask_all(view.member, calls)
        return await self._ask_anybody(lambda member: self._ask_all(member, calls))

    @asynccontextmanager
    async def view(self, at_least: int = 0) -> AsyncIterator[None]:
        """All reads inside are one endpoint's, which has come to block `at_least`, and to all shown before.

        ChainError: there is none, or it failed in the middle; nothing should be concluded from what it said.
        """
        member = await self._level(at_least)
        self._roster.show(member.head)
        token = _view.set(_View(self, member, member.head))
        try:
            yield
        finally:
            _view.reset(token)

    async def statuses(self) -> list[Status]:
        """How each endpoint is seen, after a look at all of them."""
        await self._look_at(self._roster.members)
        return self._roster.statuses()

    async def disconnect(self) -> None:
        """Closes the connections and gives up what is still on its way. The next request opens new ones."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for endpoint in self._endpoints.values():
            await endpoint.disconnect()

    # Looking

    async def _look_around(self) -> None:
        """Looks at those that are due, and waits for it only if there is none to ask."""
        self._start_looking(self._roster.due(self._clock()))
        if self._looks and not self._roster.good():
            await _wait(self._looks.values(), lambda: bool(self._roster.good()))

    async def _look_at(self, members: Collection[Member]) -> None:
        self._start_looking(members)
        await asyncio.wait([self._looks[member] for member in members])

    def _start_looking(self, members: Collection[Member]) -> None:
        for member in members:
            if member not in self._looks:
                look = self._looks[member] = self._spawn(self._look(member))
                look.add_done_callback(partial(self._looked, member))

    def _looked(self, member: Member, _: asyncio.Task[None]) -> None:
        del self._looks[member]

    async def _look(self, member: Member) -> None:
        try:
            chain_id = await self._endpoints[member].number(CHAIN_ID)
            head = await self._endpoints[member].number(HEAD)
        except ChainError as error:
            self._fail(member, str(error))
        else:
            self._roster.looked(member, chain_id, head, self._clock())
            self._tell()

    async def _level(self, at_least: int) -> Member:
        """An endpoint for a view, looked at just now."""
        await self._look_around()
        current = self._roster.choose()
        if current is not None:
            await self._look_at([current])
        member = self._roster.level(at_least, self._clock())
        if member is None and self._roster.good():
            await self._look_at(self._roster.good())
            member = self._roster.level(at_least, self._clock())
        if member is None:
            raise self._nobody(at_least)
        return member

    # Asking

    def _present_view(self) -> _View | None:
        """The view that the caller is in."""
        view = _view.get()
        return view if view is not None and view.endpoints is self else None

    async def _ask_anybody(self, ask: Callable[[Member], Awaitable[T]]) -> T:
        """What the first one answers that does. An RpcError is an answer."""
        tried: list[Member] = []
        while (member := self._roster.choose(tried)) is not None:
            tried.append(member)
            try:
                return await ask(member)
            except RpcError:
                raise
            except ChainError:
                continue  # it is set aside
        raise self._nobody()

    async def _ask_all(self, member: Member, calls: Sequence[Asked]) -> list[Any | RpcError]:
        try:
            return await self._endpoints[member].ask_all(calls)
        except ChainError as error:
            self._fail(member, str(error))
            raise

    async def _ask(self, member: Member, method: RPCEndpoint, params: Any) -> RPCResponse:
        """RpcError: so it answered. Any other ChainError: it did not answer, and is set aside."""
        try:
            answer = await self._endpoints[member].make_request(method, params)
        except RpcError:
            raise
        except ChainError as error:
            self._fail(member, str(error))
            raise
        self._roster.show(_block_in(method, answer["result"]))
        return answer

    async def _ask_in(self, view: _View, method: RPCEndpoint, params: Any) -> RPCResponse:
        answer = await self._ask(view.member, method, params)
        block = _block_in(method, answer["result"])
        if block < view.shown and _is_head(method, params):
            why = f"{view.member.host} went back from block {view.shown} to {block}"
            self._fail(view.member, why)
            raise ChainError(why)
        view.shown = max(view.shown, block)
        return answer

    async def _send(self, params: Any) -> RPCResponse:
        """To all at once. It is taken when one has taken it or has it already; the others get it still."""
        sending = [self._spawn(self._ask(member, SEND, params)) for member in self._roster.receivers()]
        late = set(sending)
        while late:
            sent, late = await asyncio.wait(late, return_when=asyncio.FIRST_COMPLETED)
            for task in sent:
                trouble = _trouble(task)
                if trouble is None:
                    return task.result()
                if _answer_in(trouble) is Answer.KNOWN:
                    return {"jsonrpc": "2.0", "id": 0, "result": to_hex(keccak(_raw(params[0])))}
        troubles = [trouble for task in sending if (trouble := _trouble(task))]
        raise min(troubles or [self._nobody()], key=lambda trouble: _TELLING.index(_answer_in(trouble)))

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Goes on when whoever asked for it waits no longer."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            _trouble(
                task
            )  # seen: what an endpoint does wrong is told already, a fault of ours the loop tells

    # Telling

    def _fail(self, member: Member, why: str) -> None:
        self._roster.failed(member, why, self._clock())
        self._tell()

    def _tell(self) -> None:
        for member in self._roster.members:
            before, self._told[member] = self._told[member], member.state
            if member.state.set_aside and member.state is not before:
                log.warning("endpoint.set_aside", endpoint=member.host, reason=member.trouble)
            elif before.set_aside and not member.state.set_aside:
                log.info("endpoint.back", endpoint=member.host)

    def _nobody(self, at_least: int = 0) -> ChainError:
        kind = WrongChain if self._roster.elsewhere else ChainError
        return kind(self._roster.complaint(at_least))


def _is_head(method: RPCEndpoint, params: Any) -> bool:
    return method == HEAD or (method == "eth_getBlockByNumber" and params[0] == "latest")


def _block_in(method: RPCEndpoint, result: Any) -> int:
    """The block that an endpoint has come to for certain when it answers so; 0 if the answer does not say."""
    match method, result:
        case "eth_blockNumber", str(number):
            return int(number, 16)
        case "eth_getBlockByNumber", {"number": str(number)}:
            return int(number, 16)
        case "eth_getTransactionReceipt", {"blockNumber": str(number)}:
            return int(number, 16)
    return 0


def _trouble(call: asyncio.Task[Any]) -> ChainError | None:
    """What a call that is done has failed with, if it has."""
    error = call.exception()
    if error is None or isinstance(error, ChainError):
        return error
    raise error


def _answer_in(error: ChainError) -> Answer:
    """What a failed broadcast says of the transaction: without an answer it may have been taken."""
    return read_answer(error.message) if isinstance(error, RpcError) else Answer.SILENCE


def _raw(transaction: str | bytes) -> bytes:
    return to_bytes(hexstr=transaction) if isinstance(transaction, str) else bytes(transaction)


# From a setting


async def chain_id_at(rpc_url: str, timeout: float = CALL_TIMEOUT) -> int:
    """The chain that RPC_URL is on: of several endpoints, what most say that answer soon, or else the first.

    ChainError: none answers.
    """
    endpoints = [Endpoint(url, timeout) for url in rpc_url.split(",")]
    asking = [asyncio.create_task(endpoint.number(CHAIN_ID)) for endpoint in endpoints]
    try:
        await _wait(asking, lambda: bool(_results(asking)))
        # The first one's error is raised here if there is no result.
        return Counter(_results(asking) or [await asking[0]]).most_common(1)[0][0]
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        for endpoint in endpoints:
            await endpoint.disconnect()


def _results(tasks: Sequence[asyncio.Task[T]]) -> list[T]:
    return [task.result() for task in tasks if task.done() and task.exception() is None]


async def _wait(tasks: Collection[asyncio.Task[Any]], enough: Callable[[], bool]) -> None:
    """Until all are done, or it is enough, but for a moment at least: the quickest may be the one behind."""
    _, late = await asyncio.wait(tasks, timeout=HEAD_START)
    while late and not enough():
        _, late = await asyncio.wait(late, return_when=asyncio.FIRST_COMPLETED)
