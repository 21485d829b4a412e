"""What befalls a host's jobs on the chain: seen in events, read from the contract, brought into the ledger.

    new blocks   -> events -> the jobs that they name  \\
    a reorganisation, a start, every quarter of an hour -> all open jobs -> read in the latest block -> ledger

An event only says which job to read, so one that is seen twice is harmless; one that is missed is found by
the next reading of all. How far events were read is in the ledger, with the hash of that block: if the chain
has another one there, it was reorganised. The last few blocks are read each time, as an endpoint may know of
a block before it knows of its events. Sends nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import structlog

from tallystick.chain import Block, Chain
from tallystick.contracts import CompletionRequested, Created, Event, ToppedUp
from tallystick.errors import ChainError
from tallystick.ledger import Ledger
from tallystick.tables import Cursor, JobRow
from tallystick.types import Address, Completion, Job, JobId, JobStatus, Settlement

SWEEP_EVERY = 900.0
"""Seconds between readings of all open jobs."""
SPAN = 1_000
"""Blocks whose events are read in one look."""
KEEP_EVERY = 50
"""Blocks after which it is written how far events were read, if there were none."""
PAGE = 500
"""Jobs that are read at a time."""
TOGETHER = 50
"""Jobs that are brought in at a time."""
EVENTS = ("JobCreated", "JobToppedUp", "CompletionRequested", "CheckpointSettled", "SessionCompleted")

log = structlog.get_logger(__name__)

Found = Settlement | Completion
JobEvent = Settlement | Completion | Created | ToppedUp | CompletionRequested


@dataclass(frozen=True, slots=True)
class _Seen:
    """An event, by what tells it from others."""

    block: int
    tx: str
    kind: type[Event]
    job_id: JobId


class Watcher:
    """Looks for one host, in the process that settles for it.

    Raises ChainError and LedgerError; what was not brought into the ledger is looked at again then.
    """

    def __init__(
        self,
        ledger: Ledger,
        chain: Chain,
        host: Address,
        end: Callable[[JobId], Awaitable[None]],
        tell: Callable[[Found], None],
        *,
        sweep_every: float = SWEEP_EVERY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`end` brings a job that is closed to its end here; `tell` is told what others' transactions did."""
        self._ledger = ledger
        self._chain = chain
        self._host = host
        self._end = end
        self._tell = tell
        self._hearing: list[Callable[[JobId], None]] = []
        self._sweep_every = sweep_every
        self._clock = clock
        self._sweep_at = clock()
        self._cursor: Cursor | None = None
        self._kept = 0
        """The block of the cursor that is in the ledger."""
        self._news = False
        """There were events since the cursor was written."""
        self._seen: set[_Seen] = set()
        self._again: set[JobId] = set()
        """Jobs that are to be read in the next look as well."""
        self._untold: dict[JobId, Created] = {}
        """Openings with this host of which nothing was told yet."""
        self._behind: dict[JobId, int] = {}
        """Jobs of which the chain shows less than was settled: the block at which that was first seen."""
        self._vanished: set[JobId] = set()
        self.late = False
        """There are blocks whose events were not read yet."""

    def listen(self, hear: Callable[[JobId], None]) -> None:
        """Tells `hear` of each job that something happened to, or that is gone from the chain."""
        self._hearing.append(hear)

    async def look(self, head: Block) -> None:
        """Once: at what is new up to block `head`, and now and then at all open jobs."""
        touched, cursor = await self._read_events(head)
        self._again |= touched  # kept, should what follows fail
        for job_id in touched:
            self._pass_on(job_id)
        await self._tell_opened(head)
        if self._clock() >= self._sweep_at:
            await self._sweep(head)
            self._sweep_at = self._clock() + self._sweep_every
        await self._read_jobs(sorted(self._again), head)
        await self._move(cursor)

    async def bring_in(self, row: JobRow, job: Job, head: Block) -> None:
        """What the chain says of a job, in block `head` or later, that no transaction of ours carries."""
        self._again.discard(job.id)
        if job.status is JobStatus.CLOSED:
            await self._close(row, head)
            return
        if not job.settled.covers(row.settled):
            await self._take_back(row, job, head)
        elif job.settled != row.confirmed:
            await self._witness(job, head)
        if job != row.job:
            _tell_changed(row.job, job)
            await self._ledger.adopt(job)

    # Events

    async def _read_events(self, head: Block) -> tuple[set[JobId], Cursor]:
        """The jobs that are named in blocks that were not read, and up to where they are read now."""
        cursor = self._cursor or await self._ledger.cursor(self._host)
        if cursor is None:
            # What was before, the first reading of all jobs tells.
            return set(), Cursor(head.number, head.hash)
        # A chain that is shorter than before went back, or the endpoint lags: further blocks tell which.
        if head.number < cursor.block or head.hash == cursor.hash:
            return set(), cursor
        async with self._chain.view(cursor.block):
            if (await self._chain.block(cursor.block)).hash != cursor.hash:
                self._start_over(cursor)
            depth = self._chain.deployment.depth
            first = max(self._chain.deployment.from_block, cursor.block + 1 - depth)
            last = await self._chain.block(min(head.number, cursor.block + SPAN))
            events = await self._chain.events(first, last.number, EVENTS)
        self.late = last.number < head.number
        touched = await self._sort(events, head)
        self._seen = {seen for seen in self._seen if seen.block >= first}
        return touched, Cursor(last.number, last.hash)

    def _start_over(self, cursor: Cursor) -> None:
        """What the blocks that are gone told of jobs is not true any more, and not known."""
        log.warning("chain.reorganised", block=cursor.block, gone=cursor.hash)
        self._seen.clear()
        self._sweep_at = self._clock()

    async def _sort(self, events: Collection[Event], head: Block) -> set[JobId]:
        """The jobs of new events that others caused; openings are kept, to be told here alone."""
        ours = await self._ledger.known({event.tx for event in events})
        touched = set()
        for event in events:
            if not isinstance(event, JobEvent):
                continue
            if isinstance(event, Created) and not self._is_opening(event, head):
                continue
            seen = _Seen(event.block, event.tx, type(event), event.job_id)
            if seen in self._seen:
                continue
            self._seen.add(seen)
            self._news = True
            if isinstance(event, Created):
                self._untold[event.job_id] = event
            elif event.tx not in ours:
                touched.add(event.job_id)
        return touched

    def _is_opening(self, event: Created, head: Block) -> bool:
        """True if a job was opened with this host."""
        if event.host != self._host:
            return False
        if self._is_deep(event.block, head):
            self._chain.remember(event)
        return True

    async def _tell_opened(self, head: Block) -> None:
        """An opening says neither asset nor deposit: those are read, of all new jobs together."""
        if not self._untold:
            return
        async with self._chain.view(head.number):
            found = await self._chain.opened(list(self._untold.values()))
        for job_id, job in found.items():
            opening = self._untold.pop(job_id)
            if job is not None:
                log.info("job.opened", job=job_id, asset=job.asset, deposit=job.deposit, tx=opening.tx)

    async def _move(self, cursor: Cursor) -> None:
        if self._news or self._cursor is None or cursor.block - self._kept >= KEEP_EVERY:
            await self._ledger.move_cursor(self._host, cursor)
            self._kept, self._news = cursor.block, False
        self._cursor = cursor

    # Jobs

    async def _sweep(self, head: Block) -> None:
        """Reads every open job."""
        after = JobId(0)
        while page := await self._ledger.open_page(after, PAGE):
            await self._read_rows(page, head)
            after = page[-1].job.id

    async def _read_jobs(self, these: Sequence[JobId], head: Block) -> None:
        for at in range(0, len(these), PAGE):
            page = these[at : at + PAGE]
            rows = await self._ledger.open_of(page)
            self._again -= set(page) - {row.job.id for row in rows}
            await self._read_rows(rows, head)

    async def _read_rows(self, rows: Collection[JobRow], head: Block) -> None:
        """One job that the endpoint cannot tell about does not hold up the others."""
        flying = (await self._ledger.under_way(self._host)).jobs
        ours = [row for row in rows if row.job.host == self._host]
        self._again |= {row.job.id for row in ours if row.job.id in flying}
        still = [row for row in ours if row.job.id not in flying]
        found = await self._chain.latest([row.job for row in still])
        for at in range(0, len(still), TOGETHER):
            # What is written together costs one flush of the disk.
            part = still[at : at + TOGETHER]
            await asyncio.gather(*(self._compare(row, found, head) for row in part))

    async def _compare(self, row: JobRow, found: Mapping[JobId, Job | None], head: Block) -> None:
        job_id = row.job.id
        if (job := found.get(job_id)) is not None:
            await self._bring_in(row, job, head)
        elif job_id in found:
            self._again.discard(job_id)
            self._tell_vanished(job_id)
        else:
            self._again.add(job_id)

    async def _bring_in(self, row: JobRow, job: Job, head: Block) -> None:
        try:
            await self.bring_in(row, job, head)
        except ChainError as error:
            self._again.add(job.id)
            log.warning("settlement.job_unread", job=job.id, error=str(error))

    async def _take_back(self, row: JobRow, job: Job, head: Block) -> None:
        """The chain shows less than it did; it may be the endpoint that lags, which gets N blocks."""
        since = self._behind.setdefault(job.id, head.number)
        if head.number - since < self._chain.deployment.confirmations:
            self._again.add(job.id)
            return
        del self._behind[job.id]
        await self._ledger.unsettled(job.id, job.settled)
        log.warning("checkpoint.reorganised", job=job.id, tokens=row.settled.tokens, left=job.settled.tokens)

    async def _witness(self, job: Job, head: Block) -> None:
        """What others carried to the chain, or we before the ledger was lost, confirmed from its events."""
        settlements = await self._chain.settlements(job.id)
        deep = [each for each in settlements if self._is_deep(each.block, head)]
        if len(deep) < len(settlements):
            self._again.add(job.id)
        if deep and await self._ledger.witnessed(deep[-1]):
            self._tell(deep[-1])

    async def _close(self, row: JobRow, head: Block) -> None:
        """It was closed, and not by a transaction of ours that is in flight: the payer reclaimed."""
        completion = await self._chain.completion(row.job.id)
        if completion is None or not self._is_deep(completion.block, head):
            self._again.add(row.job.id)
            return
        await self._end(row.job.id)
        await self._witness(row.job, head)
        self._again.discard(row.job.id)
        if await self._ledger.closed(completion):
            self._tell(completion)

    def _is_deep(self, block: int, head: Block) -> bool:
        return head.number - block + 1 >= self._chain.deployment.confirmations

    def _pass_on(self, job_id: JobId) -> None:
        for hear in self._hearing:
            hear(job_id)

    def _tell_vanished(self, job_id: JobId) -> None:
        self._pass_on(job_id)
        if job_id not in self._vanished:
            self._vanished.add(job_id)
            log.error("job.vanished", job=job_id, meaning="a reorganised chain does not have it")


def _tell_changed(before: Job, now: Job) -> None:
    if now.deposit != before.deposit:
        log.info("job.topped_up", job=now.id, amount=now.deposit - before.deposit, deposit=now.deposit)
    if now.asked_at and not before.asked_at:
        log.info("job.completing", job=now.id, asked_at=now.asked_at, closes_at=now.closes_at)
