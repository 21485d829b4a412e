"""A restart after the crash, and what is asked of it.

What is true is what the driver did on its socket before it died, and what the chain says over a connection of
its own; neither comes from the ledger, the meter or the sender.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from tallystick.counter import Counter
from tallystick.fees import Pace
from tallystick.ledger import Ledger
from tallystick.node import COUNTER
from tallystick.pauses import LONGEST
from tallystick.sender import Sender
from tallystick.settlement import Settlement
from tallystick.testing.pool import Pooled
from tallystick.types import JobId, Totals
from tests.crash.driver import (
    ACKNOWLEDGES,
    COUNTS,
    DELIVERS,
    OFFERED,
    SENDS,
    Start,
    Witness,
    WitnessedChain,
    take_over,
)
from tests.faults.oracle import Oracle, Wired, misused

REST = LONGEST + 1
"""Seconds after which no timer of the program is running any longer."""
TURNS = 12
"""In which all has to be settled, and final."""


def _per_job() -> defaultdict[int, Totals]:
    return defaultdict(Totals)


@dataclass
class Truth:
    """What was seen from outside."""

    delivered: defaultdict[int, Totals] = field(default_factory=_per_job)
    in_flight: defaultdict[int, Totals] = field(default_factory=_per_job)
    """What was about to be delivered."""
    offered: defaultdict[int, Totals] = field(default_factory=_per_job)
    acknowledged: defaultdict[int, Totals] = field(default_factory=_per_job)
    sent: list[Wired] = field(default_factory=list)

    def read(self, lines: Iterable[str]) -> None:
        """Takes in what a driver told."""
        for line in lines:
            what, *of = line.split()
            if what == SENDS:
                self.sent.append(_wired(of[0]))
            elif what in {COUNTS, DELIVERS, OFFERED, ACKNOWLEDGES}:
                self._read_totals(what, *map(int, of))

    def _read_totals(self, what: str, job_id: int, prompt_tokens: int, tokens: int) -> None:
        totals = Totals(prompt_tokens, tokens)
        if what == COUNTS:
            self.in_flight[job_id] = totals
        elif what == DELIVERS:
            self.in_flight[job_id] = Totals()
            self.delivered[job_id] += totals
        elif what == OFFERED:
            self.offered[job_id] = totals
        else:
            self.acknowledged[job_id] = totals

    def miscounted(self, job_id: int, gross: Totals) -> list[str]:
        """What is wrong with a count: each token that was delivered is in it, and none but one in flight."""
        delivered = self.delivered[job_id]
        if gross in {delivered, delivered + self.in_flight[job_id]}:
            return []
        return [f"job {job_id}: {delivered} delivered, {self.in_flight[job_id]} in flight, {gross} counted"]

    def lost(self, job_id: int, receipted: Totals) -> list[str]:
        """What is wrong with the newest receipt: it is the one acknowledged last, or the one after it."""
        if receipted in {self.acknowledged[job_id], self.offered[job_id]}:
            return []
        return [f"job {job_id}: {self.acknowledged[job_id]} was acknowledged, {receipted} is stored"]


def _wired(raw: str) -> Wired:
    tx = Pooled.read(bytes.fromhex(raw))
    return Wired(tx.hash, tx.nonce, tx.max_fee, tx.tip, tx.to or "", tx.data, tx.value)


async def recover(start: Start, truth: Truth, witness: Witness, oracle: Oracle) -> list[str]:
    """Starts again on what the crash left, settles it all, and tells what is wrong."""
    chain = WitnessedChain(start.rpc_url, start.deployment)
    chain.witness = witness
    with Counter.claim(start.directory / COUNTER) as counter:
        async with chain, Ledger(start.directory) as ledger:
            await take_over(ledger, counter)
            wrong, owed = await _compare(start, truth, ledger)
            wrong += await _settle(start, chain, ledger, oracle, owed)
    return wrong


async def _compare(
    start: Start, truth: Truth, ledger: Ledger
) -> tuple[list[str], dict[int, tuple[int, int]]]:
    wrong, owed = [], dict[int, tuple[int, int]]()
    for opened in start.jobs:
        job_id = JobId(opened.job.id)
        row = await ledger.job(job_id)
        assert row is not None
        receipted = row.receipted.totals if row.receipted else Totals()
        wrong += truth.miscounted(job_id, row.gross) + truth.lost(job_id, receipted)
        due = receipted.lower(row.gross)
        owed[job_id] = due.prompt_tokens, due.tokens
        await ledger.end(job_id)
    return wrong, owed


async def _settle(
    start: Start, chain: WitnessedChain, ledger: Ledger, oracle: Oracle, owed: dict[int, tuple[int, int]]
) -> list[str]:
    now = start.clock
    sender = Sender(chain, ledger, start.key, pace=Pace(), clock=lambda: now)
    settlement = Settlement(ledger, chain, sender, clock=lambda: now)
    for _ in range(TURNS):
        now += REST
        await settlement.step()
        await sender.step()
        if not await ledger.in_flight(sender.address) and not oracle.behind(owed):
            break
    wrong = [f"job {job}: {found} is settled of {owed[job]}" for job, found in oracle.behind(owed).items()]
    wrong += (
        [f"{len(left)} transactions are in flight"]
        if (left := await ledger.in_flight(sender.address))
        else []
    )
    return wrong + oracle.complaints(owed)


def judged(truth: Truth, oracle: Oracle, host: str) -> list[str]:
    """What is wrong with all that was ever sent."""
    return misused(truth.sent, host, Pace().ceiling) + oracle.gaps(truth.sent, foreign=())
