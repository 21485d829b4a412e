"""The jobs that this process serves, an Account each: what is written down of them before anybody is told.

    taken up -> counted, receipted, written off -> ended -> forgotten
                                                   lost: another process may serve it

What the ledger does not take is written once it does. Knows no bearer and no request: who may do what is for
desk.py to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import structlog

from tallystick import proof, wire
from tallystick.account import Account
from tallystick.admission import Offer
from tallystick.config import HostConfig
from tallystick.counter import Counter, Record
from tallystick.errors import Elsewhere, LedgerError, Refusal, Superseded, TallystickError
from tallystick.exposure import Exposure
from tallystick.ledger import Ledger
from tallystick.lookout import Lookout
from tallystick.stream import (
    CANCELLED,
    JOB_UNCONFIRMED,
    LEDGER_UNAVAILABLE,
    NODE_STOPPING,
    RECEIPT_DUE,
    Stream,
)
from tallystick.tables import JobRow
from tallystick.types import Ack, Job, JobId, Receipt, Totals
from tallystick.work import Work

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


class Accounts:
    """The accounts of one process. What streams ask of the node is asked here (stream.Desk).

    A job that another process of the host serves is Elsewhere: that is to be asked.
    """

    def __init__(
        self,
        config: HostConfig,
        offer: Offer,
        lookout: Lookout,
        ledger: Ledger,
        counter: Counter,
        poke: Callable[[], None],
    ) -> None:
        """`poke` tells settlement that there may be something to settle."""
        self.stopping = False
        self.stream_left = asyncio.Event()
        """A reply is over."""
        self.work = Work()
        self._config = config
        self._offer = offer
        self._lookout = lookout
        self._ledger = ledger
        self._counter = counter
        self._poke = poke
        self._key = config.host_private_key.reveal() if config.host_private_key else None
        self._served: dict[JobId, Account] = {}
        self._exposure = Exposure(offer.limits)
        self._opening: dict[JobId, asyncio.Task[Account]] = {}
        self._lapses = 0
        """How often this process may have lost all that it served."""
        self._writing: set[asyncio.Task[Any]] = set()
        self._since = asyncio.get_running_loop().time()

    def get(self, job_id: JobId) -> Account | None:
        """The account of a job; None: this process does not serve it."""
        return self._served.get(job_id)

    @property
    def streams(self) -> int:
        """How many replies are under way."""
        return sum(len(account.streams) for account in self._served.values())

    @property
    def jobs(self) -> int:
        """How many jobs this process serves."""
        return len(self._served)

    @property
    def tokens(self) -> Totals:
        """All that this process has counted since it started."""
        streams = (stream for account in self._served.values() for stream in account.streams)
        return sum((stream.sent for stream in streams), self.work.tokens)

    def payer_exposed(self, account: Account) -> bool:
        """True if one more reply on a job could take its payer's jobs beyond what one payer is lent."""
        return self._exposure.payer_exposed(account, self._served.values())

    def host_exposed(self, account: Account) -> bool:
        """True if one more reply on a job could take all jobs beyond what the host lends."""
        return self._exposure.host_exposed(account, self._served.values())

    # Taking up

    async def open(self, job: Job, *, early: bool = False) -> Account:
        """The account of a job, as the chain tells the job now. `early`: it does not lie deep."""
        account = self._served.get(job.id)
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
        asked = self._offer.asked(job)
        blind = _is_blind(before, found)
        account = Account(
            *(job, row, slot, positions, self._offer.domain, self._lookout.clock, asked),
            blind=blind,
            early=early,
        )
        self._served[job.id] = account
        self._give_grace_to_lost(account)
        log.info("job.taken_up", job=job.id, epoch=row.epoch, blind=blind, early=early)
        return account

    async def elsewhere(self, job_id: JobId) -> Elsewhere | None:
        """Which other process serves a job; None: none does."""
        owner = await self._ledger.served_elsewhere(job_id)
        return None if owner is None else Elsewhere(job_id, owner.address, owner.seconds)

    async def _refresh(self, account: Account, job: Job, *, deep: bool = True) -> None:
        if job != account.job:
            if not _only_settled(account.job, job):
                await self._ledger.adopt(job)
            account.refresh(job)
        if deep:
            account.confirm()

    # Receipts

    async def receive(self, account: Account, receipt: Receipt) -> Answer:
        """Takes a receipt (protocol §5), and says so once it is on the disk."""
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
            with self._owning(account):
                await self._ledger.store_receipt(
                    receipt,
                    acknowledged=judgement.acknowledged,
                    gross=account.meter.gross,
                    due=due,
                    epoch=account.epoch,
                    check=partial(account.check_signer, receipt),
                )
            account.take(receipt, judgement)
        self._tell_receipted(receipt, due=due)
        return Answer(self._ack(receipt))

    def _tell_receipted(self, receipt: Receipt, *, due: bool) -> None:
        self.work.receipts += 1
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
        signature = None
        if self._key is not None:
            digest = self._offer.domain.receipt(receipt.job_id, receipt.totals, receipt.transcript)
            signature = proof.sign(digest, self._key)
        return Ack(receipt.job_id, receipt.totals, receipt.transcript, signature)

    # Ends

    async def end(self, account: Account) -> None:
        """No more is delivered from here on; once that is on the disk, settlement sees to the rest."""
        await asyncio.shield(self._spawn(self._end(account)))

    async def _end(self, account: Account) -> None:
        account.ended = True
        account.cut(CANCELLED)
        with self._noting_failure(account):
            await self._note_end(account)

    async def drain(self, job_id: JobId) -> Totals | None:
        """Ends the streams of a job that the chain is closing; its gross count, if it is served here.

        Whatever was known of the job lets no request in any more: nobody would pay. What a dead process had
        counted beside this one is brought into the ledger.
        """
        self._lookout.forget(job_id)
        account = self._served.get(job_id)
        if account is None:
            if found := await asyncio.to_thread(self._counter.found, job_id):
                await self._ledger.recover(found)
            return None
        account.ended = True
        account.cut(CANCELLED)
        return account.meter.gross

    def forget(self, job_id: JobId) -> None:
        """The job is closed on the chain, N blocks deep."""
        account = self._served.pop(job_id, None)
        if account is not None:
            account.ended = True
            account.cut(CANCELLED)
            self._exposure.close(account)
        self._counter.release(job_id)

    def lapse(self) -> None:
        """Another process may serve what this one did: no token goes out of it, and no count is relied on."""
        self._lapses += 1
        for account in list(self._served.values()):
            self._lose(account)

    def _lose(self, account: Account, reason: str = LEDGER_UNAVAILABLE) -> None:
        account.lapsed = True
        account.cut(reason)
        if self._served.get(account.job.id) is account:
            del self._served[account.job.id]

    def stop(self) -> None:
        """Ends what runs: no grace is given from here on, as the next start gives its own."""
        self.stopping = True
        for account in self._served.values():
            account.cut(NODE_STOPPING)

    async def give_up(self) -> None:
        """What this process counted is in the ledger, for whoever serves its jobs next."""
        while self._writing:
            await asyncio.wait(self._writing)
        counting = [self._note_count(account, due=False) for account in self._served.values()]
        for failure in await asyncio.gather(*counting, return_exceptions=True):
            if isinstance(failure, BaseException):
                log.warning(
                    "accounts.count_not_given_up", error=str(failure), meaning="it is in the slot alone"
                )

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

    async def forgive(self, account: Account, *, cut: bool = False) -> None:
        async with account.receiving:
            totals = account.abandoned(cut=cut)
            if not account.forgive(cut=cut):
                return
            with self._noting_failure(account):
                await self._note_written_off(account)
        _tell_written_off("tokens.written_off", account, totals)

    def left(self, stream: Stream) -> None:
        account, request = stream.account, stream.order.request
        if stream.end is None or stream.end.reason == CANCELLED:
            account.gone(request)
        elif stream.end.reason == RECEIPT_DUE:
            account.unsigned_in_time(request)
            if account.line:
                self._in_background(self.forgive(account, cut=True))
        self.stream_left.set()
        self.work.reply(stream)
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
                log.debug("accounts.still_behind", job=account.job.id, error=str(error))

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
        if not self.stopping:
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


def _only_settled(before: Job, now: Job) -> bool:
    """True if nothing became of a job but a settlement, which is in the ledger as such."""
    return now == replace(before, settled=now.settled, owed=now.owed, fee=now.fee)


def _is_blind(before: JobRow | None, found: Iterable[Record]) -> bool:
    """True if a job was served by a process that did not give it up, and whose slot is not to be found."""
    if before is None or before.owner is None:
        return False
    return before.epoch not in {record.epoch for record in found}


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
        log.error("accounts.write_failed", error=str(error), exc_info=fault)
