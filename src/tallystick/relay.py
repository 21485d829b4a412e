"""To the process that serves a job, where another process of its host was asked: there what was sent, back
what is answered.

Nothing is passed on twice: who gets what was passed on answers it, or says why not. Knows no route and no
frame; which process serves a job is in the ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Self

import aiohttp
import structlog
from aiohttp import ClientTimeout, ClientWebSocketResponse
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from yarl import URL

from tallystick import outgoing
from tallystick.errors import Elsewhere, LedgerError
from tallystick.leases import LEASE
from tallystick.ledger import Ledger
from tallystick.peer import PeerGone
from tallystick.types import JobId
from tallystick.wire import MAX_BODY

PASSED_ON = "tally-passed-on"
"""The header of what was passed on."""
CONNECT_LIMIT = 2.0
"""Seconds in which the other process has to take a connection."""
LOOK_EVERY = LEASE / 2
"""Seconds between looks at whether the other process serves the job still."""
PING_EVERY = 5.0
"""Seconds between pings to the other process, which has half of that to answer one."""

_HOP_BY_HOP = {
    *("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "expect"),
    *("host", "content-length", "x-forwarded-proto"),
}

log = structlog.get_logger(__name__)


def was_passed_on(scope: Scope) -> bool:
    """True if another process of the host has sent it here."""
    return PASSED_ON in Headers(scope=scope)


class Relay(Response):
    """The answer of the process that serves the job, as an ASGI application."""

    def __init__(
        self, owner: Elsewhere, ledger: Ledger, body: bytes, otherwise: Response, *, secure: bool
    ) -> None:
        """`body`: of the request, which has been read. `otherwise`: the answer if that process gives none.

        `secure`: nobody on the way here could read the request.
        """
        self._owner = owner
        self._ledger = ledger
        self._body = body
        self._otherwise = otherwise
        self._secure = secure
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        passing = asyncio.create_task(self._pass(scope, send))
        # It may also hang, and never say so.
        lost = asyncio.create_task(until_lost(self._ledger, self._owner))
        ends = [passing, lost, asyncio.create_task(_left(receive))]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            failed = lost.done() or (passing.done() and not passing.result())
        finally:
            for task in ends:
                task.cancel()
            await asyncio.wait(ends)
        # An answer that had begun breaks off here as it did there.
        if failed and not self._begun:
            await self._otherwise(scope, receive, send)

    async def _pass(self, scope: Scope, send: Send) -> bool:
        """False if no whole answer came."""
        try:
            async with self._ask(scope) as answer:
                headers = _end_to_end(answer.raw_headers)
                self._begun = True
                await send({"type": "http.response.start", "status": answer.status, "headers": headers})
                async for part in answer.content.iter_any():
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
                return True
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.warning("relay.broken", job=self._owner.job_id, address=self._owner.address, error=str(error))
            return False

    @asynccontextmanager
    async def _ask(self, scope: Scope) -> AsyncIterator[aiohttp.ClientResponse]:
        query = scope["query_string"].decode("latin-1")
        url = f"{self._owner.address}{scope['path']}" + (f"?{query}" if query else "")
        headers = [(name.decode("latin-1"), text.decode("latin-1")) for name, text in scope["headers"]]
        kept = [(name, text) for name, text in headers if name not in _HOP_BY_HOP]
        limit = ClientTimeout(total=None, sock_connect=CONNECT_LIMIT)
        async with (
            outgoing.client(limit, auto_decompress=False) as http,
            http.request(
                scope["method"],
                URL(url, encoded=True),
                headers=[*kept, *_marks(secure=self._secure)],
                data=self._body or None,
                skip_auto_headers=("User-Agent", "Accept-Encoding", "Content-Type"),
            ) as answer,
        ):
            yield answer


async def until_lost(ledger: Ledger, owner: Elsewhere) -> None:
    """Returns once a process serves a job no more, as far as that can be told."""
    while True:
        await asyncio.sleep(LOOK_EVERY)
        with suppress(LedgerError):
            # What is asked of the key's process is short: it is not waited for longer than this.
            if owner.job_id is None:
                return
            found = await ledger.served_elsewhere(JobId(owner.job_id))
            if found is None or found.address != owner.address:
                return


class Uplinks:
    """A client's sockets to the processes that serve its jobs, one to each. `async with` it."""

    def __init__(
        self,
        ledger: Ledger,
        authorization: str | None,
        back: Callable[[str], Awaitable[None]],
        broken: Callable[[], Awaitable[None]],
        *,
        secure: bool,
    ) -> None:
        """`back` gets each frame that comes, and may raise PeerGone; `broken` is told when a process is gone.

        `authorization` and `secure` are of the client's own upgrade.
        """
        self.jobs: set[JobId] = set()
        """Those that were asked for elsewhere."""
        self._ledger = ledger
        self._authorization = authorization
        self._back = back
        self._broken = broken
        self._secure = secure
        self._sockets: dict[str, ClientWebSocketResponse] = {}
        self._open = AsyncExitStack()
        self._passing: set[asyncio.Task[None]] = set()
        self._connecting = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._passing:
            task.cancel()
        if self._passing:
            await asyncio.wait(self._passing)
        await self._open.aclose()

    async def connect(self, owner: Elsewhere) -> ClientWebSocketResponse:
        """The socket to the process that serves a job; what comes there comes back from now on.

        Raises `owner` if that process takes no connection.
        """
        async with self._connecting:
            if owner.address is None:
                raise owner
            if owner.address not in self._sockets:
                self._sockets[owner.address] = await self._connect(owner, owner.address)
            assert owner.job_id is not None
            self.jobs.add(JobId(owner.job_id))
            return self._sockets[owner.address]

    async def pass_on(self, owner: Elsewhere, frame: str) -> None:
        """Sends a frame to the process that serves the job. Raises `owner` if it takes no connection."""
        await _send(await self.connect(owner), frame)

    async def pass_to_all(self, frame: str) -> None:
        """Sends a frame to every process that was asked."""
        for socket in self._sockets.values():
            await _send(socket, frame)

    async def _connect(self, owner: Elsewhere, address: str) -> ClientWebSocketResponse:
        try:
            socket = await self._open.enter_async_context(self._socket_to(address))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.warning("relay.broken", job=owner.job_id, address=address, error=str(error))
            raise owner from error
        self._passing.add(asyncio.create_task(self._pass_back(socket, owner)))
        return socket

    @asynccontextmanager
    async def _socket_to(self, address: str) -> AsyncIterator[ClientWebSocketResponse]:
        bearer = [("authorization", f"Bearer {self._authorization}")] if self._authorization else []
        limit = ClientTimeout(total=None, sock_connect=CONNECT_LIMIT)
        async with (
            outgoing.client(limit) as http,
            http.ws_connect(
                f"{address}/v1/session",
                headers=[*bearer, *_marks(secure=self._secure)],
                heartbeat=PING_EVERY,
                max_msg_size=MAX_BODY,
            ) as socket,
        ):
            yield socket

    async def _pass_back(self, socket: ClientWebSocketResponse, owner: Elsewhere) -> None:
        lost = asyncio.create_task(_close_once_lost(self._ledger, socket, owner))
        try:
            async for message in socket:
                if message.type is aiohttp.WSMsgType.TEXT:
                    await self._back(message.data)
        except PeerGone:
            return
        finally:
            lost.cancel()
        await self._broken()


async def _send(socket: ClientWebSocketResponse, frame: str) -> None:
    # Whoever reads from it sees that it is broken.
    with suppress(OSError, aiohttp.ClientError):
        await socket.send_str(frame)


async def _close_once_lost(ledger: Ledger, socket: ClientWebSocketResponse, owner: Elsewhere) -> None:
    await until_lost(ledger, owner)
    await socket.close()


def _marks(*, secure: bool) -> list[tuple[str, str]]:
    return [(PASSED_ON, "1"), ("x-forwarded-proto", "https" if secure else "http")]


def _end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """What of an answer is for the client; its length is, its way of being cut is not."""
    kept = _HOP_BY_HOP - {"content-length"}
    return [(name.lower(), text) for name, text in headers if name.decode("latin-1").lower() not in kept]


async def _left(receive: Callable[[], Awaitable[object]]) -> None:
    """Returns once the client has left."""
    while True:
        message = await receive()
        if isinstance(message, dict) and message["type"] == "http.disconnect":
            return
