"""Counting a reply whose engine tells no running count: provisionally, until its final usage says better.

What was delivered has been counted for good, so the usage takes off what was not delivered yet. What it has
beyond the provisional count, nobody saw come: that is passed on as such.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

import msgspec

from tallystick.engine import Piece, Pieces
from tallystick.engines.dialect import Usage

WINDOW = 400
"""Characters at the end of a text that are counted again with each read: a token may reach over its edge."""


class CountsText(Protocol):
    """A tokenizer."""

    async def count_text(self, text: str) -> int:
        """Tokens of a text that a model made. Raises EngineError."""


class TextCount:
    """The tokens of a text that grows."""

    def __init__(self, tokenizer: CountsText) -> None:
        self._tokenizer = tokenizer
        self._tail = ""
        self._before = 0
        """Tokens of the text in front of the tail."""
        self.tokens = 0
        """Of all that was added."""

    async def add(self, text: str) -> int:
        """The tokens of all that was added, which never get fewer. Raises EngineError."""
        if text:
            self._tail += text
            count = await self._tokenizer.count_text(self._tail)
            self.tokens = max(self.tokens, self._before + count)
            await self._settle(count)
        return self.tokens

    async def _settle(self, count: int) -> None:
        """Parts with what lies in front of the window, where a word begins; the tail has `count` tokens."""
        cut = self._tail.rfind(" ", 0, -WINDOW // 2) if len(self._tail) > WINDOW else -1
        if cut > 0:
            self._tail = self._tail[cut:]
            # Not the tokens of what is parted with: a text by itself may begin with one that it has not here.
            self._before += count - await self._tokenizer.count_text(self._tail)


class Provisional:
    """The counts of one reply. `prompt_tokens`: what its prompt is billed until the usage comes, or 0.

    `text`: what counts its tokens; without it each chunk that has a text is a token.
    """

    def __init__(self, prompt_tokens: int, text: TextCount | None) -> None:
        self._prompt_tokens = prompt_tokens
        self._text = text
        self._tokens = 0

    async def told(self, reads: AsyncGenerator[Pieces, None]) -> AsyncGenerator[Pieces, None]:
        """The pieces of a reply, with these counts."""
        async with aclosing(reads):
            async for pieces in reads:
                yield await self.tell(pieces)

    async def tell(self, pieces: Pieces) -> Pieces:
        """The pieces of one read, each with a count of its own."""
        told: Pieces = []
        for piece, tokens in zip(pieces, await self._running(pieces), strict=True):
            self._tokens = max(self._tokens, tokens)
            told.append(self._corrected(piece.whole()))
        return told

    async def _running(self, pieces: Pieces) -> list[int]:
        counts = [piece.tokens for piece in pieces]
        if self._text is not None:
            most = await self._text.add("".join(piece.text for piece in pieces))
            counts = [min(count, most) for count in counts]
            last = max((at for at, piece in enumerate(pieces) if piece.text), default=len(pieces))
            counts[last:] = [most] * len(counts[last:])
        return counts

    def _corrected(self, piece: Piece) -> Piece:
        usage = msgspec.convert(piece.usage or {}, Usage)
        if not usage.completion_tokens:
            prompt_tokens = self._prompt_tokens if self._tokens else 0
            return msgspec.structs.replace(piece, tokens=self._tokens, prompt_tokens=prompt_tokens)
        return msgspec.structs.replace(
            piece,
            tokens=min(self._tokens, usage.completion_tokens),
            # A reply of which nothing was seen is none.
            beyond=max(0, usage.completion_tokens - self._tokens) if self._tokens else 0,
            prompt_tokens=usage.prompt_tokens or self._prompt_tokens,
        )
