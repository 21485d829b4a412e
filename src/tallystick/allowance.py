"""How far a host's count may be from the payer's own: over one reply, and over all replies of a host.

What a model says was made as tokens that its tokenizer need not split the finished text into, and some of
them have no text at all. So a host's count is held to the payer's own with an allowance, in the manner of
Page's cumulative sum: what a reply is counted beyond its own share is taken from a reserve, and what it is
counted below it is given back. The reserve belongs to the host, not to the reply: many small excesses add
up, and a host that counts too much as a matter of course runs out of it.

Rules only. Knows no tokenizer, no signature and no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNSEEN = 2
"""Tokens of each choice that have no text (protocol §6): its end token, and a trimmed space or cut character.
"""
MARKS = 16
"""Tokens of the marks around a reasoning or a tool call, which engines read and pass on in another form. The
longest in use are Hermes's around a call's name and arguments, with 13, and Harmony's between an analysis and
an answer, with 9.
"""
SHARE = 2
"""Percent of the payer's own count: what a text may be split differently by, as a matter of course. That is
twice the most for which `RESERVE` has been chosen.
"""
RESERVE = 100
"""Tokens that may be counted beyond all that, until honest counts make up for it.

If one token in a hundred is split differently, by chance and up to four at a time, the sum of what is beyond
the share passes a height of h with a chance of at most e^(-θh) from where it starts, where θ solves
¼ · 0.01 · (e^(4θ) - 1) = 0.02 · θ (Lundberg), so θ = 0.314. Over the 5 million tokens of ten thousand replies
of 500, any of which may be the start, that is 5e6 · e^(-31.4), or one chance in eight million.
"""
PERCENT = 100
"""Sums are kept in hundredths of a token, so that a share of one token is exact."""
SURE_TEMPERATURE = 1.0
"""Above it a sampler prefers what the model does not, and with it splits that no tokenizer makes."""


class Account:
    """What one host has counted beyond a payer's own count of one model's replies."""

    def __init__(self) -> None:
        self._used = 0
        """Of the reserve, by replies that are over, in hundredths of a token."""
        self._open: set[Own] = set()

    @property
    def reserve(self) -> int:
        """Whole tokens that are left of the reserve."""
        return (RESERVE * PERCENT - self._used - self._beyond()) // PERCENT

    def begin(self, body: Mapping[str, Any], choices: int = 1) -> Own:
        """The own count of a reply to `body`, before anything of it has come."""
        own = Own(self, choices * UNSEEN + _stop_bytes(body), calls=bool(body.get("tools")))
        self._open.add(own)
        return own

    def room(self, besides: Own) -> int:
        """What is left of the reserve for a reply that is under way, in hundredths of a token."""
        return RESERVE * PERCENT - self._used - self._beyond(besides)

    def close(self, own: Own) -> None:
        """A reply is over. Twice is harmless."""
        if own in self._open:
            self._open.remove(own)
            self._used = max(0, self._used + own.beyond)

    def _beyond(self, besides: Own | None = None) -> int:
        return sum(max(0, own.beyond) for own in self._open if own is not besides)


class Own:
    """The payer's own count of one reply. Made by `Account.begin`."""

    def __init__(self, account: Account, unseen: int, *, calls: bool) -> None:
        self.tokens = 0
        """Of the text that has come."""
        self.prompt_tokens: int | None = None
        """The most that the prompt can be counted as; None: not counted yet."""
        self._account = account
        self._unseen = unseen
        self._calls = calls
        self._marked: set[str] = set()
        self._counted = 0

    @property
    def seen(self) -> int:
        """The own count, with what has no text."""
        return self.tokens + self._unseen + MARKS * len(self._marked)

    @property
    def most(self) -> int:
        """Tokens that the reply may be counted as now."""
        room = self._account.room(self) + SHARE * self.tokens
        return self.seen + max(0, room) // PERCENT

    @property
    def beyond(self) -> int:
        """What it was counted beyond its share, in hundredths of a token; below 0: under it."""
        return PERCENT * (self._counted - self.seen) - SHARE * self.tokens

    def mark(self, part: str) -> None:
        """A part has come that engines mark off: a reasoning, or a tool call if any could be asked for."""
        if self._calls or not part.startswith("call"):
            self._marked.add(part)

    def count(self, tokens: int) -> None:
        """The host's count of the reply, as far as it is within `most`."""
        self._counted = tokens

    def close(self) -> None:
        """The reply is over. Twice is harmless."""
        self._account.close(self)


def countable(body: Mapping[str, Any]) -> bool:
    """False for a request whose sampling makes splits that no tokenizer makes, by the payer's own choice."""
    temperature = body.get("temperature")
    hot = isinstance(temperature, int | float) and temperature > SURE_TEMPERATURE
    return not hot and not body.get("logit_bias")


def _stop_bytes(body: Mapping[str, Any]) -> int:
    """The longest stop string, which was made and is not told: a token has a byte or more."""
    stop = body.get("stop")
    strings = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
    return max((len(text.encode()) for text in strings if isinstance(text, str)), default=0)
