"""What a host is owed, carried to the chain: receipted -> due -> submitted -> confirmed.

Works from the ledger alone (law 8): whatever is due and not in flight is compared with the chain,
simulated, and sent. So a restart needs no memory of what was under way, and doing anything twice is
harmless. A line is logged when what it says was seen (law 9). Knows no nonce and no fee: sender.py does.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog

from tallystick import gas, pricing
from tallystick.chain import Block, Chain
from tallystick.claims import NOTHING, Ready, affordable, earned, ready, samples
from tallystick.contracts import Call, Skipped
from tallystick.errors import ChainError, ContractError, Elsewhere, JobClosed, LedgerError, StaleCheckpoint
from tallystick.gas import Load
from tallystick.ledger import Ledger
from tallystick.pauses import Pauses
from tallystick.policy import Gas, Thrift, Unsettled, to_settle
from tallystick.rows import DueRow, Outstanding
from tallystick.sender import Outcome, Report, Sender
from tallystick.standby import Standby
from tallystick.tables import Carried
from tallystick.types import Address, Completion, Job, JobId, JobStatus, Totals
from tallystick.types import Settlement as Settled
from tallystick.watcher import SWEEP_EVERY, Watcher

POLL = 5.0
"""Seconds between looks at what is due; `poke` does not wait for them."""
PAGE = 500
"""Jobs that are read at a time."""
REST = 9
"""Times as long as it takes to list what is outstanding, nothing is listed after it: a host with very many
jobs spends a tenth of its time on that at most."""
MOST_UNDER_WAY = 16
"""Transactions at a time: of one account, a pool is bound to keep as many."""
SAMPLES = 11
"""Claims in the batch by which a rollup's fee for a row is found out."""
DRAIN_PATIENCE = 30.0
"""Seconds that the process which serves a job has to end it in, once the chain is closing it."""

Listener = Callable[[Settled | Completion], None]
Drain = Callable[[JobId], Awaitable[Totals | None]]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Left:
    """What was not settled when a process ended, or not seen N deep."""

    jobs: int
    in_flight: int
    """Of these, carried by a transaction that is sent."""
    owed: Mapping[Address, int]
    """By asset, in base units: the host's part of what is signed for and not confirmed. Nothing of a job
    that is only to be closed."""


