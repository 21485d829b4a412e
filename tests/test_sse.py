"""Server-sent events: the same however they arrive."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick import sse
from tallystick.sse import SSEParser


@settings(deadline=None)
@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20), min_size=1), max_size=6),
    st.lists(st.integers(1, 40), max_size=30),
    st.booleans(),
)
def test_events_are_the_same_however_they_arrive(
    objects: list[dict[str, str]], cuts: list[int], carriage_returns: bool
) -> None:
    """A stream cut anywhere, with either line end and with comments, gives the events that were sent."""
    raw = b": a comment\n\n" + b"".join(map(sse.event, objects)) + sse.DONE
    if carriage_returns:
        raw = raw.replace(b"\n", b"\r\n")
    parser, payloads = SSEParser(), []
    for cut in cuts:
        payloads += parser.feed(raw[:cut])
        raw = raw[cut:]
    payloads += parser.feed(raw)
    assert [orjson.loads(payload) for payload in payloads[:-1]] == objects
    assert payloads[-1] == b"[DONE]"


@pytest.mark.parametrize(
    ("raw", "payloads"),
    [
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data:a\n\ndata:  b\n\n", [b"a", b" b"]),
        (b"event: message\nid: 7\nretry: 10\ndata: a\n\n", [b"a"]),
        (b": ping\n\n\n\ndata: a\n\n", [b"a"]),
        (b"data: a: b\n\n", [b"a: b"]),
        (b"database: a\n\ndata\n\ndata:\n\n", []),
        (b"data: not ended\n", []),
        (b"data: not ended", []),
    ],
)
def test_events_are_read_as_the_standard_has_it(raw: bytes, payloads: list[bytes]) -> None:
    """Several lines of data are one payload; comments, other fields and unfinished events are none."""
    assert SSEParser().feed(raw) == payloads


def feed_without_end(parser: SSEParser, part: bytes) -> None:
    for _ in range(100):
        assert parser.feed(part) == []


@pytest.mark.parametrize(
    "part", [b"x", b"data: x\n", b"\ndata: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"]
)
def test_an_event_without_end_is_given_up(part: bytes) -> None:
    """What the other side never finishes is not kept without bound."""
    parser = SSEParser(limit=40)
    with pytest.raises(ValueError, match="longer than 40 bytes"):
        feed_without_end(parser, part)


def test_many_events_within_the_limit_are_not_one_too_long() -> None:
    """The limit is an event's, not the stream's."""
    parser = SSEParser(limit=40)
    assert sum(len(parser.feed(b"data: xxxxxxxxxx\n\n")) for _ in range(100)) == 100
