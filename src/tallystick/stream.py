"""One reply on its way from the engine to the client, within what its job's account has room for.

    admitted -> delivering <-> waiting for room -> ended                                    (protocol §9)

A task takes from the engine what it makes; iterating delivers what fits, counted in the account before it is
given out. Knows no socket and no chain: how a reply looks is for server.py and websocket.py, and what it
needs beyond its account it asks of its Desk.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import msgspec
import structlog

from tallystick import choices, reply, wire
from tallystick.account import Account
from tallystick.engine import Engine, Piece, Plain
from tallystick.errors import EngineEmpty, EngineError, EngineRefused, Refusal
from tallystick.meter import Stop, checkpoint, quarter, quiet
from tallystick.transcript import Delivery
from tallystick.types import RequestId, Totals

CHAIN_POLL = 1.0
"""Seconds between two looks at the chain while a stream waits for a top-up, or for its job to lie deep."""
DEPTH_PATIENCE = 60.0
"""Seconds that a stream waits for its job to lie deep: on the chains in use that takes a third of it."""
OVERRUN_PATIENCE = 1.0
"""Seconds for which an engine that has made more than may be held is left waiting, before it is cancelled."""

RECEIPT_DUE = "receipt_due"
INTERVAL_TOO_SMALL = "interval_too_small"
JOB_UNCONFIRMED = "job_unconfirmed"
DEPOSIT_EXHAUSTED = "deposit_exhausted"
CANCELLED = "cancelled"
NODE_STOPPING = "node_stopping"
LEDGER_UNAVAILABLE = "ledger_unavailable"
ENGINE_FAILED = "engine_failed"

FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
"""OpenAI's."""

# By what was waited for in vain, if that was to be seen on the chain.
_ENDS: dict[Stop | None, str] = {Stop.DEPOSIT: DEPOSIT_EXHAUSTED, Stop.DEPTH: JOB_UNCONFIRMED}

log = structlog.get_logger(__name__)


class Desk(Protocol):
    """What a stream needs of the node that it runs in."""

    async def look_again(self, account: Account) -> None:
        """Reads the job again: its deposit may have grown, or lie deep by now."""

    async def checkpoint(self, account: Account) -> None:
        """A whole interval was counted: what may be settled without a receipt is brought into the ledger."""

    async def forgive(self, account: Account, *, cut: bool = False) -> None:
        """Writes off early what clients that are gone left unsigned, as it stands in a stream's way.

        `cut`: also what those left whose replies ended as they did not sign.
        """

    def left(self, stream: Stream) -> None:
        """A stream is over; what it delivered may not have been signed for."""


@dataclass(frozen=True, slots=True)
class Order:
    """One admitted request."""

    request: RequestId
    prompt_hash: bytes
    bodies: tuple[dict[str, Any], ...]
    """For the engine: one for each choice."""
    model: str
    """As the host calls it."""
    prompt_tokens: int
    """Reserved in the account: no more is billed for the prompts."""
    longest: int
    """Tokens of the longest prompt."""
    max_tokens: int
    """Of each choice."""
    n: int = 1
    """Choices for each prompt."""
    streamed: bool = True
    include_usage: bool = False
    capped: bool = False
    """`max_tokens` is what the deposit pays for, not what was asked for."""
    form: reply.Form = reply.CHAT
    bounded: bool = False
    """`prompt_tokens` is a bound: how many they are, the engine says with its first token."""


class Chunk(msgspec.Struct, frozen=True):
    """What goes to the client next: a piece of the reply, or (None) a checkpoint alone."""

    tally: dict[str, Any]
    piece: Piece | None = None

    def each(self) -> list[Chunk]:
        """Itself."""
        return [self]


class Run(msgspec.Struct, frozen=True):
    """Plain pieces that go to the client one after the other, while nothing is due, low or over."""

    pieces: list[Plain]
    request: RequestId
    prompt_tokens: int
    """Of the request."""
    job_prompt_tokens: int
    job_tokens: list[int]
    """Counted of the job with each piece."""
    left: list[int]
    """Of the deposit with each piece, in base units."""

    def each(self) -> list[Chunk]:
        """The same as chunks."""
        return [
            Chunk(
                wire.tally(
                    self.request,
                    Totals(self.prompt_tokens, piece.tokens),
                    Totals(self.job_prompt_tokens, tokens),
                    left,
                ),
                piece.whole(),
            )
            for piece, tokens, left in zip(self.pieces, self.job_tokens, self.left, strict=True)
        ]


