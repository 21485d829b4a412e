"""The pool refuses what geth refuses, in geth's words, and proposes what geth would."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tallystick.testing.pool import ETHER, Limits, Pool, Pooled, Standing
from tallystick.types import Address

GWEI = 10**9
BLOCK_GAS = 30_000_000
ALICE, BOB = Address("0x" + "a1" * 20), Address("0x" + "b0" * 20)
RICH = Standing(nonce=5, balance=ETHER)


def tx(nonce: int = 5, *, max_fee: int = 10 * GWEI, tip: int = GWEI, **more: object) -> Pooled:
    """A transfer of Alice's; its hash says what it is."""
    made = Pooled(
        hash="",
        raw=b"",
        chain_id=1,
        sender=ALICE,
        to=BOB,
        nonce=nonce,
        gas=21_000,
        max_fee=max_fee,
        tip=tip,
        value=0,
        data=b"",
    )
    made = replace(made, **more)  # type: ignore[arg-type]
    return replace(made, hash=repr(made))


def pool(*kept: Pooled, limits: Limits | None = None, standing: Standing = RICH) -> Pool:
    made = Pool(limits)
    for each in kept:
        assert made.add(each, standing, BLOCK_GAS) is None
    return made


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (tx(4), "nonce too low: next nonce 5, tx nonce 4"),
        (tx(max_fee=10, tip=11), "max priority fee per gas higher than max fee per gas"),
        (tx(tip=0), "transaction underpriced: gas tip cap 0, minimum needed 1"),
        (tx(gas=20_999), "intrinsic gas too low: gas 20999, minimum needed 21000"),
        (tx(data=b"\0\1"), "intrinsic gas too low: gas 21000, minimum needed 21020"),
        (tx(to=None, data=b"\1" * 33), "intrinsic gas too low: gas 21000, minimum needed 53532"),
        (
            tx(data=b"\1" * 100, gas=22_700),
            "insufficient gas for floor data gas cost: gas 22700, minimum needed 25000",
        ),
        (tx(gas=2**24 + 1), "transaction gas limit too high (cap: 16777216, tx: 16777217)"),
        (
            tx(gas=1_000_000, max_fee=1_500 * GWEI),
            "tx fee (1.50 ether) exceeds the configured cap (1.00 ether)",
        ),
        (
            tx(value=ETHER),
            "insufficient funds for gas * price + value: balance 1000000000000000000, "
            "tx cost 1000210000000000000, overshot 210000000000000",
        ),
    ],
    ids=lambda given: given.split(":")[0] if isinstance(given, str) else "",
)
def test_what_can_never_be_mined_is_refused(refused: Pooled, words: str) -> None:
    """Each refusal has geth's words, with its values."""
    assert pool().add(refused, RICH, BLOCK_GAS) == words


def test_more_gas_than_a_block_has_is_refused() -> None:
    """Though it may be below the cap of a transaction."""
    assert pool().add(tx(gas=8_000_000), RICH, 7_999_999) == "exceeds block gas limit"


@pytest.mark.parametrize(
    ("max_fee", "tip", "taken"),
    [
        (1_100, 110, True),
        (1_099, 110, False),
        (1_100, 109, False),
        (2_000, 100, False),
        (1_000, 200, False),
    ],
)
def test_a_replacement_pays_a_tenth_more_of_both_fees(max_fee: int, tip: int, taken: bool) -> None:
    """Law of the pool: neither fee alone replaces, and not a wei less."""
    old = tx(max_fee=1_000, tip=100)
    kept = pool(old)
    new = tx(max_fee=max_fee, tip=tip)
    refusal = kept.add(new, RICH, BLOCK_GAS)
    assert refusal == (None if taken else "replacement transaction underpriced")
    assert list(kept) == [new if taken else old]


def test_a_replacement_of_a_few_wei_is_higher_at_all() -> None:
    """A tenth of one wei is nothing: both fees still have to rise."""
    kept = pool(tx(max_fee=5, tip=1))
    assert kept.add(tx(max_fee=5, tip=2), RICH, BLOCK_GAS) == "replacement transaction underpriced"
    assert kept.add(tx(max_fee=6, tip=2), RICH, BLOCK_GAS) is None


def test_the_same_again_is_known() -> None:
    """It is asked before nonce and funds are: what is kept is known, whatever the account has now."""
    same = tx()
    kept = pool(same)
    assert kept.add(same, Standing(nonce=9, balance=0), BLOCK_GAS) == "already known"


