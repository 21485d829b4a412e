"""What a host is owed, carried to the chain: receipted -> due -> submitted -> confirmed.

Works from the ledger alone (law 8): whatever is due and not in flight is compared with the chain,
simulated, and sent. So a restart needs no memory of what was under way, and doing anything twice is
harmless. A line is logged when what it says was seen (law 9). Knows no nonce and no fee: sender.py does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog

from tallystick import pricing, proof
from tallystick.chain import Block, Chain
from tallystick.contracts import Call, Claim, Skipped
from tallystick.errors import (
    AboveRate,
    ChainError,
    ContractError,
    Elsewhere,
    JobClosed,
    LedgerError,
    StaleCheckpoint,
)
from tallystick.ledger import Ledger
from tallystick.rows import DueRow
from tallystick.sender import Outcome, Report, Sender
from tallystick.standby import Standby
from tallystick.tables import Carried, JobRow
from tallystick.types import Address, Completion, Job, JobId, JobStatus, Standing, Totals
from tallystick.types import Settlement as Settled

POLL = 5.0
"""Seconds between looks at what is due; `poke` does not wait for them."""
SWEEP_EVERY = 15.0
"""Seconds between readings of all open jobs: a payer may have asked one to complete, or reclaimed it."""
BATCH = 50
"""Rows in one transaction: about a million gas, a small part of any chain's block."""
PATIENCE = (5.0, 600.0)
"""Seconds that a job waits after its claim failed: at first, doubled each time, and at most."""
DRAIN_PATIENCE = 30.0
"""Seconds that the process which serves a job has to end it in, once the chain is closing it."""
NOTHING = Totals()

Listener = Callable[[Settled | Completion], None]
Drain = Callable[[JobId], Awaitable[Totals | None]]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Ready:
    """A row that the chain would take now. `totals` are zero when it only completes."""

    asset: Address
    totals: Totals
    claim: Claim

    @property
    def carried(self) -> Carried:
        return Carried(self.claim.job_id, self.totals, self.claim.complete)


def ready(due: DueRow, job: Job) -> Ready | None:
    """The row for what is due, given the job in the latest block; None if that is settled already."""
    totals = affordable(due.totals, job)
    if totals.against(job.settled) is Standing.AHEAD:
        claim = Claim(job.id, totals.tokens, _proof(totals, due), due.complete)
        return Ready(job.asset, totals, claim)
    if not due.complete:
        return None
    # Equal: it pays nothing, so nobody has to have signed it, and still closes.
    equal = proof.attested_proof(job.settled.prompt_tokens)
    return Ready(job.asset, NOTHING, Claim(job.id, job.settled.tokens, equal, complete=True))


def affordable(totals: Totals, job: Job) -> Totals:
    """The totals, less the generated tokens that the deposit does not pay for."""
    prompt = Totals(totals.prompt_tokens, 0)
    return Totals(
        totals.prompt_tokens, min(totals.tokens, pricing.affordable(job.deposit, prompt, job.prices))
    )


def _proof(totals: Totals, due: DueRow) -> bytes:
    if due.receipt is None:
        return proof.attested_proof(totals.prompt_tokens)
    return proof.checkpoint_proof(totals.prompt_tokens, due.receipt)


