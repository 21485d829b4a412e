"""`tally contracts books`: what the marketplace holds of each asset, against all that it owes to anybody.

    held = rest of open jobs + hosts' earnings + kept refunds + the treasury's fees + what nobody is owed

Who audits it takes the openings from the chain's log, and adds up what the contract says of each job and each
balance; what was paid, less what was withdrawn by its log, has to be the balances. Rules and reading apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tallystick.chain import Chain, deployment_at
from tallystick.contracts import Event, RefundCredited, TreasuryWithdrawn, Withdrawn
from tallystick.errors import ChainError
from tallystick.networks import Asset
from tallystick.pricing import from_units
from tallystick.types import Address, Check, Job, JobStatus

PAGE = 1_000
"""Jobs that are read at a time."""
TRIES = 5
"""Times that all is read until nothing has happened meanwhile."""
LIES = "do not believe this endpoint: ask another one with --rpc-url"


@dataclass(frozen=True, slots=True)
class Books:
    """All of one asset, in base units."""

    address: Address
    asset: Asset
    jobs: int
    rest: int
    """Deposits of jobs that are not closed, less what of them was paid."""
    earnings: int
    """What hosts can withdraw."""
    refunds: int
    """What is kept for payers who could not be sent it."""
    fees: int
    """What the treasury can withdraw."""
    held: int
    """What the token says that the marketplace has."""
    paid: int
    """By all jobs ever, to hosts."""
    paid_fees: int
    withdrawn: int
    withdrawn_fees: int

    @property
    def owed(self) -> int:
        """To everybody."""
        return self.rest + self.earnings + self.refunds + self.fees


async def audit(rpc_url: str) -> list[Books]:
    """The books of each asset that a job was opened in. ChainError; ConfigError if there is no contract."""
    async with Chain(rpc_url, await deployment_at(rpc_url)) as chain:
        for _ in range(TRIES):
            before = await chain.block_number()
            books = await _read(chain)
            if not await chain.events(before + 1, await chain.block_number()):
                return books
        raise ChainError("the contract was used each time while its books were read: ask again")


async def _read(chain: Chain) -> list[Books]:
    openings = await chain.jobs()
    jobs: list[Job] = []
    for at in range(0, len(openings), PAGE):
        jobs += filter(None, (await chain.opened(openings[at : at + PAGE])).values())
    if len(jobs) < len(openings):
        raise ChainError(f"{chain.endpoint} has openings of jobs, but not all the jobs: it may lag behind")
    names = ["Withdrawn", "TreasuryWithdrawn", "RefundCredited"]
    events = await chain.events(chain.deployment.from_block, await chain.block_number(), names)
    return [await _of_asset(chain, asset, jobs, events) for asset in sorted({job.asset for job in jobs})]


async def _of_asset(chain: Chain, asset: Address, every: Sequence[Job], events: Sequence[Event]) -> Books:
    jobs = [job for job in every if job.asset == asset]
    kept_for = {each.payer for each in events if isinstance(each, RefundCredited) and each.asset == asset}
    return Books(
        address=asset,
        asset=chain.deployment.assets.get(asset, Asset(asset, 0)),
        jobs=len(jobs),
        rest=sum(job.deposit - job.owed for job in jobs if job.status is not JobStatus.CLOSED),
        earnings=sum([await chain.earnings(host, asset) for host in {job.host for job in jobs}]),
        refunds=sum([await chain.refunds(payer, asset) for payer in kept_for]),
        fees=await chain.treasury_balance(asset),
        held=await chain.token_balance(asset, chain.deployment.marketplace),
        paid=sum(job.owed - job.fee for job in jobs),
        paid_fees=sum(job.fee for job in jobs),
        withdrawn=sum(e.earnings for e in events if isinstance(e, Withdrawn) and e.asset == asset),
        withdrawn_fees=sum(e.amount for e in events if isinstance(e, TreasuryWithdrawn) and e.asset == asset),
    )


def judge(books: Iterable[Books]) -> list[Check]:
    """Every check of every asset."""
    return [check for each in books for check in _checks(each)]


def _checks(books: Books) -> Iterator[Check]:
    told = _teller(books.asset)
    rest = books.held - books.owed
    yield _check(
        f"{books.asset.symbol} held",
        rest >= 0,
        f"{told(books.held)} are held, {told(books.owed)} owed"
        + (f"; {told(rest)} were given to nobody" if rest > 0 else ""),
    )
    yield Check(
        f"{books.asset.symbol} owed",
        True,
        f"{told(books.rest)} rest of {books.jobs} jobs, {told(books.earnings)} of hosts, "
        f"{told(books.refunds)} refunds kept, {told(books.fees)} of the treasury",
    )
    yield _check(
        f"{books.asset.symbol} hosts",
        books.paid - books.withdrawn == books.earnings,
        f"{told(books.paid)} paid to hosts, {told(books.withdrawn)} withdrawn, {told(books.earnings)} left",
    )
    yield _check(
        f"{books.asset.symbol} treasury",
        books.paid_fees - books.withdrawn_fees == books.fees,
        f"{told(books.paid_fees)} fees, {told(books.withdrawn_fees)} withdrawn, {told(books.fees)} left",
    )


def _check(name: str, holds: bool, seen: str) -> Check:
    return Check(name, holds, seen, "" if holds else LIES)


def _teller(asset: Asset) -> Callable[[int], str]:
    return lambda units: f"{from_units(units, asset.decimals)} {asset.symbol}"
