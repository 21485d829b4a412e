"""Where a host is asked: requests, receipts, ends of sessions, and what is written down before each answer.

    request -> admit -> Stream: tokens, counted in the job's Account before they are sent
    receipt -> judged -> in the ledger -> acknowledged; settlement carries it to the chain
    end     -> in the ledger -> settlement settles the last checkpoint and completes the job

The rules are in admission.py, receipt.py and meter.py; this module finds out the facts for them, and carries
out what they say. Knows no socket: server.py and websocket.py speak for it.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import structlog

from tallystick import admission, pricing, proof, wire
from tallystick.account import Account
from tallystick.admission import Check, Facts, Offer, first_refusal
from tallystick.config import HostConfig
from tallystick.counter import Counter, Record
from tallystick.engine import Engine
from tallystick.errors import (
    ChainError,
    Elsewhere,
    EngineError,
    LedgerError,
    ReceiptError,
    Refusal,
    Superseded,
    TallystickError,
)
from tallystick.ledger import Ledger
from tallystick.lookout import Lookout, Sight
from tallystick.meter import Fit
from tallystick.receipt import check_own, check_signer
from tallystick.stream import (
    CANCELLED,
    JOB_UNCONFIRMED,
    LEDGER_UNAVAILABLE,
    NODE_STOPPING,
    Order,
    Stream,
    engine_refusal,
)
from tallystick.tables import JobRow
from tallystick.types import Ack, Job, JobId, Receipt, RequestId, Totals
from tallystick.wire import ChatRequest

NOTHING = Totals()
CATCH_UP_EVERY = 1.0
"""Seconds between tries to write what the ledger did not take."""
T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a receipt is answered with. `stored`: it was stale or equal, and this one stands."""

    ack: Ack
    stored: Receipt | None = None

    def out(self) -> dict[str, Any]:
        """As it goes over the wire."""
        answer = {"ack": wire.ack_out(self.ack)}
        return answer if self.stored is None else {**answer, "stored": wire.receipt_out(self.stored)}


@dataclass(frozen=True, slots=True)
class Access:
    """What came with a request to show who asks."""

    authorization: str | None = field(repr=False)
    """The bearer."""
    secure: bool
    """It came over TLS or from this machine."""


