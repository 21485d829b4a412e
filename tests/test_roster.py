"""Which endpoint is asked: set aside for cause, tried again in time, never from behind what was shown."""

from __future__ import annotations

import pytest

from tallystick.roster import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    LOOK_ELSEWHERE_EVERY,
    LOOK_EVERY,
    MAX_LAG,
    PATIENCE,
    Member,
    Roster,
    State,
)

CHAIN = 31_337


class Bench:
    """Three endpoints, and a clock that the test moves."""

    def __init__(self, *heads: int) -> None:
        self.now = 1_000.0
        self.roster = Roster(["a:1", "b:2", "c:3"], CHAIN)
        self.a, self.b, self.c = self.roster.members
        for member, head in zip(self.roster.members, heads, strict=False):
            self.looked(member, head)

    def looked(self, member: Member, head: int, chain_id: int = CHAIN) -> None:
        self.roster.looked(member, chain_id, head, self.now)

    def failed(self, member: Member) -> None:
        self.roster.failed(member, f"{member.host} did not answer", self.now)

    def states(self) -> list[State]:
        return [member.state for member in self.roster.members]

    def level(self, at_least: int = 0) -> Member | None:
        return self.roster.level(at_least, self.now)

    def due(self) -> list[Member]:
        return self.roster.due(self.now)


def test_at_first_all_are_to_be_looked_at_and_none_is_asked() -> None:
    """What nobody knows may be on another chain."""
    bench = Bench()
    assert bench.due() == bench.roster.members
    assert bench.roster.choose() is None
    assert bench.roster.complaint() == (
        "no endpoint can be asked: a:1 was not asked yet; b:2 was not asked yet; c:3 was not asked yet"
    )


def test_the_current_one_is_asked_as_long_as_it_is_good() -> None:
    """It does not change with each block: what one endpoint says fits together best."""
    bench = Bench(100, 103, 100)
    assert bench.roster.choose() is bench.a
    bench.failed(bench.a)
    assert bench.roster.choose() is bench.b
    bench.looked(bench.a, 104)
    assert bench.roster.choose() is bench.b


def test_the_next_one_is_asked_and_no_one_twice() -> None:
    """One after the other, in the operator's order."""
    bench = Bench(100, 100, 100)
    assert bench.roster.choose([bench.a]) is bench.b
    assert bench.roster.choose([bench.a, bench.b]) is bench.c
    assert bench.roster.choose(bench.roster.members) is None


def test_who_has_come_far_enough_goes_first() -> None:
    """Of those left, one that has what was shown already."""
    bench = Bench(102, 100, 102)
    bench.roster.show(102)
    bench.failed(bench.a)
    assert bench.roster.choose() is bench.c


# Another chain


def test_another_chain_is_set_aside_and_looked_at_again() -> None:
    """A minute later; once it is on the right chain it is good."""
    bench = Bench(100, 100)
    bench.looked(bench.c, 999_999, chain_id=1)
    assert bench.states() == [State.GOOD, State.GOOD, State.ELSEWHERE]
    assert bench.c.trouble == "c:3 is on chain 1, not 31337"
    bench.now += LOOK_ELSEWHERE_EVERY - 1
    assert bench.c not in bench.due()
    bench.now += 1
    assert bench.c in bench.due()
    bench.looked(bench.c, 100)
    assert bench.c.state is State.GOOD


def test_another_chain_has_no_say_in_how_far_ours_is() -> None:
    """Its blocks are no blocks of ours."""
    bench = Bench()
    bench.looked(bench.a, 999_999, chain_id=1)
    bench.looked(bench.b, 100)
    assert bench.b.state is State.GOOD


def test_all_on_another_chain() -> None:
    """That is told apart from not answering."""
    bench = Bench()
    for member in bench.roster.members:
        assert not bench.roster.elsewhere
        bench.looked(member, 1, chain_id=1)
    assert bench.roster.elsewhere


# Lag


@pytest.mark.parametrize(("behind", "state"), [(MAX_LAG, State.GOOD), (MAX_LAG + 1, State.LAGGING)])
def test_more_than_a_few_blocks_behind_is_set_aside(behind: int, state: State) -> None:
    """Whichever of them was looked at first."""
    for first, second in (("a", "b"), ("b", "a")):
        bench = Bench()
        heads = {"a": 100 - behind, "b": 100}
        for name in (first, second):
            bench.looked(getattr(bench, name), heads[name])
        assert (bench.a.state, bench.b.state) == (state, State.GOOD)


def test_who_catches_up_is_good_again() -> None:
    """At the next look."""
    bench = Bench(100, 80)
    assert bench.b.trouble == "b:2 is 20 blocks behind"
    bench.now += LOOK_EVERY
    bench.looked(bench.b, 99)
    assert bench.b.state is State.GOOD


def test_a_look_that_took_long_does_not_make_the_others_lag() -> None:
    """A chain of four blocks a second is twenty further on after five seconds."""
    bench = Bench(100)
    bench.now += 5
    bench.looked(bench.b, 120)
    assert bench.a.state is State.GOOD


def test_a_head_from_before_still_counts() -> None:
    """Who is behind what another said a minute ago is behind all the more now."""
    bench = Bench(100)
    bench.failed(bench.a)
    bench.now += 60
    bench.looked(bench.b, 90)
    assert bench.b.state is State.LAGGING


# Failures


