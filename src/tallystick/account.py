"""The live state of one job at its host: one Account for all its streams, over HTTP and WebSocket alike.

Joins the rules (meter, deliveries, receipts) with the slot that survives kill -9, and wakes the streams that
wait when something changes. Everything in it happens at once, without awaiting; writing to the ledger is for
accounts.py, which holds `receiving` while it does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import structlog

from tallystick import pricing, proof
from tallystick.counter import Slot
from tallystick.line import Line
from tallystick.meter import JobMeter, Stop, checkpoint
from tallystick.receipt import Judgement, Known, check_signer, judge
from tallystick.shares import Want
from tallystick.transcript import Delivery
from tallystick.types import Job, Prices, Receipt, RequestId, Totals

if TYPE_CHECKING:
    from tallystick.stream import Stream
    from tallystick.tables import JobRow

log = structlog.get_logger(__name__)


class Account:
    """What the host holds of a job while it serves it."""

    def __init__(  # noqa: PLR0913 - a job is that much
        self,
        job: Job,
        row: JobRow,
        slot: Slot,
        positions: Mapping[RequestId, Totals],
        domain: proof.Domain,
        clock: Callable[[], float],
        asked: Prices | None = None,
        *,
        blind: bool = False,
        early: bool = False,
    ) -> None:
        """`slot` holds the gross count, the ledger's at least; `clock` is an estimate of the chain's time;
        `asked` are the host's own prices for such a job. `blind`: the process that served it before is gone,
        and its slot with it. `early`: the job does not lie as deep as the host asks.
        """
        self.job = job
        self.slot = slot
        self.epoch = row.epoch
        """In which this process owns the job: what it writes of it is of this epoch."""
        self.lapsed = False
        """This process may own the job no more."""
        self.behind = False
        """The ledger did not take something of it yet."""
        self.stored = row.receipted
        """The last receipt that was acknowledged."""
        self.ended = row.ending or row.closed
        """The session was ended here: no further requests."""
        self.meter = JobMeter(
            job.prices,
            job.deposit,
            job.interval,
            asked=asked,
            attested=not job.receipted,
            early=early,
            gross=slot.totals,
            acknowledged=row.acknowledged,
            receipted=row.receipted.totals if row.receipted else Totals(),
            written_off=row.written_off,
        )
        self.lost = self.meter.gross - self.meter.acknowledged + (self._unseen() if blind else Totals())
        """What requests from before this process may still acknowledge."""
        self.crossed = False
        """A whole interval was counted since the ledger was last told."""
        self.streams: set[Stream] = set()
        self.receiving = asyncio.Lock()
        """One receipt at a time (protocol §5)."""
        self.receipted_at = float("-inf")
        """When the last receipt was taken, on the event loop's clock."""
        self.line = Line(self.meter, self._want, self._coming)
        """Who waits for receipts."""
        self._gone: set[RequestId] = set()
        """Requests whose client went away, and that nobody has signed for to their end."""
        self._unsigned_in_time: set[RequestId] = set()
        """Requests that were ended as nobody signed for what had come of them."""
        self._forgiven: set[RequestId] = set()
        """Requests whose unsigned tokens were written off."""
        self._lost_forgiven = False
        self._positions = dict(positions)
        self._deliveries: dict[RequestId, Delivery] = {}
        self._domain = domain
        self._clock = clock

    def _unseen(self) -> Totals:
        """The most that a process may have delivered and not told of: what was signed ahead, and a credit."""
        meter, price = self.meter, self.meter.risk.prompt_per_million
        ahead = meter.receipted - meter.receipted.lower(meter.gross)
        return ahead + Totals(meter.credit // price if price else pricing.MAX_TOKENS, self.job.interval)

    # Delivering

    def room(self) -> int:
        """Generated tokens that may be delivered now."""
        return self.meter.room(self._rate_cap())

    def room_for(self, stream: Stream) -> int:
        """Generated tokens that one stream may deliver now: what is not kept for prompts and others."""
        if self.meter.attested:
            return self.room()
        return max(0, min(self.line.room_for(stream), self._most_unsigned(stream)))

    def _most_unsigned(self, stream: Stream) -> int:
        """Tokens that a stream may add to its unsigned ones: beside others it leaves them a quarter of the
        interval, and it has its part alone once a receipt has passed it over. What goes out whole does so,
        if all before it is signed for.
        """
        if len(self.streams) == 1 or self.meter.risk.per_million == 0:
            return pricing.MAX_TOKENS
        interval, meter = self.job.interval, self.meter
        ahead = meter.receipted.tokens - meter.acknowledged.tokens
        part = max(1, interval // len(self.streams))
        most = part if stream.behind else interval - interval // 4 + ahead
        unsigned = self.unsigned_of(stream)
        return most - unsigned if unsigned else max(most, stream.next_tokens)

    def unsigned_of(self, stream: Stream) -> int:
        """Generated tokens that a stream delivered, and that nobody has signed for."""
        return stream.sent.tokens - self._acknowledged(stream.order.request).tokens

    def lack(self, tokens: int, stream: Stream) -> Stop | None:
        """What keeps `tokens` of a stream from being delivered now."""
        if tokens <= self.room_for(stream):
            return None
        if self.affordable() < tokens:
            return Stop.DEPOSIT
        if self.meter.early and tokens > self.meter.room():
            return Stop.DEPTH
        return Stop.RATE if self.meter.attested else Stop.CREDIT

    def affordable(self, prompt_tokens: int = 0) -> int:
        """Generated tokens that the deposit still pays for, after a prompt of that many tokens."""
        exposed = self.meter.counted + Totals(self.meter.reserved + prompt_tokens, 0)
        return pricing.affordable(self.meter.deposit, exposed, self.meter.prices)

    def rate_delay(self, tokens: int) -> float:
        """Seconds until the rate of an attested job lets `tokens` through."""
        behind = tokens - self.room()
        return max(0.0, behind / self.job.max_tokens_per_second)

    def count(self, prompt_tokens: int, tokens: int) -> bool:
        """Counts what is about to be sent, so that kill -9 cannot lose it. True: offer a checkpoint."""
        before = self.meter.counted
        due = self.meter.count(prompt_tokens, tokens)
        self.slot.add(prompt_tokens, tokens)
        after = self.meter.counted
        if checkpoint(before, after, self.job.interval, self.job.prices):
            self.crossed = True
            log.info(
                "checkpoint.due", job=self.job.id, tokens=after.tokens, prompt_tokens=after.prompt_tokens
            )
        return due

    def _rate_cap(self) -> int | None:
        """What the contract would take of an attested job by now, both totals together."""
        if self.job.receipted:
            return None
        until = min(self._clock(), *filter(None, (self.job.expires_at, self.job.asked_at)))
        return max(0, int(self.job.max_tokens_per_second * (until - self.job.created_at)))

    def exposure(self, *, asked: bool = False) -> int:
        """The most that the host may come to lose of the job, in micro base units: with a reply under way, or
        one that is `asked` for, a whole credit.
        """
        if not (self.meter.lends and (asked or self.streams)):
            return self.unsigned()
        return pricing.value(self.meter.written_off, self.meter.risk) + self.meter.credit

    def unsigned(self) -> int:
        """What nobody has signed for, written off or not, in micro base units."""
        return pricing.value(self.meter.written_off, self.meter.risk) + self.meter.unsigned

    def release(self, prompt_tokens: int) -> None:
        """Gives back what was reserved for a prompt, or the part of it that was not needed."""
        self.meter.release(prompt_tokens)
        if self.line:
            self.wake()

    def _want(self, stream: Stream) -> Want:
        most = max(0, min(stream.held, self._most_unsigned(stream)))
        return Want(self.unsigned_of(stream), stream.next_tokens, most)

    def _coming(self) -> int:
        return sum(self.unsigned_of(stream) for stream in self.streams if not stream.behind)

    # Streams

    def knows(self, request: RequestId) -> bool:
        """True if this id was used before; a request that delivered nothing may be sent again."""
        return request in self._deliveries or request in self._positions

    def begin(self, stream: Stream) -> None:
        """A stream is on its way."""
        self.streams.add(stream)
        self._deliveries[stream.delivery.request] = stream.delivery

    def close(self, stream: Stream) -> None:
        """A stream is over: what it did not use of its prompt's reservation is free again."""
        self.streams.discard(stream)
        self.line.leave(stream)
        self.meter.release(stream.reserved)
        self._forget(stream.delivery.request)
        self.wake()

    def cut(self, reason: str) -> None:
        """Ends all streams, each after what it is sending, and lets no prompt wait any longer."""
        self.line.turn_away()
        for stream in self.streams:
            stream.cut(reason)

    def wake(self) -> None:
        """Something changed that a prompt or a stream may wait for."""
        self.line.move_up()
        for stream in self.streams:
            stream.wake()

    def refresh(self, job: Job) -> None:
        """The job as the chain tells it now; a top-up may be what streams wait for."""
        self.job = job
        if job.deposit != self.meter.deposit:
            self.meter.top_up(job.deposit)
            self.wake()

    def confirm(self) -> None:
        """The job lies as deep as the host asks."""
        if self.meter.early:
            self.meter.confirm()
            self.wake()

    # Receipts

    def judge(self, receipt: Receipt) -> Judgement | None:
        """What a receipt acknowledges if its signature holds; None: nothing new. Raises what `receipt.judge`
        raises.
        """
        return judge(receipt, self._known())

    def check_signer(self, receipt: Receipt) -> None:
        """Raises what `receipt.check_signer` raises. For any thread."""
        check_signer(receipt, self._domain, self.job.signer)

    def due(self, judgement: Judgement) -> bool:
        """True if a receipt with that judgement is the first at or past a whole interval."""
        return checkpoint(self.meter.acknowledged, judgement.acknowledged, self.job.interval, self.job.prices)

    def take(self, receipt: Receipt, judgement: Judgement) -> None:
        """The receipt is on the disk: what it signed for is credit now."""
        self.meter.receipt(receipt.totals, judgement.acknowledged)
        self.stored, self.lost = receipt, judgement.lost
        self._note_signed({position.request for position in receipt.positions})
        for position in receipt.positions:
            self._positions[position.request] = position.totals
            if (delivery := self._deliveries.get(position.request)) is not None:
                delivery.settle(position)
                self._forget(position.request)
        self.receipted_at = asyncio.get_running_loop().time()
        self.wake()

    def _note_signed(self, requests: set[RequestId]) -> None:
        """Tells each stream whether a receipt signs for more of it, or passes over what is unsigned."""
        now = asyncio.get_running_loop().time()
        for stream in self.streams:
            if stream.order.request in requests:
                stream.signed(now)
            elif self.unsigned_of(stream):
                stream.behind = True

    def _known(self) -> Known:
        return Known(
            job_id=self.job.id,
            stored=self.stored,
            acknowledged=self.meter.acknowledged,
            positions=self._positions,
            deliveries=self._deliveries,
            lost=self.lost,
        )

    def _forget(self, request: RequestId) -> None:
        """Drops the text of a request that is over and acknowledged to its end, or never delivered."""
        delivery = self._deliveries[request]
        live = any(stream.delivery is delivery for stream in self.streams)
        if not live and delivery.totals == self._acknowledged(request):
            del self._deliveries[request]

    def _acknowledged(self, request: RequestId) -> Totals:
        return self._positions.get(request, Totals())

    # Writing off

    def open_of(self, request: RequestId) -> Totals:
        """What one request delivered and nobody has signed for."""
        delivery = self._deliveries.get(request)
        if delivery is None or request in self._forgiven:
            return Totals()
        return (delivery.totals - self._acknowledged(request)).lower(self._unsigned)

    def open_of_lost(self) -> Totals:
        """What requests from before this process delivered and nobody has signed for."""
        return Totals() if self._lost_forgiven else self.lost.lower(self._unsigned)

    def gone(self, request: RequestId) -> None:
        """The client of a request went away before its reply was over."""
        self._gone.add(request)

    def unsigned_in_time(self, request: RequestId) -> None:
        """A request was ended as nobody signed for what had come of it; its client may still do so."""
        self._unsigned_in_time.add(request)

    @property
    def used_up(self) -> bool:
        """True if clients that are gone left more unsigned than may be written off in the job's life.

        What was lost in a restart is not held against the job: its client may still be there.
        """
        totals = sum(map(self.open_of, self._gone), Totals()).lower(self._unsigned)
        return totals != Totals() and not self.meter.attested and not self.meter.may_write_off(totals)

    def abandoned(self, *, cut: bool = False) -> Totals:
        """What requests leave unsigned whose client is gone, or was another process's.

        `cut`: also those that were ended as nobody signed.
        """
        left = sum(map(self.open_of, self._left(cut=cut)), Totals())
        return (left + self.open_of_lost()).lower(self._unsigned)

    def _left(self, *, cut: bool) -> set[RequestId]:
        return self._gone | self._unsigned_in_time if cut else self._gone

    def forgive(self, *, cut: bool = False) -> bool:
        """Writes off what is abandoned, once a request. False: nothing, or not within the one credit."""
        totals = self.abandoned(cut=cut)
        if totals == Totals() or not self.write_off(totals):
            return False
        self._forgiven |= self._left(cut=cut)
        self._gone.clear()
        if cut:
            self._unsigned_in_time.clear()
        self._lost_forgiven = True
        return True

    def write_off(self, totals: Totals) -> bool:
        """Takes it off the count. False: that would be more than one credit in the job's life."""
        written_off = self.meter.write_off(totals)
        if written_off:
            self.wake()
        return written_off

    @property
    def _unsigned(self) -> Totals:
        """Counted beyond the receipt. What that covers, ahead or not, is the host's to claim, and stays."""
        counted = self.meter.counted
        return counted - counted.lower(self.meter.receipted)
