"""Where a host is asked: requests, receipts, ends of sessions; who may ask, and for which job.

    request -> admit -> Stream: tokens, counted in the job's Account before they are sent
    receipt -> judged -> in the ledger -> acknowledged; settlement carries it to the chain
    end     -> in the ledger -> settlement settles the last checkpoint and completes the job

The rules are in admission.py, receipt.py and meter.py; this module finds out the facts for the first, and
accounts.py writes down what comes of it. Knows no socket: server.py and websocket.py speak for it.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from tallystick import admission, choices, pricing, proof, reply, wire
from tallystick.account import Account
from tallystick.accounts import Accounts, Answer
from tallystick.admission import Check, Facts, first_refusal
from tallystick.asking import ReplyRequest
from tallystick.config import HostConfig
from tallystick.counter import Counter
from tallystick.engine import Engine
from tallystick.errors import (
    ChainError,
    DatabaseFailed,
    Elsewhere,
    EngineError,
    LedgerError,
    ReceiptError,
    Refusal,
    TallystickError,
)
from tallystick.ledger import Ledger
from tallystick.lookout import Lookout, Sight
from tallystick.meter import Fit
from tallystick.quote import Promises
from tallystick.receipt import check_own, check_signer
from tallystick.stream import Order, Stream, engine_refusal
from tallystick.types import Job, JobId, Receipt, RequestId, Totals

NOTHING = Totals()

log = structlog.get_logger(__name__)


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
    if not isinstance(error, DatabaseFailed):  # which the ledger logs once, not with each request
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
        promises: Promises,
        engine: Engine,
        lookout: Lookout,
        ledger: Ledger,
        counter: Counter,
        poke: Callable[[], None],
    ) -> None:
        """`promises`: what the host offers. `poke` tells settlement that there may be something to settle."""
        self.offer = next(promises.standing(0))
        """As it is now."""
        self.accounts = Accounts(config, self.offer, lookout, ledger, counter, poke)
        """The jobs that this process serves."""
        self._promises = promises
        self._config = config
        self._engine = engine
        self._lookout = lookout
        self._ledger = ledger
        self._counter = counter
        self._admitting = 0
        """Requests that are neither turned down nor a stream yet."""

    @property
    def stopping(self) -> bool:
        """True once it takes nothing new."""
        return self.accounts.stopping

    # Requests

    async def admit(self, asked: ReplyRequest, access: Access) -> Stream:
        """A stream for a request that passes protocol §8. Enter it at once: it holds a reservation."""
        self._admitting += 1
        try:
            return await self._admit(asked, access)
        except TallystickError as error:
            self.accounts.work.refuse(error)
            raise
        finally:
            self._admitting -= 1
            self.accounts.stream_left.set()

    async def _admit(self, asked: ReplyRequest, access: Access) -> Stream:
        self._refuse_while_stopping()
        self._refuse_while_failing()
        facts = await self._look(access, asked.job_id, recall=True)
        facts = replace(await self._remember(facts), model=asked.model)
        _require(admission.JOB, facts)
        facts = self._on_good_terms(facts)
        account = await self.accounts.open(facts.known, early=facts.early)
        if asked.receipt is not None:
            await self.accounts.receive(account, asked.receipt)
        await self._refuse_used_up(account, facts)
        order = await self._draw_up(asked, account)
        if _is_short(account, order) and await self._is_topped_up(account):
            order = await self._draw_up(asked, account)
        await self._reserve(order, account, facts)
        return Stream(order, account, self._engine, self.accounts, self._config.receipt_timeout)

    async def _is_topped_up(self, account: Account) -> bool:
        """True if the chain has more of a deposit than was known."""
        known = account.meter.deposit
        await self.accounts.look_again(account)
        return account.meter.deposit > known

    def _on_good_terms(self, facts: Facts) -> Facts:
        """With the offer whose terms the job meets: the present one, or one of a quote that still holds."""
        refusals = []
        for offer in self._promises.standing(facts.now):
            on_its_terms = replace(facts, offer=offer)
            refusal = first_refusal(admission.TERMS, on_its_terms)
            if refusal is None:
                return on_its_terms
            refusals.append(refusal)
        raise refusals[0]

    async def identify(self, access: Access) -> JobId:
        """The job whose signer this bearer is of."""
        facts = await self._look(access, recall=True)
        _require(admission.OWNING, facts)
        return facts.known.id

    async def view(self, job_id: JobId, access: Access) -> dict[str, Any]:
        """What the host knows of the bearer's job, as it goes over the wire.

        What it knows of a job that had the id before a reorganisation is not told.
        """
        facts = await self._look(access, job_id, named_in="path")
        _require(admission.OWNING, facts)
        job = facts.newest or facts.known
        account = self.accounts.get(job_id)
        if account is not None and account.job.is_same_as(job):
            meter = account.meter
            return _view(job, meter.counted, meter.acknowledged, account.stored, ended=account.ended)
        if (elsewhere := await self.accounts.elsewhere(job_id)) is not None:
            raise elsewhere
        row = await self._ledger.job(job_id)
        if row is not None and row.job.is_same_as(job):
            return _view(job, row.counted, row.acknowledged, row.receipted, ended=row.ending or row.closed)
        return _view(job, job.settled, NOTHING, None, ended=False)

    async def _look(
        self,
        access: Access,
        named: JobId | None = None,
        checks: Iterable[Check] = admission.ASKING,
        *,
        named_in: str = "body",
        recall: bool = False,
    ) -> Facts:
        """Who asks, and for which job as the chain has it; the latter only for a bearer that may be good.

        `recall`: or as the chain had it some seconds ago, if that need not be waited for.
        """
        facts = Facts(
            offer=self.offer,
            now=0,
            authorization=access.authorization,
            secure=access.secure,
            named_job=named,
            named_in=named_in,
        )
        sight = self._lookout.recall(facts.bearer.job_id) if recall and facts.bearer else None
        _require(checks, replace(facts, now=sight.now if sight else await self._lookout.now()))
        assert facts.bearer is not None
        return self._with_sight(facts, sight or await self._lookout.job(facts.bearer.job_id))

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
        account = self.accounts.get(facts.job.id)
        if account is not None:
            return replace(facts, ended=account.ended)
        row = await self._ledger.job(facts.job.id)
        served = await self._ledger.job_of(facts.job.signer)
        # The id may have been another job's, on a branch of the chain that is gone.
        ended = row is not None and row.job.is_same_as(facts.job) and (row.ending or row.closed)
        return replace(facts, ended=ended, served=served)

    async def _refuse_used_up(self, account: Account, facts: Facts) -> None:
        """A job that cannot go on is ended now, not at the end of the grace under a later session."""
        refusal = first_refusal(admission.LIFE, replace(facts, used_up=account.used_up))
        if refusal is not None:
            await self.accounts.end(account)
            raise refusal

    async def _draw_up(self, asked: ReplyRequest, account: Account) -> Order:
        """What the engine is to be asked for, with its count of the prompt."""
        model = self.offer.model(asked.model)
        assert model is not None
        prompt_hash = asked.prompt_hash()
        bodies = choices.bodies({**asked.body, "model": model.name}, asked.prompts, asked.n)
        bound = self._bound(asked, bodies, account)
        # The choices of one prompt are neighbours, so each prompt is counted once.
        counted = [bound] if bound else [await self._engine.count_prompt(body) for body in bodies[:: asked.n]]
        prompt_tokens = sum(counted)
        wanted = asked.max_tokens or self._default_max_tokens(max(counted))
        # What comes in one piece cannot go on after a top-up, so it is no longer than the deposit pays for.
        affordable = account.affordable(prompt_tokens) // len(bodies)
        max_tokens = wanted if asked.stream else min(wanted, affordable)
        return Order(
            request=asked.request or RequestId(secrets.token_hex(16)),
            prompt_hash=prompt_hash,
            bodies=bodies,
            model=model.name,
            prompt_tokens=prompt_tokens,
            longest=max(counted),
            max_tokens=max_tokens,
            n=asked.n,
            streamed=asked.stream,
            include_usage=asked.include_usage,
            capped=max_tokens < wanted,
            form=reply.TEXT if asked.prompts else reply.CHAT,
            bounded=bound is not None,
        )

    def _bound(self, asked: ReplyRequest, bodies: tuple[dict[str, Any], ...], account: Account) -> int | None:
        """Tokens that a prompt has at most, where it makes no difference how many it has: that saves the
        engine a request, and the client its time.
        """
        if len(bodies) > 1 or (most := self._engine.most_prompt(bodies[0])) is None:
            return None
        wanted, context = asked.max_tokens or self._config.max_tokens, self._engine.context
        fits_context = context is None or most + wanted <= context
        affordable = asked.stream or wanted <= account.affordable(most)
        return most if fits_context and affordable and account.meter.is_small(most) else None

    async def _reserve(self, order: Order, account: Account, facts: Facts) -> None:
        """The last checks; what they let in is reserved."""
        fit = await self._reserve_prompt(account, order.prompt_tokens)
        # From here on nothing else runs until the stream is there, so what is checked holds.
        try:
            self._refuse_while_stopping()
            _refuse_lapsed(account)
            if account.knows(order.request):
                raise Refusal("request_used")
            facts = replace(
                facts,
                ended=account.ended,
                payer_exposed=self.accounts.payer_exposed(account),
                host_exposed=self.accounts.host_exposed(account),
                fit=fit,
                prompt_tokens=order.prompt_tokens,
                longest=order.longest,
                max_tokens=order.max_tokens,
                capped=order.capped,
                choices=len(order.bodies),
                room=account.room(),
                streamed=order.streamed,
                context=self._engine.context,
                totals=account.meter.to_sign(order.prompt_tokens),
            )
            _require((admission.ended, *admission.COST), facts)
        except Refusal:
            if fit is Fit.FITS:
                account.release(order.prompt_tokens)
            raise

    async def _reserve_prompt(self, account: Account, prompt_tokens: int) -> Fit:
        """A prompt that only lacks what others have used up waits for their receipts, as a stream would."""
        fit = account.line.reserve(prompt_tokens)
        if fit is not Fit.NEEDS_RECEIPT or not account.meter.fits_credit(prompt_tokens):
            return fit
        await self.accounts.forgive(account, cut=True)
        self._refuse_while_stopping()
        place = account.line.queue(prompt_tokens)
        account.wake()
        try:
            await self._turn(account, place)
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                account.release(prompt_tokens)
            raise
        finally:
            if place.cancel():
                account.wake()
        return fit if place.cancelled() else Fit.FITS

    async def _turn(self, account: Account, place: asyncio.Future[None]) -> None:
        """Until a place's turn comes; in vain once no receipt has come for `receipt_timeout`."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not place.done():
            left = max(began, account.receipted_at) + self._config.receipt_timeout - loop.time()
            if left <= 0:
                return
            await asyncio.wait([place], timeout=left)

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
        facts = await self._look(access, receipt.job_id, admission.HOLDING, named_in="receipt", recall=True)
        _require((*admission.OWNING, admission.closed), facts)
        if admission.access_expired(facts) is not None:
            # Whoever found an old bearer has no receipt of the signer's, whose answer may tell request ids.
            check_own(receipt, self.offer.domain, facts.known.signer)
        return await self.accounts.receive(await self.accounts.open(facts.known, early=facts.early), receipt)

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
        account = await self.accounts.open(job, early=facts.early)
        if receipt is not None:
            answer = await self.accounts.receive(account, receipt)
            if answer.stored is not None and answer.stored.transcript != receipt.transcript:
                stored = wire.receipt_out(answer.stored)
                raise Refusal("receipt_out_of_order", "The receipt is not the last one.", stored=stored)
        await self.accounts.end(account)
        meter = account.meter
        return _view(account.job, meter.counted, meter.acknowledged, account.stored, ended=True)

    async def _facts_to_end(self, job_id: JobId) -> Facts:
        sight = await self._lookout.job(job_id)
        facts = self._with_sight(Facts(offer=self.offer, now=sight.now), sight)
        _require(admission.ENDING, facts)
        return facts

    async def stop(self, seconds: float) -> None:
        """Refuses what is new, ends what runs, and waits for that, `seconds` at most."""
        self.accounts.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.accounts.streams or self._admitting:
                    self.accounts.stream_left.clear()
                    await self.accounts.stream_left.wait()
        await self.accounts.give_up()


def _is_short(account: Account, order: Order) -> bool:
    """True if the deposit makes a reply shorter than it was asked for, or keeps it from beginning."""
    return order.capped or account.affordable(order.prompt_tokens) < len(order.bodies)


def _refuse_lapsed(account: Account) -> None:
    if account.lapsed:
        raise Refusal("ledger_unavailable")


def _require(checks: Iterable[Check], facts: Facts) -> None:
    refusal = first_refusal(checks, facts)
    if refusal is not None:
        raise refusal


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
