"""What the honest host's engine says: every token is a word of its own, that no other token ever is.

So whoever holds the words that a socket brought knows how many tokens it brought, and of which replies,
without asking anybody's count. Which session asked is in the prompt.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tallystick.testing.engine import Asked, Read, Script, ScriptedEngine, Step

PROMPT_OVERHEAD = 6
"""Tokens that a ScriptedEngine counts for one message beside its words."""
FILLER = " more"
_WORD = re.compile(r"(\d+)\.(\d+) ")
_ORDER = re.compile(r"session (\d+) tokens (\d+) at once (\d+) pause (\d+)")


@dataclass(frozen=True)
class Order:
    """What a request has the engine do."""

    session: int
    tokens: int
    at_once: int
    """Tokens that one read brings."""
    pause: int
    """Milliseconds before each read."""
    filler: int = 0
    """Words that make the prompt longer."""
    limit: int | None = None
    """`max_tokens`, where that is more."""

    def body(self) -> dict[str, Any]:
        """The members of a request that ask for it."""
        text = f"session {self.session} tokens {self.tokens} at once {self.at_once} pause {self.pause}"
        content = text + FILLER * self.filler
        return {"messages": [{"role": "user", "content": content}], "max_tokens": self.limit or self.tokens}

    @property
    def prompt_tokens(self) -> int:
        """As the engine counts them."""
        return PROMPT_OVERHEAD + len(self.body()["messages"][0]["content"].split())


def order_of(body: Mapping[str, Any]) -> Order:
    """ValueError for a request that is not of the campaign's."""
    content = body["messages"][0]["content"]
    match = _ORDER.match(content)
    if match is None:
        raise ValueError("the prompt asks for nothing")
    session, tokens, at_once, pause = map(int, match.groups())
    return Order(session, tokens, at_once, pause, content.count(FILLER), body.get("max_tokens"))


def words(text: str) -> Counter[int]:
    """By reply: how many different words of it the text has."""
    return Counter(int(reply) for reply, _ in set(_WORD.findall(text)))


def word(reply: int, number: int) -> str:
    return f"{reply}.{number} "


class WordEngine(ScriptedEngine):
    """Says `word(reply, number)`, `reply` being the place of the request in `asked`."""

    def __init__(self) -> None:
        super().__init__(self._write, context=100_000)

    def _write(self, body: Mapping[str, Any]) -> Script:
        order, reply = order_of(body), len(self.asked) - 1
        steps = [Step(word(reply, number)) for number in range(order.tokens)]
        at_once = max(1, order.at_once)
        bundles = [tuple(steps[first : first + at_once]) for first in range(0, order.tokens, at_once)]
        return Script(tuple(_paced(bundles, order.pause / 1_000)))

    def record(self) -> list[dict[str, int]]:
        """What was made, reply by reply."""
        return [asdict(_made(asked)) for asked in self.asked]


def _paced(bundles: Iterable[tuple[Step, ...]], pause: float) -> list[Read]:
    if not pause:
        return list(bundles)
    loop, reads = asyncio.get_running_loop(), list[Read]()
    for number, bundle in enumerate(bundles, start=1):
        gate = asyncio.Event()
        loop.call_later(number * pause, gate.set)
        reads += [gate, bundle]
    return reads


@dataclass(frozen=True)
class Made:
    """One reply as its engine made it."""

    session: int
    prompt_tokens: int
    tokens: int


def _made(asked: Asked) -> Made:
    return Made(order_of(asked.body).session, asked.prompt_tokens, asked.tokens)
