"""One point of the sweep: a seed, a system call, and at which of them the program dies, or the disk fails."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.crash.driver import ENDS, FAILS, Start, Witness
from tests.crash.node import NodeStart, served
from tests.crash.nursery import Nursery
from tests.crash.recovery import Truth, judged, recover
from tests.faults.ground import Ground
from tests.faults.oracle import Oracle

KILL = "signal=SIGKILL"
FAULTS: Mapping[str, tuple[str, ...]] = {
    KILL: ("write", "pwrite64", "fdatasync", "fsync", "ftruncate", "sendto", "unlink"),
    "error=EIO": ("pwrite64", "fdatasync", "fsync"),
    "error=ENOSPC": ("pwrite64", "ftruncate"),
}
"""By what is injected: the calls at which it is. All by which the program acts, writes or has written."""


@dataclass(frozen=True)
class Point:
    """`number`: the so manieth of the calls that one thread makes, counted from 1."""

    seed: int
    call: str
    number: int
    fault: str = KILL


@dataclass
class Result:
    """How a point ended."""

    point: Point
    hit: bool
    """It was met, as `Life` says."""
    failed: int = 0
    """What the program said that it could not do."""
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Life:
    """What a driver told, what it died of, and what strace wrote down."""

    lines: list[str]
    status: int
    record: str

    def met(self, point: Point) -> bool:
        """It died of the signal before it had told that it was done; or it met the error."""
        if point.fault != KILL:
            return "(INJECTED)" in self.record
        died = os.WIFSIGNALED(self.status) and os.WTERMSIG(self.status) == signal.SIGKILL
        return died and ENDS not in self.lines


class Sweep:
    """Points on one chain, of the driver or of a whole node. `ground` and `nursery` have been entered."""

    def __init__(self, ground: Ground, nursery: Nursery, strace: str, *, whole: bool = False) -> None:
        self._kind = NodeStart if whole else Start
        self._ground = ground
        self._nursery = nursery
        self._strace = strace

    async def points(self, seed: int) -> list[Point]:
        """All of a seed's: its work is done once without any fault, to count the calls."""
        calls = sorted({call for group in FAULTS.values() for call in group})
        async with self._starting(seed) as start:
            life = await self._trace(start, Truth(), f"trace={','.join(calls)}")
        most = _most(life.record.splitlines())
        return [
            Point(seed, call, number, fault)
            for fault, group in FAULTS.items()
            for call in group
            for number in range(1, most[call] + 1)
        ]

    async def run(self, point: Point, *, hasty: bool = False) -> Result:
        """Crashes a driver there, starts again, and asks what became of it all."""
        async with self._starting(point.seed, hasty=hasty) as start:
            oracle, truth = self._oracle(), Truth()
            inject = f"inject={point.call}:{point.fault}:when={point.number}"
            life = await self._trace(start, truth, f"trace={point.call}", inject)
            result = Result(point, life.met(point), sum(line.startswith(FAILS) for line in life.lines))
            if result.hit:
                result.wrong = await self._judge(start, truth, oracle)
        return result

    @asynccontextmanager
    async def _starting(self, seed: int, *, hasty: bool = False) -> AsyncIterator[Start]:
        """The chain as it was, and a ledger that knows the jobs."""
        await self._ground.renew()
        directory, _ = self._ground.ledger(shared=False)
        devnet = self._ground.devnet
        key = devnet.accounts.host.private_key
        try:
            jobs = self._ground.jobs[:-1]
            yield self._kind(directory, devnet.rpc_url, devnet.deployment, key, jobs, seed, hasty=hasty)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _oracle(self) -> Oracle:
        devnet = self._ground.devnet
        host = devnet.accounts.host.address
        return Oracle(devnet.rpc_url, devnet.deployment.marketplace, devnet.dollar, host)

    async def _trace(self, start: Start, truth: Truth, *expressions: str) -> Life:
        """A driver's life under strace, from its birth to its death."""
        driver = self._nursery.fork(start)
        record = start.directory / "strace"
        command = [self._strace, "-f", "-qq", "-o", str(record), "-p", str(driver.pid)]
        command += [part for expression in expressions for part in ("-e", expression)]
        tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        before = await served(driver, start, truth) if isinstance(start, NodeStart) else ""
        lines, status = driver.story(before)
        tracer.wait()
        truth.read(lines)
        return Life(lines, status, record.read_text())

    async def _judge(self, start: Start, truth: Truth, oracle: Oracle) -> list[str]:
        with (start.directory / "told").open("w+b", buffering=0) as told:
            wrong = await recover(start, truth, Witness(told.fileno()), oracle)
            told.seek(0)
            truth.read(told.read().decode().splitlines())
        return wrong + judged(truth, oracle, self._ground.devnet.accounts.host.address)


def _most(record: Iterable[str]) -> Counter[str]:
    """By call: the most that one thread made of it."""
    made = Counter[tuple[str, str]]()
    for line in record:
        thread, call = line.split(maxsplit=1)
        if "(" in call and not call.startswith("<"):
            made[thread, call.partition("(")[0]] += 1
    most = Counter[str]()
    for (_, call), times in made.items():
        most[call] = max(most[call], times)
    return most
