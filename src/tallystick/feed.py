"""What happens, told as it happens to whoever listens, as server-sent events. Knows nothing of what it tells.

A listener that does not keep up is let go: it listens anew, and asks how things stand.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from tallystick import sse

WAITING = 1000
"""Events that may wait for a listener."""
QUIET = 15.0
"""Seconds without an event until a listener is sent a comment, by which one that is gone is noticed."""
COMMENT = b":\n\n"


class Feed:
    """One source of events, many listeners."""

    def __init__(self) -> None:
        self._listening: set[asyncio.Queue[bytes | None]] = set()
        self._closed = False

    def tell(self, event: Mapping[str, Any]) -> None:
        """Tells all who listen now."""
        told = sse.event(event)
        for queue in list(self._listening):
            if queue.qsize() < WAITING:
                queue.put_nowait(told)
            else:
                self._let_go(queue)

    def close(self) -> None:
        """Lets everybody go."""
        self._closed = True
        for queue in list(self._listening):
            self._let_go(queue)

    def _let_go(self, queue: asyncio.Queue[bytes | None]) -> None:
        self._listening.discard(queue)
        queue.put_nowait(None)

    async def listen(self) -> AsyncGenerator[bytes, None]:
        """All that is told from now on, beginning with a comment, until the listener is let go."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        if not self._closed:
            self._listening.add(queue)
        try:
            yield COMMENT
            while queue in self._listening or not queue.empty():
                told = await self._next(queue)
                if told is None:
                    return
                yield told
        finally:
            self._listening.discard(queue)

    async def _next(self, queue: asyncio.Queue[bytes | None]) -> bytes | None:
        # Not wait_for: before Python 3.12 it loses a cancellation that comes together with an event.
        try:
            async with asyncio.timeout(QUIET):
                return await queue.get()
        except TimeoutError:
            return COMMENT
