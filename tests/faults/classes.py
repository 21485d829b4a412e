"""The 24 classes of faults: what each does in a storm, and what shows that it has happened.

What a class is counted by are names in the storm's `fired`: endpoints and pool count what befell the program
there, and a class that acts on the chain counts itself once it has really met a transaction of the host's.
"""

from __future__ import annotations

import asyncio
import random
import signal
from abc import ABC, abstractmethod
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from aiohttp import web

from tallystick.chain import Chain
from tallystick.errors import RpcError
from tallystick.fees import GWEI
from tallystick.testing.faults import (
    Break,
    Cut,
    Frozen,
    Garbage,
    Hang,
    Lag,
    LateReceipt,
    Malformed,
    Onward,
    OtherChain,
    Rule,
    Severed,
    Status,
    Truncated,
    Twice,
    View,
    chance,
    nth,
)
from tallystick.testing.geth import Answer, Request
from tallystick.testing.pool import Limits, Pooled
from tests.faults.driver import Failed
from tests.faults.ground import CEILING, HOUR

if TYPE_CHECKING:
    from tests.faults.storm import Storm

SEND = "eth_sendRawTransaction"
DAY = 24 * HOUR
OTHERS = 0.05
"""Seconds in which other endpoints answer what one of them does not."""


class Fault:
    """One class in one storm. All that it does comes from the seed."""

    name: ClassVar[str]
    counted_by: ClassVar[tuple[str, ...]]
    """How the names begin that `fired` has for it."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(f"{self.name} {seed}")
        self.at = self.rng.randrange(3)
        """The tick at which it begins, if it does not at once."""
        self.until = self.at + self.rng.randrange(1, 4)

    def shares_ledger(self, storm: Storm) -> bool:
        """It needs a ledger that several processes may have open."""
        return False

    async def begin(self, storm: Storm) -> None:
        """Before the first tick."""

    async def tick(self, storm: Storm, tick: int) -> None:
        """Before the first turn of a tick."""

    async def between(self, storm: Storm, tick: int) -> None:
        """Between its two turns: what was sent in the first one is not in a block yet."""

    async def end(self, storm: Storm) -> None:
        """Quiet."""


class Switched(Fault, ABC):
    """Something that endpoints do from one tick to another."""

    _rules: list[Rule]

    async def begin(self, storm: Storm) -> None:
        self._rules = self.rules(storm)
        self._switch(on=self.at == 0)

    async def tick(self, storm: Storm, tick: int) -> None:
        self._switch(on=self.at <= tick < self.until)

    @abstractmethod
    def rules(self, storm: Storm) -> list[Rule]:
        """What its endpoints do while it is on."""

    def _switch(self, *, on: bool) -> None:
        for rule in self._rules:
            rule.on = on


# Endpoints


class Down(Fault):
    """Nobody listens."""

    name = "endpoint down"
    counted_by = ("down",)

    async def begin(self, storm: Storm) -> None:
        self._stack = AsyncExitStack()

    async def tick(self, storm: Storm, tick: int) -> None:
        if tick == self.at:
            for rpc in storm.rpcs[: self.rng.randrange(1, len(storm.rpcs) + 1)]:
                await self._stack.enter_async_context(rpc.down())
        if tick == self.until:
            await self._stack.aclose()

    async def end(self, storm: Storm) -> None:
        await self._stack.aclose()


@dataclass(frozen=True, slots=True)
class Unanswered(Hang):
    """Silence, which lasts until the client gives up; the storm has it do so at once."""

    storm: Storm

    @property
    def name(self) -> str:
        return f"hang {'after' if self.after else 'before'}"

    async def respond(self, http: web.Request, answer: bytes) -> web.StreamResponse:
        asyncio.get_running_loop().call_later(OTHERS, self.storm.lapse)
        return await Hang.respond(self, http, answer)


class SilentBefore(Fault):
    """The transaction does not arrive, and nobody says so."""

    name = "time-out before the node had it"
    counted_by = ("hang before", "cut before")

    async def begin(self, storm: Storm) -> None:
        for rpc in storm.rpcs:
            fault: Break = Unanswered(storm) if self.rng.random() < 0.6 else Cut()
            rpc.fail(fault, SEND, when=nth(1, self.rng.randrange(2, 4)))


class SilentAfter(Fault):
    """The transaction arrives, and nobody says so."""

    name = "time-out after the node had it"
    counted_by = ("hang after", "cut after")

    async def begin(self, storm: Storm) -> None:
        for rpc in storm.rpcs:
            silent = self.rng.random() < 0.6
            fault: Break = Unanswered(storm, after=True) if silent else Cut(after=True)
            rpc.fail(fault, SEND, when=nth(1, self.rng.randrange(2, 4)))


class Spoilt(Fault):
    """Gateways that fail, refuse and mangle, for any call."""

    name = "HTTP 429 and 5xx, garbage, truncated JSON"
    counted_by = ("HTTP", "garbage", "truncated", "malformed", "severed")

    async def begin(self, storm: Storm) -> None:
        breaks: list[Break] = [Garbage(), Garbage(after=True), Truncated(), Malformed(), Severed()]
        breaks += [Status(code, after=after) for code in (429, 500, 502, 503) for after in (False, True)]
        for rpc in storm.rpcs:
            for fault in self.rng.sample(breaks, 4):
                rpc.fail(fault, when=chance(0.05, (self.rng.random(), fault.name)))
            rpc.fail(self.rng.choice(breaks), SEND, when=nth(self.rng.randrange(1, 3)))


class Known(Fault):
    """A gateway that asks twice, and passes the second answer on."""

    name = "already known"
    counted_by = ("already known",)

    async def begin(self, storm: Storm) -> None:
        for rpc in storm.rpcs:
            rpc.fail(Twice(), SEND, when=chance(0.7, self.rng.random()))


class LaggingReplica(Switched):
    """Receipts, counts and heads of some blocks ago, or of the time at which a replica stood still."""

    name = "receipt from a lagging replica"
    counted_by = ("lag", "frozen")

    def rules(self, storm: Storm) -> list[Rule]:
        rpc = self.rng.choice(storm.rpcs)
        return [rpc.fail(Frozen() if self.rng.random() < 0.3 else Lag(self.rng.randrange(1, 9)))]


class Withheld(Fault):
    """Null for a while, then the receipt."""

    name = "receipt null, then present"
    counted_by = ("late receipt",)

    async def begin(self, storm: Storm) -> None:
        for rpc in storm.rpcs:
            rpc.fail(LateReceipt(self.rng.randrange(1, 7)))


class Counted(View):
    """A count of mined transactions that is another replica's: from before, or with the pool counted in."""

    name = "count disagrees"
    concerns = frozenset({"eth_getTransactionCount"})

    def __init__(self, behind: int) -> None:
        self._behind = behind
        """Blocks; 0: the pending ones are counted in."""

    async def ask(self, request: Request, onward: Onward) -> Answer | None:
        sender, block = request.params
        true = await onward(request)
        at = "pending"
        if self._behind:
            head = await onward(Request("eth_blockNumber"))
            at = hex(max(0, int(head["result"], 16) - self._behind))
        other = await onward(Request(request.method, [sender, at if block == "latest" else "latest"]))
        return None if other == true else other


