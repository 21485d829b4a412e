"""`tally reconcile`: chain, ledger and meter of a host held against each other, to the unit.

Each law of what has to agree is a function of one job, or of the host's balance in one asset, that yields
what differs: its name, what was seen, whose move it is, what mends it. What differs because something is
under way is told as such. While a node runs, a difference counts if it is there in two looks.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from tallystick import pricing, proof, prospects, statement
from tallystick.config import HostConfig
from tallystick.errors import ReceiptError
from tallystick.statement import Life, Line, Wait
from tallystick.survey import Entry, Proofs, Story, Survey, audit
from tallystick.types import Address, Job, JobId, JobStatus, Totals

AGAIN_AFTER = 6.0
"""Seconds until the second look: in as many the node looks at the chain's news, and brings them in."""

NOTHING = Totals()


class Kind(enum.StrEnum):
    """What differs."""

    VANISHED = "vanished"
    """The ledger has a job that the chain does not."""
    UNKNOWN = "unknown_job"
    """The chain has settled a job of this host that the ledger does not know."""
    UNASKED = "unasked_job"
    """A job was opened with this host, and nobody has asked for anything."""
    TERMS = "terms_differ"
    """What a job was opened with is not the same in both."""
    DEPOSIT = "deposit_differs"
    SETTLED_BEYOND = "settled_beyond_ledger"
    """The chain has settled more than the ledger knows."""
    SETTLED_GONE = "settled_not_on_chain"
    """The ledger has seen something settled that the chain does not have."""
    CONFIRMED_GONE = "confirmed_not_on_chain"
    """The same of what was confirmed."""
    UNCONFIRMED = "not_confirmed_in_ledger"
    """The chain has settled it N deep; the ledger knows that it is settled, and not how deep."""
    OVERPAID = "settled_beyond_count"
    """The chain has settled more than this host counted."""
    CLAIMABLE = "claimable"
    """The payer signed for more than is settled: it can be claimed."""
    TO_COMPLETE = "to_complete"
    """A job is over, and not closed."""
    LOST = "lost"
    """A job was closed with less than the payer had signed for."""
    CLOSED_ON_CHAIN = "closed_on_chain"
    """The chain has closed a job that the ledger has open."""
    CLOSED_IN_LEDGER = "closed_in_ledger"
    """The other way round."""
    COUNTS = "counted_below_acknowledged"
    """The ledger counts less than the payer has acknowledged."""
    WRITTEN_OFF = "too_much_written_off"
    POSITIONS = "positions_differ"
    """The positions of a job's requests do not add up to what is acknowledged."""
    RECEIPT = "receipt_unusable"
    """The newest receipt is not there, or is not what the job's signer signed."""
    ORDER = "confirmed_beyond_settled"
    METER_BEHIND = "meter_below_ledger"
    METER_AHEAD = "meter_beyond_ledger"
    STRAY = "count_without_job"
    """The meter counts for a job that the ledger does not know."""
    MONEY = "amount_differs"
    """The contract's amounts are not what its totals come to."""
    EARNINGS = "earnings_differ"
    """The host's balance is not what its jobs paid less what was withdrawn."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that does not agree."""

    kind: Kind
    job_id: JobId | None
    seen: str
    move: str
    """Whose it is: "host" or "nobody"."""
    mend: str
    under_way: bool = False
    """It goes away by itself, as things are."""
    asset: Address | None = None


@dataclass(frozen=True, slots=True)
class Balance:
    """The host's money in one asset, in base units: `paid - withdrawn` is what the contract has to hold."""

    asset: Address
    paid: int
    """By all jobs that were ever opened with the host."""
    withdrawn: int
    held: int


@dataclass(frozen=True, slots=True)
class Report:
    """What was compared, and all that differs."""

    survey: Survey
    jobs: int
    """Of this host, on the chain."""
    balances: tuple[Balance, ...]
    differences: tuple[Difference, ...]

    @property
    def agrees(self) -> bool:
        """True if nothing differs but what is under way."""
        return all(each.under_way for each in self.differences)


async def reconcile(config: HostConfig) -> Report:
    """Looks, and compares. ChainError, LedgerError, ConfigError for what keeps one from looking."""
    first = compare(*await audit(config))
    if first.agrees or not first.survey.ledger.running:
        return first
    await asyncio.sleep(AGAIN_AFTER)
    return both(first, compare(*await audit(config)))


def both(first: Report, second: Report) -> Report:
    """The second look, in which what was not there in the first is under way."""
    seen = {(each.kind, each.job_id, each.asset) for each in first.differences}
    told = (
        each if (each.kind, each.job_id, each.asset) in seen else replace(each, under_way=True)
        for each in second.differences
    )
    return replace(second, differences=tuple(told))


