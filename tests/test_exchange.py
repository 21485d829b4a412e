"""One request over a job, against a real node: what came is counted at once, and signed for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest

from tallystick import pricing
from tallystick.chain import Chain
from tallystick.devnet import Devnet
from tallystick.errors import HostRefused, ReceiptError, SessionError
from tallystick.exchange import Exchange
from tallystick.opening import Wishes
from tallystick.session import Event, PromptAhead, Session
from tallystick.testing.engine import Hang, Script, Step, say
from tests.buying import DEPOSIT, MESSAGES, Bench
from tests.paying import register

CHAT = "/v1/chat/completions"


@pytest.fixture
async def bench(devnet: Devnet, chain: Chain, tmp_path: Path) -> AsyncIterator[Bench]:
    await register(devnet, chain)
    async with AsyncExitStack() as parts:
        yield Bench(devnet, chain, tmp_path, parts)


async def session(
    bench: Bench, *scripts: Script, parts: AsyncExitStack | None = None, **terms: Any
) -> Session:
    """A session on a new job with a host whose engine follows these scripts."""
    wallet = bench.wallet()
    url = await bench.serve(*scripts, parts=parts)
    wishes = Wishes(**{"deposit": DEPOSIT, **terms})
    opened = await Session.open(bench.chain, wallet.store, wallet.key(), url, wishes)
    return await bench.parts.enter_async_context(opened)


def asking(using: Session, max_tokens: int = 500, **body: Any) -> Exchange:
    asked = {"messages": MESSAGES, "max_tokens": max_tokens, **body}
    return Exchange(using, CHAT, asked, max_tokens=max_tokens * body.get("n", 1), choices=body.get("n", 1))


async def text_of(exchange: Exchange) -> str:
    """What a reply says, all choices in the order of arrival."""
    events = [orjson.loads(part.raw) async for parts in exchange for part in parts if part.said]
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


async def test_what_came_is_what_is_signed(bench: Bench) -> None:
    """A reply over HTTP, longer than the credit, goes on as its receipts go over the WebSocket."""
    using = await session(bench, Script(say(*["word "] * 230)))
    async with asking(using) as exchange:
        assert await text_of(exchange) == "word " * 230
    await using.flush()
    assert using.receipted == exchange.tab.totals
    assert exchange.tab.totals.tokens == 230
    completion = await using.complete()
    assert completion.owed == pricing.owed(exchange.tab.totals, using.job.prices)


async def test_several_choices_are_one_request(bench: Bench) -> None:
    """Choices add up to one count, which their texts and end tokens bear out."""
    using = await session(bench, Script(say("a", "b", "c"), unseen=1))
    async with asking(using, n=3) as exchange:
        assert sorted(await text_of(exchange)) == sorted("abc" * 3)
    await using.flush()
    assert exchange.tab.overcount is None
    assert using.receipted.tokens == 12


async def test_a_reply_that_is_left_is_ended_and_paid_to_the_token(bench: Bench) -> None:
    """Leaving ends it at the host too; what was on its way is taken in, and nothing is written off."""
    using = await session(bench, Script((*say(*["a "] * 30), Hang())), Script(say("b")))
    async with asking(using) as exchange:
        async for parts in exchange:
            if parts[-1].tally and parts[-1].tally.totals.tokens == 30:
                break
    await using.flush()
    assert using.receipted.tokens == 30
    async with asking(using) as again:
        assert await text_of(again) == "b"
    await using.flush()
    assert using.receipted.tokens == 31


async def test_a_reader_that_stands_still_holds_up_nothing(bench: Bench) -> None:
    """What nobody reads yet is received and signed for all the same, beyond the credit."""
    using = await session(bench, Script(say(*["a "] * 300)))
    async with asking(using) as exchange:
        async with asyncio.timeout(30):
            while using.receipted.tokens < 300:  # noqa: ASYNC110 - it is the host that goes on
                await asyncio.sleep(0.01)
        assert len(await text_of(exchange)) == 600


async def test_a_prompt_beyond_the_credit_is_signed_for_first(bench: Bench) -> None:
    """Law 5: the payer signs for a long prompt, is told its cost, and the request goes on."""
    using = await session(bench, Script(say("a")), interval=4)
    events: list[Event] = []
    using.on(events.append)
    async with asking(using, messages=[{"role": "user", "content": "why " * 200}]) as exchange:
        assert await text_of(exchange) == "a"
    assert [type(event) for event in events if isinstance(event, PromptAhead)] == [PromptAhead]


async def test_a_host_that_pads_is_not_paid_for_it(bench: Bench) -> None:
    """Law 3: a count above the bytes received is not signed for."""
    using = await session(bench, Script((*say("a", "b", "c"), Step("d", 40))))
    async with asking(using) as exchange:
        assert await text_of(exchange) == "abcd"
    await using.flush()
    assert exchange.tab.overcount is not None
    assert (exchange.tab.overcount.counted, exchange.tab.overcount.bound) == (43, 3)
    assert using.receipted.tokens == 3


async def test_a_refusal_is_the_hosts_own(bench: Bench) -> None:
    """What the host refuses is raised with its code and status; the job goes on."""
    using = await session(bench, Script(say("a")))
    with pytest.raises(HostRefused) as refused:
        async with asking(using, model="another"):
            pass
    assert (refused.value.problem.code, refused.value.problem.status) == ("model_unknown", 404)
    async with asking(using) as exchange:
        assert await text_of(exchange) == "a"


async def test_a_host_that_goes_away_breaks_the_reply_off(bench: Bench) -> None:
    """What came until then stays signed for, and the reply says why there is no more."""
    node = await bench.parts.enter_async_context(AsyncExitStack())
    using = await session(bench, Script((*say(*["a "] * 20), Hang())), parts=node)
    async with asking(using) as exchange:
        reasons = [reason async for reason in _until_stopped(exchange, node)]
    assert reasons == ["node_stopping"]
    assert exchange.tab.totals.tokens == 20


async def test_what_came_before_an_event_that_nobody_can_sign_is_handed_on(bench: Bench) -> None:
    """In one read from the host: the good ones are counted and read, and the reply ends with the bad one."""
    using = await session(bench, Script((*say("a"), Hang())))
    async with asking(using) as exchange:
        event: dict[str, Any] = {}
        while not event.get("tally", {}).get("tokens"):
            event = orjson.loads((await anext(exchange))[-1].raw)
        good = {**event, "tally": {**event["tally"], "tokens": 2}}
        anothers = {**good, "tally": {**good["tally"], "request": "0" * 32}}
        for bad, error in ((orjson.dumps(anothers), ReceiptError), (b"no event", SessionError)):
            with pytest.raises(error):
                exchange._hear([orjson.dumps(good), bad, orjson.dumps(good)])
            [heard] = await anext(exchange)
            assert orjson.loads(heard.raw) == good
        assert exchange.tab.totals.tokens == 2


async def _until_stopped(exchange: Exchange, node: AsyncExitStack) -> AsyncIterator[str]:
    """Stops the node once 20 tokens came; why the reply ended, in the host's words."""
    async with asyncio.TaskGroup() as tasks:
        async for parts in exchange:
            told = parts[-1].tally
            assert told is not None
            if told.reason:
                yield told.reason
            elif told.totals.tokens == 20:
                tasks.create_task(node.aclose())