def refusal_of(error: TallystickError) -> Refusal:
    """An error as whoever asked is told it: its own words may name paths and places, and are the host's."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, EngineError):
        return engine_refusal(error)
    if isinstance(error, Elsewhere):
        return Refusal("job_elsewhere", retry_after=math.ceil(error.seconds))
    log.error("desk.failed", error=str(error))
    if isinstance(error, LedgerError):
        return Refusal("ledger_unavailable")
    if isinstance(error, ChainError):
        return Refusal("chain_unavailable")
    raise error


class Desk:
    """All that a host is asked by payers, for every job that it serves.

    Methods raise Refusal, or another TallystickError that `refusal_of` turns into one. A job that another
    process of the host serves is Elsewhere: that is to be asked.
    """

    def __init__(
        self,
        config: HostConfig,
        offer: Offer,
        engine: Engine,
        lookout: Lookout,
        ledger: Ledger,
        counter: Counter,
        poke: Callable[[], None],
    ) -> None:
        """`poke` tells settlement that there may be something to settle."""
        self.offer = offer
        self.stopping = False
        self._config = config
        self._engine = engine
        self._lookout = lookout
        self._ledger = ledger
        self._counter = counter
        self._poke = poke
        self._key = config.host_private_key.reveal() if config.host_private_key else None
        self._accounts: dict[JobId, Account] = {}
        """The jobs that this process serves."""
        self._opening: dict[JobId, asyncio.Task[Account]] = {}
        self._lapses = 0
        """How often this process may have lost all that it served."""
        self._writing: set[asyncio.Task[Any]] = set()
        self._admitting = 0
        """Requests that are neither turned down nor a stream yet."""
        self._stream_left = asyncio.Event()
        self._since = asyncio.get_running_loop().time()

    # Requests

    async def admit(self, asked: ChatRequest, access: Access) -> Stream:
        """A stream for a request that passes protocol §8. Enter it at once: it holds a reservation."""
        self._admitting += 1
        try:
            return await self._admit(asked, access)
        finally:
            self._admitting -= 1
            self._stream_left.set()

    async def _admit(self, asked: ChatRequest, access: Access) -> Stream:
        self._refuse_while_stopping()
        self._refuse_while_failing()
        if asked.n > 1:
            raise Refusal("invalid_request", "`n`: this host makes one choice a request.", param="n")
        _refuse_other_than_text(asked.body["messages"])
        facts = await self._look(access, asked.job_id)
        facts = replace(await self._remember(facts), model=asked.model)
        _require(admission.JOB + admission.TERMS, facts)
        account = await self._open(facts.known, early=facts.early)
        if asked.receipt is not None:
            await self._receive(account, asked.receipt)
        await self._refuse_used_up(account, facts)
        order = await self._draw_up(asked, account)
        await self._reserve(order, account, facts)
        return Stream(order, account, self._engine, self, self._config.receipt_timeout)

    async def identify(self, access: Access) -> JobId:
        """The job whose signer this bearer is of."""
        facts = await self._look(access)
        _require(admission.OWNING, facts)
        return facts.known.id

    async def view(self, job_id: JobId, access: Access) -> dict[str, Any]:
        """What the host knows of the bearer's job, as it goes over the wire."""
        facts = await self._look(access, job_id, named_in="path")
        _require(admission.OWNING, facts)
        job = facts.newest or facts.known
        account = self._accounts.get(job_id)
        if account is not None:
            meter = account.meter
            return _view(job, meter.counted, meter.acknowledged, account.stored, ended=account.ended)
        if (elsewhere := await self.elsewhere(job_id)) is not None:
            raise elsewhere
        row = await self._ledger.job(job_id)
        if row is not None:
            return _view(job, row.counted, row.acknowledged, row.receipted, ended=row.ending or row.closed)
        return _view(job, job.settled, NOTHING, None, ended=False)

    async def _look(
        self,
        access: Access,
        named: JobId | None = None,
        checks: Iterable[Check] = admission.ASKING,
        *,
        named_in: str = "body",
    ) -> Facts:
        """Who asks, and for which job as the chain has it; the latter only for a bearer that may be good."""
        facts = Facts(
            offer=self.offer,
            now=await self._lookout.now(),
            authorization=access.authorization,
            secure=access.secure,
            named_job=named,
            named_in=named_in,
        )
        _require(checks, facts)
        assert facts.bearer is not None
        sight = await self._lookout.job(facts.bearer.job_id)
        return self._with_sight(facts, sight)

    def _with_sight(self, facts: Facts, sight: Sight) -> Facts:
        """With the job as it lies deep, or as it is now, where the host serves earlier."""
        early = self._config.early and sight.job is None
        return replace(
            facts,
            job=sight.newest if early else sight.job,
            early=early,
            newest=sight.newest,
            now=sight.now,
            depth=self._lookout.depth,
        )

    async def _remember(self, facts: Facts) -> Facts:
        """What the ledger knows of the job and its signer, unless the job is being served already."""
        if facts.job is None:
            return facts
        account = self._accounts.get(facts.job.id)
        if account is not None:
            return replace(facts, ended=account.ended)
        row = await self._ledger.job(facts.job.id)
        served = await self._ledger.job_of(facts.job.signer)
        # The id may have been another job's, on a branch of the chain that is gone.
        ended = row is not None and row.job.is_same_as(facts.job) and (row.ending or row.closed)
        return replace(facts, ended=ended, served=served)

    async def _open(self, job: Job, *, early: bool = False) -> Account:
        """The account of a job, as the chain tells the job now. `early`: it does not lie deep."""
        account = self._accounts.get(job.id)
        if account is not None and not account.job.is_same_as(job):
            self._lose(account, JOB_UNCONFIRMED)
            account = None
        if account is None:
            return await self._open_once(job, early=early)
        await self._refresh(account, job, deep=not early)
        return account

    async def _open_once(self, job: Job, *, early: bool) -> Account:
        """Requests that come at the same time share one account: each would be a new epoch of the job."""
        opening = self._opening.get(job.id)
        if opening is None:
            opening = self._opening[job.id] = self._spawn(self._take_up(job, early=early))
            opening.add_done_callback(lambda _: self._opening.pop(job.id))
        return await asyncio.shield(opening)

    async def _take_up(self, job: Job, *, early: bool) -> Account:
        lapses = self._lapses
        before = await self._ledger.job(job.id)
        if before is not None and not before.job.is_same_as(job):
            if early:
                raise Refusal("job_unconfirmed", "The job's id was another one's a moment ago.")
            _tell_replaced(before)
        found = await asyncio.to_thread(self._counter.found, job.id)
        row = await self._ledger.serve(job, found, deep=not early)
        positions = await self._ledger.positions(job.id)
        if self._lapses != lapses:
            raise LedgerError(f"job {job.id} may have been taken over while it was taken up")
        slot = self._counter.open(job.id, row.epoch, floor=row.gross)
        asked = self.offer.asked(job)
        blind = _is_blind(before, found)
        account = Account(
            *(job, row, slot, positions, self.offer.domain, self._lookout.clock, asked),
            blind=blind,
            early=early,
        )
        self._accounts[job.id] = account
        self._give_grace_to_lost(account)
        log.info("job.taken_up", job=job.id, epoch=row.epoch, blind=blind, early=early)
        return account

    async def elsewhere(self, job_id: JobId) -> Elsewhere | None:
        """Which other process serves a job; None: none does."""
        owner = await self._ledger.served_elsewhere(job_id)
        return None if owner is None else Elsewhere(job_id, owner.address, owner.seconds)

    async def _refresh(self, account: Account, job: Job, *, deep: bool = True) -> None:
        if job != account.job:
            await self._ledger.adopt(job)
            account.refresh(job)
        if deep:
            account.confirm()

    async def _refuse_used_up(self, account: Account, facts: Facts) -> None:
        """A job that cannot go on is ended now, not at the end of the grace under a later session."""
        refusal = first_refusal(admission.LIFE, replace(facts, used_up=account.used_up))
        if refusal is not None:
            await asyncio.shield(self._spawn(self._end(account)))
            raise refusal

    async def _draw_up(self, asked: ChatRequest, account: Account) -> Order:
        """What the engine is to be asked for, with its count of the prompt."""
        model = self.offer.model(asked.model)
        assert model is not None
        prompt_hash = asked.prompt_hash()
        body = {**asked.body, "model": model.name}
        prompt_tokens = await self._engine.count_prompt(body)
        wanted = asked.max_tokens or self._default_max_tokens(prompt_tokens)
        # What comes in one piece cannot go on after a top-up, so it is no longer than the deposit pays for.
        max_tokens = wanted if asked.stream else min(wanted, account.affordable(prompt_tokens))
        return Order(
            request=asked.request or RequestId(secrets.token_hex(16)),
            prompt_hash=prompt_hash,
            body=body,
            model=model.name,
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            streamed=asked.stream,
            include_usage=asked.include_usage,
            capped=max_tokens < wanted,
        )

    async def _reserve(self, order: Order, account: Account, facts: Facts) -> None:
        """The last checks; what they let in is reserved."""
        fit = await self._reserve_prompt(account, order.prompt_tokens)
        # From here on nothing else runs until the stream is there, so what is checked holds.
        try:
            self._refuse_while_stopping()
            _refuse_lapsed(account)
            if account.knows(order.request):
                raise Refusal("invalid_request", "The request id was used before.", param="tally.request")
            facts = replace(
                facts,
                ended=account.ended,
                fit=fit,
                prompt_tokens=order.prompt_tokens,
                max_tokens=order.max_tokens,
                room=account.room(),
                streamed=order.streamed,
                context=self._engine.context,
                totals=account.meter.to_sign(order.prompt_tokens),
            )
            _require((admission.ended, *admission.COST), facts)
        except Refusal:
            if fit is Fit.FITS:
                account.meter.release(order.prompt_tokens)
            raise

    async def _reserve_prompt(self, account: Account, prompt_tokens: int) -> Fit:
        """A prompt that only lacks what others have used up waits for their receipts, as a stream would."""
        fit = account.meter.reserve(prompt_tokens)
        if fit is not Fit.NEEDS_RECEIPT or not account.meter.fits_credit(prompt_tokens):
            return fit
        await self.forgive(account)
        self._refuse_while_stopping()
        place = account.queue_prompt(prompt_tokens)
        account.wake()
        try:
            await asyncio.wait([place], timeout=self._config.receipt_timeout)
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                account.meter.release(prompt_tokens)
            raise
        finally:
            place.cancel()
        return fit if place.cancelled() else Fit.FITS

    def _default_max_tokens(self, prompt_tokens: int) -> int:
        """For a request that names no number: the host's default, or what the context has left."""
        if self._engine.context is None:
            return self._config.max_tokens
        return max(1, min(self._config.max_tokens, self._engine.context - prompt_tokens))

    def _refuse_while_stopping(self) -> None:
        if self.stopping:
            raise Refusal("node_stopping")

    def _refuse_while_failing(self) -> None:
        """No new work while what comes of it could not be written down."""
        if self._ledger.failure is not None or self._counter.failure is not None:
            raise Refusal("ledger_unavailable")

    # Receipts

    async def receipt(self, receipt: Receipt, access: Access) -> Answer:
        """Takes a receipt (protocol §5). A bearer that ran out does not keep a payer from signing."""
        facts = await self._look(access, receipt.job_id, admission.HOLDING, named_in="receipt")
        _require((*admission.OWNING, admission.closed), facts)
        if admission.access_expired(facts) is not None:
            # Whoever found an old bearer has no receipt of the signer's, whose answer may tell request ids.
            check_own(receipt, self.offer.domain, facts.known.signer)
        return await self._receive(await self._open(facts.known, early=facts.early), receipt)

    async def _receive(self, account: Account, receipt: Receipt) -> Answer:
        # A caller that goes away must not part what is on the disk from what the account knows.
        return await asyncio.shield(self._spawn(self._receive_in_turn(account, receipt)))

    async def _receive_in_turn(self, account: Account, receipt: Receipt) -> Answer:
        if not account.job.receipted:
            raise Refusal("receipt_not_needed")
        async with account.receiving:
            judgement = account.judge(receipt)
            if judgement is None:
                assert account.stored is not None
                return Answer(self._ack(account.stored), account.stored)
            due = account.due(judgement)
            gross = account.meter.gross
            acknowledged = judgement.acknowledged
            with self._owning(account):
                await self._ledger.store_receipt(
                    receipt, acknowledged=acknowledged, gross=gross, due=due, epoch=account.epoch
                )
            account.take(receipt, judgement)
        self._tell_receipted(receipt, due=due)
        return Answer(self._ack(receipt))

    def _tell_receipted(self, receipt: Receipt, *, due: bool) -> None:
        tell = log.info if due else log.debug
        tell(
            "checkpoint.receipted",
            job=receipt.job_id,
            tokens=receipt.totals.tokens,
            prompt_tokens=receipt.totals.prompt_tokens,
        )
        if due:
            self._poke()

    def _ack(self, receipt: Receipt) -> Ack:
        digest = self.offer.domain.receipt(receipt.job_id, receipt.totals, receipt.transcript)
        signature = proof.sign(digest, self._key) if self._key else None
        return Ack(receipt.job_id, receipt.totals, receipt.transcript, signature)

    # Ends

    async def end(self, job_id: JobId, receipt: Receipt | None, end: bytes | None) -> dict[str, Any]:
        """Ends a session for its signer, who shows by the last receipt or by `End` that it is the one.

        The intent is in the ledger when this returns; what the host then knows of the job is the answer.
        """
        facts = await self._facts_to_end(job_id)
        job = facts.known
        if end is not None:
            _check_end(self.offer.domain, job, end)
        elif receipt is not None:
            check_signer(receipt, self.offer.domain, job.signer)
        account = await self._open(job, early=facts.early)
        if receipt is not None:
            answer = await self._receive(account, receipt)
            if answer.stored is not None and answer.stored.transcript != receipt.transcript:
                stored = wire.receipt_out(answer.stored)
                raise Refusal("receipt_out_of_order", "The receipt is not the last one.", stored=stored)
        await self._end(account)
        meter = account.meter
        return _view(account.job, meter.counted, meter.acknowledged, account.stored, ended=True)

    async def _facts_to_end(self, job_id: JobId) -> Facts:
        sight = await self._lookout.job(job_id)
        facts = self._with_sight(Facts(offer=self.offer, now=sight.now), sight)
        _require(admission.ENDING, facts)
        return facts

    async def _end(self, account: Account) -> None:
        """No more is delivered from here on; once that is on the disk, settlement sees to the rest."""
        account.ended = True
        account.cut(CANCELLED)
        with self._noting_failure(account):
            await self._note_end(account)

    async def drain(self, job_id: JobId) -> Totals | None:
        """Ends the streams of a job that the chain is closing; its gross count, if it is served here.

        What a dead process had counted beside this one is brought into the ledger.
        """
        account = self._accounts.get(job_id)
        if account is None:
            if found := await asyncio.to_thread(self._counter.found, job_id):
                await self._ledger.recover(found)
            return None
        account.cut(CANCELLED)
        return account.meter.gross

    def forget(self, job_id: JobId) -> None:
        """The job is closed on the chain, N blocks deep."""
        account = self._accounts.pop(job_id, None)
        if account is not None:
            account.ended = True
            account.cut(CANCELLED)
        self._counter.release(job_id)

    def lapse(self) -> None:
        """Another process may serve what this one did: no token goes out of it, and no count is relied on."""
        self._lapses += 1
        for account in list(self._accounts.values()):
            self._lose(account)

    def _lose(self, account: Account, reason: str = LEDGER_UNAVAILABLE) -> None:
        account.lapsed = True
        account.cut(reason)
        if self._accounts.get(account.job.id) is account:
            del self._accounts[account.job.id]

    async def stop(self, seconds: float) -> None:
        """Refuses what is new, ends what runs, and waits for that, `seconds` at most."""
        self.stopping = True
        for account in self._accounts.values():
            account.cut(NODE_STOPPING)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.streams or self._admitting:
                    self._stream_left.clear()
                    await self._stream_left.wait()
        while self._writing:
            await asyncio.wait(self._writing)
        await self._give_up()

    async def _give_up(self) -> None:
        """What this process counted is in the ledger, for whoever serves its jobs next."""
        counting = [self._note_count(account, due=False) for account in self._accounts.values()]
        for failure in await asyncio.gather(*counting, return_exceptions=True):
            if isinstance(failure, BaseException):
                log.warning("desk.count_not_given_up", error=str(failure), meaning="it is in the slot alone")

    @property
    def streams(self) -> int:
        """How many replies are under way."""
        return sum(len(account.streams) for account in self._accounts.values())

    # What streams ask (stream.Desk)

    async def look_again(self, account: Account) -> None:
        try:
            sight = await self._lookout.job(account.job.id)
        except Refusal as refusal:
            log.warning("job.not_seen", job=account.job.id, error=refusal.detail)
            return
        if sight.job is not None and sight.job.is_same_as(account.job):
            await self._refresh(account, sight.job)

    async def checkpoint(self, account: Account) -> None:
        account.crossed = False
        if account.meter.attested:
            with self._noting_failure(account):
                await self._note_count(account, due=True)
            self._poke()

    async def forgive(self, account: Account) -> None:
        async with account.receiving:
            totals = account.abandoned()
            if not account.forgive():
                return
            with self._noting_failure(account):
                await self._note_written_off(account)
        _tell_written_off("tokens.written_off", account, totals)

    def left(self, stream: Stream) -> None:
        account, request = stream.account, stream.order.request
        if stream.end is None or stream.end.reason == CANCELLED:
            account.gone(request)
        self._stream_left.set()
        if account.meter.attested:
            self._in_background(self._note_last_count(account))
        elif account.open_of(request) != NOTHING:
            self._write_off_after(self._config.grace, account, lambda: account.open_of(request))

    async def _note_last_count(self, account: Account) -> None:
        with self._noting_failure(account):
            await self._note_count(account, due=False)

    async def _note_count(self, account: Account, *, due: bool) -> None:
        await self._ledger.checkpoint(account.job.id, account.meter.gross, due=due, epoch=account.epoch)

    async def _note_written_off(self, account: Account) -> None:
        await self._ledger.write_off(account.job.id, account.meter.written_off, epoch=account.epoch)

    async def _note_end(self, account: Account) -> None:
        await self._ledger.end(account.job.id, account.meter.gross, epoch=account.epoch)
        log.info("session.ended", job=account.job.id, tokens=account.meter.counted.tokens)
        self._poke()

    # What the ledger did not take

    @contextmanager
    def _owning(self, account: Account) -> Iterator[None]:
        """For a write that only the job's owner makes: who is told that another is, serves it no more."""
        try:
            yield
        except Elsewhere:
            self._lose(account)
            raise

    @contextmanager
    def _noting_failure(self, account: Account) -> Iterator[None]:
        """What is known of the job is written once the ledger takes it: nobody may ask for it again."""
        try:
            with self._owning(account):
                yield
        except (Elsewhere, Superseded):
            raise
        except LedgerError:
            if not account.behind:
                account.behind = True
                self._in_background(self._catch_up(account))
            raise

    async def _catch_up(self, account: Account) -> None:
        """Also when the lease ran out meanwhile, unless the job was taken up since."""
        while account.behind and not self.stopping:
            await asyncio.sleep(CATCH_UP_EVERY)
            try:
                await self._note_all(account)
                account.behind = False
            except (Elsewhere, Superseded):
                return
            except LedgerError as error:
                log.debug("desk.still_behind", job=account.job.id, error=str(error))

    async def _note_all(self, account: Account) -> None:
        await self._note_count(account, due=account.meter.attested)
        await self._note_written_off(account)
        if account.ended:
            await self._note_end(account)

    # What nobody signs for

    def _give_grace_to_lost(self, account: Account) -> None:
        """What was delivered before this start and not signed for may still be, until the grace is over."""
        if not account.meter.attested and account.open_of_lost() != NOTHING:
            over = self._since + self._config.grace - asyncio.get_running_loop().time()
            self._write_off_after(max(0.0, over), account, account.open_of_lost)

    def _write_off_after(self, seconds: float, account: Account, unsigned: Callable[[], Totals]) -> None:
        asyncio.get_running_loop().call_later(seconds, self._write_off_now, account, unsigned)

    def _write_off_now(self, account: Account, unsigned: Callable[[], Totals]) -> None:
        if not self.stopping:  # the next start gives its own grace
            self._in_background(self._write_off(account, unsigned))

    async def _write_off(self, account: Account, unsigned: Callable[[], Totals]) -> None:
        """Takes what is unsigned off the count; a job that has cost its one credit is completed instead."""
        async with account.receiving:
            totals = unsigned()
            if totals == NOTHING or account.ended or account.lapsed:
                return
            within_credit = account.write_off(totals)
            if within_credit:
                with self._noting_failure(account):
                    await self._note_written_off(account)
        event = "tokens.written_off" if within_credit else "tokens.unsigned"
        _tell_written_off(event, account, totals)
        if not within_credit:
            await self._end(account)

    # Tasks

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Runs on whether or not somebody waits for it; the node waits before it closes the ledger."""
        task = asyncio.create_task(work)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return task

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        self._spawn(work).add_done_callback(_tell_failure)


def _is_blind(before: JobRow | None, found: Iterable[Record]) -> bool:
    """True if a job was served by a process that did not give it up, and whose slot is not to be found."""
    if before is None or before.owner is None:
        return False
    return before.epoch not in {record.epoch for record in found}


def _refuse_lapsed(account: Account) -> None:
    if account.lapsed:
        raise Refusal("ledger_unavailable")


def _tell_replaced(before: JobRow) -> None:
    log.error(
        "job.replaced",
        job=before.job.id,
        signer=before.job.signer,
        tokens=before.counted.tokens,
        meaning="a reorganisation took this job away, and gave its id to another one",
    )


def _tell_written_off(event: str, account: Account, totals: Totals) -> None:
    log.warning(event, job=account.job.id, tokens=totals.tokens, prompt_tokens=totals.prompt_tokens)


def _tell_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        fault = None if isinstance(error, TallystickError) else error
        log.error("desk.write_failed", error=str(error), exc_info=fault)


def _require(checks: Iterable[Check], facts: Facts) -> None:
    refusal = first_refusal(checks, facts)
    if refusal is not None:
        raise refusal


def _refuse_other_than_text(messages: list[dict[str, Any]]) -> None:
    """Engines refuse what they cannot read in ways that look like a fault of theirs, so it is done here."""
    for at, message in enumerate(messages):
        content = message.get("content")
        parts = content if isinstance(content, list) else []
        kinds = [part.get("type") if isinstance(part, dict) else part for part in parts]
        if other := [kind for kind in kinds if kind != "text"]:
            raise Refusal(
                "invalid_request",
                f"`messages[{at}].content`: this host reads parts of type 'text', not {other[0]!r:.40}.",
                param="messages",
            )


def _check_end(domain: proof.Domain, job: Job, signature: bytes) -> None:
    """Refusal `end_forged` unless the job's signer signed its end."""
    try:
        signer = proof.recover(domain.end(job.id), signature)
    except ReceiptError as error:
        raise Refusal("end_forged", f"The signature over the end does not hold: {error}.") from error
    if signer != job.signer:
        raise Refusal("end_forged", f"The end was signed by {signer}, not by the job's signer.")


def _view(
    job: Job, counted: Totals, acknowledged: Totals, receipt: Receipt | None, *, ended: bool
) -> dict[str, Any]:
    """A job as `GET /v1/jobs/{id}` shows it. Money in base units, as text."""
    return {
        "job_id": job.id,
        "status": job.status.name.lower(),
        "ended": ended,
        "deposit": str(job.deposit),
        "left": str(max(0, job.deposit - pricing.owed(counted, job.prices))),
        "counted": _totals_out(counted),
        "acknowledged": _totals_out(acknowledged),
        "receipted": _totals_out(receipt.totals if receipt else NOTHING),
        "settled": _totals_out(job.settled),
        "receipt": receipt and wire.receipt_out(receipt),
    }


def _totals_out(totals: Totals) -> dict[str, int]:
    return {"prompt_tokens": totals.prompt_tokens, "tokens": totals.tokens}
