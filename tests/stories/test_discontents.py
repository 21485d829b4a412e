"""What goes wrong at a payer's without anybody's fault: clocks, two machines, a lost deposit, a late view."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tallystick import pricing
from tallystick.chain import Chain
from tallystick.devnet import Devnet
from tallystick.testing.faults import Lag
from tallystick.testing.geth import Upstream
from tallystick.testing.rpc import FaultyRpc
from tallystick.types import ETH, Job, JobId, JobStatus
from tests.stories.parties import HostFactory, ProxyProcess, StartProxy

HOUR = 3600
SHIFTED = """
import time
_right = time.time
time.time = lambda: _right() + {seconds}
"""


@pytest.fixture
def wrong_by(tmp_path: Path) -> Any:
    """The environment of a Python whose clock is wrong by so many seconds."""

    def setting(seconds: int) -> dict[str, str]:
        place = tmp_path / f"clock{seconds}"
        place.mkdir()
        (place / "sitecustomize.py").write_text(SHIFTED.format(seconds=seconds))
        return {"PYTHONPATH": str(place)}

    return setting


async def ask(proxy: ProxyProcess, tokens: int = 120) -> Any:
    async with proxy.client() as client:
        return await client.chat.completions.create(
            model="tally-demo",
            messages=[{"role": "user", "content": "Tell me of the tide."}],
            max_tokens=tokens,
        )


async def jobs(chain: Chain) -> list[Job]:
    """All that there are."""
    found: list[Job] = []
    while (job := await chain.job(JobId(len(found) + 1))) is not None:
        found.append(job)
    return found


@pytest.mark.parametrize("ahead", [-HOUR, HOUR])
async def test_a_clock_that_is_wrong_by_an_hour(
    start_host: HostFactory, start_proxy: StartProxy, chain: Chain, wrong_by: Any, ahead: int
) -> None:
    """All deadlines are of the chain's clock: nobody is refused or unpaid for what a machine's own says.

    The host's is wrong by an hour, and the payer's by an hour the other way.
    """
    host = await start_host(**wrong_by(ahead))
    proxy = await start_proxy(host.url, **wrong_by(-ahead))
    answer = await ask(proxy)
    assert proxy.end() == 0
    (job,) = await jobs(chain)
    assert job.status is JobStatus.CLOSED
    assert (job.settled.prompt_tokens, job.settled.tokens) == (
        answer.usage.prompt_tokens,
        answer.usage.completion_tokens,
    )


async def test_a_token_with_18_decimals(
    start_host: HostFactory, start_proxy: StartProxy, devnet: Devnet, chain: Chain
) -> None:
    """Prices, caps and sums hold to the unit where a unit is a billionth of a billionth: paid in ETH."""
    host = await start_host(HOST_ASSETS=f"{ETH}=0.0003/0.0001")
    before = await chain.earnings(devnet.accounts.host.address, ETH)
    proxy = await start_proxy(host.url, "--deposit", "0.001", PAYER_ASSET=ETH)
    answer = await ask(proxy)
    assert proxy.end() == 0
    (job,) = await jobs(chain)
    assert (job.asset, job.deposit, job.status) == (ETH, 10**15, JobStatus.CLOSED)
    assert job.settled.tokens == answer.usage.completion_tokens
    owed = pricing.owed(job.settled, job.prices)
    assert owed == (job.settled.tokens * 3 * 10**14 + job.settled.prompt_tokens * 10**14) // 10**6
    earned = await chain.earnings(devnet.accounts.host.address, ETH) - before
    assert earned + await chain.treasury_balance(ETH) == owed
    assert answer.usage.tally["cost"] == pricing.from_units(owed, 18)


async def test_two_machines_with_one_key(
    start_host: HostFactory, start_proxy: StartProxy, devnet: Devnet, chain: Chain, tmp_path: Path
) -> None:
    """Two proxies with stores of their own pay from one account at once: two jobs, each paid to the token."""
    host = await start_host()
    payer, dollar = devnet.accounts.payer.address, devnet.dollar
    before = await chain.token_balance(dollar, payer)
    proxies = [
        await start_proxy(host.url, PAYER_DATA_DIR=str(tmp_path / place)) for place in ("one", "other")
    ]
    answers = await asyncio.gather(*map(ask, proxies))
    assert [proxy.end() for proxy in proxies] == [0, 0]
    closed = {job.id: job for job in await jobs(chain)}
    assert sorted(answer.usage.tally["job_id"] for answer in answers) == sorted(closed) == [1, 2]
    for answer in answers:
        job = closed[answer.usage.tally["job_id"]]
        assert (job.status, job.settled.tokens) == (JobStatus.CLOSED, answer.usage.completion_tokens)
    assert await chain.token_balance(dollar, payer) == before - sum(job.owed for job in closed.values())


async def test_a_view_of_the_chain_that_lags(
    start_host: HostFactory, start_proxy: StartProxy, devnet: Devnet, chain: Chain
) -> None:
    """A payer whose endpoint is three blocks behind the host's is served, and gets the rest back."""
    host = await start_host()
    await devnet.mine(10)  # the contracts are deeper than the view is behind
    async with Upstream(devnet.rpc_url) as node, FaultyRpc(node) as rpc:
        proxy = await start_proxy(host.url, RPC_URL=rpc.url)
        with rpc.failing(Lag(3)):
            mining = asyncio.create_task(_mine(devnet))
            answers = [await ask(proxy) for _ in range(2)]
            assert proxy.end() == 0
            mining.cancel()
        assert rpc.fired["lag"]
    (job,) = await jobs(chain)
    assert job.status is JobStatus.CLOSED
    assert job.settled.tokens == sum(answer.usage.completion_tokens for answer in answers)


async def _mine(devnet: Devnet) -> None:
    """Blocks come whether anybody sends anything or not."""
    while True:
        await asyncio.sleep(0.5)
        await devnet.mine()


async def test_a_deposit_that_a_reorganisation_takes_back(
    start_host: HostFactory, start_proxy: StartProxy, devnet: Devnet, chain: Chain
) -> None:
    """The deposit is the payer's again, and the cap's: the next request has another job, and is paid."""
    host = await start_host()
    payer, dollar = devnet.accounts.payer.address, devnet.dollar
    before = await chain.token_balance(dollar, payer)
    proxy = await start_proxy(host.url, "--deposit", "2")
    height = await chain.block_number()
    await ask(proxy, 30)
    await host.wait_for("job.opened")
    await devnet.reorganise(await chain.block_number() - height)
    assert await jobs(chain) == []
    await host.wait_for("job.vanished")
    answer = await ask(proxy)
    assert proxy.end() == 0
    (job,) = await jobs(chain)
    assert job.status is JobStatus.CLOSED
    assert job.settled.tokens == answer.usage.completion_tokens
    assert await chain.token_balance(dollar, payer) == before - job.owed
