"""How a payer's money stands, job by job, and what may be done about it: what the page shows.

Amounts are digits of whole units of their asset, exactly: "1.998976"; times are seconds of the chain's clock.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tallystick import archive, pricing, proof, ranking
from tallystick.discovery import Listing
from tallystick.errors import Refusal, TallystickError
from tallystick.gateway import problem_of
from tallystick.in_use import InUse
from tallystick.spending import Spender
from tallystick.store import StoredJob
from tallystick.types import Address, Job, JobId, JobStatus, Prices
from tallystick.wallet import Wallet, asset_at

CLOSED_SHOWN = 20
"""Closed jobs that are shown, the newest."""

Told = dict[str, Any]


def actions(job: Job, now: int, *, payable: bool) -> list[str]:
    """What the payer can do about a job at the time `now`; `payable`: the caps are in its asset."""
    if job.status is JobStatus.CLOSED:
        return []
    if now >= job.closes_at:
        return ["reclaim"]
    if job.status is JobStatus.COMPLETING:
        return ["complete"]
    adding = payable and job.receipted and now < job.expires_at
    return ["top_up", "complete"] if adding else ["complete"]


class Overview:
    """One payer's, read from its store, the jobs in use and the chain."""

    def __init__(self, spender: Spender) -> None:
        self._spender = spender
        self._wallet: Wallet = spender.wallet
        self._closed: dict[Address, Job] = {}
        """By signer: nothing more happens to them, so the chain is asked once."""
        self.payer = proof.address(spender.wallet.key())

    async def whole(self) -> Told:
        """All of it. ChainError if the chain cannot be asked."""
        spender, chain = self._spender, self._wallet.chain
        now = (await chain.block()).timestamp
        known = asset_at(chain, spender.asset)
        day = await spender.stakes.today()
        room = max(0, await spender.stakes.room(day))
        return {
            "payer": self.payer,
            "asset": {"symbol": known.symbol, "decimals": known.decimals},
            "now": now,
            "day": day,
            "cap_deposit": self._whole_units(spender.caps.deposit),
            "cap_day": self._whole_units(spender.caps.per_day),
            "room": self._whole_units(room),
            "opening_most": self._whole_units(max(0, spender.caps.addable(0, room))),
            "wallet": self._whole_units(await chain.token_balance(spender.asset, self.payer)),
            "gas": pricing.from_units(await chain.eth_balance(self.payer), 18),
            "kept": self._whole_units(await chain.refunds(self.payer, spender.asset)),
            **await self._hosts(),
            "jobs": await self._jobs(now, room),
        }

    async def _hosts(self) -> Told:
        """The hosts with this payer's record of each, and the models that the caps allow; or why they are not
        known.
        """
        spender, hosts = self._spender, self._spender.hosts
        try:
            listings = [self._host(listing) for listing in await hosts.listings()]
        except TallystickError as error:
            return {"models": [], "hosts": [], "host_problem": problem_of(error)}
        try:
            sold = await hosts.sold(spender.asset, spender.caps)
        except TallystickError as error:
            return {"models": [], "hosts": listings, "host_problem": problem_of(error)}
        models = [{"name": each.model, "url": each.url, **self._priced(each.prices)} for each in sold]
        return {"models": models, "hosts": listings}

    def _host(self, listing: Listing) -> Told:
        record = self._spender.hosts.record(listing.host)
        asked = any(used.place.url == listing.endpoint for used in self._spender.jobs)
        return {
            "host": listing.host,
            "url": listing.endpoint,
            "trouble": listing.trouble,
            "record": ranking.told(record, time.time()),
            "aside": record.is_aside(time.time()),
            "asked": asked,
        }

    def _priced(self, prices: Prices) -> Told:
        return {
            "price": self._whole_units(prices.per_million),
            "prompt_price": self._whole_units(prices.prompt_per_million),
        }

    async def _jobs(self, now: int, room: int) -> list[Told]:
        """Newest first; of the closed ones the latest."""
        wallet, place = self._wallet, self._wallet.deployment
        kept = await asyncio.to_thread(wallet.store.jobs, place.chain_id, place.marketplace, ended=True)
        ended = [stored.signer for stored in kept if stored.ended]
        dropped = set(ended[:-CLOSED_SHOWN])
        told = [await self._job(stored, now, room) for stored in kept if stored.signer not in dropped]
        return [each for each in reversed(told) if each is not None]

    async def _job(self, stored: StoredJob, now: int, room: int) -> Told | None:
        """None for a job of a chain that is gone."""
        assert stored.job_id is not None
        job = self._closed.get(stored.signer) or await self._wallet.chain.job(stored.job_id)
        if job is None or job.signer != stored.signer:
            return None
        if job.status is JobStatus.CLOSED:
            self._closed[stored.signer] = job
        used = next((used for used in self._spender.jobs if used.session.job.id == job.id), None)
        return {**self._facts(stored, job), **self._standing(job, used, now, room)}

    def _facts(self, stored: StoredJob, job: Job) -> Told:
        known = asset_at(self._wallet.chain, job.asset)
        return {
            "job_id": job.id,
            "model": stored.model,
            "host_url": stored.host_url,
            "host": job.host,
            "symbol": known.symbol,
            "decimals": known.decimals,
            "price": pricing.from_units(job.prices.per_million, known.decimals),
            "prompt_price": pricing.from_units(job.prices.prompt_per_million, known.decimals),
            "expires_at": job.expires_at,
            "closes_at": job.closes_at,
            "settled_tokens": job.settled.tokens,
            "settled_prompt_tokens": job.settled.prompt_tokens,
        }

    def _standing(self, job: Job, used: InUse | None, now: int, room: int) -> Told:
        decimals = asset_at(self._wallet.chain, job.asset).decimals
        left = self._left(job, used)
        return {
            "status": job.status.name.lower(),
            "requests": used.requests if used else 0,
            "deposit": pricing.from_units(job.deposit, decimals),
            "spent": pricing.from_units(job.deposit - left, decimals),
            "refundable": pricing.from_units(left, decimals),
            "settled": pricing.from_units(job.owed, decimals),
            "top_up_most": pricing.from_units(max(0, self._spender.caps.addable(left, room)), decimals),
            "actions": actions(job, now, payable=job.asset == self._spender.asset),
        }

    def _left(self, job: Job, used: InUse | None) -> int:
        """What comes back, or came back: of an open job less all that came, signed or not."""
        if job.status is JobStatus.CLOSED:
            return job.deposit - job.owed
        left = self._wallet.left(job)
        return left if used is None else min(left, job.deposit - used.session.owed)

    async def evidence(self, job_id: JobId) -> bytes:
        """What `archive.gather` makes of a job. Refusal `job_unknown`; raises what `gather` raises."""
        stored = self._wallet.stored(job_id)
        if stored is None:
            raise Refusal("job_unknown", f"Job {job_id} is not in the store of this payer.")
        return await archive.gather(self._wallet.chain, self._wallet.store, stored)

    def _whole_units(self, units: int) -> str:
        return pricing.from_units(units, asset_at(self._wallet.chain, self._spender.asset).decimals)
