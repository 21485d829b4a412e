"""Who may deliver how much: what there is room for is shared fairly, and all of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tallystick.shares import Want, shares


@st.composite
def wanting(draw: st.DrawFn) -> list[Want]:
    """Streams that wait."""
    rows = draw(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 5), st.integers(0, 60)), max_size=12))
    return [Want(*row) for row in rows]


def test_equal_streams_get_equal_shares() -> None:
    """A hundred tokens for sixteen: six each, and one more for those that wait longest."""
    got = shares(100, [Want(0, 1, 300)] * 16)
    assert got == [7] * 4 + [6] * 12


def test_whoever_has_least_unsigned_comes_first() -> None:
    """A reader that does not sign gets nothing more while another one does."""
    assert shares(3, [Want(97, 1, 200), Want(0, 1, 200)]) == [0, 3]
    assert shares(60, [Want(30, 1, 200), Want(0, 1, 200)]) == [15, 45]


def test_one_token_goes_to_the_one_that_waits_longest() -> None:
    """So each has its turn."""
    assert shares(1, [Want(5, 1, 9)] * 3) == [1, 0, 0]


def test_a_piece_goes_out_whole() -> None:
    """Less than the next piece is of no use: it goes to others."""
    assert shares(6, [Want(0, 5, 50), Want(0, 5, 50), Want(9, 1, 1)]) == [5, 0, 1]


def test_room_is_saved_for_a_large_piece_whose_turn_it_is() -> None:
    """Others wait until it fits, and not for what never will."""
    large, small = Want(0, 60, 60), Want(0, 1, 300)
    assert shares(40, [large, small, small], reach=100) == [0, 0, 0]
    assert shares(70, [large, small, small], reach=100) == [60, 5, 5]
    assert shares(70, [small, large], reach=100) == [70, 0]
    assert shares(40, [large, small], reach=59) == [0, 40]


@given(st.integers(0, 400), wanting(), st.integers(0, 400))
def test_whoever_waits_longest_is_not_passed_over(room: int, wants: list[Want], coming: int) -> None:
    """The first whose piece will fit has it, or nobody has anything; no more is given than there is."""
    got = shares(room, wants, room + coming)
    able = [n for n, want in enumerate(wants) if want.least <= min(want.most, room + coming)]
    assert sum(got) <= room
    assert all(share == 0 or want.least <= share <= want.most for share, want in zip(got, wants, strict=True))
    if able:
        assert got[able[0]] >= wants[able[0]].least or not any(got)


@given(st.integers(0, 400), wanting())
def test_no_more_is_given_than_there_is_and_none_more_than_it_can_use(room: int, wants: list[Want]) -> None:
    """A share is nothing, or the next piece at least."""
    got = shares(room, wants)
    assert sum(got) <= room
    assert all(share == 0 or want.least <= share <= want.most for share, want in zip(got, wants, strict=True))


@given(st.integers(0, 400), wanting())
def test_nothing_is_left_that_anybody_could_use(room: int, wants: list[Want]) -> None:
    """Whoever got less than it can use: all is given out. Whoever got nothing: its piece does not fit."""
    got = shares(room, wants)
    left = room - sum(got)
    for share, want in zip(got, wants, strict=True):
        assert left == 0 or share == want.most or (share == 0 and want.least > min(left, want.most))


@given(st.integers(0, 400), wanting())
def test_nobody_gets_more_while_another_has_less_unsigned(room: int, wants: list[Want]) -> None:
    """Beyond its next piece, and but for one token, of those that got a share and could use more."""
    got = shares(room, wants)
    rows = [(want.unsigned + share, share, want) for share, want in zip(got, wants, strict=True) if share]
    for high, share, want in rows:
        if share > want.least:
            assert all(high <= low + 1 for low, less, other in rows if less < other.most)
