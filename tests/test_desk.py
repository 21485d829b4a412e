"""The desk on a real chain and ledger: what it lets in, writes down before it answers, and gives up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from tallystick import asking, database, lookout, pricing, proof, wire
from tallystick import stream as stream_module
from tallystick.accounts import Answer
from tallystick.admission import Offer
from tallystick.chain import Chain
from tallystick.config import HostConfig, Secret
from tallystick.counter import Counter
from tallystick.desk import Desk, refusal_of
from tallystick.devnet import Devnet
from tallystick.errors import ChainError, DatabaseFailed, Elsewhere, EngineUnavailable, LedgerError, Refusal
from tallystick.ledger import Ledger
from tallystick.lookout import Lookout
from tallystick.meter import Fit
from tallystick.quote import Promises
from tallystick.stream import Chunk, Stream
from tallystick.tables import JobRow
from tallystick.testing.engine import Hang, Script, ScriptedEngine, say
from tallystick.types import Model, Prices, RequestId, Totals
from tests.paying import PRICES, PROMPT, Signer, look_always, open_job, register, until


class Bench:
    """A desk that can be closed and opened again over the same files, as after a restart."""

    def __init__(self, devnet: Devnet, chain: Chain, data_dir: Path) -> None:
        self.devnet = devnet
        self.chain = chain
        self.engine = ScriptedEngine(Script(say(*"x" * 60)))
        self.config = HostConfig(
            host_private_key=Secret(devnet.accounts.host.private_key),
            data_dir=data_dir,
            receipt_timeout=1,
            grace=60,
        )
        self.depth = 0
        self.pokes = 0
        self._parts = AsyncExitStack()

    async def open(self, **changed: Any) -> Desk:
        """Starts over, with `changed` settings."""
        await self._parts.aclose()
        self.config = replace(self.config, **changed)
        self.ledger = await self._parts.enter_async_context(Ledger(self.config.data_dir))
        self.counter = self._parts.enter_context(Counter(self.config.data_dir / "counter"))
        await self.ledger.recover(self.counter.recovered())
        offer = Offer(
            domain=proof.Domain(31337, self.chain.deployment.marketplace),
            host=self.devnet.accounts.host.address,
            models=(Model("scripted", {self.devnet.dollar: PRICES}),),
            assets=dict(self.chain.deployment.assets),
            interval_max=1000,
            claim_window_min=3600,
        )
        lookout = Lookout(self.chain, self.depth)
        promises = Promises(self.config.data_dir / "quotes.json", offer, 3600)
        self.desk = Desk(self.config, promises, self.engine, lookout, self.ledger, self.counter, self.poke)
        self._parts.push_async_callback(self.desk.stop, 5.0)
        return self.desk

    def poke(self) -> None:
        self.pokes += 1

    async def close(self) -> None:
        await self._parts.aclose()

    async def signer(self, **changed: Any) -> Signer:
        return await open_job(self.devnet, self.chain, **changed)

    async def row(self, signer: Signer) -> JobRow:
        row = await self.ledger.job(signer.job.id)
        assert row is not None
        return row

    async def admit(self, signer: Signer, number: int = 1, **members: Any) -> Stream:
        asked = asking.parse_chat(orjson.dumps(signer.body(number, **members)))
        return await self.desk.admit(asked, signer.access())

    async def in_line(self, signer: Signer, stream: Stream, **members: Any) -> asyncio.Task[Stream]:
        """A request whose prompt waits for receipts."""

        async def waits() -> bool:
            return stream.account.line.prompts == 1

        asking = asyncio.create_task(self.admit(signer, 99, **members))
        await until(waits)
        return asking

    async def ask(self, signer: Signer, number: int = 1, *, signing: bool = True, **members: Any) -> Stream:
        """A whole reply, signed for as it comes unless told otherwise."""
        async with await self.admit(signer, number, **members) as stream:
            async for chunks in stream:
                for chunk in chunks:
                    signer.receive(told(chunk))
                    if signing and chunk.tally.get("due"):
                        await self.sign(signer)
        return stream

    async def top_up(self, signer: Signer, amount: int) -> None:
        payer = self.devnet.accounts.payer.private_key
        await self.chain.transact(self.chain.approve(self.devnet.dollar, amount), payer, confirmations=1)
        top_up = self.chain.top_up(signer.job.id, amount, self.devnet.dollar)
        await self.chain.transact(top_up, payer, confirmations=1)

    async def written_off(self, signer: Signer, totals: Totals) -> None:
        """Waits until these totals are written off."""
        await until(lambda: self._is_written_off(signer, totals))

    async def _is_written_off(self, signer: Signer, totals: Totals) -> bool:
        return (await self.row(signer)).written_off == totals

    async def is_ending(self, signer: Signer) -> bool:
        return (await self.row(signer)).ending

    async def sign(self, signer: Signer) -> Answer | None:
        """Sends receipts until there is nothing left to sign."""
        answer = None
        while (receipt := signer.receipt()) is not None:
            answer = await self.desk.receipt(receipt, signer.access())
            signer.acked(answer.out())
        return answer


def told(chunk: Chunk) -> dict[str, Any]:
    """A chunk as the payer sees it."""
    return {"choices": chunk.piece.choices if chunk.piece else [], "tally": chunk.tally}


def request_id(number: int) -> RequestId:
    return RequestId(f"{number:032x}")


@pytest.fixture
async def bench(
    devnet: Devnet, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    look_always(monkeypatch)
    await register(devnet, chain)
    bench = Bench(devnet, chain, tmp_path)
    await bench.open()
    yield bench
    await bench.close()


async def code(refused: Any) -> str:
    with pytest.raises(Refusal) as caught:
        await refused
    return caught.value.code


# Admission


async def test_serves_a_good_job(bench: Bench) -> None:
    """A request on a good job is served, counted and receipted; the ledger has all of it."""
    signer = await bench.signer()
    stream = await bench.ask(signer)
    assert stream.end is not None
    assert stream.end.reason == "stop"
    row = await bench.row(signer)
    assert row.receipted is not None
    assert row.counted == row.receipted.totals == row.acknowledged == Totals(PROMPT, 60)


async def test_requests_at_once_share_an_account(bench: Bench) -> None:
    """However many open a job together, it is taken up once: each time would end the epoch before it."""
    signer = await bench.signer()
    first, second = await asyncio.gather(bench.admit(signer, 1), bench.admit(signer, 2))
    async with first, second:
        assert first.account is second.account
        assert first.account.epoch == (await bench.row(signer)).epoch


async def test_who_stops_gives_its_counts_up(bench: Bench) -> None:
    """What was delivered and not signed for is in the ledger, for the process that serves the job next."""
    signer = await bench.signer()
    await bench.ask(signer, signing=False)
    assert (await bench.row(signer)).gross == Totals()
    await bench.desk.stop(5.0)
    assert (await bench.row(signer)).gross == Totals(PROMPT, 60)


async def test_what_lost_its_job_serves_no_more(bench: Bench) -> None:
    """A write that is turned down for another owner ends what is served here; the job is elsewhere then."""
    signer = await bench.signer()
    stream = await bench.ask(signer, signing=False)
    url = database.url_in(bench.config.data_dir)
    async with Ledger(bench.config.data_dir / "another", url) as other:
        await bench.ledger.bury(bench.ledger.process)
        await other.serve(signer.job)
        with pytest.raises(Elsewhere):
            await bench.sign(signer)
        assert stream.account.lapsed
        with pytest.raises(Elsewhere):
            await bench.admit(signer, 2)


async def test_refuses_before_the_engine(bench: Bench) -> None:
    """Law 10: who is refused does not reach the engine, and leaves no row in the ledger."""
    signer = await bench.signer()
    await bench.ask(signer)
    asked = len(bench.engine.asked)
    stranger = await bench.signer()
    stranger.key = proof.new_key()
    cheap = await bench.signer(prices=Prices(1, 1))
    again = await bench.signer(key=signer.key)
    for refused, why in ((stranger, "access_forged"), (cheap, "price_too_low"), (again, "signer_reused")):
        assert await code(bench.admit(refused)) == why
        assert await bench.ledger.job(refused.job.id) is None
    assert len(bench.engine.asked) == asked


async def test_depth(bench: Bench) -> None:
    """Law 4: a job is served once it lies as deep as the host asks, and a top-up counts from there on."""
    bench.depth = 2
    await bench.open()
    signer = await bench.signer(deposit=pricing.owed(Totals(PROMPT, 30), PRICES))
    assert await code(bench.admit(signer)) == "job_unconfirmed"
    await bench.devnet.mine(2)
    stream = await bench.ask(signer)
    assert stream.end is not None
    assert stream.end.reason == "deposit_exhausted"
    await bench.top_up(signer, 1_000_000)
    assert await code(bench.admit(signer, 2)) == "deposit_exhausted"
    await bench.devnet.mine(2)
    stream = await bench.ask(signer, 3)
    assert stream.end is not None
    assert stream.end.reason == "stop"


async def test_known_jobs_wait_for_no_endpoint(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests and receipts of a job that was read a moment ago are taken while the endpoint is silent."""
    signer = await bench.signer()
    await bench.ask(signer)
    monkeypatch.setattr(lookout, "RELIED", 60.0)
    silent = asyncio.Event()
    monkeypatch.setattr(Chain, "block", lambda self: silent.wait())
    stream = await bench.ask(signer, 2)
    assert stream.end is not None
    assert (stream.end.reason, stream.account.meter.acknowledged) == ("stop", Totals(2 * PROMPT, 120))


