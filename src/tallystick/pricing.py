"""All money arithmetic: what totals are worth, who gets which part of it, how far a deposit reaches.

Integers only. Rounding is downwards and once, on a job's totals (law 2), so how often a job is settled never
changes what anyone gets; the contract computes the same (`IProofSystem.sol`). Knows no job, clock or chain.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tallystick.types import Prices, Standing, Totals, Value

MILLION = 1_000_000
"""Prices are per million tokens, so a value is in millionths of a base unit."""
FEE_DIVISOR = 10
"""The treasury's part is one tenth of what is owed."""
INTERVAL = 100
"""Tokens: the default interval of a job."""
MAX_TOKENS = 2**48 - 1
"""The largest total that the contract can hold."""
MAX_PRICE = 2**80 - 1
"""Base units per million tokens: the largest price that the contract can hold."""
MAX_DEPOSIT = 2**96 - 1
"""Base units: the largest deposit that the contract can hold."""

_AMOUNT = re.compile(r"([0-9]+)(?:\.([0-9]+))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Payment:
    """What one settlement moves, in base units: `owed == host + fee`."""

    owed: int
    host: int
    fee: int


def value(totals: Totals, prices: Prices) -> Value:
    """What totals are worth, exactly, in micro base units."""
    return Value(totals.tokens * prices.per_million + totals.prompt_tokens * prices.prompt_per_million)


def owed(totals: Totals, prices: Prices) -> int:
    """What the payer owes for totals, in base units, floored."""
    return value(totals, prices) // MILLION


def owed_each(prompt_tokens: int, tokens: Iterable[int], prices: Prices) -> list[int]:
    """`owed` of each of so many generated tokens, all with the same prompt."""
    price, prompt = prices.per_million, prompt_tokens * prices.prompt_per_million
    return [(each * price + prompt) // MILLION for each in tokens]


def fee(owed: int) -> int:
    """The treasury's part of what is owed on a job's totals, in base units, floored."""
    return owed // FEE_DIVISOR


def split(before: Totals, after: Totals, prices: Prices) -> Payment:
    """What a settlement from `before` to `after` pays. ValueError if `after` is stale (law 1)."""
    if after.against(before) is Standing.STALE:
        raise ValueError(f"{after} is stale against {before}")
    owed_before, owed_after = owed(before, prices), owed(after, prices)
    paid, part = owed_after - owed_before, fee(owed_after) - fee(owed_before)
    return Payment(owed=paid, host=paid - part, fee=part)


def refund(deposit: int, totals: Totals, prices: Prices) -> int:
    """What is left of a deposit, in base units. ValueError if the totals are worth more than it."""
    rest = deposit - owed(totals, prices)
    if rest < 0:
        raise ValueError(f"{totals} is worth {-rest} base units more than the deposit of {deposit}")
    return rest


def credit(interval: int, prices: Prices) -> Value:
    """What one interval of generated tokens costs, in micro base units: a host's risk (law 3)."""
    return Value(interval * prices.per_million)


def lower(one: Prices, other: Prices) -> Prices:
    """The lower of both prices, by kind."""
    return Prices(
        min(one.per_million, other.per_million), min(one.prompt_per_million, other.prompt_per_million)
    )


def at_risk(tokens: int, prices: Prices) -> int:
    """What so many generated tokens cost, in base units, rounded up: the most that can be lost with them."""
    return -(-credit(tokens, prices) // MILLION)


def affordable(deposit: int, totals: Totals, prices: Prices) -> int:
    """Generated tokens that a deposit still pays for beyond `totals`; never more than a total can hold."""
    # Owed is floored, so a deposit pays for just under one base unit more than itself.
    left = (deposit + 1) * MILLION - 1 - value(totals, prices)
    if left < 0:
        return 0
    most = MAX_TOKENS - totals.tokens
    return min(most, left // prices.per_million) if prices.per_million else most


def to_units(amount: str, decimals: int) -> int:
    """`"0.90"` dollars with 6 decimals as 900000 base units.

    ValueError for anything but digits and one point, and for digits that the asset cannot express: nothing is
    rounded.
    """
    match = _AMOUNT.fullmatch(amount.strip())
    if match is None:
        raise ValueError(f"{amount!r} is not an amount: write it like 2 or 0.90")
    whole, fraction = match[1], (match[2] or "").rstrip("0")
    if len(fraction) > decimals:
        raise ValueError(f"{amount!r} has more than the {decimals} decimals of its asset")
    return int(whole + fraction.ljust(decimals, "0"))


def from_units(units: int, decimals: int) -> str:
    """900000 base units with 6 decimals as `"0.9"`: exact, without trailing zeros."""
    sign = "-" if units < 0 else ""
    digits = str(abs(units)).rjust(decimals + 1, "0")
    whole, fraction = digits[: len(digits) - decimals], digits[len(digits) - decimals :].rstrip("0")
    return f"{sign}{whole}.{fraction}" if fraction else f"{sign}{whole}"
