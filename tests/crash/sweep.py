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
    """The process died of the signal before it had told that it was done, or it met the error."""
    failed: int = 0
    """What the program said that it could not do."""
    wrong: list[str] = field(default_factory=list)


class Sweep:
    """Points on one chain. `ground` and `nursery` have been entered."""

    def __init__(self, ground: Ground, nursery: Nursery, strace: str) -> None:
        self._ground = ground
        self._nursery = nursery
        self._strace = strace

    async def points(self, seed: int) -> list[Point]:
        """All of a seed's: its work is done once without any fault, to count the calls."""
        calls = sorted({call for group in FAULTS.values() for call in group})
        async with self._starting(seed) as start:
            _, _, record = self._trace(start, f"trace={','.join(calls)}")
        most = _most(record.splitlines())
        return [
            Point(seed, call, number, fault)
            for fault, group in FAULTS.items()
            for call in group
            for number in range(1, most[call] + 1)
        ]

    async def run(self, point: Point, *, hasty: bool = False) -> Result:
        """Crashes a driver there, starts again, and asks what became of it all."""
        async with self._starting(point.seed, hasty=hasty) as start:
            oracle = self._oracle()
            lines, hit = self._crash(start, point)
            result = Result(point, hit, sum(line.startswith(FAILS) for line in lines))
            if hit:
                result.wrong = await self._judge(start, lines, oracle)
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
            yield Start(directory, devnet.rpc_url, devnet.deployment, key, jobs, seed, hasty=hasty)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _oracle(self) -> Oracle:
        devnet = self._ground.devnet
        host = devnet.accounts.host.address
        return Oracle(devnet.rpc_url, devnet.deployment.marketplace, devnet.dollar, host)

    def _crash(self, start: Start, point: Point) -> tuple[list[str], bool]:
        """What the driver told, and whether it met what it was to meet."""
        inject = f"inject={point.call}:{point.fault}:when={point.number}"
        lines, status, record = self._trace(start, f"trace={point.call}", inject)
        if point.fault == KILL:
            died = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            return lines, died and ENDS not in lines
        return lines, "(INJECTED)" in record

    def _trace(self, start: Start, *expressions: str) -> tuple[list[str], int, str]:
        """A driver's life: what it told, what it died of, and what strace wrote down."""
        driver = self._nursery.fork(start)
        record = start.directory / "strace"
        command = [self._strace, "-f", "-qq", "-o", str(record), "-p", str(driver.pid)]
        command += [part for expression in expressions for part in ("-e", expression)]
        tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        lines, status = driver.story()
        tracer.wait()
        return lines, status, record.read_text()

    async def _judge(self, start: Start, lines: list[str], oracle: Oracle) -> list[str]:
        truth = Truth()
        truth.read(lines)
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
