"""The host's account of one job: what was counted, acknowledged and receipted, and how much more may go out.

One `JobMeter` serves all streams of its job, so no interval is granted twice (law 3). The credit bounds what
the host could not claim: a claim is bounded by each signed total by itself, so a prompt that was signed ahead
pays for no tokens. Amounts are compared in micro base units and never rounded, but for the deposit, which has
to hold what is owed. Knows no clock, disk or socket: its owner asks for `room()` and calls `count()` without
letting anything else run in between.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from tallystick.pricing import MAX_TOKENS, affordable, credit, lower, owed, owed_each, value
from tallystick.types import Prices, Standing, Totals, Value

NOTHING = Totals()
LOW_DIVISOR = 5
"""The balance is low once a fifth of the deposit or less is left."""


IN_FLIGHT_PERCENT = 75
"""Of the interval, what may be on its way and unsigned without a pause: all but the quarter at whose end the
next checkpoint is offered."""


class Fit(enum.Enum):
    """What a prompt meets: room, a receipt to be signed or blocks to come first, or too small a deposit."""

    FITS = "fits"
    NEEDS_RECEIPT = "needs_receipt"
    NEEDS_DEPTH = "needs_depth"
    NO_DEPOSIT = "no_deposit"


class Stop(enum.Enum):
    """Why nothing more may be delivered now."""

    CREDIT = "credit"
    DEPOSIT = "deposit"
    RATE = "rate"
    DEPTH = "depth"


def quarter(before_tokens: int, after_tokens: int, interval: int) -> bool:
    """True if a quarter of the interval ends in between: a checkpoint is offered."""
    step = max(1, interval // 4)
    return after_tokens // step > before_tokens // step


def checkpoint(before: Totals, after: Totals, interval: int, prices: Prices) -> bool:
    """True if a whole interval of tokens, or of prompt tokens worth it, ends in between: it is settled."""
    if after.tokens // interval > before.tokens // interval:
        return True
    # Where tokens are free, any prompt that is not is worth more than an interval of them.
    step = credit(interval, prices) or 1
    was, now = (totals.prompt_tokens * prices.prompt_per_million for totals in (before, after))
    return now // step > was // step


def quiet(tokens: int, interval: int) -> int:
    """Tokens that may be counted after so many without the end of an interval, or of a quarter of one."""
    step = max(1, interval // 4)
    return min(step - tokens % step, interval - tokens % interval) - 1


class JobMeter:
    """The totals of one job, and what may still be delivered.

    `gross` is all that was ever counted; `counted` is that less what was written off, never below what the
    payer acknowledged. An attested job has no receipts: the deposit and the rate alone bound it. While a job
    is `early` a reorganisation may take its deposit back: whatever was signed, one credit in all bounds it.
    """

    def __init__(  # noqa: PLR0913 - a job is that much
        self,
        prices: Prices,
        deposit: int,
        interval: int,
        *,
        asked: Prices | None = None,
        attested: bool = False,
        early: bool = False,
        gross: Totals = NOTHING,
        acknowledged: Totals = NOTHING,
        receipted: Totals = NOTHING,
        written_off: Totals = NOTHING,
    ) -> None:
        """`asked`: the host's own prices. What is not claimable is worth no more to it than those."""
        self.prices = prices
        self.deposit = deposit
        self.interval = interval
        self.attested = attested
        self.early = early
        self.risk = lower(prices, asked) if asked else prices
        """What the credit, and what it bounds, are valued at: a payer that pays more buys no more risk."""
        self.credit = credit(interval, self.risk)
        self.gross = gross
        self.acknowledged = acknowledged
        self.receipted = receipted
        self.written_off = written_off
        self.reserved = 0
        """Prompt tokens of requests that were let in and have not delivered yet."""
        self._update()

    @property
    def claimable(self) -> Totals:
        """The most that the host may settle."""
        return self.counted if self.attested else self.counted.lower(self.receipted)

    @property
    def left(self) -> int:
        """Base units of the deposit that nothing counted has used."""
        return self.left_of(self.counted)

    def left_of(self, counted: Totals) -> int:
        """The same, were that counted."""
        return max(0, self.deposit - owed(counted, self.prices))

    def left_of_each(self, prompt_tokens: int, tokens: Iterable[int]) -> list[int]:
        """The same of each of so many generated tokens, all with the same prompts."""
        return [max(0, self.deposit - each) for each in owed_each(prompt_tokens, tokens, self.prices)]

    @property
    def low(self) -> bool:
        """True once a fifth of the deposit or less is left."""
        return self.is_low(self.left)

    def is_low(self, left: int) -> bool:
        """True if so many base units are a fifth of the deposit or less."""
        return left * LOW_DIVISOR <= self.deposit

    @property
    def lends(self) -> bool:
        """The credit bounds what may be delivered."""
        return self.early or not self.attested

    @property
    def unsigned(self) -> Value:
        """What the host would lose if nothing more were signed, in micro base units."""
        return self._unclaimable(self._exposed) if self.lends else Value(0)

    # Prompts

    def reserve(self, prompt_tokens: int) -> Fit:
        """Lets a prompt in and reserves its tokens, if it and one token fit the deposit and the credit."""
        fit = self.fit(prompt_tokens)
        if fit is Fit.FITS:
            self.reserved += prompt_tokens
            self._update()
        return fit

    def fit(self, prompt_tokens: int) -> Fit:
        """What a prompt meets now."""
        exposed = self._exposed + Totals(prompt_tokens, 1)
        if owed(exposed, self.prices) > self.deposit:
            return Fit.NO_DEPOSIT
        if self.lends and self._unclaimable(exposed) > self.credit:
            return Fit.NEEDS_DEPTH if self.early else Fit.NEEDS_RECEIPT
        return Fit.FITS

    def is_small(self, prompt_tokens: int) -> bool:
        """True if a prompt would be let in, and were worth a quarter of the credit at most."""
        worth = value(Totals(prompt_tokens, 0), self.risk)
        return self.fit(prompt_tokens) is Fit.FITS and worth * 4 <= self.credit

    def crowds(self, prompt_tokens: int) -> bool:
        """True if, with others being worked on, it left less than a quarter of the credit for tokens.

        Prompts alone could use up all of it, and let one token through with each receipt.
        """
        if not (self.lends and self.reserved):
            return False
        unsigned = max(0, self._exposed.prompt_tokens + prompt_tokens - self._relied_on.prompt_tokens)
        return value(Totals(unsigned, 0), self.risk) * 4 > self.credit * 3

    def release(self, prompt_tokens: int) -> None:
        """Gives back a reservation, or the part of it that was not needed. ValueError if it is not held."""
        self._unreserve(prompt_tokens)
        self._update()

    def fits_credit(self, prompt_tokens: int) -> bool:
        """True if a prompt and one token fit the credit, were all that was delivered signed for."""
        ahead = max(0, self.receipted.prompt_tokens - self._exposed.prompt_tokens)
        return value(Totals(max(0, prompt_tokens - ahead), 1), self.risk) <= self.credit

    def to_sign(self, prompt_tokens: int) -> Totals:
        """The totals to sign for a prompt that does not fit: it, and the prompts before it.

        Tokens are not asked for: the payer signs for those that it received, and may not have received all.
        """
        return Totals(self._exposed.prompt_tokens + prompt_tokens, 0).higher(self.receipted)

    # Tokens

    def room(self, rate_cap: int | None = None) -> int:
        """Generated tokens that may be delivered now.

        `rate_cap` is the most that the contract would take of an attested job by now, both totals together.
        """
        if rate_cap is None or not self.attested:
            return self._room
        under_way = self._exposed.prompt_tokens + self._exposed.tokens
        return max(0, min(self._room, rate_cap - under_way))

    def room_beside(self, prompt_tokens: int) -> int:
        """Generated tokens that may be delivered now, were a prompt of that many tokens let in before."""
        if not (self.lends and prompt_tokens):
            return self._room
        exposed = self._exposed + Totals(prompt_tokens, 0)
        return min(affordable(self.deposit, exposed, self.prices), self._credit_room(exposed))

    def stop(self, rate_cap: int | None = None) -> Stop | None:
        """What makes `room` 0; the deposit before the others, as no receipt and no waiting mends it."""
        if self._affordable == 0:
            return Stop.DEPOSIT
        if self.room(rate_cap) > 0:
            return None
        if self.early and self._room == 0:
            return Stop.DEPTH
        return Stop.RATE if self.attested else Stop.CREDIT

    @property
    def signed_ahead(self) -> int:
        """Generated tokens that are signed for and not counted yet; where nobody signs, any number."""
        return MAX_TOKENS if self.attested else max(0, self.receipted.tokens - self.counted.tokens)

    def outgrows(self, tokens: int) -> bool:
        """True if tokens that come at once are more than the credit, were all before them signed for."""
        return self.lends and value(Totals(0, tokens - self.signed_ahead), self.risk) > self.credit

    def crowds_out(self, prompt_tokens: int, tokens: int) -> bool:
        """True if a prompt that is not signed for at all keeps tokens that come at once from ever fitting."""
        ahead = self.receipted.prompt_tokens > self.counted.prompt_tokens
        return self.lends and not ahead and value(Totals(prompt_tokens, tokens), self.risk) > self.credit

    def count(self, prompt_tokens: int, tokens: int) -> bool:
        """Counts what is about to be sent; its prompt leaves the reservation. True: offer a checkpoint.

        ValueError, and nothing counted, for more than `room` allows or a prompt that was not reserved.
        """
        if tokens > self._room:
            raise ValueError(f"{tokens} tokens do not fit the room of {self._room}")
        self._unreserve(prompt_tokens)
        before = self.counted.tokens
        self.gross += Totals(prompt_tokens, tokens)
        self._update()
        return quarter(before, self.counted.tokens, self.interval)

    # Receipts

    def receipt(self, totals: Totals, acknowledged: Totals) -> bool:
        """A receipt was stored: what it signs, and what its positions add up to. True: it is to be settled.

        ValueError for totals that are stale or below what they acknowledge; the node refuses those before.
        """
        if Standing.STALE in (totals.against(self.receipted), acknowledged.against(self.acknowledged)):
            raise ValueError(f"{totals} is stale against {self.receipted}")
        if not totals.covers(acknowledged):
            raise ValueError(f"{totals} is below the acknowledged {acknowledged}")
        before, self.acknowledged, self.receipted = self.acknowledged, acknowledged, totals
        self._update()
        return checkpoint(before, acknowledged, self.interval, self.prices)

    def write_off(self, totals: Totals) -> bool:
        """Takes what nobody acknowledged off the count.

        False, and nothing written off, if that made more than one credit in the job's life: it is then to
        be completed. ValueError for more than is counted and not acknowledged.
        """
        if not (self.counted - self.acknowledged).covers(totals):
            raise ValueError(f"{totals} is more than was delivered and not acknowledged")
        if not self.may_write_off(totals):
            return False
        self.written_off += totals
        self._update()
        return True

    def may_write_off(self, totals: Totals) -> bool:
        """True if writing `totals` off as well stays within the one credit of the job's life."""
        return value(self.written_off + totals, self.risk) <= self.credit

    def confirm(self) -> None:
        """The deposit lies deep: what was signed counts from now on."""
        self.early = False
        self._update()

    def top_up(self, deposit: int) -> None:
        """The deposit as it is now, in base units. A reorganised chain may also take a top-up back."""
        self.deposit = deposit
        self._update()

    def _unreserve(self, prompt_tokens: int) -> None:
        if prompt_tokens > self.reserved:
            raise ValueError(f"{prompt_tokens} prompt tokens were never reserved; {self.reserved} are")
        self.reserved -= prompt_tokens

    def _update(self) -> None:
        """Works out, after every change, what is asked for with every token."""
        # The payer's word is the last on what arrived: the count is never below it.
        self.gross = self.gross.higher(self.acknowledged)
        self.written_off = self.written_off.lower(self.gross - self.acknowledged)
        self.counted = self.gross - self.written_off
        """What was delivered and not written off."""
        self._exposed = self.counted + Totals(self.reserved, 0)
        """With the prompts that are being worked on."""
        self._affordable = affordable(self.deposit, self._exposed, self.prices)
        self._room = (
            min(self._affordable, self._credit_room(self._exposed)) if self.lends else self._affordable
        )

    @property
    def _relied_on(self) -> Totals:
        """Of what was signed, what the host can claim for certain."""
        return NOTHING if self.early else self.receipted

    def _credit_room(self, exposed: Totals) -> int:
        """Beyond `exposed`: tokens that were signed ahead, and those that fit what is left of the credit."""
        ahead = max(0, self._relied_on.tokens - exposed.tokens)
        left = self.credit - self._unclaimable(exposed)
        if left < 0:
            return ahead
        return ahead + left // self.risk.per_million if self.risk.per_million else MAX_TOKENS

    def _unclaimable(self, exposed: Totals) -> Value:
        """What the host would lose of `exposed` if nothing more were signed, in micro base units."""
        return value(exposed - exposed.lower(self._relied_on), self.risk)
