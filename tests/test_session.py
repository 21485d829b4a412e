"""The payer's session, against a real node with an engine that follows a script."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tallystick import pricing
from tallystick.blame import blame
from tallystick.chain import Chain
from tallystick.config import BEARER, HostConfig, Secret
from tallystick.devnet import Devnet
from tallystick.errors import SessionError, TallystickError
from tallystick.node import Node
from tallystick.opening import Wishes
from tallystick.server import running
from tallystick.session import BalanceLow, Done, Event, PromptAhead, Session, Settled, Signed, Stopped, Text
from tallystick.store import Store
from tallystick.testing.engine import Hang, Script, ScriptedEngine, Step, say
from tallystick.types import Address, JobStatus, Receipt, Totals
from tests.paying import look_always, register

DEPOSIT = 2_000_000


class Bench:
    """A node, and a payer that opens sessions with it."""

    def __init__(self, devnet: Devnet, chain: Chain, directory: Path, parts: AsyncExitStack) -> None:
        self.devnet = devnet
        self.chain = chain
        self.directory = directory
        self.store = Store(directory / "payer")
        self.parts = parts

    async def serve(self, *scripts: Script, parts: AsyncExitStack | None = None, **settings: Any) -> str:
        config = HostConfig(
            host_private_key=Secret(self.devnet.accounts.host.private_key),
            rpc_url=self.devnet.rpc_url,
            data_dir=self.directory / "host",
            **{"receipt_timeout": 1, **settings},
        )
        node = Node(config, engine=ScriptedEngine(*scripts))
        return await (parts or self.parts).enter_async_context(running(node))

    async def open(self, url: str, **wishes: Any) -> tuple[Session, list[Event]]:
        payer = self.devnet.accounts.payer.private_key
        wanted = Wishes(**{"deposit": DEPOSIT, **wishes})
        session = await Session.open(self.chain, self.store, payer, url, wanted)
        events: list[Event] = []
        session.on(events.append)
        return await self.parts.enter_async_context(session), events


@pytest.fixture
async def bench(devnet: Devnet, chain: Chain, tmp_path: Path) -> AsyncIterator[Bench]:
    await register(devnet, chain)
    async with AsyncExitStack() as parts:
        bench = Bench(devnet, chain, tmp_path, parts)
        yield bench
    bench.store.close()


async def ask(session: Session, prompt: Any = "Why?", max_tokens: int = 500) -> tuple[str, Done]:
    text = ""
    async for part in session.stream(prompt, max_tokens=max_tokens):
        if isinstance(part, Text):
            text += part.text
        else:
            return text, part
    raise AssertionError("a stream ends with Done")


async def test_a_reply_is_received_signed_and_paid(bench: Bench) -> None:
    """What arrived is what was signed, in the store and at the host, and what the chain pays."""
    session, events = await bench.open(await bench.serve(Script(say(*["word "] * 230))))
    text, done = await ask(session)
    await session.flush()
    assert text == "word " * 230
    assert (done.reason, done.totals.tokens, done.overcount) == ("stop", 230, None)
    assert session.receipted == done.totals
    last = bench.store.last(session.job.signer)
    assert last is not None
    assert last.receipt.totals == done.totals
    assert last.ack is not None
    signed = [event.receipt.totals.tokens for event in events if isinstance(event, Signed)]
    assert signed == sorted(signed)
    assert {100, 200, 230} <= set(signed)
    completion = await session.complete()
    assert completion.owed == pricing.owed(done.totals, session.job.prices)
    assert [event.refund for event in events if isinstance(event, Settled)][-1] == completion.refund


async def test_streams_run_side_by_side(bench: Bench) -> None:
    """Several requests share a job: the totals are their sum."""
    script = Script(say(*["a "] * 40))
    session, _ = await bench.open(await bench.serve(script, script, script))
    replies = await asyncio.gather(*(ask(session) for _ in range(3)))
    await session.flush()
    assert session.receipted == sum((done.totals for _, done in replies), Totals())


async def test_leaving_a_stream_cancels_it_and_pays_for_what_came(bench: Bench) -> None:
    """Whoever stops reading has the request cancelled; what was received until then is signed for."""
    session, _ = await bench.open(await bench.serve(Script((*say(*["a "] * 30), Hang()))))
    stream = session.stream("Why?", max_tokens=500)
    received = 0
    async for part in stream:
        received = part.totals.tokens
        if received == 30:
            break
    await stream.aclose()
    await session.flush()
    assert session.receipted.tokens == 30


async def test_a_refusal_is_told_in_the_hosts_words(bench: Bench) -> None:
    """What the host refuses says what is wrong and what mends it, and the session goes on."""
    session, _ = await bench.open(await bench.serve(Script(say("a"))))
    with pytest.raises(SessionError, match=r"model_unknown.*GET /v1/models"):
        async for _ in session.stream("Why?", model="another"):
            pass
    text, _ = await ask(session)
    assert text == "a"


async def test_a_prompt_beyond_the_credit_is_signed_for_and_told(bench: Bench) -> None:
    """Law 5: a long prompt has a receipt of its own, the payer is told its cost, and the reply comes."""
    session, events = await bench.open(await bench.serve(Script(say("a"))), interval=4)
    text, done = await ask(session, [{"role": "user", "content": "why " * 200}])
    ahead = [event for event in events if isinstance(event, PromptAhead)]
    assert text == "a"
    assert [event.prompt_tokens for event in ahead] == [done.totals.prompt_tokens]
    assert ahead[0].cost == pricing.owed(Totals(ahead[0].prompt_tokens, 0), session.job.prices)


async def test_prompts_beyond_the_credit_are_asked_for_at_once(bench: Bench) -> None:
    """Law 3: each is signed for, long ones beside short ones, and no more is signed than was delivered."""
    session, events = await bench.open(await bench.serve(Script(say(*["a "] * 30))))
    words = [600] * 8 + [10] * 4 + [2_400]
    replies = await asyncio.gather(*(ask(session, "why " * each, max_tokens=50) for each in words))
    assert [(text, done.reason) for text, done in replies] == [("a " * 30, "stop")] * len(words)
    await session.flush()
    ahead = [event for event in events if isinstance(event, PromptAhead)]
    assert session.receipted == Totals(sum(words) + 6 * len(words), 30 * len(words))
    assert len(ahead) <= 9


async def test_a_host_that_pads_is_not_paid_for_it(bench: Bench) -> None:
    """Law 3: a count above the bytes received is not signed, and the payer is told by how much."""
    session, _ = await bench.open(await bench.serve(Script((*say("a", "b", "c"), Step("d", 40)))))
    _, done = await ask(session)
    await session.flush()
    assert done.overcount is not None
    assert (done.overcount.counted, done.overcount.bound) == (43, 3)
    assert session.receipted.tokens == 3


async def test_the_end_of_the_deposit_is_told_before_it_comes(bench: Bench) -> None:
    """Law 4: at a fifth of the deposit the payer hears of it."""
    session, events = await bench.open(await bench.serve(Script(say(*["a "] * 300))), deposit=200)
    _, done = await ask(session)
    assert done.reason == "deposit_exhausted"
    low = [event for event in events if isinstance(event, BalanceLow)]
    assert len(low) == 1
    assert 0 < low[0].left <= 200 // 5


async def test_a_session_goes_on_after_the_host_restarts(bench: Bench) -> None:
    """A host that goes away ends the stream with an error; resumed, the job goes on, and pays once."""
    first = AsyncExitStack()
    url = await bench.serve(Script((*say(*["a "] * 60), Hang())), parts=first)
    session, _ = await bench.open(url)
    with pytest.raises(SessionError):
        await _ask_while(session, first)
    await session.close()
    port = int(url.rsplit(":", 1)[1])
    await bench.parts.enter_async_context(_served_again(bench, port))
    again = await Session.resume(bench.chain, bench.store, session.job.id)
    async with again:
        before = again.receipted
        _, done = await ask(again)
        completion = await again.complete()
    assert before.tokens <= 60
    assert completion.owed == pricing.owed(before + done.totals, session.job.prices)


async def _ask_while(session: Session, node: AsyncExitStack) -> None:
    async for part in session.stream("Why?", max_tokens=500):
        if part.totals.tokens == 60:
            await node.aclose()
        if isinstance(part, Done) and part.reason == "node_stopping":
            raise SessionError("the host stops")


def _served_again(bench: Bench, port: int) -> Any:
    config = HostConfig(
        host_private_key=Secret(bench.devnet.accounts.host.private_key),
        rpc_url=bench.devnet.rpc_url,
        data_dir=bench.directory / "host",
        receipt_timeout=1,
    )
    return running(Node(config, engine=ScriptedEngine(Script(say(*["b "] * 20)))), port=port)


async def test_a_bearer_that_ran_out_unseen_is_made_anew(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that has slept goes on: the chain's clock went further than its own."""
    look_always(monkeypatch)
    session, _ = await bench.open(await bench.serve(Script(say("a"))))
    asked = "/v1/chat/completions", b'{"messages": [{"role": "user", "content": "Why?"}], "stream": true}'
    (await session.post(*asked)).release()
    await bench.devnet.increase_time(2 * BEARER)
    answer = await session.post(*asked)
    assert answer.status == 200
    answer.release()


