"""How replies look: the forms of a chat's and of a completed text's, and one answer put together from chunks.

Rules only. Knows the forms of deltas and messages, and nothing of counts beyond carrying the last ones over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from tallystick.engine import Piece
from tallystick.transcript import delta_text

TEXTS = ("content", "reasoning_content", "reasoning", "refusal")
"""Members of a delta that continue each other."""


Parts = list[dict[str, Any]]
"""What chunks brought of one choice, in their order."""


@dataclass(frozen=True, slots=True)
class Form:
    """How one kind of reply is written."""

    id: str
    """What its ids begin with."""
    whole: str
    """The `object` of an answer in one piece."""
    chunk: str
    """The `object` of a chunk."""
    blank: Mapping[str, Any]
    """What a chunk says of a choice that it brings nothing of."""
    join: Callable[[Parts], dict[str, Any]]
    """The whole of what parts bring of a choice."""


def assemble(pieces: Iterable[Piece], form: Form) -> Piece:
    """One piece for all of them, with each choice in one part. ValueError if there are none."""
    pieces = list(pieces)
    if not pieces:
        raise ValueError("there is no reply to put together")
    choices = joined((choice for piece in pieces for choice in piece.choices), form)
    return msgspec.structs.replace(
        pieces[-1],
        choices=choices,
        text="".join(map(choice_text, choices)),
        finish_reason=next((piece.finish_reason for piece in reversed(pieces) if piece.finish_reason), None),
        ids=[id_ for piece in pieces for id_ in piece.ids or ()] or None,
        usage=next((piece.usage for piece in reversed(pieces) if piece.usage), None),
        raw={**pieces[0].raw, "object": form.whole, "choices": choices},
    )


def joined(parts: Iterable[dict[str, Any]], form: Form) -> Parts:
    """The choices that parts of them, in the order of their arrival, add up to."""
    by_index: defaultdict[int, Parts] = defaultdict(list)
    for part in parts:
        by_index[part.get("index", 0)].append(part)
    return [_whole(index, by_index[index], form) for index in sorted(by_index)]


def choice_text(choice: Mapping[str, Any]) -> str:
    """The text of one choice, of a chunk or of a whole answer, as the transcript has it."""
    text = choice.get("text")
    return text if isinstance(text, str) else delta_text(choice.get("delta") or choice.get("message") or {})


def _whole(index: int, parts: Parts, form: Form) -> dict[str, Any]:
    """One choice, with every member that clients rely on, null where there is nothing to say."""
    finish_reasons = (part.get("finish_reason") for part in reversed(parts))
    return {
        "index": index,
        **form.join(parts),
        "logprobs": _logprobs(parts),
        "finish_reason": next(filter(None, finish_reasons), None),
    }


def _text(parts: Parts) -> dict[str, Any]:
    return {"text": "".join(map(choice_text, parts))}


def _message(parts: Parts) -> dict[str, Any]:
    return {"message": message(part.get("delta") or {} for part in parts)}


def message(deltas: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The message that deltas add up to."""
    whole: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
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


CHAT = Form("chatcmpl-", "chat.completion", "chat.completion.chunk", {"delta": {}}, _message)
TEXT = Form("cmpl-", "text_completion", "text_completion", {"text": "", "logprobs": None}, _text)
