"""What happens to a payer's jobs, as it is told to its page: objects of plain values, amounts as digits.

Amounts are of whole units of the asset, exactly: "0.001024".
"""

from __future__ import annotations

from typing import Any

from tallystick import jobs, pricing
from tallystick.countersign import Overcount
from tallystick.session import BalanceLow, Event, PromptAhead, Settled, Signed, Stopped
from tallystick.spending import Opened, Spender, ToppedUp
from tallystick.types import Completion, JobId, Prices
from tallystick.wallet import asset_at

Told = dict[str, Any]
Happening = Event | Opened | ToppedUp | Completion


class Happenings:
    """The events of one payer's jobs."""

    def __init__(self, spender: Spender) -> None:
        self._spender = spender
        self._asset = asset_at(spender.wallet.chain, spender.asset)
        self._prices: dict[JobId, Prices] = {}

    def told(self, job_id: JobId, event: Happening) -> Told:
        """One event of a job; its `kind` says what the other members are."""
        self._prices |= {used.session.job.id: used.session.job.prices for used in self._spender.jobs}
        return {"job_id": job_id, "symbol": self._asset.symbol, **self._members(job_id, event)}

    def _members(self, job_id: JobId, event: Happening) -> Told:
        match event:
            case Opened() | ToppedUp() | Completion() | BalanceLow():
                return self._money(event)
            case Signed() | Settled():
                return self._checkpoint(job_id, event)
            case PromptAhead() | Overcount() | Stopped():
                return self._warning(event)

    def _money(self, event: Opened | ToppedUp | Completion | BalanceLow) -> Told:
        match event:
            case Opened():
                return {"kind": "opened", "deposit": self._units(event.deposit)}
            case ToppedUp():
                return {"kind": "topped_up", "amount": self._units(event.units)}
            case BalanceLow():
                return {"kind": "balance_low", "left": self._units(event.left)}
            case Completion():
                paid, refund = self._units(event.owed), self._units(event.refund)
                return {"kind": "completed", "paid": paid, "refund": refund, "tx": event.tx}

    def _checkpoint(self, job_id: JobId, event: Signed | Settled) -> Told:
        totals = event.receipt.totals if isinstance(event, Signed) else event.totals
        prices = self._prices.get(job_id)
        told: Told = {**jobs.totals(totals)}
        if prices is not None:
            told |= {"owed": self._units(pricing.owed(totals, prices))}
        if isinstance(event, Signed):
            return {"kind": "signed", **told}
        paid = {"host": self._units(event.host), "treasury": self._units(event.treasury)}
        return {"kind": "settled", **told, **paid, "tx": event.tx}

    def _warning(self, event: PromptAhead | Overcount | Stopped) -> Told:
        match event:
            case PromptAhead():
                cost = self._units(event.cost)
                return {"kind": "prompt_ahead", "prompt_tokens": event.prompt_tokens, "cost": cost}
            case Overcount():
                return {
                    "kind": "overcount",
                    "what": event.what,
                    "counted": event.counted,
                    "signed": event.bound,
                }
            case Stopped():
                return {"kind": "stopped", "reason": event.reason}

    def _units(self, units: int) -> str:
        return pricing.from_units(units, self._asset.decimals)
