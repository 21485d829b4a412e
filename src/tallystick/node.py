"""One host put together: chain, engine, ledger, counter and settlement, around the desk where it is asked.

Starts and stops the parts, says at start what works and what does not, and tells what the host offers. What
is served and signed is decided in desk.py; server.py is its door.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from types import TracebackType
from typing import Any, Self

import structlog

from tallystick import __version__, lookout, proof
from tallystick.admission import Limits, Offer
from tallystick.chain import Chain, deployment_at
from tallystick.config import Amounts, AssetPrice, HostConfig
from tallystick.counter import Counter
from tallystick.desk import Desk
from tallystick.engine import Engine
from tallystick.engines.configured import engine_of
from tallystick.errors import ChainError, ConfigError, LedgerError
from tallystick.fees import GWEI, Pace
from tallystick.ledger import Ledger
from tallystick.lookout import Lookout
from tallystick.networks import Asset, Deployment
from tallystick.policy import Policy, Thrift
from tallystick.pricing import to_units
from tallystick.quote import FILE, Promises, digest
from tallystick.sender import Sender
from tallystick.settlement import Settlement
from tallystick.sponsor import Allowance, Sponsor
from tallystick.types import ETH, Address, Completion, JobId, Model, Prices, Totals
from tallystick.types import Settlement as Settled

WEI = 10**18
"""Of one ETH."""
COUNTER = "counter"
"""The file of slots, beside the ledger."""
STOP_STREAMS = 5.0
"""Seconds that replies under way have to end in when the node stops."""
STOP_SETTLING = 15.0
"""Seconds that what is due has to be settled in when the node stops; the next start goes on with the rest."""

GO_ON = "tally host run goes on with it; tally host pending says what it waits for"

REGISTERED_FRESH = 60.0
"""Seconds for which a registration that was seen is relied on: a host takes it back once in its life."""


@dataclass(frozen=True, slots=True)
class Payout:
    """What one confirmed transaction did for a job, in base units."""

    job_id: JobId
    totals: Totals
    """Settled with it, or (a completion alone) before it."""
    host: int
    treasury: int
    tx: str
    refund: int | None
    """What went back to the payer; None: the job goes on."""

    def out(self) -> dict[str, Any]:
        """The members of a `settled` frame (protocol §10)."""
        out = {
            "job_id": self.job_id,
            "prompt_tokens": self.totals.prompt_tokens,
            "tokens": self.totals.tokens,
            "host": str(self.host),
            "treasury": str(self.treasury),
            "tx": self.tx,
        }
        return out if self.refund is None else {**out, "completed": True, "refund": str(self.refund)}


Watcher = Callable[[Payout], None]

log = structlog.get_logger(__name__)


class Node:
    """A host that serves: `async with Node(config) as node`, or `start` and `stop`."""

    # Set by `start`.
    chain: Chain
    engine: Engine
    ledger: Ledger
    counter: Counter
    offer: Offer
    promises: Promises
    desk: Desk

    def __init__(self, config: HostConfig, *, engine: Engine | None = None) -> None:
        """`engine`: in place of the one that the config names."""
        self.config = config
        self.url = config.public_url or "http://{}:{}".format(*config.listen)
        """Where payers reach it; without a setting, whoever serves it says where it listens."""
        self._engine = engine
        self.sender: Sender | None = None
        """What settles; None: nothing is settled."""
        self.sponsor: Sponsor | None = None
        """What sends for payers; None: nothing is sent."""
        self._settlement: Settlement | None = None
        self._watchers: defaultdict[JobId, set[Watcher]] = defaultdict(set)
        self._events: defaultdict[tuple[JobId, str], list[Settled | Completion]] = defaultdict(list)
        """Confirmed and not told yet, by job and transaction."""
        self._running: dict[str, asyncio.Task[None]] = {}
        """Its own tasks, which end with it."""
        self._passing: set[asyncio.Task[None]] = set()
        self._parts = AsyncExitStack()
        self._registered = False
        self._registered_at = float("-inf")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Opens all parts, takes over what an earlier process left, and goes on settling it.

        Raises ConfigError, ChainError, EngineError or LedgerError for what keeps the node from serving.
        """
        async with AsyncExitStack() as parts:
            self.chain = await parts.enter_async_context(await chain_of(self.config))
            self.engine = await parts.enter_async_context(self._engine or engine_of(self.config))
            self.ledger = await parts.enter_async_context(_ledger(self.config))
            self.counter = parts.enter_context(Counter.claim(self.config.data_dir / COUNTER))
            await self._take_over()
            self.offer = offer_of(self.config, self.chain.deployment, self.engine.models)
            self.lookout = Lookout(self.chain, self.chain.deployment.depth)
            self.promises = Promises(self.config.data_dir / FILE, self.offer, self.config.quote_valid)
            self.desk = Desk(
                self.config, self.promises, self.engine, self.lookout, self.ledger, self.counter, self._poke
            )
            self.ledger.heartbeat.listen(self.desk.accounts.lapse)
            parts.push_async_callback(self._stop_tasks)
            self._start_settling()
            await self._say_what_works()
            self._parts = parts.pop_all()

    async def stop(self) -> None:
        """Ends what is being served, settles what is due within a bound, and closes all parts."""
        async with self._parts:
            await self.desk.stop(STOP_STREAMS)
            await self._settle_rest()
            left = await self._told_left()
        tell = log.warning if left else log.info
        tell("node.stopped", host=self.offer.host, **left)

    async def _take_over(self) -> None:
        """The ledger belongs to this chain; what killed processes had counted here is brought into it.

        The one whose file of slots is now this process's is known to be dead: nobody waits for its lease.
        """
        deployment = self.chain.deployment
        genesis = await self.chain.block(0)
        await self.ledger.bind(deployment.identity(genesis.hash))
        for void in await self.ledger.recover(self.counter.recovered()):
            self.counter.release(void)
        await self.ledger.recover(self.counter.left())
        await self.ledger.bury(self.counter.predecessor)
        self.counter.sign(self.ledger.process)

    # What it offers

    async def quote(self) -> dict[str, Any]:
        """What a job has to look like to be served here, signed. LedgerError if it cannot be promised."""
        quote = {
            **self.offer.terms(),
            "endpoint": self.url,
            "confirmations": self.chain.deployment.confirmations,
            "receipt_timeout": self.config.receipt_timeout,
            "grace": self.config.grace,
            "valid_until": await self.promises.extend(int(self.lookout.clock())),
            "paid": self._settlement is not None,
            "ready": not await self._obstacles(),
            "version": __version__,
        }
        return {**quote, "signature": self._sign(quote)}

    def _sign(self, quote: dict[str, Any]) -> str | None:
        """Only the host's own key speaks for it."""
        key = self.config.host_private_key
        if key is None:
            return None
        return "0x" + proof.sign(digest(quote), key.reveal()).hex()

    async def unready(self) -> list[str]:
        """Why paid jobs cannot be served now; nothing: they can."""
        if self.offer.host is None:
            return ["neither HOST_PRIVATE_KEY nor HOST_ADDRESS is set", *await self._obstacles()]
        if self._settlement is None:
            return ["HOST_PRIVATE_KEY is not set: this host will not be paid", *await self._obstacles()]
        return await self._obstacles()

    async def _obstacles(self) -> list[str]:
        """Why a request would be refused now, or no job can be opened, be the host paid or not."""
        reasons = []
        if self.desk.stopping:
            reasons.append("the node is shutting down")
        if self.ledger.failure is not None:
            reasons.append(f"the ledger cannot be written: {self.ledger.failure}")
        if self.counter.failure is not None:
            reasons.append(f"counts do not reach the disk: {self.counter.failure}")
        troubles = [engine.why for engine in self.engine.health()]
        if None not in troubles:
            reasons.append(f"no engine serves: {', '.join(filter(None, troubles))}")
        reasons += [f"{name} broke down" for name, task in self._running.items() if task.done()]
        await self.lookout.now()
        if self.offer.host is not None and not await self._is_registered(self.offer.host):
            reasons.append("not registered: no job can be opened with this host (`tally host register`)")
        if self.lookout.trouble is not None:
            reasons.append(f"the chain cannot be read: {self.lookout.trouble}")
        return reasons

    async def _is_registered(self, host: Address) -> bool:
        """As the registry said when it was last asked; that it does not answer is told as such."""
        now = asyncio.get_running_loop().time()
        if now - self._registered_at >= (REGISTERED_FRESH if self._registered else lookout.FRESH):
            with suppress(ChainError):
                self._registered = await self.chain.is_registered(host)
                self._registered_at = now
        return self._registered

    @contextmanager
    def watch(self, job_id: JobId, watcher: Watcher) -> Iterator[None]:
        """Tells `watcher` of each settlement and of the completion of a job, once confirmed."""
        self._watchers[job_id].add(watcher)
        try:
            yield
        finally:
            self._watchers[job_id].discard(watcher)
            if not self._watchers[job_id]:
                del self._watchers[job_id]

    # Settling

    def _start_settling(self) -> None:
        """Without a key nothing is settled: the payers get everything back."""
        if self.config.host_private_key is None:
            return
        key, pace = self.config.host_private_key.reveal(), Pace(ceiling=self.config.max_fee * GWEI)
        sender = self.sender = Sender(self.chain, self.ledger, key, pace=pace)
        allowance = Allowance(to_units(self.config.relay_budget, 18), self.config.relay_per_payer)
        parts = (self.chain, self.ledger, sender, self.lookout, self.promises)
        self.sponsor = Sponsor(*parts, allowance)
        thrift = thrift_of(self.config, self.chain.deployment)
        self._settlement = Settlement(
            self.ledger, self.chain, sender, drain=self.desk.accounts.drain, thrift=thrift
        )
        self._settlement.watch(self.lookout.forget)
        self._settlement.listen(self._settled)
        self._run("the sender", sender.run())
        self._run("settlement", self._settlement.run())

    def _poke(self) -> None:
        if self._settlement is not None:
            self._settlement.poke()

    def _settled(self, event: Settled | Completion) -> None:
        """Something was confirmed on the chain."""
        if self._watchers.get(event.job_id):
            key = (event.job_id, event.tx)
            if key not in self._events:
                self._pass_on(self._tell_watchers(*key))
            self._events[key].append(event)
        if isinstance(event, Completion):
            self.desk.accounts.forget(event.job_id)

    async def _tell_watchers(self, job_id: JobId, tx: str) -> None:
        """Tells in one what a transaction did: while the ledger is read, the rest of its events come in."""
        row = await self.ledger.job(job_id)
        payout = _payout(job_id, tx, row.confirmed if row else Totals(), self._events.pop((job_id, tx)))
        for watcher in list(self._watchers.get(job_id, ())):
            watcher(payout)

    async def _settle_rest(self) -> None:
        """What is due is due on the next start as well, so this is given a bound."""
        if self._settlement is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_SETTLING):
                await self._settlement.settle_all()

    async def _told_left(self) -> dict[str, Any]:
        """What is left to the next start, for the last line; nothing if nothing is."""
        if self._settlement is None:
            return {}
        try:
            left = await self._settlement.left(int(self.lookout.clock()))
        except LedgerError as error:
            return {"owed": f"unknown: {error}", "mend": GO_ON}
        if not left.jobs:
            return {}
        owed = [self.chain.deployment.amount(asset, units) for asset, units in left.owed.items() if units]
        told = ", ".join(owed) or "nothing: they are only to be closed"
        return {"jobs": left.jobs, "in_flight": left.in_flight, "owed": told, "mend": GO_ON}

    def _run(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(_tell_breakdown)
        self._running[name] = task

    def _pass_on(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="telling of a settlement")
        task.add_done_callback(_tell_breakdown)
        task.add_done_callback(self._passing.discard)
        self._passing.add(task)

    async def _stop_tasks(self) -> None:
        tasks = [*self._running.values(), *self._passing]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # What it says at start

    async def _say_what_works(self) -> None:
        deployment = self.chain.deployment
        log.info(
            "node.started",
            host=self.offer.host,
            chain=deployment.name,
            contract=deployment.marketplace,
            models=[model.name for model in self.offer.models],
            ledger=self.ledger.database,
            policy=policy_of(self.config, deployment).value,
        )
        if self.offer.host is None:
            log.error(
                "node.not_set_up",
                meaning="the node serves no paid job",
                mend="set HOST_PRIVATE_KEY (or HOST_ADDRESS) and restart",
            )
            return
        if self.config.host_private_key is None:
            log.warning(
                "node.unpaid",
                host=self.offer.host,
                meaning="this host will not be paid: without HOST_PRIVATE_KEY nothing is settled",
                mend="set it to this host's key and restart",
            )
        elif self.config.mismatched:
            log.error(
                "node.wrong_key",
                key=proof.address(self.config.host_private_key.reveal()),
                host_address=self.config.host_address,
                meaning="jobs that name HOST_ADDRESS are refused: only their host can submit checkpoints",
                mend="set HOST_ADDRESS to the key's address, or HOST_PRIVATE_KEY to the key of HOST_ADDRESS",
            )
        self._registered = await self.chain.is_registered(self.offer.host)
        if not self._registered:
            log.error(
                "node.not_registered",
                host=self.offer.host,
                registry=deployment.registry,
                meaning="no job can be opened with this host",
                mend="tally host register",
            )


async def chain_of(config: HostConfig) -> Chain:
    """The chain that the endpoint is on, with the contracts that this package knows there."""
    return Chain(config.rpc_url, as_deep(config, await deployment_at(config.rpc_url)))


def as_deep(config: HostConfig, deployment: Deployment) -> Deployment:
    """The deployment, with as many confirmations as the host wants."""
    wanted = config.confirmations
    return deployment if wanted is None else replace(deployment, confirmations=wanted)


def _ledger(config: HostConfig) -> Ledger:
    return Ledger(config.data_dir, config.ledger_url.reveal() if config.ledger_url else None)


def offer_of(config: HostConfig, deployment: Deployment, models: list[str]) -> Offer:
    """What a config comes to on one chain. ConfigError for assets and prices that make no sense there."""
    priced = config.assets or (AssetPrice(deployment.dollar),)
    prices = dict(_prices(config, deployment, entry) for entry in priced)
    return Offer(
        domain=proof.Domain(deployment.chain_id, deployment.marketplace),
        host=config.host,
        models=tuple(Model(name, prices) for name in models),
        assets=dict(deployment.assets),
        interval_max=config.interval_max,
        claim_window_min=config.claim_window_min,
        limits=Limits(
            _in_units(config.exposure_per_payer, "HOST_EXPOSURE_PER_PAYER", deployment),
            _in_units(config.exposure_max, "HOST_EXPOSURE_MAX", deployment),
        ),
        relay_fee=_relay_fee(config, deployment, prices) if config.host_private_key else 0,
    )


def _relay_fee(config: HostConfig, deployment: Deployment, prices: dict[Address, Prices]) -> int:
    """In base units of the deployment's dollar."""
    dollar = deployment.dollar
    try:
        relay_fee = to_units(config.relay_fee, deployment.assets[dollar].decimals)
    except ValueError as error:
        raise ConfigError(f"HOST_RELAY_FEE cannot be set: {error}") from error
    if relay_fee and dollar not in prices:
        symbol = deployment.assets[dollar].symbol
        raise ConfigError(f"HOST_RELAY_FEE is in {symbol}, which HOST_ASSETS leaves out")
    return relay_fee


def policy_of(config: HostConfig, deployment: Deployment) -> Policy:
    """The policy that is set; without one each interval is settled only where its gas costs no money."""
    return config.policy or (Policy.CHECKPOINT if deployment.is_devnet else Policy.ECONOMIC)


def thrift_of(config: HostConfig, deployment: Deployment) -> Thrift | None:
    """When the economic policy settles; None: each whole interval is settled. ConfigError as `offer_of`."""
    if policy_of(config, deployment) is Policy.CHECKPOINT:
        return None
    limits = _in_units(config.unsettled_max, "HOST_UNSETTLED_MAX", deployment)
    prices = _in_units(config.eth_price, "HOST_ETH_PRICE", deployment)
    rates = {asset: Fraction(WEI, price) for asset, price in prices.items() if price} | {ETH: Fraction(1)}
    return Thrift(limits, Fraction(config.gas_share, 100), rates)


def _in_units(amounts: Amounts, name: str, deployment: Deployment) -> dict[Address, int]:
    """By asset: the amount in base units."""
    for named in amounts.own:
        _known_asset(named, name, deployment)
    told = {address: (amounts.of(address), asset) for address, asset in deployment.assets.items()}
    try:
        return {address: to_units(text, asset.decimals) for address, (text, asset) in told.items() if text}
    except ValueError as error:
        raise ConfigError(f"{name} cannot be set: {error}") from error


def _prices(config: HostConfig, deployment: Deployment, entry: AssetPrice) -> tuple[Address, Prices]:
    asset = _known_asset(entry.asset, "HOST_ASSETS", deployment)
    try:
        return entry.asset, Prices(
            to_units(entry.price or config.price, asset.decimals),
            to_units(entry.prompt_price or config.prompt_price, asset.decimals),
        )
    except ValueError as error:
        raise ConfigError(f"a price in {asset.symbol} cannot be set: {error}") from error


def _known_asset(named: Address, name: str, deployment: Deployment) -> Asset:
    asset = deployment.assets.get(named)
    if asset is None:
        known = ", ".join(f"{address} ({each.symbol})" for address, each in deployment.assets.items())
        raise ConfigError(f"{name} names {named}; on {deployment.name} there are {known}")
    return asset


def _tell_breakdown(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("node.task_failed", task=task.get_name(), error=str(error), exc_info=error)


def _payout(job_id: JobId, tx: str, totals: Totals, events: list[Settled | Completion]) -> Payout:
    settled = [event for event in events if isinstance(event, Settled)]
    refunds = [event.refund for event in events if isinstance(event, Completion)]
    return Payout(
        job_id=job_id,
        totals=totals,
        host=sum(event.host_amount for event in settled),
        treasury=sum(event.fee for event in settled),
        tx=tx,
        refund=refunds[0] if refunds else None,
    )