class SlowStore(Store):
    """A store whose disk takes its time over a receipt."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.writing, self.written = threading.Event(), threading.Event()

    def signed(self, signer: Address, receipt: Receipt, acknowledged: Totals) -> None:
        self.writing.set()
        assert self.written.wait(30)
        super().signed(signer, receipt, acknowledged)


async def test_no_receipt_is_sent_that_is_not_in_the_store(bench: Bench, tmp_path: Path) -> None:
    """Law 7: a connection that breaks while one is written does not send it before, or write it twice."""
    bench.store = slow = SlowStore(tmp_path / "slow")
    first = AsyncExitStack()
    url = await bench.serve(Script((*say(*["a "] * 60), Hang())), parts=first)
    session, _ = await bench.open(url)
    asking = asyncio.create_task(ask(session))
    await asyncio.to_thread(slow.writing.wait, 30)
    await first.aclose()
    await asyncio.wait([asking])
    await bench.parts.enter_async_context(_served_again(bench, int(url.rsplit(":", 1)[1])))
    again = asyncio.create_task(session.connect())
    done, _ = await asyncio.wait([again], timeout=0.5)
    assert (done, slow.last(session.job.signer)) == (set(), None)
    slow.written.set()
    await again
    completion = await session.complete()
    kept = [stored.receipt.totals for stored in slow.receipts(session.job.signer)]
    assert kept == sorted(set(kept), key=lambda totals: totals.tokens)
    assert completion.owed == pricing.owed(kept[-1], session.job.prices) > 0


async def test_a_fault_ends_the_session_and_nobody_waits_for_ever(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what signs, and of what reads: whoever waits is told, it is not the host's, and leaving goes on."""

    def break_down(*given: Any) -> Any:
        raise ZeroDivisionError("nobody foresaw this")

    url = await bench.serve(*[Script(say(*["a "] * 300))] * 2)
    for owner, name in ((bench.store, "signed"), (Session, "_hand_over")):
        session, events = await bench.open(url)
        monkeypatch.setattr(owner, name, break_down)
        with capture_logs() as logs, pytest.raises(TallystickError, match="nobody foresaw this") as raised:
            await ask(session)
        assert blame(raised.value) is None
        assert "session.failed" in [line["event"] for line in logs]
        assert [type(event) for event in events] == [Stopped]
        await asyncio.wait_for(session.close(), 5)
        monkeypatch.undo()


