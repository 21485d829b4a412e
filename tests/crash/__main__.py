"""The crash sweep, in figures.

python -m tests.crash [--points 10000] [--workers 2]
python -m tests.crash --points 2500 --first 40 --save 40.part
python -m tests.crash --of 0.part 40.part

The first sweeps seed after seed, from 0 on, and writes benchmarks/crash.json and the table of docs/crash.md.
Fails if a point ends wrong, or fewer have counted than were wanted. The others do it in parts, which have to
begin at seeds that no other part comes to.
"""

from __future__ import annotations

import argparse
import pickle
import sys
from pathlib import Path

from tests.crash.campaign import campaign
from tests.crash.report import figures, write
from tests.crash.sweep import Result

WANTED = 10_000


def main() -> int:
    """The exit code."""
    options = _options()
    if options.of:
        results: list[Result] = [each for part in options.of for each in pickle.loads(part.read_bytes())]
    else:
        results = campaign(options.points, first=options.first, workers=options.workers)
    if options.save is not None:
        options.save.write_bytes(pickle.dumps(results))
        return 0
    found = figures(results, WANTED)
    write(found)
    return 1 if found["wrong"] or found["points"] < min(WANTED, options.points) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash")
    parser.add_argument("--points", type=int, default=WANTED)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--save", type=Path, help="keep what was found, and report nothing")
    parser.add_argument("--of", type=Path, nargs="+", help="report what was kept")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
