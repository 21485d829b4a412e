"""What was tried for one request: which hosts were asked for it in vain, and why. Values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tallystick.errors import HostRefused, PriceRose, Refusal, TallystickError
from tallystick.mends import complaint
from tallystick.types import JobId


@dataclass(frozen=True, slots=True)
class Try:
    """One host that was asked in vain."""

    url: str
    error: TallystickError
    cost: Mapping[str, Any] = field(default_factory=dict)
    """What came of it all the same: job, tokens, and what they cost."""

    def told(self) -> dict[str, Any]:
        """As an answer's `tally` has it."""
        refusal = {"code": self.error.problem.code} if isinstance(self.error, HostRefused) else {}
        return {"host": self.url, **refusal, "detail": complaint(self.error), **self.cost}


class Tries:
    """Those of one request, in order."""

    def __init__(self) -> None:
        self._all: list[Try] = []

    def __bool__(self) -> bool:
        return bool(self._all)

    def add(self, one: Try) -> None:
        """It was asked in vain."""
        self._all.append(one)

    def told(self) -> list[dict[str, Any]]:
        """All of them, as an answer's `tally` has them."""
        return [each.told() for each in self._all]

    @property
    def urls(self) -> frozenset[str]:
        """All that were asked."""
        return frozenset(each.url for each in self._all)

    @property
    def risen(self) -> frozenset[str]:
        """Those that asked more than when they were chosen, and did nothing wrong."""
        return frozenset(each.url for each in self._all if isinstance(each.error, PriceRose))

    @property
    def failed(self) -> frozenset[str]:
        """All others."""
        return frozenset(each.url for each in self._all if not isinstance(each.error, PriceRose))

    @property
    def error(self) -> TallystickError:
        """Why nobody served the request, when nobody is left."""
        if len(self._all) == 1:
            return self._all[0].error
        return Refusal("hosts_failed", self._in_words(), tried=self.told())

    def after(self, refusal: Refusal, held: Sequence[JobId]) -> Refusal:
        """A refusal of the payer's own side, with what led to it. `held`: open jobs at those hosts."""
        jobs = " ".join(
            f"What job {number} holds counts until it is back: tally job complete {number} --on-chain."
            for number in held
        )
        detail = f"{refusal.detail} It was to go on elsewhere: {self._in_words()} {jobs}".rstrip()
        return Refusal(refusal.code, detail, **{**refusal.extra, "tried": self.told()})

    def _in_words(self) -> str:
        return " ".join(f"{each.url}: {complaint(each.error)}" for each in self._all)