def compare(survey: Survey, story: Story) -> Report:
    """All that differs, by job."""
    found: list[Difference] = []
    for line in statement.lines(survey):
        found += _of_job(survey, story, line)
    known = {entry.row.job.id for entry in survey.ledger.entries}
    for job_id, job in story.jobs.items():
        found += _of_chain(job) if job_id in known else _unknown(job)
    found += [_stray(record.job_id, record.totals) for record in survey.ledger.strays]
    found.sort(key=lambda each: each.job_id or 0)
    balances = tuple(_balances(story))
    found += [difference for balance in balances for difference in _earnings(survey, balance)]
    return Report(survey, len(story.jobs), balances, tuple(found))


def _of_job(survey: Survey, story: Story, line: Line) -> Iterator[Difference]:
    if line.job.host != survey.host:
        # Only what its ledger tells: another look, with its host's settings, holds it against the chain.
        yield from _claimable(survey, line)
        return
    chains = story.jobs.get(line.job.id)
    if chains is None or not chains.is_same_as(line.entry.row.job):
        yield _vanished(line)
        return
    pair = _Pair(survey, line, chains, story.deep.get(line.job.id, chains))
    for law in LAWS:
        yield from law(pair)


@dataclass(frozen=True, slots=True)
class _Pair:
    """A job as ledger and chain have it."""

    survey: Survey
    line: Line
    chain: Job
    """In the latest block."""
    deep: Job | None
    """N blocks ago."""

    @property
    def entry(self) -> Entry:
        return self.line.entry

    @property
    def deep_settled(self) -> Totals:
        return self.deep.settled if self.deep is not None else NOTHING

    @property
    def in_flight(self) -> bool:
        """A node is busy with it."""
        return self.entry.flight is not None and self.survey.ledger.running

    def differs(
        self, kind: Kind, seen: str, mend: str, *, move: str = "host", under_way: bool = False
    ) -> Difference:
        return Difference(kind, self.chain.id, seen, move, mend, under_way)


RUN = "let the node run, which brings it into the ledger: tally host run"
AUDIT = "the ledger was changed by hand, or restored from an old copy: keep it, and compare it with backups"


def _terms(pair: _Pair) -> Iterator[Difference]:
    """What a job was opened with never changes."""
    ledger, chain = pair.entry.row.job, pair.chain
    fixed = ("prices", "max_tokens_per_second", "claim_window", "expires_at", "interval", "model_id")
    wrong = [name for name in fixed if getattr(ledger, name) != getattr(chain, name)]
    if wrong:
        told = ", ".join(wrong)
        yield pair.differs(Kind.TERMS, f"ledger and chain have other {told}", AUDIT)


def _deposit(pair: _Pair) -> Iterator[Difference]:
    """The ledger follows top-ups of jobs that are open."""
    ledger, chain = pair.entry.row.job.deposit, pair.chain.deposit
    if ledger != chain and not pair.entry.row.closed:
        seen = f"the deposit is {chain} base units on the chain, {ledger} in the ledger"
        under_way = ledger < chain and pair.survey.ledger.running
        yield pair.differs(Kind.DEPOSIT, seen, RUN, move="nobody", under_way=under_way)


def _settled(pair: _Pair) -> Iterator[Difference]:
    """What the chain has settled, the ledger knows; and the other way round."""
    row, chain = pair.entry.row, pair.chain.settled
    if not chain.covers(row.confirmed):
        seen = f"the ledger has {row.confirmed} confirmed, the chain has settled {chain}"
        mend = "the chain was reorganised: a running node settles it again: tally host run"
        yield pair.differs(Kind.CONFIRMED_GONE, seen, mend, move="nobody")
    elif not chain.covers(row.settled):
        seen = f"the ledger has seen {row.settled} settled, the chain has {chain}"
        mend = "the chain was reorganised, or the endpoint lags: a running node settles it again"
        yield pair.differs(Kind.SETTLED_GONE, seen, mend, move="nobody", under_way=pair.in_flight)
    elif not row.settled.covers(chain):
        seen = f"the chain has settled {chain}, the ledger knows of {row.settled}"
        under_way = pair.in_flight or row.settled.covers(pair.deep_settled)
        yield pair.differs(Kind.SETTLED_BEYOND, seen, RUN, move="nobody", under_way=under_way)
    elif not row.confirmed.covers(chain):
        yield from _unconfirmed(pair)


def _unconfirmed(pair: _Pair) -> Iterator[Difference]:
    row, depth = pair.entry.row, pair.survey.deployment.confirmations
    under_way = not row.closed and (pair.in_flight or row.confirmed.covers(pair.deep_settled))
    seen = f"{pair.chain.settled} are settled, {row.confirmed} of them confirmed {depth} deep in the ledger"
    yield pair.differs(Kind.UNCONFIRMED, seen, RUN, move="nobody", under_way=under_way)