Part = Chunk | Run
"""Of a reply."""


@dataclass(frozen=True, slots=True)
class End:
    """How a stream ended."""

    reason: str
    """In the words of protocol §9."""
    finish_reason: str
    """In OpenAI's."""
    untold: tuple[int, ...]
    """The choices of which no piece with the engine's `finish_reason` was delivered."""
    tally: dict[str, Any]
    usage: dict[str, Any]
    failure: Refusal | None = None


class Stream:
    """One reply. `async with` it, `take` its parts or iterate over lists of its chunks, then look at `end`.

    One list is what can be sent in one write. Nothing is raised for what ends a reply early: `end` tells.
    """

    def __init__(
        self, order: Order, account: Account, engine: Engine, desk: Desk, receipt_timeout: float
    ) -> None:
        self.order = order
        self.account = account
        self.delivery = Delivery(order.request, order.prompt_hash)
        self.reserved = order.prompt_tokens
        """Prompt tokens reserved in the account and not counted yet."""
        self.end: End | None = None
        self._engine = engine
        self._desk = desk
        self._timeout = receipt_timeout
        self._held: deque[Piece | Plain] = deque()
        """Made by the engine, not delivered, not billed."""
        self._assembled = False
        self._sent = Totals()
        self._usage: dict[str, Any] = {}
        self._open = set(range(len(order.bodies)))
        """The choices that have not ended."""
        self._finish_reason: str | None = None
        """The engine's, of the choice that ended last; none while one is open."""
        self._cut: str | None = None
        self._deadline: float | None = None
        """Until when it waits for room, on the event loop's clock."""
        self.behind = False
        """The payer's last receipt passed over what it has delivered."""
        self._signed_at = float("-inf")
        """When a receipt last signed for more of it, on the event loop's clock."""
        self._low_said = False
        self._overrun = False
        """The engine's request was cancelled, since nobody signed for what it had made."""
        self._changed = asyncio.Event()
        self._space = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.account.begin(self)
        self._pump = asyncio.create_task(self._take_from_engine())
        self._pump.add_done_callback(lambda _: self.wake())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._pump is not None
        self._pump.cancel()
        self.account.close(self)
        self._desk.left(self)
        await asyncio.wait([self._pump])
        if not self._pump.cancelled():
            self._failure()

    def __aiter__(self) -> AsyncIterator[list[Chunk]]:
        return self

    async def __anext__(self) -> list[Chunk]:
        if parts := await self.take():
            return [chunk for part in parts for chunk in part.each()]
        raise StopAsyncIteration

    @property
    def sent(self) -> Totals:
        """What was delivered, and counted before."""
        return self._sent

    @property
    def held(self) -> int:
        """Tokens that the engine has made, and that were not delivered."""
        return self._tokens(self._held[-1]) if self._held else 0

    @property
    def next_tokens(self) -> int:
        """Tokens that the next piece brings, 1 at least: more than none is waited for."""
        return max(1, self._tokens(self._held[0])) if self._held else 1

    def signed(self, now: float) -> None:
        """A receipt signs for more of it."""
        self.behind, self._signed_at = False, now

    def cut(self, reason: str) -> None:
        """Ends the stream before its reply is over; the first reason stands."""
        self._cut = self._cut or reason
        self.wake()

    def wake(self) -> None:
        """Something changed that the stream may wait for."""
        self._changed.set()
        self._space.set()

    # Delivering

    async def take(self) -> list[Part]:
        """What to send next; nothing once the stream has ended."""
        if self.account.crossed:
            await self._desk.checkpoint(self.account)
        try:
            return await self._take()
        finally:
            self.account.line.leave(self)

    async def _take(self) -> list[Part]:
        while self.end is None:
            self._changed.clear()
            if self._cut is not None:
                self._finish(self._cut)
            elif parts := self._deliverable():
                return parts
            elif self._held and not self._collecting:
                if chunk := await self._stand_still():
                    return [chunk]
            elif self._engine_done:
                self._finish(self._natural_reason())
            else:
                await self._changed.wait()
        return []

    @property
    def _engine_done(self) -> bool:
        return self._pump is not None and self._pump.done()

    @property
    def _collecting(self) -> bool:
        """An answer that is not streamed is delivered in one piece, so nobody pays for half of it."""
        return not self.order.streamed and not self._engine_done

    def _deliverable(self) -> list[Part]:
        """Delivers what is held as far as there is room for it."""
        if self._collecting:
            return []
        if not self.order.streamed:
            self._assemble()
        self._release_rest()
        parts: list[Part] = []
        meter = self.account.meter
        counted, room = meter.counted, self.account.room_for(self)
        while self._held and (after := self._deliver_next(counted, room, parts)) is not None:
            room -= after.tokens - counted.tokens
            if checkpoint(counted, after, self.account.job.interval, meter.prices):
                self._count(after)  # a checkpoint is due at its own totals, not where the write ends
            counted = after
        # Once for all that goes out in one write, and before it does.
        self._count(counted)
        if parts:
            self._deadline = None
        self._space.set()
        return parts

    def _deliver_next(self, counted: Totals, room: int, parts: list[Part]) -> Totals | None:
        """Adds a run, or else one piece, to `parts`: what is then counted of the job; None: nothing fits."""
        if run := self._run(counted, room):
            brings = Totals(0, run.pieces[-1].tokens - self._sent.tokens)
            self._deliver_run(run)
            parts.append(run)
            return counted + brings
        first = self._held[0]
        # How much of what lies beyond is signed for is known once all before it is counted.
        if (tokens := self._tokens(first)) > room or (parts and first.beyond):
            return None
        piece = self._held.popleft().whole()
        brings = Totals(self._prompt_tokens(piece), tokens)
        if chunk := self._deliver(piece, brings, counted + brings):
            parts.append(chunk)
        return counted + brings

    def _release_rest(self) -> None:
        """Once the engine has told how long a bounded prompt is, no more is reserved for it."""
        if not (self.order.bounded and self.reserved):
            return
        told = next(
            (self._prompt_tokens(piece) for piece in self._held if piece.tokens and piece.prompt_tokens), 0
        )
        if rest := self.reserved - told if told else 0:
            self.reserved = told
            self.account.release(rest)

    def _count(self, counted: Totals) -> None:
        """Has `counted` be what is counted of the job."""
        if (brought := counted - self.account.meter.counted) != Totals():
            self.account.count(brought.prompt_tokens, brought.tokens)

    def _run(self, counted: Totals, room: int) -> Run | None:
        """The next pieces that are plain, fit and have nothing told with them; None: `_deliver` does it."""
        first, meter = self._held[0], self.account.meter
        if type(first) is not Plain or self._finish_reason is not None or self._prompt_tokens(first):
            return None
        sent = self._sent.tokens
        pieces = self._plain(first, sent + min(room, quiet(counted.tokens, self.account.job.interval)))
        job_tokens = [counted.tokens - sent + piece.tokens for piece in pieces]
        left = meter.left_of_each(counted.prompt_tokens, job_tokens)
        if not pieces or (meter.is_low(left[-1]) and not self._low_said):
            return None
        return Run(
            *(pieces, self.order.request, self._sent.prompt_tokens, counted.prompt_tokens, job_tokens, left)
        )

    def _plain(self, first: Plain, most: int) -> list[Plain]:
        """Pieces like the first, up to so many tokens of the request."""
        pieces: list[Plain] = []
        tokens = self._sent.tokens
        for piece in self._held:
            if type(piece) is not Plain or piece.shape is not first.shape:
                break
            if piece.prompt_tokens != first.prompt_tokens or not tokens <= piece.tokens <= most:
                break
            tokens = piece.tokens
            pieces.append(piece)
        return pieces

    def _deliver_run(self, run: Run) -> None:
        for _ in run.pieces:
            self._held.popleft()
        last = run.pieces[-1]
        self._usage = last.usage or self._usage
        self._sent = Totals(self._sent.prompt_tokens, last.tokens)
        self.delivery.add_each((piece.tokens, piece.text) for piece in run.pieces)

    def _deliver(self, piece: Piece, brings: Totals, counted: Totals) -> Chunk | None:
        """One piece, which fits, with what it brings and what is then counted of the job; None if it says
        nothing new.
        """
        self._usage = piece.usage or self._usage
        if brings == Totals() and not piece.choices:
            return None
        self.reserved -= brings.prompt_tokens
        self._sent += brings
        self.delivery.add(self._sent.prompt_tokens, self._sent.tokens, piece.text)
        if piece.finish_reason:
            self._note_finished(piece)
        due = quarter(counted.tokens - brings.tokens, counted.tokens, self.account.job.interval)
        return Chunk(self._tally(counted, due=due or self._finish_reason is not None), piece)

    def _note_finished(self, piece: Piece) -> None:
        for choice in piece.choices:
            if reason := choice.get("finish_reason"):
                # Clients know no others; whatever else an engine calls it, it is an end.
                choice["finish_reason"] = reason = reason if reason in FINISH_REASONS else "stop"
                self._open.discard(choice["index"] if len(self.order.bodies) > 1 else 0)
                self._finish_reason = None if self._open else reason

    def _tokens(self, piece: Piece | Plain) -> int:
        """Generated tokens that a piece brings; those that nobody saw, as far as they are signed for."""
        seen = max(0, piece.tokens - self._sent.tokens)
        if not piece.beyond:
            return seen
        return seen + min(piece.beyond, max(0, self.account.meter.signed_ahead - seen))

    def _prompt_tokens(self, piece: Piece | Plain) -> int:
        """Prompt tokens to bill with a piece: none before the first token, and no more than admitted."""
        if piece.tokens == 0:
            return 0
        counted = piece.prompt_tokens or (0 if self.order.bounded else self.order.prompt_tokens)
        return max(0, min(counted - self._sent.prompt_tokens, self.reserved))

    def _assemble(self) -> None:
        """Makes one piece of an answer that is not streamed; none of one that broke off."""
        if self._failure() is not None:
            self._held.clear()
        elif self._held and not self._assembled:
            self._held = deque([reply.assemble([piece.whole() for piece in self._held], self.order.form)])
            self._assembled = True

    def _tally(self, counted: Totals, *, due: bool, waiting: bool = False) -> dict[str, Any]:
        """`counted`: what is counted of the job with it."""
        meter = self.account.meter
        left = meter.left_of(counted)
        low = not self._low_said and meter.is_low(left)
        self._low_said = self._low_said or low
        return wire.tally(
            self.order.request,
            self._sent,
            counted,
            left,
            due=due and not meter.attested,
            waiting=waiting,
            low=low,
            reason=self._reason(),
        )

    # Waiting

    async def _stand_still(self) -> Chunk | None:
        """Waits a while for room. The first time it says so; when its time is over it ends the stream."""
        lack = self._lack()
        if lack is Stop.CREDIT and self.account.meter.outgrows(self.next_tokens):
            self._cut = INTERVAL_TOO_SMALL
            return None
        if lack is Stop.RATE:
            await self._wait(self.account.rate_delay(self._tokens(self._held[0])))
            return None
        if lack is Stop.CREDIT and self.account.abandoned(cut=True) != Totals():
            await self._desk.forgive(self.account, cut=True)
        now = asyncio.get_running_loop().time()
        if self._deadline is None:
            self._deadline = now + (DEPTH_PATIENCE if lack is Stop.DEPTH else self._timeout)
            if self.account.meter.attested:
                return None
            if lack is Stop.CREDIT:
                self._count_prompt()
            return Chunk(self._tally(self.account.meter.counted, due=True, waiting=True))
        self._deadline = max(self._deadline, self._last_signed() + self._timeout)
        left = self._deadline - now
        if left <= 0:
            self._cut = _ENDS.get(lack, RECEIPT_DUE)
        elif lack in _ENDS:
            await self._desk.look_again(self.account)
            await self._wait(min(left, CHAIN_POLL))
        else:
            self.account.line.stand(self)
            if self._lack() is Stop.CREDIT:
                await self._wait(left)
        return None

    def _count_prompt(self) -> None:
        """Counts the prompt before the first piece, where that can never fit beside it: signed for, it makes
        room. The piece is there, and goes out then; of an answer in one piece nobody pays for a part.
        """
        prompt_tokens = self._prompt_tokens(self._held[0]) if self.order.streamed and self._held else 0
        if prompt_tokens and self.account.meter.crowds_out(prompt_tokens, self.next_tokens):
            self.reserved -= prompt_tokens
            self._sent += Totals(prompt_tokens, 0)
            self.delivery.add(self._sent.prompt_tokens, self._sent.tokens, "")
            self.account.count(prompt_tokens, 0)

    def _last_signed(self) -> float:
        """When the payer last signed for this stream, or, with nothing to sign of it, for any.

        A payer that signs, if not enough yet, is not one that has left.
        """
        return self._signed_at if self.account.unsigned_of(self) else self.account.receipted_at

    def _lack(self) -> Stop | None:
        """What keeps the next piece from being delivered."""
        return self.account.lack(self._tokens(self._held[0]), self) if self._held else None

    async def _wait(self, seconds: float) -> None:
        """Until something changes, `seconds` at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    # The engine's side

    async def _take_from_engine(self) -> None:
        order = self.order
        async with choices.stream(self._engine, order.bodies, order.max_tokens, order.n) as reads:
            async for pieces in reads:
                for piece in pieces:
                    self._hold(piece)
                self._changed.set()
                await self._space_again()
                if self._overrun:
                    return

    def _hold(self, piece: Piece | Plain) -> None:
        """Keeps a piece for delivery; a final usage goes with the piece that says why the reply ended."""
        last = self._held[-1] if self._held else None
        if type(last) is Piece and last.finish_reason and type(piece) is Piece and not piece.choices:
            self._held[-1] = msgspec.structs.replace(
                last,
                prompt_tokens=piece.prompt_tokens,
                tokens=piece.tokens,
                beyond=piece.beyond,
                usage=piece.usage,
            )
        else:
            self._held.append(piece)

    @property
    def _full(self) -> bool:
        """The streams of a job together hold one interval at most, beside what the last read brought."""
        if not self.order.streamed or not self._held:
            return False
        held, interval, streams = self.held, self.account.job.interval, self.account.streams
        if held >= max(1, interval // len(streams or [self])):
            return True
        # Streams that came when there were fewer had larger shares.
        return held > self.account.room() and sum(stream.held for stream in streams) >= interval

    async def _space_again(self) -> None:
        """Reads no more until there is space; if nobody signs, the engine is not kept busy for long."""
        while self._full:
            self._space.clear()
            try:
                async with asyncio.timeout(OVERRUN_PATIENCE):
                    await self._space.wait()
            except TimeoutError:
                quiet_since = asyncio.get_running_loop().time() - OVERRUN_PATIENCE
                self._overrun = self._lack() is Stop.CREDIT and self._last_signed() < quiet_since
                if self._overrun:
                    return

    # The end

    def _finish(self, reason: str) -> None:
        """Ends the stream; a reply that was over anyway ended for its own reason."""
        reason = self._reason() or reason
        failure = self._told_failure(reason)
        self.end = End(
            reason=reason,
            finish_reason=self._finish_reason or "length",
            untold=tuple(sorted(self._open)),
            tally={**self._tally(self.account.meter.counted, due=True), "reason": reason},
            usage={**self._usage, **_usage(self._sent)},
            failure=failure,
        )

    def _reason(self) -> str | None:
        """The engine's own reason, once it was delivered."""
        if self._finish_reason == "length" and self.order.capped:
            return DEPOSIT_EXHAUSTED
        return self._finish_reason

    def _natural_reason(self) -> str:
        """Why no more comes of the engine, when all that came was delivered."""
        return RECEIPT_DUE if self._overrun else ENGINE_FAILED

    def _failure(self) -> EngineError | None:
        """What the engine's side failed with. What is no EngineError is a fault of ours, and raised."""
        assert self._pump is not None
        error = self._pump.exception() if self._engine_done else None
        if error is None or isinstance(error, EngineError):
            return error
        raise error

    def _told_failure(self, reason: str) -> Refusal | None:
        """What the client is told beside the reason: nothing, where the reply as it is will do."""
        if reason == ENGINE_FAILED:
            return engine_refusal(self._failure(), begun=self._sent != Totals())
        if self.order.streamed or self._finish_reason is not None:
            return None
        # Of an answer in one piece nothing was delivered. A client that has left does not read why.
        if reason == CANCELLED:
            return Refusal("job_ended" if self.account.ended else "reply_cancelled")
        return Refusal(reason)


def engine_refusal(error: EngineError | None, *, begun: bool = False) -> Refusal:
    """What a client is told of an engine that failed: not its own words, which may name where it is."""
    log.warning("engine.failed", error=str(error or "it ended a reply before it began"))
    if isinstance(error, EngineRefused):
        return Refusal(error.code, error.detail)
    if error is None:
        return Refusal(EngineError.code if begun else EngineEmpty.code)
    return Refusal(error.code)


def _usage(sent: Totals) -> dict[str, int]:
    """OpenAI's usage, with the counts that are billed."""
    return {
        "prompt_tokens": sent.prompt_tokens,
        "completion_tokens": sent.tokens,
        "total_tokens": sent.prompt_tokens + sent.tokens,
    }
