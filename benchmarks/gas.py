#!/usr/bin/env python3
"""Measures what the contracts cost, from the receipts of transactions on anvil.

python -m benchmarks.gas            measure, then write benchmarks/gas.json and the tables of docs/gas.md
python -m benchmarks.gas --check    measure, then exit 1 if a figure is above its limit, or more than
                                    2 % above the recorded one

A figure is all that a transaction costs, the 21 000 that it begins with and its calldata included. A row's is
the cost of a batch of 50 such rows, divided by 50. All are of the steady state: jobs that were claimed for
before, a host and a treasury that have earned before, parties that have had the asset before.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.cost import Cost
from benchmarks.market import DEPOSIT, UNLIMITED, Market, Opened
from tallystick import proof
from tallystick.chain import Chain
from tallystick.devnet import Devnet, account
from tallystick.keccak import keccak
from tallystick.types import ETH, Totals

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "gas.json"
PAGE = ROOT / "docs" / "gas.md"

TOLERANCE = 0.02
"""How far above the recorded figure a measured one may be."""

ROWS = 50
SIZES = (1, 10, ROWS, 100)
RELAY_FEE = 10_000
STRANGE_KEY = keccak(b"no job's signer")

LATER = "a later job, larger totals"
JOBS_BEFORE = 20_000_000
"""How many jobs there were before a later one, whose number then has four bytes."""
JOB_COUNT_SLOT = 11
"""Where `forge inspect JobMarketplace storage-layout` has the number of jobs, in the lowest 64 bits."""


@dataclass(frozen=True)
class Goal:
    """What a figure is of, and the most gas that it may be."""

    of: str
    limit: int


GOALS = {
    "receipted_checkpoint": Goal("receipted checkpoint, 90/10 credited", 54_000),
    "batch_row": Goal("a row in a batch of 50", 20_000),
    "stale_row": Goal("a stale row, skipped", 8_000),
    "bad_signature_row": Goal("a badly signed row, skipped", 16_000),
    "close": Goal("last checkpoint, completion and refund", 80_000),
    "open_erc20": Goal("open, approved ERC-20", 150_000),
    "open_eip3009": Goal("open, EIP-3009", 180_000),
}

Figures = dict[str, dict[str, Cost]]
"""By goal, then by what is different; the goal itself is the one without difference."""
ITSELF = ""
WITH_FEE = "with a relay fee"

DEARER = {
    "receipted_checkpoint": LATER,
    "batch_row": LATER,
    "stale_row": LATER,
    "bad_signature_row": LATER,
    "close": LATER,
    "open_eip3009": WITH_FEE,
}
"""By goal, the variant that is told against its limit too."""


# Measuring


async def measured(devnet: Devnet) -> dict[str, Any]:
    """What benchmarks/gas.json holds, measured anew on a devnet on which nothing has happened."""
    async with Chain(devnet.rpc_url, devnet.deployment) as chain:
        market = Market(devnet, chain)
        await market.prepare()
        jobs = [await market.open() for _ in range(max(SIZES))]
        figures = {
            **await rows(market, jobs),
            "receipted_checkpoint": await checkpoints(market, jobs[0]),
            "close": await closings(market, jobs[1]),
            "open_erc20": await openings(market),
            "open_eip3009": await relayed_openings(market),
        }
        for goal, cost in (await later(market)).items():
            figures[goal][LATER] = cost
    return {
        **{goal: figures[goal][ITSELF].gas for goal in GOALS},
        "details": {
            "floor": {goal: dict(figures[goal][ITSELF].parts) for goal in GOALS},
            "variants": {goal: others(figures[goal]) for goal in GOALS},
        },
    }


def others(variants: Mapping[str, Cost]) -> dict[str, Any]:
    """The variants as they are recorded."""
    return {name: {"gas": cost.gas, "floor": cost.floor} for name, cost in variants.items() if name != ITSELF}


def totals(step: int) -> Totals:
    """Of a job's checkpoint number `step`."""
    return Totals(200 * step, 1_000 * step)


