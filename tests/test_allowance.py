"""How far a host's count may be from the payer's own."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick.allowance import MARKS, PERCENT, RESERVE, SHARE, UNSEEN, Account, countable

replies = st.lists(st.tuples(st.integers(0, 400), st.integers(-50, 400)), max_size=60)
"""Own counts, and what the host says beyond them."""


def counted(account: Account, own: int, said: int) -> int:
    """A whole reply: what of the host's count is within the allowance."""
    reply = account.begin({})
    reply.tokens = own
    signed = max(0, min(said, reply.most))
    reply.count(signed)
    reply.close()
    return signed


@given(replies)
def test_no_host_gets_more_than_share_and_reserve(told: list[tuple[int, int]]) -> None:
    """Whatever a host says: all own counts, 2 a reply, 2 % and the reserve bound what is signed in all."""
    account = Account()
    signed = sum(counted(account, own, own + more) for own, more in told)
    own = sum(own for own, _ in told)
    assert signed <= own + UNSEEN * len(told) + SHARE * own / PERCENT + RESERVE


@given(replies)
def test_what_stays_within_the_reserve_is_signed_in_full(told: list[tuple[int, int]]) -> None:
    """No count is cut while no run of replies is beyond 2 a reply and 2 % by more than the reserve."""
    account, run = Account(), 0
    for own, more in told:
        beyond = PERCENT * (more - UNSEEN) - SHARE * own
        run = max(0, run) + beyond
        if run > RESERVE * PERCENT:
            break
        assert counted(account, own, own + more) == max(0, own + more)


@given(st.lists(st.integers(0, 300), min_size=1, max_size=20))
def test_replies_at_the_same_time_share_one_reserve(owns: list[int]) -> None:
    """Replies under way cannot each take the whole reserve."""
    account = Account()
    under_way = [account.begin({}) for _ in owns]
    for reply, own in zip(under_way, owns, strict=True):
        reply.tokens = own
        reply.count(reply.most)
    signed = sum(own + UNSEEN + RESERVE + own for own in owns)
    assert signed >= sum(reply.most for reply in under_way)
    assert account.reserve >= 0
    spent = sum(reply.beyond for reply in under_way if reply.beyond > 0)
    assert spent <= RESERVE * PERCENT


@pytest.mark.parametrize(("length", "most"), [(1_000, 4_000), (150, 4_350), (50, 10_000)])
def test_padding_by_five_percent_is_found(length: int, most: int) -> None:
    """A host that adds 5 % is cut within 100 / (0.03 - 1 / length) tokens: 4 290 for replies of 150.

    The end token of a reply is one of the two that nobody sees; the other is the padder's.
    """
    account, delivered, told = Account(), 0, 0
    for reply in range(1, 1_000):
        delivered += length
        said = reply * (length + 1) * 105 // 100 - told
        told += said
        if counted(account, length, said) < said:
            break
    assert delivered <= RESERVE / (0.03 - 1 / length) + length
    assert delivered <= most


def test_honest_counts_are_never_cut() -> None:
    """Ten thousand replies in which one token in a hundred is split up to four times, and none is cut."""
    draw, account = random.Random(1954), Account()
    for _ in range(10_000):
        own = draw.randint(1, 500)
        bursts = sum(draw.random() < 0.0025 for _ in range(own))
        said = own + 1 + 4 * bursts
        assert counted(account, own, said) == said


def test_a_stop_string_is_allowed_for() -> None:
    """What the engine made of a stop string is billed and never told: a token a byte at the most."""
    assert Account().begin({"stop": ["###", "\n"]}).seen == UNSEEN + 3
    assert Account().begin({"stop": "End."}, choices=2).seen == 2 * UNSEEN + 4
    assert Account().begin({"stop": 7}).seen == UNSEEN


def test_marks_are_allowed_once_a_part() -> None:
    """A reasoning and each tool call has marks that nobody sees; a call only where tools were offered."""
    plain, calling = Account().begin({}), Account().begin({"tools": [{}]})
    for reply in (plain, calling):
        for part in ("reasoning of 0", "call 0 of 0", "reasoning of 0", "call 0 of 0", "call 1 of 0"):
            reply.mark(part)
    assert plain.seen == UNSEEN + MARKS
    assert calling.seen == UNSEEN + 3 * MARKS


@pytest.mark.parametrize(
    ("sampling", "sure"),
    [
        ({}, True),
        ({"temperature": 1}, True),
        ({"temperature": 1.2}, False),
        ({"logit_bias": {"7": 5}}, False),
        ({"logit_bias": {}}, True),
    ],
)
def test_heated_sampling_is_not_counted(sampling: dict[str, object], sure: bool) -> None:
    """Where the payer asks for splits that no tokenizer makes, its tokenizer counts nothing."""
    assert countable(sampling) is sure
