"""When a host settles, and which jobs: at each checkpoint, or when it is worth the gas.

A claim that must go (its job completes, expires, or the node stops) always goes. Knows no ledger, chain or
clock: claims, gas and rates come in, the claims to settle now go out. Amounts are base units of a claim's
asset, gas is in wei.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate, groupby

from tallystick.types import Address, JobId


class Policy(enum.StrEnum):
    """How eagerly a host settles."""

    CHECKPOINT = "checkpoint"
    """Each whole interval, as soon as its receipt is there."""
    ECONOMIC = "economic"
    """When gas is a small enough share of it, or too much is unsettled."""


@dataclass(frozen=True, slots=True)
class Unsettled:
    """What one job has for its host."""

    job_id: JobId
    asset: Address
    amount: int
    """The host's part, in base units of the asset."""
    must: bool = False
    """Waiting may lose it."""


@dataclass(frozen=True, slots=True)
class Gas:
    """What settling costs at present, in wei, a chain's fee for data included."""

    base: int
    """Of a transaction, whatever is in it."""
    row: int
    """Of each claim in it."""


@dataclass(frozen=True, slots=True)
class Thrift:
    """The two knobs of the economic policy, and what they need to know."""

    unsettled: Mapping[Address, int] = field(default_factory=dict)
    """By asset: the most that the host is willing to have unsettled, over all jobs. Left out: anything."""
    gas_share: Fraction = Fraction(1, 20)
    """The largest part of what is settled that may go into gas."""
    rates: Mapping[Address, Fraction] = field(default_factory=dict)
    """By asset: wei that a base unit is worth. Left out: gas is never known to be a small share of it."""

    def bearable(self, claim: Unsettled) -> Fraction:
        """Wei that may be spent on settling a claim."""
        return claim.amount * self.rates.get(claim.asset, Fraction(0)) * self.gas_share


def to_settle(claims: Sequence[Unsettled], thrift: Thrift, gas: Gas) -> set[JobId]:
    """The jobs that the economic policy settles now; none: it waits."""
    going = {claim.job_id for claim in claims if claim.must} | _above_limits(claims, thrift)
    rest = [claim for claim in claims if claim.job_id not in going]
    return going | _worth_it(rest, thrift, gas, sunk=bool(going))


def _above_limits(claims: Iterable[Unsettled], thrift: Thrift) -> set[JobId]:
    """In each asset of which too much is unsettled: the largest, until no more than half the limit is left.

    Half, so that the next token does not bring the next transaction.
    """
    going: set[JobId] = set()
    by_asset = sorted(claims, key=lambda claim: (claim.asset, -claim.amount))
    for asset, group in groupby(by_asset, key=lambda claim: claim.asset):
        if (limit := thrift.unsettled.get(asset)) is not None:
            going |= _down_to_half(list(group), limit)
    return going


def _down_to_half(largest_first: Sequence[Unsettled], limit: int) -> set[JobId]:
    left = sum(claim.amount for claim in largest_first)
    if left <= limit:
        return set()
    gone = accumulate((claim.amount for claim in largest_first), initial=0)
    pairs = zip(largest_first, gone, strict=False)
    return {claim.job_id for claim, before in pairs if 2 * (left - before) > limit}


def _worth_it(claims: Iterable[Unsettled], thrift: Thrift, gas: Gas, *, sunk: bool) -> set[JobId]:
    """As many as keep gas within its share of them all, the most valuable first.

    `sunk`: the transaction is sent anyway, so each claim has to be worth its own row only.
    """
    best_first = sorted(claims, key=thrift.bearable, reverse=True)
    if sunk:
        return {claim.job_id for claim in best_first if thrift.bearable(claim) >= gas.row}
    bearable = accumulate(thrift.bearable(claim) for claim in best_first)
    worth_it = (n for n, most in enumerate(bearable, start=1) if gas.base + n * gas.row <= most)
    return {claim.job_id for claim in best_first[: max(worth_it, default=0)]}
