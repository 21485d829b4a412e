"""What a host has coming, job by job: served, signed for, settled, confirmed, at risk, and what happens next.

    served >= signed >= settled >= confirmed        at risk = served - signed        owed = signed - confirmed

Rules only: what ledger, meter and chain say comes in (survey.py). Money is the host's part, in base units of
the job's asset.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from tallystick import claims, pricing
from tallystick.networks import Asset
from tallystick.policy import to_settle
from tallystick.settlement import unsettled
from tallystick.survey import ChainFacts, Entry, Survey
from tallystick.tables import State, Transaction
from tallystick.types import Address, Job, JobId, JobStatus, Standing, Totals

NOTHING = Totals()


class Life(enum.StrEnum):
    """How far a job has come."""

    OPEN = "open"
    ENDING = "ending"
    """Its session was ended here: the rest is claimed, and the job completed."""
    COMPLETING = "completing"
    """Its end was asked for on chain: the claim window runs."""
    EXPIRED = "expired"
    CLOSED = "closed"
    GONE = "gone"
    """A reorganised chain does not have it."""

    @property
    def over(self) -> bool:
        """True if nothing more can be claimed."""
        return self in {Life.CLOSED, Life.GONE}


class Wait(enum.StrEnum):
    """Why something that is owed is not confirmed yet."""

    OTHER_KEY = "other_key"
    """The job is of another host than the key."""
    NO_KEY = "no_key"
    NO_NODE = "no_node"
    NO_GAS = "no_gas"
    FAILED = "failed"
    """The last transaction that carried it came to nothing: it is tried again."""
    UNSENT = "unsent"
    """Signed and on disk; no endpoint has taken it."""
    SENT = "sent"
    MINED = "mined"
    """In a block, not N deep."""
    SEEN = "seen"
    """The chain has it settled, and the ledger has not seen that N deep."""
    RATE = "rate"
    """The time of a host-attested job has not earned it yet."""
    INTERVAL = "interval"
    """What whole intervals let the host claim is settled; the rest goes with the next one, or at the end."""
    WORTH = "worth"
    """The economic policy waits until it is worth the gas."""
    NEXT = "next"
    """It goes within seconds."""

    @property
    def stuck(self) -> bool:
        """True if it goes on only once somebody mends something."""
        return self in {Wait.OTHER_KEY, Wait.NO_KEY, Wait.NO_NODE, Wait.NO_GAS, Wait.FAILED}


@dataclass(frozen=True, slots=True)
class Figure:
    """Tokens, and what they come to for the host, in base units."""

    totals: Totals = NOTHING
    money: int = 0

    def __add__(self, other: Figure) -> Figure:
        return Figure(self.totals + other.totals, self.money + other.money)


@dataclass(frozen=True, slots=True)
class Line:
    """One job."""

    entry: Entry
    job: Job
    """As the chain's latest block has it, or else as the ledger does."""
    life: Life
    early: bool = False
    """It lies less than N deep: a reorganisation could take all of it back."""
    wait: Wait | None = None
    """Why what is owed is not confirmed; None: nothing is owed."""
    depth: int | None = None
    """How deep the transaction in flight lies; None: in no block, or nobody knows."""

    @property
    def served(self) -> Totals:
        """All that was delivered and not written off."""
        return self.entry.counted

    @property
    def claimable(self) -> Totals:
        """What of that is signed for, within the deposit; of a host-attested job all of it."""
        counts = self.entry.row.counts
        signed = self.served if counts.attested else self.served.lower(counts.receipted)
        return claims.affordable(signed, self.job)

    @property
    def settled(self) -> Totals:
        return self.job.settled

    @property
    def confirmed(self) -> Totals:
        return self.entry.row.confirmed

    @property
    def at_risk(self) -> Totals:
        """What was served and could still be lost: nobody signed for it, or the job may vanish."""
        if self.life.over:
            return NOTHING
        return self.served if self.early else self.served - self.claimable

    def worth(self, totals: Totals) -> int:
        """The host's part of what totals come to, in base units."""
        return pricing.split(NOTHING, claims.affordable(totals, self.job), self.job.prices).host

    def figures(self) -> dict[str, Figure]:
        """What there is to tell of it, by name: the way of a token, then what may get lost."""
        totals = {
            "served": self.served,
            "signed": self.claimable,
            "settled": self.settled,
            "confirmed": self.confirmed,
        }
        told = {name: Figure(each, self.worth(each)) for name, each in totals.items()}
        risked = told["served"].money - self.worth(self.served - self.at_risk)
        return {**told, "at risk": Figure(self.at_risk, risked)}

    @property
    def owed(self) -> int:
        """What is signed for and not confirmed, in money."""
        return 0 if self.life.over else max(0, self.worth(self.claimable) - self.worth(self.confirmed))

    @property
    def lost(self) -> int:
        """What was delivered and will not be paid, in money."""
        delivered = self.worth(self.served + self.entry.row.written_off)
        if self.life is Life.GONE:
            return delivered
        kept = self.settled if self.life is Life.CLOSED else self.served
        return max(0, delivered - self.worth(kept))


