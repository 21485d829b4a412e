"""One reply: what it delivers, what it waits for, how it ends, and what each of these costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tallystick import pricing, proof
from tallystick import stream as stream_module
from tallystick.account import Account
from tallystick.counter import Counter
from tallystick.countersign import Countersigner
from tallystick.engine import Pieces
from tallystick.engines.dialect import FinalUsage
from tallystick.engines.provisional import Provisional
from tallystick.engines.reading import Reading
from tallystick.errors import EngineError, EngineFalseStart, EngineStalled, EngineTimeout, EngineUnavailable
from tallystick.meter import Fit
from tallystick.stream import Chunk, Order, Stream
from tallystick.tables import Counts, JobRow
from tallystick.testing.engine import Hang, Script, ScriptedEngine, Step, babble, say
from tallystick.transcript import delta_text, prompt_hash
from tallystick.types import Ack, Address, Job, JobId, JobStatus, Prices, RequestId, Totals

KEY = (7).to_bytes(32, "big")
DOMAIN = proof.Domain(31337, Address("0x9fE46736679d2D9a65F0992F2272dE9f3c7fa6e0"))
BODY = {"messages": [{"role": "user", "content": "Why was the stick split?"}]}
PROMPT = 11
"""What a ScriptedEngine counts for it."""
JOB = Job(
    id=JobId(121),
    payer=Address("0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"),
    host=Address("0x70997970C51812dc3A010C7d01b50e0d17dc79C8"),
    asset=Address("0x5FbDB2315678afecb367f032d93F642f64180aa3"),
    signer=proof.address(KEY),
    deposit=2_000_000,
    prices=Prices(900_000, 200_000),
    max_tokens_per_second=0,
    claim_window=3600,
    created_at=1_800_000_000,
    expires_at=1_900_000_000,
    asked_at=0,
    closes_at=1_900_003_600,
    settled=Totals(),
    owed=0,
    fee=0,
    status=JobStatus.OPEN,
    interval=20,
)


class Clerk:
    """The desk of a stream: notes what it is asked, and knows of a top-up if there is one."""

    def __init__(self) -> None:
        self.top_up: Job | None = None
        self.looks = 0
        self.checkpoints: list[Totals] = []
        self.gone: list[Stream] = []

    async def look_again(self, account: Account) -> None:
        self.looks += 1
        if self.top_up is not None:
            account.refresh(self.top_up)

    async def checkpoint(self, account: Account) -> None:
        account.crossed = False
        self.checkpoints.append(account.meter.counted)

    async def forgive(self, account: Account, *, cut: bool = False) -> None:
        account.forgive()

    def left(self, stream: Stream) -> None:
        self.gone.append(stream)


class Host:
    """One job with its engine, as a node would hold them, and the payer that signs for it."""

    def __init__(self, counter: Counter, engine: ScriptedEngine, job: Job = JOB) -> None:
        self.engine = engine
        self.clerk = Clerk()
        nothing = Totals()
        counts = Counts(not job.receipted, nothing, nothing, nothing, nothing)
        self.row = JobRow(job, 1, counts, None, nothing, None, nothing, nothing, ending=False, closed=False)
        self.slot = counter.open(job.id, 1)
        self.account = Account(job, self.row, self.slot, {}, DOMAIN, lambda: job.created_at + 1000)
        self.signs = Countersigner(job.id, job.prices, job.interval, DOMAIN, KEY)
        self.chunks: list[Chunk] = []

    def ask(
        self, max_tokens: int = 100, *, number: int = 1, timeout: float = 60.0, streamed: bool = True
    ) -> Stream:
        """An admitted request: its prompt is reserved, as admission does."""
        assert self.account.meter.reserve(PROMPT) is Fit.FITS
        request = RequestId(f"{number:032x}")
        self.signs.begin(request, BODY, max_tokens)
        order = Order(
            request, prompt_hash(BODY), (BODY,), "scripted", PROMPT, PROMPT, max_tokens, streamed=streamed
        )
        return Stream(order, self.account, self.engine, self.clerk, timeout)

    async def deliver(self, stream: Stream, *, signing: bool = True) -> str:
        """Takes the whole stream as a payer does, and gives its text."""
        text = ""
        async with stream:
            async for chunks in stream:
                for chunk in chunks:
                    text += self.receive(stream, chunk)
                    if signing and (chunk.tally.get("due") or chunk.tally.get("waiting")):
                        self.sign()
        return text

    def receive(self, stream: Stream, chunk: Chunk) -> str:
        self.chunks.append(chunk)
        totals = Totals(chunk.tally["prompt_tokens"], chunk.tally["tokens"])
        text = chunk.piece.text if chunk.piece else ""
        reason = chunk.piece.finish_reason if chunk.piece else None
        self.signs.receive(stream.order.request, totals, text, reason)
        return text

    def sign(self) -> None:
        """Signs for all that came; the host takes it."""
        while (receipt := self.signs.next()) is not None:
            judgement = self.account.judge(receipt)
            assert judgement is not None
            self.account.take(receipt, judgement)
            self.signs.acked(Ack(receipt.job_id, receipt.totals, receipt.transcript, None))

    @property
    def counted(self) -> Totals:
        return self.account.meter.counted


@pytest.fixture
def counter(tmp_path: Path) -> Iterator[Counter]:
    with Counter(tmp_path / "counter") as counter:
        yield counter


def credit_left(host: Host) -> int:
    """Micro base units that may still be counted beyond what the host could claim (law 3)."""
    meter = host.account.meter
    unclaimable = meter.counted - meter.claimable
    return pricing.credit(JOB.interval, JOB.prices) - pricing.value(unclaimable, JOB.prices)


async def test_counts_before_it_sends(counter: Counter) -> None:
    """Law 7: when a chunk is given out, the slot that survives kill -9 has its tokens already."""
    host = Host(counter, ScriptedEngine(Script(say("a", "b", "c"))))
    async with host.ask() as stream:
        async for chunks in stream:
            last = chunks[-1].tally
            assert host.slot.totals == Totals(last["prompt_tokens"], last["tokens"])
    assert host.slot.totals == Totals(PROMPT, 3)


async def test_delivers_what_the_engine_made(counter: Counter) -> None:
    """A payer that signs gets the whole reply, cut characters and all, and is billed the engine's count."""
    host = Host(counter, ScriptedEngine(babble(300)))
    stream = host.ask(300)
    text = await host.deliver(stream)
    assert text == "".join(step.text for step in babble(300).reads if isinstance(step, Step))
    assert host.counted == Totals(PROMPT, 300) == host.account.meter.receipted
    assert stream.end is not None
    assert (stream.end.reason, stream.end.untold) == ("length", ())
    assert stream.end.usage == {
        "prompt_tokens": PROMPT,
        "completion_tokens": 300,
        "total_tokens": PROMPT + 300,
    }


