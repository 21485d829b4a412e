"""The SDK without an event loop, against a real node in another thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from httpx2 import Timeout

from tallystick import Session
from tallystick.chain import Chain
from tallystick.devnet import Devnet
from tallystick.errors import ConfigError, Refusal, SessionError
from tallystick.session import Signed
from tallystick.testing.engine import Hang, Script, ScriptedEngine, say
from tallystick.testing.faults import Status
from tallystick.testing.geth import Upstream
from tallystick.testing.rpc import FaultyRpc
from tallystick.types import Completion, JobId, JobStatus
from tests.buying import DEPOSIT, MESSAGES, Bench
from tests.hosting import started
from tests.paying import register, until
from tests.test_client import config


@pytest.fixture
async def bench(devnet: Devnet, chain: Chain, tmp_path: Path) -> AsyncIterator[Bench]:
    await register(devnet, chain)
    async with AsyncExitStack() as parts:
        yield Bench(devnet, chain, tmp_path, parts)


async def test_two_lines_are_enough(bench: Bench) -> None:
    """The text comes as it is made, events too, and leaving brings the rest back."""
    url = await bench.serve(Script(say(*["word "] * 230)))
    before, _ = await bench.money()
    heard: list[Any] = []

    def talk() -> str:
        with Session(
            deposit="0.5 tUSD", model="scripted", max_price="0.90", host=url, config=config(bench)
        ) as session:
            session.on("completed", heard.append)
            return "".join(session.chat("Why?", max_tokens=300))

    assert await asyncio.to_thread(talk) == "word " * 230
    assert before - (await bench.money())[0] == heard[0].owed


async def test_leaving_a_reply_ends_it(bench: Bench) -> None:
    """A `break` is enough: the reply is cancelled at the host, and what came is paid for."""
    url = await bench.serve(Script((*say(*["a "] * 30), Hang())), Script(say("b")))

    def talk() -> list[str]:
        with Session(host=url, config=config(bench)) as session:
            text = ""
            for piece in session.chat("Why?"):
                text += piece
                if len(text) == 60:
                    break
            return list(session.chat("Why?"))

    assert await asyncio.to_thread(talk) == ["b"]
    job = await bench.chain.job(JobId(1))
    assert job is not None
    assert job.settled.tokens == 31


async def test_outside_of_with_it_is_told(bench: Bench) -> None:
    """Before and after: an error that says so, and nothing is left that nobody awaits."""
    url = await bench.serve(Script(say("a")))
    session = Session(host=url, config=config(bench))

    def ask() -> None:
        with pytest.raises(SessionError, match="with Session"):
            session.models()
        with pytest.raises(SessionError, match="with Session"):
            list(session.chat("Why?"))

    def talk() -> None:
        ask()
        with session:
            assert session.models() == ["scripted"]
        ask()

    await asyncio.to_thread(talk)


async def test_the_end_of_the_session_is_told_to_whoever_reads(bench: Bench) -> None:
    """A reply that another thread waits for is not given out as one that has ended."""
    hangs = Script((Hang(),))
    engine = ScriptedEngine(hangs, Script((*say(*["a "] * 30), Hang())), hangs)
    url = await bench.serve(engine=engine)
    session = Session(host=url, config=config(bench))
    client = session.__enter__().openai(max_retries=0)
    how: Any = {"model": "scripted", "messages": MESSAGES, "max_tokens": 100}
    waits = (
        lambda: list(session.chat("Why?", max_tokens=100)),
        lambda: list(session.chat("Why?", max_tokens=100)),
        lambda: client.chat.completions.create(**how),
    )
    waiting = []
    for number, wait in enumerate(waits, start=1):
        waiting.append(asyncio.create_task(asyncio.to_thread(wait)))
        await started(engine, number)
    await asyncio.to_thread(session.__exit__, None, None, None)
    for each in waiting:
        with pytest.raises(SessionError, match="was left"):
            await each
    client.close()


async def test_a_job_that_is_being_opened_is_completed(bench: Bench) -> None:
    """Who waits for the first reply is told at once that the session was left; the deposit comes back."""
    url = await bench.serve(Script(say("a")))
    await bench.wallet().transact(bench.chain.approve(bench.devnet.dollar, DEPOSIT))
    before = await bench.money()
    async with Upstream(bench.devnet.rpc_url) as node, FaultyRpc(node) as rpc:
        session = Session(host=url, config=replace(config(bench), rpc_url=rpc.url))
        await asyncio.to_thread(session.__enter__)
        with rpc.failing(Status(503), "eth_getTransactionReceipt"):
            asking = asyncio.create_task(asyncio.to_thread(lambda: list(session.chat("Why?"))))
            await until(lambda: _is_sent(rpc))
            leaving = asyncio.create_task(asyncio.to_thread(session.__exit__, None, None, None))
            with pytest.raises(SessionError, match="was left"):
                await asking
        await leaving
    job = await bench.chain.job(JobId(1))
    assert job is not None
    assert (job.status, await bench.money()) == (JobStatus.CLOSED, before)


async def _is_sent(rpc: FaultyRpc) -> bool:
    return bool(rpc.reached["eth_sendRawTransaction"])


async def test_listeners_may_call_the_session(bench: Bench) -> None:
    """One event after the other, in their order, in a thread that nothing waits for but the end."""
    url = await bench.serve(Script(say(*["word "] * 230)), Script(say("b")))
    heard: list[Any] = []

    def hear(event: Any) -> None:
        heard.append(type(event))
        if heard == [Signed]:
            heard.append(session.models())
            heard.append("".join(session.chat("Why?", max_tokens=10)))

    def talk() -> None:
        with session:
            session.on("checkpoint", hear)
            session.on("completed", hear)
            list(session.chat("Why?", max_tokens=300))

    session = Session(host=url, config=config(bench))
    await asyncio.to_thread(talk)
    assert heard[:3] == [Signed, ["scripted"], "b"]
    assert heard[-1] is Completion


def test_a_listener_that_nothing_would_await_is_refused() -> None:
    """It would never run: that is said when it is given."""

    async def hear(event: Any) -> None:
        raise AssertionError(event)

    with pytest.raises(ConfigError, match="async def"):
        Session().on("completed", hear)


async def test_sessions_run_side_by_side_with_one_key(bench: Bench) -> None:
    """Two threads, a session each, one store: both are served, within one day's cap."""
    url = await bench.serve(Script(say("a")), models=("one", "two"))

    def talk(model: str) -> str:
        with Session(
            deposit="0.5", max_per_day="0.8", model=model, host=url, config=config(bench)
        ) as session:
            return "".join(session.chat("Why?", max_tokens=10))

    talks = (asyncio.to_thread(talk, model) for model in ("one", "two"))
    assert await asyncio.gather(*talks) == ["a", "a"]
    opened = [await bench.chain.job(event.job_id) for event in await bench.chain.jobs()]
    assert sorted(job.deposit for job in opened if job) == [300_000, 500_000]


