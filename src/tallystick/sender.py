"""One key, its nonces, and what is done with each until it is N blocks deep in the chain.

A transaction is on disk, with its nonce and its signed bytes, before it is sent (law 7); from then on it is
sent, sent again and replaced until one of its hashes has a receipt that is deep enough, through kill -9, an
empty account and a reorganised chain. What to do when is decided by fees.py; what a transaction is for,
nobody here knows.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import structlog

from tallystick import proof
from tallystick.chain import Block, Chain, TxResult
from tallystick.contracts import Call, Event
from tallystick.errors import ChainError, LedgerError, RpcError
from tallystick.fees import (
    CANCEL_GAS,
    Answer,
    Fees,
    Flight,
    Market,
    Move,
    Pace,
    Sighting,
    View,
    decide,
    opening,
    read_answer,
)
from tallystick.ledger import Ledger
from tallystick.tables import Attempt, Carried, Draft, Errand, State, Transaction
from tallystick.types import Address, Completion, Settlement

POLL = 1.0
"""Seconds between looks at the chain while something is in flight."""
IDLE_POLL = 15.0
"""Seconds between looks while nothing is: a reorganisation may bring something back."""
ALARM_EVERY = 300.0
"""Seconds after which a lack of gas is told again."""
GAP = "gap"
"""The purpose of a transaction that only fills a nonce."""

log = structlog.get_logger(__name__)

E = TypeVar("E", Settlement, Completion)


class Outcome(enum.Enum):
    """What became of a transaction."""

    SUBMITTED = "submitted"
    """An endpoint took it, for the first time: it, and not the transfer of nothing that fills its nonce."""
    MINED = "mined"
    CONFIRMED = "confirmed"
    """N blocks deep, with status 1."""
    REVERTED = "reverted"
    """N blocks deep, with status 0."""
    CANCELLED = "cancelled"
    """No endpoint would take it: its nonce was filled with a transfer of nothing."""
    DISPLACED = "displaced"
    """Another transaction of the key has its nonce."""
    TAKEN_BACK = "taken back"
    """A reorganisation undid it: it is in flight again."""


_FINAL = {
    State.CONFIRMED: Outcome.CONFIRMED,
    State.REVERTED: Outcome.REVERTED,
    State.CANCELLED: Outcome.CANCELLED,
    State.DISPLACED: Outcome.DISPLACED,
}
_FAILED = {
    State.REVERTED: "transaction.reverted",
    State.CANCELLED: "transaction.cancelled",
    State.DISPLACED: "transaction.displaced",
}


@dataclass(frozen=True, slots=True)
class Report:
    """One change in a transaction's life, already on disk."""

    outcome: Outcome
    transaction: Transaction
    tx: str
    """The hash concerned."""
    events: Sequence[Event] = ()


@dataclass(frozen=True, slots=True)
class _Sent:
    """The last broadcast of a transaction by this process."""

    at: float
    answer: Answer
    message: str