async def test_an_attested_job_needs_no_receipts(bench: Bench) -> None:
    """On a host-attested job nothing is signed but the end; the host's count is paid."""
    session, events = await bench.open(
        await bench.serve(Script(say(*["a "] * 30))), max_tokens_per_second=1_000
    )
    await bench.devnet.increase_time(10)
    _, done = await ask(session)
    completion = await session.complete()
    assert not [event for event in events if isinstance(event, Signed)]
    assert bench.store.last(session.job.signer) is None
    assert completion.owed == pricing.owed(done.totals, session.job.prices)


async def test_a_job_without_its_key_is_not_resumed(bench: Bench) -> None:
    """A job whose session key is not in the store can only be reclaimed, and the error says so."""
    session, _ = await bench.open(await bench.serve(Script(say("a"))))
    other = Store(bench.directory / "other")
    with pytest.raises(SessionError, match="reclaimed"):
        await Session.resume(bench.chain, other, session.job.id)
    other.close()


async def test_a_host_of_the_registry_is_not_asked_inside(bench: Bench) -> None:
    """Its name led to a public address when it was found: the session looks again. A devnet's may be here."""
    url = (await bench.serve(Script(say("a")))).replace("127.0.0.1", "localhost")
    session, _ = await bench.open(url, found=True)
    deployment = bench.chain.deployment
    stored = bench.store.job(deployment.chain_id, deployment.marketplace, session.job.id)
    assert stored is not None
    assert stored.found
    elsewhere = replace(stored, chain_id=8453)
    with pytest.raises(SessionError, match="no public address"):
        await Session(bench.chain, bench.store, elsewhere, session.job).connect()


async def test_a_host_that_is_gone_is_named(bench: Bench) -> None:
    """A connection that cannot be made is an error with the host's address; the deposit stays where it is."""
    parts = AsyncExitStack()
    url = await bench.serve(Script(say("a")), parts=parts)
    session, _ = await bench.open(url)
    await session.close()
    await parts.aclose()
    again = await Session.resume(bench.chain, bench.store, session.job.id)
    with pytest.raises(SessionError, match=url):
        await again.connect()
    job = await bench.chain.job(session.job.id)
    assert job is not None
    assert job.status is JobStatus.OPEN
