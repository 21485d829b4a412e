"""Several hosts, each with a real node: who is asked, and who takes over when one dies, lies or is slow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import openai
import pytest

from tallystick import pricing
from tallystick.caps import Caps
from tallystick.chain import Chain
from tallystick.devnet import Devnet
from tallystick.errors import HostRefused
from tallystick.frames import Problem
from tallystick.gateway import problem_of
from tallystick.proxy import Wanted, running
from tallystick.record import Record
from tallystick.spending import HostChosen, SetAside
from tallystick.testing.engine import Hang, Script, Step, say
from tallystick.types import Address, JobId, JobStatus, Totals
from tests.buying import DEPOSIT, MESSAGES, Proxy
from tests.market import CAPS, GOOD, Market
from tests.paying import look_always, until
from tests.stories.parties import free_port


@pytest.fixture
async def market(
    devnet: Devnet, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Market]:
    look_always(monkeypatch)
    async with AsyncExitStack() as parts:
        yield Market(devnet, chain, tmp_path, parts)


def record(proxy: Proxy, host: Address) -> Record:
    """What the proxy's store has of a host."""
    return proxy.spender.wallet.store.records(31337).get(host, Record(host))


def heard(proxy: Proxy) -> list[Any]:
    """What is told of hosts from now on."""
    events = list[Any]()
    proxy.spender.on(
        lambda _, event: events.append(event) if isinstance(event, HostChosen | SetAside) else None
    )
    return events


async def test_a_host_is_found_and_the_reason_told(market: Market) -> None:
    """Without a URL: the cheapest registered one that sells the model within the caps; its record begins."""
    await market.sell(1, GOOD, price="0.90")
    cheap = await market.sell(2, GOOD, price="0.50")
    proxy = await market.buyer()
    events = heard(proxy)
    answer = await proxy.ask()
    assert answer.usage.tally["host"] == cheap.url
    assert events == [HostChosen(market.host(2), cheap.url, "scripted", "the lowest price of 2")]
    await proxy.parts.aclose()
    kept = record(proxy, market.host(2))
    assert (kept.replies, kept.tokens, kept.troubles) == (1, 30, 0)
    assert kept.first_token_ms is not None
    assert record(proxy, market.host(1)) == Record(market.host(1))