class Disagreeing(Fault):
    """`pending` and `latest` of two replicas."""

    name = "transaction counts disagree"
    counted_by = ("count disagrees",)

    async def begin(self, storm: Storm) -> None:
        for rpc in storm.rpcs:
            behind = self.rng.choice((0, 1, 1, 2, 5))
            rpc.fail(Counted(behind), when=chance(0.6, self.rng.random()))

    async def tick(self, storm: Storm, tick: int) -> None:
        # What is pending is looked at more than once.
        storm.hold(self, on=tick < self.at)


class Elsewhere(Fault):
    """The endpoint, or the node behind all of them, says that it is on another chain."""

    name = "chain id changes"
    counted_by = ("wrong chain id", "invalid sender")

    async def begin(self, storm: Storm) -> None:
        self._whole = self.rng.random() < 0.5
        self._rule = storm.rpcs[0].fail(OtherChain(5))
        self._rule.on = False

    async def tick(self, storm: Storm, tick: int) -> None:
        away = self.at <= tick < self.until
        if self._whole:
            own = storm.deployment.chain_id
            await storm.devnet.set_chain_id(5 if away else own)
        self._rule.on = away and not self._whole

    async def end(self, storm: Storm) -> None:
        await storm.devnet.set_chain_id(storm.deployment.chain_id)


