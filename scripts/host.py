#!/usr/bin/env python3
"""Writes the worked figures of docs/host.md by the rules that the node goes by; with --check, compares them.

`--gwei 0.01 --ether 2500 --price 0.90` prints them for other fees and prices, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from pathlib import Path

from tallystick import gas, pricing
from tallystick.counter import SYNC_INTERVAL
from tallystick.fees import MAX_FEE
from tallystick.policy import Gas, Thrift, Unsettled, to_settle
from tallystick.types import Address, JobId, Prices, Totals

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "host.md"
MEASURED = json.loads((ROOT / "benchmarks" / "gas.json").read_text())

DOLLAR = Address("0x" + "11" * 20)
DECIMALS = 6
GWEI = 10**9
WEI = 10**18
INTERVALS = (100, 1_000)
SPEED = 50
"""Tokens a second that one stream makes, in the examples."""
BATCHES = (1, 10, 100)


@dataclass(frozen=True)
class World:
    """What the examples suppose: wei for a unit of gas, dollars for one ETH, dollars for a million tokens."""

    fee: int
    ether: Fraction
    price: str

    @property
    def prices(self) -> Prices:
        per_million = pricing.to_units(self.price, DECIMALS)
        return Prices(per_million, per_million * 2 // 9)

    @property
    def thrift(self) -> Thrift:
        """The economic policy, by its defaults; HOST_UNSETTLED_MAX is left out."""
        unit = Fraction(WEI) / (self.ether * 10**DECIMALS)
        return Thrift(rates={DOLLAR: unit})

    def dollars(self, wei: int | Fraction) -> Fraction:
        """What wei come to."""
        return Fraction(wei) * self.ether / WEI


SUPPOSED = World(GWEI // 100, Fraction(2_500), "0.90")


def money(amount: Fraction) -> str:
    """Dollars, with two digits that say something, rounded up: what can be lost, or has to be spent."""
    digits = 2
    while amount and amount * 10**digits < 10:
        digits += 1
    whole, _, fraction = pricing.from_units(int(-(-amount * 10**digits // 1)), digits).partition(".")
    return f"${grouped(int(whole))}.{fraction:0<2}"


def of_tokens(tokens: int, world: World) -> Fraction:
    """What a payer pays for generated tokens."""
    return Fraction(pricing.credit(tokens, world.prices), pricing.MILLION * 10**DECIMALS)


def grouped(number: int) -> str:
    return f"{number:,}".replace(",", " ")


# What settling takes


def settling(world: World) -> Iterator[str]:
    """By how many jobs go in a transaction: its cost, and what they have to bring for it to be worth it."""
    yield "| jobs in a transaction | gas | cost | worth it at 5 % from | in tokens of each job |"
    yield "| --: | --: | --: | --: | --: |"
    for jobs in BATCHES:
        units = gas.BASE + jobs * gas.ROW
        cost = world.dollars(units * world.fee)
        tokens = worthwhile(jobs, world)
        earned = Fraction(jobs * _hosts(tokens, world), 10**DECIMALS)
        yield f"| {jobs} | {grouped(units)} | {money(cost)} | {money(earned)} | {grouped(tokens)} |"


def worthwhile(jobs: int, world: World) -> int:
    """The fewest unsettled tokens of each of so many jobs with which the economic policy settles them all."""
    costs = Gas(gas.BASE * world.fee, gas.ROW * world.fee)

    def goes(tokens: int) -> bool:
        claims = [Unsettled(JobId(n), DOLLAR, _hosts(tokens, world)) for n in range(1, jobs + 1)]
        return len(to_settle(claims, world.thrift, costs)) == jobs

    high: int = next(1 << power for power in count() if goes(1 << power))
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if goes(middle) else (middle, high)
    return high


def _hosts(tokens: int, world: World) -> int:
    host: int = pricing.split(Totals(), Totals(0, tokens), world.prices).host
    return host


def checkpoints(world: World) -> Iterator[str]:
    """What a checkpoint alone costs against what it brings."""
    spent = world.dollars(MEASURED["receipted_checkpoint"] * world.fee)
    yield "| interval | a checkpoint brings the host | its gas, in a transaction of its own |"
    yield "| --: | --: | --: |"
    for interval in INTERVALS:
        brought = Fraction(_hosts(interval, world), 10**DECIMALS)
        yield f"| {grouped(interval)} tokens | {money(brought)} | {money(spent)} |"


# What can be lost


def losses(world: World) -> Iterator[str]:
    """Each in money, for the defaults and for the largest interval that a host takes by default."""
    closing = world.dollars(MEASURED["close"] * world.fee)
    opening = world.dollars(MEASURED["open_erc20"] * world.fee)
    small, large = (of_tokens(interval, world) for interval in INTERVALS)
    lost = of_tokens(1, world) * SPEED * Fraction(SYNC_INTERVAL).limit_denominator(1_000)
    yield f"| | interval {INTERVALS[0]} | interval {grouped(INTERVALS[1])} |"
    yield "|---|--:|--:|"
    yield f"| one credit: `interval × price` | {money(small)} | {money(large)} |"
    yield f"| a job whose payer never signs, at most: two credits | {money(2 * small)} | {money(2 * large)} |"
    yield f"| a thousand such jobs | {money(2_000 * small)} | {money(2_000 * large)} |"
    yield f"| a job served early that a reorganisation takes back | {money(small)} | {money(large)} |"
    cut = f"a power cut, of a host-attested stream of {SPEED} tokens a second: 10 ms"
    yield f"| {cut} | {money(lost)} | {money(lost)} |"
    yield f"| gas of closing a job, whatever it earned | {money(closing)} | {money(closing)} |"
    yield f"| (what its payer spent on gas to open it) | {money(opening)} | {money(opening)} |"


def supposed(world: World) -> Iterator[str]:
    """What the figures rest on."""
    yield (
        f"Supposed: {world.fee / GWEI:g} gwei for a unit of gas, {money(world.ether)} for one ETH, "
        f"${world.price} for a million generated tokens, and no fee for data. Above "
        f"{MAX_FEE} gwei (`HOST_MAX_FEE`) nothing is settled: the node waits."
    )


BLOCKS = {"supposed": supposed, "checkpoints": checkpoints, "settling": settling, "losses": losses}


def page(text: str) -> str:
    """The page with its figures as they are now."""
    for name, block in BLOCKS.items():
        inside = "\n".join(block(SUPPOSED))
        text, found = re.subn(
            rf"<!-- {name} -->\n.*?<!-- /{name} -->",
            lambda _, name=name, inside=inside: f"<!-- {name} -->\n{inside}\n<!-- /{name} -->",  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
        if found != 1:
            raise SystemExit(f"{PAGE.name} has {found} places for {name}")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    parser.add_argument("--gwei", type=Fraction, help="for a unit of gas")
    parser.add_argument("--ether", type=Fraction, help="dollars for one ETH")
    parser.add_argument("--price", help="dollars for a million generated tokens")
    asked = parser.parse_args()
    if asked.gwei or asked.ether or asked.price:
        fee = int((asked.gwei or Fraction(SUPPOSED.fee, GWEI)) * GWEI)
        world = World(fee, asked.ether or SUPPOSED.ether, asked.price or SUPPOSED.price)
        print("\n\n".join("\n".join(block(world)) for block in BLOCKS.values()))
        return
    written = PAGE.read_text(encoding="utf-8")
    if not asked.check:
        PAGE.write_text(page(written), encoding="utf-8")
    elif page(written) != written:
        raise SystemExit(f"{PAGE.name} is not what {Path(__file__).name} writes: run it without --check")


if __name__ == "__main__":
    main()
