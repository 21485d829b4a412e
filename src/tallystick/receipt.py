"""The host's judgement of a receipt: protocol §5, in its order; the signature comes last and on its own.

Rules only: a receipt and what the host knows in; what it acknowledges, or a Refusal, out. Writing it down and
answering is for accounts.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from tallystick import proof, transcript, wire
from tallystick.errors import ReceiptError, Refusal
from tallystick.transcript import Delivery
from tallystick.types import ZERO_HASH, Address, JobId, Position, Receipt, RequestId, Standing, Totals


class Known(msgspec.Struct, frozen=True):
    """What the host knows of a job when a receipt comes in."""

    job_id: JobId
    stored: Receipt | None
    """The last one that was acknowledged."""
    acknowledged: Totals
    positions: Mapping[RequestId, Totals]
    """How far each request was acknowledged."""
    deliveries: Mapping[RequestId, Delivery]
    """What was sent, by requests whose text the host still holds."""
    lost: Totals
    """What requests from before the host's restart may still acknowledge, all together."""

    @property
    def previous(self) -> bytes:
        """What the next receipt has to follow."""
        return self.stored.transcript if self.stored else ZERO_HASH


class Judgement(msgspec.Struct, frozen=True):
    """What holds once a receipt is stored."""

    acknowledged: Totals
    lost: Totals


def judge(receipt: Receipt, known: Known) -> Judgement | None:
    """What a receipt acknowledges if `check_signer` passes; None for a stale or equal one, which changes
    nothing.

    Refusal `receipt_out_of_order` or `receipt_mismatch`.
    """
    if receipt.job_id != known.job_id:
        raise Refusal("job_mismatch", f"The receipt is of job {receipt.job_id}, not of job {known.job_id}.")
    if known.stored and receipt.totals.against(known.stored.totals) is not Standing.AHEAD:
        return None
    if receipt.previous != known.previous:
        raise Refusal("receipt_out_of_order", stored=_out(known.stored))
    judgement = _acknowledged(receipt, known)
    if not receipt.totals.covers(judgement.acknowledged):
        raise _mismatch(known, f"It signs {receipt.totals}, less than its positions add up to.")
    _check_transcript(receipt, known)
    return judgement


def check_signer(receipt: Receipt, domain: proof.Domain, signer: Address) -> None:
    """Refusal `receipt_forged` unless `signer` signed these totals and this transcript.

    Takes longer than all the rest of the judgement together, most of it outside of Python's lock.
    """
    try:
        recovered = proof.recover(
            domain.receipt(receipt.job_id, receipt.totals, receipt.transcript), receipt.signature
        )
    except ReceiptError as error:
        raise Refusal("receipt_forged", f"The receipt's signature does not hold: {error}.") from error
    if recovered != signer:
        raise Refusal("receipt_forged", f"The receipt was signed by {recovered}, not by the job's signer.")


def check_own(receipt: Receipt, domain: proof.Domain, signer: Address) -> None:
    """As `check_signer`, and the transcript has to be that of what else the receipt says.

    Totals, transcript and signature of a settled receipt are public; its positions are not.
    """
    check_signer(receipt, domain, signer)
    if not _holds_together(receipt):
        raise Refusal("receipt_forged", _NOT_TOGETHER)


_NOT_TOGETHER = "Its transcript is not that of its totals and positions."


def _holds_together(receipt: Receipt) -> bool:
    link = transcript.transcript(receipt.previous, receipt.job_id, receipt.totals, receipt.positions)
    return link == receipt.transcript


def _acknowledged(receipt: Receipt, known: Known) -> Judgement:
    """The sum of all positions of the job with those of the receipt."""
    moved, regained = Totals(), Totals()
    for position in receipt.positions:
        before = known.positions.get(position.request, Totals())
        if not position.totals.covers(before):
            raise _mismatch(known, f"It takes back what {before} acknowledged.", position)
        delivery = known.deliveries.get(position.request)
        if delivery is None:
            regained += _unheld(position, before, known)
        elif not delivery.matches(position):
            raise _mismatch(
                known, f"No chunk ended at {position.totals} with that prompt and text.", position
            )
        moved += position.totals - before
    if not known.lost.covers(regained):
        raise _mismatch(known, f"It acknowledges {regained} of earlier requests; {known.lost} is open.")
    return Judgement(known.acknowledged + moved, known.lost - regained)


def _unheld(position: Position, before: Totals, known: Known) -> Totals:
    """What a request whose text is gone acknowledges: taken at the payer's word, if it says anything new."""
    if position.totals == before:
        raise _mismatch(known, f"It was acknowledged up to {before} before.", position)
    return position.totals - before


def _check_transcript(receipt: Receipt, known: Known) -> None:
    if not _holds_together(receipt):
        raise _mismatch(known, _NOT_TOGETHER)


def _mismatch(known: Known, detail: str, position: Position | None = None) -> Refusal:
    named: dict[str, Any] = {} if position is None else {"request": position.request}
    return Refusal("receipt_mismatch", detail, stored=_out(known.stored), **named)


def _out(stored: Receipt | None) -> dict[str, Any] | None:
    return wire.receipt_out(stored) if stored else None