async def test_one_read_is_one_list(counter: Counter) -> None:
    """What one read from the engine brought goes out together, and nothing is held for the next."""
    gate = asyncio.Semaphore(0)
    host = Host(counter, ScriptedEngine(Script((say("a", "b"), say("c"))), gate=gate))
    async with host.ask() as stream:
        gate.release()
        first = await anext(stream)
        assert [chunk.piece.text for chunk in first if chunk.piece] == ["", "a", "b"]
        gate.release()
        second = await anext(stream)
        assert second[0].piece is not None
        assert second[0].piece.text == "c"


async def test_waits_for_a_receipt(counter: Counter) -> None:
    """Law 3: beyond one credit nothing is delivered until a receipt comes; then the stream goes on."""
    host = Host(counter, ScriptedEngine(Script(say(*"abcdefghijklmnopqrstuvwxyz"))))
    async with host.ask() as stream:
        seen: list[Chunk] = []
        while not (seen and seen[-1].tally.get("waiting")):
            seen += await anext(stream)
        assert 0 <= credit_left(host) < JOB.prices.per_million
        assert seen[-1].piece is None
        assert seen[-1].tally["due"]
        for chunk in seen:
            host.receive(stream, chunk)
        host.sign()
        assert (await anext(stream))[0].piece is not None


