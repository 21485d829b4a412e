"""`tally demo`: a whole paid conversation on a local chain, told as it happens, with the chain's figures.

    a chain starts, the host registers -> its node starts -> the payer opens a job -> 150 tokens stream
    -> at 100 a checkpoint is settled -> the rest, completion and refund -> host and treasury withdraw

All of it is real but the money: anvil, the contracts, llama.cpp with a small model, the node on a socket, and
a payer that knows nothing of it but the protocol. `Demo.run` is the story; books.py reads how it ended.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from tallystick import pricing
from tallystick.books import Books, read_books, wallets
from tallystick.chain import Chain
from tallystick.config import HostConfig, Secret
from tallystick.devnet import Devnet
from tallystick.errors import ChainError
from tallystick.node import Node
from tallystick.opening import Wishes
from tallystick.screen import Screen
from tallystick.server import running
from tallystick.session import Done, Event, Session, Settled, Text
from tallystick.store import Store
from tallystick.types import Settlement, Totals

MODEL = Path(__file__).parent / "models" / "tally-demo.gguf"
PROMPT = "Tell me about the tally stick."
TOKENS = 150
SAMPLING = {"temperature": 0.9, "seed": 1, "ignore_eos": True}
THRESHOLD = pricing.INTERVAL
DEPOSIT = 2_000_000
"""Base units of tUSD: $2."""
PRICE, PROMPT_PRICE = "10.00", "2.00"
"""Dollars per million tokens: more than such a model is worth, so that the sums can be read."""
PACE = 40.0
"""Tokens a second that are printed; they are received and signed for as fast as they come."""
PATIENCE = 30.0
"""Seconds in which a checkpoint has to be confirmed."""


async def play(out: Console, *, pace: float | None = PACE) -> Books:
    """Plays the demonstration on `out`. ChainError if the sums are not right to the last base unit."""
    return await Demo(out, pace).run()


class Demo:
    """One performance."""

    # Set by the steps, in this order.
    devnet: Devnet
    chain: Chain
    host_url: str
    session: Session

    def __init__(self, out: Console, pace: float | None) -> None:
        self._out = out
        self._pace = pace
        self._checkpoint_told = asyncio.Event()
        """The host says that the first checkpoint is confirmed."""

    async def run(self) -> Books:
        """The story."""
        async with AsyncExitStack() as stage:
            await self.start_chain(stage)
            await self.register_host()
            await self.start_node(stage)
            before = await wallets(self.chain, self.devnet)
            await self.open_job(stage)
            await self.stream_reply()
            await self.end_session()
            await self.withdraw()
            books = await read_books(self.chain, self.devnet, self.session.job.id, before)
        self.show(books)
        books.check()
        return books

    async def start_chain(self, stage: AsyncExitStack) -> None:
        """anvil, on a free port, with the contracts at the addresses that this package computes."""
        self.devnet = await stage.enter_async_context(Devnet())
        self.chain = await stage.enter_async_context(Chain(self.devnet.rpc_url, self.devnet.deployment))
        deployment = self.chain.deployment
        self._say(
            "chain", f"anvil at {self.devnet.rpc_url}, chain {deployment.chain_id}, contracts deployed:"
        )
        self._say("", f"JobMarketplace {deployment.marketplace}")
        self._say("", f"NodeRegistry   {deployment.registry}")

    async def register_host(self) -> None:
        """Until it is registered no job can be opened with a host."""
        host = self.devnet.accounts.host
        metadata = json.dumps({"models": [MODEL.stem], "price": PRICE, "prompt_price": PROMPT_PRICE})
        await self.chain.transact(self.chain.register(host.address, metadata), host.private_key)
        self._say("host", f"{host.address} is registered: registerNode(host, metadata)")

    async def start_node(self, stage: AsyncExitStack) -> None:
        """The host's node in this process, and llama.cpp in it; its books are in a directory that goes."""
        books = stage.enter_context(TemporaryDirectory(prefix="tally-"))
        config = HostConfig(
            host_private_key=Secret(self.devnet.accounts.host.private_key),
            rpc_url=self.devnet.rpc_url,
            model_path=HostConfig.from_env().model_path or MODEL,
            data_dir=Path(books) / "host",
            price=PRICE,
            prompt_price=PROMPT_PRICE,
        )
        node = Node(config)
        self.host_url = await stage.enter_async_context(running(node))
        self.store = Store(Path(books) / "payer")
        stage.callback(self.store.close)
        [model, *_] = node.engine.models
        self._say("", f"its node serves {model} by llama.cpp at {self.host_url}:")
        self._say("", f"${PRICE} a million tokens, ${PROMPT_PRICE} a million prompt tokens")

    async def open_job(self, stage: AsyncExitStack) -> None:
        """The payer's deposit goes into escrow, for a session key made here to sign for."""
        payer = self.devnet.accounts.payer
        self.session = await Session.open(
            self.chain, self.store, payer.private_key, self.host_url, Wishes(DEPOSIT)
        )
        self.session.on(self._hear)
        await stage.enter_async_context(self.session)
        job = self.session.job
        self._say("payer", f"{payer.address} opened job {job.id}: {self._money(job.deposit)} in escrow,")
        self._say("", f"interval {job.interval} tokens; receipts are signed by session key {job.signer}")

    async def stream_reply(self) -> None:
        """150 tokens, printed at a pace; where the printing passes 100, what was seen on chain is shown."""
        self._say("asks", f"{PROMPT!r}, for {TOKENS} tokens")
        if self._pace:
            self._say("", f"printed at {self._pace:g} tokens a second; received and signed as they come")
        self._out.print()
        reply = paced(self.session.stream(PROMPT, TOKENS, **SAMPLING), self._pace)
        before = 0
        with Screen(self._out) as screen:
            async for part in reply:
                if isinstance(part, Text):
                    screen.text(part.text)
                    screen.line(self._cost(part.job))
                    if before < THRESHOLD <= part.job.tokens:
                        screen.note(f"-- {self._cost(part.job)}")
                        screen.note(f"-- {await self.first_checkpoint()}")
                    before = part.job.tokens
                else:
                    screen.note(f"-- {self._cost(part.totals)}")
        self._out.print()

    async def first_checkpoint(self) -> str:
        """Waits until the checkpoint at 100 is confirmed: what the chain says of it."""
        try:
            await asyncio.wait_for(self._checkpoint_told.wait(), PATIENCE)
        except TimeoutError:
            raise ChainError(f"the first checkpoint was not confirmed within {PATIENCE:g} s") from None
        [settlement, *_] = await self.chain.settlements(self.session.job.id)
        return f"checkpoint signed, submitCheckpoint confirmed: {self._paid(settlement)}"

    async def end_session(self) -> None:
        """The last tokens are settled, the job completed, the rest given back: one transaction."""
        completion = await self.session.complete()
        *_, last = await self.chain.settlements(self.session.job.id)
        self._say("ends", f"{last.totals.tokens} tokens settled: {self._paid(last)};")
        self._say("", f"{self._money(completion.refund)} back to the payer, in the same transaction")

    async def withdraw(self) -> None:
        """Earnings are pulled: host and treasury take theirs into their wallets."""
        host, treasury = self.devnet.accounts.host, self.devnet.accounts.treasury
        dollar = self.devnet.dollar
        await self.chain.transact(self.chain.withdraw(dollar, host.address), host.private_key)
        draw = self.chain.withdraw_treasury(dollar, treasury.address)
        await self.chain.transact(draw, treasury.private_key)
        self._say("withdraw", "host and treasury take what they earned into their wallets")

    def show(self, books: Books) -> None:
        """The books: wallets, transactions, and the sum."""
        self._out.print()
        self._row("", "wallet before", "deposited", "settled", "withdrawn", "wallet after")
        settled = {"host": books.host_earned, "treasury": books.treasury_earned, "payer": books.refund}
        for party in ("payer", "host", "treasury"):
            deposited = books.job.deposit if party == "payer" else 0
            figures = (books.before[party], deposited, settled[party], books.withdrawn[party])
            self._row(party, *map(amount, (*figures, books.after[party])))
        self._out.print()
        for each in books.transactions:
            self._out.print(f"{each.what:<22}{each.gas:>9} gas  {each.hash}")
        self._out.print()
        parts = (books.host_earned, books.treasury_earned, books.refund)
        self._out.print("host + treasury + refund = deposit")
        self._out.print(
            f"{' + '.join(map(amount, parts))} = {amount(books.job.deposit)} {books.asset.symbol}"
        )

    def _hear(self, event: Event) -> None:
        if isinstance(event, Settled):
            self._checkpoint_told.set()

    def _say(self, who: str, what: str) -> None:
        self._out.print(f"{who:<10}{what}")

    def _row(self, name: str, *cells: str) -> None:
        self._out.print(f"{name:<10}" + "".join(f"{cell:>17}" for cell in cells))

    def _paid(self, settlement: Settlement) -> str:
        return f"host {amount(settlement.host_amount)}, treasury {amount(settlement.fee)}"

    def _cost(self, totals: Totals) -> str:
        job = self.session.job
        cost = pricing.owed(totals, job.prices)
        return f"{totals.tokens} tokens · cost {self._money(cost)} · left {self._money(job.deposit - cost)}"

    def _money(self, units: int) -> str:
        return f"{amount(units)} tUSD"


def amount(units: int) -> str:
    """tUSD with all of its 6 decimals."""
    return f"{units // 10**6}.{units % 10**6:06d}"


async def paced(
    reply: AsyncGenerator[Text | Done, None], tokens_per_second: float | None
) -> AsyncGenerator[Text | Done, None]:
    """What `reply` brings, at a pace to be read at; meanwhile it is received as fast as it comes."""
    received: asyncio.Queue[Text | Done | None] = asyncio.Queue()

    async def receive() -> None:
        try:
            async with aclosing(reply) as parts:
                async for part in parts:
                    received.put_nowait(part)
        finally:
            received.put_nowait(None)

    receiving = asyncio.create_task(receive())
    clock = asyncio.get_running_loop().time
    since = clock()
    try:
        while (part := await received.get()) is not None:
            if tokens_per_second:
                await asyncio.sleep(since + part.totals.tokens / tokens_per_second - clock())
            yield part
        await receiving
    finally:
        receiving.cancel()
