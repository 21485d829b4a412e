"""The adversaries, in figures.

python -m tests.adversaries [--sessions 1000]
python -m tests.adversaries --seed 123
python -m tests.adversaries --lie "never signs" --sessions 20
python -m tests.adversaries --first 0 --sessions 250 --save 0.part
python -m tests.adversaries --of 0.part 250.part

The first runs the seeds from 0 on, and writes benchmarks/adversaries.json and the tables of
docs/adversaries.md. Fails if anybody lost more than law 3 allows, or a class of lies was never told. The next
two tell what became of one seed, or of the first seeds of one class, and write nothing. The others do what
the first does in parts, and then all that it writes of them.
"""

from __future__ import annotations

import argparse
import asyncio
import pickle
import sys
from collections.abc import Iterable, Sequence
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
    results = _joined(options.of) if options.of else _run(options)
    if options.save is not None:
        options.save.write_bytes(pickle.dumps(results))
    if options.seed is None and options.lie is None and options.save is None:
        return _report(results)
    _tell(results)
    return int(any(result.wrong for result in results))


def _run(options: argparse.Namespace) -> list[Result]:
    faults = Faults(tuple(options.node_fault), tuple(options.payer_fault))
    return asyncio.run(_campaign(_seeds(options), faults))


def _joined(parts: Iterable[Path]) -> list[Result]:
    results: list[Result] = []
    for part in parts:
        results += pickle.loads(part.read_bytes())
    return results


def _report(results: Sequence[Result]) -> int:
    _tell(result for result in results if result.wrong)
    missing = silent(results)
    for name in missing:
        print(f"nobody told this lie: {name}")
    write(figures(results))
    return int(bool(missing) or any(result.wrong for result in results))


def _tell(results: Iterable[Result]) -> None:
    for result in results:
        print(line(result))


def _seeds(options: argparse.Namespace) -> Sequence[int]:
    if options.seed is not None:
        return [options.seed]
    if options.lie is not None:
        return seeds_of(options.lie, options.sessions)
    return range(options.first, options.first + options.sessions)


async def _campaign(seeds: Sequence[int], faults: Faults) -> list[Result]:
    with scratch.directory() as directory:
        async with Devnet() as devnet:
            return await campaign(devnet, Path(directory), seeds, faults)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.adversaries")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--sessions", type=int, default=WANTED)
    parser.add_argument("--seed", type=int, help="one session")
    parser.add_argument("--lie", help="sessions of one class alone")
    parser.add_argument("--save", type=Path, help="keep what was found, and report nothing")
    parser.add_argument("--of", type=Path, nargs="+", help="report what was kept")
    parser.add_argument("--node-fault", nargs="*", default=(), help="of tests.adversaries.node's, planted")
    parser.add_argument("--payer-fault", nargs="*", default=(), help="of tests.adversaries.payer's, planted")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
