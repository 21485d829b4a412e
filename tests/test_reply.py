"""An answer that was not asked for as a stream is what the stream would have added up to."""

from __future__ import annotations

from typing import Any

import pytest

from tallystick.engine import Piece
from tallystick.engines.dialect import LlamaCpp
from tallystick.engines.reading import Reading
from tallystick.reply import CHAT, TEXT, assemble, message


def piece(delta: dict[str, Any], *, finish_reason: str | None = None, tokens: int = 0, **more: Any) -> Piece:
    """A chunk as llama.cpp sends it."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, **more}
    timings = {"prompt_n": 5, "predicted_n": tokens}
    return Reading(LlamaCpp()).piece({"id": "chatcmpl-1", "choices": [choice], "timings": timings})


def test_text() -> None:
    """Content and reasoning go on where they left off; a role is said once."""
    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "content": None},
        {"reasoning_content": "Hm"},
        {"reasoning_content": "m."},
        {"content": "The "},
        {"content": "tally."},
    ]
    assert message(deltas) == {
        "role": "assistant",
        "content": "The tally.",
        "refusal": None,
        "reasoning_content": "Hmm.",
    }


def test_tool_calls() -> None:
    """The parts of tool calls go to the call that their index names."""
    deltas: list[dict[str, Any]] = [
        {"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "split"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"in":'}}]},
        {"tool_calls": [{"index": 1, "id": "b", "function": {"name": "join", "arguments": "{}"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "2}"}}]},
    ]
    calls = message(deltas)["tool_calls"]
    assert [(call["id"], call["function"]) for call in calls] == [
        ("a", {"name": "split", "arguments": '{"in":2}'}),
        ("b", {"name": "join", "arguments": "{}"}),
    ]


def test_assemble() -> None:
    """One piece has the last counts, the reason of the end, the usage, and all log probabilities."""
    pieces = [
        piece({"role": "assistant", "content": "a"}, tokens=1, logprobs={"content": [{"token": "a"}]}),
        piece({"content": "b"}, tokens=2, logprobs={"content": [{"token": "b"}]}),
        piece({}, tokens=2, finish_reason="stop"),
    ]
    whole = assemble(pieces, CHAT)
    assert (whole.text, whole.tokens, whole.prompt_tokens, whole.finish_reason) == ("ab", 2, 5, "stop")
    assert whole.raw["object"] == "chat.completion"
    [choice] = whole.raw["choices"]
    assert choice["message"] == {"role": "assistant", "content": "ab", "refusal": None}
    assert choice["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}]}


def test_choices() -> None:
    """Each choice goes on where it left off, however they came mixed, and has its own reason for its end."""
    pieces = [
        piece({"content": "a"}, index=1, tokens=1),
        piece({"content": "x"}, tokens=2),
        piece({"content": "b"}, index=1, finish_reason="stop", tokens=3),
        piece({"content": "y"}, finish_reason="length", tokens=4),
    ]
    whole = assemble(pieces, CHAT)
    said = [(choice["message"]["content"], choice["finish_reason"]) for choice in whole.raw["choices"]]
    assert said == [("xy", "length"), ("ab", "stop")]
    assert [choice["logprobs"] for choice in whole.raw["choices"]] == [None, None]
    assert (whole.text, whole.tokens) == ("xyab", 4)


def test_completed_text() -> None:
    """A completed text is one text, with all its log probabilities."""
    raws = [
        {"choices": [{"index": 0, "text": " one", "logprobs": {"tokens": [" one"]}, "finish_reason": None}]},
        {"choices": [{"index": 0, "text": " stick", "logprobs": {"tokens": [" stick"]}}]},
        {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]},
    ]
    whole = assemble(map(Reading(LlamaCpp()).piece, raws), TEXT)
    [choice] = whole.raw["choices"]
    assert (whole.raw["object"], whole.text) == ("text_completion", " one stick")
    assert choice == {
        "index": 0,
        "text": " one stick",
        "logprobs": {"tokens": [" one", " stick"]},
        "finish_reason": "stop",
    }


def test_nothing() -> None:
    """There is no answer without a chunk."""
    with pytest.raises(ValueError, match="no reply"):
        assemble([], CHAT)
