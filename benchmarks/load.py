"""The clients of a streaming benchmark: raw sockets, hardly any work for a token, a process of their own.

    python -m benchmarks.load HOST:PORT < plan

The plan, pickled, is a list of clients; each sends its requests one after the other, over one connection, and
over another one the receipts that were signed before the clock started, each once enough tokens have arrived
and the one before it is acknowledged. Prints one object: what came, in how long.
"""

from __future__ import annotations

import asyncio
import gc
import json
import pickle
import statistics
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import uvloop

TOKEN = b'"content":" word'
"""What every token has in its chunk, once, and nothing else has."""
SPLIT = 2
"""Tokens of a reply that may go uncounted, as a server may end one of HTTP's own chunks in their middle."""
DONE = b"data: [DONE]"
ACKNOWLEDGED = b'"ack"'
LAST = b"0\r\n\r\n"


Connect = Callable[[Callable[[], asyncio.Protocol]], Awaitable[None]]
"""Connects a protocol to the server."""


@dataclass(frozen=True)
class Client:
    """What one client sends."""

    requests: list[bytes]
    tokens: int
    """Of each reply."""
    receipts: list[tuple[int, bytes]] = field(default_factory=list)
    """By tokens received in all: the request that signs for them."""


@dataclass
class Tally:
    """What all clients saw."""

    tokens: int = 0
    size: int = 0
    reads: int = 0
    streams: int = 0
    receipts: int = 0
    first: list[float] = field(default_factory=list)
    """Seconds from a request to the first token of its reply."""
    gaps: list[float] = field(default_factory=list)
    """Seconds between two reads that brought tokens, of the same reply."""


class Talk(asyncio.Protocol):
    """The connection on which one client asks."""

    _transport: asyncio.Transport

    def __init__(self, client: Client, tally: Tally, signing: Signing | None) -> None:
        self.over = asyncio.get_running_loop().create_future()
        self._client = client
        self._left = deque(client.requests)
        self._tally = tally
        self._signing = signing
        self._tail = b""
        self._done = False
        self._tokens = 0
        self._asked_at = self._came_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.over.done():
            self.over.set_exception(error or ConnectionError(f"cut off after {self._tail!r}"))

    def _ask(self) -> None:
        if not self._left:
            self.over.set_result(None)
            return
        self._tail, self._done, self._came_at = b"", False, 0.0
        self._asked_at = time.perf_counter()
        self._transport.write(self._left.popleft())

    def data_received(self, data: bytes) -> None:
        tally = self._tally
        tally.reads += 1
        tally.size += len(data)
        seen = self._tail + data
        if tokens := seen.count(TOKEN) - self._tail.count(TOKEN):
            self._count(tokens)
        self._done = self._done or DONE in seen
        self._tail = seen[-len(TOKEN) + 1 :]
        if self._done and self._tail.endswith(LAST):
            tally.streams += 1
            self._end(data)

    def _end(self, data: bytes) -> None:
        asked = self._client.tokens * (len(self._client.requests) - len(self._left))
        missed = asked - self._tokens
        if missed > (SPLIT if self._signing is None else 0):
            self.over.set_exception(ConnectionError(f"{missed} of {asked} tokens missing: {data[-600:]!r}"))
            return
        self._tally.tokens += missed
        self._tokens = asked
        self._ask()

    def _count(self, tokens: int) -> None:
        now = time.perf_counter()
        if self._came_at:
            self._tally.gaps.append(now - self._came_at)
        else:
            self._tally.first.append(now - self._asked_at)
        self._came_at = now
        self._tally.tokens += tokens
        self._tokens += tokens
        if self._signing is not None:
            self._signing.received(self._tokens)


class Signing(asyncio.Protocol):
    """The connection on which one client sends its receipts; made anew where the server drops an idle one."""

    def __init__(self, client: Client, tally: Tally, connect: Connect) -> None:
        self._left = deque(client.receipts)
        self._tally = tally
        self._connect = connect
        self._transport: asyncio.Transport | None = None
        self._tokens = 0
        self._sent: bytes | None = None
        """The receipt that waits for its acknowledgement."""
        self._connecting: asyncio.Task[None] | None = None
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._send()

    def _send(self) -> None:
        """Sends what waits, once more if need be: a receipt that is known already is acknowledged as well."""
        if self._sent is None:
            return
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(self._sent)
        elif self._connecting is None or self._connecting.done():
            self._connecting = asyncio.ensure_future(self._connect(lambda: self))

    def received(self, tokens: int) -> None:
        """So many tokens have come in all."""
        self._tokens = tokens
        self._sign()

    def _sign(self) -> None:
        if self._sent is not None:
            return
        if not self._left:
            if not self.over.done():
                self.over.set_result(None)
        elif self._tokens >= self._left[0][0]:
            self._sent = self._left.popleft()[1]
            self._send()

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"HTTP/") and not data.startswith(b"HTTP/1.1 200"):
            self.over.set_exception(ConnectionError(f"a receipt was refused: {data!r}"))
        if ACKNOWLEDGED not in data:
            return
        self._tally.receipts += 1
        self._sent = None
        self._sign()


async def run(address: str, clients: list[Client]) -> dict[str, float]:
    """All clients at once, to the end of their requests. ConnectionError if one is turned down."""
    host, port = address.split(":")
    loop, tally = asyncio.get_running_loop(), Tally()
    began = time.perf_counter()
    waiting: list[asyncio.Future[None]] = []

    async def connect(protocol: Callable[[], asyncio.Protocol]) -> None:
        await loop.create_connection(protocol, host, int(port))

    for client in clients:
        signing = None
        if client.receipts:
            signing = Signing(client, tally, connect)
            waiting.append(signing.over)
        _, talk = await loop.create_connection(partial(Talk, client, tally, signing), host, int(port))
        waiting.append(talk.over)
    await asyncio.gather(*waiting)
    return _told(tally, time.perf_counter() - began)


def _told(tally: Tally, seconds: float) -> dict[str, float]:
    gaps = sorted(tally.gaps) or [0.0]
    return {
        "tokens": tally.tokens,
        "seconds": seconds,
        "streams": tally.streams,
        "receipts": tally.receipts,
        "bytes_per_token": tally.size / tally.tokens,
        "reads_per_token": tally.reads / tally.tokens,
        "first_token_p50": statistics.median(tally.first),
        "gap_p50": gaps[len(gaps) // 2],
        "gap_p99": gaps[len(gaps) * 99 // 100],
    }


def main() -> None:
    clients = pickle.load(sys.stdin.buffer)
    gc.disable()
    print(json.dumps(uvloop.run(run(sys.argv[1], clients))))


if __name__ == "__main__":
    main()