async def test_a_top_up_is_not_missed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 4: before a request is cut or refused for want of money, the job is read again."""
    monkeypatch.setattr(lookout, "RELIED", 60.0)
    signer = await bench.signer(deposit=pricing.owed(Totals(2 * PROMPT, 70), PRICES))
    await bench.ask(signer)
    await bench.top_up(signer, 1_000_000)
    async with await bench.admit(signer, 2, stream=False, max_tokens=60) as stream:
        assert (stream.order.max_tokens, stream.order.capped) == (60, False)


async def test_top_up_in_the_middle(bench: Bench) -> None:
    """Law 4: a stream that waits for money goes on when it comes."""
    signer = await bench.signer(deposit=pricing.owed(Totals(PROMPT, 30), PRICES))
    async with await bench.admit(signer) as stream:
        async for chunks in stream:
            for chunk in chunks:
                signer.receive(told(chunk))
                if chunk.tally.get("waiting"):
                    await bench.top_up(signer, 1_000_000)
            await bench.sign(signer)
    assert stream.end is not None
    assert (stream.end.reason, stream.account.meter.counted) == ("stop", Totals(PROMPT, 60))


class Bounding(ScriptedEngine):
    """Tells at once how long a prompt may be, and notes which it was asked to count."""

    def __init__(self) -> None:
        super().__init__(Script(say(*"x" * 60)))
        self.counted: list[Any] = []

    def most_prompt(self, body: Mapping[str, Any]) -> int | None:
        return sum(len(message["content"]) for message in body["messages"])

    async def count_prompt(self, body: Mapping[str, Any]) -> int:
        self.counted.append(body["messages"])
        return await super().count_prompt(body)


async def test_a_short_prompt_is_not_counted_beforehand(bench: Bench) -> None:
    """Where a bound does as well the engine is spared; its own count is billed, the rest is free again."""
    bench.engine = engine = Bounding()
    await bench.open()
    signer = await bench.signer(checkpoint_interval=100)
    async with await bench.admit(signer) as stream:
        bound = engine.most_prompt(stream.order.bodies[0])
        assert (engine.counted, stream.account.meter.reserved) == ([], bound)
        signer.receive(told((await anext(stream))[-1]))
        meter = stream.account.meter
        assert (meter.counted.prompt_tokens, meter.reserved) == (PROMPT, 0)
        await bench.sign(signer)


@pytest.mark.parametrize(
    ("members", "job"),
    [
        ({"messages": [{"role": "user", "content": "word " * 40}]}, {}),
        ({"stream": False, "max_tokens": 60}, {"deposit": pricing.owed(Totals(PROMPT, 30), PRICES)}),
        ({"n": 2}, {}),
    ],
)
async def test_a_prompt_that_matters_is_counted_beforehand(
    bench: Bench, members: dict[str, Any], job: dict[str, Any]
) -> None:
    """A prompt worth much of the credit, or of the deposit, is counted by the engine before it is let in."""
    bench.engine = engine = Bounding()
    await bench.open()
    async with await bench.admit(await bench.signer(**job), **members) as stream:
        assert len(engine.counted) == 1
        assert not stream.order.bounded


async def test_prompt_beyond_the_credit(bench: Bench) -> None:
    """A prompt beyond the credit is refused with the totals to sign, and served with that receipt."""
    signer = await bench.signer(checkpoint_interval=4, prices=Prices(900_000, 900_000))
    long = [{"role": "user", "content": "word " * 40}]
    with pytest.raises(Refusal) as caught:
        await bench.admit(signer, messages=long)
    assert caught.value.code == "prompt_receipt_due"
    signer.signs.sign_prompt_ahead(request_id(1), caught.value.extra["prompt_tokens"])
    receipt = signer.receipt()
    assert receipt is not None
    terms = caught.value.extra["terms"]
    assert receipt.totals == Totals(terms["prompt_tokens"], terms["tokens"])
    tally = {"request": request_id(1), "receipt": wire.receipt_out(receipt)}
    async with await bench.admit(signer, messages=long, tally=tally) as stream:
        chunks = await anext(stream)
    assert chunks[-1].tally["prompt_tokens"] == terms["prompt_tokens"]


async def test_for_a_prompt_no_token_is_to_be_signed(bench: Bench) -> None:
    """Law 3: of tokens that nobody signed for yet, the totals name none: who asks may lack them."""
    signer = await bench.signer()
    await bench.ask(signer, signing=False, max_tokens=20)
    with pytest.raises(Refusal) as caught:
        await bench.admit(signer, 2, messages=[{"role": "user", "content": "word " * 600}])
    terms = caught.value.extra["terms"]
    assert (terms["prompt_tokens"], terms["tokens"]) == (PROMPT + 606, 0)


async def test_the_payer_does_not_choose_the_credit(bench: Bench) -> None:
    """Law 3: on a job that pays more than the host asks, what is not signed for is valued at what it asks."""
    signer = await bench.signer(prices=Prices(9_000_000_000, 200_000))
    long = [{"role": "user", "content": "word " * 600}]
    assert await code(bench.admit(signer, messages=long)) == "prompt_receipt_due"
    async with await bench.admit(signer, 2) as stream:
        assert stream.account.meter.credit == pricing.credit(100, PRICES)


async def test_prompt_waits_for_receipts(bench: Bench) -> None:
    """A prompt that lacks only the credit that others have used waits for their receipts, and comes first."""
    signer = await bench.signer(checkpoint_interval=20)
    async with await bench.admit(signer) as stream:
        async for chunks in stream:
            for chunk in chunks:
                signer.receive(told(chunk))
            if chunks[-1].tally.get("waiting"):
                break
        asking = await bench.in_line(signer, stream)
        await bench.sign(signer)
        async with await asking as second:
            assert second.account is stream.account
            assert stream.account.meter.reserved == PROMPT


async def test_a_prompt_waits_as_long_as_receipts_come(bench: Bench) -> None:
    """A payer that signs, if not enough yet, is not one that has left."""
    signer = await bench.signer(checkpoint_interval=20)
    async with await bench.admit(signer) as stream:
        chunks = [chunk async for chunk in _until_it_waits(stream)]
        asking = await bench.in_line(signer, stream, messages=[{"role": "user", "content": "word " * 70}])
        for chunk in chunks[:4]:
            await asyncio.sleep(0.4)
            signer.receive(told(chunk))
            await bench.sign(signer)
        assert not asking.done()
        for chunk in chunks[4:]:
            signer.receive(told(chunk))
        await bench.sign(signer)
        async with await asking as second:
            assert second.reserved == 76


async def _until_it_waits(stream: Stream) -> AsyncIterator[Chunk]:
    async for chunks in stream:
        for chunk in chunks:
            yield chunk
        if chunks[-1].tally.get("waiting"):
            return


async def test_no_prompt_overtakes_one_that_waits(bench: Bench) -> None:
    """The line is served in its order, also where what comes later would fit."""
    signer = await bench.signer()
    async with await bench.admit(signer) as stream:
        place = stream.account.line.queue(PROMPT)
        assert stream.account.line.reserve(PROMPT) is Fit.NEEDS_RECEIPT
        place.cancel()
        assert stream.account.line.reserve(PROMPT) is Fit.FITS
        stream.account.release(PROMPT)


async def test_prompt_waits_no_longer_than_a_stream(bench: Bench) -> None:
    """A prompt waits for receipts for a bounded time, and not for a session that has ended."""
    signer = await bench.signer(checkpoint_interval=20)
    await bench.ask(signer, signing=False)
    stream = await bench.ask(signer, 2, signing=False)  # written off once, and no more
    assert await code(bench.admit(signer, 3)) == "prompt_receipt_due"
    asking = await bench.in_line(signer, stream)
    await bench.desk.end(signer.job.id, None, signer.end())
    assert await code(asking) == "job_ended"
    assert (stream.account.line.prompts, stream.account.meter.reserved) == (0, 0)


async def test_whole_answer_beyond_the_credit(bench: Bench) -> None:
    """An answer in one piece is served if it fits the credit whatever its length, and refused otherwise."""
    signer = await bench.signer()
    assert await code(bench.admit(signer, stream=False, max_tokens=99)) == "stream_required"
    stream = await bench.ask(signer, 2, stream=False, max_tokens=60)
    assert stream.account.meter.counted == Totals(PROMPT, 60)
    attested = await bench.signer(max_tokens_per_second=1000)
    await bench.devnet.increase_time(60)
    assert (await bench.ask(attested, stream=False, max_tokens=1000)).end is not None


async def test_a_request_id_serves_once(bench: Bench) -> None:
    """A request id is not used twice: its positions would be of two texts."""
    signer = await bench.signer()
    await bench.ask(signer)
    with pytest.raises(Refusal, match="used before") as caught:
        await bench.admit(signer)
    assert caught.value.code == "request_used"


async def test_refused_reservations_are_given_back(bench: Bench) -> None:
    """Law 5: a request that is turned down after its prompt was counted reserves nothing."""
    signer = await bench.signer()
    stream = await bench.ask(signer)
    for members in ({"max_tokens": 4096}, {"stream": False, "max_tokens": 4000}):
        with pytest.raises(Refusal):
            await bench.admit(signer, 2, **members)
    assert stream.account.meter.reserved == 0


async def test_reads_text_alone(bench: Bench) -> None:
    """What is not text is turned down before the engine, which would call it a fault of its own."""
    signer = await bench.signer()
    text = {"type": "text", "text": "What is this?"}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    for part in (image, {"text": "no type"}, "bare"):
        with pytest.raises(Refusal) as caught:
            await bench.admit(signer, messages=[{"role": "user", "content": [text, part]}])
        assert caught.value.code == "invalid_request"
        assert caught.value.extra["param"].startswith("messages[0].content[1]")
    assert bench.engine.asked == []
    assert (await bench.ask(signer, 2, messages=[{"role": "user", "content": [text]}])).end is not None


# Receipts


async def test_written_before_acknowledged(bench: Bench) -> None:
    """Law 7: an acknowledged receipt is in the ledger, and the acknowledgement is signed by the host."""
    signer = await bench.signer()
    await bench.ask(signer, signing=False)
    receipt = signer.receipt()
    assert receipt is not None
    answer = await bench.desk.receipt(receipt, signer.access())
    assert (await bench.row(signer)).receipted == receipt
    digest = signer.domain.receipt(signer.job.id, receipt.totals, receipt.transcript)
    assert answer.ack.signature is not None
    assert proof.recover(digest, answer.ack.signature) == signer.job.host


async def test_twice_is_harmless(bench: Bench) -> None:
    """Law 1: a receipt that comes again, or twice at once, is answered with the stored one."""
    signer = await bench.signer()
    await bench.ask(signer, signing=False)
    receipt = signer.receipt()
    assert receipt is not None
    answers = await asyncio.gather(*(bench.desk.receipt(receipt, signer.access()) for _ in range(3)))
    assert sorted(answer.stored is None for answer in answers) == [False, False, True]
    assert all(answer.stored in (None, receipt) for answer in answers)
    assert len(await bench.ledger.receipts(signer.job.id)) == 1


async def test_late_bearer_may_sign(bench: Bench) -> None:
    """A bearer that ran out does not keep a payer from signing; a stranger's does."""
    signer = await bench.signer()
    await bench.ask(signer, signing=False)
    receipt = signer.receipt()
    assert receipt is not None
    late = signer.access(expires_at=1)
    assert await code(bench.desk.receipt(receipt, signer.access(key=proof.new_key()))) == "access_forged"
    assert (await bench.desk.receipt(receipt, late)).ack.totals == receipt.totals
    assert await code(bench.desk.view(signer.job.id, late)) == "access_expired"


