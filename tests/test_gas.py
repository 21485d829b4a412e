"""What settling costs in gas, and what fits one transaction."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tallystick import gas
from tallystick.gas import BASE, MOST_BYTES, ROW, Load, Row
from tallystick.networks import networks
from tallystick.types import ETH, Address

MEASURED = json.loads((Path(__file__).parents[1] / "benchmarks" / "gas.json").read_text())
DOLLAR = Address("0x" + "d0" * 20)
CLAIM = Row(DOLLAR, 121, complete=False)
POOL_LIMIT = 128 * 1024

rows = st.builds(Row, st.sampled_from([ETH, DOLLAR]), st.sampled_from([8, 120, 121]), st.booleans())


def loads(of: Iterable[Row], most: int) -> list[list[Row]]:
    """The rows of each transaction."""
    load, found = Load(most), [list[Row]()]
    for row in of:
        if not load.take(row):
            load = Load(most)
            assert load.take(row)
            found.append([])
        found[-1].append(row)
    return found


def test_the_figures_are_the_measured_ones() -> None:
    """No batch costs more than is reckoned with, nor a quarter less."""
    told = MEASURED["details"]["variants"]["batch_row"]
    others = {size: told[f"in a batch of {size}"]["gas"] for size in (1, 10, 100)}
    for size, each in {50: MEASURED["batch_row"], **others}.items():
        reckoned = BASE + size * ROW
        assert size * each <= reckoned <= 1.25 * size * each
    assert MEASURED["close"] <= gas.limit([Row(DOLLAR, 121, complete=True)])


def test_as_many_claims_as_a_pool_takes() -> None:
    """On Base it is the size of a transaction that limits them, before the gas cap does."""
    cap = networks()[8453].gas_cap
    assert cap == 2**24
    first, *_ = loads([CLAIM] * 1_000, cap)
    assert len(first) == (MOST_BYTES - gas.BATCH_BYTES) // CLAIM.size == 406
    assert gas.limit(first) < cap
    assert [len(each) for each in loads([CLAIM] * 10_000, cap)] == [406] * 24 + [256]


def test_completions_leave_room_for_what_receivers_do() -> None:
    """Whoever gets ETH may use up all that the contract allows: so fewer of these fit."""
    cap = 2**24
    in_eth, in_dollars = (loads([Row(asset, 121, complete=True)] * 1_000, cap) for asset in (ETH, DOLLAR))
    assert len(in_eth[0]) * (ROW + gas.CLOSING + gas.REFUND) <= cap
    assert len(in_dollars[0]) > len(in_eth[0]) > 50


@given(st.lists(rows, min_size=1, max_size=300), st.integers(400_000, 5_000_000))
def test_every_row_goes_and_nothing_overflows(of: list[Row], most: int) -> None:
    """In order, each once; no transaction is above its gas, or larger than a pool takes."""
    found = loads(of, most)
    assert [row for each in found for row in each] == of
    for each in found:
        assert gas.limit(each) <= most
        assert gas.BATCH_BYTES + sum(row.size for row in each) < POOL_LIMIT


def test_data_has_its_price() -> None:
    """What a rollup asks for data is counted with the row or with the transaction that it belongs to."""
    free = gas.priced(fee=10, data_fee=0, data_fee_of_many=0, many=11)
    assert (free.base, free.row) == (10 * BASE, 10 * ROW)
    dear = gas.priced(fee=10, data_fee=1_300, data_fee_of_many=4_300, many=11)
    assert (dear.base, dear.row) == (free.base + 1_000, free.row + 300)