async def test_receipt_due(counter: Counter) -> None:
    """A stream whose payer does not sign ends after the receipt timeout, and its engine is cancelled."""
    host = Host(counter, ScriptedEngine(babble(300)))
    stream = host.ask(300, timeout=0.05)
    await host.deliver(stream, signing=False)
    assert stream.end is not None
    assert (stream.end.reason, stream.end.finish_reason, stream.end.untold) == ("receipt_due", "length", (0,))
    assert stream.end.tally["reason"] == "receipt_due"
    assert host.engine.asked[0].cancelled
    assert credit_left(host) >= 0


async def test_streams_share_one_credit(counter: Counter) -> None:
    """Law 3: all streams of a job together are granted one interval, however many there are."""
    host = Host(counter, ScriptedEngine(babble(300)))
    streams = [host.ask(300, number=number, timeout=0.05) for number in range(1, 4)]
    await asyncio.gather(*(host.deliver(stream, signing=False) for stream in streams))
    assert 0 <= credit_left(host) < 4 * JOB.prices.per_million
    assert {stream.end.reason for stream in streams if stream.end} == {"receipt_due"}


async def test_signing_the_wrong_total_buys_nothing(counter: Counter) -> None:
    """Law 3: a payer that signs for prompts that it never sends gets one interval of tokens for it."""
    host = Host(counter, ScriptedEngine(babble(300)))
    host.account.meter.receipt(Totals(5_000_000, 0), Totals())
    stream = host.ask(300, timeout=0.05)
    await host.deliver(stream, signing=False)
    assert stream.end is not None
    assert stream.end.reason == "receipt_due"
    assert host.account.meter.claimable == Totals(PROMPT, 0)
    assert 0 <= credit_left(host) < 4 * JOB.prices.per_million


