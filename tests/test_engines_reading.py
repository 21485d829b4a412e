"""A reply is read from its bytes, however they are cut."""

from __future__ import annotations

from typing import Any

import pytest

from tallystick import sse
from tallystick.engine import Piece, Pieces
from tallystick.engines.dialect import ContinuousUsage, LlamaCpp
from tallystick.engines.reading import Reading
from tallystick.errors import EngineError, EngineFalseStart, EngineRefused, EngineUnavailable
from tests.asking import running


def counted(tokens: int, said: str = "x") -> dict[str, Any]:
    return {
        "choices": [{"index": 0, "delta": {"content": said}, "finish_reason": None}],
        "timings": {"prompt_n": 1, "cache_n": 6, "predicted_n": tokens},
    }


def wholes(pieces: Pieces) -> list[Piece]:
    return [piece.whole() for piece in pieces]


def feed(*chunks: Any) -> tuple[Reading, list[Piece]]:
    reply = Reading(LlamaCpp())
    return reply, wholes(reply.feed(b"".join(sse.event(chunk) for chunk in chunks)))


def test_a_reply_may_be_cut_anywhere() -> None:
    """However the network cuts a reply, the pieces are the same."""
    whole = b": ping\n\n" + b"".join(sse.event(counted(n, "é🦊")) for n in (1, 4, 5)) + sse.DONE
    expected = wholes(Reading(LlamaCpp()).feed(whole))
    assert running(expected) == [1, 4, 5]
    for size in range(1, 60):
        reply = Reading(LlamaCpp())
        cuts = [whole[at : at + size] for at in range(0, len(whole), size)]
        assert [piece for cut in cuts for piece in wholes(reply.feed(cut))] == expected
        assert reply.done


def test_the_prompt_is_counted_with_the_first_token() -> None:
    """Before a token there is no prompt to pay for, though a server may have told its length."""
    reply = Reading(ContinuousUsage())
    early = {
        "choices": [{"delta": {"role": "assistant"}}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 0},
    }
    assert reply.piece(early).prompt_tokens == 0
    assert reply.piece({**early, "usage": {"prompt_tokens": 7, "completion_tokens": 1}}).prompt_tokens == 7


def test_an_error_in_a_stream_keeps_what_came_before() -> None:
    """Pieces of the same read are given before the error is raised."""
    reply, pieces = feed(counted(1), counted(2), {"error": {"code": 500, "message": "out of memory"}})
    assert running(pieces) == [1, 2]
    assert type(reply.failure) is EngineError
    assert "out of memory" in str(reply.failure)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 400, "message": "bad"}, EngineRefused),
        ({"code": 503, "message": "bad"}, EngineUnavailable),
        ({"code": 500, "message": "bad"}, EngineFalseStart),
        ({"code": "internal_error", "message": "bad"}, EngineFalseStart),
        ("bad", EngineFalseStart),
    ],
)
def test_an_error_before_the_first_token(error: Any, kind: type[EngineError]) -> None:
    """An error in the stream, before any token, is judged as a status would be."""
    reply, pieces = feed({"error": error})
    assert pieces == []
    assert type(reply.failure) is kind
    assert "bad" in str(reply.failure)


@pytest.mark.parametrize(
    "data",
    [
        b"data: {\n\n",
        b"data: []\n\n",
        b'data: {"choices": 5}\n\n',
        b'data: {"timings": {"predicted_n": "9"}}\n\n',
    ],
)
def test_what_cannot_be_read_is_a_failure(data: bytes) -> None:
    """A chunk that is no chunk ends the reply with an error that says so."""
    reply, _ = feed(counted(1))
    assert reply.feed(data) == []
    assert type(reply.failure) is EngineError
    assert "cannot be read" in str(reply.failure)


def test_a_count_never_goes_back() -> None:
    """A running count that falls is an engine's fault, not a credit."""
    reply, pieces = feed(counted(5), counted(4))
    assert running(pieces) == [5]
    assert "went back from 5 to 4" in str(reply.failure)


def test_a_reply_without_its_end_broke_off() -> None:
    """A stream that ends without saying so is not whole."""
    reply, _ = feed(counted(5))
    reply.end()
    assert not reply.done
    assert "broke off after 5 tokens" in str(reply.failure)
