"""The jobs that requests are paid from: opened when needed, topped up within caps, completed when idle.

    async with Spender(purse, caps, ["https://host.example"]) as spender:
        chosen = await spender.choose("llama")
        async with spender.paying(chosen.candidate, cost=500) as session: ...

What may be spent is decided in `caps.py`, and staked in the store before money moves: a payer that is killed
finds its jobs again, and what they count for. Leaving completes all jobs, so that the rest comes back.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog

from tallystick import opening, proof, ranking
from tallystick.authorization import Consent, Opening
from tallystick.blame import USED_UP
from tallystick.caps import Caps, Stake
from tallystick.contracts import CompletionRequested
from tallystick.errors import ChainError, HostRefused, PriceRose, Refusal, SessionError, TallystickError
from tallystick.hosts import Hosts
from tallystick.in_use import InUse, Place, abandon, pause, quiet
from tallystick.listeners import Listeners
from tallystick.mends import complaint
from tallystick.opening import Quote, Wishes
from tallystick.ranking import Candidate, Chosen
from tallystick.record import Came
from tallystick.session import Event, Session, Signed, Stopped
from tallystick.stakes import Stakes
from tallystick.store import StoredJob
from tallystick.types import Address, Completion, Job, JobId, JobStatus
from tallystick.wallet import Wallet, money

T = TypeVar("T")

IDLE = 900.0
"""Seconds without a request until a job is completed."""
LOOK = 5.0
"""Seconds between two looks for jobs that are idle."""
TIDY_EVERY = 600.0
"""Seconds between two tries to end jobs that nobody uses any more."""
COMPLETE = 60.0
"""Seconds that a host has to complete a job in, and the chain to take what was paid in when this is left."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A job was opened, with this deposit in base units."""

    deposit: int


@dataclass(frozen=True, slots=True)
class ToppedUp:
    """So many base units were added to a job."""

    units: int


@dataclass(frozen=True, slots=True)
class HostChosen:
    """A model's requests go to this host from now on."""

    host: Address
    url: str
    model: str
    why: str


@dataclass(frozen=True, slots=True)
class SetAside:
    """Others are asked before this host, for so many seconds."""

    host: Address
    url: str
    trouble: str
    """`failed`, `late` or `overcounted`."""
    cause: str
    seconds: float


OfJob = Event | Opened | ToppedUp | Completion
OfHost = HostChosen | SetAside
Hear = Callable[[Job | None, OfJob | OfHost], None]
"""Told what happens: to a job, or to none but of a host."""


log = structlog.get_logger(__name__)


