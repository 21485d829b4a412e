"""The program that is killed: ledger, meter and sender of one host, at work on what a seed says.

What it does for others it does on one socket, a line at a time: each token that it delivers, each receipt
that it acknowledges, each transaction that it sends. Whoever holds the other end knows what had happened when
it was killed; what the program itself wrote down is compared with that.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tallystick import proof
from tallystick.chain import Chain
from tallystick.counter import Counter, Slot
from tallystick.errors import ChainError, LedgerError
from tallystick.ledger import Ledger
from tallystick.networks import Deployment
from tallystick.node import COUNTER
from tallystick.sender import Sender
from tallystick.settlement import Settlement
from tallystick.types import JobId, Receipt, Totals
from tests.faults.ground import Opened

STEPS = 16
TURNS = 4
"""With which it ends: what it has sent is confirmed by then."""
SECONDS = 6.0
"""Of its clock, for each turn."""

COUNTS, DELIVERS = "counts", "delivers"
OFFERED, ACKNOWLEDGES = "offered", "acknowledges"
SENDS, FAILS, ENDS = "sends", "fails", "ends"


@dataclass(frozen=True)
class Start:
    """What there is before it begins."""

    directory: Path
    rpc_url: str
    deployment: Deployment
    key: bytes
    jobs: Sequence[Opened]
    seed: int
    clock: float = 1_000_000.0
    hasty: bool = False
    """It does wrong: it acknowledges what it has yet to write down."""

    async def work(self, file: int) -> None:
        """The driver's whole life. Tells at its end that it has come there."""
        witness = Witness(file)
        chain = WitnessedChain(self.rpc_url, self.deployment)
        chain.witness = witness
        try:
            with Counter.claim(self.directory / COUNTER) as counter:
                async with chain, Ledger(self.directory) as ledger:
                    await Work(self, witness, ledger, counter, chain).run()
        except LedgerError as error:
            witness.tell(FAILS, error)
        witness.tell(ENDS)


@dataclass(frozen=True)
class Witness:
    """The end of the socket on which it acts."""

    file: int

    def tell(self, what: str, *of: object) -> None:
        """One line, with one call of `write`."""
        os.write(self.file, (" ".join([what, *map(str, of)]) + "\n").encode())

    def totals(self, what: str, job_id: int, totals: Totals) -> None:
        self.tell(what, job_id, totals.prompt_tokens, totals.tokens)


class WitnessedChain(Chain):
    """A chain that tells of each transaction before it is sent."""

    witness: Witness

    async def send(self, raw: bytes) -> str:
        self.witness.tell(SENDS, raw.hex())
        return await super().send(raw)


async def take_over(ledger: Ledger, counter: Counter) -> None:
    """As a node does when it starts: what a killed process had counted comes into the ledger."""
    for void in await ledger.recover(counter.recovered()):
        counter.release(void)
    await ledger.bury(counter.predecessor)
    counter.sign(ledger.process)


@dataclass
class Served:
    """One job under way."""

    opened: Opened
    slot: Slot
    receipted: Totals = field(default_factory=Totals)

    @property
    def job_id(self) -> JobId:
        return self.opened.job.id

    def signed(self, ahead: Totals, domain: proof.Domain) -> Receipt | None:
        """The payer's receipt for what it got, and more if it signs ahead; None: it has signed for that."""
        totals = self.receipted.higher(self.slot.totals + ahead)
        return None if totals == self.receipted else self.opened.receipt(domain, totals)


class Work:
    """What it does between its start and its end."""

    def __init__(
        self, start: Start, witness: Witness, ledger: Ledger, counter: Counter, chain: Chain
    ) -> None:
        self._start = start
        self._witness = witness
        self._ledger = ledger
        self._counter = counter
        self._rng = random.Random(f"crash {start.seed}")
        self._now = start.clock
        self._domain = proof.Domain(start.deployment.chain_id, start.deployment.marketplace)
        self._sender = Sender(chain, ledger, start.key, clock=lambda: self._now)
        self._settlement = Settlement(ledger, chain, self._sender, clock=lambda: self._now)
        self._served: list[Served] = []

    async def run(self) -> None:
        """LedgerError: it could not begin."""
        await take_over(self._ledger, self._counter)
        for opened in self._start.jobs:
            row = await self._ledger.serve(opened.job, self._counter.found(opened.job.id))
            slot = self._counter.open(opened.job.id, row.epoch, floor=row.gross)
            self._served.append(Served(opened, slot))
        steps = self._rng.choices(
            (self._deliver, self._sign, self._checkpoint, self._turn), weights=(5, 4, 1, 3), k=STEPS
        )
        for step in (*steps, *[self._turn] * TURNS):
            try:
                await step()
            except (ChainError, LedgerError) as error:
                self._witness.tell(FAILS, error)

    async def _deliver(self) -> None:
        served = self._rng.choice(self._served)
        prompt = self._rng.randrange(1, 30)
        for _ in range(self._rng.randrange(1, 6)):
            self._witness.totals(COUNTS, served.job_id, Totals(prompt, 1))
            served.slot.add(prompt, 1)
            self._witness.totals(DELIVERS, served.job_id, Totals(prompt, 1))
            prompt = 0

    async def _sign(self) -> None:
        served = self._rng.choice(self._served)
        ahead = (
            Totals(self._rng.randrange(20), self._rng.randrange(200))
            if self._rng.random() < 0.5
            else Totals()
        )
        receipt = served.signed(ahead, self._domain)
        if receipt is None:
            return
        self._witness.totals(OFFERED, served.job_id, receipt.totals)
        if self._start.hasty:
            self._witness.totals(ACKNOWLEDGES, served.job_id, receipt.totals)
        counted = served.slot.totals
        await self._ledger.store_receipt(
            receipt, acknowledged=counted, gross=counted, due=True, epoch=served.slot.epoch
        )
        served.receipted = receipt.totals
        self._witness.totals(ACKNOWLEDGES, served.job_id, receipt.totals)

    async def _checkpoint(self) -> None:
        served = self._rng.choice(self._served)
        await self._ledger.checkpoint(served.job_id, served.slot.totals, due=True, epoch=served.slot.epoch)

    async def _turn(self) -> None:
        """What the loops of settlement and sender do when they wake."""
        self._now += SECONDS
        await self._settlement.step()
        await self._sender.step()
