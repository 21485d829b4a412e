"""What a process has done since it started: replies, their tokens, requests turned down, receipts taken."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tallystick.errors import ChainError, Elsewhere, EngineError, LedgerError, Refusal, TallystickError
from tallystick.stream import CANCELLED, Stream
from tallystick.types import Totals


@dataclass(slots=True)
class Work:
    """Sums that only grow."""

    tokens: Totals = field(default_factory=Totals)
    """Counted in replies that are over."""
    replies: Counter[str] = field(default_factory=Counter)
    """Those that are over, by the reason why (protocol §9)."""
    refused: Counter[str] = field(default_factory=Counter)
    """Requests that no reply was begun for, by the code of REFUSALS."""
    receipts: int = 0
    """Stored."""

    def reply(self, stream: Stream) -> None:
        """A reply is over."""
        self.tokens += stream.sent
        self.replies[CANCELLED if stream.end is None else stream.end.reason] += 1

    def refuse(self, error: TallystickError) -> None:
        """A request was turned down; one that another process answers was not."""
        if isinstance(error, (Refusal, EngineError)):
            self.refused[error.code] += 1
        elif isinstance(error, (LedgerError, ChainError)) and not isinstance(error, Elsewhere):
            part = "ledger" if isinstance(error, LedgerError) else "chain"
            self.refused[f"{part}_unavailable"] += 1