class Spender:
    """One payer's spending. One job a model and host, which all requests for it share."""

    def __init__(
        self,
        wallet: Wallet,
        caps: Caps,
        urls: Sequence[str] = (),
        *,
        asset: Address | None = None,
        idle: float = IDLE,
        hear: Hear | None = None,
    ) -> None:
        """`urls`: of the hosts that may be paid; none: whoever is registered.

        `asset`: what is paid in, which the caps are in too; by default the wallet's.
        """
        self.wallet = wallet
        self.caps = caps
        self.hosts = Hosts(wallet, urls)
        self.asset = asset or wallet.asset()
        self.stakes = Stakes(wallet, caps, self.asset, self._owed)
        self._idle = idle
        self._listeners: Listeners[[Job | None, OfJob | OfHost]] = Listeners()
        if hear is not None:
            self._listeners.add(hear)
        self._in_use: dict[Place, InUse] = {}
        self._turns: defaultdict[Place, asyncio.Lock] = defaultdict(asyncio.Lock)
        """One request at a time sees to the job of its place."""
        self._told: dict[str, str] = {}
        """The URL that was told last as chosen, by model."""
        self._retired: set[Address] = set()
        """Signers of jobs that take no more requests."""
        self._leaving: set[InUse] = set()
        """Jobs that are being completed, once nothing is under way on them."""
        self._paying_in: dict[Place, asyncio.Task[Any]] = {}
        """What moves money into a job of that place, and is seen through whoever asked for it."""
        self._left = False
        """No money moves into jobs any more."""
        self._looking: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._looking = asyncio.create_task(self._look_after())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._looking is not None
        self._left = True
        self._looking.cancel()
        await asyncio.wait([self._looking])
        await self._paid_in()
        await asyncio.gather(*map(abandon, [*self.jobs, *self._leaving]))
        await asyncio.gather(*(self._complete(place) for place in list(self._in_use)))
        while self._ending:
            await asyncio.gather(*self._ending)
        self._tell_awaited()

    async def _paid_in(self) -> None:
        """Waits for what moves money, within limits: what it opens is in use then, and completed."""
        under_way = list(self._paying_in.values())
        if under_way:
            _, late = await asyncio.wait(under_way, timeout=COMPLETE)
            for task in late:
                task.cancel()
            await asyncio.wait(under_way)

    def _tell_awaited(self) -> None:
        """Says what may still put a deposit in escrow when nobody is here any more."""
        mend = "tally job list, which finds the job once it is there, then tally job complete JOB"
        for stored in self.stakes.pending():
            if stored.is_signed and not self.wallet.store.is_claimed(stored.signer):
                log.warning("opening.awaited", told=opening.awaited(stored), mend=mend)

    def on(self, hear: Hear) -> None:
        """Calls `hear` with what happens, in the order it comes. What it raises is logged."""
        self._listeners.add(hear)

    def _tell(self, job: Job | None, event: OfJob | OfHost) -> None:
        self._listeners.tell(job, event)

    @property
    def jobs(self) -> list[InUse]:
        """The jobs in use."""
        return list(self._in_use.values())

    def _owed(self, signer: Address) -> int:
        """What the job in use of a signer has cost, by this process's count."""
        return max((used.session.owed for used in self.jobs if used.session.job.signer == signer), default=0)

    # Choosing a host

    async def choose(self, model: str | None, passed: Collection[str] = ()) -> Chosen | None:
        """The host for a request, and why it; its job's prices, or those of its quote.

        `model`: None for the first that the host names. `passed`: URLs that are not asked again; None if
        nobody is left then. Raises what `Hosts.choose` raises.
        """
        engaged = [self._engaged(used) for used in self.jobs if model in (None, used.session.model)]
        chosen = await self.hosts.choose(model, self.asset, self.caps, engaged, passed)
        if chosen is not None:
            self._tell_chosen(chosen)
        return chosen

    async def is_other(self, candidate: Candidate, passed: Collection[str]) -> bool:
        """There is another host for the model, and none of `passed`, that is not set aside."""
        model, others = candidate.model, {*passed, candidate.url}
        engaged = [self._engaged(used) for used in self.jobs if used.session.model == model]
        chosen = await self.hosts.choose(model, self.asset, self.caps, engaged, others)
        return chosen is not None and not self.hosts.is_aside(chosen.candidate.host)

    def held_at(self, urls: Collection[str]) -> list[JobId]:
        """Jobs at these hosts that are not over."""
        kept = self.wallet.store.jobs(*self.stakes.place)
        return [stored.job_id for stored in kept if stored.host_url in urls and stored.job_id is not None]

    def _engaged(self, used: InUse) -> Candidate:
        job, record = used.session.job, self.hosts.record(used.session.job.host)
        return Candidate(job.host, *used.place, job.prices, record, engaged=True)

    def _tell_chosen(self, chosen: Chosen) -> None:
        to = chosen.candidate
        if self._told.get(to.model) == to.url:
            return
        self._told[to.model] = to.url
        log.info("host.chosen", host=to.host, url=to.url, model=to.model, why=chosen.why)
        self._tell(None, HostChosen(to.host, to.url, to.model, chosen.why))

    async def note(self, candidate: Candidate, came: Came) -> None:
        """Writes down what came of one request. After a trouble others are asked before that host, and its
        jobs are completed if there are others.
        """
        if not await self.hosts.is_paid(candidate.url):
            return  # nobody proves to be that host, so nothing of it is known
        seconds = await self.hosts.note(candidate.host, came)
        if came.trouble is None or seconds is None:
            return
        told = SetAside(candidate.host, candidate.url, came.trouble.value, came.cause, seconds)
        log.warning("host.set_aside", **asdict(told))
        self._tell(None, told)
        self.see_to(self._leave(candidate.url))

    async def _leave(self, url: str) -> None:
        """Ends the jobs at a host for whose models others are asked now."""
        try:
            for used in [used for used in self.jobs if used.place.url == url]:
                chosen = await self.choose(used.place.model)
                if chosen is not None and chosen.candidate.url != url:
                    await self.retire(used.session)
        except TallystickError as error:
            log.warning("host.not_left", url=url, cause=str(error))

    # Paying for requests

    @asynccontextmanager
    async def paying(self, candidate: Candidate, cost: int) -> AsyncIterator[Session]:
        """A connected session on a job that can pay `cost` base units, kept free for as long as this lasts.

        Refusal `cap_reached`; PriceRose; SessionError if the host does not answer, or does not stand by its
        quote; ChainError if the chain does not answer.
        """
        used = await self._reserve(candidate, cost)
        try:
            yield used.session
        finally:
            used.reserved -= cost
            used.requests -= 1
            used.idle_since = asyncio.get_running_loop().time()
            used.released.set()

    async def retire(self, session: Session) -> None:
        """The host takes no more requests on this job: the next one has another."""
        used = self._in_use.get(Place(session.host_url, session.model))
        if used is not None and used.session is session:
            self._take_out(used)
            self.see_to(self._end(used))

    def _take_out(self, used: InUse) -> None:
        """It takes no more requests."""
        if used is self._in_use.get(used.place):
            del self._in_use[used.place]
        self._retired.add(used.session.job.signer)
        used.retired = True
        used.released.set()

    async def _reserve(self, candidate: Candidate, cost: int) -> InUse:
        place = Place(candidate.url, candidate.model)
        while True:
            self._check_not_left()
            used = self._in_use.get(place)
            if used is None or not used.session.connected or used.purse.free < cost:
                async with self._turn(place):
                    used = await self._seen_to(candidate, place, cost)
            if used is not None and not used.retired and used.purse.free >= cost:
                used.reserved += cost
                used.requests += 1
                return used
            if used is not None:
                await used.released.wait()

    def _check_not_left(self) -> None:
        """Refusal `proxy_stopping`."""
        if self._left:
            raise Refusal("proxy_stopping", "What pays for requests was left: its jobs are completed.")

    @asynccontextmanager
    async def _turn(self, place: Place) -> AsyncIterator[None]:
        """Sees to the job of a place, alone: also after somebody who left while money was on its way."""
        async with self._turns[place]:
            if (task := self._paying_in.get(place)) is not None:
                await asyncio.wait([task])
            yield

    async def _carried_out(self, place: Place, pay_in: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What moves money into a job, seen through to its end even if whoever asks for it is cancelled.

        In the place's turn. Refusal `proxy_stopping`; raises what `pay_in` raises.
        """
        self._check_not_left()
        task = asyncio.create_task(pay_in())
        self._paying_in[place] = task
        task.add_done_callback(lambda _: self._paying_in.pop(place))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_tell_failure)
            raise

    async def _seen_to(self, candidate: Candidate, place: Place, cost: int) -> InUse | None:
        """The place's job, connected and with enough in it; what is under way may have to end first."""
        used = await self._connected(candidate, place, cost)
        try:
            await self._fund(used, cost)
        except Refusal:
            if used.requests == 0:
                raise
            used.released.clear()
        return used

    async def _connected(self, candidate: Candidate, place: Place, cost: int) -> InUse:
        """The place's job, connected. One that its host takes no more requests on is followed by another."""
        used = self._in_use.get(place)
        if used is not None:
            try:
                await used.connect()
            except HostRefused as refusal:
                if refusal.problem.code not in USED_UP:
                    raise
                await self._give_up(used)
            else:
                return used
        go_on = partial(self._go_on, candidate)
        used = await self._carried_out(place, go_on) or await self._open_with_room(candidate, cost)
        await used.connect()
        return used

    async def _give_up(self, used: InUse) -> None:
        """Ends a job that its host takes no more requests on, unless it has vanished."""
        if await self._has_vanished(used.session.job):
            self._take_out(used)
            await used.session.close()
        else:
            await self.retire(used.session)

    async def _fund(self, used: InUse, cost: int) -> None:
        """Tops a job up, if it has not enough. Refusal `cap_reached`."""
        if used.purse.free >= cost:
            return
        add = partial(self._add, used, lambda room: self.caps.top_up(used.purse, cost, room))
        await self._carried_out(used.place, add)

    async def _add(self, used: InUse, decide: Callable[[int], int]) -> None:
        """Adds to a job what is decided, given what the day leaves."""
        async with self.stakes.turn:
            await self._add_within(used, decide)

    async def _add_within(self, used: InUse, decide: Callable[[int], int]) -> None:
        await self._hold(used)
        signer = used.session.job.signer

        async def most(stake: Stake, room: int) -> int:
            more = decide(room + await self._undone(used, stake))
            return used.session.job.deposit + more

        more = await self.stakes.change(signer, most) - used.session.job.deposit
        if not more:
            return
        job = used.session.job
        await self.wallet.top_up(job, more)
        await used.session.refresh()
        log.info("job.topped_up", job=job.id, by=self._money_told(more))
        self._tell(used.session.job, ToppedUp(more))

    async def _undone(self, used: InUse, stake: Stake) -> int:
        """What a job is staked with beyond its deposit, for a top-up that failed and cannot come any more."""
        job = used.session.job
        stored = self.wallet.stored(job.id)
        if (
            stake.most <= job.deposit
            or stored is None
            or not await opening.is_over(self.wallet.chain, stored)
        ):
            return 0
        await used.session.refresh()
        return max(0, stake.most - used.session.job.deposit)

    async def _go_on(self, candidate: Candidate) -> InUse | None:
        """A job of the store that can pay for this, within what the day leaves."""
        async with self.stakes.turn:
            for stored, job in reversed(await self.wallet.jobs()):
                if (
                    job is not None
                    and (stored.host_url, stored.model) == (candidate.url, candidate.model)
                    and ranking.within(job.prices, candidate.prices)
                    and await self._fits(stored, job)
                    and await self.stakes.adopt(stored, job)
                ):
                    return await self._resume(job)
        return None

    async def _fits(self, stored: StoredJob, job: Job) -> bool:
        """A job that may be gone on with."""
        return (
            stored.signer not in self._retired
            and job.asset == self.asset
            and self.caps.allows(stored.model, job.prices)
            and not self.wallet.store.is_claimed(stored.signer)
            and await self.wallet.is_usable(job)
        )

    async def _open_with_room(self, candidate: Candidate, cost: int) -> InUse:
        """A new job; if the caps leave too little, once what comes back of ending jobs has made room, and
        what was signed for one before has come or cannot come any more.
        """
        try:
            return await self._open(candidate, cost)
        except Refusal as refusal:
            if refusal.code != "cap_reached" or not (self._ending or self.stakes.pending()):
                raise
        if self._ending:
            await asyncio.wait(set(self._ending), timeout=COMPLETE)
        go_on = partial(self._go_on_after_all, candidate)
        used, trouble = await self._carried_out(Place(candidate.url, candidate.model), go_on)
        return used or await self._open_after_all(candidate, cost, trouble)

    async def _go_on_after_all(self, candidate: Candidate) -> tuple[InUse | None, ChainError | None]:
        """A job whose opening came late: what was signed is sent again, what is not awaited is freed.

        With why it could not be sent.
        """
        trouble = None
        try:
            await opening.send_again(self.wallet.chain, self.wallet.store)
        except ChainError as error:
            trouble = error
            log.warning("opening.not_sent", cause=str(error))
        return await self._go_on(candidate), trouble

    async def _open_after_all(self, candidate: Candidate, cost: int, trouble: ChainError | None) -> InUse:
        """A new job; what is awaited of others is named where the caps leave too little.

        Refusal `rpc_unavailable` if they would not, but for what cannot be sent.
        """
        try:
            return await self._open(candidate, cost)
        except Refusal as refusal:
            pending = self.stakes.pending()
            if refusal.code != "cap_reached" or not pending:
                raise
            code, told = refusal.code, f"{refusal.detail} Meanwhile {self._awaited(pending)}."
            if trouble is not None and await self.stakes.fits_beside(cost, {each.signer for each in pending}):
                code, told = "rpc_unavailable", f"{told} It cannot be sent: {complaint(trouble)}"
            raise Refusal(code, told, **refusal.extra) from refusal

    def _awaited(self, pending: Iterable[StoredJob]) -> str:
        is_claimed = self.wallet.store.is_claimed
        return "; ".join(opening.awaited(each, claimed=is_claimed(each.signer)) for each in pending)

    async def _open(self, candidate: Candidate, cost: int, deposit: int | None = None) -> InUse:
        """A new job, with all that the caps leave unless `deposit` is named.

        Refusal `cap_reached`, `payment_failed` without ETH for gas; PriceRose; raises what `opening.open_job`
        raises.
        """
        url, model = candidate.url, candidate.model
        quote = await self._as_chosen(candidate)
        key = self.wallet.key()
        if not quote.relay_fee:
            await self._check_gas(proof.address(key))
        wishes = replace(
            self.wallet.wishes(None, model),
            asset=self.asset,
            max_price=self.caps.max_price(model),
            found=not self.hosts.urls,
        )
        open_new = partial(self._open_new, wishes, url, quote, cost, deposit)
        return await self._carried_out(Place(url, model), open_new)

    async def _open_new(
        self, wishes: Wishes, url: str, quote: Quote, cost: int, deposit: int | None
    ) -> InUse:
        """A new job within the caps, in use."""
        async with self.stakes.turn:
            stored, job = await self._opened(wishes, url, quote, cost, deposit)
        units = self._money_told(job.deposit)
        log.info("job.opened", job=job.id, host=url, model=stored.model, deposit=units)
        ahead, scale = self.wallet.config.ahead, self.wallet.recounts.of(job.host, stored.model)
        used = self._using(
            Session(self.wallet.chain, self.wallet.store, stored, job, ahead=ahead, scale=scale)
        )
        self._tell(job, Opened(job.deposit))
        return used

    async def _opened(
        self, wishes: Wishes, url: str, quote: Quote, cost: int, deposit: int | None
    ) -> tuple[StoredJob, Job]:
        """A job on the chain. Drafted anew if others stake meanwhile: they may have taken the room."""
        chain, store, key = self.wallet.chain, self.wallet.store, self.wallet.key()
        while True:
            day, stakes = await self.stakes.staked()
            most = self.caps.first_deposit(cost, self.stakes.left_of(stakes, day))
            wishes = replace(wishes, deposit=most if deposit is None else deposit)
            draft = await opening.drafted(chain, proof.address(key), url, wishes, quote)
            staking = opening.Staking(draft.stake(day), stakes)
            opened = await opening.carry_out(chain, store, key, draft, staking, show=self._tell_authorized)
            if opened is not None:
                return opened

    async def _as_chosen(self, candidate: Candidate) -> Quote:
        """The host's quote as of now: terms are made of one that is good for half its time still.

        PriceRose if it asks more than when it was chosen; SessionError if it does not stand by what it said.
        """
        quote = await self.hosts.renew(candidate.url)
        prices = quote.prices(candidate.model, self.asset)
        if not ranking.within(prices, candidate.prices):
            before, now = (
                f"{self._money_told(each.per_million)} and {self._money_told(each.prompt_per_million)}"
                for each in (candidate.prices, prices)
            )
            log.warning("host.price_rose", url=candidate.url, model=candidate.model, before=before, now=now)
            raise PriceRose(
                f"{candidate.url} asks {now} a million tokens and prompt tokens now, not {before}"
            )
        if not quote.paid:
            log.warning("host.not_paid", host=quote.host, cause=f"it {opening.UNPAID}")
        return quote

    def _tell_authorized(self, agreed: Consent[Opening]) -> None:
        """The host sends the opening, for its fee: the payer has too little ETH for gas."""
        fee, digest = self._money_told(agreed.purpose.relay_fee), f"0x{agreed.digest.hex()}"
        log.info("job.authorized", host=agreed.purpose.terms.host, relay_fee=fee, digest=digest)

    async def _check_gas(self, payer: Address) -> None:
        try:
            await self.wallet.check_gas(payer)
        except SessionError as error:
            raise Refusal("payment_failed", str(error)) from error

    async def _resume(self, job: Job) -> InUse:
        session = await self.wallet.resume(job.id)
        log.info("job.resumed", job=job.id, left=self._money_told(self.wallet.left(job)))
        return self._using(session)

    def _using(self, session: Session) -> InUse:
        used = InUse(session, asyncio.get_running_loop().time())
        session.on(lambda event: self._heard(used, event))
        self._in_use[used.place] = used
        return used

    def _heard(self, used: InUse, event: Event) -> None:
        self._tell(used.session.job, event)
        if isinstance(event, Signed):
            used.stops = 0
        if isinstance(event, Stopped):
            used.stops += 1
            if used.requests:
                self.see_to(self._reconnect(used, pause(used.stops, event.retry_after)))

    async def _reconnect(self, used: InUse, seconds: float) -> None:
        """What is under way over HTTP needs its receipts sent."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await quiet(used)
        try:
            await used.connect()
        except TallystickError as error:
            log.warning("job.not_connected", job=used.session.job.id, cause=str(error))

    # By hand

    async def open(self, model: str, deposit: int) -> Job:
        """Opens a job of `deposit` base units, which the model's requests are then paid from.

        Refusal `job_in_use` if there is one already, `cap_reached`; raises what `choose` and
        `opening.open_job` raise.
        """
        chosen = await self.choose(model)
        assert chosen is not None
        place = Place(chosen.candidate.url, model)
        async with self._turn(place):
            go_on = partial(self._go_on, chosen.candidate)
            used = self._in_use.get(place) or await self._carried_out(place, go_on)
            if used is not None:
                raise Refusal("job_in_use", f"Job {used.session.job.id} pays for {model!r}.")
            return (await self._open(chosen.candidate, deposit, deposit)).session.job

    async def top_up(self, job_id: JobId, units: int) -> Job:
        """Adds `units` base units to a job. Refusal `cap_reached`, or `asset_not_accepted`."""
        async with self._at_hand(job_id) as used:

            def decide(room: int) -> int:
                self.caps.check_top_up(used.purse, units, room)
                return units

            await self._carried_out(used.place, partial(self._add, used, decide))
            used.released.set()
            return used.session.job

    async def complete(self, job_id: JobId) -> Completion:
        """Has the host complete a job, once nothing is under way on it.

        Raises what `Session.complete` raises; the job takes no more requests then either.
        """
        async with self._at_hand(job_id) as used:
            self._take_out(used)
            return await self._finish(used)

    async def ask_on_chain(self, job_id: JobId) -> int:
        """Asks to complete a job past its host: from when on it can be reclaimed, of the chain's clock."""
        async with self._at_hand(job_id) as used:
            self._take_out(used)
            await quiet(used)
            result = await self.wallet.transact(self.wallet.chain.complete_session(job_id))
        return next(event for event in result.events if isinstance(event, CompletionRequested)).closes_at

    async def reclaim(self, job_id: JobId) -> Completion:
        """Takes the rest of a job back. Raises what `Wallet.reclaim` raises."""
        async with self._at_hand(job_id) as used:
            completion = await self.wallet.reclaim(used.session.job)
            self._take_out(used)
        await self._completed(used.session.job, completion)
        return completion

    @asynccontextmanager
    async def _at_hand(self, job_id: JobId) -> AsyncIterator[InUse]:
        """A job in use, or else one of the store, and nobody else sees to it meanwhile.

        Refusal `job_closed`, or `job_unknown` for none of this store.
        """
        stored = self.wallet.stored(job_id)
        if stored is None:
            raise Refusal("job_unknown", f"Job {job_id} is not in the store of this payer.")
        async with self._turn(Place(stored.host_url, stored.model)):
            used = next((used for used in self.jobs if used.session.job.id == job_id), None)
            used = used or InUse(await self.wallet.resume(job_id), 0.0)
            if used.session.job.status is JobStatus.CLOSED:
                raise Refusal("job_closed")
            try:
                yield used
            finally:
                if used is not self._in_use.get(used.place):
                    await used.session.close()

    async def _hold(self, used: InUse) -> None:
        """Has a job staked that may not be yet: its deposit counts from now on."""
        job, stored = used.session.job, self.wallet.stored(used.session.job.id)
        if job.asset != self.asset:
            raise Refusal("asset_not_accepted", f"Job {job.id} is paid in {job.asset}; the caps are not.")
        if stored is None or not await self.stakes.adopt(stored, job):
            raise Refusal("cap_reached", f"What is in job {job.id} is more than --max-per-day leaves.")

    # Ending jobs

    async def _look_after(self) -> None:
        """Completes what is idle, and now and then what an earlier run has left."""
        loop = asyncio.get_running_loop()
        tidied = float("-inf")
        while True:
            for place, used in list(self._in_use.items()):
                if not used.requests and loop.time() - used.idle_since > self._idle:
                    self.see_to(self._complete(place))
            if loop.time() - tidied > TIDY_EVERY:
                tidied = loop.time()
                await self._tidy()
            await asyncio.sleep(min(LOOK, self._idle))

    async def _complete(self, place: Place) -> None:
        async with self._turn(place):
            used = self._in_use.get(place)
            if used is not None and used.is_quiet:
                self._take_out(used)
                await self._end(used)

    async def _end(self, used: InUse) -> None:
        """Completes a job; if it stays open, that is tried again later."""
        try:
            await self._finish(used)
        except TallystickError as error:
            job = used.session.job
            if await self._has_vanished(job):
                return
            mend = (
                f"tally job complete {job.id} --on-chain, "
                f"and tally job reclaim {job.id} once the host's time to claim is over"
            )
            log.warning("job.not_completed", job=job.id, cause=str(error), mend=mend)

    async def _has_vanished(self, job: Job) -> bool:
        """The chain has taken the opening back. Should it come once more, it is found by its signer."""
        try:
            there = await self.wallet.chain.job(job.id)
            if there is not None and there.signer == job.signer:
                return False
            # What was signed is still the host's if the opening comes once more: it counts, the rest is free.
            async with self.stakes.turn:
                await self.stakes.limit(job, self.stakes.cost(job))
        except ChainError:
            return False
        await asyncio.to_thread(self.wallet.store.vanished, job.signer)
        told = "the chain has no such job now: a reorganisation took its opening back, or RPC_URL lags"
        log.warning("job.vanished", job=job.id, meaning=told)
        return True

    async def _finish(self, used: InUse) -> Completion:
        """Completes a job once nothing is under way on it. Raises what `Session.complete` raises."""
        session = used.session
        self._leaving.add(used)
        try:
            await quiet(used)
            if not await self.hosts.is_paid(session.host_url):
                raise SessionError(f"the host of job {session.job.id} {opening.UNPAID}")
            await used.connect()
            completion = await session.complete(seconds=COMPLETE)
        finally:
            self._leaving.discard(used)
            await session.close()
        await self._completed(session.job, completion)
        return completion

    async def _completed(self, job: Job, completion: Completion) -> None:
        async with self.stakes.turn:
            await self.stakes.limit(job, completion.owed)
        chain = self.wallet.chain
        paid, refund = (money(chain, job.asset, units) for units in (completion.owed, completion.refund))
        log.info("job.completed", job=job.id, paid=paid, refund=refund, tx=completion.tx)
        self._tell(job, completion)

    async def _tidy(self) -> None:
        """Sees to the staked jobs that an earlier run has left, or that could not be completed."""
        try:
            await opening.find_openings(self.wallet.chain, self.wallet.store)
            _, stakes = await self.stakes.staked()
            staked = {stake.signer for stake in stakes}
            for stored, job in await self.wallet.jobs():
                if job is not None and stored.signer in staked:
                    async with self._turn(Place(stored.host_url, stored.model)):
                        await self._tidied(stored, job)
        except TallystickError as error:
            log.warning("jobs.not_tidied", cause=str(error))

    async def _tidied(self, stored: StoredJob, job: Job) -> None:
        """Takes a job into use again that can be, so that it is completed when it is idle; ends others."""
        in_use = any(used.session.job.signer == stored.signer for used in self._in_use.values())
        if in_use or self.wallet.store.is_claimed(stored.signer):
            return
        now = (await self.wallet.chain.block()).timestamp
        if job.status is JobStatus.CLOSED:
            await asyncio.to_thread(self.wallet.store.end, stored.signer)
        elif now >= job.closes_at:
            await self._completed(job, await self.wallet.reclaim(job))
        elif self._is_free(stored, job) and await self._fits(stored, job):
            await self._resume(job)
        else:
            await self._end(InUse(await self.wallet.resume(job.id), 0))

    def _is_free(self, stored: StoredJob, job: Job) -> bool:
        """Its host may be asked, is not set aside, and has no other job in use for the model."""
        urls, place = self.hosts.urls, Place(stored.host_url, stored.model)
        may_be_asked = not urls or place.url in urls
        return may_be_asked and place not in self._in_use and not self.hosts.is_aside(job.host)

    def see_to(self, work: Coroutine[Any, Any, None]) -> None:
        """Has something done beside; leaving waits for it."""
        task = asyncio.create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _money_told(self, units: int) -> str:
        return money(self.wallet.chain, self.asset, units)


def _tell_failure(paying_in: asyncio.Task[Any]) -> None:
    """Nobody else hears it: whoever asked is gone."""
    if not paying_in.cancelled() and (error := paying_in.exception()) is not None:
        log.warning("payment.failed", cause=str(error) or repr(error))