# The pool


class TooLow(Fault):
    """While a transaction is on its way, another one takes its nonce: its own earlier form, or a stranger."""

    name = "nonce too low"
    counted_by = ("nonce too low",)

    async def begin(self, storm: Storm) -> None:
        self._storm = storm
        self._foreign = self.rng.random() < 0.5
        self._left = self.rng.randrange(1, 3)
        storm.tap.before.append(self._act)

    async def tick(self, storm: Storm, tick: int) -> None:
        # What is not mined is sent again.
        storm.hold(self, on=not self._foreign and self._left > 0)

    async def _act(self, tx: Pooled) -> None:
        storm = self._storm
        if self._left == 0 or tx.sender != storm.host.address or tx.max_fee >= CEILING:
            return
        if self._foreign:
            await storm.by_hand(tx.nonce, tip=2 * tx.tip + 1, max_fee=2 * tx.max_fee + 1)
        elif tx.nonce not in {kept.nonce for kept in storm.flying()}:
            return
        self._left -= 1
        await storm.mine()


class Gap(Fault):
    """The pool forgets a transaction, and those after it wait for it."""

    name = "nonce gap after a dropped transaction"
    counted_by = ("gap", "nonce too high")

    async def begin(self, storm: Storm) -> None:
        self._done = False
        if self.rng.random() < 0.5:
            storm.geth.pool.limits = Limits(gaps=False)

    async def tick(self, storm: Storm, tick: int) -> None:
        storm.hold(self, on=not self._done)
        if not self._done and tick < len(storm.ground.jobs) - 1:
            await storm.sign(storm.ground.jobs[tick])

    async def between(self, storm: Storm, tick: int) -> None:
        flying = storm.flying()
        if not self._done and len(flying) > 1:
            self._done = True
            storm.geth.pool.drop(flying[0].hash)
            storm.fired["gap"] += 1
            storm.note(f"the pool dropped nonce {flying[0].nonce} of {len(flying)}")

    async def end(self, storm: Storm) -> None:
        storm.geth.pool.limits = Limits()


class Underpriced(Fault):
    """What is to be replaced pays too much for that: the key's own in a pool with a steeper rule, or a
    stranger's."""

    name = "replacement underpriced"
    counted_by = ("replacement transaction underpriced",)

    async def begin(self, storm: Storm) -> None:
        self._storm = storm
        self._left = 1
        if self.rng.random() < 0.5:
            storm.geth.pool.limits = Limits(bump=self.rng.randrange(15, 60))
        else:
            storm.tap.before.append(self._act)

    async def tick(self, storm: Storm, tick: int) -> None:
        storm.hold(self, on=tick < 4)
        storm.now += 20

    async def end(self, storm: Storm) -> None:
        storm.geth.pool.limits = Limits()

    async def _act(self, tx: Pooled) -> None:
        if self._left and tx.sender == self._storm.host.address:
            self._left -= 1
            await self._storm.by_hand(tx.nonce, tip=2 * tx.tip + 1, max_fee=2 * tx.max_fee + 1)


class Underestimate(View):
    """A node that takes a call to be cheaper than it is."""

    name = "estimate too low"
    concerns = frozenset({"eth_estimateGas"})

    def __init__(self, share: float) -> None:
        self._share = share

    async def ask(self, request: Request, onward: Onward) -> Answer | None:
        answer = await onward(request)
        if "result" in answer:
            return {"result": hex(int(int(answer["result"], 16) * self._share))}
        return answer


