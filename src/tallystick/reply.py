"""One answer put together from the chunks of a stream, for clients that did not ask for a stream.

Rules only. Knows the forms of deltas and messages, and nothing of counts beyond carrying the last ones over.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from tallystick.engine import Piece
from tallystick.transcript import delta_text

TEXTS = ("content", "reasoning_content", "reasoning", "refusal")
"""Members of a delta that continue each other."""


def assemble(pieces: Iterable[Piece]) -> Piece:
    """One piece for all of them, with one choice whose `message` is whole. ValueError if there are none."""
    pieces = list(pieces)
    if not pieces:
        raise ValueError("there is no reply to put together")
    choices = [choice for piece in pieces for choice in piece.choices[:1]]
    finish_reason = next((piece.finish_reason for piece in reversed(pieces) if piece.finish_reason), None)
    usage = next((piece.usage for piece in reversed(pieces) if piece.usage), None)
    answer = message(choice.get("delta") or {} for choice in choices)
    choice: dict[str, Any] = {"index": 0, "message": answer, "finish_reason": finish_reason}
    if logprobs := _logprobs(choices):
        choice["logprobs"] = logprobs
    return msgspec.structs.replace(
        pieces[-1],
        choices=[choice],
        text=delta_text(answer),
        finish_reason=finish_reason,
        ids=[id_ for piece in pieces for id_ in piece.ids or ()] or None,
        usage=usage,
        raw={**pieces[0].raw, "object": "chat.completion", "choices": [choice]},
    )


def message(deltas: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The message that deltas add up to."""
    whole: dict[str, Any] = {"role": "assistant", "content": None}
    for delta in deltas:
        for name, part in delta.items():
            if name == "tool_calls":
                _add_calls(whole.setdefault("tool_calls", []), part or [])
            elif name in TEXTS and isinstance(part, str):
                whole[name] = (whole.get(name) or "") + part
            elif part is not None:
                whole[name] = part
    return whole


def _add_calls(calls: list[dict[str, Any]], parts: list[dict[str, Any]]) -> None:
    """Adds the parts of tool calls, each of which says by its index which call it continues."""
    for part in parts:
        index = part.get("index", len(calls))
        while len(calls) <= index:
            calls.append({"id": None, "type": "function", "function": {"name": "", "arguments": ""}})
        call, function = calls[index], part.get("function") or {}
        call["id"] = part.get("id") or call["id"]
        call["type"] = part.get("type") or call["type"]
        for name in ("name", "arguments"):
            call["function"][name] += function.get(name) or ""


def _logprobs(choices: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The log probabilities of all tokens, where the engine was asked for them."""
    whole: dict[str, Any] = {}
    for choice in choices:
        for name, part in (choice.get("logprobs") or {}).items():
            if part:
                whole.setdefault(name, []).extend(part)
    return whole or None
