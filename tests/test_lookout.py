"""What the host has seen of the chain, and how long it relies on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from tallystick import lookout
from tallystick.chain import Block, Chain
from tallystick.devnet import Devnet
from tallystick.errors import ChainError, Refusal
from tallystick.lookout import Lookout
from tallystick.types import Job, JobId
from tests.paying import open_job, register, until


class Watched(Chain):
    """The real chain, which can be taken away, and counts how often it was asked for a job."""

    away = False
    asked = 0
    looked = 0

    async def job(self, job_id: JobId, depth: int = 0, *, latest: int | None = None) -> Job | None:
        self.asked += 1
        return await super().job(job_id, depth, latest=latest)

    async def block(self, number: int | None = None) -> Block:
        if self.away:
            raise ChainError("nobody answers")
        self.looked += 1
        return await super().block(number)


@pytest.fixture
async def watched(devnet: Devnet, chain: Chain) -> AsyncIterator[Watched]:
    await register(devnet, chain)
    watched = Watched(devnet.rpc_url, devnet.deployment)
    async with watched:
        yield watched


async def test_one_reading_for_many(devnet: Devnet, chain: Chain, watched: Watched) -> None:
    """Requests at the same time, and a moment later, share one reading: none costs a call of its own."""
    signer = await open_job(devnet, chain)
    seen = Lookout(watched, depth=0)
    sights = await asyncio.gather(*(seen.job(signer.job.id) for _ in range(20)))
    assert await seen.job(signer.job.id) is sights[0]
    assert {sight.job for sight in sights} == {signer.job}
    assert watched.asked == 1


async def test_one_look_for_many(watched: Watched) -> None:
    """Who asks for the time while the chain is asked for it waits for the same answer."""
    seen = Lookout(watched, depth=0)
    times = await asyncio.gather(*(seen.now() for _ in range(20)))
    assert len(set(times)) == 1
    assert watched.looked == 1


async def test_one_reading_a_block(
    devnet: Devnet, chain: Chain, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job is read again once there is another block, and not before, however long that takes."""
    monkeypatch.setattr(lookout, "FRESH", 0.0)
    signer = await open_job(devnet, chain)
    seen = Lookout(watched, depth=0)
    first = await seen.job(signer.job.id)
    later = await seen.job(signer.job.id)
    assert (later.job, later.block, watched.asked) == (signer.job, first.block, 1)
    assert later.at > first.at
    await devnet.mine(1)
    assert (await seen.job(signer.job.id)).block != first.block
    assert watched.asked == 2


