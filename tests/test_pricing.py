"""Money: the vectors that the contract computes too, and what holds for any totals, prices and deposits."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick import pricing
from tallystick.pricing import MAX_DEPOSIT, MAX_PRICE, MAX_TOKENS, MILLION, Payment
from tallystick.types import Prices, Totals

VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())

COUNTS = st.integers(0, MAX_TOKENS) | st.integers(0, 10_000)
MONEY = st.integers(0, MAX_PRICE) | st.integers(0, 10_000_000)
TOTALS = st.builds(Totals, COUNTS, COUNTS)
PRICES = st.builds(Prices, MONEY, MONEY)
DEPOSITS = st.integers(0, MAX_DEPOSIT) | st.integers(0, 10_000_000)


@pytest.mark.parametrize("row", VECTORS["money"], ids=lambda row: row["name"])
def test_law_2_in_vectors(row: dict[str, str]) -> None:
    """Law 2: owed, fee, host and refund are what the outside witness worked out."""
    prices = Prices(int(row["pricePerMillion"]), int(row["promptPricePerMillion"]))
    totals = Totals(int(row["promptTokens"]), int(row["tokens"]))
    payment = pricing.split(Totals(), totals, prices)
    assert payment == Payment(int(row["owed"]), int(row["host"]), int(row["fee"]))
    assert pricing.refund(int(row["deposit"]), totals, prices) == int(row["refund"])


def test_the_golden_job() -> None:
    """Law 2, golden: 47 580 tokens at 904 000 of 500 000 give 43 012, 4 301, 38 711 and 456 988."""
    prices, totals = Prices(904_000, 0), Totals(0, 47_580)
    assert pricing.owed(totals, prices) == 43_012
    assert pricing.split(Totals(), totals, prices) == Payment(owed=43_012, host=38_711, fee=4_301)
    assert pricing.refund(500_000, totals, prices) == 456_988


@settings(deadline=None)
@given(st.lists(TOTALS, max_size=8), PRICES)
def test_how_often_a_job_is_settled_changes_nothing(stops: list[Totals], prices: Prices) -> None:
    """Law 2: the payments of any chain of settlements add up to the payment of a single one."""
    way = [Totals()]
    for stop in stops:
        way.append(way[-1].higher(stop))
    steps = [pricing.split(before, after, prices) for before, after in pairwise(way)]
    whole = pricing.split(Totals(), way[-1], prices)
    assert sum(step.owed for step in steps) == whole.owed
    assert sum(step.fee for step in steps) == whole.fee
    assert sum(step.host for step in steps) == whole.host
    assert all(step.host >= 0 and step.fee >= 0 for step in steps)


@settings(deadline=None)
@given(TOTALS, PRICES, DEPOSITS)
def test_all_money_is_accounted_for(totals: Totals, prices: Prices, more: int) -> None:
    """Law 2: host, treasury and refund are the deposit, to the unit."""
    payment = pricing.split(Totals(), totals, prices)
    deposit = payment.owed + more
    assert payment.host + payment.fee + pricing.refund(deposit, totals, prices) == deposit
    assert payment.host + payment.fee == payment.owed


@settings(deadline=None)
@given(TOTALS, PRICES)
def test_rounding_favours_the_payer_by_less_than_a_unit(totals: Totals, prices: Prices) -> None:
    """Law 2: what is owed is the exact value less what is short of a base unit."""
    assert 0 <= pricing.value(totals, prices) - pricing.owed(totals, prices) * MILLION < MILLION


@settings(deadline=None)
@given(TOTALS, PRICES, DEPOSITS)
def test_affordable_is_the_last_token_that_is_paid_for(totals: Totals, prices: Prices, deposit: int) -> None:
    """Law 4: the deposit pays for the affordable tokens, and not for one more."""
    tokens = pricing.affordable(deposit, totals, prices)
    assert 0 <= tokens <= MAX_TOKENS - totals.tokens
    if tokens:
        assert pricing.owed(totals + Totals(0, tokens), prices) <= deposit
    if totals.tokens + tokens < MAX_TOKENS:
        assert pricing.owed(totals + Totals(0, tokens + 1), prices) > deposit


def test_a_deposit_pays_for_the_part_of_a_unit_that_is_floored() -> None:
    """Law 4: at 0.3 units a token, a deposit of 1 pays for 6 tokens, which owe 1.8, floored to 1."""
    assert pricing.affordable(1, Totals(), Prices(300_000, 0)) == 6


def test_nothing_is_affordable_past_the_deposit() -> None:
    """Law 4: where the prompts alone are worth more than the deposit, even free tokens are not served."""
    assert pricing.affordable(1, Totals(11, 0), Prices(0, 200_000)) == 0
    assert pricing.affordable(1, Totals(9, 0), Prices(0, 200_000)) == MAX_TOKENS


def test_credit_is_one_interval_of_generated_tokens() -> None:
    """Law 3: the credit of the default interval at 900 000 a million is 90 base units."""
    assert pricing.credit(pricing.INTERVAL, Prices(900_000, 200_000)) == 90 * MILLION


def test_a_stale_settlement_is_refused() -> None:
    """Law 1: a settlement that goes back in either total is an error, not a negative payment."""
    with pytest.raises(ValueError, match="stale"):
        pricing.split(Totals(12, 100), Totals(11, 200), Prices(1, 1))


def test_a_refund_is_never_negative() -> None:
    """Law 4: totals worth more than the deposit are an error, not a debt."""
    with pytest.raises(ValueError, match="1 base units more than the deposit"):
        pricing.refund(99, Totals(0, 100), Prices(MILLION, 0))


@pytest.mark.parametrize(
    ("amount", "decimals", "units"),
    [
        ("2", 6, 2_000_000),
        ("0.90", 6, 900_000),
        (" 0.20 ", 6, 200_000),
        ("007", 0, 7),
        ("1.000", 0, 1),
        ("0.000000000000000001", 18, 1),
        ("79228162514.264337593543950335", 18, MAX_DEPOSIT),
    ],
)
def test_amounts_are_read_exactly(amount: str, decimals: int, units: int) -> None:
    """An amount written by a person becomes base units without a float on the way."""
    assert pricing.to_units(amount, decimals) == units


@pytest.mark.parametrize(
    "amount", ["", ".", "1.", ".5", "-1", "+1", "1e6", "1,5", "1_000", "NaN", "0x10", "1.2.3", "\u0661"]
)
def test_what_is_no_amount_is_refused(amount: str) -> None:
    """An amount is digits and at most one point between them; nothing is guessed."""
    with pytest.raises(ValueError, match="not an amount"):
        pricing.to_units(amount, 6)


def test_digits_that_an_asset_cannot_express_are_refused() -> None:
    """A price in the wrong unit is an error, not a rounding."""
    with pytest.raises(ValueError, match="more than the 6 decimals"):
        pricing.to_units("0.0000009", 6)


@settings(deadline=None)
@given(DEPOSITS, st.integers(0, 36))
def test_amounts_survive_the_way_out_and_back(units: int, decimals: int) -> None:
    """What is shown to a person reads back as the same base units."""
    assert pricing.to_units(pricing.from_units(units, decimals), decimals) == units


@pytest.mark.parametrize(
    ("units", "decimals", "amount"),
    [(2_000_000, 6, "2"), (43_012, 6, "0.043012"), (0, 6, "0"), (5, 0, "5"), (-1_500_000, 6, "-1.5")],
)
def test_amounts_are_shown_without_trailing_zeros(units: int, decimals: int, amount: str) -> None:
    """An amount is shown exactly and as short as it can be."""
    assert pricing.from_units(units, decimals) == amount


def test_risk_is_rounded_up() -> None:
    """Law 3: what is told to be at risk is never less than what can be lost."""
    assert pricing.at_risk(100, Prices(10_000_000, 0)) == 1_000
    assert pricing.at_risk(100, Prices(1, 0)) == 1
    assert pricing.at_risk(0, Prices(10_000_000, 0)) == 0
