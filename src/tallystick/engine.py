"""Text in, counted tokens out: what every inference engine does. The kinds of engines are in `engines`.

Knows nothing of money, jobs or payers.
"""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, NamedTuple, Self

import msgspec

from tallystick.plain import Shape


class Piece(msgspec.Struct, frozen=True):
    """One chunk of a reply, with the running counts that it brings the request to."""

    choices: list[dict[str, Any]]
    """As the engine sent them; none in a chunk that brings the final usage."""
    text: str
    """The text of the deltas (protocol §4), choice by choice."""
    prompt_tokens: int
    """Tokens of the prompt; 0 before the first token, as nothing is served until then."""
    tokens: int
    """Generated tokens of the request so far."""
    finish_reason: str | None
    ids: list[int] | None
    """Ids of this chunk's tokens, where the engine gives them."""
    usage: dict[str, Any] | None
    raw: dict[str, Any]
    """The whole chunk."""
    beyond: int = 0
    """Generated tokens that the final usage has beyond a count that was provisional: nobody saw them come."""

    def whole(self) -> Piece:
        """Itself."""
        return self


class Plain(msgspec.Struct, frozen=True, gc=False):
    """A piece that brings nothing but more text and a count, and how it was told: see plain.py."""

    text: str
    prompt_tokens: int
    """As a Piece has them."""
    tokens: int
    shape: Shape
    told: dict[str, Any]
    """What told the counts."""

    beyond: ClassVar = 0

    @property
    def usage(self) -> dict[str, Any] | None:
        """The engine's usage, if it was that."""
        return self.told if self.shape.member == "usage" else None

    def whole(self) -> Piece:
        """The same as a Piece."""
        raw = self.shape.chunk(self.text, self.told)
        return Piece(raw["choices"], self.text, self.prompt_tokens, self.tokens, None, None, self.usage, raw)


Pieces = list[Piece | Plain]
"""What one read of a reply brought."""


class Health(NamedTuple):
    """How an engine does."""

    streams: int
    """Replies under way."""
    why: str | None
    """The code of REFUSALS for why it is not asked; None: it is."""


class Engine(abc.ABC):
    """An inference engine. `async with engine:` starts and closes it."""

    models: list[str]
    """Names of the models that it serves; known once it is started."""
    context: int | None
    """Tokens that a request may fill, prompt and reply together; None: the engine does not say."""

    @abc.abstractmethod
    async def start(self) -> None:
        """Makes the engine ready. EngineError if it cannot be, or does not count as it has to."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Stops it. What is still streaming breaks off. May be called twice."""

    @abc.abstractmethod
    async def count_prompt(self, body: Mapping[str, Any]) -> int:
        """Tokens of the prompt of a request, as the engine will count them: of its `messages`, templated, or
        (a text to complete) of its one `prompt`.

        Raises EngineRefused, EngineUnavailable or EngineTimeout.
        """

    def most_prompt(self, body: Mapping[str, Any]) -> int | None:
        """As many tokens or more, told without asking anybody; None: only `count_prompt` can tell.

        Raises EngineRefused or EngineUnavailable.
        """
        return None

    @abc.abstractmethod
    def stream(
        self, body: Mapping[str, Any], max_tokens: int
    ) -> AbstractAsyncContextManager[AsyncIterator[Pieces]]:
        """One reply to such a request, of at most `max_tokens` (1 or more) tokens and one choice.

        Gives an iterator of lists: one is what one read brought, and nothing is held back for the next.
        Leaving the context cancels the engine's request. The last piece's counts are the reply's: exactly,
        unless the engine tells no running count, so that they were provisional.

        Raises EngineRefused for a request that the engine does not take; before the first token
        EngineUnavailable (of which EngineFalseStart and EngineEmpty say more) or EngineTimeout; later
        EngineStalled or a plain EngineError.
        """

    def health(self) -> list[Health]:
        """How it does; of several engines, each in its order."""
        return [Health(0, None)]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
