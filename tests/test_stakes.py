"""What a payer's jobs may come to today, in one store that several programs share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tallystick.caps import Caps, Stake
from tallystick.chain import Chain
from tallystick.devnet import Devnet
from tallystick.opening import Wishes
from tallystick.stakes import Stakes
from tallystick.testing.engine import Script, say
from tests.buying import Bench, open_staked
from tests.paying import register


@pytest.fixture
async def bench(devnet: Devnet, chain: Chain, tmp_path: Path) -> AsyncIterator[Bench]:
    await register(devnet, chain)
    async with AsyncExitStack() as parts:
        yield Bench(devnet, chain, tmp_path, parts)


async def test_a_stake_is_decided_anew_when_another_came_between(bench: Bench) -> None:
    """Nobody takes room that another program has taken since it was looked at."""
    purse = bench.wallet()
    url = await bench.serve(Script(say("a")))
    _, job = await open_staked(purse, url, Wishes(500))
    unstaked = await purse.open(url, Wishes(400), print)
    await unstaked.close()
    stakes = Stakes(purse, Caps(1000, 1200), purse.asset(), lambda signer: 0)
    day = await stakes.today()
    seen = []

    async def decide(mine: Stake, room: int) -> int:
        seen.append(room)
        if len(seen) == 1:
            other = replace(mine, signer=unstaked.job.signer, most=400)
            assert purse.store.stake(other)
        return mine.most + min(room, 600)

    assert await stakes.change(job.signer, decide) == 800
    assert seen == [700, 300]
    assert await stakes.room(day) == 0
    await stakes.limit(job, 10)
    assert await stakes.room(day) == 790
