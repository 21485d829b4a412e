"""The SDK, against a real node: two lines, exact amounts, events, an `openai` client that pays."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import openai
import pytest
from httpx2 import ReadTimeout, Timeout
from structlog.testing import capture_logs

import tallystick
from tallystick import pricing
from tallystick.allowance import RESERVE
from tallystick.chain import Chain
from tallystick.client import AsyncSession, Kind, Told, typed
from tallystick.config import PayerConfig, Secret
from tallystick.countersign import Overcount
from tallystick.devnet import Devnet
from tallystick.errors import ConfigError, Refusal, SessionError
from tallystick.session import BalanceLow, Settled, Signed
from tallystick.testing.engine import Hang, Script, ScriptedEngine, Step, say
from tallystick.types import Completion, JobId, JobStatus
from tallystick.websocket import Connection
from tallystick.wire import MAX_BODY
from tests.buying import MESSAGES, Bench
from tests.hosting import started
from tests.market import GOOD, Market
from tests.paying import register
from tests.tokenizing import pieces, written


@pytest.fixture
async def bench(devnet: Devnet, chain: Chain, tmp_path: Path) -> AsyncIterator[Bench]:
    await register(devnet, chain)
    async with AsyncExitStack() as parts:
        yield Bench(devnet, chain, tmp_path, parts)


@pytest.fixture
async def market(devnet: Devnet, chain: Chain, tmp_path: Path) -> AsyncIterator[Market]:
    async with AsyncExitStack() as parts:
        yield Market(devnet, chain, tmp_path, parts)


def config(bench: Bench) -> PayerConfig:
    """The devnet's payer, with a store of the test's."""
    key = Secret(bench.devnet.accounts.payer.private_key)
    directory = bench.directory / "payer"
    return PayerConfig(payer_private_key=key, rpc_url=bench.devnet.rpc_url, data_dir=directory)


async def test_two_lines_are_enough(bench: Bench) -> None:
    """A reply comes as it is made, its cost is told exactly, and leaving brings the rest back."""
    url = await bench.serve(Script(say(*["word "] * 230)))
    before, _ = await bench.money()
    session = AsyncSession(
        deposit="0.5 tUSD", model="scripted", max_price="0.90", host=url, config=config(bench)
    )
    async with session:
        text = "".join([each async for each in session.chat("Why?", max_tokens=300)])
        told = session.reply
    assert text == "word " * 230
    assert told is not None
    assert (told.totals.tokens, told.asset, told.reason) == (230, "tUSD", "stop")
    job = await bench.chain.job(told.job_id)
    assert job is not None
    assert told.cost == Decimal(pricing.value(job.settled, job.prices)).scaleb(-12)
    assert before - (await bench.money())[0] == job.owed


async def test_a_listener_that_raises_is_logged_and_the_session_goes_on(bench: Bench) -> None:
    """Of whatever event: replies are whole, later ones come, the job is completed, others hear of it."""
    url = await bench.serve(Script(say(*["word "] * 230)), Script(say(*["word "] * 230)))
    heard: list[Any] = []

    def faulty(event: Any) -> None:
        raise KeyError(type(event).__name__)

    async with AsyncSession(host=url, config=config(bench)) as session:
        for kind in get_args(Kind):
            session.on(kind, faulty)
        session.on("completed", heard.append)
        with capture_logs() as logs:
            texts = ["".join([each async for each in session.chat("Why?", max_tokens=300)]) for _ in range(2)]
    assert texts == ["word " * 230] * 2
    assert "listener.failed" in [line["event"] for line in logs]
    assert [type(event) for event in heard] == [Completion]


async def test_a_listener_may_be_async(bench: Bench) -> None:
    """It is awaited, one event after the other, may ask the session, and leaving waits for it."""
    url = await bench.serve(Script(say(*["word "] * 230)))
    heard: list[Any] = []

    async def hear(event: Any) -> None:
        models = await session.models() if isinstance(event, Signed) else []
        heard.append((type(event), models))

    session = AsyncSession(host=url, config=config(bench))
    async with session:
        session.on("checkpoint", hear)
        session.on("completed", hear)
        async for _ in session.chat("Why?", max_tokens=300):
            pass
    *signed, last = heard
    assert signed[0] == (Signed, ["scripted"])
    assert last == (Completion, [])


def test_help_is_enough() -> None:
    """Of either class: each event is named with what it brings, each method has a text, each argument too."""
    for session in (AsyncSession, tallystick.Session):
        for name, member in inspect.getmembers(session):
            assert name.startswith("_") or inspect.getdoc(member), name
        events = inspect.getdoc(session.on) or ""
        for kind, told in zip(get_args(Kind), get_args(Told), strict=True):
            assert f"`{kind}`: a{'n' * (told is Overcount)} {told.__name__};" in events
        taken = inspect.getdoc(session.__init__) or ""
        assert [each for each in inspect.signature(session).parameters if f"`{each}`:" not in taken] == []


async def test_an_event_that_there_is_not_is_named(bench: Bench) -> None:
    """With those that there are."""
    kind: Any = "checkpoints"
    with pytest.raises(ConfigError, match="no event 'checkpoints'; there are checkpoint, settled"):
        AsyncSession(config=config(bench)).on(kind, print)


async def test_events_tell_what_happens_to_the_money(bench: Bench) -> None:
    """Receipts, settlements, a low deposit and the end, each as it comes."""
    url = await bench.serve(Script(say(*["a "] * 300)))
    heard: list[Any] = []
    async with AsyncSession(deposit="0.00033", host=url, config=config(bench)) as session:
        for kind in ("checkpoint", "settled", "balance_low", "completed"):
            session.on(kind, heard.append)
        async for _ in session.chat("Why?", max_tokens=300):
            pass
    kinds = [type(event) for event in heard]
    assert set(kinds) == {Signed, Settled, BalanceLow, Completion}
    assert kinds[-1] is Completion
    assert heard[-1].owed == sum(event.host + event.treasury for event in heard if isinstance(event, Settled))


async def test_what_the_host_does_not_say_the_chain_tells(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who leaves has heard of every settlement of the session, also of those that the host did not tell."""
    monkeypatch.setattr(Connection, "_settled", lambda connection, payout: None)
    url = await bench.serve(Script(say(*["a "] * 250)))
    heard: list[Any] = []
    async with AsyncSession(deposit="0.5", host=url, config=config(bench)) as session:
        for kind in ("settled", "completed"):
            session.on(kind, heard.append)
        async for _ in session.chat("Why?", max_tokens=300):
            pass
    *settled, completion = heard
    assert [event.refund for event in settled if event.tx == completion.tx] == [completion.refund]
    assert completion.owed == sum(event.host + event.treasury for event in settled) > 0


