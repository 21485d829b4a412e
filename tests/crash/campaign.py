"""Points without end, shared among processes that each have a chain of their own."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import shutil
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import structlog

from tallystick.errors import ConfigError
from tests import scratch
from tests.crash.nursery import Nursery
from tests.crash.sweep import Result, Sweep
from tests.faults.ground import Ground


@dataclass(frozen=True)
class Share:
    """What one process does: every `step`th seed from `first` on, until so many points have counted."""

    first: int
    step: int
    points: int
    whole: bool


@asynccontextmanager
async def sweeping(*, whole: bool = False) -> AsyncIterator[Sweep]:
    """A sweep, with all that it stands on; `whole`: of the whole node. ConfigError: there is no strace."""
    strace = shutil.which("strace")
    if strace is None:
        raise ConfigError("there is no strace")
    with scratch.directory() as directory:
        async with Ground(Path(directory)) as ground:
            (Path(directory) / "crash").mkdir()
            with Nursery(Path(directory) / "crash") as nursery:
                yield Sweep(ground, nursery, strace, whole=whole)


async def crashes(sweep: Sweep, seeds: Iterable[int], enough: int) -> AsyncIterator[Result]:
    """The points of each seed in turn, in an order of the seed's own, until enough have counted."""
    counted = 0
    for seed in seeds:
        points = await sweep.points(seed)
        random.Random(seed).shuffle(points)
        for point in points:
            result = await sweep.run(point)
            yield result
            counted += result.hit
            if counted == enough:
                return


def campaign(points: int, *, first: int, workers: int, whole: bool) -> list[Result]:
    """The results until so many points have counted."""
    shares = [Share(first + number, workers, -(-points // workers), whole) for number in range(workers)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        return [result for results in pool.map(_take, shares) for result in results]


def _take(share: Share) -> list[Result]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    return asyncio.run(_sweep(share))


async def _sweep(share: Share) -> list[Result]:
    results: list[Result] = []
    async with sweeping(whole=share.whole) as sweep:
        async for result in crashes(sweep, count(share.first, share.step), share.points):
            results.append(result)
            for wrong in result.wrong:
                print(f"{result.point}: {wrong}", flush=True)
    return results