async def rows(market: Market, jobs: Sequence[Opened]) -> Figures:
    """Batches that have only good rows, only stale and only badly signed ones."""
    await market.batch([market.claim(job, totals(1)) for job in jobs], len(jobs))
    good, stale, bad = {}, {}, {}
    for step, size in enumerate(SIZES, start=2):
        good[size] = await market.batch([market.claim(job, totals(step)) for job in jobs[:size]], size)
    for size in SIZES:
        late = [market.claim(job, totals(1)) for job in jobs[:size]]
        forged = [market.claim(job, totals(9), key=STRANGE_KEY) for job in jobs[:size]]
        stale[size], bad[size] = await market.batch(late, 0), await market.batch(forged, size)
    return {"batch_row": by_size(good), "stale_row": by_size(stale), "bad_signature_row": by_size(bad)}


def by_size(batches: Mapping[int, Cost]) -> dict[str, Cost]:
    """What a row costs in each batch, and one more in a large one."""
    more = (batches[max(SIZES)] - batches[ROWS]).each(max(SIZES) - ROWS)
    smaller = {f"in a batch of {size}": batches[size].each(size) for size in SIZES if size != ROWS}
    return {ITSELF: batches[ROWS].each(ROWS), **smaller, "one row more": more}


async def checkpoints(market: Market, job: Opened) -> dict[str, Cost]:
    """Single claims; `job` was claimed for before."""
    full, short = market.claim(job, totals(10)), market.claim(job, totals(11))
    short = replace(short, proof=short.proof[:56] + proof.compact(short.proof[56:]))
    fresh, attested = await market.open(), await market.open(max_tokens_per_second=1_000)
    await market.devnet.increase_time(3_600)
    await market.single(market.attest(attested, totals(1)), 0)
    return {
        ITSELF: await market.single(full, 1),
        "with a 64-byte signature": await market.single(short, 1),
        "the first of a job": await market.single(market.claim(fresh, totals(1)), 1),
        "host-attested": await market.single(market.attest(attested, totals(2)), 0),
    }


async def closings(market: Market, job: Opened) -> dict[str, Cost]:
    """Jobs that end with money to send back; `job` was claimed for before."""
    unused, ether = await market.open(), await market.open(asset=ETH)
    await market.single(market.claim(ether, totals(1)), 1)
    return {
        ITSELF: await market.batch([market.claim(job, totals(12), complete=True)], 1),
        "ETH": await market.batch([market.claim(ether, totals(2), complete=True)], 1),
        "by the host, with nothing to claim": await market.completion(unused),
    }


async def openings(market: Market) -> dict[str, Cost]:
    """As the SDK does it: approved is exactly the deposit, which leaves an allowance of zero."""
    newcomer = account(5)
    await market.register(newcomer)
    found = {
        "approved without limit": await market.opening(),
        "a host's first in the asset": await market.opening(host=newcomer.address),
        "ETH": await market.opening(asset=ETH),
    }
    await market.approve(2 * DEPOSIT)
    found["approved for more"] = await market.opening()
    return {ITSELF: await market.opening(), **found}


async def relayed_openings(market: Market) -> dict[str, Cost]:
    """Sent by another than the payer."""
    return {
        ITSELF: await market.relayed(market.relay, 0),
        "with a salt": await market.relayed(market.relay, 0, keccak(b"salt")),
        WITH_FEE: await market.relayed(market.relay, RELAY_FEE),
        "with a relay's first fee in the asset": await market.relayed(account(6), RELAY_FEE),
    }


async def later(market: Market) -> dict[str, Cost]:
    """By goal: jobs whose numbers have four bytes, claimed for totals of three bytes each."""
    await market.approve(UNLIMITED)
    await skip_jobs(market, JOBS_BEFORE)
    jobs = [await market.open() for _ in range(ROWS)]
    await market.batch([market.claim(job, larger(1)) for job in jobs], ROWS)
    good = await market.batch([market.claim(job, larger(2)) for job in jobs], ROWS)
    stale = await market.batch([market.claim(job, larger(1)) for job in jobs], 0)
    bad = await market.batch([market.claim(job, larger(3), key=STRANGE_KEY) for job in jobs], ROWS)
    return {
        "batch_row": good.each(ROWS),
        "stale_row": stale.each(ROWS),
        "bad_signature_row": bad.each(ROWS),
        "receipted_checkpoint": await market.single(market.claim(jobs[0], larger(3)), 1),
        "close": await market.batch([market.claim(jobs[1], larger(3), complete=True)], 1),
    }


