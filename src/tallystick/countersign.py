"""The payer's half of the tally: counts what arrives, holds it against a bound of its own, makes the
receipts.

One Countersigner is one job, shared by all its streams. No I/O and no clock: `receive` takes what came,
`vouch` the payer's own count of it where there is one, `next` gives the receipt to send, `acked` takes the
host's word. Between `next` and `acked` no other receipt
is made, so receipts form one chain (protocol §5). Signs for no more than was received, plus what its owner
chose to sign ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tallystick import meter, proof
from tallystick.allowance import Own
from tallystick.errors import ReceiptError
from tallystick.keccak import keccak
from tallystick.transcript import Delivery, prompt_form, transcript
from tallystick.types import (
    ZERO_HASH,
    Ack,
    Address,
    JobId,
    Position,
    Prices,
    Receipt,
    RequestId,
    Standing,
    Totals,
)

PROMPT_MARGIN = 64
"""Tokens that a chat template may add to a prompt, beyond the bytes of its RFC 8785 form (protocol §6)."""
STILL_CHUNKS = 1_000
"""Chunks that may come without a token counted; a host that goes on beyond that only fills memory."""
NOTHING = Totals()
RECEIPT_POSITIONS = 256
"""The most positions in one receipt (protocol §13)."""


@dataclass(frozen=True, slots=True)
class Overcount:
    """The host counted more than the payer can account for; the payer signs `bound` and no more."""

    request: RequestId
    what: str
    """`tokens` or `prompt_tokens`."""
    counted: int
    bound: int


@dataclass(slots=True)
class _Incoming:
    """One request as it arrives."""

    delivery: Delivery
    prompt_bound: int
    max_tokens: int
    choices: int
    first: int
    """How many requests were begun and over before it came."""
    bytes_received: int = 0
    unseen: int = 0
    """End tokens that were counted and not seen: one a choice that came to its end."""
    still: int = 0
    """Chunks since the count moved."""
    ended: bool = False
    asked: int = 0
    """How often the host wanted its prompt signed for before it serves it."""
    prompt_ahead: int = 0
    """Prompt tokens that it then named of this request, and of all."""
    least: int = 0
    within: Totals | None = None
    """The newest counts that are within the payer's bounds."""
    chunks: int = 0
    """After which they came."""
    own: Own | None = None
    """The payer's own count, where there is a tokenizer."""
    waiting: deque[tuple[Totals, int]] = field(default_factory=deque)
    """Counts that the own count has yet to vouch for, and after which chunks they came."""
    signed: Totals = field(default_factory=Totals)

    @property
    def seen(self) -> int:
        """Generated tokens that it can be by what was seen: bytes, end tokens, and what was asked for."""
        return min(self.max_tokens, self.bytes_received + self.unseen)

    @property
    def prompt_left(self) -> int:
        """Prompt tokens that the host may still count of it."""
        return self._yet_to_come(self.prompt_bound)

    @property
    def ahead_left(self) -> int:
        """Prompt tokens that it is signed for ahead, and that have not come yet."""
        return self._yet_to_come(self.prompt_ahead)

    def _yet_to_come(self, prompt_tokens: int) -> int:
        """Of so many: several prompts come one after the other."""
        came = self.within.prompt_tokens if self.within else 0
        if self.ended or (came and self.choices == 1):
            return 0
        return max(0, prompt_tokens - came)


