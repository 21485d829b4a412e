"""What a host's ledger, meter and chain say now, read by one who only looks: the node may run meanwhile.

The ledger is read as of one moment, and the chain after it, so that what the ledger has seen is there. A
chain that does not answer is told as such, and the rest stands. Judges nothing: statement.py and
reconciliation.py do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import sqlalchemy as sa

from tallystick import counter, database, networks, outbox, rows, tables
from tallystick.chain import Block, Chain
from tallystick.config import HostConfig
from tallystick.contracts import Created, Withdrawn
from tallystick.counter import Record
from tallystick.errors import ChainError, ConfigError, LedgerError
from tallystick.networks import Deployment
from tallystick.node import COUNTER, as_deep, chain_of, thrift_of
from tallystick.policy import Gas, Thrift
from tallystick.rows import Outstanding
from tallystick.settlement import present_gas
from tallystick.tables import JobRow, State, Transaction
from tallystick.types import Address, Job, JobId, JobStatus, Receipt, Totals

PAGE = 1_000
"""Rows that are read at a time, where very many are."""
TRIES = 5
"""Times that the chain is read until the host's balances are the same after it as before."""
NOBODY = ""
"""The process that looks: it serves nothing."""


# The facts


@dataclass(frozen=True, slots=True)
class Proofs:
    """What the ledger has of an open job to prove its counts with."""

    positions: Totals
    """The sum of all its requests' positions."""
    receipt: Receipt | None
    """The newest."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A job as ledger and meter have it."""

    row: JobRow
    """Without its receipts."""
    slot: Totals | None = None
    """The gross count in a slot of its present epoch, of any process on this machine."""
    flight: Transaction | None = None
    """The transaction in flight that carries it."""
    failed: State | None = None
    """How the last transaction that carried it ended, if it paid nothing. CONFIRMED: it left the row out."""
    served: bool = False
    """The process that serves it is there: its lease has not run out."""
    outstanding: Outstanding | None = None
    """What the host's policy looks at."""
    proofs: Proofs | None = None

    @property
    def counted(self) -> Totals:
        """All that was delivered and not written off, what the ledger does not know yet included."""
        counts = self.row.counts
        gross = counts.gross.higher(self.slot or Totals())
        return msgspec.structs.replace(counts, gross=gross).counted


@dataclass(frozen=True, slots=True)
class LedgerFacts:
    """What the ledger, and the files of counts beside it, held at one moment."""

    place: str
    identity: str | None = None
    """Of the chain and contracts that it is for; None: no node has opened it yet."""
    entries: tuple[Entry, ...] = ()
    """By job."""
    running: bool = False
    """A process has a lease: a node runs."""
    strays: tuple[Record, ...] = ()
    """Slots in use whose job the ledger does not know."""


@dataclass(frozen=True, slots=True)
class ChainFacts:
    """What the chain says in its latest block."""

    endpoint: str
    head: Block
    jobs: Mapping[JobId, Job | None]
    """Of the ledger's. None: another one has its id there, or none has."""
    early: frozenset[JobId]
    """Of these: jobs that are not N deep."""
    balance: int
    """The host's ETH, in wei."""
    earnings: Mapping[Address, int]
    """By asset: what the host can withdraw."""
    payout: Address
    """Where that goes."""
    gas: Gas


@dataclass(frozen=True, slots=True)
class Survey:
    """All that can be seen of a host's money without touching anything."""

    config: HostConfig
    host: Address
    deployment: Deployment
    ledger: LedgerFacts
    chain: ChainFacts | ChainError
    now: int
    """The chain's time; this machine's while the chain is away."""
    clock: float
    """This machine's time, by which the sender notes when an endpoint took something."""
    thrift: Thrift | None
    """When the economic policy settles; None: each whole interval is settled."""

    @property
    def has_key(self) -> bool:
        """Whether this host can settle at all."""
        return self.config.host_private_key is not None


@dataclass(frozen=True, slots=True)
class Story:
    """All that the chain tells of a host's jobs and money, of one moment."""

    openings: Mapping[JobId, Created]
    jobs: Mapping[JobId, Job]
    """Every job that was ever opened with the host."""
    deep: Mapping[JobId, Job | None]
    """N blocks ago, of those that the ledger has otherwise than the latest block."""
    earnings: Mapping[Address, int]
    withdrawn: Mapping[Address, int]
    """By asset: what the host was ever paid out of its earnings."""


# Looking


async def survey(config: HostConfig) -> Survey:
    """Reads ledger and chain. ConfigError without a host; LedgerError; ChainError if there is neither."""
    host = _host(config)
    try:
        async with await chain_of(config) as chain:
            return await _survey(config, host, chain)
    except ConfigError:
        raise
    except ChainError as error:
        return await _without_chain(config, host, error)


async def audit(config: HostConfig) -> tuple[Survey, Story]:
    """The same, with the whole story of the host's jobs on the chain, which has to answer. ChainError."""
    async with await chain_of(config) as chain:
        found = await _survey(config, _host(config), chain, proofs=True)
        return found, await _story(chain, found)


