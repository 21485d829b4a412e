"""Chunks that bring nothing but more text and a count, as nearly all of a reply's do: the short way for them.

Each way is learnt from a chunk that went the general one, and proven on it. A `Shape` reads what an engine
sends: the same bytes around another text and another count. A `Wording` writes what the client gets: the same
bytes around another text and another tally. Whatever is not just so goes the general way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import orjson

Counts = tuple[int, int]
"""Prompt tokens and generated tokens so far."""

_TEXT = re.compile(rb'"(?:content|text)":("(?:[^"\\]|\\.)*")')
_OBJECT = rb"(\{(?:[^{}]|\{[^{}]*\})*\})"
_DATA = b"data: "
_MARKS = 9_100_000_000_000_001
"""Numbers from here on stand for what changes, in the chunk that a wording is learnt of."""


class Running(NamedTuple):
    """How a chunk tells its running count."""

    member: str
    counts: Callable[[Any], Counts]
    """Reads the member. Raises ValueError for a strange one."""


class Shape:
    """What the plain chunks of one reply have in common, as server-sent events."""

    def __init__(self, head: bytes, middle: bytes, tail: bytes, running: Running) -> None:
        """The bytes in front of the text, those between it and the count, and those that are left."""
        self.member = running.member
        self._head = head
        self._middle = middle
        self._tail = tail
        self._counts = running.counts

    def read(self, event: bytes) -> tuple[str, Counts, Any] | None:
        """The text, the counts and what told them, of an event without its end; None: it is not plain."""
        # A line break would end the line for whoever reads server-sent events.
        if not (event.startswith(self._head) and event.endswith(self._tail)) or b"\n" in event:
            return None
        text, _, told = event[len(self._head) : -len(self._tail)].partition(self._middle)
        try:
            said, counted = orjson.loads(text), orjson.loads(told)
            return (said, self._counts(counted), counted) if type(said) is str else None
        except ValueError:  # also what msgspec raises
            return None

    def chunk(self, text: str, told: Any) -> dict[str, Any]:
        """The chunk as the engine sent it."""
        event = self._head + orjson.dumps(text) + self._middle + orjson.dumps(told) + self._tail
        chunk: dict[str, Any] = orjson.loads(event[len(_DATA) :])
        return chunk


def learn(payload: bytes, raw: dict[str, Any], running: Running) -> Shape | None:
    """The shape of a chunk, if it is plain. `raw`: the same, read."""
    text = _TEXT.search(payload)
    told = re.search(b'"%b":%b' % (running.member.encode(), _OBJECT), payload)
    if text is None or told is None or text.end() > told.start() or not _is_plain(raw):
        return None
    head, tail = payload[: text.start(1)], payload[told.end(1) :]
    middle = payload[text.end(1) : told.start(1)]
    if not tail or orjson.loads(head + b'"..."' + middle + b"0" + tail) != _with(
        raw, "...", running.member, 0
    ):
        return None  # what was found lies elsewhere
    return Shape(_DATA + head, middle, tail, running)


def _is_plain(raw: dict[str, Any]) -> bool:
    """One choice that brings one text, and goes on."""
    choices = raw.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        return False
    choice, delta = choices[0], choices[0].get("delta")
    said = [choice.get("text"), *([] if delta is None else delta.values())]
    texts = [text for text in said if text is not None]
    return (
        len(texts) == 1
        and isinstance(texts[0], str)
        and (delta is None or list(delta) == ["content"])
        and choice.get("finish_reason") is None
        and choice.get("token_ids") is None
    )


def _with(raw: dict[str, Any], text: str, member: str, told: Any) -> dict[str, Any]:
    [choice] = raw["choices"]
    said = {"text": text} if choice.get("delta") is None else {"delta": {"content": text}}
    return {**raw, "choices": [{**choice, **said}], member: told}


class Wording(msgspec.Struct, frozen=True):
    """What the plain chunks of one reply look like to its client."""

    form: bytes

    def write(self, text: str, prompt_tokens: int, tokens: int, job: Counts, left: int) -> bytes:
        """One event."""
        return self.form % (orjson.dumps(text), prompt_tokens, tokens, *job, left)


MARK = str(_MARKS)
"""The text of the chunk that a wording is learnt of."""
MARKS = (_MARKS + 1, _MARKS + 2, _MARKS + 3, _MARKS + 4, _MARKS + 5)
"""What its tally says: prompt tokens and tokens of the request, the same of the job, what is left."""


def learn_wording(event: bytes) -> Wording | None:
    """The wording, of the event that the general way makes of `MARK` and `MARKS`; None: it cannot be told."""
    marks = [b'"%b"' % MARK.encode(), *(b"%d" % mark for mark in MARKS)]
    found = [event.find(mark) for mark in marks]
    if found != sorted(found) or any(event.count(mark) != 1 for mark in marks):
        return None
    form = event.replace(b"%", b"%%").replace(marks[0], b"%b")
    for mark in marks[1:]:
        form = form.replace(mark, b"%d")
    return Wording(form)
