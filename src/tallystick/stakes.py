"""What a payer's jobs may come to today, over all programs that share its store.

The rules are in `caps.py`, the rows in the store; a stake is written before the money moves that it is for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from tallystick import caps as rules
from tallystick.caps import Caps, Stake
from tallystick.store import StoredJob
from tallystick.types import Address, Job
from tallystick.wallet import Wallet


class Stakes:
    """One payer's stakes in one asset. Whatever asks for them has them brought to the present day first."""

    def __init__(self, wallet: Wallet, caps: Caps, asset: Address, owed: Callable[[Address], int]) -> None:
        """`owed`: what the job of a signer has cost by what this process knows, signed for or not; else 0."""
        self.turn = asyncio.Lock()
        """Whoever holds it may stake: the day's room is looked at and taken in one go."""
        self._wallet = wallet
        self._store = wallet.store
        self._caps = caps
        self._asset = asset
        self._owed = owed

    async def today(self) -> str:
        """The day of the chain's clock."""
        now = (await self._wallet.chain.block()).timestamp
        return datetime.fromtimestamp(now, UTC).date().isoformat()

    async def room(self, day: str) -> int:
        """What the caps leave to be staked on that day, in base units; below 0 if they were higher before."""
        return self.left_of(await self._on(day), day)

    def left_of(self, stakes: Iterable[Stake], day: str) -> int:
        """What these stakes leave of the caps on that day."""
        return self._caps.room((stake for stake in stakes if stake.asset == self._asset), day)

    async def staked(self) -> tuple[str, list[Stake]]:
        """The day, and all that is staked as of it."""
        day = await self.today()
        return day, await self._on(day)

    async def fits_beside(self, cost: int, signers: Collection[Address]) -> bool:
        """The caps would leave so much today if nothing were staked for these jobs."""
        day, stakes = await self.staked()
        room = self.left_of((stake for stake in stakes if stake.signer not in signers), day)
        return cost <= self._caps.addable(0, room)

    def pending(self) -> list[StoredJob]:
        """Openings of this payer that are not on the chain."""
        return self._store.openings(*self.place)

    async def adopt(self, stored: StoredJob, job: Job) -> bool:
        """Stakes all of a job, unless it is staked. False if the day does not leave what is left of it."""
        while True:
            day, stakes = await self.staked()
            staked = next((stake for stake in stakes if stake.signer == stored.signer), None)
            if staked is not None and staked.most >= job.deposit:
                return True
            left = self._wallet.left(job)
            if left > self.left_of(stakes, day):
                return False
            began = job.deposit - left if staked is None else staked.began
            stake = Stake(stored.signer, job.asset, day, began, job.deposit)
            if await asyncio.to_thread(self._store.stake, stake, stakes):
                return True

    async def change(self, signer: Address, decide: Callable[[Stake, int], Awaitable[int]]) -> int:
        """Stakes for a job what is decided, given its stake and what the day leaves: how much that is.

        Decided anew if others stake meanwhile.
        """
        while True:
            day, stakes = await self.staked()
            mine = next(stake for stake in stakes if stake.signer == signer)
            most = await decide(mine, self.left_of(stakes, day))
            if await asyncio.to_thread(self._store.stake, replace(mine, most=most), stakes):
                return most

    async def limit(self, job: Job, most: int) -> None:
        """What a job may come to from now on, if it is staked."""
        _, stakes = await self.staked()
        for stake in stakes:
            if stake.signer == job.signer:
                await asyncio.to_thread(self._store.stake, replace(stake, most=most))

    def cost(self, job: Job) -> int:
        """What a job has cost until now, also what of it is not signed yet."""
        return max(job.deposit - self._wallet.left(job), self._owed(job.signer), 0)

    async def _on(self, day: str) -> list[Stake]:
        """What is staked, all that can still be spent in this asset brought to this day."""
        while True:
            stakes = await asyncio.to_thread(self._store.stakes, *self.place)
            before = {each.signer: each for each in stakes if each.asset == self._asset and each.day < day}
            brought = await self._brought(before, day) if before else []
            if not brought:
                return stakes
            for stake in brought:
                # Where others staked meanwhile, it is looked at once more.
                await asyncio.to_thread(self._store.stake, stake, stakes)
                stakes = [stake if each.signer == stake.signer else each for each in stakes]

    async def _brought(self, before: Mapping[Address, Stake], day: str) -> list[Stake]:
        """Stakes of days before, of what is open or may still be, as of this day."""
        of_jobs = [
            rules.on_day(before[stored.signer], day, self.cost(job))
            for stored, job in await self._wallet.jobs()
            if job is not None and stored.signer in before
        ]
        pending = [before[each.signer] for each in self.pending() if each.signer in before and each.may_come]
        return [*of_jobs, *(replace(stake, day=day) for stake in pending)]

    @property
    def place(self) -> tuple[int, Address]:
        """Chain id and marketplace: where the store has to look."""
        deployment = self._wallet.deployment
        return deployment.chain_id, deployment.marketplace
