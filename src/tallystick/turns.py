"""One at a time, in the order they came, over all event loops and threads of a process.

An asyncio.Lock belongs to one loop, and each Session of an application without a loop has one of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Future
from types import TracebackType


class Turns:
    """`async with` it: inside, nobody else is. Whoever is cancelled while waiting holds nobody up."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken = False
        self._waiting: deque[Future[None]] = deque()

    async def __aenter__(self) -> None:
        turn = self._ask()
        if turn is None:
            return
        try:
            await asyncio.wrap_future(turn)
        except asyncio.CancelledError:
            if not turn.cancel():
                self._hand_on()  # it had come in the same moment
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hand_on()

    def _ask(self) -> Future[None] | None:
        """What comes true when it is one's turn; None: it is now."""
        with self._guard:
            if not self._taken:
                self._taken = True
                return None
            turn: Future[None] = Future()
            self._waiting.append(turn)
            return turn

    def _hand_on(self) -> None:
        turn = self._next()
        if turn is not None:
            turn.set_result(None)

    def _next(self) -> Future[None] | None:
        """Who has it now; None: nobody."""
        with self._guard:
            while self._waiting:
                turn = self._waiting.popleft()
                if turn.set_running_or_notify_cancel():
                    return turn
            self._taken = False
            return None