def test_pauses_grow_while_failures_follow_one_another() -> None:
    """One second, two, four, and at last half a minute, however many fail; and one again after a while."""
    bench = Bench(100, 100, 100)
    pauses = []
    for _ in range(7):
        bench.failed(bench.a)
        pauses.append(bench.a.due - bench.now)
        bench.now = bench.a.due
        bench.looked(bench.a, 100)
    assert pauses == [1, 2, 4, 8, 16, LONGEST_PAUSE, LONGEST_PAUSE]
    bench.now += 2 * LONGEST_PAUSE + 1
    bench.failed(bench.a)
    assert bench.a.due - bench.now == FIRST_PAUSE


def test_calls_that_fail_together_are_one_failure() -> None:
    """A hundred requests to an endpoint that goes down do not set it aside for a hundred pauses."""
    bench = Bench(100, 100)
    for _ in range(100):
        bench.failed(bench.a)
    assert (bench.a.failures, bench.a.due) == (1, bench.now + FIRST_PAUSE)


def test_with_none_left_all_are_tried_every_second() -> None:
    """A pause is for as long as there is another one to ask."""
    bench = Bench(100, 100)
    for _ in range(5):
        bench.failed(bench.a)
        bench.now = bench.a.due
        bench.looked(bench.a, 100)
    bench.failed(bench.a)
    assert bench.a.due - bench.now == LONGEST_PAUSE
    bench.failed(bench.b)
    assert bench.a not in bench.due()
    bench.now += FIRST_PAUSE
    assert bench.due() == [bench.a, bench.b, bench.c]


# Transactions


def test_transactions_go_to_all_that_are_good() -> None:
    """To those that lag if there is no other; never to another chain."""
    bench = Bench(100, 100, 50)
    assert bench.roster.receivers() == [bench.a, bench.b]
    bench.failed(bench.a)
    bench.looked(bench.b, 1, chain_id=1)
    assert bench.roster.receivers() == [bench.c]


# Views


def test_a_view_is_never_from_behind_what_was_shown() -> None:
    """Not by one block: the transaction that one looks for may be in it."""
    bench = Bench(100, 101, 100)
    assert bench.level() is bench.a
    bench.roster.show(101)
    assert bench.level() is bench.b
    assert bench.level() is bench.b
    bench.roster.show(102)
    assert bench.level() is None
    assert bench.roster.complaint() == (
        "no endpoint has come to block 102, which was seen already: "
        "a:1 is at block 100; b:2 is at block 101; c:3 is at block 100"
    )


def test_a_view_has_what_the_reader_knows_of() -> None:
    """After a restart nothing was shown yet, and the ledger says how far the chain was."""
    bench = Bench(100, 100)
    assert bench.level(at_least=101) is None
    bench.looked(bench.b, 101)
    assert bench.level(at_least=101) is bench.b


def test_a_chain_that_went_back_is_believed_in_the_end() -> None:
    """When all have been behind for ten minutes, with somebody asking all the time."""
    bench = Bench(100, 90)
    bench.roster.show(110)
    asked_until = bench.now + PATIENCE
    while bench.now < asked_until:
        assert bench.level() is None
        bench.now += 15
    assert bench.level() is bench.a
    assert bench.roster.shown == 100


def test_being_behind_now_and_then_is_no_proof() -> None:
    """Somebody who looked an hour ago, and looks again, has not seen that all were behind in between."""
    bench = Bench(100)
    bench.roster.show(110)
    assert bench.level() is None
    bench.now += 10 * PATIENCE
    assert bench.level() is None


# Telling


def test_each_one_s_status_is_told() -> None:
    """Good or not, with what is known of it."""
    bench = Bench(100, 80)
    bench.failed(bench.c)
    assert [(status.good, status.told) for status in bench.roster.statuses()] == [
        (True, "a:1 is at block 100"),
        (False, "b:2 is 20 blocks behind"),
        (False, "c:3 did not answer"),
    ]


# One alone


def test_one_that_is_alone_is_not_set_aside_for_a_failure() -> None:
    """Nobody else can be asked, so the next call looks at it at once; it tells what went wrong."""
    roster = Roster(["a:1"], CHAIN)
    [member] = roster.members
    roster.looked(member, CHAIN, 100, 1_000.0)
    assert roster.due(1_000.0) == []
    roster.failed(member, "a:1 did not answer", 1_000.0)
    assert not member.state.set_aside
    assert roster.choose() is None
    assert roster.due(1_000.0) == [member]
    assert roster.complaint() == "a:1 did not answer"
    roster.looked(member, CHAIN, 100, 1_000.0)
    assert roster.choose() is member


def test_one_that_is_alone_is_level_with_what_was_shown() -> None:
    """There is nobody to be behind of."""
    roster = Roster(["a:1"], CHAIN)
    [member] = roster.members
    roster.looked(member, CHAIN, 100, 1_000.0)
    roster.show(200)
    assert roster.level(300, 1_000.0) is member


def test_one_that_is_alone_on_another_chain_is_not_asked() -> None:
    """It is looked at as often as one that is good, since nothing can be done until it is back."""
    roster = Roster(["a:1"], CHAIN)
    [member] = roster.members
    roster.looked(member, 5, 100, 1_000.0)
    assert roster.elsewhere
    assert roster.level(0, 1_000.0) is None
    assert roster.complaint() == "a:1 is on chain 5, not 31337"
    assert roster.due(1_000.0 + LOOK_EVERY) == [member]
