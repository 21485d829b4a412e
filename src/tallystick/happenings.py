"""What happens to a payer's jobs, as it is told to its page: objects of plain values, amounts as digits.

Amounts are of whole units of the job's asset, exactly: "0.001024".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tallystick import jobs, pricing
from tallystick.chain import Chain
from tallystick.countersign import Overcount
from tallystick.session import BalanceLow, PromptAhead, Settled, Signed, Stopped
from tallystick.spending import HostChosen, OfHost, OfJob, Opened, SetAside, ToppedUp
from tallystick.types import Completion, Job
from tallystick.wallet import asset_at

Told = dict[str, Any]
Whole = Callable[[int], str]
"""Base units as digits of whole units."""
Happening = OfJob | OfHost


def told(chain: Chain, job: Job | None, event: Happening) -> Told:
    """One event, of a job or of a host; its `kind` says what the other members are. ConfigError for no known
    asset.
    """
    if isinstance(event, HostChosen | SetAside):
        return _of_host(event)
    assert job is not None
    asset = asset_at(chain, job.asset)
    common = {"job_id": job.id, "symbol": asset.symbol, "decimals": asset.decimals}
    return {**common, **_members(job, event, lambda units: pricing.from_units(units, asset.decimals))}


def _of_host(event: OfHost) -> Told:
    of = {"host": event.host, "url": event.url}
    match event:
        case HostChosen():
            return {"kind": "host_chosen", **of, "model": event.model, "why": event.why}
        case SetAside():
            seconds = round(event.seconds)
            return {
                "kind": "set_aside",
                **of,
                "trouble": event.trouble,
                "cause": event.cause,
                "seconds": seconds,
            }


def _members(job: Job, event: OfJob, whole: Whole) -> Told:
    match event:
        case Opened() | ToppedUp() | Completion() | BalanceLow():
            return _money(event, whole)
        case Signed() | Settled():
            return _checkpoint(job, event, whole)
        case PromptAhead() | Overcount() | Stopped():
            return _warning(event, whole)


def _money(event: Opened | ToppedUp | Completion | BalanceLow, whole: Whole) -> Told:
    match event:
        case Opened():
            return {"kind": "opened", "deposit": whole(event.deposit)}
        case ToppedUp():
            return {"kind": "topped_up", "amount": whole(event.units)}
        case BalanceLow():
            return {"kind": "balance_low", "left": whole(event.left)}
        case Completion():
            paid, refund = whole(event.owed), whole(event.refund)
            return {"kind": "completed", "paid": paid, "refund": refund, "tx": event.tx}


def _checkpoint(job: Job, event: Signed | Settled, whole: Whole) -> Told:
    totals = event.receipt.totals if isinstance(event, Signed) else event.totals
    members: Told = {**jobs.totals(totals), "owed": whole(pricing.owed(totals, job.prices))}
    if isinstance(event, Signed):
        return {"kind": "signed", **members}
    paid = {"host": whole(event.host), "treasury": whole(event.treasury)}
    return {"kind": "settled", **members, **paid, "tx": event.tx}


def _warning(event: PromptAhead | Overcount | Stopped, whole: Whole) -> Told:
    match event:
        case PromptAhead():
            cost = whole(event.cost)
            return {"kind": "prompt_ahead", "prompt_tokens": event.prompt_tokens, "cost": cost}
        case Overcount():
            counts = {"counted": event.counted, "signed": event.bound}
            return {"kind": "overcount", "what": event.what, **counts}
        case Stopped():
            return {"kind": "stopped", "reason": event.reason}