class Countersigner:
    """Receipts of one job.

    `ahead` is tokens signed beyond what was received, at most one interval. `last` and `acknowledged` are
    from the payer's store, for a job that goes on.
    """

    def __init__(
        self,
        job_id: JobId,
        prices: Prices,
        interval: int,
        domain: proof.Domain,
        key: bytes,
        *,
        ahead: int = 0,
        last: Receipt | None = None,
        acknowledged: Totals | None = None,
    ) -> None:
        if not 0 <= ahead <= interval:
            raise ValueError(f"ahead is {ahead} tokens, outside of 0 to one interval of {interval}")
        self.job_id = job_id
        self.signer = proof.address(key)
        self.last = last
        self.acknowledged = acknowledged or Totals()
        self.disputes: list[Overcount] = []
        self._prices = prices
        self._interval = interval
        self._domain = domain
        self._key = key
        self._ahead = Totals(0, ahead)
        self._requests: dict[RequestId, _Incoming] = {}
        self._begun = 0
        """Requests so far."""
        self._marks: deque[list[Position]] = deque()
        self._received = self.acknowledged
        self._quiet = 0
        """Tokens that may come before the next end of an interval, or of a quarter of one."""
        self._offered = 0
        """Generated tokens that have yet to be vouched for, since the last time that this was due."""
        self._pending: Receipt | None = None
        self._pending_acknowledged = self.acknowledged

    @property
    def received(self) -> Totals:
        """What has arrived and is within the payer's bounds, signed or not."""
        return self._received

    @property
    def receipted(self) -> Totals:
        """The totals of the newest receipt that the host acknowledged."""
        return self.last.totals if self.last else Totals()

    @property
    def outstanding(self) -> bool:
        """True if a receipt would say more than the last one did."""
        return self._signing(self._received) != self.receipted and (
            self._received != self.acknowledged or self.prompts_outstanding
        )

    @property
    def prompts_outstanding(self) -> bool:
        """True if prompts that are to be signed for ahead are not yet."""
        return self._prompts_ahead > self.receipted.prompt_tokens

    @property
    def _prompts_ahead(self) -> int:
        """Prompt tokens to sign for in all: what has come, and every prompt that is served once signed for.

        Each counts in until it has come or its request is over: of two that the host was asked for at the
        same time it names the same total.
        """
        ahead = [each for each in self._requests.values() if each.ahead_left]
        if not ahead:
            return 0
        in_all = self._received.prompt_tokens + sum(each.ahead_left for each in ahead)
        return max(in_all, *(each.least for each in ahead))

    @property
    def pending(self) -> Receipt | None:
        """The receipt that was made and is not acknowledged yet."""
        return self._pending

    @property
    def pending_acknowledged(self) -> Totals:
        """What the pending receipt acknowledges, without what it signs ahead."""
        return self._pending_acknowledged

    def begin(self, request: RequestId, body: Mapping[str, Any], max_tokens: int, choices: int = 1) -> None:
        """A request is about to be sent: `body` as sent, `max_tokens` as asked for of all `choices` together.

        Refusal `invalid_request` for a body that has no canonical form.
        """
        form = prompt_form(body)
        delivery, bound = Delivery(request, keccak(form)), len(form) + choices * PROMPT_MARGIN
        over = self._begun - sum(not each.ended for each in self._requests.values())
        self._requests[request] = _Incoming(delivery, bound, max_tokens, choices, over)
        self._begun += 1

    def weigh(self, request: RequestId, own: Own) -> None:
        """The payer has a count of its own of a request: nothing is signed that it was not called to `vouch`
        for. Before anything of it has come.
        """
        self._requests[request].own = own

    def receive(
        self, request: RequestId, counts: Totals, text: str, finish_reason: str | None = None
    ) -> bool:
        """One chunk, with the request's running counts. True if a checkpoint is due, or an own count.

        ReceiptError if a count goes down; what is above the payer's bound becomes an Overcount in `disputes`.
        """
        incoming = self._requests[request]
        incoming.still = incoming.still + 1 if counts == incoming.delivery.totals else 0
        if incoming.still > STILL_CHUNKS:
            raise ReceiptError(f"the host sent {STILL_CHUNKS} chunks without counting a token")
        incoming.bytes_received += incoming.delivery.take(counts, text)
        if finish_reason in ("stop", "tool_calls"):
            incoming.unseen = min(incoming.unseen + 1, incoming.choices)
        if not self._can_be(incoming, counts):
            return False
        if incoming.own is None:
            return self._bear_out(incoming, counts, incoming.delivery.chunks)
        return self._offer(incoming, counts)

    def chunks(self, request: RequestId) -> int:
        """How many chunks of a request have come."""
        return self._requests[request].delivery.chunks

    def vouch(self, request: RequestId, chunks: int) -> bool:
        """The own count is that of the text of so many chunks. True if a checkpoint is due."""
        incoming = self._requests[request]
        assert incoming.own is not None
        due = False
        while incoming.waiting and incoming.waiting[0][1] <= chunks:
            counts, at = incoming.waiting[0]
            if not self._bound(incoming).covers(counts):
                break
            incoming.waiting.popleft()
            incoming.own.count(counts.tokens)
            due = self._bear_out(incoming, counts, at) or due
        return due

    def _offer(self, incoming: _Incoming, counts: Totals) -> bool:
        """Has counts wait for the own count, which is due as often as a checkpoint is offered."""
        last = incoming.waiting[-1][0] if incoming.waiting else self._within(incoming)
        incoming.waiting.append((counts, incoming.delivery.chunks))
        self._offered += counts.tokens - last.tokens
        if not meter.quarter(0, self._offered, self._interval):
            return False
        self._offered = 0
        return True

    def _bear_out(self, incoming: _Incoming, counts: Totals, chunks: int) -> bool:
        """Takes counts for received, after so many chunks. True if a checkpoint is due."""
        before, within = self._received, incoming.within or NOTHING
        more = counts.tokens - within.tokens
        prompts = before.prompt_tokens + counts.prompt_tokens - within.prompt_tokens
        self._received = Totals(prompts, before.tokens + more)
        incoming.within, incoming.chunks = counts, chunks
        if more <= self._quiet and prompts == before.prompt_tokens:
            self._quiet -= more
            return False
        self._quiet = meter.quiet(self._received.tokens, self._interval)
        if meter.checkpoint(before, self._received, self._interval, self._prices):
            self._marks.append(self._moved())
            return True
        return meter.quarter(before.tokens, self._received.tokens, self._interval)

    def end(self, request: RequestId, counts: Totals | None = None) -> Overcount | None:
        """The request is over, with the host's last counts if it gave any. What the host counted too much."""
        incoming = self._requests[request]
        incoming.ended = True
        if incoming.own is not None:
            incoming.own.close()
        if incoming.within is None:
            del self._requests[request]
        if counts is None or self._within(incoming).covers(counts):
            return None
        over = self._overcount(incoming, counts)
        self.disputes.append(over)
        return over

    def may_sign_ahead(self, request: RequestId) -> bool:
        """True if the host may want a prompt signed for: once, and once more for each other request that was
        under way meanwhile, which may have been let in on what was signed for this one.
        """
        incoming = self._requests[request]
        return incoming.asked < self._begun - incoming.first

    def sign_prompt_ahead(self, request: RequestId, prompt_tokens: int, least: int = 0) -> None:
        """The next receipt also covers the prompt of `request`, which does not fit the credit.

        `least` is the total of prompt tokens that the host wants signed: prompts of other requests under way
        are in it. ReceiptError if this one may not be signed for again, or is longer than it can be, or if
        `least` is more than all prompts under way can have.
        """
        incoming = self._requests[request]
        if not self.may_sign_ahead(request):
            raise ReceiptError(f"the {prompt_tokens} prompt tokens were signed for, and the host asks again")
        bound = self._bound(incoming).prompt_tokens
        if prompt_tokens > bound:
            raise ReceiptError(
                f"the host wants {prompt_tokens} prompt tokens signed for, "
                f"of a prompt that can have {bound} at most"
            )
        under_way = sum(each.prompt_left for each in self._requests.values())
        if least > self._received.prompt_tokens + under_way:
            raise ReceiptError(f"the host wants {least} prompt tokens signed for, more than it was sent")
        incoming.asked += 1
        incoming.prompt_ahead, incoming.least = prompt_tokens, least

    def next(self) -> Receipt | None:
        """The receipt to send now: none while one is under way, or while there is nothing new to sign."""
        if self._pending or not self.outstanding:
            return None
        positions = self._next_positions()
        self._pending_acknowledged = self._with(positions)
        self._pending = self._sign(self._pending_acknowledged, positions)
        return self._pending

    def _next_positions(self) -> list[Position]:
        """Those of the next mark that signs for more than the last receipt, or else the newest."""
        while self._marks:
            positions = self._unsigned(self._marks.popleft())
            if self._signing(self._with(positions)) != self.receipted:
                return positions
        return self._unsigned(self._moved())

    def _with(self, positions: list[Position]) -> Totals:
        """What is acknowledged once these positions are."""
        acknowledged = self.acknowledged
        for position in positions:
            acknowledged = acknowledged + position.totals - self._requests[position.request].signed
        return acknowledged

    def acked(self, ack: Ack, host: Address | None = None) -> None:
        """The host has the pending receipt on its disk. ReceiptError if its word is about another, or not
        `host`'s.
        """
        receipt = self._pending
        if receipt is None or (ack.totals, ack.transcript) != (receipt.totals, receipt.transcript):
            raise ReceiptError(
                f"the host acknowledged {ack.totals} of job {self.job_id}, which was not under way"
            )
        self._check_word(ack, host)
        for position in receipt.positions:
            incoming = self._requests[position.request]
            incoming.signed = position.totals
            incoming.delivery.settle(position)
            if incoming.ended and incoming.within == position.totals:
                del self._requests[position.request]
        self.last, self.acknowledged, self._pending = receipt, self._pending_acknowledged, None

    def adopt(self, stored: Receipt, acknowledged: Totals | None = None) -> None:
        """Takes the host's stored receipt for the last one: this payer signed it, and did not know (protocol
        §5).

        `acknowledged` is what it acknowledged, as the payer's store has it. Without that its totals stand for
        it, and nothing is signed ahead on this job any more: what was is in them. ReceiptError if it is not
        this signer's, or not ahead of what this payer knows to be acknowledged: then the host refused what it
        may not refuse.
        """
        self._check_mine(stored)
        if self._pending and stored.transcript == self._pending.transcript:
            self.acked(Ack(self.job_id, stored.totals, stored.transcript, None))
            return
        if stored.totals.against(self.receipted) is not Standing.AHEAD:
            raise ReceiptError(
                f"the host offers a receipt of {_told(stored.totals)}, "
                f"not ahead of the {_told(self.receipted)} that it acknowledged"
            )
        self._go_on_from(stored, acknowledged)

    def rebase(self, stored: Receipt | None, acknowledged: Totals | None = None) -> None:
        """Goes on from the receipt that the host holds, which is behind the last one: it never took that one.

        `acknowledged` as for `adopt`. ReceiptError if the stored one is not this signer's.
        """
        if stored is not None:
            self._check_mine(stored)
        self._go_on_from(stored, acknowledged)

    def _go_on_from(self, stored: Receipt | None, acknowledged: Totals | None) -> None:
        totals = stored.totals if stored else Totals()
        if acknowledged is None:
            acknowledged, self._ahead = totals, Totals()
            for incoming in self._requests.values():
                incoming.prompt_ahead = 0
        self._received, self._quiet = self._received + acknowledged - self.acknowledged, 0
        self.last, self.acknowledged, self._pending = stored, acknowledged, None

    def _check_mine(self, stored: Receipt) -> None:
        digest = self._domain.receipt(self.job_id, stored.totals, stored.transcript)
        if stored.job_id != self.job_id or proof.recover(digest, stored.signature) != self.signer:
            raise ReceiptError(f"the host holds a receipt for job {self.job_id} that this payer did not sign")

    def _check_word(self, ack: Ack, host: Address | None) -> None:
        if host is None or ack.signature is None:
            return
        digest = self._domain.receipt(ack.job_id, ack.totals, ack.transcript)
        if proof.recover(digest, ack.signature) != host:
            raise ReceiptError(f"the acknowledgement of job {self.job_id} was not signed by its host {host}")

    def _sign(self, acknowledged: Totals, positions: list[Position]) -> Receipt:
        signed = self._signing(acknowledged)
        previous = self.last.transcript if self.last else ZERO_HASH
        link = transcript(previous, self.job_id, signed, positions)
        signature = proof.sign(self._domain.receipt(self.job_id, signed, link), self._key)
        return Receipt(self.job_id, signed, previous, link, signature, tuple(positions))

    def _signing(self, acknowledged: Totals) -> Totals:
        """The totals of a receipt that acknowledges so much; a prompt alone may be signed for already."""
        return (acknowledged + self._ahead).higher(Totals(self._prompts_ahead, 0)).higher(self.receipted)

    def _moved(self) -> list[Position]:
        """The newest position of every request, where it differs from the signed one."""
        return [
            incoming.delivery.position_after(incoming.chunks)
            for incoming in self._requests.values()
            if incoming.within is not None and incoming.within != incoming.signed
        ]

    def _unsigned(self, positions: list[Position]) -> list[Position]:
        """Those that still say something new: a mark may have been overtaken by the receipt under way when it
        was made.
        """
        known = [p for p in positions if p.request in self._requests]
        return [p for p in known if p.totals != self._requests[p.request].signed][:RECEIPT_POSITIONS]

    @staticmethod
    def _within(incoming: _Incoming) -> Totals:
        return incoming.within or NOTHING

    @staticmethod
    def _can_be(incoming: _Incoming, counts: Totals) -> bool:
        """By what was seen, without any own count."""
        return counts.tokens <= incoming.seen and counts.prompt_tokens <= incoming.prompt_bound

    @staticmethod
    def _bound(incoming: _Incoming) -> Totals:
        """The most that the payer can account for, with its own count where it has one."""
        seen, own = Totals(incoming.prompt_bound, incoming.seen), incoming.own
        if own is None:
            return seen
        prompt = seen.prompt_tokens if own.prompt_tokens is None else own.prompt_tokens
        return seen.lower(Totals(prompt, own.most))

    def _overcount(self, incoming: _Incoming, counts: Totals) -> Overcount:
        bound = self._bound(incoming)
        if counts.prompt_tokens > bound.prompt_tokens:
            return Overcount(
                incoming.delivery.request, "prompt_tokens", counts.prompt_tokens, bound.prompt_tokens
            )
        return Overcount(incoming.delivery.request, "tokens", counts.tokens, self._within(incoming).tokens)


def _told(totals: Totals) -> str:
    return f"{totals.prompt_tokens} prompt and {totals.tokens} generated tokens"
