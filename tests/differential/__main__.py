"""A long campaign, in figures.

python -m tests.differential [--sequences 10000] [--anvil 100] [--seed N]

Tries sequences on revm, and some of them once more on anvil. Fails with the shortest one that it found if
contracts and model differ.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tallystick.devnet import Anvil
from tests.differential.anvil import AnvilChain
from tests.differential.campaign import Diary, campaign, replay
from tests.differential.model import Model
from tests.differential.steps import Step


def main() -> None:
    options = _options()
    print(f"{options.sequences} sequences from seed {options.seed}", flush=True)
    diary = Diary(keep_one_in=max(1, options.sequences // options.anvil))
    with _timed("on revm"):
        campaign(options.sequences, diary, seed=options.seed)
    _tell(diary)
    with _timed(f"{len(diary.sequences)} of them on anvil"):
        asyncio.run(_on_anvil(diary.sequences))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.differential")
    parser.add_argument("--sequences", type=int, default=10_000)
    parser.add_argument("--anvil", type=int, default=100, help="how many of them to take on anvil as well")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    return parser.parse_args()


@contextmanager
def _timed(what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"{what}: no difference, {time.monotonic() - began:.0f} s", flush=True)


async def _on_anvil(sequences: Iterable[Iterable[Step]]) -> None:
    async with Anvil() as anvil:
        chain = AnvilChain(anvil.rpc_url)
        for steps in sequences:
            replay(steps, chain.renewed(), Model())


def _tell(diary: Diary) -> None:
    print(f"{diary.tried} sequences, {diary.steps.total()} steps")
    for (kind, outcome), count in sorted(diary.steps.items()):
        print(f"{count:9} {kind}: {outcome}")
    for event, count in diary.events.most_common():
        print(f"{count:9} {event}")
    for error, count in diary.rows.most_common():
        print(f"{count:9} rows left out: {error}")


if __name__ == "__main__":
    main()