async def test_holds_one_interval(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 3: at most an interval is held undelivered; if nobody signs, the engine is cancelled."""
    monkeypatch.setattr(stream_module, "OVERRUN_PATIENCE", 0.02)
    host = Host(counter, ScriptedEngine(Script(say(*"x" * 500))))
    async with host.ask(500) as stream:
        async for chunks in stream:
            if chunks[-1].tally.get("waiting"):
                break
        await host.engine.asked[0].over.wait()
        assert host.engine.asked[0].cancelled
        assert host.engine.tokens <= 2 * JOB.interval + 1
        assert host.counted.tokens <= JOB.interval


async def test_streams_hold_one_interval_together(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 3: however many streams come one after another, an interval is held of them, and a read of each."""
    monkeypatch.setattr(stream_module, "OVERRUN_PATIENCE", 0.02)
    host = Host(counter, ScriptedEngine(Script(say(*"x" * 100))))
    asked = [host.ask(100, number=number) for number in range(1, 7)]
    async with AsyncExitStack() as streams:
        for stream in asked:
            await streams.enter_async_context(stream)
            async for chunks in stream:
                if chunks[-1].tally.get("waiting"):
                    break
            await host.engine.asked[-1].over.wait()
        assert host.engine.tokens - host.counted.tokens <= JOB.interval + len(asked)


async def test_a_prompt_is_signed_for_where_the_first_piece_needs_its_room(counter: Counter) -> None:
    """A piece that fits the credit, but not beside its prompt, waits for the prompt's receipt alone."""
    host = Host(counter, ScriptedEngine(Script((Step("x" * 18, 18), Step("y", 1)))))
    async with asyncio.timeout(30):
        text = await host.deliver(host.ask())
    assert text == "x" * 18 + "y"
    assert host.counted == Totals(PROMPT, 19) == host.account.meter.receipted
    waiting = next(chunk for chunk in host.chunks if chunk.tally.get("waiting"))
    assert (waiting.piece, waiting.tally["prompt_tokens"], waiting.tally["tokens"]) == (None, PROMPT, 0)


async def test_a_prompt_that_nobody_signs_for_is_all_that_is_lost(counter: Counter) -> None:
    """Law 3: with its first piece held back for want of a receipt, a request costs its host the prompt."""
    host = Host(counter, ScriptedEngine(Script((Step("x" * 18, 18),))))
    stream = host.ask(timeout=0.05)
    assert await host.deliver(stream, signing=False) == ""
    assert stream.end is not None
    assert (stream.end.reason, host.counted) == ("receipt_due", Totals(PROMPT, 0))


async def test_deposit_exhausted(counter: Counter) -> None:
    """Law 4: a stream stops at the last token that the deposit pays for, and says why."""
    deposit = pricing.owed(Totals(PROMPT, 33), JOB.prices)
    host = Host(counter, ScriptedEngine(Script(say(*"x" * 100))), replace(JOB, deposit=deposit))
    stream = host.ask(timeout=0.05)
    await host.deliver(stream)
    assert pricing.owed(host.counted, JOB.prices) <= deposit
    assert pricing.owed(host.counted + Totals(0, 1), JOB.prices) > deposit
    assert stream.end is not None
    assert (stream.end.reason, stream.end.finish_reason) == ("deposit_exhausted", "length")
    assert host.clerk.looks > 0
    assert host.engine.asked[0].cancelled


async def test_top_up(counter: Counter) -> None:
    """Law 4: a top-up that is seen while the stream waits lets it go on to its own end."""
    deposit = pricing.owed(Totals(PROMPT, 33), JOB.prices)
    host = Host(counter, ScriptedEngine(Script(say(*"x" * 100))), replace(JOB, deposit=deposit))
    host.clerk.top_up = JOB
    stream = host.ask()
    assert await host.deliver(stream) == "x" * 100
    assert stream.end is not None
    assert stream.end.reason == "length"


async def test_low_is_said_once(counter: Counter) -> None:
    """Law 4: at a fifth of the deposit the client is warned, once a stream."""
    deposit = pricing.owed(Totals(PROMPT, 100), JOB.prices) + 1
    host = Host(counter, ScriptedEngine(Script(say(*"x" * 100))), replace(JOB, deposit=deposit))
    await host.deliver(host.ask())
    low = [chunk.tally for chunk in host.chunks if chunk.tally.get("low")]
    assert len(low) == 1
    assert int(low[0]["left"]) * 5 <= deposit


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (Script((EngineUnavailable("gone"),)), "engine_unavailable"),
        (Script((EngineFalseStart("crash"),)), "engine_false_start"),
        (Script((EngineTimeout("silent"),)), "engine_timeout"),
        (Script(), "engine_empty"),
    ],
)
async def test_nothing_served_costs_nothing(counter: Counter, script: Script, code: str) -> None:
    """Law 5: a request that failed before its first token costs nothing; its reservation is free again."""
    host = Host(counter, ScriptedEngine(script))
    stream = host.ask()
    assert await host.deliver(stream) == ""
    assert stream.end is not None
    assert stream.end.failure is not None
    assert stream.end.failure.code == code
    assert host.counted == Totals()
    assert host.account.meter.reserved == 0
    assert not host.account.knows(stream.order.request)


@pytest.mark.parametrize(
    ("error", "code"), [(EngineError("broken"), "engine_failed"), (EngineStalled("silent"), "engine_stalled")]
)
async def test_what_was_delivered_counts(counter: Counter, error: EngineError, code: str) -> None:
    """A reply that breaks off is paid for up to there, prompt included, and says how the engine failed."""
    host = Host(counter, ScriptedEngine(Script((*say("a", "b"), error))))
    stream = host.ask()
    assert await host.deliver(stream) == "ab"
    assert host.counted == Totals(PROMPT, 2)
    assert stream.end is not None
    assert stream.end.failure is not None
    assert (stream.end.failure.code, stream.end.reason) == (code, "engine_failed")