def _host(config: HostConfig) -> Address:
    if config.host is None:
        raise ConfigError("neither HOST_PRIVATE_KEY nor HOST_ADDRESS is set: there is no host to look for")
    return config.host


async def _survey(config: HostConfig, host: Address, chain: Chain, *, proofs: bool = False) -> Survey:
    head, genesis = await chain.block(), await chain.block(0)
    deployment = chain.deployment
    thrift = thrift_of(config, deployment)
    whole = thrift is not None
    ledger = await asyncio.to_thread(read_ledger, config, head.timestamp, whole=whole, proofs=proofs)
    here = deployment.identity(genesis.hash)
    if ledger.identity not in (None, here):
        raise LedgerError(f"the ledger in {ledger.place} is for {ledger.identity}, and RPC_URL is on {here}")
    told = await _ask_chain(chain, host, ledger)
    return Survey(config, host, deployment, ledger, told, told.head.timestamp, time.time(), thrift)


async def _without_chain(config: HostConfig, host: Address, error: ChainError) -> Survey:
    """By this machine's clock, with the contracts that the ledger names. The error, if it names none."""
    now = time.time()
    ledger = await asyncio.to_thread(read_ledger, config, int(now))
    if ledger.identity is None:
        raise error
    deployment = as_deep(config, networks.deployment(int(ledger.identity.partition(":")[0])))
    thrift = thrift_of(config, deployment)
    return Survey(config, host, deployment, ledger, error, int(now), now, thrift)


# The ledger


def read_ledger(config: HostConfig, now: int, *, whole: bool = False, proofs: bool = False) -> LedgerFacts:
    """All at one moment. `now`: the chain's time; `whole`: as the economic policy looks. LedgerError."""
    url = config.ledger_url.reveal() if config.ledger_url else database.url_in(config.data_dir)
    place = database.place(url)
    try:
        with database.looking(url) as connection:
            found = LedgerFacts(place)
            if connection is not None and sa.inspect(connection).has_table(tables.jobs.name):
                found = _read(connection, place, config.host, now, whole=whole, proofs=proofs)
    except sa.exc.SQLAlchemyError as error:
        told = getattr(error, "orig", None) or error
        raise LedgerError(f"the ledger in {place} cannot be read: {told}") from error
    # After the ledger: a slot is never below what of it is there.
    return _with_counts(found, counter.read_all(config.data_dir / COUNTER))


def _read(
    connection: sa.Connection, place: str, host: Address | None, now: int, *, whole: bool, proofs: bool
) -> LedgerFacts:
    living = set(connection.scalars(_LIVING))
    flying = [] if host is None else outbox.in_flight(connection, host)
    flights = {carried.job_id: each for each in flying for carried in each.draft.carried}
    failed = {JobId(row.job_id): State(row.state) for row in connection.execute(_FAILED)}
    due = _outstanding(connection, now, whole=whole)
    proven = _proofs(connection) if proofs else {}
    entries = (
        Entry(
            row=row,
            flight=flights.get(row.job.id),
            failed=failed.get(row.job.id),
            served=row.owner in living,
            outstanding=due.get(row.job.id),
            proofs=proven.get(row.job.id),
        )
        for row in _job_rows(connection)
    )
    identity = connection.scalar(sa.select(tables.identity.c.identity))
    return LedgerFacts(place, identity, tuple(entries), bool(living))


_LIVING = sa.select(tables.processes.c.id).where(tables.processes.c.until > database.now())
_LAST = (
    sa.select(tables.claims.c.job_id, sa.func.max(tables.claims.c.transaction_id).label("last"))
    .group_by(tables.claims.c.job_id)
    .subquery()
)
_FAILED = (
    sa.select(tables.claims.c.job_id, tables.transactions.c.state)
    .join(
        _LAST,
        sa.and_(_LAST.c.job_id == tables.claims.c.job_id, _LAST.c.last == tables.claims.c.transaction_id),
    )
    .join(tables.transactions, tables.transactions.c.id == tables.claims.c.transaction_id)
    .join(tables.jobs, tables.jobs.c.job_id == tables.claims.c.job_id)
    .where(tables.jobs.c.closed.is_(False))
    .where(tables.claims.c.active.is_(False), tables.claims.c.paid.is_(False))
)
_POSITIONS = sa.select(
    tables.positions.c.job_id,
    sa.func.sum(tables.positions.c.prompt_tokens).label("prompt_tokens"),
    sa.func.sum(tables.positions.c.tokens).label("tokens"),
).group_by(tables.positions.c.job_id)


def _job_rows(connection: sa.Connection) -> Iterator[JobRow]:
    for row in connection.execute(sa.select(tables.jobs).order_by(tables.jobs.c.job_id)).mappings():
        yield tables.job_row(row, None, None)


