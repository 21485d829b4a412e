"""What the chain said last of a job, and how long that is relied on: no request costs a call of its own.

A job is read again only once there is another block: what the chain says of it as of one does not change.

Reads through chain.py; knows no ledger, no bearer and no terms.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace

from tallystick.chain import Block, Chain
from tallystick.errors import ChainError, Refusal
from tallystick.types import Job, JobId

FRESH = 0.5
"""Seconds for which a reading stands for the present: less than a block of the chains in use."""
RELIED = 10.0
"""Seconds for which a known job is served, and its receipts taken, without waiting for an endpoint's answer,
unless the watcher has heard of it meanwhile. Who asks for its end takes nothing from the host by it: a claim
window is an hour at least."""
READINGS = 16
"""Readings at a time: anybody may name a job, and the endpoint is not to be flooded for it."""
KEPT = 10_000
"""Readings that are remembered."""


@dataclass(frozen=True, slots=True)
class Sight:
    """One reading of a job."""

    job: Job | None
    """As of the block that is as deep as the host asks."""
    newest: Job | None
    """As of the latest block."""
    now: int
    """The latest block's timestamp."""
    block: str
    """The latest block's hash."""
    at: float
    """When that was last known to be the latest block, on the event loop's clock."""


class Lookout:
    """The chain as requests see it. `depth`: how many blocks have to lie above what is relied on."""

    def __init__(self, chain: Chain, depth: int) -> None:
        self.depth = depth
        self._chain = chain
        self.trouble: str | None = None
        """Why the chain did not answer when it was last asked."""
        self._sights: dict[JobId, Sight] = {}
        self._asking: dict[JobId, asyncio.Task[Sight]] = {}
        self._looking: asyncio.Task[Block] | None = None
        self._turns = asyncio.Semaphore(READINGS)
        self._block: Block | None = None
        self._block_at = float("-inf")
        self._ahead = float("-inf")
        """Seconds by which the chain's clock was ever seen to be ahead of this machine's monotonic one, which
        nobody sets: a host whose clock is wrong counts an attested job's time as the chain does."""

    def clock(self) -> float:
        """The chain's time now, estimated: what the next block's timestamp will be, or somewhat less.

        This machine's time until a block was seen.
        """
        return time.time() if self._block is None else time.monotonic() + self._ahead

    async def now(self) -> int:
        """The latest block's timestamp. Refusal `chain_unavailable` if there never was an answer."""
        try:
            return (await self._recent()).timestamp
        except ChainError as error:
            self.trouble = str(error)
            if self._block is None:
                raise Refusal("chain_unavailable") from error
            return self._block.timestamp

    def recall(self, job_id: JobId) -> Sight | None:
        """The job as read RELIED seconds ago at most, at once; while it may have changed, it is read again.

        None if it has to be waited for. Not for what a job lacks: it may have it by now.
        """
        sight = self._sights.get(job_id)
        if sight is None or self._age(sight.at) >= RELIED:
            return None
        if not self._is_fresh(sight.at):
            self._asked(job_id).add_done_callback(self._note)
        return sight

    def forget(self, job_id: JobId) -> None:
        """Something happened to a job: it is read before it is relied on again, also if it is being read."""
        self._sights.pop(job_id, None)
        self._asking.pop(job_id, None)

    def _note(self, asking: asyncio.Task[Sight]) -> None:
        if asking.cancelled():
            return
        try:
            asking.result()
        except ChainError as error:
            self.trouble = str(error)

    async def job(self, job_id: JobId) -> Sight:
        """The job as read a moment ago at most; while the chain does not answer, as it was relied on before.

        Refusal `chain_unavailable` if there is nothing to rely on.
        """
        sight = self._sights.get(job_id)
        if sight is not None and self._is_fresh(sight.at):
            return sight
        try:
            return await self._ask_once(job_id)
        except ChainError as error:
            self.trouble = str(error)
            if sight is not None and self._is_bearable(sight):
                return sight
            raise Refusal("chain_unavailable") from error

    async def _ask_once(self, job_id: JobId) -> Sight:
        # Whoever goes away does not take the reading from the others.
        return await asyncio.shield(self._asked(job_id))

    def _asked(self, job_id: JobId) -> asyncio.Task[Sight]:
        """Requests that come at the same time share one reading."""
        asking = self._asking.get(job_id)
        if asking is None:
            asking = self._asking[job_id] = asyncio.create_task(self._ask_in_turn(job_id))
            asking.add_done_callback(
                lambda done: self._asking.get(job_id) is done and self._asking.pop(job_id)
            )
        return asking

    async def _ask_in_turn(self, job_id: JobId) -> Sight:
        async with self._turns:
            return await self._ask(job_id)

    async def _ask(self, job_id: JobId) -> Sight:
        sight = self._sights.get(job_id)
        if sight is not None and sight.block == (await self._recent()).hash:
            sight = replace(sight, at=self._block_at)
        else:
            sight = await self._read(job_id)
        if self._asking.get(job_id) is not asyncio.current_task():
            return sight  # it is from before something happened
        if sight.job is not None:
            self._keep(job_id, sight)
        else:
            self._sights.pop(job_id, None)  # one that is not there now may be in a moment
        return sight

    async def _read(self, job_id: JobId) -> Sight:
        block, at = await self._look(), self._block_at
        latest = block.number
        newest = await self._chain.job(job_id, latest=latest)
        job = await self._chain.job(job_id, self.depth, latest=latest) if self.depth else newest
        return Sight(job, newest, block.timestamp, block.hash, at)

    def _keep(self, job_id: JobId, sight: Sight) -> None:
        self._sights.pop(job_id, None)  # to the end: the oldest reading is the first to go
        self._sights[job_id] = sight
        if len(self._sights) > KEPT:
            del self._sights[next(iter(self._sights))]

    async def _recent(self) -> Block:
        """The latest block as of a moment ago at most; whoever asks at the same time shares one look."""
        if self._block is not None and self._is_fresh(self._block_at):
            return self._block
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        return await asyncio.shield(self._looking)

    async def _look(self) -> Block:
        """The latest block."""
        at = asyncio.get_running_loop().time()
        block = await self._chain.block()
        self._see(block, at)
        return block

    def _see(self, block: Block, at: float) -> None:
        self.trouble = None
        self._block = block
        self._block_at = at
        self._ahead = max(self._ahead, block.timestamp - time.monotonic())

    def _is_fresh(self, at: float) -> bool:
        return self._age(at) < FRESH

    def _age(self, at: float) -> float:
        return asyncio.get_running_loop().time() - at

    def _is_bearable(self, sight: Sight) -> bool:
        """Who completes unseen cannot reclaim before a claim window: half of it is left to claim in."""
        if sight.job is None:
            return False
        return self._age(sight.at) < sight.job.claim_window / 2
