"""LangChain through the proxy, as docs/clients.md shows it: streamed, at once, several at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from tallystick.chain import Chain
from tallystick.devnet import Devnet
from tallystick.testing.engine import Script, say
from tallystick.types import JobId, JobStatus
from tests.buying import Bench, Proxy
from tests.paying import register

QUESTION = "Why was the stick split?"


@pytest.fixture
async def proxy(devnet: Devnet, chain: Chain, tmp_path: Path) -> AsyncIterator[Proxy]:
    await register(devnet, chain)
    async with AsyncExitStack() as parts:
        bench = Bench(devnet, chain, tmp_path, parts)
        yield await bench.proxy(await bench.serve(Script(say("So ", "that ", "both ", "count."))))


def model(proxy: Proxy) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=proxy.url,
        api_key=SecretStr("-"),
        model="scripted",
        max_completion_tokens=300,
        stream_usage=True,
    )


async def test_answers_in_one_piece(proxy: Proxy) -> None:
    """An answer with its usage, which is what the job is charged with."""
    answer = await model(proxy).ainvoke(QUESTION)
    assert answer.content == "So that both count."
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 4


async def test_streams_and_several_at_a_time(proxy: Proxy, chain: Chain) -> None:
    """Chunks as they come, and a batch beside: one job pays for all, to the token."""
    asked = model(proxy)
    chunks = [chunk async for chunk in asked.astream(QUESTION)]
    assert [chunk.content for chunk in chunks if chunk.content] == ["So ", "that ", "both ", "count."]
    told = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata is not None]
    assert [usage["output_tokens"] for usage in told] == [4]
    answers = await asked.abatch([QUESTION] * 3)
    assert {answer.content for answer in answers} == {"So that both count."}
    await proxy.parts.aclose()
    job = await chain.job(JobId(1))
    assert job is not None
    assert (job.status, job.settled.tokens) == (JobStatus.CLOSED, 16)