def _overpaid(pair: _Pair) -> Iterator[Difference]:
    """Nothing is settled that was not counted."""
    counted = pair.line.served + pair.entry.row.written_off
    if not counted.covers(pair.chain.settled):
        seen = f"the chain has settled {pair.chain.settled}, and this host counted {counted}"
        mend = "the ledger is an old copy, or somebody claims with the host's key beside it: find out which"
        yield pair.differs(Kind.OVERPAID, seen, mend)


def _owed(pair: _Pair) -> Iterator[Difference]:
    if pair.chain.status is JobStatus.CLOSED:
        yield from _lost(pair)
    else:
        yield from _claimable(pair.survey, pair.line)


def _lost(pair: _Pair) -> Iterator[Difference]:
    """A job is closed with all settled that its payer signed for."""
    line, chain = pair.line, pair.chain
    missing = line.worth(line.claimable) - line.worth(chain.settled)
    if missing > 0:
        lost = prospects.amount(pair.survey, chain.asset, missing)
        seen = f"closed with {chain.settled} settled, and {line.claimable} signed for: {lost} lost"
        mend = "the claim came too late: the refund is executed, and nothing can be claimed any more"
        yield pair.differs(Kind.LOST, seen, mend, move="nobody")


def _claimable(survey: Survey, line: Line) -> Iterator[Difference]:
    """What is signed for is settled, or on its way."""
    if line.wait is None or line.wait in {Wait.SEEN, Wait.MINED}:
        return
    if (claimable := line.worth(line.claimable) - line.worth(line.settled)) > 0:
        worth = prospects.amount(survey, line.job.asset, claimable)
        seen = f"{line.claimable} are signed for, {line.settled} settled: {worth} to claim"
        kind = Kind.CLAIMABLE
    elif line.life is not Life.OPEN:
        seen, kind = f"the job is {line.life}, and not closed", Kind.TO_COMPLETE
    else:
        return
    move, told = "host" if line.wait.stuck else "nobody", prospects.why(survey, line)
    yield Difference(kind, line.job.id, seen, move, told, under_way=not line.wait.stuck)


def _closing(pair: _Pair) -> Iterator[Difference]:
    """A job is closed in both, or open in both."""
    on_chain, in_ledger = pair.chain.status is JobStatus.CLOSED, pair.entry.row.closed
    if on_chain and not in_ledger:
        deep = pair.deep is not None and pair.deep.status is JobStatus.CLOSED
        under_way = pair.in_flight or not deep
        yield pair.differs(
            Kind.CLOSED_ON_CHAIN,
            "closed on the chain, open in the ledger",
            RUN,
            move="nobody",
            under_way=under_way,
        )
    elif in_ledger and not on_chain:
        mend = (
            "stop the node, have the ledger look at it again, and start the node: "
            f"UPDATE jobs SET closed = false, closed_by = NULL WHERE job_id = {pair.chain.id}"
        )
        yield pair.differs(Kind.CLOSED_IN_LEDGER, "closed in the ledger, open on the chain", mend)


def _counts(pair: _Pair) -> Iterator[Difference]:
    """What is acknowledged was counted, what is written off was not acknowledged, confirmed is settled."""
    row = pair.entry.row
    if not row.gross.covers(row.acknowledged):
        seen = f"{row.gross} are counted, and the payer acknowledged {row.acknowledged}"
        mend = "nothing is lost: the payer's word counts, and its next receipt raises the count"
        yield pair.differs(Kind.COUNTS, seen, mend, move="nobody")
    elif not (open_ := _unacknowledged(pair.entry)).covers(row.written_off):
        seen = f"{row.written_off} are written off, of {open_} that nobody acknowledged"
        unseen = pair.entry.served and pair.entry.slot is None
        yield pair.differs(Kind.WRITTEN_OFF, seen, AUDIT, under_way=unseen)
    if not row.settled.covers(row.confirmed):
        seen = f"{row.confirmed} are confirmed, and only {row.settled} settled, in the ledger"
        yield pair.differs(Kind.ORDER, seen, AUDIT)


def _unacknowledged(entry: Entry) -> Totals:
    """By the meter, which is ahead of the ledger. One on another machine cannot be seen."""
    return entry.row.gross.higher(entry.slot or NOTHING) - entry.row.acknowledged


def _proven(pair: _Pair) -> Iterator[Difference]:
    """An open job's counts are borne out by its positions and by its newest receipt."""
    row, proofs = pair.entry.row, pair.entry.proofs
    if proofs is None:
        return
    if proofs.positions != row.acknowledged:
        seen = f"{row.acknowledged} are acknowledged, and its positions add up to {proofs.positions}"
        yield pair.differs(Kind.POSITIONS, seen, AUDIT)
    if (trouble := _trouble_with_receipt(pair, proofs)) is not None:
        mend = "the payer's next receipt mends it; never restore an older ledger over this one"
        yield pair.differs(Kind.RECEIPT, trouble, mend)


