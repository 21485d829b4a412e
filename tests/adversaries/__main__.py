"""The adversaries, in figures.

python -m tests.adversaries [--sessions 1000]
python -m tests.adversaries --seed 123
python -m tests.adversaries --lie "never signs" --sessions 20

The first runs the seeds from 0 on, and writes benchmarks/adversaries.json and the tables of
docs/adversaries.md. Fails if anybody lost more than law 3 allows, or a class of lies was never told. The
others tell what became of one seed, or of the first seeds of one class, and write nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from tallystick.devnet import Devnet
from tests import scratch
from tests.adversaries.campaign import campaign, seeds_of, silent
from tests.adversaries.ground import Faults
from tests.adversaries.oracle import Result
from tests.adversaries.report import WANTED, figures, line, write


def main() -> int:
    """The exit code."""
    options = _options()
    seeds = _seeds(options)
    results = asyncio.run(_run(seeds, Faults(tuple(options.node_fault), tuple(options.payer_fault))))
    whole = options.seed is None and options.lie is None
    for result in results if not whole else (each for each in results if each.wrong):
        print(line(result))
    missing = silent(results) if whole else []
    for name in missing:
        print(f"nobody told this lie: {name}")
    if whole:
        write(figures(results))
    return 1 if missing or any(result.wrong for result in results) else 0


def _seeds(options: argparse.Namespace) -> Sequence[int]:
    if options.seed is not None:
        return [options.seed]
    if options.lie is not None:
        return seeds_of(options.lie, options.sessions)
    return range(options.sessions)


async def _run(seeds: Sequence[int], faults: Faults) -> list[Result]:
    with scratch.directory() as directory:
        async with Devnet() as devnet:
            return await campaign(devnet, Path(directory), seeds, faults)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.adversaries")
    parser.add_argument("--sessions", type=int, default=WANTED)
    parser.add_argument("--seed", type=int, help="one session")
    parser.add_argument("--lie", help="sessions of one class alone")
    parser.add_argument("--node-fault", nargs="*", default=(), help="of tests.adversaries.node's, planted")
    parser.add_argument("--payer-fault", nargs="*", default=(), help="of tests.adversaries.payer's, planted")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
