"""This payer's own record of a host: what came of what was asked of it. Rules: knows no store and no clock.

Nobody else's word is in it, so of a host that was never asked there is none. Times are seconds of this
machine's clock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction

from tallystick.types import Address

MEMORY = 8
"""Replies over which the time to the first token is averaged, the newest counting most."""
LONGEST = 86_400.0
"""Seconds for which a host is set aside at the most."""


class Trouble(Enum):
    """What a host can be set aside for."""

    FAILED = "failed"
    LATE = "late"
    OVERCOUNTED = "overcounted"


@dataclass(frozen=True, slots=True)
class Came:
    """What came of one request."""

    tokens: int = 0
    first_token: float | None = None
    """Seconds until it; None: there was none."""
    trouble: Trouble | None = None
    cause: str = ""
    """Of the trouble, in words."""
    began: float | None = None
    """When it was asked; None: nobody knows."""


@dataclass(frozen=True, slots=True)
class Record:
    """Counts of all requests to one host, and whether it is set aside."""

    host: Address
    replies: int = 0
    """That came to an end, or were left by their reader, and were counted right."""
    tokens: int = 0
    """Generated ones that came, of any reply."""
    failures: int = 0
    late: int = 0
    """Requests that were given up, as no token had come in time."""
    overcounts: int = 0
    """Replies whose counts could not be signed for as they were."""
    first_token_ms: int | None = None
    """Average time to the first token, in milliseconds."""
    last_seen: float = 0.0
    """When something came of it; 0: never."""
    in_a_row: int = 0
    """Troubles since the last reply; what befell several requests at once is one."""
    troubled_at: float = 0.0
    """When the last of these was noted; 0: there is none."""
    aside_until: float = 0.0
    cause: str = ""
    """Of the last trouble, in words."""

    @property
    def troubles(self) -> int:
        """Requests that came to no good."""
        return self.failures + self.late + self.overcounts

    @property
    def dearer(self) -> Fraction:
        """By how much its price is to be taken for more: requests a reply, one reply beforehand."""
        return Fraction(self.replies + self.troubles + 1, self.replies + 1)

    def is_aside(self, now: float) -> bool:
        """Others are asked before it."""
        return now < self.aside_until

    def after(self, came: Came, now: float, aside: float) -> Record:
        """The record with one request more. `aside`: seconds for a first trouble, doubled by each further one
        in a row. A request that was asked before the last trouble was noted met with the same one.
        """
        record = replace(self, tokens=self.tokens + came.tokens)
        if came.first_token is not None:
            average = self._averaged(came.first_token)
            record = replace(record, first_token_ms=average, last_seen=now)
        if came.trouble is not None:
            record = record._counted(came.trouble, came.cause)
            is_known = came.began is not None and came.began < self.troubled_at
            return record if is_known else record._set_aside(now, aside)
        return (
            replace(record, replies=self.replies + 1, in_a_row=0, troubled_at=0.0, aside_until=0.0)
            if came.tokens
            else record
        )

    def _averaged(self, seconds: float) -> int:
        newest = round(seconds * 1000)
        if self.first_token_ms is None:
            return newest
        return (self.first_token_ms * (MEMORY - 1) + newest) // MEMORY

    def _counted(self, trouble: Trouble, cause: str) -> Record:
        return replace(
            self,
            failures=self.failures + (trouble is Trouble.FAILED),
            late=self.late + (trouble is Trouble.LATE),
            overcounts=self.overcounts + (trouble is Trouble.OVERCOUNTED),
            cause=cause,
        )

    def _set_aside(self, now: float, aside: float) -> Record:
        seconds = min(aside * 2.0 ** min(self.in_a_row, 30), LONGEST)
        return replace(self, in_a_row=self.in_a_row + 1, troubled_at=now, aside_until=now + seconds)


def told(record: Record) -> str:
    """A record in words: "12 replies, 3400 tokens, 1 failed; first token after 120 ms"."""
    if not (record.replies or record.troubles):
        return "never asked"
    counts = [f"{record.replies} replies, {record.tokens} tokens"]
    counts += [
        f"{number} {name}"
        for number, name in (
            (record.failures, "failed"),
            (record.late, "late"),
            (record.overcounts, "overcounted"),
        )
        if number
    ]
    first = "" if record.first_token_ms is None else f"; first token after {record.first_token_ms} ms"
    return ", ".join(counts) + first
