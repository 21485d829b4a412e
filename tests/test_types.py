"""The vocabulary's own rules: how totals stand to each other, and what is kept with a job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.types import ETH, ZERO_HASH, Address, Job, JobId, JobStatus, Prices, Standing, Totals

VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())
COUNTS = st.integers(0, 2**48 - 1)
TOTALS = st.builds(Totals, COUNTS, COUNTS)


@pytest.mark.parametrize("row", VECTORS["law1"], ids=lambda row: row["name"])
def test_law_1_in_vectors(row: dict[str, str]) -> None:
    """Law 1: totals are ahead, equal or stale as the contract has it."""
    settled = Totals(int(row["settledPromptTokens"]), int(row["settledTokens"]))
    claimed = Totals(int(row["promptTokens"]), int(row["tokens"]))
    assert claimed.against(settled).value == row["verdict"]


@settings(deadline=None)
@given(TOTALS, TOTALS)
def test_law_1_has_no_gap(one: Totals, other: Totals) -> None:
    """Law 1: two totals are equal, or one is ahead and the other stale, or both are stale."""
    there, back = one.against(other), other.against(one)
    if one == other:
        assert there is back is Standing.EQUAL
    else:
        assert Standing.EQUAL not in (there, back)
        assert (there, back) != (Standing.AHEAD, Standing.AHEAD)
        assert (there is Standing.AHEAD) == one.covers(other)


@settings(deadline=None)
@given(TOTALS, TOTALS)
def test_the_lower_and_higher_of_two_totals_bound_both(one: Totals, other: Totals) -> None:
    """The lower of two totals is covered by both, the higher covers both, and together they are the two."""
    low, high = one.lower(other), one.higher(other)
    assert one.covers(low)
    assert other.covers(low)
    assert high.covers(one)
    assert high.covers(other)
    assert low + high == one + other
    assert one + other - other == one


def test_totals_have_no_order_of_their_own() -> None:
    """Totals cannot be compared with `<`: which of two mixed ones is larger has no answer."""
    with pytest.raises(TypeError):
        _ = Totals(1, 2) < Totals(2, 1)  # type: ignore[operator]


def test_facts_are_frozen() -> None:
    """A fact does not change after it was told."""
    with pytest.raises(AttributeError):
        Totals(1, 2).tokens = 3  # type: ignore[misc]


@pytest.mark.parametrize(("rate", "receipted"), [(0, True), (1, False), (500, False)])
def test_a_job_without_a_rate_is_receipted(rate: int, receipted: bool) -> None:
    """A job whose rate is zero is receipted, any other is host-attested."""
    someone = Address("0x" + "11" * 20)
    job = Job(
        id=JobId(121),
        payer=someone,
        host=someone,
        asset=ETH,
        signer=someone,
        deposit=2_000_000,
        prices=Prices(900_000, 200_000),
        max_tokens_per_second=rate,
        claim_window=43_200,
        created_at=1,
        expires_at=2,
        asked_at=0,
        closes_at=3,
        settled=Totals(),
        owed=0,
        fee=0,
        status=JobStatus.OPEN,
    )
    assert job.receipted is receipted
    assert job.model_id == ZERO_HASH


def test_totals_read_as_words() -> None:
    """Totals stand in refusals, which people read."""
    assert f"{Totals(11, 50)}" == "11 prompt and 50 generated tokens"
