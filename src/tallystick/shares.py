"""Who may deliver how much, when several streams of a job wait for the same room.

A payer is lent one credit for all streams of a job together. What there is of it goes to whoever has least
unsigned, so that no stream waits for another one's reader; and room is saved for a large piece whose turn it
is, so that none is passed over for ever. Rules only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple


class Want(NamedTuple):
    """A stream that waits, in generated tokens."""

    unsigned: int
    """What it has delivered and nobody has signed for."""
    least: int
    """What the next piece brings, which goes out whole: at least 1."""
    most: int
    """What it may have: all that its pieces bring, or less. Less than the next piece is nothing."""


def shares(room: int, wants: Sequence[Want], reach: int = 0) -> list[int]:
    """How many of `room` tokens each gets, in the order of `wants`: whoever waits longest comes first in it.

    What is unsigned in the end is as level as can be (max-min fairness), in whole pieces; and nothing is left
    that anybody could use. But first the piece goes out that waits longest: `reach` is what there is room for
    once all is signed that others deliver, and if the piece fits that, nobody gets anything until it fits.
    """
    first = next((n for n, want in enumerate(wants) if want.least <= min(want.most, reach)), None)
    if first is None:
        return _shared(room, wants)
    least = wants[first].least
    if least > room:
        return [0] * len(wants)
    given = _shared(room, wants)
    if given[first] < least:
        others = _shared(room - least, [*wants[:first], *wants[first + 1 :]])
        given = [*others[:first], least, *others[first:]]
    return given


def _shared(room: int, wants: Sequence[Want]) -> list[int]:
    given = _levelled(room, [(want.unsigned, want.most) for want in wants])
    short = [n for n, want in enumerate(wants) if given[n] < want.least]
    left = room - sum(given) + sum(given[n] for n in short)
    for n in sorted(short, key=lambda n: wants[n].unsigned):
        given[n] = wants[n].least if wants[n].least <= min(left, wants[n].most) else 0
        left -= given[n]
    rest = [
        (want.unsigned + share, want.most - share if share else 0)
        for want, share in zip(wants, given, strict=True)
    ]
    return [share + more for share, more in zip(given, _levelled(left, rest), strict=True)]


def _levelled(room: int, heights: Sequence[tuple[int, int]]) -> list[int]:
    """Fills up the lowest to a common level, each by no more than it can use."""
    if not heights:
        return []

    def filled(level: int) -> list[int]:
        return [min(usable, max(0, level - height)) for height, usable in heights]

    levels = range(min(height for height, _ in heights), max(height for height, _ in heights) + room + 1)
    level = levels[bisect_right(levels, room, key=lambda level: sum(filled(level))) - 1]
    given = filled(level)
    left = room - sum(given)
    for n, more in enumerate(filled(level + 1)):
        if left and more > given[n]:
            given[n] += 1
            left -= 1
    return given
