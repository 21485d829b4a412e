"""The payer's own count: honest hosts are signed for in full, a host that pads is found."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from itertools import cycle, islice
from pathlib import Path

import pytest

from tallystick import proof
from tallystick.allowance import RESERVE
from tallystick.chain import Chain
from tallystick.config import HostConfig, Secret
from tallystick.countersign import Countersigner, Overcount
from tallystick.devnet import Devnet
from tallystick.engines.llama import LlamaEngine
from tallystick.errors import ReceiptError
from tallystick.keccak import keccak
from tallystick.node import Node
from tallystick.opening import Wishes
from tallystick.recount import Recounts, Scale
from tallystick.server import running
from tallystick.session import Done, Session
from tallystick.store import Store
from tallystick.tab import Tab
from tallystick.testing.engine import Script, ScriptedEngine, Step
from tallystick.types import Ack, Address, JobId, Prices, Totals
from tests.asking import BODY
from tests.paying import register
from tests.test_vocabulary import GGUF
from tests.tokenizing import MODEL, PAGES, pieces, written

HOST = Address("0x" + "11" * 20)
KEY = keccak(b"a session key of these tests")
DOMAIN = proof.Domain(31337, Address("0x" + "22" * 20))
LENGTH = 150
"""Tokens of a reply."""


class Payer:
    """A job's countersigner, and what its tabs tell."""

    def __init__(self, scale: Scale | None) -> None:
        self.signs = Countersigner(JobId(121), Prices(900_000, 200_000), 100, DOMAIN, KEY)
        self.told: list[Overcount] = []
        self.due = asyncio.Event()
        self.scale = scale

    def ask(self, **sampling: object) -> Tab:
        body = {**BODY, **sampling}
        return Tab(self.signs, self.due, self.told.append, body, 1_000, scale=self.scale)

    async def take(self, tab: Tab, text: str, tokens: int, reason: str | None = None) -> None:
        """One chunk, and a receipt wherever one is due."""
        tab.hear(0, {"content": text})
        tab.take(Totals(12, tokens), text, reason)
        if self.due.is_set():
            self.due.clear()
            await tab.recount()
            self.sign()

    def sign(self) -> None:
        while (receipt := self.signs.next()) is not None:
            self.signs.acked(Ack(receipt.job_id, receipt.totals, receipt.transcript, None))


@pytest.fixture
async def scale(tmp_path: Path) -> AsyncIterator[Scale]:
    async with Recounts([written(tmp_path)]) as recounts:
        found = recounts.of(HOST, MODEL)
        assert found is not None
        yield found


def replies() -> Iterator[list[str]]:
    """Replies of LENGTH tokens, each token's text by itself; they do not end."""
    words = cycle([each for page in PAGES for each in pieces("".join(filter(str.isascii, page)))])
    while True:
        yield list(islice(words, LENGTH))


async def reply(payer: Payer, words: list[str], padding: int = 0) -> int:
    """One reply, of which the host counts more for the last word: what it counts in all, its end included."""
    tab = payer.ask()
    for number, word in enumerate(words, 1):
        await payer.take(tab, word, number)
    counted = len(words) + 1 + padding
    await payer.take(tab, "", counted, "stop")
    await tab.close()
    payer.sign()
    return counted


async def test_an_honest_host_is_signed_for_in_full(scale: Scale) -> None:
    """What is counted as the model made it is signed to the last token, its end included."""
    payer = Payer(scale)
    counted = [await reply(payer, words) for words in islice(replies(), 20)]
    assert payer.told == []
    assert payer.signs.receipted == Totals(12 * 20, sum(counted))
    assert scale.account.reserve == RESERVE


async def test_a_host_that_pads_by_five_percent_is_found(scale: Scale) -> None:
    """5 % more than was made, in replies of 150 tokens: cut and told before 4 500 tokens have come.

    By what is signed until then, it has cost 220 tokens at most: 0.0002 dollars at 0.90 a million.
    """
    payer, delivered, padded = Payer(scale), 0, 0
    for words in replies():
        more = (delivered + LENGTH + 1) // 20 - padded
        padded += more
        delivered += len(words) + 1
        await reply(payer, words, more)
        if payer.told or delivered > 10_000:
            break
    assert [over.what for over in payer.told] == ["tokens"]
    assert delivered <= 4_500
    assert payer.signs.receipted.tokens - delivered <= 220


async def test_a_new_job_with_the_same_host_starts_with_no_new_reserve(scale: Scale) -> None:
    """The account is the host's, not the job's: what one job was padded by is missing in the next."""
    words = next(replies())
    await reply(Payer(scale), words, 90)
    left = scale.account.reserve
    assert left < 20
    payer = Payer(scale)
    await reply(payer, words, 90)
    assert [over.counted for over in payer.told] == [LENGTH + 91]
    assert payer.signs.receipted.tokens <= LENGTH + 2 + left + 4


