"""What happens, told to whoever listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from tallystick import feed
from tallystick.feed import COMMENT, Feed


async def begun(source: Feed) -> AsyncGenerator[bytes, None]:
    """A listener that was told that it listens."""
    listener = source.listen()
    assert await anext(listener) == COMMENT
    return listener


async def test_all_who_listen_are_told_in_order() -> None:
    """Each listener has each event from when it began, as an event of its own."""
    source = Feed()
    one = await begun(source)
    source.tell({"kind": "a"})
    other = await begun(source)
    source.tell({"kind": "b"})
    source.close()
    assert [each async for each in one] == [b'data: {"kind":"a"}\n\n', b'data: {"kind":"b"}\n\n']
    assert [each async for each in other] == [b'data: {"kind":"b"}\n\n']


async def test_who_does_not_keep_up_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a listener is bounded; it has what waited, and then its stream ends."""
    monkeypatch.setattr(feed, "WAITING", 3)
    source = Feed()
    slow, quick = await begun(source), await begun(source)
    for number in range(5):
        source.tell({"number": number})
        assert await anext(quick) == b'data: {"number":%d}\n\n' % number
    assert [each async for each in slow] == [b'data: {"number":%d}\n\n' % number for number in range(3)]


async def test_silence_is_broken_by_a_comment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that has gone is noticed by what is sent to it when nothing happens."""
    monkeypatch.setattr(feed, "QUIET", 0.01)
    listener = await begun(Feed())
    assert await anext(listener) == COMMENT


async def test_a_closed_feed_lets_everybody_go() -> None:
    """Who listens is let go at once, and so is who comes later."""
    source = Feed()
    listener = await begun(source)
    ending = asyncio.create_task(anext(listener, None))
    await asyncio.sleep(0)
    source.close()
    assert await ending is None
    assert [each async for each in source.listen()] == [COMMENT]