async def test_a_host_that_counts_too_much_is_told_of(bench: Bench, tmp_path: Path) -> None:
    """With the model's tokenizer only what its count bears out is paid, and a listener hears of the rest."""
    file = written(tmp_path)
    words = pieces("Both halves of the stick say the same, and neither can be changed alone. " * 8)
    url = await bench.serve(Script(tuple(Step(word, 2) for word in words)))
    heard: list[Overcount] = []
    session = AsyncSession(deposit="0.5", host=url, tokenizers=[str(file)], config=config(bench))
    async with session:
        session.on("overcount", heard.append)
        async for _ in session.chat("Why?", max_tokens=1_000):
            pass
        told = session.reply
    assert told is not None
    job = await bench.chain.job(told.job_id)
    assert job is not None
    assert [over.counted for over in heard] == [told.totals.tokens]
    assert job.settled.tokens <= len(words) + 2 + len(words) // 50 + RESERVE < told.totals.tokens


async def test_a_tokenizer_that_is_another_file_keeps_the_session_shut(bench: Bench, tmp_path: Path) -> None:
    """A pin that does not hold is an error before any money moves."""
    file = replace(written(tmp_path), sha256="00" * 32)
    session = AsyncSession(config=config(bench), tokenizers=[str(file)])
    with pytest.raises(ConfigError, match="it is another file"):
        await session.__aenter__()
    with pytest.raises(ConfigError, match="MODEL=FILE@sha256"):
        await AsyncSession(config=config(bench), tokenizers=["tokenizer.json"]).__aenter__()


async def test_a_session_finds_hosts_and_goes_on_with_the_next(market: Market) -> None:
    """Without a URL: a reply that breaks off is raised, the next one is another host's; listeners hear it."""
    dies = await market.sell(1, Script((*say("a"), Hang())), price="0.50")
    lives = await market.sell(2, GOOD)
    heard: list[Any] = []
    async with AsyncSession(deposit="0.5", max_per_day="1", config=config(market)) as session:
        session.on("host_chosen", heard.append)
        session.on("set_aside", heard.append)
        reply = session.chat("Why?")
        assert await anext(reply) == "a"
        dies.cut()
        with pytest.raises(SessionError):
            await anext(reply)
        assert "".join([each async for each in session.chat("Why?")]) == "b " * 30
        assert session.reply is not None
        assert session.reply.host == lives.url
    assert [each.url for each in heard] == [dies.url, dies.url, lives.url]


async def test_leaving_a_reply_ends_it(bench: Bench) -> None:
    """What came until then is paid for; the session goes on."""
    url = await bench.serve(Script((*say(*["a "] * 30), Hang())), Script(say("b")))
    async with AsyncSession(host=url, config=config(bench)) as session:
        reply = session.chat("Why?")
        text = ""
        while len(text) < 60:
            text += await anext(reply)
        await reply.aclose()
        assert [each async for each in session.chat("Why?")] == ["b"]
    job = await bench.chain.job(JobId(1))
    assert job is not None
    assert job.settled.tokens == 31


