"""What a payer is ready to spend: rules alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick import pricing
from tallystick.caps import Caps, Purse, Stake, Words, at_most, on_day
from tallystick.countersign import PROMPT_MARGIN
from tallystick.errors import Refusal
from tallystick.types import ETH, Address, Prices, Totals

SIGNER = Address("0x" + "11" * 20)
PRICES = Prices(900_000, 200_000)
amounts = st.integers(0, 10**9)


def stake(began: int, most: int, day: str = "2027-01-15") -> Stake:
    return Stake(SIGNER, ETH, day, began, most)


@given(st.lists(st.tuples(amounts, amounts), max_size=5), amounts, amounts, amounts)
def test_no_day_can_cost_more_than_its_cap(
    jobs: list[tuple[int, int]], per_day: int, deposit: int, cost: int
) -> None:
    """Whatever was staked, what is staked next leaves the day's worst case within the day's cap."""
    stakes = [stake(min(pair), max(pair)) for pair in jobs]
    caps = Caps(deposit, per_day)
    room = caps.room(stakes, "2027-01-15")
    try:
        opened = caps.first_deposit(cost, room)
    except Refusal:
        assert cost > min(deposit, room)
        return
    if opened > 0:
        assert sum(each.at_most for each in stakes) + opened <= per_day
    assert cost <= max(0, opened) <= deposit


@given(deposit=amounts, owed=amounts, reserved=amounts, cost=amounts, room=amounts, cap=amounts)
def test_a_top_up_brings_the_rest_to_the_deposit_at_most(
    deposit: int, owed: int, reserved: int, cost: int, room: int, cap: int
) -> None:
    """What a job has and has not spent is never topped up above --deposit, nor beyond the day's room."""
    purse = Purse(max(deposit, owed), owed, reserved)
    try:
        more = Caps(cap, 10**12).top_up(purse, cost, room)
    except Refusal:
        assert purse.free + min(max(0, cap - purse.rest), room) < cost
        return
    assert more <= room
    assert more == 0 or purse.rest + more <= cap
    assert purse.free + more >= cost


def test_another_day_has_its_cap_to_itself() -> None:
    """What was spent on an earlier day is not this day's; what can still be spent is."""
    caps = Caps(100, 300)
    yesterday = stake(0, 250, "2027-01-14")
    assert caps.room([yesterday], "2027-01-14") == 50
    assert caps.room([on_day(yesterday, "2027-01-15", 200)], "2027-01-15") == 250
    assert on_day(stake(0, 250), "2027-01-15", 200) == stake(0, 250)


@given(size=st.integers(1, 10**6), tokens=st.integers(1, 10**6), choices=st.integers(1, 128))
def test_a_request_costs_no_more_than_was_said_before(size: int, tokens: int, choices: int) -> None:
    """The most that a payer signs for a request, its prompt's bytes and max_tokens, is worth what is told."""
    most = Totals(size + choices * PROMPT_MARGIN, tokens)
    told = at_most(size, tokens, choices, PRICES)
    assert pricing.owed(most, PRICES) <= told <= pricing.owed(most, PRICES) + 1


def test_neither_price_may_be_above_the_cap() -> None:
    """A model's own cap counts before the general one, for prompt and generated tokens alike."""
    caps = Caps(1, 1, 900_000, {"dear": 2_000_000})
    assert caps.allows("any", PRICES)
    assert not caps.allows("any", Prices(900_001, 0))
    assert not caps.allows("any", Prices(0, 900_001))
    assert caps.allows("dear", Prices(2_000_000, 2_000_000))
    with pytest.raises(Refusal, match="900001 base units"):
        caps.check_price("any", Prices(900_001, 0))


def test_caps_are_told_in_the_words_of_the_asset_and_of_who_set_them() -> None:
    """A person reads "0.9 tUSD"; a program reads base units beside it."""
    caps = Caps(100_000, 100_000, 600_000, words=Words("tUSD", 6, str))
    with pytest.raises(
        Refusal, match=r"asks 0\.9 tUSD a million tokens of 'any', and max_price is 0\.6 tUSD"
    ):
        caps.check_price("any", PRICES)
    with pytest.raises(Refusal, match=r"may cost 0\.2 tUSD, and deposit leaves 0\.1 tUSD") as refused:
        caps.first_deposit(200_000, 100_000)
    assert refused.value.extra == {"cost": "200000", "payable": "100000"}


@pytest.mark.parametrize(
    ("caps", "cost", "named"),
    [
        (Caps(100, 1_000), 101, "--deposit"),
        (Caps(100, 50), 60, "--max-per-day"),
        (Caps(100, 100), 101, "--deposit"),
    ],
)
def test_a_refusal_names_the_cap_to_raise(caps: Caps, cost: int, named: str) -> None:
    """Whoever reads it knows which option leaves too little."""
    with pytest.raises(Refusal, match=named):
        caps.first_deposit(cost, caps.room([], "2027-01-15"))