class OutOfGas(Fault):
    """A transaction is mined, and its gas does not suffice."""

    name = "out of gas"
    counted_by = ("estimate too low",)

    async def begin(self, storm: Storm) -> None:
        times = tuple(range(1, self.rng.randrange(2, 4)))
        for rpc in storm.rpcs:
            rpc.fail(Underestimate(self.rng.uniform(0.55, 0.75)), when=nth(*times))


# Money


class NoFunds(Fault):
    """The account is empty, and somebody tops it up."""

    name = "insufficient funds, then a top-up"
    counted_by = ("insufficient funds",)

    async def tick(self, storm: Storm, tick: int) -> None:
        if tick == self.at:
            self._before = await storm.devnet.ask("eth_getBalance", storm.host.address, "latest")
            await storm.devnet.set_balance(storm.host.address, self.rng.randrange(10**13))
        if tick == self.until + 1:
            await self.end(storm)

    async def end(self, storm: Storm) -> None:
        await storm.devnet.set_balance(storm.host.address, 10**20)


class Spike(Fault):
    """Ten times the base fee, while a transaction is in the pool."""

    name = "base fee ×10"
    counted_by: ClassVar[tuple[str, ...]] = ("base fee ×10",)

    fee = 10 * GWEI

    async def between(self, storm: Storm, tick: int) -> None:
        if self.at <= tick <= self.until and storm.flying():
            await storm.devnet.set_base_fee(self.fee)
            storm.fired[self.name] += 1

    async def end(self, storm: Storm) -> None:
        await storm.devnet.set_base_fee(GWEI)


class Capped(Spike):
    """A base fee above the ceiling, or a node that will not hear of such fees."""

    name = "fee cap reached"
    counted_by = ("fee cap reached", "tx fee")

    fee = 2 * CEILING

    async def begin(self, storm: Storm) -> None:
        self._node = self.rng.random() < 0.5
        if self._node:
            storm.geth.pool.limits = Limits(fee_cap=self.rng.randrange(10**12, 2 * 10**14))

    async def between(self, storm: Storm, tick: int) -> None:
        if not self._node:
            await super().between(storm, tick)

    async def end(self, storm: Storm) -> None:
        storm.geth.pool.limits = Limits()
        await super().end(storm)


class Stuck(Fault):
    """Fifty blocks leave out what is in the pool."""

    name = "stuck for 50 blocks"
    counted_by = ("50 blocks",)

    _done = False

    async def tick(self, storm: Storm, tick: int) -> None:
        # Whatever is sent meets it: what is mined before may leave nothing to send.
        storm.hold(self, on=not self._done)

    async def between(self, storm: Storm, tick: int) -> None:
        if self._done or tick < self.at or not storm.flying():
            return
        self._done = True
        nonce = storm.flying()[0].nonce
        for _ in range(5):
            await storm.devnet.mine(10)
            await storm.rise()
            storm.now += 120
            await storm.turn()
        if any(tx.nonce == nonce for tx in storm.flying()):
            storm.fired["50 blocks"] += 1
            storm.note(f"50 blocks without nonce {nonce}")


# Blocks


class ClosedByUser(Fault):
    """The payer reclaims the deposit in the block of the claim, before it."""

    name = "reverted: closed in the same block"
    counted_by = ("closed first",)

    async def tick(self, storm: Storm, tick: int) -> None:
        if tick == self.at:
            await storm.sign(storm.ground.jobs[-1])
            storm.signing = False
            await storm.devnet.increase_time(4 * HOUR)
            await storm.rise()

    async def between(self, storm: Storm, tick: int) -> None:
        opened, flying = storm.ground.jobs[-1], storm.flying()
        job = opened.job.id
        if job in storm.reclaimed or tick < self.at or not flying or storm.oracle.is_closed(job):
            return
        async with Chain(storm.devnet.rpc_url, storm.deployment) as chain:
            call = chain.reclaim(job)
            nonce = await chain.nonce(storm.payer.address)
            tip = max(tx.tip for tx in flying) + GWEI
            signed = chain.sign(
                call, storm.payer.private_key, nonce=nonce, gas=300_000, tip=tip, max_fee=4 * CEILING
            )
        await storm.geth.answer(Request(SEND, ["0x" + signed.raw.hex()]))
        await storm.mine()
        if storm.oracle.is_closed(job):
            storm.reclaimed.add(job)
            storm.fired["closed first"] += 1
            storm.note(f"the payer reclaimed job {job}, in the block of its claim")


