"""`tally reconcile --as payer`: chain, store and evidence of a payer held against each other, to the unit.

Each law of what has to agree is a function of one job that yields what differs: its name, what was seen, what
mends it. What needs no mending is told as such, and counts for nothing. Changes nothing.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from tallystick import archive, opening, pricing, proof
from tallystick.caps import Stake
from tallystick.chain import Chain, deployment_at
from tallystick.config import PayerConfig, checked_address
from tallystick.contracts import Relayed
from tallystick.errors import ConfigError
from tallystick.evidence import Evidence
from tallystick.mends import when
from tallystick.networks import Deployment
from tallystick.store import Store, StoredJob
from tallystick.types import Address, Completion, Job, JobId, JobStatus, Totals

NOTHING = Totals()
SUMS = ("deposits", "paid", "returned", "relay_fees")


class Kind(enum.StrEnum):
    """What differs."""

    UNKNOWN = "unknown_job"
    """The chain has a job of this payer that the store does not know."""
    VANISHED = "not_on_chain"
    """The store has a job that the chain does not, or has another one in its place."""
    PENDING = "opening_pending"
    """A session key was written, and the chain has no job of it."""
    BEYOND = "settled_beyond_signed"
    """The chain has settled more than the store has signed for."""
    MONEY = "amount_differs"
    """The contract's amounts are not what its totals come to."""
    CLOSED = "closed_on_chain"
    """The chain has closed a job that the store has in use."""
    OPEN = "ended_not_closed"
    """The store has ended a job that the chain has not closed."""
    RECLAIMABLE = "to_reclaim"
    """A job's time is over, and its rest was not sent back."""
    KEPT = "refund_kept"
    """A refund could not be sent, and lies in the contract."""
    STAKE = "stake_too_low"
    """A job may cost more on its day than the caps were told."""
    NO_EVIDENCE = "evidence_missing"
    """A job is over, and left no evidence."""
    EVIDENCE = "evidence_broken"
    """A file of evidence is not as it was sealed."""
    EVIDENCE_STORE = "evidence_not_of_store"
    """A file of evidence has signed another total than the store."""
    EVIDENCE_CHAIN = "evidence_not_of_chain"
    """A file of evidence tells another story than the chain."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that does not agree."""

    kind: Kind
    job_id: JobId | None
    seen: str
    mend: str
    counts: bool = True
    """False: there is nothing to mend, or it goes away by itself."""


@dataclass(frozen=True, slots=True)
class Seen:
    """All that is known of one job, by the chain and by the store."""

    job_id: JobId
    stored: StoredJob | None
    job: Job | None
    """Of the store's signer, where the store has one."""
    completion: Completion | None = None
    signed: Totals = NOTHING
    """By the newest receipt of the store."""
    stake: Stake | None = None
    evidence: Path | None = None
    relay_fee: int = 0
    """What whoever sent its opening got of what the payer put in, beside the deposit."""
    money: Callable[[int], str] = str
    """An amount of the job's asset for people."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was compared, and all that differs. Amounts in base units, by asset."""

    payers: tuple[Address, ...]
    jobs: tuple[Seen, ...]
    deployment: Deployment
    staked: dict[tuple[str, Address], int]
    """What may have been spent on a day, by the caps; of the days that the store still has."""
    differences: tuple[Difference, ...]

    @property
    def agrees(self) -> bool:
        """True if nothing has to be mended."""
        return not any(each.counts for each in self.differences)

    def sums(self) -> dict[Address, dict[str, int]]:
        """Of the jobs on the chain: what went into escrow, what of it was paid, came back, and is there; what
        was paid beside it for sending openings.
        """
        sums: dict[Address, dict[str, int]] = {}
        for seen in self.jobs:
            if seen.job is not None:
                of_asset = sums.setdefault(seen.job.asset, dict.fromkeys(SUMS, 0))
                of_asset["deposits"] += seen.job.deposit
                of_asset["paid"] += seen.job.owed
                of_asset["returned"] += seen.completion.refund if seen.completion else 0
                of_asset["relay_fees"] += seen.relay_fee
        return {asset: {**each, "in_escrow": _rest(each)} for asset, each in sums.items()}


def _rest(sums: dict[str, int]) -> int:
    return sums["deposits"] - sums["paid"] - sums["returned"]


async def reconcile(config: PayerConfig) -> Report:
    """Looks, and compares. ChainError, LedgerError, ConfigError for what keeps one from looking."""
    deployment = await deployment_at(config.rpc_url)
    async with Chain(config.rpc_url, deployment) as chain:
        store = await asyncio.to_thread(Store, config.data_dir)
        try:
            async with chain.view():
                return await compare(chain, store, own_address(config))
        finally:
            store.close()


