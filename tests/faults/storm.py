"""One seed: jobs, receipts, faults that fire while they are settled, and then quiet, and the oracle.

A turn is the program's; six seconds pass after it, and every second turn a block comes. Quiet begins when all
faults have ended and the chain has come to its former height again. From then on a block comes each time that
every timer of the program has run out, the longest of which is ten minutes: what it still owes is then on the
chain within three blocks. Where a transaction is final N blocks deep, the N - 1 that it waits for on the way
come on top.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import psycopg
from eth_account import Account as EthAccount

from tallystick import proof
from tallystick.pauses import LONGEST
from tallystick.testing.geth import Answer, Geth, Node, Request
from tallystick.testing.pool import Pooled
from tallystick.testing.rpc import FaultyRpc
from tallystick.types import JobId, Receipt, Totals
from tests.faults.driver import Failed, Start, Told
from tests.faults.ground import CEILING, DEPTH, Ground, Opened
from tests.faults.nursery import LEAP, Died, Driver
from tests.faults.oracle import Oracle, Wired, misused, wasted

if TYPE_CHECKING:
    from tests.faults.classes import Fault

TICKS = 6
"""Blocks for which the faults of a seed have time."""
SIGNING = 4
"""Ticks in which receipts come: what is lost after that is made good by no later receipt."""
STEP = 6.0
"""Seconds after each turn: half a block."""
REST = LONGEST + 1
"""Seconds after which no timer of the program is running any longer."""
BLOCKS = 3
"""In which all has to be on the chain after quiet, where one block makes a fact final."""
GRACE = 12
"""Blocks that the plain sender gets to come to rest in, and the books of the program."""
EPOCH = 1_000_000.0


@dataclass
class Result:
    """How a seed ended."""

    seed: int
    faults: Sequence[str]
    fired: Counter[str]
    wrong: list[str] = field(default_factory=list)
    blocks: int | None = None
    """After quiet, until all totals were on the chain; None: they never were."""
    confirmations: int = 1
    transactions: int = 0
    wasted: int = 0
    """Transactions that cost gas and settled nothing."""
    lost: bool = False
    """The sender is done with a job whose total is not on the chain."""
    stuck: bool = False
    """It is not done, and comes to no end."""
    story: list[str] = field(default_factory=list)

    @property
    def late(self) -> bool:
        """Not all was on the chain in time."""
        return self.blocks is None or self.blocks > bound(self.confirmations)


def bound(confirmations: int) -> int:
    """Blocks after quiet in which all has to be on the chain."""
    return BLOCKS + confirmations - 1


class Tap:
    """The node behind all endpoints: keeps what was sent, and lets the storm act first."""

    def __init__(self, node: Node) -> None:
        self.sent: dict[str, Pooled] = {}
        self.before: list[Callable[[Pooled], Awaitable[None]]] = []
        self._node = node

    async def answer(self, request: Request) -> Answer:
        if request.method == "eth_sendRawTransaction":
            tx = Pooled.read(bytes.fromhex(request.params[0].removeprefix("0x")))
            self.sent[tx.hash] = tx
            for act in list(self.before):
                await act(tx)
        return await self._node.answer(request)


class Storm:
    """One seed against one sender. What faults need is public."""

    def __init__(self, ground: Ground, seed: int, faults: Sequence[Fault], *, plain: bool = False) -> None:
        self.ground = ground
        self.devnet = ground.devnet
        self.host, self.payer = ground.devnet.accounts.host, ground.devnet.accounts.payer
        self.rng = random.Random(f"storm {seed}")
        self.seed = seed
        self.faults = faults
        self.plain = plain
        self.confirmations = self.rng.choice((1, 1, 2, 3))
        self.deployment = replace(ground.devnet.deployment, confirmations=self.confirmations)
        self.domain = proof.Domain(self.deployment.chain_id, self.deployment.marketplace)
        self.fired: Counter[str] = Counter()
        self.story: list[str] = []
        self.now, self.wall_ahead = EPOCH, 0.0
        self.holding: set[Fault] = set()
        """Faults for which no block comes."""
        self.signing = True
        self.drivers: list[Driver] = []
        self.stopped: set[Driver] = set()
        """Those that SIGSTOP has stopped."""
        self.foreign: dict[str, Pooled] = {}
        """By hash: transactions that the host's key signed elsewhere."""
        self.receipted: dict[int, Totals] = {}
        self.reclaimed: set[int] = set()
        """Jobs that the payer closed."""
        self.ended: set[int] = set()
        self.told: Told | None = None
        self.top = 0
        """The highest block that there was."""
        self._outstanding: dict[int, Receipt] = {}
        self._turns: dict[Driver, asyncio.Task[Told]] = {}
        self._stack = AsyncExitStack()
        self.last_process = ""

    # Running

    async def run(self) -> Result:
        """Raises nothing that the program does wrong: the result says it."""
        await self.ground.renew()
        async with self._stack:
            await self._begin()
            await self._rage()
            return await self._judge(await self._quieten())

    async def _begin(self) -> None:
        self.geth = await self._stack.enter_async_context(Geth(self.devnet.rpc_url, fired=self.fired))
        self.tap = Tap(self.geth)
        count = 1 if self.rng.random() < 0.6 else 2
        self.rpcs = [
            await self._stack.enter_async_context(FaultyRpc(self.tap, fired=self.fired)) for _ in range(count)
        ]
        self.oracle = Oracle(
            self.devnet.rpc_url,
            self.deployment.marketplace,
            self.devnet.dollar,
            self.host.address,
            deepest=DEPTH,
        )
        self.top = self.oracle.head()
        shared = any(fault.shares_ledger(self) for fault in self.faults) and not self.plain
        self._where = self.ground.ledger(shared=shared)
        self._stack.callback(self._clear)
        await self.fork()
        if shared:
            await self.drivers[0].ask("adopt", [opened.job for opened in self.ground.jobs])

    async def _rage(self) -> None:
        for fault in self.faults:
            await fault.begin(self)
        for tick in range(TICKS):
            for fault in self.faults:
                await fault.tick(self, tick)
            if tick < SIGNING:
                await self._sign()
            await self.turn()
            for fault in self.faults:
                await fault.between(self, tick)
            await self.turn()
            if not self.holding:
                await self.mine()

    async def _quieten(self) -> int | None:
        for fault in reversed(self.faults):
            await fault.end(self)
        self.holding.clear()
        self.tap.before.clear()
        for rpc in self.rpcs:
            rpc.rules.clear()
        for driver in list(self.stopped):
            await self.resume(driver)
        await self._revive()
        await self._deliver()
        await self.regain()
        self.note("quiet")
        for block in range(bound(self.confirmations) + (GRACE if self.plain else 0) + 1):
            if not self.oracle.behind(self._expected()):
                return block
            await self._rest()
        return None

    async def _rest(self) -> None:
        """All timers run out, the program does what it would, and a block comes."""
        self.now += REST
        for _ in range(3):
            await self.turn()
        await self.mine()

    async def _judge(self, blocks: int | None) -> Result:
        result = Result(self.seed, [fault.name for fault in self.faults], self.fired, blocks=blocks)
        result.confirmations, result.story = self.confirmations, self.story
        for _ in range(GRACE):
            if self.told is not None and self.told.in_flight == 0:
                break
            await self._rest()
        behind = self.oracle.behind(self._expected())
        result.stuck = bool(behind) and self.told is not None and self.told.in_flight > 0
        result.lost = bool(behind) and not result.stuck
        mined = self.oracle.mined(self.foreign)
        result.transactions, result.wasted = len(mined), wasted(mined).total()
        if not self.plain:
            result.wrong = await self._wrong(blocks, behind)
        return result

    async def _wrong(self, blocks: int | None, behind: dict[int, tuple[int, int]]) -> list[str]:
        wired = [
            Wired(tx.hash, tx.nonce, tx.max_fee, tx.tip, tx.to or "", tx.data, tx.value)
            for tx in self.tap.sent.values()
        ]
        told = [f"job {job}: {found} is settled of {self._expected()[job]}" for job, found in behind.items()]
        if blocks is None:
            told.append(f"not on the chain {bound(self.confirmations)} blocks after quiet")
        told += self.oracle.complaints(opened.job.id for opened in self.ground.jobs)
        told += self.oracle.gaps(wired, self.foreign)
        told += misused(wired, self.host.address, CEILING)
        told += [f"{tx.hash} was left in the pool" for tx in self.geth.pool]
        if self.told is None or self.told.in_flight:
            told.append("the ledger still has transactions in flight")
        for job, confirmed in (await self.ask("confirmed", list(self.receipted))).items():
            if job not in self.reclaimed and confirmed != self.receipted[job]:
                told.append(f"job {job}: the ledger has {confirmed} as confirmed")
        return told

    def _expected(self) -> dict[int, tuple[int, int]]:
        return {
            job: (totals.prompt_tokens, totals.tokens)
            for job, totals in self.receipted.items()
            if job not in self.reclaimed
        }

    def _clear(self) -> None:
        for driver in self.drivers:
            driver.signal(signal.SIGKILL)
            driver.close()
        shutil.rmtree(self._where[0], ignore_errors=True)

    # Time

    async def turn(self) -> None:
        """All processes that run take their turn, at the same time; then half a block's time passes."""
        await self._revive()
        for driver in self.drivers:
            if driver not in self._turns and driver not in self.stopped:
                wall = self.now + self.wall_ahead
                self._turns[driver] = asyncio.create_task(driver.ask("turn", self.now, wall))
        while running := [task for driver, task in self._turns.items() if driver not in self.stopped]:
            # A process may be stopped in the middle: nothing tells of that.
            done, _ = await asyncio.wait(running, timeout=0.05, return_when=asyncio.FIRST_COMPLETED)
            for driver in [driver for driver, task in self._turns.items() if task in done]:
                await self._finish_turn(driver)
        self.now += STEP

    async def _finish_turn(self, driver: Driver) -> None:
        task = self._turns.pop(driver)
        try:
            told = task.result()
        except Died:
            self._bury(driver)
            return
        if told.leading or len(self.drivers) == 1:
            self.told = told
        for line in told.lines:
            self.note(f"{driver.pid}: {line}")

    def hold(self, fault: Fault, *, on: bool) -> None:
        """For as long as any fault wants it, no block comes."""
        (self.holding.add if on else self.holding.discard)(fault)

    async def mine(self, blocks: int = 1) -> None:
        """Blocks of what the pool has for them."""
        await self.geth.mine(blocks)
        await self.rise()

    async def rise(self) -> None:
        """Remembers how high the chain was."""
        self.top = max(self.top, self.oracle.head())

    async def regain(self) -> None:
        """A chain that was rolled back comes to its former height."""
        missing = self.top - self.oracle.head()
        if missing > 0:
            await self.devnet.mine(missing)

    # Processes

    async def fork(self, *, predecessor: str = "") -> Driver:
        """One more process with the key and the ledger. Failed: it may not have the ledger."""
        directory, url = self._where
        urls = ",".join(rpc.url for rpc in self.rpcs)
        start = Start(
            directory, url, urls, self.deployment, self.host.private_key, CEILING, self.now, self.plain
        )
        driver = await self.ground.nursery.fork(start)
        try:
            driver.process = await driver.ask("open", predecessor)
        except Failed:
            driver.close()
            raise
        self.drivers.append(driver)
        return driver

    async def kill(self, driver: Driver) -> None:
        """SIGKILL, now."""
        driver.signal(signal.SIGKILL)
        self._bury(driver)

    def stop(self, driver: Driver) -> None:
        """SIGSTOP, in the middle of whatever it does."""
        driver.signal(signal.SIGSTOP)
        self.stopped.add(driver)
        self.note("stopped one process")

    async def resume(self, driver: Driver) -> None:
        """It goes on, and knows nothing of the time that has passed."""
        self.stopped.discard(driver)
        driver.signal(signal.SIGCONT)
        if driver in self._turns:
            await asyncio.wait([self._turns[driver]])
            await self._finish_turn(driver)

    def lapse(self) -> None:
        """A call had no answer: the time has come at which the processes give it up."""
        for driver in self.drivers:
            driver.signal(LEAP)

    def expire(self, driver: Driver) -> None:
        """In the database it is later: the lease of a process that is stopped has run out."""
        assert self._where[1] is not None
        with psycopg.connect(self._where[1], autocommit=True) as connection:
            connection.execute("UPDATE processes SET until = 0 WHERE id = %s", (driver.process,))

    async def ask(self, method: str, *arguments: Any) -> Any:
        """Asks whichever process answers; Failed if none will."""
        failed = Failed("no process runs")
        for _ in range(3):
            await self._revive()
            for driver in [each for each in self.drivers if each not in self.stopped]:
                try:
                    return await driver.ask(method, *arguments)
                except Died:
                    self._bury(driver)
                except Failed as error:
                    failed = error
        raise failed

    def _bury(self, driver: Driver) -> None:
        self.fired["SIGKILL"] += 1
        self.note("killed")
        self.drivers.remove(driver)
        self.stopped.discard(driver)
        self._turns.pop(driver, None)
        self.last_process = driver.process
        driver.close()

    async def _revive(self) -> None:
        if not self.drivers:
            await self.fork(predecessor=self.last_process)

    # Receipts

    async def _sign(self) -> None:
        """The payer signs for a few more tokens, of some of the jobs."""
        await self._deliver()
        for opened in self.ground.jobs[:-1]:
            if self.signing and opened.job.id not in self._outstanding and self.rng.random() < 0.6:
                await self.sign(opened)

    async def sign(self, opened: Opened) -> None:
        """A receipt over a few more tokens of a job that has not ended."""
        if opened.job.id in self.ended:
            return
        before = self.receipted.get(opened.job.id, Totals())
        totals = before + Totals(self.rng.randrange(30), self.rng.randrange(100, 300))
        self._outstanding[opened.job.id] = opened.receipt(self.domain, totals)
        await self._deliver()

    async def end_job(self, opened: Opened) -> None:
        """The session is over: what is receipted is claimed, and the job completed."""
        if opened.job.id not in self._outstanding:
            self.ended.add(opened.job.id)
            await self.ask("end", JobId(opened.job.id))

    async def _deliver(self) -> None:
        """As payers do: again until the host says that it is written."""
        for job, receipt in list(self._outstanding.items()):
            try:
                await self.ask("store", receipt)
            except Failed as failed:
                self.note(f"a receipt was not taken: {failed}")
                continue
            del self._outstanding[job]
            self.receipted[job] = receipt.totals

    # What faults are made of

    def note(self, text: str) -> None:
        """A line of the seed's story."""
        self.story.append(f"{self.now - EPOCH:8.0f} s  {text}")

    def flying(self) -> list[Pooled]:
        """What the pool holds of the host's, by nonce."""
        return sorted(
            (tx for tx in self.geth.pool if tx.sender == self.host.address), key=lambda tx: tx.nonce
        )

    async def by_hand(self, nonce: int, *, tip: int, max_fee: int) -> Pooled:
        """A transfer of nothing that the host's key signs elsewhere, put into the pool."""
        fields = {
            "type": 2,
            "chainId": self.deployment.chain_id,
            "to": self.host.address,
            "value": 0,
            "nonce": nonce,
            "gas": 21_000,
            "maxPriorityFeePerGas": tip,
            "maxFeePerGas": max_fee,
        }
        signed = EthAccount.sign_transaction(fields, self.host.private_key)
        tx = Pooled.read(bytes(signed.raw_transaction))
        self.foreign[tx.hash] = tx
        await self.geth.answer(Request("eth_sendRawTransaction", ["0x" + tx.raw.hex()]))
        return tx

    async def host_blocks(self, depth: int) -> list[list[bytes]]:
        """The signed bytes of the host key's transactions in each of the latest blocks, the oldest first."""
        head = self.oracle.head()
        return [await self._host_block(number) for number in range(head - depth + 1, head + 1)]

    async def _host_block(self, number: int) -> list[bytes]:
        block = await self.devnet.ask("eth_getBlockByNumber", hex(number), False)
        known = self.tap.sent | self.foreign
        return [known[tx].raw for tx in block["transactions"] if tx in known]