async def test_leaving_the_session_ends_what_is_under_way(bench: Bench) -> None:
    """A reply that nobody reads to its end keeps no money: it is cancelled, and the job completed."""
    url = await bench.serve(Script((*say(*["a "] * 30), Hang())))
    async with AsyncSession(host=url, config=config(bench)) as session:
        reply = session.chat("Why?")
        text = ""
        while len(text) < 60:
            text += await anext(reply)
    job = await bench.chain.job(JobId(1))
    assert job is not None
    assert (job.status, job.settled.tokens) == (JobStatus.CLOSED, 30)
    await reply.aclose()


async def test_the_clients_own_library_pays(bench: Bench) -> None:
    """`session.openai()` is OpenAI's client, streamed and not, side by side, with its own errors."""
    url = await bench.serve(Script(say(*["word "] * 150)))
    async with AsyncSession(host=url, config=config(bench)) as session, session.openai() as client:
        how: Any = {"model": "scripted", "messages": MESSAGES, "max_tokens": 200}
        whole, stream = await asyncio.gather(
            client.chat.completions.create(**how), client.chat.completions.create(**how, stream=True)
        )
        pieces = [chunk.choices[0].delta.content async for chunk in stream if chunk.choices]
        assert whole.choices[0].message.content == "".join(filter(None, pieces)) == "word " * 150
        assert [model.id async for model in client.models.list()] == await session.models() == ["scripted"]
        with pytest.raises(openai.NotFoundError) as refused:
            await client.chat.completions.create(**{**how, "model": "another"})
        assert refused.value.code == "model_unknown"


async def test_a_client_pays_nothing_once_its_session_was_left(bench: Bench) -> None:
    """It is told so, and opens no job that nobody would complete."""
    url = await bench.serve(Script(say("a")))
    how: Any = {"model": "scripted", "messages": MESSAGES, "max_tokens": 10}
    async with AsyncSession(host=url, config=config(bench)) as session:
        client = session.openai(max_retries=0)
        await client.chat.completions.create(**how)
    async with client:
        with pytest.raises(SessionError, match="was left"):
            await client.chat.completions.create(**how)
        with pytest.raises(SessionError, match="was left"):
            session.openai()
    assert len(await bench.chain.jobs()) == 1


async def test_a_client_waits_no_longer_than_its_timeout(bench: Bench) -> None:
    """For a reply to begin, and between two events: the host is told, and what came is paid for."""
    engine = ScriptedEngine(Script((Hang(),)), Script((*say(*["a "] * 30), Hang())), Script(say("b")))
    url = await bench.serve(engine=engine)
    how: Any = {"model": "scripted", "messages": MESSAGES, "max_tokens": 100}
    async with AsyncSession(host=url, config=config(bench)) as session:
        client = session.openai(max_retries=0, timeout=Timeout(None, read=2))
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(**how)
        stream = await client.chat.completions.create(**how, stream=True)
        with pytest.raises(openai.APITimeoutError) as late:
            _ = [chunk async for chunk in stream]
        await asyncio.gather(*(asked.over.wait() for asked in engine.asked))
        whole = await client.chat.completions.create(**how)
    assert isinstance(late.value.__cause__, ReadTimeout)
    assert whole.choices[0].message.content == "b"
    assert [asked.cancelled for asked in engine.asked] == [True, True, False]
    job = await bench.chain.job(JobId(1))
    assert job is not None
    assert job.settled.tokens == 31


async def test_leaving_the_session_is_told_to_whoever_waits(bench: Bench) -> None:
    """A reply that had not begun is none, and one that was cut is not given out as whole."""
    hangs = Script((Hang(),))
    engine = ScriptedEngine(Script((*say(*["a "] * 30), Hang())), hangs, hangs)
    url = await bench.serve(engine=engine)
    how: Any = {"model": "scripted", "messages": MESSAGES, "max_tokens": 100}
    async with AsyncSession(host=url, config=config(bench)) as session:
        begun = session.chat("Why?", max_tokens=100)
        assert await anext(begun)
        waiting = asyncio.create_task(anext(session.chat("Why?", max_tokens=100)))
        await started(engine, 2)
        asking = asyncio.create_task(session.openai(max_retries=0).chat.completions.create(**how))
        await started(engine, 3)
    with pytest.raises(SessionError, match="before the reply had ended"):
        await waiting
    with pytest.raises(SessionError, match="was left"):
        await asking
    with pytest.raises(SessionError, match="before the reply had ended"):
        _ = [text async for text in begun]
    assert session.reply is not None
    assert (session.reply.reason, session.reply.totals.tokens) == ("cancelled", 30)


