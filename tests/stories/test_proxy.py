"""`tally proxy` as a process: any client asks, kill -9 loses nothing, and all the money is accounted for."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import openai
import pytest

from tallystick import pricing
from tallystick.chain import Chain
from tallystick.devnet import Devnet
from tallystick.types import Job, JobId, JobStatus
from tests.stories.parties import HostFactory, ProxyProcess, StartProxy

DEPOSIT = 500_000
MESSAGES: Any = [{"role": "user", "content": "Tell me of the tide."}]


async def job(chain: Chain, number: int = 1) -> Job:
    found = await chain.job(JobId(number))
    assert found is not None
    return found


async def test_a_killed_proxy_goes_on_with_its_job_and_all_adds_up(
    start_host: HostFactory, start_proxy: StartProxy, devnet: Devnet, chain: Chain
) -> None:
    """Killed in a reply, started again, ended: one job, and host + treasury + refund = deposit."""
    host = await start_host()
    payer, dollar = devnet.accounts.payer.address, devnet.dollar
    before = await chain.token_balance(dollar, payer)
    options = ("--deposit", "0.5")
    proxy = await start_proxy(host.url, *options)
    with pytest.raises(openai.APIError):
        await _killed_after(40, proxy)

    proxy = await start_proxy(host.url, *options)
    async with proxy.client() as client:
        asked = {"model": "tally-demo", "messages": MESSAGES}
        replies = (client.chat.completions.create(**asked, max_tokens=tokens) for tokens in (30, 150))
        answers = await asyncio.gather(*replies)
    assert {answer.usage.tally["job_id"] for answer in answers} == {1}
    assert (await job(chain)).status is JobStatus.OPEN
    assert proxy.end() == 0

    closed = await job(chain)
    earned = await chain.earnings(devnet.accounts.host.address, dollar)
    treasury = await chain.treasury_balance(dollar)
    completion = await chain.completion(JobId(1))
    assert completion is not None
    assert closed.status is JobStatus.CLOSED
    assert earned + treasury == closed.owed == pricing.owed(closed.settled, closed.prices)
    assert earned + treasury + completion.refund == DEPOSIT
    assert await chain.token_balance(dollar, payer) == before - closed.owed
    assert closed.settled.tokens >= 180
    assert await chain.job(JobId(2)) is None


async def _killed_after(tokens: int, proxy: ProxyProcess) -> None:
    """Reads a stream, and has the proxy killed once so many pieces came."""
    async with proxy.client() as client:
        stream = await client.chat.completions.create(
            model="tally-demo", messages=MESSAGES, max_tokens=150, stream=True
        )
        came = 0
        async for chunk in stream:
            came += bool(chunk.choices and chunk.choices[0].delta.content)
            if came == tokens:
                assert proxy.end(signal.SIGKILL) == -signal.SIGKILL


async def test_a_second_proxy_is_turned_away(start_host: HostFactory, start_proxy: StartProxy) -> None:
    """One store, one proxy: another says why it does not start, in a line."""
    host = await start_host()
    first = await start_proxy(host.url)
    with pytest.raises(AssertionError, match="another proxy pays from the jobs"):
        await start_proxy(host.url)
    assert first.process.poll() is None