async def test_nothing_is_signed_that_the_own_count_does_not_bear_out(scale: Scale) -> None:
    """In the middle of a reply too: receipts stop where the host's count leaves the payer's."""
    payer = Payer(scale)
    tab = payer.ask()
    for number, word in enumerate(next(replies()), 1):
        await payer.take(tab, word, number * 2)  # as bytes go, it could be
    signed = payer.signs.receipted.tokens
    assert RESERVE <= signed <= LENGTH + LENGTH // 50 + RESERVE + 4
    await tab.close()
    assert payer.told[0].counted == 2 * LENGTH
    assert payer.told[0].bound <= LENGTH + LENGTH // 50 + RESERVE + 4


async def test_heated_replies_are_held_to_their_bytes(scale: Scale) -> None:
    """Where the payer asked for a temperature above 1, its tokenizer takes no part."""
    payer = Payer(scale)
    tab = payer.ask(temperature=1.5)
    assert not tab.recounts
    await payer.take(tab, "many bytes, and as many tokens as a host may say", 40)
    await tab.close()
    payer.sign()
    assert (payer.signs.receipted.tokens, payer.told) == (40, [])


async def test_a_padded_prompt_is_not_signed(scale: Scale) -> None:
    """A prompt has the tokens of its text and what a template may add; no more is signed ahead."""
    payer = Payer(scale)
    long = {"messages": [{"role": "user", "content": "word " * 2_000}]}
    tab = payer.ask(**long)
    with pytest.raises(ReceiptError, match="can have"):
        await tab.sign_prompt(8_000, 0)
    await tab.sign_prompt(3_000, 0)


async def test_reasoning_and_calls_are_counted_by_themselves(scale: Scale) -> None:
    """Each part of a reply is a text of its own, with an allowance for the marks that nobody sees."""
    payer = Payer(scale)
    tab = payer.ask(tools=[{"type": "function"}])
    call = {"index": 0, "function": {"name": "tide", "arguments": '{"port": "Deal"}'}}
    tokens = len(pieces("Let me see.")) + 9 + len(pieces('tide{"port": "Deal"}')) + 14
    tab.hear(0, {"reasoning_content": "Let me see."})
    tab.hear(0, {"tool_calls": [call]})
    text = 'Let me see.tide{"port": "Deal"}' + "."  # the period stands for what the byte bound lacks
    tab.take(Totals(12, min(tokens, len(text))), text, "tool_calls")
    await tab.close()
    assert payer.told == []


async def test_a_real_model_is_signed_for_in_full(devnet: Devnet, chain: Chain, tmp_path: Path) -> None:
    """llama.cpp with the demonstration model, counted with its own file: whatever it says is borne out."""
    await register(devnet, chain)
    config = HostConfig(
        host_private_key=Secret(devnet.accounts.host.private_key),
        rpc_url=devnet.rpc_url,
        data_dir=tmp_path / "host",
    )
    async with AsyncExitStack() as parts:
        engine = LlamaEngine(GGUF.path, context=512, slots=2, threads=1)
        url = await parts.enter_async_context(running(Node(config, engine=engine)))
        recounts = await parts.enter_async_context(Recounts([GGUF]))
        store = Store(tmp_path / "payer")
        parts.callback(store.close)
        key, wishes = devnet.accounts.payer.private_key, Wishes(deposit=2_000_000)
        session = await Session.open(chain, store, key, url, wishes, recounts=recounts)
        await parts.enter_async_context(session)
        replies: list[Done] = []
        for seed, temperature in enumerate((0, 0.7, 1, 1)):
            asked = session.stream("Why was the stick split?", 60, temperature=temperature, seed=seed)
            replies += [part async for part in asked if isinstance(part, Done)]
        await session.flush()
        assert [reply.overcount for reply in replies] == [None] * 4
        scale = recounts.of(session.job.host, "tally-demo")
        assert scale is not None
        assert scale.account.reserve > RESERVE - 10
        assert session.receipted == sum((reply.totals for reply in replies), Totals())
        assert session.receipted.tokens > 200


async def test_a_padding_host_is_told_on_a_real_job(devnet: Devnet, chain: Chain, tmp_path: Path) -> None:
    """Over the wire: of a reply that is counted at four tokens a token only what is borne out is paid."""
    await register(devnet, chain)
    config = HostConfig(
        host_private_key=Secret(devnet.accounts.host.private_key),
        rpc_url=devnet.rpc_url,
        data_dir=tmp_path / "host",
        receipt_timeout=1,
    )
    words = next(replies())
    padding = ScriptedEngine(Script(tuple(Step(word, 4) for word in words)))
    async with AsyncExitStack() as parts:
        url = await parts.enter_async_context(running(Node(config, engine=padding)))
        recounts = await parts.enter_async_context(Recounts([written(tmp_path)]))
        store = Store(tmp_path / "payer")
        parts.callback(store.close)
        key, wishes = devnet.accounts.payer.private_key, Wishes(deposit=2_000_000)
        session = await Session.open(chain, store, key, url, wishes, recounts=recounts)
        await parts.enter_async_context(session)
        told = [part async for part in session.stream("Why?", 1_000) if isinstance(part, Done)]
        assert told[0].overcount is not None
        await session.flush()
        assert session.receipted.tokens <= told[0].overcount.bound < told[0].totals.tokens
        assert session.receipted.tokens <= LENGTH + LENGTH // 50 + RESERVE + 4