async def test_the_command_needs_no_url(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tally proxy --deposit 2` alone: it says whom it may pay, and a client of it is answered."""
    line = await market.sell(1, GOOD)
    settings = {
        "PAYER_PRIVATE_KEY": market.devnet.accounts.payer.private_key.hex(),
        "RPC_URL": market.devnet.rpc_url,
        "PAYER_DATA_DIR": str(market.directory / "payer"),
        "PROXY_LISTEN": "127.0.0.1:0",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    async with (
        running(Wanted(deposit="2", prices=["1"], interval=200)) as (url, told),
        openai.AsyncOpenAI(base_url=url, api_key="-") as client,
    ):
        assert told.startswith("pays registered hosts")
        risk = "200 tokens (0.0002 tUSD at most) of the host's, 0 tokens (0 tUSD at most) of yours"
        assert told.endswith(f"at risk at a time: {risk}")
        answer = await client.chat.completions.create(model="scripted", messages=MESSAGES)
        assert answer.model_dump()["tally"]["host"] == line.url
    [job] = await market.chain.jobs()
    assert job.checkpoint_interval == 200


def test_a_refusal_that_is_passed_on_says_nothing_empty() -> None:
    """What only some refusals tell is left out of the others; what they tell stays."""
    plain = problem_of(HostRefused(Problem("job_closed", status=402)))
    assert not {"stored", "prompt_tokens", "terms", "retry_after"} & plain.keys()
    waits = problem_of(HostRefused(Problem("ledger_unavailable", status=503, retry=True, retry_after=2)))
    assert waits["retry_after"] == 2


async def test_models_of_all_hosts_are_listed(market: Market) -> None:
    """Each once, as of whoever would be asked, and within the caps alone."""
    dear = await market.sell(1, GOOD, price="0.90", models=("one", "two"))
    cheap = await market.sell(2, GOOD, price="0.50", models=("two", "three"))
    proxy = await market.buyer(Caps(DEPOSIT, DEPOSIT, None, {"three": 1}))
    listed = {model.id: model.model_dump()["host"] async for model in proxy.client.models.list()}
    assert listed == {"one": dear.url, "two": cheap.url}


async def test_a_host_that_dies_before_the_first_token_is_followed_unseen(market: Market) -> None:
    """The client is answered by the next host and told what was tried; the dead host's job is reclaimed."""
    dies = await market.sell(1, GOOD, Script((Hang(),)), price="0.50")
    lives = await market.sell(2, GOOD)
    proxy = await market.buyer()
    before, _ = await market.money()
    await proxy.ask()
    asking = asyncio.create_task(proxy.ask())
    [used] = proxy.spender.jobs
    await until(lambda: _is_under_way(proxy))
    dies.cut()
    answer = await asking
    assert answer.choices[0].message.content == "b " * 30
    [tried] = answer.usage.tally["tried"]
    assert (answer.usage.tally["host"], tried["host"]) == (lives.url, dies.url)
    assert record(proxy, market.host(1)).failures == 1
    await proxy.parts.aclose()
    dead, alive = await market.check_sums(before)
    assert (dead.id, dead.host, alive.host) == (used.session.job.id, market.host(1), market.host(2))
    assert alive.settled.tokens == 30


async def _is_under_way(proxy: Proxy) -> bool:
    return any(used.requests for used in proxy.spender.jobs)


async def test_a_reply_that_breaks_in_the_middle_ends_and_the_next_goes_elsewhere(market: Market) -> None:
    """The reader has the beginning, a finish reason and why; no other host is paid for those tokens."""
    dies = await market.sell(1, Script((*say(*["a "] * 30), Hang())), price="0.50")
    lives = await market.sell(2, GOOD)
    proxy = await market.buyer()
    events, (before, _) = heard(proxy), await market.money()
    chunks = list[Any]()
    async for chunk in await proxy.ask(stream=True, stream_options={"include_usage": True}):
        chunks.append(chunk)
        if len([each for each in chunks if each.choices and each.choices[0].delta.content]) == 30:
            dies.cut()
    cut, usage = chunks[-2:]
    assert [choice.finish_reason for choice in cut.choices] == ["length"]
    assert cut.tally["reason"] == cut.tally["error"]["code"] == "host_unreachable"
    assert (usage.usage.completion_tokens, usage.usage.model_extra["tally"]["host"]) == (30, dies.url)
    answer = await proxy.ask()
    assert answer.usage.tally["host"] == lives.url
    assert [type(event) for event in events] == [HostChosen, SetAside, HostChosen]
    await proxy.parts.aclose()
    dead, alive = await market.check_sums(before)
    assert alive.settled.tokens == 30
    assert dead.settled.tokens <= 30


async def test_a_whole_reply_that_breaks_is_asked_of_the_next_host(market: Market) -> None:
    """Of a reply that is given in one piece nobody has read any; what broke off is told with its cost."""
    engine_failed = Script((*say(*["a "] * 30), Hang()))
    dies = await market.sell(1, engine_failed, price="0.50")
    await market.sell(2, GOOD)
    proxy = await market.buyer()
    before, _ = await market.money()
    asking = asyncio.create_task(proxy.ask())
    await until(lambda: _has_come(proxy, 30))
    dies.cut()
    answer = await asking
    assert answer.choices[0].message.content == "b " * 30
    [tried] = answer.usage.tally["tried"]
    assert (tried["host"], tried["tokens"]) == (dies.url, 30)
    await proxy.parts.aclose()
    await market.check_sums(before)


async def test_a_whole_reply_that_breaks_at_the_only_host_is_told_with_its_cost(market: Market) -> None:
    """What came of it is paid for, though nobody has read it: the error says at which host, and how much."""
    dies = await market.sell(1, Script((*say(*["a "] * 30), Hang())), price="0.90")
    proxy = await market.buyer()
    asking = asyncio.create_task(proxy.ask())
    await until(lambda: _has_come(proxy, 30))
    [used] = proxy.spender.jobs
    dies.cut()
    with pytest.raises(openai.APIStatusError) as failed:
        await asking
    body: Any = failed.value.body
    assert (failed.value.status_code, body["code"], body["retry"]) == (503, "host_unreachable", True)
    [tried] = body["tried"]
    assert (tried["host"], tried["job_id"], tried["tokens"]) == (dies.url, used.session.job.id, 30)
    came = Totals(tried["prompt_tokens"], tried["tokens"])
    assert tried["cost"] == pricing.from_units(pricing.value(came, used.session.job.prices), 12)


async def _has_come(proxy: Proxy, tokens: int) -> bool:
    return any(used.session.owed >= tokens // 2 for used in proxy.spender.jobs)


async def test_a_host_that_overcounts_is_set_aside_and_its_job_completed(market: Market) -> None:
    """It is paid what its reply bears out; the next request goes to another host, and the store knows why."""
    lies = await market.sell(1, Script((*say("a", "b", "c"), Step("d", 40))), price="0.50")
    honest = await market.sell(2, GOOD)
    proxy = await market.buyer()
    before, _ = await market.money()
    first = await proxy.ask()
    assert first.usage.tally["overcount"] == {"what": "tokens", "counted": 43, "signed": 3}
    second = await proxy.ask()
    assert (first.usage.tally["host"], second.usage.tally["host"]) == (lies.url, honest.url)
    kept = record(proxy, market.host(1))
    assert (kept.overcounts, kept.replies, kept.cause) == (1, 0, "43 tokens counted, 3 signed for")
    await until(lambda: _closed(market, first))
    await proxy.parts.aclose()
    liar, _ = await market.check_sums(before)
    assert liar.settled.tokens == 3


async def _closed(market: Market, answer: Any) -> bool:
    job = await market.chain.job(JobId(answer.usage.tally["job_id"]))
    return job is not None and job.status is JobStatus.CLOSED


async def test_one_crash_under_many_replies_is_one_trouble(market: Market) -> None:
    """Each reply is counted as failed; the host is set aside once, for the time of a first trouble."""
    dies = await market.sell(1, Script((*say(*["a "] * 30), Hang())), price="0.50")
    proxy = await market.buyer()
    events = heard(proxy)
    replies = [asyncio.create_task(_whole_stream(proxy)) for _ in range(4)]
    await until(lambda: _has_come(proxy, 4 * 30))
    dies.cut()
    assert await asyncio.gather(*replies) == ["length"] * 4
    kept = record(proxy, market.host(1))
    assert (kept.failures, kept.in_a_row) == (4, 1)
    [aside] = [event for event in events if isinstance(event, SetAside)]
    assert aside.seconds == pytest.approx(proxy.spender.wallet.config.set_aside)


async def _whole_stream(proxy: Proxy) -> Any:
    """Why a streamed reply ended."""
    chunks = [chunk async for chunk in await proxy.ask(stream=True)]
    return chunks[-1].choices[0].finish_reason


async def test_a_slow_host_is_left_for_the_next(market: Market) -> None:
    """No token within PAYER_FIRST_TOKEN: the next host is asked, the slow one's job completed for nothing."""
    await market.sell(1, Script((Hang(),)), price="0.50")
    quick = await market.sell(2, GOOD)
    proxy = await market.buyer(first_token=0.3)
    before, _ = await market.money()
    answer = await proxy.ask()
    assert answer.usage.tally["host"] == quick.url
    assert "PAYER_FIRST_TOKEN" in answer.usage.tally["tried"][0]["detail"]
    assert record(proxy, market.host(1)).late == 1
    await proxy.parts.aclose()
    slow, _ = await market.check_sums(before)
    assert (slow.host, slow.owed) == (market.host(1), 0)


async def test_the_only_host_may_take_its_time(market: Market) -> None:
    """Where there is nobody else, a late reply is better than none."""
    gate = asyncio.Event()
    await market.sell(1, Script((gate, *say("a"))))
    proxy = await market.buyer(first_token=0.1)
    asking = asyncio.create_task(proxy.ask())
    await until(lambda: _is_under_way(proxy))
    await asyncio.sleep(0.3)
    gate.set()
    assert (await asking).choices[0].message.content == "a"


async def test_a_price_that_rose_before_the_opening_is_not_paid_unasked(market: Market) -> None:
    """The next host is asked, which is cheaper now; the one that rose did nothing wrong."""
    port, node = free_port(), await market.parts.enter_async_context(AsyncExitStack())
    await market.sell(1, GOOD, price="0.50", parts=node, port=port)
    other = await market.sell(2, GOOD, price="0.60")
    proxy = await market.buyer()
    await proxy.spender.hosts.listings()
    await node.aclose()
    await market.sell(1, GOOD, price="0.80", port=port)
    answer = await proxy.ask()
    assert answer.usage.tally["host"] == other.url
    assert "0.8 tUSD" in answer.usage.tally["tried"][0]["detail"]
    assert record(proxy, market.host(1)).troubles == 0
    assert [job.host for job in await market.jobs()] == [market.host(2)]


@pytest.mark.parametrize(("cap", "paid"), [(900_000, True), (700_000, False)])
async def test_a_price_that_rose_is_paid_where_the_caps_allow_it(
    market: Market, cap: int, paid: bool
) -> None:
    """Where there is no other host: at the new price within --max-price, and refused by the cap above it."""
    port, node = free_port(), await market.parts.enter_async_context(AsyncExitStack())
    await market.sell(1, GOOD, price="0.50", parts=node, port=port)
    proxy = await market.buyer(Caps(DEPOSIT, DEPOSIT, cap))
    await proxy.spender.hosts.listings()
    await node.aclose()
    await market.sell(1, GOOD, price="0.80", port=port)
    if paid:
        await proxy.ask()
        assert [job.prices.per_million for job in await market.jobs()] == [800_000]
        return
    with pytest.raises(openai.APIStatusError) as refused:
        await proxy.ask()
    assert refused.value.code == "price_above_cap"
    assert await market.jobs() == []


async def test_what_a_dead_host_holds_counts_against_the_day(market: Market) -> None:
    """Taking over never goes past --max-per-day: it is refused, and what holds the money is told."""
    dies = await market.sell(1, GOOD, price="0.50")
    await market.sell(2, GOOD)
    proxy = await market.buyer(Caps(DEPOSIT, DEPOSIT))
    await proxy.ask()
    dies.cut()
    with pytest.raises(openai.APIStatusError) as refused:
        await proxy.ask()
    assert refused.value.code == "cap_reached"
    assert "--max-per-day" in refused.value.message
    assert dies.url in refused.value.message
    assert len(await market.jobs()) == 1


async def test_when_all_have_failed_the_error_says_what_each_did(market: Market) -> None:
    """And the least bad is asked all the same the next time."""
    lines = [await market.sell(number, GOOD) for number in (1, 2)]
    proxy = await market.buyer()
    await proxy.spender.hosts.listings()
    for line in lines:
        line.cut()
    with pytest.raises(openai.InternalServerError) as refused:
        await proxy.ask()
    assert refused.value.code == "hosts_failed"
    assert all(line.url in refused.value.message for line in lines)
    assert isinstance(refused.value.body, dict)
    assert (refused.value.body["move"], len(refused.value.body["tried"])) == ("host", 2)


async def test_of_named_hosts_one_is_chosen(market: Market) -> None:
    """Several URLs are a choice among them: nobody else is asked, however cheap."""
    await market.sell(1, GOOD, price="0.10")
    two, three = [await market.sell(number, GOOD, price=f"0.{number}") for number in (2, 3)]
    proxy = await market.proxy([three.url, two.url], CAPS)
    assert (await proxy.ask()).usage.tally["host"] == two.url


async def test_the_payers_own_fault_is_nobody_elses(market: Market) -> None:
    """What every host would answer is answered at once, and no record is changed."""
    await market.sell(1, GOOD)
    await market.sell(2, GOOD)
    proxy = await market.buyer()
    with pytest.raises(openai.BadRequestError):
        await proxy.client.chat.completions.create(model="scripted", messages=MESSAGES, max_tokens=5_000)
    assert proxy.spender.wallet.store.records(31337) == {}


async def test_nobody_waits_for_a_host_that_cannot_complete(market: Market) -> None:
    """A host without a key says that it completes nothing: leaving says at once how the money comes back."""
    host = market.devnet.accounts.host
    await market.chain.transact(market.chain.register(host.address, "{}"), host.private_key)
    url = await market.serve(GOOD, host_private_key=None, host_address=host.address)
    proxy = await market.proxy(url)
    before, _ = await market.money()
    await proxy.ask()
    async with asyncio.timeout(30):
        await proxy.parts.aclose()
    [job] = await market.check_sums(before)
    assert job.owed == 0
