"""Beside the process that settles: jobs are ended where they are served, and watchers hear of them there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tallystick import database, settlement
from tallystick.chain import Chain
from tallystick.devnet import Devnet
from tallystick.ledger import Ledger
from tallystick.standby import Standby
from tallystick.types import Completion, JobId, JobStatus, Settlement, Totals
from tests.settling import Host


@dataclass
class Pair:
    """One process that settles, and one that serves and stands by."""

    settling: Host
    ledger: Ledger
    """The other one's."""
    chain: Chain
    heard: list[Settlement | Completion] = field(default_factory=list)
    ended: list[JobId] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.standby = Standby(self.ledger, self.chain, self.end, self.heard.append)

    async def end(self, job_id: JobId) -> None:
        self.ended.append(job_id)
        await self.ledger.end(job_id, Totals(0, 130))

    async def step(self) -> None:
        await self.standby.step(await self.chain.block())

    async def open(self) -> JobId:
        """A job that the process which stands by serves."""
        job_id = await self.settling.open()
        job = await self.chain.job(job_id)
        assert job is not None
        await self.ledger.serve(job)
        return job_id

    async def sign(self, job_id: JobId, tokens: int) -> None:
        receipt = self.settling.receipt(job_id, Totals(0, tokens))
        await self.ledger.store_receipt(receipt, acknowledged=receipt.totals, gross=receipt.totals, due=True)


@pytest.fixture
async def pair(devnet: Devnet, chain: Chain, tmp_path: Path, ledger_url: str | None) -> AsyncIterator[Pair]:
    host = devnet.accounts.host
    await chain.transact(chain.register(host.address, "{}"), host.private_key)
    url = ledger_url or database.url_in(tmp_path)
    # Each in a directory of its own: the lock that keeps a second process off an SQLite ledger is there.
    async with Ledger(tmp_path, url) as one, Ledger(tmp_path / "two", url) as two:
        yield Pair(Host(devnet, chain, one), two, chain)


async def test_what_the_other_process_settles_is_told_once(pair: Pair) -> None:
    """Each settlement and the completion of a job that is served here, as the chain has them."""
    job_id = await pair.open()
    await pair.step()
    for tokens in (100, 200):
        await pair.sign(job_id, tokens)
        await pair.settling.settle()
        await pair.step()
        await pair.step()
    await pair.ledger.end(job_id, Totals(0, 200))
    await pair.settling.settle()
    await pair.step()
    await pair.step()
    assert pair.heard == pair.settling.heard
    assert [type(event) for event in pair.heard] == [Settlement, Settlement, Completion]
    assert await pair.ledger.served() == []


async def test_what_was_settled_before_it_came_is_no_news(pair: Pair) -> None:
    """A process that takes a job over tells its watchers of what happens from then on."""
    job_id = await pair.open()
    await pair.sign(job_id, 100)
    await pair.settling.settle()
    await pair.step()
    assert pair.heard == []
    await pair.sign(job_id, 200)
    await pair.settling.settle()
    await pair.step()
    [told] = pair.heard
    assert isinstance(told, Settlement)
    assert told.totals == Totals(0, 200)


async def test_a_job_that_goes_is_ended_where_it_is_served(pair: Pair) -> None:
    """The last count comes first: until its process has brought it, the job is not completed."""
    job_id = await pair.open()
    await pair.sign(job_id, 100)
    await pair.settling.ask_to_complete(job_id)
    await pair.settling.settle(rounds=1)
    assert await pair.settling.status(job_id) is JobStatus.COMPLETING
    await pair.step()
    assert pair.ended == [job_id]
    await pair.settling.settle()
    assert await pair.settling.status(job_id) is JobStatus.CLOSED
    await pair.step()
    assert isinstance(pair.heard[-1], Completion)


async def test_a_process_that_does_not_end_its_job_is_not_waited_for_for_ever(pair: Pair) -> None:
    """What was signed is settled before the claim window is over, whoever serves the job."""
    job_id = await pair.open()
    await pair.sign(job_id, 100)
    await pair.settling.ask_to_complete(job_id)
    await pair.settling.settle(rounds=1)
    pair.settling.now += settlement.DRAIN_PATIENCE
    await pair.settling.settle(rounds=1)
    assert await pair.settling.status(job_id) is JobStatus.CLOSED
    assert await pair.settling.on_chain(job_id) == Totals(0, 100)


async def test_jobs_of_a_dead_process_are_ended_by_the_one_that_settles(pair: Pair) -> None:
    """Nobody is waited for whose lease is out."""
    job_id = await pair.open()
    await pair.sign(job_id, 100)
    await pair.ledger.close()
    await pair.settling.ask_to_complete(job_id)
    await pair.settling.settle()
    assert await pair.settling.status(job_id) is JobStatus.CLOSED
