"""Asking an engine, as the tests of engines do."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from tallystick.engine import Engine, Piece

BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "What is a tally stick?"}], "temperature": 0}


async def read(engine: Engine, body: Mapping[str, Any] = BODY, max_tokens: int = 50) -> list[Piece]:
    async with engine.stream(body, max_tokens) as reads:
        return [piece.whole() async for pieces in reads for piece in pieces]


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def running(pieces: list[Piece]) -> list[int]:
    return [piece.tokens for piece in pieces]


async def begin(engine: Engine, body: Mapping[str, Any] = BODY) -> None:
    """Asks, and reads nothing."""
    async with engine.stream(body, 50):
        pass


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def listening(answer: Answer) -> AsyncGenerator[str, None]:
    """A server that gives every request the same answer."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield "http://{}:{}".format(*runner.addresses[0][:2])
    finally:
        await runner.cleanup()
