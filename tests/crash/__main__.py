"""The crash sweep, in figures.

python -m tests.crash [--points 10000] [--nodes 300] [--workers 2]
python -m tests.crash --points 2500 --nodes 0 --first 40 --save 40.part
python -m tests.crash --of 0.part 40.part

The first sweeps seed after seed, from 0 on: the driver, and then the whole node. It writes
benchmarks/crash.json and the tables of docs/crash.md. Fails if a point ends wrong, or fewer have counted than
were wanted. The others do it in parts, which have to begin at seeds that no other part comes to.
"""

from __future__ import annotations

import argparse
import pickle
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.crash.campaign import campaign
from tests.crash.report import figures, write
from tests.crash.sweep import Result

POINTS, NODES = 10_000, 300

Results = tuple[list[Result], list[Result]]
"""Of the driver, and of the whole node."""


def main() -> int:
    """The exit code."""
    options = _options()
    drivers, nodes = _joined(options.of) if options.of else _run(options)
    if options.save is not None:
        options.save.write_bytes(pickle.dumps((drivers, nodes)))
        return 0
    found = {"driver": figures(drivers, POINTS), "node": figures(nodes, NODES)}
    write(found)
    wanted = {"driver": options.points, "node": options.nodes}
    return int(any(each["wrong"] or each["points"] < wanted[of] for of, each in found.items()))


def _run(options: argparse.Namespace) -> Results:
    how = {"first": options.first, "workers": options.workers}
    drivers = campaign(options.points, whole=False, **how) if options.points else []
    nodes = campaign(options.nodes, whole=True, **how) if options.nodes else []
    return drivers, nodes


def _joined(parts: Iterable[Path]) -> Results:
    drivers, nodes = [], []
    for part in parts:
        more: Results = pickle.loads(part.read_bytes())
        drivers += more[0]
        nodes += more[1]
    return drivers, nodes


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash")
    parser.add_argument("--points", type=int, default=POINTS, help="of ledger, meter and sender alone")
    parser.add_argument("--nodes", type=int, default=NODES, help="of the whole node")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--save", type=Path, help="keep what was found, and report nothing")
    parser.add_argument("--of", type=Path, nargs="+", help="report what was kept")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