def own_address(config: PayerConfig) -> Address | None:
    """The payer's, by its key or as its keystore tells it without a password. ConfigError."""
    if config.payer_private_key is not None:
        return proof.address(config.payer_private_key.reveal())
    if config.keystore is None:
        return None
    try:
        told = orjson.loads(config.keystore.read_bytes())["address"]
        return checked_address("0x" + told.removeprefix("0x"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"PAYER_KEYSTORE {config.keystore} cannot be read: {error}") from error


async def compare(chain: Chain, store: Store, payer: Address | None) -> Report:
    """The payer's jobs, and those of the store, whoever pays for them."""
    place = (chain.deployment.chain_id, chain.deployment.marketplace)
    kept = await asyncio.to_thread(lambda: store.jobs(*place, ended=True))
    pending = await asyncio.to_thread(store.openings, *place)
    stakes = await asyncio.to_thread(store.stakes, *place)
    payers = sorted({each.payer for each in [*kept, *pending]} | ({payer} if payer else set()))
    jobs = await _look(chain, store, kept, stakes, payers)
    now = (await chain.block()).timestamp
    differences = [*_of_jobs(jobs, now), *_pending(chain, pending, stakes)]
    for seen in jobs:
        differences += await _of_evidence(chain, seen)
    for each in payers:
        differences += await _kept_refunds(chain, each)
    staked: dict[tuple[str, Address], int] = {}
    for stake in stakes:
        staked[stake.day, stake.asset] = staked.get((stake.day, stake.asset), 0) + stake.at_most
    return Report(tuple(payers), tuple(jobs), chain.deployment, staked, tuple(differences))


async def _look(
    chain: Chain, store: Store, kept: list[StoredJob], stakes: list[Stake], payers: Iterable[Address]
) -> list[Seen]:
    """Each job of the store, and each that the chain has of these payers, by number."""
    mine = {each.job_id: each for each in kept if each.job_id is not None}
    numbers = set(mine)
    for payer in payers:
        numbers |= {event.job_id for event in await chain.jobs(payer=payer)}
    staked = {stake.signer: stake for stake in stakes}
    found = []
    for number in sorted(numbers):
        stored = mine.get(number)
        found.append(await _seen(chain, store, number, stored, staked.get(stored.signer) if stored else None))
    return found


async def _seen(
    chain: Chain, store: Store, number: JobId, stored: StoredJob | None, stake: Stake | None
) -> Seen:
    job = await chain.job(number)
    if stored is None:
        return Seen(
            *(number, None, job, await _closing(chain, job)),
            relay_fee=await _relay_fee(chain, job),
            money=_money(chain, job),
        )
    if job is not None and job.signer != stored.signer:
        job = None
    last = await asyncio.to_thread(store.last, stored.signer)
    path = archive.place(store, stored)
    return Seen(
        job_id=number,
        stored=stored,
        job=job,
        completion=await _closing(chain, job),
        signed=last.receipt.totals if last else Totals(),
        stake=stake,
        evidence=path if path.exists() else None,
        relay_fee=0 if stored.good_until is None else await _relay_fee(chain, job),
        money=_money(chain, job),
    )


def _money(chain: Chain, job: Job | None) -> Callable[[int], str]:
    return str if job is None else partial(chain.deployment.amount, job.asset)


async def _relay_fee(chain: Chain, job: Job | None) -> int:
    """What whoever sent a job's opening got for it."""
    opened = await chain.opening(job) if job is not None else None
    if opened is None:
        return 0
    relayed = await chain.events(opened.block, opened.block, ["JobRelayed"])
    return sum(
        each.relay_fee for each in relayed if isinstance(each, Relayed) and each.job_id == opened.job_id
    )


async def _closing(chain: Chain, job: Job | None) -> Completion | None:
    return await chain.completion(job.id) if job is not None and job.status is JobStatus.CLOSED else None


# What has to agree: one law a function, of a job that the chain has


Law = Callable[[Seen, Job, int], Iterator[Difference]]


def _of_jobs(jobs: Iterable[Seen], now: int) -> Iterator[Difference]:
    for seen in jobs:
        if seen.job is None:
            yield Difference(
                Kind.VANISHED,
                seen.job_id,
                "the store has this job, and the chain does not: a reorganisation took its opening back, or "
                "RPC_URL is another chain",
                "check RPC_URL; a deposit that was taken back is on your account again: tally job open",
                counts=seen.stored is not None and not seen.stored.ended,
            )
            continue
        for law in LAWS:
            yield from law(seen, seen.job, now)


def known(seen: Seen, job: Job, now: int) -> Iterator[Difference]:
    """Every job of the payer's is in its store."""
    if seen.stored is not None:
        return
    deposit, paid = seen.money(job.deposit), seen.money(job.owed)
    told = f"opened {when(job.created_at)} with {job.host}, deposit {deposit}, {paid} of it paid"
    if job.status is JobStatus.CLOSED:
        mend = "nothing: it is closed and its rest is back"
    elif job.status is JobStatus.OPEN and now < job.closes_at:
        mend = f"tally job complete {job.id} --on-chain; its session key is not here, so it cannot be used"
    else:
        mend = f"tally job reclaim {job.id}, from {when(job.closes_at)} on"
    yield Difference(Kind.UNKNOWN, job.id, told, mend, counts=job.status is not JobStatus.CLOSED)


def signed_for(seen: Seen, job: Job, now: int) -> Iterator[Difference]:
    """A host settles what was signed for, and no more."""
    if seen.stored is not None and job.receipted and not seen.signed.covers(job.settled):
        yield Difference(
            Kind.BEYOND,
            job.id,
            f"{_told(job.settled)} are settled; the newest receipt in the store signs {_told(seen.signed)}",
            "the store is older than what was signed: put the newest copy of PAYER_DATA_DIR in its place. If "
            f"there is none, or nothing was lost, others have the session key: tally job complete {job.id}",
        )


def amounts(seen: Seen, job: Job, now: int) -> Iterator[Difference]:
    """What is paid is what the totals come to, and what came back is the rest."""
    owed = pricing.owed(job.settled, job.prices)
    if (job.owed, job.fee) != (owed, pricing.fee(owed)):
        paid, fee, worth = map(seen.money, (job.owed, job.fee, owed))
        told = f"{paid} are paid, {fee} of them to the treasury; the totals come to {worth}"
        yield Difference(Kind.MONEY, job.id, told, "trust no amount of this chain's before it is explained")
    if seen.completion is not None and seen.completion.refund != job.deposit - job.owed:
        refund, deposit, paid = map(seen.money, (seen.completion.refund, job.deposit, job.owed))
        told = f"{refund} came back of a deposit of {deposit} with {paid} paid"
        yield Difference(Kind.MONEY, job.id, told, "trust no amount of this chain's before it is explained")


def ended(seen: Seen, job: Job, now: int) -> Iterator[Difference]:
    """What is over here is over there, and the other way round."""
    if seen.stored is None:
        return
    if job.status is JobStatus.CLOSED:
        if not seen.stored.ended:
            told = "the chain has closed it, and the store has it in use"
            yield Difference(
                Kind.CLOSED, job.id, told, f"tally job complete {job.id}, which takes note of it"
            )
    elif now >= job.closes_at:
        rest = seen.money(job.deposit - job.owed)
        told = f"its host could claim until {when(job.closes_at)}; {rest} are yours"
        yield Difference(Kind.RECLAIMABLE, job.id, told, f"tally job reclaim {job.id}")
    elif seen.stored.ended:
        told = f"the store has ended it; on the chain it is {job.status.name.lower()}"
        completing = job.status is JobStatus.COMPLETING
        past = f"tally job reclaim {job.id}, from {when(job.closes_at)} on"
        mend = past if completing else f"tally job complete {job.id} --on-chain; then {past}"
        yield Difference(Kind.OPEN, job.id, told, mend, counts=not completing)


def staked(seen: Seen, job: Job, now: int) -> Iterator[Difference]:
    """A day's caps know all that a job may cost."""
    most = job.owed if job.status is JobStatus.CLOSED else job.deposit
    if seen.stake is not None and seen.stake.most < most:
        yield Difference(
            Kind.STAKE,
            job.id,
            f"it may cost {seen.money(most)}, and {seen.money(seen.stake.most)} are counted against "
            f"{seen.stake.day}",
            f"tally job complete {job.id}, and lower --max-per-day for that day by the difference",
        )


LAWS: tuple[Law, ...] = (known, signed_for, amounts, ended, staked)


def _told(totals: Totals) -> str:
    return f"{totals.tokens} tokens and {totals.prompt_tokens} prompt tokens"


def _pending(chain: Chain, openings: Iterable[StoredJob], stakes: Iterable[Stake]) -> Iterator[Difference]:
    """A session key without a job is worth nothing; what was signed to open one may still come."""
    staked = {stake.signer: stake for stake in stakes}
    for each in openings:
        held = staked.get(each.signer)
        told = f"the session key {each.signer} has no job on the chain: {opening.awaited(each)}"
        if held is not None:
            told += (
                f"; {chain.deployment.amount(held.asset, held.at_most)} count against {held.day} until then"
            )
        yield Difference(Kind.PENDING, None, told, _mend_of(each), counts=False)


def _mend_of(pending: StoredJob) -> str:
    """What mends an opening that is not on the chain."""
    if not pending.is_signed:
        return (
            "nothing: any command of the payer's that opens its store, like `tally job list`, frees the money"
        )
    if pending.raw is not None:
        return "nothing, or if the money is needed at once: send yourself 0 ETH with that number"
    return "nothing: it is looked for by each command, and over when it cannot come any more"


async def _kept_refunds(chain: Chain, payer: Address) -> list[Difference]:
    found = []
    for asset, known_asset in chain.deployment.assets.items():
        units = await chain.refunds(payer, asset)
        if units:
            told = f"{chain.deployment.amount(asset, units)} lie in the contract for {payer}"
            mend = f"tally withdraw --as payer --asset {known_asset.symbol}"
            found.append(Difference(Kind.KEPT, None, told, mend))
    return found


# Evidence


async def _of_evidence(chain: Chain, seen: Seen) -> list[Difference]:
    """The file of a job that is over is whole, and says what store and chain say."""
    if seen.stored is None or seen.job is None:
        return []
    anew = f"tally job evidence {seen.job_id} FILE writes it anew"
    if seen.evidence is None:
        if seen.job.status is not JobStatus.CLOSED or not seen.stored.ended:
            return []
        return [Difference(Kind.NO_EVIDENCE, seen.job_id, "it is over, and has left no evidence", anew)]
    try:
        read = archive.read(seen.evidence)
    except ConfigError as error:
        return [Difference(Kind.EVIDENCE, seen.job_id, str(error), anew)]
    return [
        *_broken(read, seen, anew),
        *[
            Difference(Kind.EVIDENCE_CHAIN, seen.job_id, f"{check.name}: {check.seen}", anew)
            for check in await archive.confirm(read, chain)
            if not check.passed
        ],
    ]


def _broken(read: Evidence, seen: Seen, anew: str) -> Iterator[Difference]:
    for check in read.checks():
        if not check.passed:
            told = f"{seen.evidence}: {check.name}: {check.seen}"
            yield Difference(Kind.EVIDENCE, seen.job_id, told, anew)
    if read.signed != seen.signed:
        told = f"the file signs {_told(read.signed)}, the store {_told(seen.signed)}"
        mend = "the one that signs less is an older copy: put the newest PAYER_DATA_DIR in its place"
        yield Difference(Kind.EVIDENCE_STORE, seen.job_id, told, mend)


# Telling


def lines(found: Report) -> Iterator[str]:
    """For people: what differs, first what counts; the sums; the verdict."""
    unknown = sum(seen.stored is None for seen in found.jobs)
    payers = ", ".join(found.payers) or "nobody"
    amount = found.deployment.amount
    jobs = f"{len(found.jobs)} jobs, {unknown} not in the store"
    yield f"payer {payers} on chain {found.deployment.chain_id}: {jobs}"
    for heading, counts in (("differs", True), ("to know: nothing to mend", False)):
        these = [each for each in found.differences if each.counts is counts]
        if these:
            yield f"\n{heading}"
        for each in these:
            number = "" if each.job_id is None else str(each.job_id)
            yield f"{number:>5}  {each.kind.value}: {each.seen}"
            yield f"{'':7}mend: {each.mend}"
    for asset, sums in found.sums().items():
        told = (f"{name.replace('_', ' ')} {amount(asset, units)}" for name, units in sums.items())
        yield ", ".join(told)
    for (day, asset), units in sorted(found.staked.items()):
        yield f"at most {amount(asset, units)} on {day}, by the caps"
    wrong = sum(each.counts for each in found.differences)
    yield f"{wrong} difference{'' if wrong == 1 else 's'}" if wrong else "all agrees"


def out(found: Report) -> dict[str, Any]:
    """The same for programs."""
    return {
        "payers": list(found.payers),
        "chain_id": found.deployment.chain_id,
        "agrees": found.agrees,
        "jobs": len(found.jobs),
        "differences": [
            {
                "kind": each.kind.value,
                "job_id": each.job_id,
                "seen": each.seen,
                "mend": each.mend,
                "counts": each.counts,
            }
            for each in found.differences
        ],
        "sums": found.sums(),
        "staked": [
            {"day": day, "asset": asset, "at_most": units}
            for (day, asset), units in sorted(found.staked.items())
        ],
    }