class Reorganised(Fault):
    """One to ten blocks are replaced by others, which do not have what was in them; nor has the pool."""

    name = "reorganised, and gone"
    counted_by = ("reorganised, and gone",)

    strikes = 3
    """How often, at most."""

    async def tick(self, storm: Storm, tick: int) -> None:
        # What is in a block the program has not seen yet.
        if tick > self.at and self.rng.random() < 0.3:
            await self._strike(storm)

    async def between(self, storm: Storm, tick: int) -> None:
        # And here it has.
        if tick > self.at and self.rng.random() < 0.5:
            await self._strike(storm)

    async def _strike(self, storm: Storm) -> None:
        depth = self.rng.randrange(1, 11)
        blocks = await storm.host_blocks(depth)
        if self.strikes and any(blocks):
            self.strikes -= 1
            await self._befall(storm, depth, blocks)

    async def _befall(self, storm: Storm, depth: int, blocks: list[list[bytes]]) -> None:
        await storm.devnet.reorganise(depth)
        storm.fired[self.name] += 1
        storm.note(f"{depth} blocks were replaced, and {sum(map(len, blocks))} transactions gone")


class Moved(Reorganised):
    """The new branch has the transactions in another block."""

    name = "reorganised into another block"
    counted_by = ("reorganised into another block",)

    async def _befall(self, storm: Storm, depth: int, blocks: list[list[bytes]]) -> None:
        if depth == 1:
            return
        last = max(number for number, raws in enumerate(blocks) if raws)
        to = 0 if last == depth - 1 else depth - 1
        again = [(raw, to) for raws in blocks for raw in raws]
        try:
            await storm.devnet.reorganise(depth, again)
        except RpcError as error:
            # The new branch may be too dear for them, or on another chain.
            storm.note(f"{len(again)} transactions could not be moved: {error}")
            return
        storm.fired[self.name] += 1
        storm.note(f"{depth} blocks were replaced, and {len(again)} transactions moved")


class RolledBack(Reorganised):
    """The chain goes back, and then has another transaction at the nonce."""

    name = "rolled back, another at the nonce"
    counted_by = ("rolled back, another at the nonce",)

    strikes = 1

    async def _befall(self, storm: Storm, depth: int, blocks: list[list[bytes]]) -> None:
        await storm.devnet.roll_back(depth)
        nonce = int(await storm.devnet.ask("eth_getTransactionCount", storm.host.address, "latest"), 16)
        tx = await storm.by_hand(nonce, tip=50 * GWEI, max_fee=4 * CEILING)
        await storm.mine()
        if await storm.devnet.ask("eth_getTransactionReceipt", tx.hash):
            storm.fired[self.name] += 1
            storm.note(f"{depth} blocks went back, and another transaction has nonce {nonce}")


class ClockJump(Fault):
    """The chain's clock leaps ahead, the host's to and fro."""

    name = "clock jumps"
    counted_by = ("clock",)

    async def begin(self, storm: Storm) -> None:
        self._drops = self.rng.random() < 0.5

    async def tick(self, storm: Storm, tick: int) -> None:
        storm.hold(self, on=tick == self.until)
        if tick == self.at:
            await storm.devnet.increase_time(self.rng.randrange(60, HOUR))
            await storm.rise()
            storm.fired["clock of the chain"] += 1

    async def between(self, storm: Storm, tick: int) -> None:
        if tick == self.until:
            storm.wall_ahead += self.rng.choice((-DAY, -HOUR, HOUR, DAY))
            storm.fired["clock of the host"] += 1
            for tx in storm.flying() if self._drops else ():
                storm.geth.pool.drop(tx.hash)