class Settlement:
    """Settles for one host. `run` has to run beside its sender's, or `step` be called."""

    def __init__(
        self,
        ledger: Ledger,
        chain: Chain,
        sender: Sender,
        *,
        drain: Drain | None = None,
        thrift: Thrift | None = None,
        poll: float = POLL,
        sweep_every: float = SWEEP_EVERY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`drain` ends what is being served of a job that is over, and returns its last gross count.

        `thrift`: settle when it is worth it; without, each whole interval as soon as its receipt is there.
        """
        self._ledger = ledger
        self._chain = chain
        self._sender = sender
        self._drain = drain
        self._poll = poll
        self._thrift = thrift
        self._parting = False
        """The process is about to stop: nothing waits to be worth its gas."""
        self._last: frozenset[JobId] = frozenset()
        """Then: the jobs of which there was something to settle at the last look."""
        self._listing = 0.0
        """Seconds that it took to list what is outstanding."""
        self._clock = clock
        self._listeners: list[Listener] = []
        self._pauses = Pauses()
        self._draining: dict[JobId, float] = {}
        """Jobs that other processes are to end: when that was first seen."""
        self._completed: list[Completion] = []
        self._not_ours: set[JobId] = set()
        self._woken = asyncio.Event()
        self._idle = asyncio.Event()
        self._trouble = ""
        self._standby = Standby(ledger, chain, self._end, self._pass_on)
        self._watcher = Watcher(
            ledger, chain, sender.address, self._end, self._tell_found, sweep_every=sweep_every, clock=clock
        )
        sender.listen(self._hear)

    def listen(self, listener: Listener) -> None:
        """Tells `listener` of each settlement and completion, once it is confirmed. It must not raise."""
        self._listeners.append(listener)

    def watch(self, hear: Callable[[JobId], None]) -> None:
        """Tells `hear` of each job that something happened to on the chain, or that is gone from there."""
        self._watcher.listen(hear)

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
            await asyncio.sleep(min(self._poll, REST * self._listing))
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll):
                    await self._woken.wait()

    async def settle_all(self) -> None:
        """From now on all that is claimable of this process's jobs goes to the chain, whatever it is worth.

        What was refused is tried again every few seconds. Returns when nothing is left, or what is left
        cannot be paid for.
        """
        self._parting = True
        self._pauses.hurry()
        self.poke()
        await self.idle()

    async def step(self) -> None:
        """Looks once at the chain's news, and at what is due."""
        head = await self._chain.block()
        if not self._sender.leading:
            await self._standby.step(head)
        if not await self._sender.lead():
            self._idle.set()
            return
        await self._watcher.look(head)
        await self._tell_lost()
        await self._settle(head)
        if self._watcher.late:
            self._woken.set()
        under_way = await self._ledger.under_way(self._sender.address)
        busy = (
            under_way.transactions or self._woken.is_set() or any(each in self._pauses for each in self._last)
        )
        if self._sender.starving or not busy:
            self._idle.set()

    async def left(self, now: int) -> Left:
        """What this process leaves to the next one at the chain's time `now`. LedgerError."""
        here = self._sender.address
        found = await self._ledger.outstanding(now, whole=True)
        waiting = {each.job_id for each in found if each.host == here and not each.elsewhere}
        flying = (await self._ledger.under_way(here)).jobs if self._sender.leading else frozenset[JobId]()
        owed = Counter[Address]()
        these = sorted(waiting | flying)
        for at in range(0, len(these), PAGE):
            for row in await self._ledger.open_of(these[at : at + PAGE]):
                claimable = affordable(row.claimable, row.job)
                owed[row.job.asset] += pricing.split(row.confirmed, claimable, row.job.prices).host
        return Left(len(these), len(flying), owed)

    # What is due

    async def _settle(self, head: Block) -> None:
        """Submits what is to go now, in as few transactions as can be."""
        under_way = await self._ledger.under_way(self._sender.address)
        if self._sender.starving or under_way.transactions >= MOST_UNDER_WAY:
            return
        going = await self._going(head)
        left = MOST_UNDER_WAY - under_way.transactions
        load, rows = self._load(head), list[Ready]()
        for page in _pages(going):
            for row in await self._ready(page, head):
                if not load.take(row.room):
                    await self._submit(rows)
                    left -= 1
                    load, rows = self._load(head), []
                    load.take(row.room)
                if not left:
                    return  # what these became of is heard, and brings the next ones
                rows.append(row)
        if rows:
            await self._submit(rows)

    def _load(self, head: Block) -> Load:
        return Load(min(head.gas_limit, self._chain.deployment.gas_cap or head.gas_limit))

    async def _going(self, head: Block) -> list[Outstanding]:
        """The jobs that are settled now, those in one asset together: its earnings are then written once."""
        since = self._clock()
        outstanding = await self._ledger.outstanding(head.timestamp, whole=self._whole)
        now = self._clock()
        self._listing = now - since
        ours = [
            each for each in outstanding if self._is_ours(each) and not (self._parting and each.elsewhere)
        ]
        found = [each for each in ours if not self._pauses.holds(each, now)]
        if self._parting:
            self._last = frozenset(each.job_id for each in ours)
        elif self._thrift is not None and found:
            costs = await present_gas(self._chain, head)
            chosen = to_settle([unsettled(each) for each in found], self._thrift, costs)
            found = [each for each in found if each.job_id in chosen]
        return sorted(found, key=lambda each: (each.asset, each.job_id))

    @property
    def _whole(self) -> bool:
        """All that is claimable is looked at, and not only what whole intervals let the host claim."""
        return self._parting or self._thrift is not None

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

    async def _ready(self, page: Sequence[Outstanding], head: Block) -> list[Ready]:
        """The rows that the chain would take; otherwise what it says is brought into the ledger."""
        over = [each.job_id for each in page if each.complete and not each.ending]
        await asyncio.gather(*map(self._end, over))
        these = {each.job_id: at for at, each in enumerate(page)}
        due = await self._ledger.due(head.timestamp, these, whole=self._whole)
        due = [each for each in due if self._is_drained(each)]
        found = await self._chain.latest([each.row.job for each in due])
        checked = [await self._checked(each, found, head) for each in due]
        return sorted(filter(None, checked), key=lambda row: these[row.claim.job_id])

    async def _checked(self, due: DueRow, found: Mapping[JobId, Job | None], head: Block) -> Ready | None:
        """One job that the endpoint cannot tell about does not hold up the others."""
        job_id = due.row.job.id
        if job_id not in found:
            self._refuse(job_id, "the endpoint cannot tell the job's state", complete=due.complete)
            return None
        job = found[job_id]
        if job is None:
            self._refuse(job_id, "the job is not on the chain", complete=due.complete)
            return None
        try:
            return await self._check(due, job, head)
        except ChainError as error:
            self._refuse(job_id, str(error), complete=due.complete)
            return None

    async def _check(self, due: DueRow, job: Job, head: Block) -> Ready | None:
        if job.status is JobStatus.CLOSED:
            self._wait(job.id, complete=due.complete)
            await self._watcher.bring_in(due.row, job, head)
            return None
        most = earned(job, head.timestamp)
        if most is not None and not due.complete and due.totals.prompt_tokens + due.totals.tokens > most:
            self._refuse(job.id, f"its rate allows {most} tokens by now", complete=False)
            return None
        row = ready(due, job, head.timestamp)
        if row is None:
            log.info("checkpoint.already_settled", job=job.id, tokens=job.settled.tokens)
            await self._watcher.bring_in(due.row, job, head)
            return None
        # A batch leaves a bad row out and says why, for a fee; a row that failed once is tried for nothing.
        return row if job.id not in self._pauses or await self._is_taken(row) else None

    async def _is_taken(self, row: Ready) -> bool:
        """Tries a row by itself. The custom error decides (law 9: "settled" here only means: do not send)."""
        claim = row.claim
        try:
            await self._chain.simulate(self._call([row]), self._sender.address)
            if claim.complete and row.totals != NOTHING:
                # A batch leaves a bad row out without an error; by itself it would revert.
                alone = self._chain.submit_checkpoint(claim.job_id, claim.tokens, claim.proof)
                await self._chain.simulate(alone, self._sender.address)
        except (JobClosed, StaleCheckpoint):
            # It changed since it was read a moment ago.
            self._wait(claim.job_id, complete=claim.complete)
            return False
        except ContractError as error:
            self._refuse(claim.job_id, str(error), complete=claim.complete)
            return False
        return True

    def _call(self, rows: Sequence[Ready]) -> Call:
        [first, *others] = [row.claim for row in rows]
        if others or (first.complete and rows[0].totals != NOTHING):
            return self._chain.submit_checkpoints([first, *others])
        if first.complete:
            return self._chain.complete_session(first.job_id)
        return self._chain.submit_checkpoint(first.job_id, first.tokens, first.proof)

    async def _submit(self, rows: Sequence[Ready]) -> None:
        """In one transaction; if the chain would not take that, in the end without what is to blame."""
        if len(rows) == 1 and not await self._is_taken(rows[0]):
            return
        carried = [row.carried for row in rows]
        limit = gas.limit(row.room for row in rows)
        try:
            await self._sender.submit(self._call(rows), "settle", carried, gas=limit)
        except ContractError as error:
            if len(rows) == 1:
                self._refuse(rows[0].claim.job_id, str(error), complete=rows[0].claim.complete)
                return
            await self._submit(rows[: len(rows) // 2])
            await self._submit(rows[len(rows) // 2 :])

    def _refuse(self, job_id: JobId, reason: str, *, complete: bool) -> None:
        pause = self._wait(job_id, complete=complete)
        log.error("checkpoint.refused", job=job_id, reason=reason, again_in=pause)

    def _wait(self, job_id: JobId, *, complete: bool) -> float:
        return self._pauses.failed(job_id, self._clock(), complete=complete)

    def _is_ours(self, job: Outstanding) -> bool:
        """Only the job's host can settle it; the ledger may hold those of an earlier key."""
        ours = job.host == self._sender.address
        if not ours and job.job_id not in self._not_ours:
            self._not_ours.add(job.job_id)
            log.error("settlement.not_ours", job=job.job_id, host=job.host, key=self._sender.address)
        return ours

    # What became of transactions

    def _hear(self, report: Report) -> None:
        match report.outcome:
            case Outcome.SUBMITTED:
                self._tell_submitted(report)
            case Outcome.CONFIRMED:
                self._tell_events(report)
            case Outcome.REVERTED | Outcome.CANCELLED | Outcome.DISPLACED:
                for carried in report.transaction.draft.carried:
                    pause = self._wait(carried.job_id, complete=carried.complete)
                    log.error(
                        "checkpoint.failed",
                        job=carried.job_id,
                        tokens=carried.totals.tokens,
                        how=report.outcome.value,
                        tx=report.tx,
                        again_in=pause,
                    )
            case Outcome.TAKEN_BACK:
                for carried in _checkpoints(report):
                    tokens = carried.totals.tokens
                    log.warning("checkpoint.reorganised", job=carried.job_id, tokens=tokens, tx=report.tx)
            case Outcome.MINED:
                return
        self.poke()

    def _tell_submitted(self, report: Report) -> None:
        for carried in _checkpoints(report):
            log.info(
                "checkpoint.submitted",
                job=carried.job_id,
                tokens=carried.totals.tokens,
                prompt_tokens=carried.totals.prompt_tokens,
                tx=report.tx,
            )

    def _tell_events(self, report: Report) -> None:
        carried = report.transaction.draft.carried
        for event in report.events:
            match event:
                case Settled() | Completion():
                    self._tell_found(event)
                case Skipped():
                    closing = any(each.complete for each in carried if each.job_id == event.job_id)
                    self._refuse(event.job_id, str(event.error), complete=closing)

    def _tell_found(self, event: Settled | Completion) -> None:
        if isinstance(event, Settled):
            self._tell_confirmed(event)
        else:
            self._tell_completed(event)

    def _tell_confirmed(self, settled: Settled) -> None:
        self._pauses.settled(settled.job_id)
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
        self._pauses.settled(completion.job_id)
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
            self._pauses.end()
            log.info("settlement.recovered")
        self._trouble = trouble


def _checkpoints(report: Report) -> list[Carried]:
    """What the transaction claims; rows that only complete a job claim nothing."""
    return [carried for carried in report.transaction.draft.carried if carried.totals != NOTHING]


def _pages(going: Sequence[Outstanding]) -> Iterator[Sequence[Outstanding]]:
    return (going[at : at + PAGE] for at in range(0, len(going), PAGE))


async def present_gas(chain: Chain, head: Block) -> Gas:
    """What settling costs as of block `head`."""
    fee = head.base_fee + await chain.priority_fee()
    one, many = [await chain.data_fee(chain.submit_checkpoints(samples(rows)).data) for rows in (1, SAMPLES)]
    return gas.priced(fee, one, many, SAMPLES)


def unsettled(job: Outstanding) -> Unsettled:
    """A job that is outstanding, as the policy looks at it."""
    return Unsettled(job.job_id, job.asset, job.amount, job.must)
