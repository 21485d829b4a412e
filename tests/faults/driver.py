"""The program under test: ledger, settlement and sender, turn by turn, on a clock that the storm sets.

One turn is what the loops of settlement and sender do when they wake. Runs in a process of its own, which the
storm kills and stops.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from structlog import DropEvent

from tallystick.chain import Chain
from tallystick.errors import ChainError, LedgerError
from tallystick.fees import Pace
from tallystick.ledger import Ledger
from tallystick.networks import Deployment
from tallystick.sender import Sender
from tallystick.settlement import Settlement
from tallystick.types import Job, JobId, Receipt, Totals

TIMEOUT = 5.0
"""Seconds that a call may take: half a lease, so that a call without an answer does not cost the lease."""


@dataclass(frozen=True)
class Start:
    """What a driver is told before anything else."""

    directory: Path
    ledger_url: str | None
    rpc_url: str
    deployment: Deployment
    key: bytes
    ceiling: int
    """Wei for a unit of gas."""
    clock: float
    plain: bool = False


@dataclass(frozen=True)
class Told:
    """How things stand after a turn, as the program sees them."""

    in_flight: int
    """Transactions; of the plain sender, jobs that it has not done with."""
    leading: bool
    lines: Sequence[str] = ()
    """What it logged, or met."""


class Failed(Exception):
    """The program refused, and said why."""


class LeapingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock leaps: nobody waits for a call that will have no answer, and only such a call
    comes to its time limit, however slow the machine is."""

    _ahead = 0.0

    def time(self) -> float:
        """Seconds."""
        return super().time() + self._ahead

    def leap(self) -> None:
        """Whatever is under way now has taken too long."""
        self._ahead += TIMEOUT


_logged: list[str] = []


def keep(_: object, __: str, event: MutableMapping[str, Any]) -> NoReturn:
    """A processor for structlog that keeps each line for the next turn's answer."""
    name = event.pop("event")
    _logged.append(" ".join([name, *(f"{key}={value}" for key, value in event.items())]))
    raise DropEvent


class Fuse:
    """Kills this process before or after a write that was chosen."""

    def __init__(self) -> None:
        self._left = 0
        self._after = False

    def light(self, writes: int, *, after: bool) -> None:
        self._left, self._after = writes, after

    @contextmanager
    def write(self) -> Iterator[None]:
        """Around each write."""
        self._left -= 1
        if self._left == 0 and not self._after:
            os.kill(os.getpid(), signal.SIGKILL)
        yield
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class MortalLedger(Ledger):
    """A ledger whose writes a fuse counts."""

    fuse: Fuse

    async def _write(self, statement: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self.fuse.write():
            return await super()._write(statement, *args, **kwargs)


class Tallystick:
    """One node's money side."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._now = self._wall = start.clock
        self._ledger = MortalLedger(start.directory, start.ledger_url)
        self._ledger.fuse = self._fuse = Fuse()
        self._chain = Chain(start.rpc_url, start.deployment, timeout=TIMEOUT, clock=lambda: self._now)
        self._sender = Sender(
            self._chain, self._ledger, start.key, pace=Pace(ceiling=start.ceiling), clock=lambda: self._wall
        )
        self._settlement = Settlement(self._ledger, self._chain, self._sender, clock=lambda: self._now)

    async def open(self, predecessor: str) -> str:
        """Its name in the ledger. `predecessor`: a process that is known to be dead, if there is one."""
        try:
            await self._ledger.open()
        except LedgerError as error:
            raise Failed(str(error)) from None
        if predecessor:
            await self._ledger.bury(predecessor)
        return self._ledger.process

    async def adopt(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            await self._ledger.adopt(job)

    async def store(self, receipt: Receipt) -> None:
        """Once this returns, the receipt is owed to the host whatever happens."""
        try:
            await self._ledger.store_receipt(
                receipt, acknowledged=receipt.totals, gross=receipt.totals, due=True
            )
        except LedgerError as error:
            raise Failed(str(error)) from None

    async def end(self, job_id: JobId) -> None:
        """The session is over."""
        try:
            await self._ledger.end(job_id)
        except LedgerError as error:
            raise Failed(str(error)) from None

    async def die_at(self, write: int, after: bool) -> None:
        """At the so manieth write from now."""
        self._fuse.light(write, after=after)

    async def turn(self, now: float, wall: float) -> Told:
        """`now`: of a clock that only goes forward; `wall`: of one that somebody sets."""
        self._now, self._wall = now, wall
        for step in (self._settlement.step, self._sender.step):
            try:
                await step()
            except (ChainError, LedgerError) as error:
                _logged.append(f"failed: {error}")
        flights = await self._ledger.in_flight(self._sender.address)
        lines = list(_logged)
        _logged.clear()
        return Told(len(flights), self._sender.leading, lines)

    async def confirmed(self, job_ids: Sequence[JobId]) -> Mapping[JobId, Totals]:
        """What the ledger has as confirmed."""
        rows = [await self._ledger.job(job_id) for job_id in job_ids]
        return {row.job.id: row.confirmed for row in rows if row is not None}

    async def close(self) -> None:
        await self._chain.close()
        await self._ledger.close()
