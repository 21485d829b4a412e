"""A line between payer and host that is cut as by a host that is killed: at once, and for good."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

Answer = Callable[[bytes], bytes | None]
"""What is answered in the node's place to what a client sends; None: nothing, and the node is asked."""

Way = Callable[[bytes], tuple[bytes, asyncio.StreamWriter]]


class Line:
    """Carries bytes both ways to the node at `url`, until it is cut."""

    def __init__(self, url: str, answer: Answer = lambda sent: None) -> None:
        self._answer = answer
        parts = urlsplit(url)
        self._place = parts.hostname, parts.port
        self._ends: set[asyncio.StreamWriter] = set()
        self._carrying: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()
        await asyncio.gather(*self._carrying, return_exceptions=True)

    def cut(self) -> None:
        """Ends all connections without a word; new ones are refused."""
        self._server.close()
        for end in self._ends:
            end.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there = await asyncio.open_connection(*self._place)
        self._ends |= {writer, there}
        for carrying in (self._ask(reader, there, writer), _carry(there_reader, writer)):
            task = asyncio.create_task(carrying)
            self._carrying.add(task)
            task.add_done_callback(self._carrying.discard)

    async def _ask(
        self, client: asyncio.StreamReader, node: asyncio.StreamWriter, back: asyncio.StreamWriter
    ) -> None:
        def way(sent: bytes) -> tuple[bytes, asyncio.StreamWriter]:
            answer = self._answer(sent)
            return (sent, node) if answer is None else (answer, back)

        await _carry(client, node, way)


async def _carry(source: asyncio.StreamReader, to: asyncio.StreamWriter, way: Way | None = None) -> None:
    try:
        while data := await source.read(65_536):
            said, whom = (data, to) if way is None else way(data)
            whom.write(said)
            await whom.drain()
    except ConnectionError:
        return  # it was cut
    finally:
        to.close()
