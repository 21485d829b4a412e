"""What goes to the chain for a job: the row for what is due, given what the chain says. Rules only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tallystick import gas, pricing, proof
from tallystick.contracts import Claim
from tallystick.keccak import keccak
from tallystick.rows import DueRow
from tallystick.tables import Carried
from tallystick.types import Address, Job, JobId, Standing, Totals

NOTHING = Totals()


@dataclass(frozen=True, slots=True)
class Ready:
    """A row that the chain would take now. `totals` are zero when it only completes."""

    asset: Address
    totals: Totals
    claim: Claim

    @property
    def carried(self) -> Carried:
        """As the ledger keeps it."""
        return Carried(self.claim.job_id, self.totals, self.claim.complete)

    @property
    def room(self) -> gas.Row:
        """What it takes of a transaction."""
        return gas.Row(self.asset, len(self.claim.proof), self.claim.complete)


def ready(due: DueRow, job: Job, now: int) -> Ready | None:
    """The row for what is due, given the job in the latest block and that block's time.

    None if that is settled already.
    """
    totals = affordable(due.totals, job)
    if due.complete:
        totals = within_rate(totals, job, now)
    if totals.against(job.settled) is Standing.AHEAD:
        claim = Claim(job.id, totals.tokens, _proof(totals, due), due.complete)
        return Ready(job.asset, totals, claim)
    if not due.complete:
        return None
    # Equal: it pays nothing, so nobody has to have signed it, and still closes.
    equal = proof.attested_proof(job.settled.prompt_tokens)
    return Ready(job.asset, NOTHING, Claim(job.id, job.settled.tokens, equal, complete=True))


def affordable(totals: Totals, job: Job) -> Totals:
    """The totals, less the generated tokens that the deposit does not pay for."""
    prompt = Totals(totals.prompt_tokens, 0)
    return Totals(
        totals.prompt_tokens, min(totals.tokens, pricing.affordable(job.deposit, prompt, job.prices))
    )


def within_rate(totals: Totals, job: Job, now: int) -> Totals:
    """As much of the totals as the time of an attested job has earned; of a receipted job, all."""
    most = earned(job, now)
    if most is None:
        return totals
    prompt_tokens = min(totals.prompt_tokens, most)
    return Totals(prompt_tokens, min(totals.tokens, most - prompt_tokens))


def earned(job: Job, now: int) -> int | None:
    """The most that the contract takes of an attested job, both totals together; None: it has no rate."""
    if job.receipted:
        return None
    until = min(now, job.expires_at, job.asked_at or job.expires_at)
    return job.max_tokens_per_second * max(0, until - job.created_at)


def _proof(totals: Totals, due: DueRow) -> bytes:
    if due.receipt is None:
        return proof.attested_proof(totals.prompt_tokens)
    return proof.checkpoint_proof(totals.prompt_tokens, due.receipt)


def samples(rows: int) -> Iterator[Claim]:
    """Claims as long, and as hard to compress, as those of receipts."""
    for number in range(1, rows + 1):
        noise = b"".join(keccak(bytes([number, part])) for part in range(4))
        totals = (number * 1_000_003).to_bytes(8, "big")
        yield Claim(JobId(number), number * 1_000_003, 3 * totals + noise[:97])
