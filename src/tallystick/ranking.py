"""Which of several hosts is asked: by what they sell, the payer's highest price, and its own record of them.

Rules only: quotes, records and times in; an order, and the reason for it in words, out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from tallystick import record as records
from tallystick.caps import Caps
from tallystick.discovery import Listing
from tallystick.errors import Refusal, SessionError
from tallystick.record import Record
from tallystick.types import Address, Prices


@dataclass(frozen=True, slots=True)
class Candidate:
    """A host that can be asked for a model. Prices in base units per million tokens."""

    host: Address
    url: str
    model: str
    prices: Prices
    record: Record
    engaged: bool = False
    """It has an open job of this payer's for the model, which fixes the prices."""

    @property
    def price(self) -> int:
        """A million tokens of each kind."""
        return self.prices.per_million + self.prices.prompt_per_million

    @property
    def counted_price(self) -> Fraction:
        """The price, made dearer by what the host was asked in vain."""
        return self.price * self.record.dearer


@dataclass(frozen=True, slots=True)
class Chosen:
    """The host that is asked, and why."""

    candidate: Candidate
    why: str


def within(prices: Prices, most: Prices) -> bool:
    """True for prices that are both no higher."""
    return prices.per_million <= most.per_million and prices.prompt_per_million <= most.prompt_per_million


def offers(listing: Listing, record: Record, asset: Address, caps: Caps) -> list[Candidate]:
    """What a host sells in an asset within the caps, in the order in which it names it."""
    return [
        Candidate(listing.host, listing.endpoint, name, prices[asset], record)
        for name, prices in (listing.quote.models if listing.quote else {}).items()
        if asset in prices and caps.allows(name, prices[asset])
    ]


def ranked(candidates: Iterable[Candidate], now: float) -> list[Candidate]:
    """Best first. One that is set aside comes after all that are not: the one with fewest troubles in a row
    first, so that somebody is asked.
    """
    return sorted(candidates, key=lambda each: _rank(each, now))


def _rank(candidate: Candidate, now: float) -> tuple[object, ...]:
    record = candidate.record
    return (
        record.in_a_row if record.is_aside(now) else 0,
        not candidate.engaged,
        candidate.counted_price,
        -record.replies,
        candidate.host,
    )


def choose(candidates: Iterable[Candidate], now: float) -> Chosen | None:
    """The best, and why it is; None where there is none."""
    order = ranked(candidates, now)
    return Chosen(order[0], _why(order, now)) if order else None


def _why(order: Sequence[Candidate], now: float) -> str:
    best, *others = order
    if best.record.is_aside(now) and others:
        return f"all {len(order)} are set aside, and it has failed least of late"
    if best.engaged:
        return "a job is open there"
    if not others:
        return "no other that is left sells it within the caps"
    free = [each for each in others if not each.record.is_aside(now)]
    aside = f", {len(others) - len(free)} set aside" if len(free) < len(others) else ""
    if all(best.price <= each.price for each in free):
        return f"the lowest price of {len(order)}{aside}"
    return f"the lowest price of {len(order)} once your own record of each counts{aside}"


def check_sold(listings: Sequence[Listing], asset: Address, caps: Caps, model: str | None) -> None:
    """Why none of these hosts can be asked for a model.

    SessionError where none has a quote that holds; Refusal `model_unknown`, `asset_not_accepted` or
    `price_above_cap` where none sells it like that.
    """
    quotes = [listing.quote for listing in listings if listing.quote is not None]
    if not quotes:
        raise SessionError(without_quotes(listings))
    sellers = [quote for quote in quotes if model is None or model in quote.models]
    if not sellers:
        sold = ", ".join(dict.fromkeys(name for quote in quotes for name in quote.models))
        raise Refusal("model_unknown", f"{_hosts(len(quotes))} {sold}, and no {model!r}.")
    asked = [
        (prices[asset], name)
        for quote in sellers
        for name, prices in quote.models.items()
        if asset in prices and model in (None, name)
    ]
    if not asked:
        raise Refusal("asset_not_accepted", f"No host sells {model or 'anything'!r} for {caps.words.symbol}.")
    for prices, name in sorted(asked, key=lambda each: (each[0].per_million, each[1])):
        caps.check_price(name, prices)


def _hosts(number: int) -> str:
    return "The host has" if number == 1 else f"The {number} hosts have"


def without_quotes(listings: Sequence[Listing]) -> str:
    """Why none of these hosts can be asked, and whose move it is."""
    if not listings:
        return (
            "no host is registered on this chain. The move is yours: name one with --host, or check RPC_URL"
        )
    if len(listings) == 1:
        return listings[0].trouble
    told = "; ".join(f"{each.endpoint or each.host}: {each.trouble}" for each in listings)
    return (
        f"none of {len(listings)} hosts can be used: {told}. "
        "The move is theirs; yours is to name another with --host"
    )


def told(record: Record, now: float) -> str:
    """A host's record in words, and for how long it is set aside."""
    aside = (
        f"; set aside for {record.aside_until - now:.0f} s: {record.cause}" if record.is_aside(now) else ""
    )
    return records.told(record) + aside
