"""Which of the endpoints of one chain are asked, given what each of them said, and when.

    unknown --> good <--> lagging      more than a few blocks behind the best of them
                 ^ |
                 | '----> failing      gave no answer: left alone, for longer each time
                 '------> elsewhere    on another chain

One that is alone is set aside for nothing but another chain: who else should be asked? If it fails it is
unknown again, so the next call looks at it first. Knows no network and no clock. Times are in seconds, on
any clock that only goes forward.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from dataclasses import dataclass

MAX_LAG = 5
"""Blocks that an endpoint may be behind the best one."""
LOOK_EVERY = 5.0
"""Seconds between looks at an endpoint that answers."""
LOOK_ELSEWHERE_EVERY = 60.0
"""Seconds between looks at one that is on another chain."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds for which one is left alone that failed: doubled with each failure that follows soon."""
PATIENCE = 600.0
"""Seconds that all have to stay behind a block that was shown, for it to be believed that it is no more."""
COMPARABLE = 1.0
"""Seconds between two looks whose heads are held against each other, the higher one later."""

_NEVER = float("-inf")


class State(enum.Enum):
    """How an endpoint is seen."""

    UNKNOWN = enum.auto()
    GOOD = enum.auto()
    LAGGING = enum.auto()
    FAILING = enum.auto()
    ELSEWHERE = enum.auto()

    @property
    def set_aside(self) -> bool:
        """Nothing is asked of it for now."""
        return self in {State.LAGGING, State.FAILING, State.ELSEWHERE}


@dataclass(slots=True, eq=False)
class Member:
    """One endpoint, by all of its URL that may be shown."""

    host: str
    state: State = State.UNKNOWN
    head: int = 0
    """The latest block when it was last looked at."""
    trouble: str = ""
    """Why it is set aside, with its host."""
    seen_at: float = _NEVER
    """When it was last looked at and answered."""
    due: float = _NEVER
    """When to look at it next."""
    failures: int = 0
    """How many in a row, none long after the one before it."""
    failed_at: float = _NEVER

    def __str__(self) -> str:
        if self.trouble:
            return self.trouble
        if self.state is State.UNKNOWN:
            return f"{self.host} was not asked yet"
        return f"{self.host} is at block {self.head}"


@dataclass(frozen=True, slots=True)
class Status:
    """What there is to tell of one endpoint."""

    good: bool
    told: str
    """With its host, and nothing else of its URL."""


