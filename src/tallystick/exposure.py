"""What a host stands to lose: what its jobs owe unsigned, by payer and in all, held against its limits.

One job owes a credit at most, and what was written off of it; many jobs of one payer add up, and so does what
a payer left unsigned in jobs that are closed. In micro base units of an asset. Does no I/O.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from tallystick.account import Account
from tallystick.admission import Limits
from tallystick.pricing import MILLION
from tallystick.types import Address


class Exposure:
    """What is lent, to whom."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lost: defaultdict[tuple[Address, Address], int] = defaultdict(int)
        """By payer and asset: what closed jobs of this process's time left unsigned."""

    def close(self, account: Account) -> None:
        """The job is closed: what nobody has signed for will never be paid."""
        if lost := account.unsigned():
            self._lost[account.job.payer, account.job.asset] += lost

    def payer_exposed(self, account: Account, served: Iterable[Account]) -> bool:
        """True if one more reply on the job could take its payer's jobs beyond the limit of one payer."""
        payer, asset = account.job.payer, account.job.asset
        if asset not in self._limits.per_payer:
            return False
        own = (one for one in served if one.job.payer == payer)
        return self._lost[payer, asset] + _lent(account, own) > _limit(self._limits.per_payer, asset)

    def host_exposed(self, account: Account, served: Iterable[Account]) -> bool:
        """True if one more reply on the job could take all jobs beyond the host's limit.

        What is lost already is not held against those who come later.
        """
        asset = account.job.asset
        return asset in self._limits.in_all and _lent(account, served) > _limit(self._limits.in_all, asset)


def _lent(account: Account, served: Iterable[Account]) -> int:
    """With one more reply on `account`, in its asset."""
    if not account.meter.lends:
        return 0
    asset = account.job.asset
    others = (one.exposure() for one in served if one is not account and one.job.asset == asset)
    return account.exposure(asked=True) + sum(others)


def _limit(limits: Mapping[Address, int], asset: Address) -> int:
    return limits[asset] * MILLION
