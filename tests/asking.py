"""Asking an engine, as the tests of engines do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tallystick.engine import Engine, Piece

BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "What is a tally stick?"}], "temperature": 0}


async def read(engine: Engine, body: Mapping[str, Any] = BODY, max_tokens: int = 50) -> list[Piece]:
    async with engine.stream(body, max_tokens) as reads:
        return [piece async for pieces in reads for piece in pieces]


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def running(pieces: list[Piece]) -> list[int]:
    return [piece.tokens for piece in pieces]


async def begin(engine: Engine, body: Mapping[str, Any] = BODY) -> None:
    """Asks, and reads nothing."""
    async with engine.stream(body, 50):
        pass
