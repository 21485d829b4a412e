"""Who waits for room on one job: prompts, first and in their order, and streams, which share the rest.

Knows neither sockets nor receipts: its owner tells it when there may be more, and what each stream wants. All
of it happens at once, without awaiting, on one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from tallystick.meter import Fit, JobMeter
from tallystick.shares import Want, shares

if TYPE_CHECKING:
    from tallystick.stream import Stream

SHARING_DELAY = 0.1
"""Seconds for which less than a quarter of the interval is not shared out: the least that RFC 9293 has."""


class Line:
    """The prompts and streams of a job that wait for receipts."""

    def __init__(self, meter: JobMeter, want: Callable[[Stream], Want], coming: Callable[[], int]) -> None:
        """`want`: what a stream that waits could use. `coming`: what is unsigned of streams whose payer signs
        as they go, in tokens: there is room for as many again in a moment.
        """
        self._meter = meter
        self._want = want
        self._coming = coming
        self._prompts: deque[tuple[int, asyncio.Future[None]]] = deque()
        """The first one first."""
        self._streams: dict[Stream, int] = {}
        """The first one first, with the tokens that are kept for each."""
        self._sharing: asyncio.TimerHandle | None = None
        """Set while little is waited with, as more may come."""

    def __bool__(self) -> bool:
        """True if anybody waits."""
        return bool(self._prompts or self._streams)

    def move_up(self) -> None:
        """There may be more room: prompts are let in, and what they leave is kept for streams."""
        self._let_in()
        self._share_out()

    # Prompts

    @property
    def prompts(self) -> int:
        """How many wait."""
        return sum(not place.done() for _, place in self._prompts)

    def reserve(self, prompt_tokens: int) -> Fit:
        """As `JobMeter.reserve`, but not past prompts that wait, nor where tokens are left too little."""
        if self.prompts or self._meter.crowds(prompt_tokens):
            fit = self._meter.fit(prompt_tokens)
            return Fit.NEEDS_RECEIPT if fit is Fit.FITS else fit
        return self._meter.reserve(prompt_tokens)

    def queue(self, prompt_tokens: int) -> asyncio.Future[None]:
        """A prompt's place, done once the prompt is reserved. Cancel it to leave the line."""
        place = asyncio.get_running_loop().create_future()
        self._prompts.append((prompt_tokens, place))
        return place

    def turn_away(self) -> None:
        """No prompt waits any longer."""
        for _, place in self._prompts:
            place.cancel()

    def _let_in(self) -> None:
        """Prompts come before further tokens of replies, or a busy job would let no other request in."""
        while self._prompts:
            prompt_tokens, place = self._prompts[0]
            if not place.done():
                if self._meter.crowds(prompt_tokens) or self._meter.reserve(prompt_tokens) is not Fit.FITS:
                    return
                place.set_result(None)
            self._prompts.popleft()

    # Streams

    def room_for(self, stream: Stream) -> int:
        """Generated tokens that a stream may deliver now: what is kept for it, or of no use to others."""
        room = self._room_beside_prompts()
        if stream in self._streams:
            return min(room, self._streams[stream])
        return room - sum(want.most for want in map(self._want, self._streams))

    def stand(self, stream: Stream) -> None:
        """A stream waits for its turn until it leaves; it may have come at once."""
        self._streams.setdefault(stream, 0)
        self._share_out()

    def leave(self, stream: Stream) -> None:
        """A stream waits no longer. Twice is harmless."""
        self._streams.pop(stream, None)

    def _room_beside_prompts(self) -> int:
        """What the prompt leaves that is next."""
        first = next((tokens for tokens, place in self._prompts if not place.done()), 0)
        return self._meter.room_beside(0 if self._meter.crowds(first) else first)

    def _share_out(self, *, late: bool = False) -> None:
        """Keeps what there is room for to the streams that wait."""
        room = self._room_beside_prompts()
        if not self._streams or room <= sum(self._streams.values()):
            return
        if room * 4 < self._meter.interval and self._meter.unsigned and not late:
            self._share_later()
            return
        waiting = list(self._streams)
        kept = shares(room, [self._want(stream) for stream in waiting], room + self._coming())
        self._streams = dict(zip(waiting, kept, strict=True))

    def _share_later(self) -> None:
        """Waits for the payer to sign for more, and not for long: each token by itself would cost a receipt.

        (TCP avoids silly windows in the same way: RFC 9293, section 3.8.6.2.)
        """
        if self._sharing is None:
            self._sharing = asyncio.get_running_loop().call_later(SHARING_DELAY, self._share_now)

    def _share_now(self) -> None:
        self._sharing = None
        self._share_out(late=True)
        for stream, kept in self._streams.items():
            if kept:
                stream.wake()
