"""Several choices of one request, each made by an engine request of its own, told as one reply.

An engine's own count of several choices is that of one of them, so each is asked for alone and the counts are
added up. A prompt that several choices continue counts once. Knows the form of a chunk, and no money.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import msgspec

from tallystick.engine import Engine, Piece, Pieces

AT_ONCE = 4
"""Choices of one request that an engine makes at a time: one payer is not to fill it."""


def bodies(body: Mapping[str, Any], prompts: Sequence[Any], n: int) -> tuple[dict[str, Any], ...]:
    """What an engine is asked for: one request for each choice, `n` for each prompt in turn.

    `prompts`: those of a text to complete; none for a chat. With one seed, no two choices start alike.
    """
    alone = {name: member for name, member in body.items() if name not in ("n", "best_of")}
    each = [{**alone, "prompt": prompt} for prompt in prompts] or [alone]
    return tuple(_seeded(one, choice) for one in each for choice in range(n))


def _seeded(body: dict[str, Any], choice: int) -> dict[str, Any]:
    seed = body.get("seed")
    return {**body, "seed": seed + choice} if choice and isinstance(seed, int) else body


def stream(
    engine: Engine, bodies: Sequence[Mapping[str, Any]], max_tokens: int, n: int = 1
) -> AbstractAsyncContextManager[AsyncIterator[Pieces]]:
    """One reply of all choices, as `Engine.stream` gives that of one; `max_tokens` is of each choice.

    The choices of one prompt are `n` neighbours. Raises what `Engine.stream` raises.
    """
    if len(bodies) == 1:
        return engine.stream(bodies[0], max_tokens)
    return _together(engine, bodies, max_tokens, n)


class Sum:
    """The running counts of several choices as those of one reply. Does no I/O."""

    def __init__(self, choices: int, n: int) -> None:
        self._n = n
        self._tokens = [0] * choices
        self._prompts = [0] * (choices // n)
        self._head: dict[str, Any] = {}
        """What all chunks of a reply have in common: the first one's."""

    def piece(self, choice: int, piece: Piece) -> Piece:
        """A piece of one choice, with the counts of all."""
        self._tokens[choice] = piece.tokens
        prompt = choice // self._n
        self._prompts[prompt] = max(self._prompts[prompt], piece.prompt_tokens)
        self._head = self._head or {name: piece.raw[name] for name in ("id", "created") if name in piece.raw}
        choices = [{**one, "index": choice} for one in piece.choices]
        return msgspec.structs.replace(
            piece,
            choices=choices,
            tokens=sum(self._tokens),
            prompt_tokens=sum(self._prompts),
            usage=None,  # of one choice alone
            raw={**piece.raw, **self._head, "choices": choices},
        )


@asynccontextmanager
async def _together(
    engine: Engine, bodies: Sequence[Mapping[str, Any]], max_tokens: int, n: int
) -> AsyncIterator[AsyncIterator[Pieces]]:
    turns = asyncio.Semaphore(AT_ONCE)
    choices = [_choice(engine, body, max_tokens, turns) for body in bodies]
    reads = _merged(choices, Sum(len(bodies), n))
    try:
        yield reads
    finally:
        await reads.aclose()
        for choice in choices:
            await choice.aclose()


async def _choice(
    engine: Engine, body: Mapping[str, Any], max_tokens: int, turns: asyncio.Semaphore
) -> AsyncGenerator[Pieces, None]:
    async with turns, engine.stream(body, max_tokens) as reads:
        async for pieces in reads:
            yield pieces


async def _merged(
    choices: Sequence[AsyncGenerator[Pieces, None]], total: Sum
) -> AsyncGenerator[Pieces, None]:
    """What any choice brings, as it comes. Each is read one read ahead, and no further."""
    reading = {_read(choice): number for number, choice in enumerate(choices)}
    try:
        while reading:
            done, _ = await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
            pieces: Pieces = []
            for task in sorted(done, key=lambda task: reading[task]):
                number = reading.pop(task)
                if (read := task.result()) is not None:
                    pieces += [total.piece(number, piece.whole()) for piece in read]
                    reading[_read(choices[number])] = number
            if pieces:
                yield pieces
    finally:
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)


def _read(choice: AsyncGenerator[Pieces, None]) -> asyncio.Task[Pieces | None]:
    async def read() -> Pieces | None:
        return await anext(choice, None)

    return asyncio.create_task(read())