# Processes


class Killed(Fault):
    """kill -9 before or after a write, or with a call to the chain under way."""

    name = "SIGKILL at a journal step"
    counted_by = ("SIGKILL",)

    async def begin(self, storm: Storm) -> None:
        self._storm = storm
        self._left = self.rng.randrange(1, 4)
        storm.tap.before.append(self._at_the_broadcast)

    async def tick(self, storm: Storm, tick: int) -> None:
        if self.rng.random() < 0.6 and storm.drivers:
            try:
                await storm.ask("die_at", self.rng.randrange(1, 6), self.rng.random() < 0.5)
            except Failed as failed:
                storm.note(f"nobody to kill: {failed}")

    async def end(self, storm: Storm) -> None:
        if not storm.fired["SIGKILL"] and storm.drivers:
            await storm.kill(storm.drivers[0])

    async def _at_the_broadcast(self, _: Pooled) -> None:
        if self._left and self.rng.random() < 0.4 and self._storm.drivers:
            self._left -= 1
            self._storm.drivers[0].signal(signal.SIGKILL)


class TwoProcesses(Fault):
    """A second process with the same key and ledger; the first is stopped in its turn, or killed."""

    name = "two processes with one key"
    counted_by = ("second process",)

    _first_stopped_at: int | None = None

    def shares_ledger(self, storm: Storm) -> bool:
        return storm.ground.postgres is not None and self.rng.random() < 0.6

    async def begin(self, storm: Storm) -> None:
        self._storm = storm
        self._other = False
        if storm.plain:
            await storm.fork()
            storm.fired["second process"] += 1
            return
        await self._try_to_join(storm)
        if self._other:
            storm.tap.before.append(self._stop_the_first)

    async def tick(self, storm: Storm, tick: int) -> None:
        if self._other:
            if self._first_stopped_at is not None and tick >= self._first_stopped_at + 2:
                for driver in list(storm.stopped):
                    await storm.resume(driver)
        elif tick == self.until and storm.drivers and not storm.plain:
            await storm.kill(storm.drivers[0])
            await storm.fork(predecessor=storm.last_process)
        elif not storm.plain:
            await self._try_to_join(storm)

    async def _try_to_join(self, storm: Storm) -> None:
        try:
            await storm.fork()
        except Failed:
            storm.fired["second process was kept out"] += 1
        else:
            self._other = True
            storm.fired["second process stands by"] += 1

    async def _stop_the_first(self, _: Pooled) -> None:
        storm = self._storm
        if self._first_stopped_at is None and len(storm.drivers) > 1 and self.rng.random() < 0.7:
            self._first_stopped_at = self.at
            storm.stop(storm.drivers[0])
            storm.expire(storm.drivers[0])
            storm.fired["second process takes over"] += 1


CLASSES: tuple[type[Fault], ...] = (
    Down,
    SilentBefore,
    SilentAfter,
    Spoilt,
    Known,
    TooLow,
    Gap,
    Underpriced,
    NoFunds,
    Spike,
    Capped,
    Stuck,
    ClosedByUser,
    OutOfGas,
    Reorganised,
    Moved,
    RolledBack,
    Withheld,
    LaggingReplica,
    Disagreeing,
    TwoProcesses,
    ClockJump,
    Elsewhere,
    Killed,
)


def faults_of(seed: int) -> list[Fault]:
    """Each class in turn; every other time alone, else with one to three others."""
    first = CLASSES[seed % len(CLASSES)]
    others: list[type[Fault]] = []
    if seed // len(CLASSES) % 2:
        rng = random.Random(f"faults {seed}")
        others = rng.sample([each for each in CLASSES if each is not first], rng.randrange(1, 4))
    return [each(seed) for each in (first, *others)]
