"""The fault storm, in figures.

python -m tests.faults [--seeds 1056] [--plain 240] [--workers 2]
python -m tests.faults --seed 123
python -m tests.faults --first 0 --seeds 264 --plain 60 --save 0.part
python -m tests.faults --of 0.part 264.part

The first runs the seeds from 0 on, the first `--plain` of them against a plain sender as well, and writes
benchmarks/faults.json and the tables of docs/faults.md. Fails if a seed ends wrong, or a class of faults has
never fired. The second runs one seed and prints its story. The others do what the first does in parts, and
then all that it writes of them.
"""

from __future__ import annotations

import argparse
import pickle
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.faults.campaign import campaign
from tests.faults.report import WANTED, figures, silent, write
from tests.faults.storm import Result

Results = tuple[list[Result], list[Result]]
"""Of the program, and of the plain sender."""


def main() -> int:
    """The exit code."""
    options = _options()
    if options.seed is not None:
        [result] = campaign([options.seed], plain=options.against_plain, workers=1)
        _tell([result])
        return 1 if result.wrong else 0
    if options.of:
        return _report(_joined(options.of))
    found = _run(options)
    if options.save is None:
        return _report(found)
    options.save.write_bytes(pickle.dumps(found))
    _tell(result for result in found[0] if result.wrong)
    return 0


def _run(options: argparse.Namespace) -> Results:
    first = options.first
    ours = campaign(range(first, first + options.seeds), plain=False, workers=options.workers)
    plain = campaign(range(first, first + options.plain), plain=True, workers=options.workers)
    return ours, plain


def _joined(parts: Iterable[Path]) -> Results:
    ours, plain = [], []
    for part in parts:
        more: Results = pickle.loads(part.read_bytes())
        ours += more[0]
        plain += more[1]
    return ours, plain


def _report(found: Results) -> int:
    ours, plain = found
    _tell(result for result in ours if result.wrong)
    missing = silent(ours)
    for name in missing:
        print(f"nothing of this class fired: {name}")
    write(figures(ours, plain))
    return 1 if missing or any(result.wrong for result in ours) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=WANTED)
    parser.add_argument("--plain", type=int, default=240, help="how many of them against a plain sender too")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--save", type=Path, help="keep what was found, and report nothing")
    parser.add_argument("--of", type=Path, nargs="+", help="report what was kept")
    parser.add_argument("--seed", type=int, help="one seed, with its story")
    parser.add_argument("--against-plain", action="store_true", help="that seed against the plain sender")
    return parser.parse_args()


def _tell(results: Iterable[Result]) -> None:
    for result in results:
        print(f"seed {result.seed}, {result.confirmations} blocks deep: {', '.join(result.faults)}")
        print("\n".join(f"  {line}" for line in [*result.story, *result.wrong]))


if __name__ == "__main__":
    sys.exit(main())
