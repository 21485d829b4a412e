"""What replies have sent, kept a while for whoever comes back: in whole, or from where they were cut.

    recorded while it is sent -> over -> kept for the grace -> forgotten
             `--- followed by who asks again, whose own connection it then goes on for

Nothing here is counted again: what is recorded was counted before it was sent. Bounded in bytes, each tape
and all together. Does no I/O and knows no money; what an event looks like is for its writer to say.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager

from tallystick.errors import Refusal
from tallystick.types import JobId

TAPE_LIMIT = 1_000_000
"""Bytes of one reply that are kept: the newest."""
KEPT_LIMIT = 64_000_000
"""Bytes of all replies that are over; the oldest are forgotten first."""

Name = tuple[JobId, str]
"""The job, and what its client calls the reply."""


class Tape:
    """The events of one reply, numbered from 1."""

    def __init__(self, fingerprint: bytes, limit: int) -> None:
        """`fingerprint`: of what was asked for."""
        self.fingerprint = fingerprint
        self.over = False
        self.last = 0
        """The number of the newest event."""
        self.size = 0
        """Bytes that are held."""
        self._limit = limit
        self._events: deque[bytes] = deque()
        self._followers = 0
        self._changed = asyncio.Event()
        self._cut: Callable[[], None] | None = None

    def add(self, event: bytes) -> None:
        """Records what is sent."""
        self.last += 1
        self.size += len(event)
        self._events.append(event)
        while self.size > self._limit:
            self.size -= len(self._events.popleft())
        self._tell()

    def end(self) -> None:
        """Nothing more comes."""
        self.over = True
        self._tell()

    def leave(self, cut: Callable[[], None]) -> None:
        """Whom the reply is made for is gone: `cut` ends it, once nobody follows."""
        self._cut = cut
        self._stop_unless_followed()

    @property
    def followed(self) -> bool:
        """True while somebody reads it."""
        return self._followers > 0

    def holds(self, after: int) -> bool:
        """True if every event past number `after` is there, or yet to come."""
        return self.last - len(self._events) <= after <= self.last

    async def follow(self, after: int) -> AsyncGenerator[list[bytes], None]:
        """The events past number `after`, as they come. Refusal `reply_gone` if they are not all there."""
        self._followers += 1
        try:
            while True:
                if not self.holds(after):
                    raise Refusal("reply_gone")
                changed = self._changed
                if new := list(self._events)[len(self._events) - (self.last - after) :]:
                    after = self.last
                    yield new
                elif self.over:
                    return
                else:
                    await changed.wait()
        finally:
            self._followers -= 1
            self._stop_unless_followed()

    def _stop_unless_followed(self) -> None:
        if self._cut is not None and not self._followers:
            self._cut()

    def _tell(self) -> None:
        if self._followers:
            self._changed.set()
            self._changed = asyncio.Event()


class Replays:
    """The tapes of a node. `keep`: seconds for which one that is over is kept."""

    def __init__(self, keep: float) -> None:
        self._keep = keep
        self._tapes: dict[Name, Tape] = {}
        self._kept: dict[Name, Tape] = {}
        """Those that are over, the oldest first."""
        self._size = 0
        """Bytes of these."""

    def find(self, name: Name | None) -> Tape | None:
        """The tape of that name; who may have it is for the caller to know."""
        return None if name is None else self._tapes.get(name)

    @contextmanager
    def recording(self, name: Name | None, fingerprint: bytes) -> Iterator[Tape | None]:
        """A tape for a reply, over when this is left; none without a name, or for one that is taken.

        What sent nothing is not kept: it may be asked for anew.
        """
        if name is None or name in self._tapes:
            yield None
            return
        tape = self._tapes[name] = Tape(fingerprint, TAPE_LIMIT)
        try:
            yield tape
        finally:
            tape.end()
            if tape.last:
                self._hold(name, tape)
            else:
                del self._tapes[name]

    def _hold(self, name: Name, tape: Tape) -> None:
        self._kept[name] = tape
        self._size += tape.size
        while self._size > KEPT_LIMIT:
            self._forget(*next(iter(self._kept.items())))
        asyncio.get_running_loop().call_later(self._keep, self._forget, name, tape)

    def _forget(self, name: Name, tape: Tape) -> None:
        if self._tapes.get(name) is tape:
            del self._tapes[name], self._kept[name]
            self._size -= tape.size
