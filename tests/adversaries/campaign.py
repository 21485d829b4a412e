"""Seeds into sessions: many at once on one ground, judged when the honest host has settled all it could."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tallystick.devnet import Devnet
from tests.adversaries import clients, hosts
from tests.adversaries.client import Client, Opened, Pen
from tests.adversaries.engine import Order
from tests.adversaries.ground import Faults, Ground
from tests.adversaries.host import Dealing
from tests.adversaries.oracle import Dealt, Oracle, Result, Served, Took

AT_ONCE = 24
"""Sessions that are under way together."""
INTERVALS = (10, 25, 100)
CLASSES: tuple[type[clients.Lie] | type[hosts.Lie], ...] = (*clients.LIES, *hosts.LIES)


def class_of(seed: int) -> type[clients.Lie] | type[hosts.Lie]:
    """Each class has its turn."""
    return CLASSES[seed % len(CLASSES)]


def seeds_of(name: str, sessions: int) -> list[int]:
    """The first seeds of one class."""
    first = [kind.name for kind in CLASSES].index(name)
    return [first + turn * len(CLASSES) for turn in range(sessions)]


@dataclass
class Campaign:
    """Sessions on one ground, and the jobs that they used."""

    ground: Ground
    jobs: list[int] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    dealt: list[Dealt] = field(default_factory=list)
    _bystander: Opened | None = None

    async def run(self, seeds: Iterable[int]) -> None:
        """All sessions, some of them at once."""
        self._bystander = await self._open(self.ground.devnet.accounts.host.address, INTERVALS[0])
        places = asyncio.Semaphore(AT_ONCE)

        async def one(seed: int) -> None:
            async with places:
                await self._session(seed)

        async with asyncio.TaskGroup() as sessions:
            for seed in seeds:
                sessions.create_task(one(seed))

    async def _session(self, seed: int) -> None:
        kind, dice = class_of(seed), random.Random(f"adversary {seed}")
        if issubclass(kind, clients.Lie):
            self.served.append(await self._serve(seed, kind, dice))
        else:
            self.dealt.append(await self._deal(seed, kind, dice))

    async def _open(self, host: Any, interval: int) -> Opened:
        job = await self.ground.open(host, interval)
        self.jobs.append(job.id)
        return job

    # The client lies

    async def _serve(self, seed: int, kind: type[clients.Lie], dice: random.Random) -> Served:
        host, interval = self.ground.devnet.accounts.host.address, dice.choice(INTERVALS)
        job = await self._open(host, interval)
        assert self._bystander is not None
        other = await self._open(host, interval) if kind.spends_other else self._bystander
        order = _order(seed, interval, dice, hasty=kind.hasty)
        pen, took, socket = Pen(self.ground.domain, job), [], dice.random() < 0.5

        def join(of: Opened, stranger: bool) -> Client:
            theirs = pen if of is job else Pen(self.ground.domain, of)
            client = Client(self.ground.host_url, theirs, order, dice, socket=dice.random() < 0.5)
            took.append(Took(of, client.heard, stranger))
            return client

        async with AsyncExitStack() as parts:
            client = await parts.enter_async_context(
                Client(self.ground.host_url, pen, order, dice, socket=socket)
            )
            took.append(Took(job, client.heard))
            await kind(clients.Scene(parts, client, other, self.ground.complete, join)).play()
        signed = (pen.signed.prompt_tokens, pen.signed.tokens)
        most, lied = kind.strangers_credits * interval, (client.told, client.answers)
        return Served(seed, kind.name, kind.honest, most, order, job, signed, took, *lied)

    # The host lies

    async def _deal(self, seed: int, kind: type[hosts.Lie], dice: random.Random) -> Dealt:
        ground, interval = self.ground, dice.choice(INTERVALS)
        job = None if kind.opens else await self._open(ground.liar.address, interval)
        dealing = Dealing(seed, job, ground.domain, ground.liar.private_key, dice)
        url = f"{ground.liar_url}/{seed}"
        now = (await ground.chain.block()).timestamp
        deployment, others = ground.devnet.deployment, list(ground.lying.dealings.values())
        dealing.lie = kind(
            dealing, hosts.Scene(ground.claim, others, deployment, ground.liar.address, url, now)
        )
        ground.lying.dealings[seed] = dealing
        orders = [_order(seed, interval, dice) for _ in range(dice.choice((1, 2)))]
        # A payer that asks for no more than it gets shows less of what a count may be.
        orders = [replace(order, limit=order.tokens * dice.choice((1, 1, 3, 20))) for order in orders]
        came = await ground.errand(
            job=job and job.id,
            key=job and job.key.hex(),
            url=url,
            over=dice.choice(("http", "websocket")),
            bodies=[order.body() for order in orders],
        )
        if job is not None:
            await dealing.lie.end()
        texts = [reply["text"] for reply in came["replies"]]
        found = (orders, job, came["opened"] is not None, (came["signed"][0], came["signed"][1]), texts)
        lied = (dealing.told, dealing.lie.answers, came["trouble"])
        return Dealt(seed, kind.name, kind.honest, *found, *lied)


def _order(seed: int, interval: int, dice: random.Random, *, hasty: bool = False) -> Order:
    tokens = dice.randrange(interval // 2, 4 * interval)
    at_once = dice.choice((1, 1, 3, max(1, interval // 4), interval))
    pause = 0 if hasty else dice.choice((0, 1, 3))
    return Order(seed, tokens, at_once, pause, dice.choice((0, 0, interval // 2)))


async def campaign(
    devnet: Devnet, directory: Path, seeds: Sequence[int], faults: Faults | None = None
) -> list[Result]:
    """The results, by seed. RuntimeError if the payers' money does not add up."""
    accounts, deployment = devnet.accounts, devnet.deployment
    async with Ground(devnet, directory, faults or Faults()) as ground:
        oracle = Oracle(devnet.rpc_url, deployment.marketplace, devnet.dollar)
        before = oracle.balance(accounts.payer.address)
        sessions = Campaign(ground)
        await sessions.run(seeds)
        await ground.settle()
        results = [oracle.judge_served(each, ground.made) for each in sessions.served]
        results += [oracle.judge_dealt(each) for each in sessions.dealt]
        await ground.close_jobs(sessions.jobs)
        paid = before - oracle.balance(accounts.payer.address)
        if paid != (owed := oracle.owed(sessions.jobs)):
            raise RuntimeError(f"the jobs cost {owed} base units, and their payer is {paid} short")
    return sorted(results, key=lambda result: result.seed)


def silent(results: Iterable[Result]) -> list[str]:
    """The classes of which nobody has lied once."""
    told = {result.lie for result in results if result.told}
    return [kind.name for kind in CLASSES if not kind.honest and kind.name not in told]