async def test_an_old_bearer_reads_no_receipt(bench: Bench) -> None:
    """Law 10: with a bearer that ran out, only who signed for the job is told the stored receipt."""
    signer = await bench.signer()
    await bench.ask(signer)
    late, stored = signer.access(expires_at=1), signer.signs.last
    assert stored is not None
    junk = replace(stored, totals=Totals(0, 1), signature=bytes(65))
    assert await code(bench.desk.receipt(junk, late)) == "receipt_forged"
    public = replace(stored, positions=())  # what a transaction shows of it
    assert await code(bench.desk.receipt(public, late)) == "receipt_forged"
    assert (await bench.desk.receipt(stored, late)).stored == stored
    assert (await bench.desk.receipt(public, signer.access())).stored == stored


async def test_a_closed_job_takes_no_receipt(bench: Bench) -> None:
    """Law 6: what is closed on the chain cannot be claimed on, so nothing is acknowledged for it."""
    signer = await bench.signer()
    await bench.ask(signer, signing=False)
    host = bench.devnet.accounts.host.private_key
    await bench.chain.transact(bench.chain.complete_session(signer.job.id), host, confirmations=1)
    receipt = signer.receipt()
    assert receipt is not None
    assert await code(bench.desk.receipt(receipt, signer.access())) == "job_closed"
    assert (await bench.row(signer)).receipted is None