@pytest.mark.parametrize("prompt", ["\ud800", 5, None, [], [5], [{"role": "user", "content": "\ud800"}]])
async def test_what_is_no_prompt_is_refused(bench: Bench, prompt: Any) -> None:
    """As all else that cannot be asked: by an error of this package."""
    with pytest.raises(Refusal, match="invalid_request"):
        await anext(AsyncSession(config=config(bench)).chat(prompt))


async def test_a_prompt_that_is_too_long_is_told_of_in_bytes(bench: Bench) -> None:
    """Of limits that only strangers to a host have nothing is said."""
    with pytest.raises(Refusal, match=f"too_large: The body is longer than {MAX_BODY} bytes"):
        await anext(AsyncSession(config=config(bench)).chat("a" * MAX_BODY))


async def test_what_the_caps_forbid_is_raised(bench: Bench) -> None:
    """Before anything is asked of a host, and with the cap that is in the way."""
    url = await bench.serve(Script(say("a")))
    async with AsyncSession(deposit="0.0001", host=url, config=config(bench)) as session:
        with pytest.raises(Refusal, match=r"may cost 0\.\d+ tUSD, and deposit leaves 0\.0001 tUSD"):
            await anext(session.chat("Why?"))
    async with AsyncSession(max_price="0.89", host=url, config=config(bench)) as session:
        with pytest.raises(Refusal) as refused:
            await anext(session.chat("Why?"))
    assert refused.value.code == "price_above_cap"
    assert "0.9 tUSD a million tokens of 'scripted', and max_price is 0.89 tUSD" in refused.value.detail


async def test_several_choices_are_not_one_text(bench: Bench) -> None:
    """`chat` gives one reply's text: who asks for two is told where they are."""
    url = await bench.serve(Script(say("a")))
    async with AsyncSession(host=url, config=config(bench)) as session:
        with pytest.raises(Refusal, match=r"openai\(\) gives several"):
            await anext(session.chat("Why?", n=2))
        with pytest.raises(Refusal, match="`max_tokens`: 0 asks for no reply"):
            await anext(session.chat("Why?", max_tokens=0))
        assert [text async for text in session.chat("Why?", n=1)] == ["a"]


async def test_a_session_is_entered_first(bench: Bench) -> None:
    """Whoever forgets `with` is told, and who goes on after it."""
    session = AsyncSession(config=config(bench))
    with pytest.raises(SessionError, match="with Session"):
        await anext(session.chat("Why?"))
    async with session:
        pass
    with pytest.raises(SessionError, match="was left"):
        await session.models()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"deposit": "0"}, "^deposit: 0 is not above 0"),
        ({"deposit": ""}, "^deposit: "),
        ({"max_per_day": ""}, "^max_per_day: "),
        ({"host": "foo"}, "^host foo: "),
        ({"max_price": "x"}, "^max_price: "),
        ({"max_per_day": "0"}, "^max_per_day: "),
    ],
)
async def test_what_was_given_is_named(bench: Bench, options: dict[str, Any], told: str) -> None:
    """An error names the argument, and not an option of the command line."""
    with pytest.raises(ConfigError, match=told):
        async with AsyncSession(config=config(bench), **options):
            pass


@pytest.mark.parametrize(
    ("amount", "as_typed"),
    [("2 USDC", "2 USDC"), ("0.001 ETH", "0.001 ETH"), (2, "2"), (Decimal("1E-6"), "0.000001"), (None, None)],
)
def test_amounts_are_what_people_type(amount: Any, as_typed: str | None) -> None:
    """A text, a Decimal or a whole number, exactly."""
    assert typed(amount) == as_typed


@pytest.mark.parametrize("amount", [0.6, 2.0, True, [2]])
def test_an_amount_is_never_a_float(amount: Any) -> None:
    """0.1 is not a tenth: whoever writes one is told how to write it."""
    with pytest.raises(ConfigError, match="in quotes"):
        typed(amount)


@pytest.mark.parametrize("deposit", ["2 GBP", "2 tUSD EUR", "-2", "1e3", "0", "0.0000001", "two"])
async def test_amounts_that_make_no_sense_are_refused(bench: Bench, deposit: str) -> None:
    """Unknown assets, more decimals than there are, nothing: said before anything is opened."""
    with pytest.raises(ConfigError):
        async with AsyncSession(deposit=deposit, config=config(bench)):
            pass


def test_sessions_are_found_where_they_are_looked_for() -> None:
    """`from tallystick import Session`, and the same with `async`: both take the same, and say what it is."""
    options = inspect.signature(tallystick.AsyncSession).parameters
    assert inspect.signature(tallystick.Session).parameters == options
    doc = inspect.getdoc(tallystick.Session.__init__)
    assert doc is not None
    assert all(f"`{name}`:" in doc for name in options)
