"""The proxy, in front of a real node whose engine follows a script: any client asks, and is paid for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tallystick import pricing
from tallystick.chain import Chain
from tallystick.devnet import Devnet
from tallystick.testing.engine import Script, say
from tallystick.types import JobStatus
from tests.buying import Bench
from tests.paying import register


@pytest.fixture
async def bench(devnet: Devnet, chain: Chain, tmp_path: Path) -> AsyncIterator[Bench]:
    await register(devnet, chain)
    async with AsyncExitStack() as parts:
        yield Bench(devnet, chain, tmp_path, parts)


async def test_an_unmodified_client_is_answered_and_the_host_is_paid(bench: Bench) -> None:
    """An answer in one piece, longer than the credit, is streamed, signed for, told in money, and settled."""
    proxy = await bench.proxy(await bench.serve(Script(say(*["word "] * 230))))
    before, _ = await bench.money()
    answer = await proxy.ask()
    [used] = proxy.spender.jobs
    job = used.session.job
    assert answer.choices[0].message.content == "word " * 230
    assert answer.usage.completion_tokens == 230
    assert answer.usage.tally["tokens"] == 230
    await used.session.flush()
    value = pricing.value(used.session.receipted, job.prices)
    assert pricing.to_units(answer.usage.tally["cost"], 12) == value
    await proxy.parts.aclose()
    closed = await bench.chain.job(job.id)
    assert closed is not None
    assert closed.status is JobStatus.CLOSED
    after, _ = await bench.money()
    assert before - after == closed.owed == pricing.owed(closed.settled, job.prices)
    assert closed.settled.tokens == 230


async def test_a_stream_comes_as_it_is_made(bench: Bench) -> None:
    """Streamed, each piece is there before the next one is made; the last ones tell usage and cost."""
    gate = asyncio.Event()
    url = await bench.serve(Script((*say("a", "b"), gate, *say("c"))))
    proxy = await bench.proxy(url)
    stream = await proxy.ask(stream=True, stream_options={"include_usage": True})
    text, usage, reasons = "", None, []
    async for chunk in stream:
        text += chunk.choices[0].delta.content or "" if chunk.choices else ""
        if text == "ab":
            gate.set()
        reasons += [choice.finish_reason for choice in chunk.choices if choice.finish_reason]
        usage = chunk.usage or usage
    assert text == "abc"
    assert reasons == ["stop"]
    assert usage is not None
    assert usage.completion_tokens == 3
    assert usage.model_extra["tally"]["asset"] == "tUSD"


async def test_requests_side_by_side_share_one_job(bench: Bench) -> None:
    """Many requests at once are paid from one job; its total is their sum."""
    proxy = await bench.proxy(await bench.serve(Script(say(*["a "] * 40))))
    answers = await asyncio.gather(*(proxy.ask(max_tokens=60) for _ in range(12)))
    assert [answer.usage.completion_tokens for answer in answers] == [40] * 12
    [used] = proxy.spender.jobs
    await used.session.flush()
    assert used.session.receipted.tokens == 480