def larger(step: int) -> Totals:
    """Of a later job's checkpoint number `step`."""
    return Totals(100_000 * step, 500_000 * step)


async def skip_jobs(market: Market, count: int) -> None:
    """Lets the marketplace have had `count` jobs, as if the others had been opened."""
    at = (market.chain.deployment.marketplace, hex(JOB_COUNT_SLOT))
    word = int(await market.devnet.ask("eth_getStorageAt", *at, "latest"), 16)
    await market.devnet.ask("anvil_setStorageAt", *at, f"0x{word >> 64 << 64 | count:064x}")


# Holding


def most(goal: str, recorded: Mapping[str, Any]) -> int:
    """What a figure may be now, in gas."""
    return min(GOALS[goal].limit, int(recorded[goal] * (1 + TOLERANCE)))


def complaints(found: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[str]:
    """Which figures are higher than they may be."""
    bounds = {goal: most(goal, recorded) for goal in GOALS}
    return [
        f"{goal}: {found[goal]} gas, of at most {bounds[goal]}"
        for goal in GOALS
        if found[goal] > bounds[goal]
    ]


# Showing


def number(gas: int) -> str:
    return f"{gas:,}".replace(",", " ")


def table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """Words to the left, figures to the right."""
    head = list(head)
    rule = ["---"] + ["--:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def above(gas: int, floor: int) -> str:
    return f"{number(gas - floor)} ({(gas - floor) / floor:.1%})"


def figures_table(recorded: Mapping[str, Any]) -> str:
    lines = []
    for name, goal in GOALS.items():
        gas, floor = recorded[name], sum(recorded["details"]["floor"][name].values())
        lines.append([goal.of, f"**{number(gas)}**", number(goal.limit), number(floor), above(gas, floor)])
    return table(["", "gas", "at most", "floor", "above the floor"], lines)


def dearer_table(recorded: Mapping[str, Any]) -> str:
    lines = []
    for name, what in DEARER.items():
        gas, limit = recorded["details"]["variants"][name][what]["gas"], GOALS[name].limit
        held = "holds" if gas <= limit else f"{number(gas - limit)} above"
        lines.append([f"{GOALS[name].of}: {what}", f"**{number(gas)}**", number(limit), held])
    return table(["", "gas", "limit of the plain figure", ""], lines)


def floor_table(recorded: Mapping[str, Any]) -> str:
    """Without the parts that none has."""
    floors = recorded["details"]["floor"]
    parts = [part for part in floors[next(iter(GOALS))] if any(floor[part] for floor in floors.values())]
    lines = [[goal.of, *(number(floors[name][part]) for part in parts)] for name, goal in GOALS.items()]
    return table(["", *parts], lines)


def variants_table(recorded: Mapping[str, Any]) -> str:
    lines = [
        [f"{goal.of}: {what}", number(cost["gas"]), number(cost["floor"]), above(cost["gas"], cost["floor"])]
        for name, goal in GOALS.items()
        for what, cost in recorded["details"]["variants"][name].items()
    ]
    return table(["", "gas", "floor", "above the floor"], lines)


TABLES = {
    "figures": figures_table,
    "dearer": dearer_table,
    "floor": floor_table,
    "variants": variants_table,
}
"""By name of the section of docs/gas.md."""


def page(before: str, recorded: Mapping[str, Any]) -> str:
    """docs/gas.md with the tables of what is recorded."""
    for name, drawn in TABLES.items():
        before = shown(before, name, drawn(recorded))
    return before


def shown(page: str, section: str, text: str) -> str:
    block = f"<!-- {section} -->\n{text}\n<!-- /{section} -->"
    return re.sub(rf"<!-- {section} -->.*?<!-- /{section} -->", lambda _: block, page, flags=re.DOTALL)


def read() -> dict[str, Any]:
    """What is recorded."""
    recorded: dict[str, Any] = json.loads(RECORD.read_text())
    return recorded


async def main(argv: list[str]) -> int:
    """The exit code."""
    async with Devnet() as devnet:
        found = await measured(devnet)
    told = complaints(found, read() if "--check" in argv else found)
    if "--check" not in argv:
        RECORD.write_text(json.dumps(found, indent=2) + "\n")
        PAGE.write_text(page(PAGE.read_text(), found))
    print("\n".join([figures_table(found), *told]))
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