def _outstanding(connection: sa.Connection, now: int, *, whole: bool) -> dict[JobId, Outstanding]:
    found: dict[JobId, Outstanding] = {}
    after: JobId | None = JobId(0)
    while after is not None:
        page, after = rows.outstanding(connection, now, NOBODY, after, PAGE, whole=whole)
        found |= {each.job_id: each for each in page}
    return found


def _proofs(connection: sa.Connection) -> dict[JobId, Proofs]:
    """Of the open jobs."""
    sums = {
        row.job_id: Totals(int(row.prompt_tokens), int(row.tokens)) for row in connection.execute(_POSITIONS)
    }
    found: dict[JobId, Proofs] = {}
    after = JobId(0)
    while page := rows.open_page(connection, after, PAGE):
        found |= {row.job.id: Proofs(sums.get(row.job.id, Totals()), row.receipted) for row in page}
        after = page[-1].job.id
    return found


def _with_counts(ledger: LedgerFacts, records: Sequence[Record]) -> LedgerFacts:
    """The slots, each with the job that it counts for. One of an earlier epoch counts for nothing."""
    slots = {(record.job_id, record.epoch): record.totals for record in records}
    known = {entry.row.job.id for entry in ledger.entries}
    entries = (replace(each, slot=slots.get((each.row.job.id, each.row.epoch))) for each in ledger.entries)
    strays = (record for record in records if record.job_id not in known)
    return replace(ledger, entries=tuple(entries), strays=tuple(strays))


# The chain


async def _ask_chain(chain: Chain, host: Address, ledger: LedgerFacts) -> ChainFacts:
    known = [entry.row.job for entry in ledger.entries if not entry.row.closed]
    head = await chain.block()
    return ChainFacts(
        endpoint=chain.endpoint,
        head=head,
        jobs=await _latest(chain, known),
        early=frozenset(await _early(chain, known, head)),
        balance=await chain.eth_balance(host),
        earnings=await _earnings(chain, host),
        payout=await chain.payout(host),
        gas=await present_gas(chain, head),
    )


async def _latest(chain: Chain, known: Sequence[Job]) -> dict[JobId, Job | None]:
    found: dict[JobId, Job | None] = {}
    for at in range(0, len(known), PAGE):
        found |= await chain.latest(known[at : at + PAGE])
    return found


async def _early(chain: Chain, known: Sequence[Job], head: Block) -> list[JobId]:
    """A call for each, so only for those that the time of the newest deep block leaves open."""
    depth = chain.deployment.depth
    deep = await chain.block(max(0, head.number - depth))
    young = [job.id for job in known if depth and job.created_at >= deep.timestamp]
    return [job_id for job_id in young if await chain.job(job_id, depth) is None]


async def _earnings(chain: Chain, host: Address) -> dict[Address, int]:
    return {asset: await chain.earnings(host, asset) for asset in chain.deployment.assets}


async def _story(chain: Chain, found: Survey) -> Story:
    """Read again until nothing was paid in or out meanwhile. ChainError if that does not come to be."""
    after = await _earnings(chain, found.host)
    for _ in range(TRIES):
        before = after
        openings = {each.job_id: each for each in await chain.jobs(host=found.host)}
        jobs = await _opened(chain, list(openings.values()))
        withdrawn = await _withdrawn(chain, found.host)
        after = await _earnings(chain, found.host)
        if before == after:
            return Story(openings, jobs, await _deep(chain, found, jobs), after, withdrawn)
    raise ChainError(f"{chain.endpoint} told of another balance of the host each time: ask again")


async def _opened(chain: Chain, openings: Sequence[Created]) -> dict[JobId, Job]:
    found: dict[JobId, Job] = {}
    for at in range(0, len(openings), PAGE):
        page = await chain.opened(openings[at : at + PAGE])
        found |= {job_id: job for job_id, job in page.items() if job is not None}
    if len(found) < len(openings):
        raise ChainError(f"{chain.endpoint} has openings of jobs, but not all the jobs: it may lag behind")
    return found


async def _withdrawn(chain: Chain, host: Address) -> dict[Address, int]:
    last = await chain.block_number()
    events = await chain.events(chain.deployment.from_block, last, ["Withdrawn"])
    drawn: dict[Address, int] = {}
    for event in events:
        if isinstance(event, Withdrawn) and event.owner == host:
            drawn[event.asset] = drawn.get(event.asset, 0) + event.earnings
    return drawn


async def _deep(chain: Chain, found: Survey, jobs: Mapping[JobId, Job]) -> dict[JobId, Job | None]:
    """A call for each, so only for jobs that the ledger does not have as the latest block does."""
    differing = [
        entry.row.job.id
        for entry in found.ledger.entries
        if (job := jobs.get(entry.row.job.id)) is not None
        and (entry.row.confirmed != job.settled or entry.row.closed != (job.status is JobStatus.CLOSED))
    ]
    return {job_id: await chain.job(job_id, chain.deployment.depth) for job_id in differing}