async def test_errors_are_raised_where_the_reply_is_read(bench: Bench) -> None:
    """What another thread met is raised in this one, and the session goes on."""
    url = await bench.serve(Script(say("a")))

    def talk() -> str:
        with Session(deposit="0.001", host=url, config=config(bench)) as session:
            with pytest.raises(Refusal, match="deposit leaves"):
                list(session.chat("Why?", max_tokens=100_000))
            return "".join(session.chat("Why?", max_tokens=10))

    assert await asyncio.to_thread(talk) == "a"


async def test_the_clients_own_library_pays(bench: Bench) -> None:
    """`session.openai()` is OpenAI's synchronous client, streamed and not."""
    url = await bench.serve(Script(say(*["word "] * 150)))

    def talk() -> tuple[str | None, str]:
        with Session(host=url, config=config(bench)) as session, session.openai(max_retries=0) as client:
            how: Any = {"model": "scripted", "messages": MESSAGES, "max_tokens": 200}
            whole = client.chat.completions.create(**how)
            stream = client.chat.completions.create(**how, stream=True)
            pieces = [chunk.choices[0].delta.content for chunk in stream if chunk.choices]
            with pytest.raises(openai.NotFoundError):
                client.chat.completions.create(**{**how, "model": "another"})
            return whole.choices[0].message.content, "".join(filter(None, pieces))

    assert await asyncio.to_thread(talk) == ("word " * 150, "word " * 150)


async def test_the_clients_timeout_holds(bench: Bench) -> None:
    """OpenAI's synchronous client raises its own error, and goes on."""
    url = await bench.serve(Script((Hang(),)), Script(say("b")))
    how: Any = {"model": "scripted", "messages": MESSAGES, "max_tokens": 100}

    def talk() -> Any:
        with Session(host=url, config=config(bench)) as session, session.openai(max_retries=0) as client:
            with pytest.raises(openai.APITimeoutError):
                client.with_options(timeout=Timeout(None, read=2)).chat.completions.create(**how)
            return client.chat.completions.create(**how).choices[0].message.content

    assert await asyncio.to_thread(talk) == "b"
