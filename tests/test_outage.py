"""After an outage all that has become due meanwhile is settled, in few transactions and little memory."""

from __future__ import annotations

from benchmarks import outage


async def test_after_an_outage_all_is_settled() -> None:
    """An hour without an endpoint, 200 jobs due: each is settled once, in as few transactions as can be."""
    found = await outage.measure(jobs=200, gas_cap=1_000_000)
    assert found.transactions == found.least == 5
    assert found.requests < 200
    assert found.memory_peak - found.memory_before < 20