class Settlement:
    """Settles for one host. `run` has to run beside its sender's, or `step` be called."""

    def __init__(
        self,
        ledger: Ledger,
        chain: Chain,
        sender: Sender,
        *,
        drain: Drain | None = None,
        poll: float = POLL,
        sweep_every: float = SWEEP_EVERY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`drain` ends what is being served of a job that is over, and returns its last gross count."""
        self._ledger = ledger
        self._chain = chain
        self._sender = sender
        self._drain = drain
        self._poll = poll
        self._sweep_every = sweep_every
        self._clock = clock
        self._sweep_at = clock()
        self._listeners: list[Listener] = []
        self._waiting: dict[JobId, tuple[float, float]] = {}
        """Jobs whose claim failed: until when they wait, and how long that is."""
        self._behind: dict[JobId, int] = {}
        """Jobs of which the chain shows less than was settled: the block at which that was first seen."""
        self._draining: dict[JobId, float] = {}
        """Jobs that other processes are to end: when that was first seen."""
        self._completed: list[Completion] = []
        self._told: set[tuple[str, JobId]] = set()
        self._woken = asyncio.Event()
        self._idle = asyncio.Event()
        self._trouble = ""
        self._standby = Standby(ledger, chain, self._end, self._pass_on)
        sender.listen(self._hear)

    def listen(self, listener: Listener) -> None:
        """Tells `listener` of each settlement and completion, once it is confirmed. It must not raise."""
        self._listeners.append(listener)

    def poke(self) -> None:
        """Something may be due now."""
        self._idle.clear()
        self._woken.set()

    async def idle(self) -> None:
        """Returns when nothing is due and nothing in flight, or what is cannot be settled at present."""
        await self._idle.wait()

    async def run(self) -> None:
        """Steps for ever, at once after `poke`, and goes on through failures of chain and ledger."""
        while True:
            self._woken.clear()
            try:
                await self.step()
                self._tell_trouble("")
            except (ChainError, LedgerError) as error:
                self._tell_trouble(str(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll):
                    await self._woken.wait()

    async def step(self) -> None:
        """Looks once at what is due, and now and then at all open jobs."""
        head = await self._chain.block()
        if not self._sender.leading:
            await self._standby.step(head)
        if not await self._sender.lead():
            self._idle.set()
            return
        if self._clock() >= self._sweep_at:
            await self._sweep(head)
            self._sweep_at = self._clock() + self._sweep_every
        await self._tell_lost()
        await self._settle(head)
        in_flight = await self._ledger.in_flight(self._sender.address)
        if self._sender.starving or not (in_flight or self._woken.is_set()):
            self._idle.set()

    # What is due

    async def _settle(self, head: Block) -> None:
        """Submits one transaction's worth of it."""
        if self._sender.starving:
            return
        due = await self._due(head.timestamp)
        over = [each for each in due if each.complete and not each.row.ending]
        for each in over:
            await self._end(each.row.job.id)
        if over:
            due = [each for each in await self._due(head.timestamp) if self._is_drained(each)]
        checked = [await self._checked(each, head) for each in due[:BATCH]]
        rows = [row for row in checked if row is not None]
        if rows:
            await self._submit(rows)
        if len(due) > BATCH:
            self._woken.set()

    async def _due(self, now: int) -> list[DueRow]:
        ours = [due for due in await self._ledger.due(now) if self._is_ours(due.row)]
        patient = self._clock()
        return [due for due in ours if self._waiting.get(due.row.job.id, (patient, 0.0))[0] <= patient]

    async def _end(self, job_id: JobId) -> None:
        """The chain says that the job is over: what is being served of it ends, and the ledger knows."""
        gross = await self._drain(job_id) if self._drain is not None else None
        try:
            await self._ledger.end(job_id, gross)
            self._draining.pop(job_id, None)
        except Elsewhere:
            self._draining.setdefault(job_id, self._clock())

    def _is_drained(self, due: DueRow) -> bool:
        """What another process is still serving of a job that goes, it brings into the ledger first."""
        since = self._draining.get(due.row.job.id)
        return due.row.ending or since is None or self._clock() - since >= DRAIN_PATIENCE

    async def _checked(self, due: DueRow, head: Block) -> Ready | None:
        """One job that the endpoint cannot tell about does not hold up the others."""
        try:
            return await self._check(due, head)
        except ChainError as error:
            self._refuse(due.row.job.id, str(error))
            return None

    async def _check(self, due: DueRow, head: Block) -> Ready | None:
        """The row if the chain would take it; otherwise what the chain says is brought into the ledger."""
        job = await self._chain.job(due.row.job.id)
        if job is None:
            self._refuse(due.row.job.id, "the job is not on the chain")
            return None
        if job.status is JobStatus.CLOSED:
            await self._close(due.row, head)
            return None
        row = ready(due, job)
        if row is None:
            await self._already_settled(due.row, job, head)
            return None
        return await self._simulate(row, due, head)

    async def _simulate(self, row: Ready, due: DueRow, head: Block) -> Ready | None:
        """The custom error decides (law 9: that something is settled already means only: do not send)."""
        try:
            await self._chain.simulate(self._call([row]), self._sender.address)
            if row.claim.complete and row.totals != NOTHING:
                # A batch leaves a bad row out without an error; by itself it would revert.
                claim = row.claim
                alone = self._chain.submit_checkpoint(claim.job_id, claim.tokens, claim.proof)
                await self._chain.simulate(alone, self._sender.address)
        except (JobClosed, StaleCheckpoint):
            self._wait(row.claim.job_id)  # it changed since it was read a moment ago
            return None
        except AboveRate as error:
            return self._within_rate(row, due, int(error.values["most"]))
        except ContractError as error:
            self._refuse(row.claim.job_id, str(error))
            return None
        return row

    def _within_rate(self, row: Ready, due: DueRow, most: int) -> Ready | None:
        """As much of an attested claim as its time has earned."""
        totals = Totals(row.totals.prompt_tokens, max(0, most - row.totals.prompt_tokens))
        if totals.against(due.row.settled) is not Standing.AHEAD or not due.complete:
            self._refuse(row.claim.job_id, f"its rate allows {most} tokens by now")
            return None
        return Ready(
            row.asset, totals, Claim(row.claim.job_id, totals.tokens, _proof(totals, due), complete=True)
        )

    def _call(self, rows: Sequence[Ready]) -> Call:
        [first, *others] = [row.claim for row in rows]
        if others or (first.complete and rows[0].totals != NOTHING):
            return self._chain.submit_checkpoints([first, *others])
        if first.complete:
            return self._chain.complete_session(first.job_id)
        return self._chain.submit_checkpoint(first.job_id, first.tokens, first.proof)

    async def _submit(self, rows: Sequence[Ready]) -> None:
        # Earnings are written once for each run of rows in one asset.
        rows = sorted(rows, key=lambda row: (row.asset, row.claim.job_id))
        try:
            await self._sender.submit(self._call(rows), "settle", [row.carried for row in rows])
        except ContractError as error:
            for row in rows:
                self._refuse(row.claim.job_id, str(error))

    def _refuse(self, job_id: JobId, reason: str) -> None:
        log.error("checkpoint.refused", job=job_id, reason=reason, again_in=self._wait(job_id))

    def _wait(self, job_id: JobId) -> float:
        least, most = PATIENCE
        pause = min(most, 2 * self._waiting[job_id][1]) if job_id in self._waiting else least
        self._waiting[job_id] = (self._clock() + pause, pause)
        return pause

    def _is_ours(self, row: JobRow) -> bool:
        """Only the job's host can settle it; the ledger may hold those of an earlier key."""
        ours = row.job.host == self._sender.address
        if not ours and ("not_ours", row.job.id) not in self._told:
            self._told.add(("not_ours", row.job.id))
            log.error("settlement.not_ours", job=row.job.id, host=row.job.host, key=self._sender.address)
        return ours

    # What the chain says

    async def _sweep(self, head: Block) -> None:
        """Compares every open job with the chain."""
        in_flight = {
            carried.job_id
            for transaction in await self._ledger.in_flight(self._sender.address)
            for carried in transaction.draft.carried
        }
        for row in await self._ledger.open_jobs():
            if row.job.id not in in_flight and self._is_ours(row):
                try:
                    await self._compare(row, head)
                except ChainError as error:
                    log.warning("settlement.job_unread", job=row.job.id, error=str(error))

    async def _compare(self, row: JobRow, head: Block) -> None:
        job = await self._chain.job(row.job.id)
        if job is None:
            if ("vanished", row.job.id) not in self._told:
                self._told.add(("vanished", row.job.id))
                log.error("job.vanished", job=row.job.id, meaning="a reorganised chain does not have it")
            return
        if job.status is JobStatus.CLOSED:
            await self._close(row, head)
            return
        if not job.settled.covers(row.settled):
            await self._take_back(row, job, head)
        elif job.settled != row.confirmed:
            await self._witness(job.id, head)
        if job != row.job:
            await self._ledger.adopt(job)

    async def _take_back(self, row: JobRow, job: Job, head: Block) -> None:
        """The chain shows less than it did; it may be the endpoint that lags, which gets N blocks."""
        since = self._behind.setdefault(job.id, head.number)
        if head.number - since < self._chain.deployment.confirmations:
            return
        del self._behind[job.id]
        await self._ledger.unsettled(job.id, job.settled)
        log.warning("checkpoint.reorganised", job=job.id, tokens=row.settled.tokens, left=job.settled.tokens)

    async def _already_settled(self, row: JobRow, job: Job, head: Block) -> None:
        log.info("checkpoint.already_settled", job=job.id, tokens=job.settled.tokens)
        await self._ledger.adopt(job)
        await self._witness(job.id, head)

    async def _witness(self, job_id: JobId, head: Block) -> None:
        """What others carried to the chain, or we before the ledger was lost, confirmed from its events."""
        deep = [each for each in await self._chain.settlements(job_id) if self._is_deep(each.block, head)]
        if deep and await self._ledger.witnessed(deep[-1]):
            self._tell_confirmed(deep[-1])

    async def _close(self, row: JobRow, head: Block) -> None:
        """It was closed, and not by a transaction of ours that is in flight: the payer reclaimed."""
        job_id = row.job.id
        completion = await self._chain.completion(job_id)
        if completion is None or not self._is_deep(completion.block, head):
            self._wait(job_id)
            return
        await self._end(job_id)
        await self._witness(job_id, head)
        if await self._ledger.closed(completion):
            self._tell_completed(completion)
        await self._tell_lost()

    def _is_deep(self, block: int, head: Block) -> bool:
        return head.number - block + 1 >= self._chain.deployment.confirmations

    # What became of transactions

    def _hear(self, report: Report) -> None:
        match report.outcome:
            case Outcome.SUBMITTED:
                self._tell_submitted(report)
            case Outcome.CONFIRMED:
                self._tell_events(report)
            case Outcome.REVERTED | Outcome.CANCELLED | Outcome.DISPLACED:
                for carried in report.transaction.draft.carried:
                    pause = self._wait(carried.job_id)
                    log.error(
                        "checkpoint.failed",
                        job=carried.job_id,
                        tokens=carried.totals.tokens,
                        how=report.outcome.value,
                        tx=report.tx,
                        again_in=pause,
                    )
            case Outcome.TAKEN_BACK:
                for carried in report.transaction.draft.carried:
                    tokens = carried.totals.tokens
                    log.warning("checkpoint.reorganised", job=carried.job_id, tokens=tokens, tx=report.tx)
            case Outcome.MINED:
                return
        self.poke()

    def _tell_submitted(self, report: Report) -> None:
        for carried in report.transaction.draft.carried:
            if carried.totals != NOTHING:
                tokens, prompts = carried.totals.tokens, carried.totals.prompt_tokens
                job_id = carried.job_id
                log.info(
                    "checkpoint.submitted", job=job_id, tokens=tokens, prompt_tokens=prompts, tx=report.tx
                )

    def _tell_events(self, report: Report) -> None:
        for event in report.events:
            match event:
                case Settled():
                    self._tell_confirmed(event)
                case Completion():
                    self._tell_completed(event)
                case Skipped():
                    self._refuse(event.job_id, str(event.error))

    def _tell_confirmed(self, settled: Settled) -> None:
        self._waiting.pop(settled.job_id, None)
        log.info(
            "checkpoint.confirmed",
            job=settled.job_id,
            tokens=settled.totals.tokens,
            prompt_tokens=settled.totals.prompt_tokens,
            host=settled.host_amount,
            treasury=settled.fee,
            tx=settled.tx,
        )
        self._standby.told(settled)
        self._pass_on(settled)

    def _tell_completed(self, completion: Completion) -> None:
        self._waiting.pop(completion.job_id, None)
        self._draining.pop(completion.job_id, None)
        self._completed.append(completion)
        log.info("session.completed", job=completion.job_id, refund=completion.refund, tx=completion.tx)
        self._pass_on(completion)

    def _pass_on(self, event: Settled | Completion) -> None:
        for listener in self._listeners:
            listener(event)

    async def _tell_lost(self) -> None:
        """What a closed job can no longer be claimed of, in base units of its asset."""
        while self._completed:
            completion = self._completed[-1]
            row = await self._ledger.job(completion.job_id)
            lost = pricing.owed(row.claimable, row.job.prices) - completion.owed if row else 0
            if row is not None and lost > 0:
                tokens, asset = row.claimable.tokens, row.job.asset
                log.error("checkpoint.lost", job=row.job.id, tokens=tokens, amount=lost, asset=asset)
            self._completed.remove(completion)

    def _tell_trouble(self, trouble: str) -> None:
        if trouble and not self._trouble:
            log.error("settlement.failing", error=trouble)
        elif self._trouble and not trouble:
            log.info("settlement.recovered")
        self._trouble = trouble