async def test_nobody_else_sees_a_job(bench: Bench) -> None:
    """Law 10: the host's view of a job, its receipt included, is for the job's signer."""
    signer = await bench.signer()
    await bench.ask(signer)
    stranger = signer.access(key=proof.new_key())
    assert await code(bench.desk.view(signer.job.id, stranger)) == "access_forged"
    assert await code(bench.desk.identify(stranger)) == "access_forged"
    assert (await bench.desk.view(signer.job.id, signer.access()))["receipt"] is not None


async def test_a_checkpoint_is_due_once(bench: Bench) -> None:
    """A whole interval is told once, when it is counted, and no quarter of it is."""
    signer = await bench.signer()
    with capture_logs() as lines:
        for number in (1, 2, 3, 4):
            await bench.ask(signer, number)
    due = [line["tokens"] for line in lines if line["event"] == "checkpoint.due"]
    assert [tokens // 100 for tokens in due] == [1, 2]


async def test_whole_intervals_are_due(bench: Bench) -> None:
    """The first receipt at or past a whole interval is to be settled; those at quarters are not."""
    signer = await bench.signer()
    await bench.ask(signer)
    assert (await bench.row(signer)).due == Totals()
    await bench.ask(signer, 2)
    row = await bench.row(signer)
    assert 100 <= row.due.tokens <= row.counted.tokens == 120
    assert bench.pokes == 1


async def test_unpaid_acknowledges_unsigned(bench: Bench) -> None:
    """A host without a key takes receipts all the same, and says nothing in writing."""
    await bench.open(host_private_key=None, host_address=bench.devnet.accounts.host.address)
    signer = await bench.signer()
    await bench.ask(signer, signing=False)
    answer = await bench.sign(signer)
    assert answer is not None
    assert answer.ack.signature is None


async def test_attested_takes_no_receipt(bench: Bench) -> None:
    """On a host-attested job nobody signs: receipts are refused, and what was counted is due."""
    signer = await bench.signer(max_tokens_per_second=1000)
    await bench.devnet.increase_time(60)
    for number in (1, 2):
        await bench.ask(signer, number, signing=False)
    receipt = signer.receipt()
    assert receipt is not None
    assert await code(bench.desk.receipt(receipt, signer.access())) == "receipt_not_needed"
    row = await bench.row(signer)
    assert row.claimable.tokens >= row.due.tokens >= 100


# Ends


async def test_end(bench: Bench) -> None:
    """The signer's word ends a session: on disk before it is answered, and nothing is served after."""
    signer = await bench.signer()
    await bench.ask(signer)
    view = await bench.desk.end(signer.job.id, None, signer.end())
    assert (view["ended"], view["counted"]) == (True, {"prompt_tokens": PROMPT, "tokens": 60})
    assert (await bench.row(signer)).ending
    assert await code(bench.admit(signer, 2)) == "job_ended"
    await bench.open()
    assert await code(bench.admit(signer, 3)) == "job_ended"


async def test_end_by_the_last_receipt(bench: Bench) -> None:
    """The last receipt ends a session, new or sent before; an older one does not."""
    signer = await bench.signer()
    await bench.ask(signer)
    first, last = await bench.ledger.receipts(signer.job.id), None
    assert await code(bench.desk.end(signer.job.id, first[0], None)) == "receipt_out_of_order"
    await bench.ask(signer, 2, signing=False)
    last = signer.receipt()
    assert last is not None
    await bench.desk.end(signer.job.id, last, None)
    row = await bench.row(signer)
    assert (row.ending, row.receipted) == (True, last)
    assert (await bench.desk.end(signer.job.id, last, None))["ended"]


async def test_a_stranger_ends_nothing(bench: Bench) -> None:
    """Law 10: only the job's signer ends its session."""
    signer = await bench.signer()
    await bench.ask(signer)
    for end in (signer.end(key=proof.new_key()), bytes(65)):
        assert await code(bench.desk.end(signer.job.id, None, end)) == "end_forged"
    assert not (await bench.row(signer)).ending
    await bench.ask(signer, 2)


async def test_end_stops_what_runs(bench: Bench) -> None:
    """The end of a session cuts its streams; settlement is told once the intent is on the disk."""
    bench.engine = ScriptedEngine(Script((*say("a"), Hang())))
    await bench.open()
    signer = await bench.signer()
    async with await bench.admit(signer) as stream:
        await anext(stream)
        await bench.desk.end(signer.job.id, None, signer.end())
        assert bench.pokes == 1
        async for _ in stream:
            pytest.fail("nothing is delivered after the end")
    assert stream.end is not None
    assert stream.end.reason == "cancelled"


async def test_a_job_that_is_closed_is_served_to_nobody(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 3: once its end is known, a job that was open a moment ago lets no request in."""
    monkeypatch.setattr(lookout, "RELIED", 60.0)
    signer = await bench.signer()
    await bench.ask(signer)
    await bench.chain.transact(
        bench.chain.complete_session(signer.job.id), bench.devnet.accounts.payer.private_key
    )
    async with await bench.admit(signer, 2):
        pass  # nobody here has heard of it yet
    await bench.desk.accounts.drain(signer.job.id)
    assert await code(bench.admit(signer, 3)) == "job_completing"


async def test_drain(bench: Bench) -> None:
    """When the chain closes a job its streams end, and settlement gets the last gross count."""
    bench.engine = ScriptedEngine(Script((*say("a", "b"), Hang())))
    await bench.open()
    signer = await bench.signer()
    async with await bench.admit(signer) as stream:
        while stream.account.meter.gross.tokens < 2:
            await anext(stream)
        assert await bench.desk.accounts.drain(signer.job.id) == Totals(PROMPT, 2)
        async for _ in stream:
            pytest.fail("nothing is delivered after the job has closed")
    assert await bench.desk.accounts.drain((await bench.signer()).job.id) is None


async def test_stop(bench: Bench) -> None:
    """A node that stops ends its streams and takes no new ones."""
    bench.engine = ScriptedEngine(Script((*say("a"), Hang())))
    await bench.open()
    signer = await bench.signer()

    async def listen(stream: Stream) -> None:
        async with stream:
            async for _ in stream:
                heard.set()

    heard = asyncio.Event()
    stream = await bench.admit(signer)
    listening = asyncio.create_task(listen(stream))
    await heard.wait()
    await bench.desk.stop(5.0)
    await listening
    assert stream.end is not None
    assert (stream.end.reason, bench.desk.accounts.streams) == ("node_stopping", 0)
    assert await code(bench.admit(signer, 2)) == "node_stopping"


async def test_stop_tells_what_waits(bench: Bench) -> None:
    """A request that waits for admission is told that the node stops before its connection is closed."""
    signer = await bench.signer(checkpoint_interval=20)
    await bench.ask(signer, signing=False)
    stream = await bench.ask(signer, 2, signing=False)
    asking = await bench.in_line(signer, stream)
    await bench.desk.stop(5.0)
    assert asking.done()
    assert await code(asking) == "node_stopping"


# What nobody signs for


async def test_written_off_after_the_grace(bench: Bench) -> None:
    """What a payer leaves unsigned is taken off the count after the grace, so that it can go on."""
    await bench.open(grace=0)
    signer = await bench.signer()
    stream = await bench.ask(signer, signing=False)
    await bench.written_off(signer, Totals(PROMPT, 60))
    assert stream.account.meter.counted == Totals()
    receipt = signer.receipt()
    assert receipt is not None
    await bench.desk.receipt(receipt, signer.access())  # it had arrived after all
    row = await bench.row(signer)
    assert (row.counted, row.written_off, stream.account.meter.counted) == (
        Totals(PROMPT, 60),
        Totals(),
        Totals(PROMPT, 60),
    )


async def test_signed_within_the_grace(bench: Bench) -> None:
    """What is signed for within the grace is not written off."""
    signer = await bench.signer()
    stream = await bench.ask(signer, signing=False)
    await bench.sign(signer)
    assert stream.account.open_of(stream.order.request) == Totals()
    assert stream.account.meter.counted == Totals(PROMPT, 60)


async def test_a_client_that_left_is_not_in_the_way(bench: Bench) -> None:
    """What a client that went away left unsigned is written off when the next request needs its credit."""
    bench.engine = ScriptedEngine(Script((*say(*"x" * 18), Hang())), Script(say(*"y" * 18)))
    await bench.open()
    signer = await bench.signer(checkpoint_interval=20)
    async with await bench.admit(signer) as stream:
        while stream.delivery.totals.tokens < 17:
            for chunk in await anext(stream):
                signer.receive(told(chunk))
    left = stream.account.meter.counted
    second = await bench.ask(signer, 2)
    row = await bench.row(signer)
    # Both were signed for in the end: what had been given up has arrived after all.
    assert row.counted == row.acknowledged == left + second.delivery.totals
    assert row.written_off == Totals()


async def test_forgiven_within_one_credit(bench: Bench) -> None:
    """Law 3: clients that keep leaving are forgiven one credit in a job's life, and then have to sign."""
    bench.engine = ScriptedEngine(Script((*say(*"x" * 18), Hang())))
    await bench.open()
    signer = await bench.signer(checkpoint_interval=20)
    for number in (1, 2):
        async with await bench.admit(signer, number) as stream:
            while stream.delivery.totals.tokens < 17:
                await anext(stream)
    assert not await bench.is_ending(signer)
    with pytest.raises(Refusal) as caught:
        await bench.admit(signer, 3)
    assert (caught.value.code, "models" in caught.value.extra["terms"]) == ("credit_used_up", True)
    assert await bench.is_ending(signer)
    assert await code(bench.admit(signer, 4)) == "job_ended"


async def test_one_credit_in_a_life(bench: Bench) -> None:
    """Law 3: who leaves more than one credit unsigned over a job's life has it settled and completed."""
    await bench.open(grace=0)
    signer = await bench.signer()
    await bench.ask(signer, signing=False)
    await bench.written_off(signer, Totals(PROMPT, 60))
    await bench.ask(signer, 2, signing=False)
    await until(lambda: bench.is_ending(signer))
    assert (await bench.row(signer)).written_off == Totals(PROMPT, 60)
    assert await code(bench.admit(signer, 3)) == "job_ended"


async def test_restart(bench: Bench) -> None:
    """After a restart the count is what it was, and what the payer had received can still be signed for."""
    signer = await bench.signer()
    await bench.ask(signer, signing=False)
    await bench.open()
    stream = await bench.ask(signer, 2)
    assert stream.account.meter.counted == Totals(2 * PROMPT, 120)
    row = await bench.row(signer)
    assert row.receipted is not None
    assert row.receipted.totals == Totals(2 * PROMPT, 120)


async def test_restart_writes_off(bench: Bench) -> None:
    """What was delivered before a restart and is not signed for within the grace is written off."""
    signer = await bench.signer()
    await bench.ask(signer, signing=False)
    await bench.open(grace=0)
    async with await bench.admit(signer, 2) as stream:
        await bench.written_off(signer, Totals(PROMPT, 60))
        assert stream.account.meter.counted == Totals()


def test_errors_keep_to_themselves() -> None:
    """What went wrong inside is logged; a client is told whose move it is, and no path or place."""
    for error, told in (
        (LedgerError("/srv/host/ledger.db is full"), "ledger_unavailable"),
        (ChainError("rpc.example:8545 did not answer"), "chain_unavailable"),
        (EngineUnavailable("http://10.0.0.3:8000 refused"), "engine_unavailable"),
    ):
        with capture_logs() as lines:
            refusal = refusal_of(error)
        assert refusal.code == told
        assert str(error) not in str(refusal.problem())
        assert lines[0]["error"] == str(error)


def test_a_failing_database_is_not_logged_with_each_request() -> None:
    """The ledger has said so already; a client is told when to come again."""
    with capture_logs() as lines:
        refusal = refusal_of(DatabaseFailed("/srv/host/ledger.db is full"))
    assert (refusal.code, refusal.problem()["retry_after"]) == ("ledger_unavailable", 2)
    assert lines == []


# Served before it lies deep


async def early(bench: Bench, blocks: int = 5, **changed: Any) -> Desk:
    """A desk that asks for so many blocks on top of a job, and serves before."""
    bench.depth = blocks
    return await bench.open(early=True, **changed)


async def test_an_early_job_is_served_one_interval(bench: Bench) -> None:
    """Law 4: whatever is signed, until it lies deep; then the reply goes on."""
    bench.engine = ScriptedEngine(Script(say(*"x" * 150)))
    await early(bench, receipt_timeout=30)
    signer = await bench.signer()
    asking = asyncio.create_task(bench.ask(signer, max_tokens=200))

    async def shown(what: str) -> Totals:
        view = await bench.desk.view(signer.job.id, signer.access())
        return Totals(**view[what])

    async def is_at_the_limit() -> bool:
        return (await shown("receipted")).tokens >= 75 and (await shown("counted")).tokens >= 90

    await until(is_at_the_limit)
    assert pricing.value(await shown("counted"), PRICES) <= pricing.credit(100, PRICES)
    await bench.devnet.mine(5)
    stream = await asking
    assert stream.end is not None
    assert stream.end.reason == "stop"
    assert await shown("counted") == Totals(PROMPT, 150)


async def test_early_serving_is_the_host_s_choice(bench: Bench) -> None:
    """Without it, a job has to lie deep before the engine is touched."""
    await early(bench)
    await bench.open(early=False)
    signer = await bench.signer()
    assert await code(bench.admit(signer)) == "job_unconfirmed"
    await bench.devnet.mine(5)
    await bench.ask(signer)


async def test_an_early_job_that_does_not_come_to_lie_deep(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stream ends, and says why; what the credit does not hold is refused for the same reason."""
    monkeypatch.setattr(stream_module, "DEPTH_PATIENCE", 0.3)
    bench.engine = ScriptedEngine(Script(say(*"x" * 150)))
    await early(bench)
    signer = await bench.signer()
    stream = await bench.ask(signer, max_tokens=150)
    assert stream.end is not None
    assert stream.end.reason == "job_unconfirmed"
    assert await code(bench.admit(signer, 2)) == "job_unconfirmed"


async def test_an_early_job_that_a_reorganisation_replaces(bench: Bench) -> None:
    """Another payer's job has its id now: that is served, and the one before told with what it cost."""
    await early(bench)
    before = await bench.signer()
    await bench.ask(before)
    await bench.devnet.reorganise(2)
    after = await bench.signer(deposit=1_000_000)
    assert after.job.id == before.job.id
    assert await code(bench.admit(after)) == "job_unconfirmed"
    await bench.devnet.mine(5)
    with capture_logs() as logs:
        await bench.ask(after)
    [told_] = [line for line in logs if line["event"] == "job.replaced"]
    assert (told_["signer"], told_["tokens"]) == (before.job.signer, 60)
    row = await bench.row(after)
    assert (row.job.signer, row.gross) == (after.job.signer, Totals(PROMPT, 60))


async def test_an_early_job_that_is_opened_again_goes_on(bench: Bench) -> None:
    """A reorganisation put its transaction into another block: what was signed is good."""
    await early(bench)
    signer = await bench.signer()
    await bench.ask(signer)
    block = await bench.devnet.ask("eth_getBlockByNumber", "latest", True)
    raw = await bench.devnet.ask("eth_getRawTransactionByHash", block["transactions"][0]["hash"])
    await bench.devnet.reorganise(1, [(bytes.fromhex(raw[2:]), 0)])
    await bench.devnet.mine(6)
    await bench.ask(signer, 2)
    assert (await bench.row(signer)).counts.receipted == Totals(2 * PROMPT, 120)
