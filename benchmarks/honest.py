"""`make honest`: honest requests that their payer counts with the model's own file; none may be disputed.

    python -m benchmarks.honest [--requests 10000] [--go-on]

A node with llama.cpp and the demonstration model, a job on a devnet, several replies at a time: what the node
bills is held against the payer's own count of the text. Writes honest.json: how far the two were apart, and
what was left of the reserve at the worst; `--go-on` adds to what it has. Ends with status 1 if anything was
not signed for in full.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import sys
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tallystick
from benchmarks.run import when
from tallystick.allowance import RESERVE, SHARE, UNSEEN
from tallystick.chain import Chain
from tallystick.commands.output import keep_logs
from tallystick.config import HostConfig, Secret, TokenizerFile
from tallystick.devnet import Devnet
from tallystick.engines.llama import LlamaEngine
from tallystick.node import Node
from tallystick.opening import Wishes
from tallystick.policy import Policy
from tallystick.recount import Recounts
from tallystick.server import running
from tallystick.session import Done, Session, Text
from tallystick.store import Store
from tallystick.vocabulary import Vocabulary, opened

RESULTS = Path(__file__).parent / "honest.json"
DEMO = Path(tallystick.__file__).parent / "models" / "tally-demo.gguf"
MODEL = DEMO.stem
AT_ONCE = 4
DEPOSIT = 50_000_000
PROMPTS = (
    "Why was the stick split?",
    "Tell me a story about a ship.",
    "What is a receipt?",
    "Grüße an die Füchse 🦊",
    "12 345 + 67 =",
)
TEMPERATURES = (0.0, 0.5, 0.8, 1.0)
LENGTH = 12
"""Tokens of a reply, on average: short ones leave the least room, beside what has no text."""


@dataclass
class Tally:
    """What came of all requests, in tokens."""

    requests: int = 0
    billed: int = 0
    own: int = 0
    """By the payer's count of the finished texts."""
    apart: int = 0
    """Of replies that were billed more than their own count: by how much, in all."""
    most_apart: int = 0
    """Of one reply."""
    disputes: int = 0
    least_reserve: int = RESERVE


class Payer:
    """Asks one host, and keeps the tally."""

    def __init__(self, session: Session, recounts: Recounts, words: Vocabulary, tally: Tally) -> None:
        scale = recounts.of(session.job.host, MODEL)
        assert scale is not None
        self.tally = tally
        self._session = session
        self._account = scale.account
        self._words = words

    async def ask(self, number: int) -> None:
        """One request of a kind that its number decides."""
        dice = random.Random(number)
        text = ""
        sampling = {"temperature": dice.choice(TEMPERATURES), "seed": number}
        most = 1 + int(dice.expovariate(1 / LENGTH))
        async for part in self._session.stream(dice.choice(PROMPTS), most, **sampling):
            if isinstance(part, Text):
                text += part.text
            else:
                await self._add(text, part)

    async def _add(self, text: str, done: Done) -> None:
        own, tally = await self._words.count_text(text), self.tally
        apart = max(0, done.totals.tokens - own)
        tally.requests += 1
        tally.billed += done.totals.tokens
        tally.own += own
        tally.apart += apart
        tally.most_apart = max(tally.most_apart, apart)
        tally.disputes += done.overcount is not None
        tally.least_reserve = min(tally.least_reserve, self._account.reserve)


async def campaign(requests: int, tally: Tally) -> None:
    """So many requests more, a few at a time."""
    begun = replace(tally)
    file = TokenizerFile(MODEL, DEMO, hashlib.sha256(DEMO.read_bytes()).hexdigest())
    async with AsyncExitStack() as parts:
        devnet = await parts.enter_async_context(Devnet())
        chain = await parts.enter_async_context(Chain(devnet.rpc_url, devnet.deployment))
        url = await parts.enter_async_context(running(await _node(devnet, chain, parts)))
        recounts = await parts.enter_async_context(Recounts([file]))
        words = await opened(file)
        parts.push_async_callback(words.close)
        session = await parts.enter_async_context(await _session(devnet, chain, url, recounts, parts))
        payer = Payer(session, recounts, words, tally)
        numbers = iter(range(begun.requests, begun.requests + requests))
        await asyncio.gather(*(_asking(payer, numbers) for _ in range(AT_ONCE)))
        await session.flush()
        if session.receipted.tokens != tally.billed - begun.billed:
            tally.disputes += 1
        await session.complete()


async def _asking(payer: Payer, numbers: Any) -> None:
    for number in numbers:
        await payer.ask(number)
        if number % 500 == 0:
            print(f"{number}: {payer.tally}", file=sys.stderr)


async def _node(devnet: Devnet, chain: Chain, parts: AsyncExitStack) -> Node:
    host = devnet.accounts.host
    await chain.transact(chain.register(host.address, "{}"), host.private_key)
    data = Path(parts.enter_context(TemporaryDirectory(prefix="tallystick-honest-")))
    config = HostConfig(
        host_private_key=Secret(host.private_key),
        rpc_url=devnet.rpc_url,
        data_dir=data,
        policy=Policy.ECONOMIC,
    )
    return Node(config, engine=LlamaEngine(DEMO, context=512, slots=AT_ONCE, threads=1))


async def _session(
    devnet: Devnet, chain: Chain, url: str, recounts: Recounts, parts: AsyncExitStack
) -> Session:
    payer = devnet.accounts.payer
    await devnet.mint(payer.address, DEPOSIT)
    store = Store(Path(parts.enter_context(TemporaryDirectory(prefix="tallystick-honest-"))))
    parts.callback(store.close)
    wishes = Wishes(deposit=DEPOSIT)
    return await Session.open(chain, store, payer.private_key, url, wishes, recounts=recounts)


def known() -> Tally:
    """What was written down before."""
    written = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return Tally(**{each.name: written[each.name] for each in fields(Tally) if each.name in written})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--go-on", action="store_true")
    asked = parser.parse_args()
    keep_logs(level="error")
    tally = known() if asked.go_on else Tally()
    asyncio.run(campaign(asked.requests, tally))
    rule = {"unseen": UNSEEN, "share_percent": SHARE, "reserve": RESERVE}
    RESULTS.write_text(json.dumps({**when(), "model": MODEL, "rule": rule, **asdict(tally)}, indent=2) + "\n")
    print(json.dumps(asdict(tally)))
    if tally.disputes:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