async def test_what_is_known_is_not_waited_for(
    devnet: Devnet, chain: Chain, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job read a while ago is told at once, and read again meanwhile."""
    monkeypatch.setattr(lookout, "FRESH", 0.0)
    signer = await open_job(devnet, chain)
    seen = Lookout(watched, depth=0)
    assert seen.recall(signer.job.id) is None
    first = await seen.job(signer.job.id)
    await devnet.mine(1)
    assert seen.recall(signer.job.id) is first

    async def is_read_again() -> bool:
        recalled = seen.recall(signer.job.id)
        return recalled is not None and recalled.block != first.block

    await until(is_read_again)


async def test_what_was_known_long_ago_is_read_first(
    devnet: Devnet, chain: Chain, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 10: nothing is relied on for longer than RELIED without another look; a look in vain is told."""
    monkeypatch.setattr(lookout, "FRESH", 0.0)
    signer = await open_job(devnet, chain)
    seen = Lookout(watched, depth=0)
    await seen.job(signer.job.id)
    watched.away = True
    assert seen.recall(signer.job.id) is not None

    async def is_in_trouble() -> bool:
        return seen.trouble is not None

    await until(is_in_trouble)
    assert seen.trouble == "nobody answers"
    monkeypatch.setattr(lookout, "RELIED", 0.0)
    assert seen.recall(signer.job.id) is None
    monkeypatch.setattr(lookout, "RELIED", 60.0)
    seen.forget(signer.job.id)
    assert seen.recall(signer.job.id) is None


async def test_a_reading_from_before_is_not_relied_on(devnet: Devnet, chain: Chain, watched: Watched) -> None:
    """What was being read when something happened to a job goes to who asked for it, and is not kept."""
    signer = await open_job(devnet, chain)
    seen = Lookout(watched, depth=0)
    reading = asyncio.create_task(seen.job(signer.job.id))
    await asyncio.sleep(0)
    seen.forget(signer.job.id)
    assert (await reading).job == signer.job
    assert seen.recall(signer.job.id) is None
    await seen.job(signer.job.id)
    assert seen.recall(signer.job.id) is not None


async def test_another_branch_is_read(
    devnet: Devnet, chain: Chain, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job is read again where a reorganised chain is as long as it was: another block is its latest."""
    monkeypatch.setattr(lookout, "FRESH", 0.0)
    signer = await open_job(devnet, chain)
    seen = Lookout(watched, depth=0)
    before = await seen.job(signer.job.id)
    height = await chain.block_number()
    await devnet.reorganise(1)
    after = await seen.job(signer.job.id)
    assert await chain.block_number() == height
    assert (before.newest, after.newest) == (signer.job, None)


async def test_depth(devnet: Devnet, chain: Chain, watched: Watched) -> None:
    """What is relied on lies deep; what is newest is told beside it."""
    signer = await open_job(devnet, chain)
    seen = Lookout(watched, depth=2)
    sight = await seen.job(signer.job.id)
    assert (sight.job, sight.newest) == (None, signer.job)
    await devnet.mine(2)
    assert (await seen.job(signer.job.id)).job == signer.job


async def test_without_the_chain(
    devnet: Devnet, chain: Chain, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the chain does not answer, known jobs go on and new ones are refused."""
    monkeypatch.setattr(lookout, "FRESH", 0.0)
    known, new = await open_job(devnet, chain), await open_job(devnet, chain)
    seen = Lookout(watched, depth=0)
    sight = await seen.job(known.job.id)
    watched.away = True
    assert await seen.job(known.job.id) == sight
    assert await seen.now() == sight.now
    assert seen.trouble == "nobody answers"
    with pytest.raises(Refusal) as caught:
        await seen.job(new.job.id)
    assert caught.value.code == "chain_unavailable"
    watched.away = False
    assert (await seen.job(new.job.id)).job == new.job
    assert seen.trouble is None


async def test_never_seen(watched: Watched) -> None:
    """A chain that never answered has no clock to go by."""
    watched.away = True
    with pytest.raises(Refusal) as caught:
        await Lookout(watched, depth=0).now()
    assert caught.value.code == "chain_unavailable"


async def test_half_a_claim_window(devnet: Devnet, chain: Chain, watched: Watched) -> None:
    """A job is relied on unseen for half its claim window: who completes meanwhile cannot reclaim before."""
    signer = await open_job(devnet, chain, claim_window=3600)
    loop = asyncio.get_running_loop()
    seen = Lookout(watched, depth=0)
    await seen.job(signer.job.id)
    watched.away = True
    later = loop.time() + 1801
    loop.time = lambda: later  # type: ignore[method-assign]
    try:
        with pytest.raises(Refusal) as caught:
            await seen.job(signer.job.id)
    finally:
        del loop.time
    assert caught.value.code == "chain_unavailable"


async def test_clock(devnet: Devnet, watched: Watched) -> None:
    """The chain's time goes on from the block that was furthest ahead; before any it is this machine's."""
    seen = Lookout(watched, depth=0)
    assert abs(seen.clock() - time.time()) < 1
    await devnet.increase_time(10_000)
    assert await seen.now() <= seen.clock() < time.time() + 10_001
    assert seen.clock() > time.time() + 9_000


@pytest.mark.parametrize("wrong_by", [-3600, 3600])
async def test_a_clock_that_is_wrong(
    devnet: Devnet, watched: Watched, wrong_by: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine whose clock is wrong by an hour knows the chain's time all the same."""
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + wrong_by)
    seen = Lookout(watched, depth=0)
    await devnet.mine()
    newest = await seen.now()
    assert newest <= seen.clock() < newest + 60