async def test_unseen_end_token(counter: Counter) -> None:
    """A token that only the final usage counts is billed with the chunk that ends the reply."""
    host = Host(counter, ScriptedEngine(Script(say("a", "b"), unseen=1)))
    await host.deliver(host.ask())
    last = host.chunks[-1]
    assert last.piece is not None
    assert (last.piece.finish_reason, last.tally["tokens"], last.tally["reason"]) == ("stop", 3, "stop")
    assert host.counted == Totals(PROMPT, 3)


async def test_whole_counts_as_streamed(counter: Counter) -> None:
    """An answer that is not streamed costs what it costs streamed, and is signed for as one text."""
    script = Script(
        (*say("The ", "stick "), Step(delta={"reasoning_content": "Hm."}), *say("broke.")), unseen=1
    )
    host = Host(counter, ScriptedEngine(script), replace(JOB, interval=100))
    await host.deliver(host.ask(number=1))
    streamed = host.counted
    await host.deliver(host.ask(number=2, streamed=False))
    assert host.counted == streamed + streamed
    answer = host.chunks[-1].piece
    assert answer is not None
    message = answer.choices[0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("The stick broke.", "Hm.")
    assert answer.text == delta_text(message)
    assert host.account.meter.receipted == host.counted


class Uncounting(ScriptedEngine):
    """Tells its count in a final usage alone; until then each chunk with a text is a token."""

    @asynccontextmanager
    async def stream(self, body: Mapping[str, Any], max_tokens: int) -> AsyncIterator[AsyncIterator[Pieces]]:
        async with self.play(body, max_tokens) as reads:
            pieces = Provisional(0, None).told(uncounted(reads))
            yield pieces
            await pieces.aclose()


async def uncounted(reads: AsyncIterator[list[dict[str, Any]]]) -> AsyncGenerator[Pieces, None]:
    reading = Reading(FinalUsage())
    async for chunks in reads:
        yield [reading.piece(chunk) for chunk in chunks]


THREE = Script((Step("a"), Step("b"), Step("c", 3)), unseen=1)
"""Three chunks, of six tokens."""


@pytest.mark.parametrize(("receipted", "tokens"), [(0, 3), (3, 3), (5, 5), (9, 6)])
@pytest.mark.parametrize("streamed", [True, False])
async def test_a_final_usage_bills_what_is_receipted_at_most(
    counter: Counter, receipted: int, tokens: int, streamed: bool
) -> None:
    """Without a running count the usage raises the count as far as it is signed for, and no further."""
    host = Host(counter, Uncounting(THREE))
    host.account.meter.receipt(Totals(PROMPT, receipted), Totals())
    stream = host.ask(streamed=streamed)
    assert await host.deliver(stream, signing=False) == "abc"
    assert host.counted == Totals(PROMPT, tokens)
    assert stream.end is not None
    assert stream.end.usage["completion_tokens"] == tokens


async def test_nobody_signs_on_an_attested_job(counter: Counter) -> None:
    """On a host-attested job the final usage is the count."""
    host = Host(counter, Uncounting(THREE), replace(JOB, max_tokens_per_second=1_000))
    await host.deliver(host.ask(), signing=False)
    assert host.counted == Totals(PROMPT, 6)


async def test_a_final_usage_takes_off_what_was_not_delivered(counter: Counter) -> None:
    """Of an answer in one piece nothing is counted yet when the usage says that there were fewer tokens."""
    host = Host(counter, Uncounting(Script((Step("a"), Step("b", 0), Step("c", 0)))))
    await host.deliver(host.ask(streamed=False))
    assert host.counted == Totals(PROMPT, 1)


async def test_half_an_answer_costs_nothing(counter: Counter) -> None:
    """Law 5: nothing of an answer in one piece is delivered before its end, so a broken one is free."""
    host = Host(counter, ScriptedEngine(Script((*say("a", "b"), EngineError("broken")))))
    stream = host.ask(streamed=False)
    assert await host.deliver(stream) == ""
    assert host.counted == Totals()
    assert stream.end is not None
    assert stream.end.failure is not None
    assert stream.end.failure.code == "engine_failed"


@pytest.mark.parametrize(
    ("reason", "ended", "code"),
    [
        ("cancelled", False, "reply_cancelled"),
        ("cancelled", True, "job_ended"),
        ("node_stopping", False, "node_stopping"),
    ],
)
async def test_whole_answer_cut(counter: Counter, reason: str, ended: bool, code: str) -> None:
    """An answer in one piece that is cut costs nothing, and has a refusal to tell instead."""
    host = Host(counter, ScriptedEngine(Script((*say("a", "b"), Hang()))))
    async with host.ask(streamed=False) as stream:
        stream.account.ended = ended
        stream.cut(reason)
        assert await anext(stream, None) is None
    assert stream.end is not None
    assert stream.end.failure is not None
    assert stream.end.failure.code == code
    assert host.counted == Totals()


async def test_whole_answer_waits_in_vain(counter: Counter) -> None:
    """An answer in one piece that finds its credit used by then is refused whole, and costs nothing."""
    host = Host(counter, ScriptedEngine(Script(say(*"x" * 15))))
    whole = host.ask(number=1, streamed=False, timeout=0.05)
    await host.deliver(host.ask(number=2, timeout=0.05), signing=False)
    before = host.counted
    await host.deliver(whole, signing=False)
    assert whole.end is not None
    assert whole.end.failure is not None
    assert whole.end.failure.code == "receipt_due"
    assert host.counted == before


@pytest.mark.parametrize("reason", ["cancelled", "node_stopping"])
async def test_cut(counter: Counter, reason: str) -> None:
    """A stream that is cut ends for that reason; what it delivered stays counted, and the engine stops."""
    host = Host(counter, ScriptedEngine(Script((*say("a", "b"), Hang()))))
    async with host.ask() as stream:
        while host.counted.tokens < 2:
            await anext(stream)
        stream.cut(reason)
        stream.cut("too late")
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    assert stream.end is not None
    assert (stream.end.reason, stream.end.finish_reason) == (reason, "length")
    assert host.counted == Totals(PROMPT, 2)
    assert host.engine.asked[0].cancelled
    assert host.clerk.gone == [stream]


async def test_leaving_cancels_the_engine(counter: Counter) -> None:
    """However a stream is left, its engine's request is cancelled and its reservation given back."""
    host = Host(counter, ScriptedEngine(Script((Hang(),))))
    with suppress(RuntimeError):
        async with host.ask():
            await asyncio.sleep(0)
            raise RuntimeError
    assert host.engine.asked[0].cancelled
    assert (host.account.meter.reserved, host.counted) == (0, Totals())


async def test_attested_needs_no_receipt(counter: Counter) -> None:
    """A host-attested job goes on without receipts; each whole interval is brought into the ledger."""
    job = replace(JOB, max_tokens_per_second=1000)
    host = Host(counter, ScriptedEngine(Script(say(*"x" * 100))), job)
    assert await host.deliver(host.ask(), signing=False) == "x" * 100
    assert not any(chunk.tally.get("due") for chunk in host.chunks)
    assert len(host.clerk.checkpoints) == 100 // JOB.interval
    assert host.account.meter.claimable == Totals(PROMPT, 100)


async def test_attested_keeps_to_its_rate(counter: Counter) -> None:
    """A host-attested job delivers no more than its rate times its age in seconds, prompts included."""
    job = replace(JOB, max_tokens_per_second=1000)
    host = Host(counter, ScriptedEngine(Script(say(*"x" * 100))), job)
    passed = iter(range(10_000))
    now = 0

    def clock() -> float:
        nonlocal now
        now = next(passed)  # milliseconds: every look at the clock is one later
        return job.created_at + now / 1000

    host.account = Account(job, host.row, host.slot, {}, DOMAIN, clock)
    async with host.ask() as stream:
        async for _ in stream:
            assert host.counted.prompt_tokens + host.counted.tokens <= now
    assert host.counted == Totals(PROMPT, 100)