@dataclass(frozen=True, slots=True)
class Sums:
    """All jobs of an asset together: tokens, and money in base units."""

    address: Address
    asset: Asset
    lines: tuple[Line, ...]
    """By job."""
    earnings: int | None
    """What lies in the contract for the host to withdraw; None: the chain is away."""

    def figures(self) -> dict[str, Figure]:
        """Each over all jobs."""
        sums: dict[str, Figure] = {}
        for line in self.lines:
            for name, figure in line.figures().items():
                sums[name] = sums.get(name, Figure()) + figure
        return sums


def lines(survey: Survey) -> list[Line]:
    """Every job of the ledger."""
    going = _going(survey)
    return [_line(survey, entry, going) for entry in survey.ledger.entries]


def by_asset(survey: Survey, found: Sequence[Line]) -> list[Sums]:
    """The jobs in each asset, and each asset in which something is to be withdrawn."""
    earnings = survey.chain.earnings if isinstance(survey.chain, ChainFacts) else {}
    used = {line.job.asset for line in found} | {asset for asset, units in earnings.items() if units}
    known = survey.deployment.assets
    return [
        Sums(
            address,
            # One that the package does not know is told in base units.
            known.get(address, Asset(address, 0)),
            tuple(line for line in found if line.job.asset == address),
            earnings.get(address),
        )
        for address in sorted(used)
    ]


def _line(survey: Survey, entry: Entry, going: AbstractSet[JobId]) -> Line:
    job, life = _present(survey, entry)
    line = Line(entry, job, life, early=_is_early(survey, job))
    if life.over or not _is_owed(line):
        return line
    wait = _wait(survey, line, going)
    return replace(line, wait=wait, depth=_depth(survey, entry.flight))


def _present(survey: Survey, entry: Entry) -> tuple[Job, Life]:
    row = entry.row
    job: Job | None = replace(row.job, settled=row.settled)
    if isinstance(survey.chain, ChainFacts) and not row.closed:
        job = survey.chain.jobs.get(row.job.id, job)
    if job is None:
        return replace(row.job, settled=row.settled), Life.GONE
    return job, _life(row.ending, row.closed, job, survey.now)


def _life(ending: bool, closed: bool, job: Job, now: int) -> Life:
    if closed or job.status is JobStatus.CLOSED:
        return Life.CLOSED
    if job.asked_at:
        return Life.COMPLETING
    if job.expires_at <= now:
        return Life.EXPIRED
    return Life.ENDING if ending else Life.OPEN


def _is_early(survey: Survey, job: Job) -> bool:
    return isinstance(survey.chain, ChainFacts) and job.id in survey.chain.early


def _is_owed(line: Line) -> bool:
    """Something is to be confirmed: a payment, or the end of a job that is over."""
    ahead = line.claimable.against(line.confirmed) is Standing.AHEAD
    return ahead or line.life is not Life.OPEN or line.entry.flight is not None


# Why it waits


def _wait(survey: Survey, line: Line, going: AbstractSet[JobId]) -> Wait:
    """The first reason in the order in which they have to be out of the way."""
    if line.job.host != survey.host:
        return Wait.OTHER_KEY
    flight = line.entry.flight
    if flight is not None and flight.state is State.MINED:
        return Wait.MINED
    if flight is None and line.life is Life.OPEN and line.settled.covers(line.claimable):
        return Wait.SEEN
    if not survey.has_key:
        return Wait.NO_KEY
    if not survey.ledger.running:
        return Wait.NO_NODE
    if _is_poor(survey, flight):
        return Wait.NO_GAS
    if flight is not None:
        return Wait.SENT if any(each.taken_at for each in flight.attempts) else Wait.UNSENT
    return _held_back(survey, line, going)


def _held_back(survey: Survey, line: Line, going: AbstractSet[JobId]) -> Wait:
    """Why nothing is in flight, though a node runs."""
    outstanding = line.entry.outstanding
    if outstanding is None:
        return Wait.INTERVAL if survey.thrift is None else Wait.WORTH
    most = claims.earned(line.job, survey.now)
    if most is not None and line.claimable.prompt_tokens + line.claimable.tokens > most:
        return Wait.RATE
    if line.entry.failed is not None:
        return Wait.FAILED
    return Wait.NEXT if outstanding.job_id in going else Wait.WORTH


def _going(survey: Survey) -> AbstractSet[JobId]:
    """The jobs that the host's policy settles now; while the chain is away, those that must go."""
    found = [each.outstanding for each in survey.ledger.entries if each.outstanding is not None]
    if survey.thrift is None:
        return {each.job_id for each in found}
    if not isinstance(survey.chain, ChainFacts):
        return {each.job_id for each in found if each.must}
    return to_settle([unsettled(each) for each in found], survey.thrift, survey.chain.gas)


def _is_poor(survey: Survey, flight: Transaction | None) -> bool:
    """The host's ETH does not pay for the cheapest form of what is in flight, or for one claim."""
    if not isinstance(survey.chain, ChainFacts):
        return False
    return survey.chain.balance < needed(survey.chain, flight)


def needed(chain: ChainFacts, flight: Transaction | None) -> int:
    """Wei that the account has to have for what is next."""
    if flight is None:
        return chain.gas.base + chain.gas.row
    return flight.draft.value + flight.draft.gas * min(each.fees.max_fee for each in flight.attempts)


def _depth(survey: Survey, flight: Transaction | None) -> int | None:
    if flight is None or flight.mined_block is None or not isinstance(survey.chain, ChainFacts):
        return None
    return max(0, survey.chain.head.number - flight.mined_block + 1)
