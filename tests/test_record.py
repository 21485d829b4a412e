"""This payer's own record of a host: what counts, and for how long a host is set aside."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from tallystick.record import LONGEST, MEMORY, Came, Record, Trouble, told
from tallystick.types import Address

HOST = Address("0x" + "11" * 20)
GOOD = Came(100, 0.25)
BROKEN = Came(30, 0.25, Trouble.FAILED, "the reply broke off")


def after(*came: Came, aside: float = 60.0) -> Record:
    record = Record(HOST)
    for number, each in enumerate(came):
        record = record.after(each, 1000.0 + number, aside)
    return record


def test_what_came_is_counted() -> None:
    """Replies, tokens of all of them, each trouble under its name, and when something came of it last."""
    late = Came(trouble=Trouble.LATE, cause="late")
    over = Came(50, 0.25, Trouble.OVERCOUNTED, "60 tokens counted, 50 signed")
    record = after(GOOD, GOOD, BROKEN, late, over)
    assert (record.replies, record.tokens, record.troubles) == (2, 280, 3)
    assert (record.failures, record.late, record.overcounts) == (1, 1, 1)
    assert (record.last_seen, record.first_token_ms) == (1004.0, 250)
    assert record.cause == "60 tokens counted, 50 signed"


def test_a_reply_that_its_reader_left_before_a_token_says_nothing() -> None:
    """It is neither a reply nor a trouble, and ends no row of troubles."""
    before = after(BROKEN)
    assert before.after(Came(), 2000.0, 60.0) == before


@pytest.mark.parametrize(("times", "seconds"), [(1, 60), (2, 120), (3, 240), (40, LONGEST)])
def test_troubles_in_a_row_set_a_host_aside_for_longer(times: int, seconds: float) -> None:
    """Twice as long for each, a day at the most."""
    record = after(*[BROKEN] * times)
    began = 1000.0 + times - 1
    assert record.aside_until == began + seconds
    assert record.is_aside(began + seconds - 1)
    assert not record.is_aside(began + seconds)


def test_what_befell_several_requests_at_once_sets_a_host_aside_once() -> None:
    """Each is counted; those that were asked before a trouble was noted had the same one, as in a crash."""
    first = after(BROKEN)
    same = first.after(replace(BROKEN, began=999.0), 1001.0, 60.0)
    assert (same.failures, same.in_a_row, same.aside_until) == (2, 1, first.aside_until)
    another = same.after(replace(BROKEN, began=1000.5), 1002.0, 60.0)
    assert (another.failures, another.in_a_row, another.aside_until) == (3, 2, 1002.0 + 120)


def test_a_reply_ends_the_row() -> None:
    """A host that answers again is not set aside any more, and its next trouble is a first one."""
    record = after(BROKEN, BROKEN, GOOD)
    assert not record.is_aside(0.0)
    assert record.after(BROKEN, 2000.0, 60.0).aside_until == 2060.0


@pytest.mark.parametrize(
    ("came", "dearer"),
    [((), 1), ((GOOD,) * 9, 1), ((BROKEN,), 2), ((GOOD,) * 9 + (BROKEN,), Fraction(11, 10))],
)
def test_troubles_make_a_host_dearer(came: tuple[Came, ...], dearer: Fraction) -> None:
    """By requests a reply; a host that was never asked is taken at its price."""
    assert after(*came).dearer == dearer


def test_the_time_to_the_first_token_is_remembered_for_a_while() -> None:
    """It follows what a host does now: the newest reply counts for an eighth."""
    record = after(Came(1, 0.8), Came(1, 1.6))
    assert record.first_token_ms == (800 * (MEMORY - 1) + 1600) // MEMORY


def test_a_record_is_told_in_words() -> None:
    """Of a host that was never asked nothing is made up."""
    assert told(Record(HOST)) == "never asked"
    assert told(after(GOOD, BROKEN)) == "1 replies, 130 tokens, 1 failed; first token after 250 ms"
