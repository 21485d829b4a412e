"""An answer is paid for once, however often a client asks: through a proxy, on a real chain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from tallystick import repeats
from tallystick.chain import Chain
from tallystick.devnet import Devnet
from tallystick.errors import EngineError
from tallystick.testing.engine import Script, ScriptedEngine, say
from tallystick.types import JobId
from tests.buying import MESSAGES, Bench, Proxy
from tests.paying import register, until

FIRST, SECOND = {repeats.RETRY_COUNT: "0"}, {repeats.RETRY_COUNT: "1"}


@pytest.fixture
async def bench(devnet: Devnet, chain: Chain, tmp_path: Path) -> AsyncIterator[Bench]:
    await register(devnet, chain)
    async with AsyncExitStack() as parts:
        yield Bench(devnet, chain, tmp_path, parts)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def ask(
    http: aiohttp.ClientSession, proxy: Proxy, headers: dict[str, str], **changes: Any
) -> tuple[int, Any, bool]:
    """Status, body, and whether it was there before."""
    body = {"model": "scripted", "messages": MESSAGES, "max_tokens": 300, **changes}
    async with http.post(f"{proxy.url}/chat/completions", json=body, headers=headers) as answer:
        return answer.status, await answer.json(), "idempotent-replayed" in answer.headers


async def paid(bench: Bench, proxy: Proxy) -> int:
    """Tokens that the proxy's only job has paid for, once the proxy is done."""
    await proxy.parts.aclose()
    job = await bench.chain.job(JobId(1))
    assert job is not None
    assert await bench.chain.job(JobId(2)) is None
    return job.settled.tokens


async def test_a_library_that_gave_up_and_tries_again_pays_once(bench: Bench) -> None:
    """OpenAI's own library, whose time is up before the reply: its next try has the answer of the first."""
    slow = asyncio.Event()
    proxy = await bench.proxy(await bench.serve(Script((*say("a", "b"), slow, *say("c")))))
    client = openai.AsyncOpenAI(base_url=proxy.url, api_key="-", max_retries=20, timeout=0.5)
    async with client:
        asking = asyncio.create_task(
            client.chat.completions.create(model="scripted", messages=MESSAGES, max_tokens=300)
        )
        await asyncio.sleep(1.5)  # the first try has given up meanwhile
        slow.set()
        answer = await asking
    assert answer.choices[0].message.content == "abc"
    assert await paid(bench, proxy) == 3


async def test_a_second_try_has_the_answer_of_the_first(bench: Bench, http: aiohttp.ClientSession) -> None:
    """The first client has gone before the answer was there: who asks the same again gets it, and is told."""
    slow = asyncio.Event()
    proxy = await bench.proxy(await bench.serve(Script((*say("a"), slow, *say("b")))))
    first = asyncio.create_task(ask(http, proxy, FIRST))

    async def is_under_way() -> bool:
        return any(used.requests for used in proxy.spender.jobs)

    await until(is_under_way)
    first.cancel()
    await asyncio.wait([first])
    slow.set()
    status, body, replayed = await ask(http, proxy, SECOND)
    assert (status, body["choices"][0]["message"]["content"], replayed) == (200, "ab", True)
    assert await paid(bench, proxy) == 2


async def test_equal_requests_are_answered_each(bench: Bench, http: aiohttp.ClientSession) -> None:
    """Who asks the same on purpose wants another answer: a first try is never answered with an old one."""
    proxy = await bench.proxy(await bench.serve(Script(say("a", "b"))))
    answers = [await ask(http, proxy, FIRST) for _ in range(2)]
    answers += [await ask(http, proxy, {}) for _ in range(2)]
    assert [replayed for _, _, replayed in answers] == [False] * 4
    assert await paid(bench, proxy) == 8


async def test_a_second_try_has_the_newest_answer(bench: Bench, http: aiohttp.ClientSession) -> None:
    """Of two equal requests the first one's answer was handed out: who comes back comes for the second's."""
    replies = iter([Script(say("old")), Script(say("new"))])
    engine = ScriptedEngine(lambda _: next(replies), models=("scripted",))
    proxy = await bench.proxy(await bench.serve(engine=engine))
    answers = [await ask(http, proxy, headers) for headers in (FIRST, FIRST, SECOND)]
    assert [body["choices"][0]["message"]["content"] for _, body, _ in answers] == ["old", "new", "new"]


async def test_a_key_has_one_answer(bench: Bench, http: aiohttp.ClientSession) -> None:
    """At the same time or later: one `Idempotency-Key` is one reply. For another request it is refused."""
    proxy = await bench.proxy(await bench.serve(Script(say("a", "b"))))
    key = {"Idempotency-Key": "order-7"}
    answers = [*await asyncio.gather(*(ask(http, proxy, key) for _ in range(3))), await ask(http, proxy, key)]
    assert len({body["id"] for _, body, _ in answers}) == 1
    assert sorted(replayed for _, _, replayed in answers) == [False, True, True, True]
    status, body, _ = await ask(http, proxy, key, max_tokens=7)
    assert (status, body["error"]["code"]) == (422, "idempotency_mismatch")
    status, body, _ = await ask(http, proxy, {"Idempotency-Key": "no good"})
    assert (status, body["error"]["code"]) == (400, "invalid_request")
    assert await paid(bench, proxy) == 2


async def test_what_failed_is_tried_anew(bench: Bench, http: aiohttp.ClientSession) -> None:
    """An error is no answer to keep: the second try is served, and paid for."""
    replies = iter([Script((EngineError("out of memory"),)), Script(say("a"))])
    engine = ScriptedEngine(lambda _: next(replies), models=("scripted",))
    proxy = await bench.proxy(await bench.serve(engine=engine))
    key = {"Idempotency-Key": "order-8"}
    failed, _, _ = await ask(http, proxy, key)
    status, _, replayed = await ask(http, proxy, key)
    assert (failed >= 500, status, replayed) == (True, 200, False)
    assert await paid(bench, proxy) == 1


async def test_what_is_kept_is_bounded(
    bench: Bench, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest answer goes first: its key is as good as new then."""
    monkeypatch.setattr(repeats, "MOST", 1)
    proxy = await bench.proxy(await bench.serve(Script(say("a"))))
    for name in ("one", "two"):
        await ask(http, proxy, {"Idempotency-Key": name})
    again = [(await ask(http, proxy, {"Idempotency-Key": name}))[2] for name in ("two", "one")]
    assert again == [True, False]
    assert await paid(bench, proxy) == 3
