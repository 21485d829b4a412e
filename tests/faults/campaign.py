"""Many seeds, shared among processes that each have a chain of their own."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests import postgresql, scratch
from tests.faults.classes import CLASSES, faults_of
from tests.faults.ground import Ground
from tests.faults.storm import Result, Storm

Listener = Callable[[Result], None]


@dataclass(frozen=True)
class Share:
    """What one process does."""

    seeds: Sequence[int]
    plain: bool


async def rage(ground: Ground, seeds: Iterable[int], listener: Listener, *, plain: bool = False) -> None:
    """Each seed in turn; `listener` is told of each result at once."""
    for seed in seeds:
        listener(await Storm(ground, seed, faults_of(seed), plain=plain).run())


def campaign(seeds: Sequence[int], *, plain: bool, workers: int) -> list[Result]:
    """The results, by seed."""
    shares = [Share(seeds[first::workers], plain) for first in range(workers)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        found = [result for results in pool.map(_take, shares) for result in results]
    return sorted(found, key=lambda result: result.seed)


def fired(results: Iterable[Result]) -> Counter[str]:
    """By class: how often it befell the program."""
    names = sum((result.fired for result in results), Counter[str]())
    return Counter(
        {
            each.name: sum(count for name, count in names.items() if name.startswith(each.counted_by))
            for each in CLASSES
        }
    )


def _take(share: Share) -> list[Result]:
    results: list[Result] = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(scratch.directory()))
        postgres = None if share.plain else _postgres(stack)
        asyncio.run(_ground(directory, postgres, share, partial(_tell, results)))
    return results


def _postgres(stack: ExitStack) -> postgresql.Server | None:
    programs = postgresql.binaries()
    if programs is None:
        return None
    server = postgresql.Server(programs, Path(stack.enter_context(scratch.directory())))
    server.start()
    stack.callback(server.stop)
    return server


async def _ground(
    directory: Path, postgres: postgresql.Server | None, share: Share, listener: Listener
) -> None:
    async with Ground(directory, postgres) as ground:
        await rage(ground, share.seeds, listener, plain=share.plain)


def _tell(results: list[Result], result: Result) -> None:
    results.append(result)
    print(line(result), flush=True)


def line(result: Result) -> str:
    """One seed's end, on one line."""
    marks = [mark for mark in ("late", "lost", "stuck") if getattr(result, mark)]
    end = "; ".join([*result.wrong, *marks]) or f"right after {result.blocks} blocks"
    return f"seed {result.seed:5}: {', '.join(result.faults)}: {end}"
