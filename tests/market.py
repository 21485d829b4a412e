"""Several hosts for tests of who is asked: each registered, with a key and a node of its own."""

from __future__ import annotations

from typing import Any

import orjson

from tallystick import pricing
from tallystick.caps import Caps
from tallystick.config import DAY, Secret
from tallystick.testing.engine import Script, say
from tallystick.types import Address, Job, JobId, JobStatus
from tests.buying import DEPOSIT, Bench, Proxy
from tests.severing import Line

GOOD = Script(say(*["b "] * 30))
CAPS = Caps(DEPOSIT, 3 * DEPOSIT)


class Market(Bench):
    """Hosts in the registry, each with a key and a node of its own."""

    async def sell(self, number: int, *scripts: Script, price: str = "0.90", **how: Any) -> Line:
        """A registered host, behind a line that can be cut."""
        account = self.devnet.accounts[4 + number]
        url = await self.serve(
            *scripts,
            host_private_key=Secret(account.private_key),
            data_dir=self.directory / f"host-{number}-{how.get('port', 0)}-{price}",
            price=price,
            **how,
        )
        line = await self.parts.enter_async_context(Line(url))
        metadata = orjson.dumps({"endpoint": line.url}).decode()
        if not await self.chain.is_registered(account.address):
            await self.chain.transact(self.chain.register(account.address, metadata), account.private_key)
        return line

    def host(self, number: int) -> Address:
        return self.devnet.accounts[4 + number].address

    async def buyer(self, caps: Caps = CAPS, **settings: Any) -> Proxy:
        """A proxy that finds its hosts by itself, and what it was told of them."""
        return await self.proxy((), caps, settings=settings)

    async def jobs(self) -> list[Job]:
        """All jobs that there are."""
        opened = await self.chain.jobs()
        found = [await self.chain.job(JobId(each.job_id)) for each in opened]
        return [job for job in found if job is not None]

    async def check_sums(self, before: int) -> list[Job]:
        """What left the wallet is what was paid and what is still in escrow, and that can be reclaimed."""
        jobs = await self.jobs()
        after, held = await self.money()
        for job in [job for job in jobs if job.status is not JobStatus.CLOSED]:
            await self._take_back(job)
        taken_back = await self.jobs()
        back, _ = await self.money()
        assert back - after == sum(job.deposit - job.owed for job in jobs if job.status is JobStatus.OPEN)
        assert before - back == sum(job.owed for job in taken_back)
        assert all(job.status is JobStatus.CLOSED for job in taken_back)
        assert all(job.owed == pricing.owed(job.settled, job.prices) for job in taken_back)
        assert held >= sum(job.owed for job in jobs)
        return taken_back

    async def _take_back(self, job: Job) -> None:
        """As `tally job complete --on-chain` and `tally job reclaim` do it."""
        key = self.devnet.accounts.payer.private_key
        await self.chain.transact(self.chain.complete_session(job.id), key)
        await self.devnet.increase_time(DAY)
        await self.chain.transact(self.chain.reclaim(job.id), key)