def _trouble_with_receipt(pair: _Pair, proofs: Proofs) -> str | None:
    receipted, receipt = pair.entry.row.counts.receipted, proofs.receipt
    if receipt is None:
        return None if receipted == NOTHING else f"{receipted} are receipted, and there is no receipt"
    if receipt.totals != receipted:
        return f"{receipted} are receipted, and the newest receipt is over {receipt.totals}"
    deployment = pair.survey.deployment
    domain = proof.Domain(deployment.chain_id, deployment.marketplace)
    digest = domain.receipt(receipt.job_id, receipt.totals, receipt.transcript)
    try:
        signer = proof.recover(digest, receipt.signature)
    except ReceiptError as error:
        return f"the newest receipt cannot be claimed with: {error}"
    return None if signer == pair.chain.signer else f"the newest receipt is signed by {signer}"


def _metered(pair: _Pair) -> Iterator[Difference]:
    """The meter is never behind the ledger, and ahead of it only while the job is served."""
    row, slot = pair.entry.row, pair.entry.slot
    if slot is None or row.closed:
        return
    if not slot.covers(row.gross):
        seen = f"the meter has {slot}, the ledger {row.gross}"
        mend = "the next start counts on from the higher of both: nothing is lost"
        yield pair.differs(Kind.METER_BEHIND, seen, mend, move="nobody", under_way=True)
    elif slot != row.gross:
        seen = f"the meter has counted {slot}, the ledger was told of {row.gross}"
        yield pair.differs(Kind.METER_AHEAD, seen, RUN, under_way=pair.entry.served)


LAWS: tuple[Callable[[_Pair], Iterator[Difference]], ...] = (
    _terms,
    _deposit,
    _settled,
    _overpaid,
    _owed,
    _closing,
    _counts,
    _proven,
    _metered,
)


def _vanished(line: Line) -> Difference:
    seen = "in the ledger, and not on the chain, or another one has its number there"
    mend = "a reorganisation took it back, or RPC_URL is another chain's: what was served of it is lost"
    return Difference(Kind.VANISHED, line.job.id, seen, "nobody", mend)


def _unknown(job: Job) -> Iterator[Difference]:
    """A job that the ledger does not know has nothing settled."""
    if job.settled != NOTHING:
        seen = f"{job.settled} were settled, and the ledger does not know the job"
        mend = "this is not the ledger that it was served with: see HOST_DATA_DIR and LEDGER_URL"
        yield Difference(Kind.UNKNOWN, job.id, seen, "host", mend)
    elif job.status is not JobStatus.CLOSED:
        seen = "opened with this host, and this ledger knows of no request"
        mend = "if it was served with another ledger, see HOST_DATA_DIR and LEDGER_URL; else nothing is owed"
        yield Difference(Kind.UNASKED, job.id, seen, "nobody", mend, under_way=True)


def _stray(job_id: JobId, totals: Totals) -> Difference:
    seen = f"the meter has counted {totals} of it, and the ledger does not know the job"
    mend = "counts and ledger are of different times: see HOST_DATA_DIR and LEDGER_URL before a node starts"
    return Difference(Kind.STRAY, job_id, seen, "host", mend)


def _of_chain(job: Job) -> Iterator[Difference]:
    """What the contract says was paid is what its totals come to."""
    owed = pricing.owed(job.settled, job.prices)
    if (job.owed, job.fee) != (owed, pricing.fee(owed)):
        seen = f"the contract says {job.owed} paid, {job.fee} to the treasury; its totals come to {owed}"
        mend = "do not believe this endpoint: set RPC_URL to another one"
        yield Difference(Kind.MONEY, job.id, seen, "host", mend)


def _balances(story: Story) -> Iterator[Balance]:
    """In each asset in which anything was ever earned."""
    assets = {job.asset for job in story.jobs.values()} | {a for a, units in story.earnings.items() if units}
    for asset in sorted(assets | story.withdrawn.keys()):
        paid = sum(job.owed - job.fee for job in story.jobs.values() if job.asset == asset)
        if asset in story.earnings:
            yield Balance(asset, paid, story.withdrawn.get(asset, 0), story.earnings[asset])


def _earnings(survey: Survey, balance: Balance) -> Iterator[Difference]:
    """What a host's jobs paid is in the contract, or was withdrawn."""
    expected = balance.paid - balance.withdrawn
    if balance.held != expected:
        told = partial(prospects.amount, survey, balance.asset)
        seen = f"the contract holds {told(balance.held)}; jobs less withdrawals are {told(expected)}"
        mend = "do not believe this endpoint: set RPC_URL to another one"
        yield Difference(Kind.EARNINGS, None, seen, "host", mend, asset=balance.asset)