class Roster:
    """The endpoints of the chain `chain_id`, in their operator's order."""

    def __init__(self, hosts: Sequence[str], chain_id: int) -> None:
        self.members = [Member(host) for host in hosts]
        self.chain_id = chain_id
        self.current = self.members[0]
        """The one that is asked as long as it is good."""
        self.shown = 0
        """The highest block that an answer to anybody came from, as far as is known."""
        self._behind_since = _NEVER
        self._behind_at = _NEVER

    # What happened

    def looked(self, member: Member, chain_id: int, head: int, now: float) -> None:
        """It says that it is on that chain, and that `head` is the latest block."""
        member.head, member.seen_at, member.due = head, now, now + LOOK_EVERY
        member.state, member.trouble = State.GOOD, ""
        if chain_id != self.chain_id:
            member.state, member.due = State.ELSEWHERE, now + LOOK_ELSEWHERE_EVERY
            member.trouble = f"{member.host} is on chain {chain_id}, not {self.chain_id}"
        self._find_lagging()

    def failed(self, member: Member, why: str, now: float) -> None:
        """It gave no usable answer. Calls that fail together are one failure."""
        if self._alone:
            member.state, member.trouble, member.due = State.UNKNOWN, why, _NEVER
            return
        if member.state is State.FAILING and now < member.due:
            return
        soon = now - member.failed_at <= 2 * LONGEST_PAUSE
        member.failures = member.failures + 1 if soon else 1
        member.state, member.trouble, member.failed_at = State.FAILING, why, now
        member.due = now + min(FIRST_PAUSE * 2 ** (member.failures - 1), LONGEST_PAUSE)

    def show(self, block: int) -> None:
        """An answer that somebody gets came from that block, or a later one."""
        self.shown = max(self.shown, block)

    # What follows

    def due(self, now: float) -> list[Member]:
        """Those to look at. While none is good, those set aside are looked at as soon as at first."""
        return [member for member in self.members if self._due(member) <= now]

    def choose(self, tried: Collection[Member] = ()) -> Member | None:
        """The one to ask, which is the current one from now on. None: there is none but those `tried`."""
        good = [member for member in self.good() if member not in tried]
        if good and self.current not in good:
            # The first that has come as far as what was shown already, if there is one.
            self.current = min(good, key=lambda member: member.head < self.shown)
        return self.current if good else None

    def level(self, at_least: int, now: float) -> Member | None:
        """As `choose`, but none that is behind block `at_least`, or behind what was shown already.

        None: all are behind, or none is good. Once all were behind for PATIENCE, the chain itself has gone
        back, and the one that is furthest is level. One that is alone is level with itself.
        """
        good, floor = self.good(), 0 if self._alone else max(at_least, self.shown)
        level = [member for member in good if member.head >= floor]
        if not level and good and self._behind_for(now) >= PATIENCE:
            furthest = max(good, key=lambda member: member.head)
            self.shown, level = furthest.head, [furthest]
        if level:
            self._behind_at = _NEVER
            self.current = self.current if self.current in level else level[0]
        return self.current if level else None

    def good(self) -> list[Member]:
        """Those that may be asked."""
        return self._in(State.GOOD)

    def receivers(self) -> list[Member]:
        """Those that a transaction is sent to: all good ones, or if there is none, those that lag."""
        return self.good() or self._in(State.LAGGING)

    @property
    def elsewhere(self) -> bool:
        """All are on other chains."""
        return len(self._in(State.ELSEWHERE)) == len(self.members)

    def statuses(self) -> list[Status]:
        """Each of them, for whoever looks after them."""
        return [Status(member.state is State.GOOD, str(member)) for member in self.members]

    def complaint(self, at_least: int = 0) -> str:
        """Why none of them can be asked: none is good, or all of these are behind."""
        if self._alone:
            return str(self.current)
        what = "can be asked"
        if self.good():
            what = f"has come to block {max(at_least, self.shown)}, which was seen already"
        return f"no endpoint {what}: " + "; ".join(map(str, self.members))

    @property
    def _alone(self) -> bool:
        return len(self.members) == 1

    def _in(self, state: State) -> list[Member]:
        return [member for member in self.members if member.state is state]

    def _due(self, member: Member) -> float:
        if self.good():
            return member.due
        soonest = {
            State.FAILING: member.failed_at + FIRST_PAUSE,
            State.ELSEWHERE: member.seen_at + LOOK_EVERY,
        }
        return min(member.due, soonest.get(member.state, member.due))

    def _behind_for(self, now: float) -> float:
        """For how long it was found again and again that all are behind."""
        if now - self._behind_at > LOOK_ELSEWHERE_EVERY:
            self._behind_since = now
        self._behind_at = now
        return now - self._behind_since

    def _find_lagging(self) -> None:
        for member in self._in(State.GOOD) + self._in(State.LAGGING):
            behind = self._best_for(member) - member.head
            member.state, member.trouble = State.GOOD, ""
            if behind > MAX_LAG:
                member.state = State.LAGGING
                member.trouble = f"{member.host} is {behind} blocks behind"

    def _best_for(self, member: Member) -> int:
        """The highest head that was seen when this one's was, or before: later ones are higher anyway."""
        first, last = member.seen_at - PATIENCE, member.seen_at + COMPARABLE
        seen = [other for other in self.members if other.state is not State.ELSEWHERE]
        return max(other.head for other in seen if first <= other.seen_at <= last)
