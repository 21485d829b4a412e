"""What replies have sent is kept by number, for a while, within bounds."""

from __future__ import annotations

import asyncio

import pytest

from tallystick import replay
from tallystick.errors import Refusal
from tallystick.replay import Name, Replays, Tape
from tallystick.types import JobId

NAME: Name = (JobId(121), "a key")


async def all_of(tape: Tape, after: int = 0) -> bytes:
    return b"".join([event async for events in tape.follow(after) for event in events])


async def test_a_tape_is_followed_as_it_is_recorded() -> None:
    """Who follows gets what was there, and what comes, in order and once."""
    tape = Tape(b"", 1000)
    tape.add(b"a")
    following = asyncio.create_task(all_of(tape))
    for event in (b"b", b"c"):
        await asyncio.sleep(0)
        tape.add(event)
    tape.end()
    assert await following == b"abc"
    assert await all_of(tape, after=1) == b"bc"
    assert await all_of(tape, after=3) == b""


async def test_the_newest_are_kept() -> None:
    """A tape is bounded in bytes; what it holds no more is refused, and so is what never was."""
    tape = Tape(b"", 3)
    for event in (b"aa", b"bb", b"c"):
        tape.add(event)
    tape.end()
    assert tape.size == 3
    assert await all_of(tape, after=1) == b"bbc"
    for after in (0, 4):
        with pytest.raises(Refusal) as caught:
            await all_of(tape, after)
        assert caught.value.code == "reply_gone"


async def test_whoever_leaves_last_ends_it() -> None:
    """A reply whose client is gone goes on while somebody follows, and ends with the last who does."""
    tape = Tape(b"", 1000)
    tape.add(b"a")
    cuts: list[str] = []
    follower = tape.follow(0)
    assert await anext(follower) == [b"a"]
    tape.leave(lambda: cuts.append("cut"))
    assert cuts == []
    await follower.aclose()
    assert cuts == ["cut"]


async def test_alone_it_ends_at_once() -> None:
    """A reply that nobody follows ends when its client leaves."""
    cuts: list[str] = []
    Tape(b"", 1000).leave(lambda: cuts.append("cut"))
    assert cuts == ["cut"]


async def test_kept_for_a_while() -> None:
    """A tape is found while it is recorded and for its time after, then forgotten."""
    replays = Replays(keep=0.01)
    with replays.recording(NAME, b"") as tape:
        assert tape is not None
        tape.add(b"a")
        assert replays.find(NAME) is tape
        with replays.recording(NAME, b"") as second:
            assert second is None
    assert replays.find(NAME) is tape
    await asyncio.sleep(0.05)
    assert replays.find(NAME) is None


async def test_what_sent_nothing_is_not_kept() -> None:
    """A reply that failed before it began leaves its name free."""
    replays = Replays(keep=60)
    with replays.recording(NAME, b""):
        pass
    assert replays.find(NAME) is None
    with replays.recording(None, b"") as tape:
        assert tape is None


async def test_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many replies are over, together they hold so many bytes: the oldest are forgotten first."""
    monkeypatch.setattr(replay, "KEPT_LIMIT", 25)
    replays = Replays(keep=60)
    names = [(JobId(121), f"key {number}") for number in range(4)]
    for name in names:
        with replays.recording(name, b"") as tape:
            assert tape is not None
            tape.add(bytes(10))
    assert [replays.find(name) is not None for name in names] == [False, False, True, True]