def test_what_is_pending_has_to_be_covered_together() -> None:
    """Three at 0.4 ether are more than one ether, each alone is not; replacing one adds the difference."""
    dear, cost = ETHER * 4 // 10, 21_000 * 10 * GWEI
    kept = pool(tx(5, value=dear), tx(6, value=dear))
    queued = 2 * (dear + cost)
    assert kept.add(tx(7, value=dear), RICH, BLOCK_GAS) == (
        f"insufficient funds for gas * price + value: balance {ETHER}, queued cost {queued}, "
        f"tx cost {dear + cost}, overshot {queued + dear + cost - ETHER}"
    )
    bumped = tx(6, value=2 * dear, max_fee=20 * GWEI, tip=2 * GWEI)
    more = dear + cost
    assert kept.add(bumped, RICH, BLOCK_GAS) == (
        f"insufficient funds for gas * price + value: balance {ETHER}, queued cost {queued}, "
        f"tx bumped {more}, overshot {queued + more - ETHER}"
    )


def test_what_waits_for_a_gap_is_not_covered_together() -> None:
    """geth adds up what is pending alone."""
    dear = ETHER * 4 // 10
    kept = pool(tx(7, value=dear), tx(8, value=dear), tx(9, value=dear))
    assert len(list(kept)) == 3


def test_a_gap_is_kept_and_not_proposed() -> None:
    """What comes after a missing nonce waits, and is not counted as pending, until the gap is filled."""
    kept = pool(tx(5), tx(7))
    assert kept.next_nonce(ALICE, 5) == 6
    assert [each.nonce for each in kept.block({ALICE: RICH}, GWEI, BLOCK_GAS)] == [5]
    assert kept.add(tx(6), RICH, BLOCK_GAS) is None
    assert kept.next_nonce(ALICE, 5) == 8
    assert [each.nonce for each in kept.block({ALICE: RICH}, GWEI, BLOCK_GAS)] == [5, 6, 7]


def test_a_node_without_a_queue_refuses_a_gap() -> None:
    """Other nodes keep nothing that cannot be mined next."""
    kept = pool(tx(5), limits=Limits(gaps=False))
    assert kept.add(tx(7), RICH, BLOCK_GAS) == "nonce too high: tx nonce 7, gapped nonce 6"
    assert kept.add(tx(6), RICH, BLOCK_GAS) is None


def test_what_does_not_pay_the_base_fee_is_held_back_and_holds_up_what_follows() -> None:
    """It stays in the pool; a later nonce cannot go before it, however well it pays."""
    kept = pool(tx(5, max_fee=2 * GWEI), tx(6, max_fee=90 * GWEI))
    assert kept.block({ALICE: RICH}, 3 * GWEI, BLOCK_GAS) == []
    assert kept.underpaying({ALICE: RICH}, 3 * GWEI) == 1
    assert [each.nonce for each in kept.block({ALICE: RICH}, GWEI, BLOCK_GAS)] == [5, 6]


def test_a_block_takes_the_best_paid_first_as_far_as_its_gas_goes() -> None:
    """By what the proposer gets of each, across accounts."""
    kept = pool(tx(tip=1), tx(tip=3, sender=BOB))
    standings = {ALICE: RICH, BOB: RICH}
    assert [each.sender for each in kept.block(standings, GWEI, BLOCK_GAS)] == [BOB, ALICE]
    assert [each.sender for each in kept.block(standings, GWEI, 21_000)] == [BOB]


def test_what_cannot_be_paid_any_longer_is_neither_proposed_nor_kept() -> None:
    """After a block in which the account's balance fell, geth forgets what it does not cover."""
    kept = pool(tx(5))
    poor = {ALICE: Standing(5, 1)}
    assert kept.block(poor, GWEI, BLOCK_GAS) == []
    kept.settle(poor)
    assert list(kept) == []


def test_what_was_mined_is_forgotten() -> None:
    """By its nonce: whichever transaction had it."""
    kept = pool(tx(5), tx(6))
    kept.settle({ALICE: Standing(6, ETHER)})
    assert [each.nonce for each in kept] == [6]


def test_only_a_signed_eip_1559_transaction_is_read() -> None:
    """Others are refused in geth's words for a type that it does not take."""
    with pytest.raises(ValueError, match="transaction type not supported"):
        Pooled.read(b"\x01\xc0")
