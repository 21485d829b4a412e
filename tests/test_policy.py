"""When a host settles, and what."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from tallystick.policy import Gas, Thrift, Unsettled, to_settle
from tallystick.types import ETH, Address, JobId

DOLLAR = Address("0x" + "d0" * 20)
GAS = Gas(base=30_000, row=20_000)
AT_PAR = {DOLLAR: Fraction(1)}
THRIFT = Thrift(gas_share=Fraction(1, 10), rates=AT_PAR)


def limited(limit: int) -> Thrift:
    return Thrift({DOLLAR: limit}, Fraction(1, 10), AT_PAR)


def dollars(*amounts: int) -> list[Unsettled]:
    """Jobs 0, 1, 2 … with so much for their host."""
    return [Unsettled(JobId(number), DOLLAR, amount) for number, amount in enumerate(amounts)]


def test_waits_while_gas_is_too_large_a_share() -> None:
    """One claim settles at the unit at which gas is the tenth of it that is allowed, and not before."""
    assert to_settle(dollars(499_999), THRIFT, GAS) == set()
    assert to_settle(dollars(500_000), THRIFT, GAS) == {0}


def test_many_claims_share_a_transaction() -> None:
    """Claims that are too small alone go together once they bear the transaction together."""
    assert to_settle(dollars(215_000), THRIFT, GAS) == set()
    assert to_settle(dollars(*[215_000] * 20), THRIFT, GAS) == set(range(20))


def test_the_small_do_not_ride_on_the_large() -> None:
    """As many go as keep gas within its share; what would push it beyond waits."""
    assert to_settle(dollars(100, 520_000, 100), THRIFT, GAS) == {1}


def test_what_must_go_takes_along_what_is_worth_its_row() -> None:
    """A completing job is settled whatever it is worth; its transaction is there for others as well."""
    others = dollars(200_000, 199_999)
    ending = Unsettled(JobId(7), DOLLAR, 1, must=True)
    assert to_settle([*others, ending], THRIFT, GAS) == {0, 7}
    assert to_settle(others, THRIFT, GAS) == set()


def test_no_more_is_unsettled_than_the_host_is_willing_to_have() -> None:
    """Above the limit the largest go until half of it is left: the next token does not settle again."""
    claims = dollars(10, 60, 40, 20)
    assert to_settle(claims, limited(130), GAS) == set()
    assert to_settle(claims, limited(129), GAS) == {1, 2}


def test_a_limit_counts_its_own_asset() -> None:
    """What is unsettled in one asset says nothing of another."""
    assert to_settle([*dollars(100), Unsettled(JobId(1), ETH, 100)], limited(150), GAS) == set()


def test_an_asset_without_a_rate_is_settled_by_its_limit_alone() -> None:
    """Nobody has said what it is worth in gas, so that is not guessed."""
    rich = Unsettled(JobId(1), ETH, 10**30)
    assert to_settle([rich], THRIFT, GAS) == set()
    assert to_settle([rich], Thrift({ETH: 10**29}), GAS) == {1}


amounts = st.tuples(
    st.integers(0, 10**7), st.sampled_from([DOLLAR, ETH]), st.sampled_from([False, False, True])
)


@given(st.lists(amounts, max_size=30), st.integers(0, 10**8), st.integers(1, 100))
def test_both_knobs_hold(owed: list[tuple[int, Address, bool]], limit: int, percent: int) -> None:
    """No more is left than the limit, and gas is above its share only for what had to go."""
    claims = [Unsettled(JobId(n), asset, amount, must) for n, (amount, asset, must) in enumerate(owed)]
    knobs = Thrift({DOLLAR: limit}, Fraction(percent, 100), {**AT_PAR, ETH: Fraction(1, 3)})
    going = to_settle(claims, knobs, GAS)
    left = [claim for claim in claims if claim.job_id not in going]
    assert not any(claim.must for claim in left)
    assert sum(claim.amount for claim in left if claim.asset == DOLLAR) <= limit
    forced = any(claim.must for claim in claims)
    if going and not forced and sum(claim.amount for claim in claims if claim.asset == DOLLAR) <= limit:
        gone = [claim for claim in claims if claim.job_id in going]
        assert GAS.base + len(going) * GAS.row <= sum(knobs.bearable(claim) for claim in gone)