class Sender:
    """Sends for one key. `run` has to run beside `submit`, or `step` be called.

    Of several processes with one key and one ledger, one sends and the others stand by (leases.py).

    Methods raise ChainError when the chain cannot be asked, LedgerError when the ledger cannot be written;
    what is in flight is looked after in the next step all the same.
    """

    def __init__(
        self,
        chain: Chain,
        ledger: Ledger,
        key: bytes,
        *,
        pace: Pace | None = None,
        poll: float = POLL,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`key`: 32 bytes. `clock`: seconds since 1970, as saved with what was sent before a restart."""
        self.address: Address = proof.address(key)
        self._chain = chain
        self._ledger = ledger
        self._key = key
        self._pace = pace or Pace()
        self._poll = poll
        self._clock = clock
        self._listeners: list[Callable[[Report], None]] = []
        self._sent: dict[int, _Sent] = {}
        self._passed: dict[int, int] = {}
        self._turn = asyncio.Lock()
        self._epoch = 0
        """In which this process sends for the key; 0: it stands by."""
        self._resumed = False
        self._woken = asyncio.Event()
        self._trouble = ""
        self._starved_at: float | None = None

    def __repr__(self) -> str:
        return f"Sender({self.address})"

    @property
    def starving(self) -> bool:
        """True while what is in flight cannot be paid for: nothing more should be submitted."""
        return any(sent.answer is Answer.NO_FUNDS for sent in self._sent.values())

    @property
    def ceiling(self) -> int:
        """The most that it pays for a unit of gas, in wei."""
        return self._pace.ceiling

    @property
    def leading(self) -> bool:
        """True if this process sends for the key, as of its last turn."""
        return self._epoch > 0

    def listen(self, listener: Callable[[Report], None]) -> None:
        """Tells `listener` of every change from now on. It must not raise."""
        self._listeners.append(listener)

    def poke(self) -> None:
        """Looks at the chain now."""
        self._woken.set()

    async def submit(
        self,
        call: Call,
        purpose: str,
        carried: Sequence[Carried] = (),
        *,
        gas: int = 0,
        errand: Errand | None = None,
    ) -> Transaction:
        """Signs, saves and sends a transaction; returns it once it is saved, whether or not it was taken.

        `carried`: what it claims for which jobs. `gas`: its limit, where what it may need is known. `errand`:
        for which payer it is, who is sent nothing else with the same nonce. Raises the ContractError that the
        call would meet, and LedgerError while another process sends for the key.
        """
        async with self._turn:
            await self._lead()
            if not self.leading:
                raise LedgerError(f"another process sends for {self.address}")
            if not self._resumed:
                await self._step()
            estimate = await self._chain.estimate_gas(call, self.address)
            nonce = await self._next_nonce()
            limit = gas if gas >= estimate else limit_of(estimate)
            what = (call.to, call.data, call.value, limit, tuple(carried), errand)
            draft = Draft(self.address, nonce, purpose, *what)
            transaction = await self._save(draft)
            self.poke()
            return await self._broadcast(transaction)

    async def step(self) -> bool:
        """Looks once after everything in flight. True if something of this process's still is."""
        async with self._turn:
            await self._lead()
            return self.leading and await self._step()

    async def lead(self) -> bool:
        """Sends for the key from now on, if no other process does."""
        async with self._turn:
            await self._lead()
        return self.leading

    async def run(self) -> None:
        """Steps for ever, at once after `poke`, and goes on through failures of chain and ledger."""
        while True:
            pause = self._poll
            try:
                if not await self.step() and self.leading:
                    pause = max(self._poll, IDLE_POLL)
                self._tell_trouble("")
            except (ChainError, LedgerError) as error:
                self._tell_trouble(str(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._woken.wait()
            self._woken.clear()

    async def _lead(self) -> None:
        before = self._epoch
        await self._ledger.lead(self.address)
        self._epoch = self._ledger.epoch(self.address)
        if self._epoch != before:
            # Another process may have sent meanwhile: what is known is in the ledger.
            self._sent.clear()
            self._passed.clear()
            self._resumed = False
            log.info("sender.leading" if self.leading else "sender.standing_by", address=self.address)

    # One step

    async def _step(self) -> bool:
        """In one view of the chain, which has all that was seen before: what it lacks is gone."""
        flights = await self._ledger.in_flight(self.address)
        async with self._chain.view(_seen_at(flights)):
            nonce = await self._chain.nonce(self.address)
            flights = await self._mend(flights, nonce)
            # The receipts first: the head that is read after them is never older than their blocks.
            results = [await self._look(transaction) for transaction in flights]
            if flights:
                head = await self._chain.block()
                market = Market(head.base_fee, await self._chain.priority_fee())
                for transaction, result in zip(flights, results, strict=True):
                    first = transaction.nonce == flights[0].nonce
                    await self._advance(transaction, result, self._view(head, nonce, market, result), first)
        self._resumed = True
        return bool(flights)

    async def _look(self, transaction: Transaction) -> TxResult | None:
        """The receipt of any of its hashes."""
        for attempt in reversed(transaction.attempts):
            result = await self._chain.result(attempt.hash)
            if result is not None:
                return result
        return None

    def _view(self, head: Block, nonce: int, market: Market, result: TxResult | None) -> View:
        sighting = Sighting(result.hash, result.block, result.succeeded) if result else None
        return View(head.number, nonce, market, self._chain.deployment.confirmations, sighting)

    async def _advance(
        self, transaction: Transaction, result: TxResult | None, view: View, first: bool
    ) -> None:
        if result is not None and _taken_at(transaction) is None:
            transaction = await self._mark_taken(transaction, _attempt(transaction, result.hash))
        decision = decide(self._flight(transaction, result, first), view, self._clock(), self._pace)
        match decision.move:
            case Move.SEND:
                await self._broadcast(transaction)
            case Move.BUMP | Move.CANCEL:
                assert decision.fees is not None
                cancelling = transaction.newest.cancelling or decision.move is Move.CANCEL
                await self._replace(transaction, decision.fees, cancelling=cancelling)
            case Move.MINED:
                assert result is not None
                await self._mined(transaction, result)
            case Move.TAKE_BACK:
                await self._broadcast(await self._take_back(transaction))
            case Move.FINISH:
                assert result is not None
                await self._finish(transaction, _final_state(transaction, result), result)
            case Move.PASSED:
                self._passed[transaction.id] = view.head
            case Move.DISPLACED:
                await self._finish(transaction, State.DISPLACED, None)
            case Move.WAIT:
                pass

    def _flight(self, transaction: Transaction, result: TxResult | None, first: bool) -> Flight:
        sent = self._sent.get(transaction.id)
        return Flight(
            nonce=transaction.nonce,
            fees=transaction.newest.fees,
            cancelling=transaction.newest.cancelling,
            mined=_sighting(transaction, result),
            answer=sent.answer if sent else None,
            sent_at=sent.at if sent else None,
            taken_at=transaction.newest.taken_at,
            passed_at=self._passed.get(transaction.id),
            first=first,
        )

    # Moves

    async def _next_nonce(self) -> int:
        """After all that are known here, or used: on the right chain, which a view makes sure of."""
        known = await self._ledger.next_nonce(self.address)
        async with self._chain.view():
            return max(known, await self._chain.nonce(self.address))

    async def _save(self, draft: Draft) -> Transaction:
        head = await self._chain.block()
        market = Market(head.base_fee, await self._chain.priority_fee())
        return await self._ledger.save(draft, self._sign(draft, opening(market, self._pace.ceiling)))

    def _sign(self, draft: Draft, fees: Fees, *, cancelling: bool = False) -> Attempt:
        call = Call(self.address, b"") if cancelling else Call(draft.to, draft.data, draft.value)
        gas = CANCEL_GAS if cancelling else draft.gas
        signed = self._chain.sign(
            call, self._key, nonce=draft.nonce, gas=gas, tip=fees.tip, max_fee=fees.max_fee
        )
        return Attempt(signed.hash, signed.raw, fees, cancelling)

    async def _broadcast(self, transaction: Transaction) -> Transaction:
        """Sends the newest form; if that cannot be paid, the cheaper ones before it."""
        before = self._sent.get(transaction.id)
        for attempt in reversed(transaction.attempts):
            sent = await self._send(attempt)
            if sent.answer.taken:
                self._sent[transaction.id] = sent
                return await self._mark_taken(transaction, attempt)
            if attempt is transaction.newest:
                self._sent[transaction.id] = sent
                if before is None or before.message != sent.message:
                    self._tell_not_taken(transaction, sent)
            if sent.answer is not Answer.NO_FUNDS:
                break
        if self._sent[transaction.id].answer is Answer.NO_FUNDS:
            await self._tell_starving(transaction)
        return transaction

    async def _send(self, attempt: Attempt) -> _Sent:
        if not await self._ledger.leads(self.address):
            raise LedgerError(f"another process sends for {self.address}, or is about to")
        answer, message = Answer.ACCEPTED, ""
        try:
            await self._chain.send(attempt.raw)
        except RpcError as error:
            answer, message = read_answer(error.message), error.message
        except ChainError as error:
            answer, message = Answer.SILENCE, str(error)
        return _Sent(self._clock(), answer, message)

    async def _mark_taken(self, transaction: Transaction, attempt: Attempt) -> Transaction:
        if self._starved_at is not None and not self.starving:
            self._starved_at = None
            log.info("sender.funded", address=self.address)
        if attempt.taken_at is not None:
            return transaction
        first = _taken_at(transaction) is None
        transaction = await self._ledger.taken(transaction, attempt, self._clock())
        if first and not attempt.cancelling:
            self._report(Outcome.SUBMITTED, transaction, attempt.hash)
        return transaction

    async def _replace(self, transaction: Transaction, fees: Fees, *, cancelling: bool) -> None:
        attempt = self._sign(transaction.draft, fees, cancelling=cancelling)
        transaction = await self._ledger.add_attempt(transaction, attempt)
        log.info(
            "transaction.replaced",
            nonce=transaction.nonce,
            tx=attempt.hash,
            max_fee=fees.max_fee,
            tip=fees.tip,
            cancelling=cancelling,
        )
        await self._broadcast(transaction)

    async def _mined(self, transaction: Transaction, result: TxResult) -> None:
        settlements = _only(Settlement, result.events)
        transaction = await self._ledger.mined(transaction, result.hash, result.block, settlements)
        self._report(Outcome.MINED, transaction, result.hash, result.events)

    async def _finish(self, transaction: Transaction, state: State, result: TxResult | None) -> None:
        events = result.events if result else ()
        transaction = await self._ledger.finish(
            transaction,
            state,
            result.hash if result else None,
            result.block if result else None,
            _only(Settlement, events),
            _only(Completion, events),
        )
        self._forget(transaction)
        tx = result.hash if result else transaction.newest.hash
        if state in _FAILED:
            log.error(_FAILED[state], nonce=transaction.nonce, tx=tx, purpose=transaction.draft.purpose)
        self._report(_FINAL[state], transaction, tx, events)

    async def _take_back(self, transaction: Transaction) -> Transaction:
        gone = transaction.mined_hash or transaction.newest.hash
        transaction = await self._ledger.take_back(transaction)
        self._forget(transaction)
        log.warning("transaction.reorganised", nonce=transaction.nonce, tx=gone)
        self._report(Outcome.TAKEN_BACK, transaction, gone)
        return transaction

    # Gaps

    async def _mend(self, flights: list[Transaction], nonce: int) -> list[Transaction]:
        """Nonces that the chain expects and nothing in flight has.

        A reorganisation frees those of final transactions, whose bytes are still here; a nonce that the
        ledger never knew is filled with a transfer of nothing.
        """
        expected = flights[0].nonce if flights else await self._ledger.next_nonce(self.address)
        if nonce >= expected:
            return flights
        known = await self._ledger.at_nonces(self.address, range(nonce, expected))
        async with self._chain.view(_seen_at(known)):
            # One endpoint alone gives a view though it is behind.
            if await self._chain.block_number() < _seen_at(known):
                return flights
            for transaction in known:
                # Its receipt is there: the endpoint's count lags behind.
                if await self._look(transaction) is not None:
                    return flights
                await self._take_back(transaction)
        for missing in sorted(set(range(nonce, expected)) - {transaction.nonce for transaction in known}):
            await self._save(Draft(self.address, missing, GAP, self.address, b"", 0, CANCEL_GAS))
        return await self._ledger.in_flight(self.address)

    # Telling

    def _report(
        self, outcome: Outcome, transaction: Transaction, tx: str, events: Sequence[Event] = ()
    ) -> None:
        for listener in self._listeners:
            listener(Report(outcome, transaction, tx, events))

    def _tell_not_taken(self, transaction: Transaction, sent: _Sent) -> None:
        log.warning(
            "transaction.not_taken",
            nonce=transaction.nonce,
            tx=transaction.newest.hash,
            answer=sent.answer.value,
            message=sent.message,
        )

    def _forget(self, transaction: Transaction) -> None:
        self._sent.pop(transaction.id, None)
        self._passed.pop(transaction.id, None)

    async def _tell_starving(self, transaction: Transaction) -> None:
        now = self._clock()
        if self._starved_at is not None and now - self._starved_at < ALARM_EVERY:
            return
        self._starved_at = now
        draft, fees = transaction.draft, transaction.newest.fees
        log.error(
            "sender.no_gas",
            address=self.address,
            balance=await self._chain.eth_balance(self.address),
            needed=draft.gas * fees.max_fee + draft.value,
            unit="wei",
            mend=f"send ETH to {self.address}; what is due is settled by itself then",
        )

    def _tell_trouble(self, trouble: str) -> None:
        if trouble and not self._trouble:
            log.error("sender.failing", error=trouble)
        elif self._trouble and not trouble:
            log.info("sender.recovered")
        self._trouble = trouble


def limit_of(estimate: int) -> int:
    """Gas for what is estimated to need so much: a quarter more, as it may cost what it does not now."""
    return estimate + estimate // 4


def _seen_at(transactions: Iterable[Transaction]) -> int:
    """The highest block that one of them was seen in."""
    return max((each.mined_block or 0 for each in transactions), default=0)


def _taken_at(transaction: Transaction) -> float | None:
    """When an endpoint first took any form of it."""
    return min((each.taken_at for each in transaction.attempts if each.taken_at is not None), default=None)


def _attempt(transaction: Transaction, tx: str) -> Attempt:
    return next(attempt for attempt in transaction.attempts if attempt.hash == tx)


def _sighting(transaction: Transaction, result: TxResult | None) -> Sighting | None:
    """Where the ledger last saw it."""
    if transaction.mined_hash is None or transaction.mined_block is None:
        return None
    # Whether it succeeded then is of no interest: a block's receipt does not change.
    succeeded = result.succeeded if result else True
    return Sighting(transaction.mined_hash, transaction.mined_block, succeeded)


def _final_state(transaction: Transaction, result: TxResult) -> State:
    if _attempt(transaction, result.hash).cancelling:
        return State.CANCELLED
    return State.CONFIRMED if result.succeeded else State.REVERTED


def _only(kind: type[E], events: Iterable[Event]) -> list[E]:
    return [event for event in events if isinstance(event, kind)]
