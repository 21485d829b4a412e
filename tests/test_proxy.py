"""The proxy, in front of a real node whose engine follows a script: any client asks, and is paid for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from tallystick import pricing
from tallystick.caps import Caps
from tallystick.chain import Chain
from tallystick.config import HostConfig, PayerConfig, Secret
from tallystick.devnet import Devnet
from tallystick.errors import ConfigError
from tallystick.gateway import Gateway
from tallystick.node import Node
from tallystick.proxy import Door, alone, listening
from tallystick.server import running
from tallystick.spending import Spender
from tallystick.store import Store
from tallystick.testing.engine import Hang, Script, ScriptedEngine, Step, say
from tallystick.types import JobStatus
from tallystick.wallet import Wallet
from tests.paying import register

DEPOSIT = 2_000_000
MESSAGES: list[Any] = [{"role": "user", "content": "Why was the stick split?"}]


@dataclass
class Bench:
    """A node, and a proxy in front of it."""

    devnet: Devnet
    chain: Chain
    directory: Path
    parts: AsyncExitStack

    async def serve(self, *scripts: Script, models: tuple[str, ...] = ("scripted",), **settings: Any) -> str:
        """A node with an engine that follows these scripts: its URL."""
        config = HostConfig(
            host_private_key=Secret(self.devnet.accounts.host.private_key),
            rpc_url=self.devnet.rpc_url,
            data_dir=self.directory / "host",
            **{"receipt_timeout": 1, **settings},
        )
        node = Node(config, engine=ScriptedEngine(*scripts, models=models))
        return await self.parts.enter_async_context(running(node))

    def wallet(self) -> Wallet:
        """The devnet's payer."""
        key = Secret(self.devnet.accounts.payer.private_key)
        store = Store(self.directory / "payer")
        self.parts.callback(store.close)
        return Wallet(PayerConfig(payer_private_key=key, rpc_url=self.devnet.rpc_url), self.chain, store)

    async def proxy(
        self, host_url: str, caps: Caps | None = None, *, api_key: str | None = None, **how: Any
    ) -> Proxy:
        """A proxy for that host, and clients of it. Closing its parts ends it in order."""
        parts = await self.parts.enter_async_context(AsyncExitStack())
        spender = Spender(self.wallet(), caps or Caps(DEPOSIT, DEPOSIT), host_url, **how)
        await parts.enter_async_context(spender)
        secret = Secret(api_key) if api_key else None
        url = await parts.enter_async_context(listening(spender, Gateway(spender), "127.0.0.1", 0, secret))
        client = openai.AsyncOpenAI(base_url=url, api_key=api_key or "-", max_retries=0)
        await parts.enter_async_context(client)
        return Proxy(url, client, spender, parts)

    async def money(self) -> tuple[int, int]:
        """What payer and contract have of the dollar."""
        payer, contract = self.devnet.accounts.payer.address, self.devnet.deployment.marketplace
        dollar = self.devnet.dollar
        return await self.chain.token_balance(dollar, payer), await self.chain.token_balance(dollar, contract)


@dataclass
class Proxy:
    url: str
    client: openai.AsyncOpenAI
    spender: Spender
    parts: AsyncExitStack

    async def ask(self, max_tokens: int = 300, **how: Any) -> Any:
        return await self.client.chat.completions.create(
            model=how.pop("model", "scripted"), messages=MESSAGES, max_tokens=max_tokens, **how
        )


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
