"""Several choices of one request are one reply: every token counted, the prompt once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tallystick import choices
from tallystick.engine import Piece
from tallystick.errors import EngineUnavailable
from tallystick.testing.engine import Hang, Script, ScriptedEngine, babble, say
from tests.asking import BODY


async def read(engine: ScriptedEngine, bodies: Any, max_tokens: int = 50, n: int = 1) -> list[Piece]:
    async with choices.stream(engine, bodies, max_tokens, n) as reads:
        return [piece.whole() async for pieces in reads for piece in pieces]


def texts(pieces: list[Piece]) -> dict[int, str]:
    """The text of each choice."""
    told: dict[int, str] = {}
    for piece in pieces:
        for choice in piece.choices:
            told[choice["index"]] = told.get(choice["index"], "") + piece.text
    return told


async def test_tokens_add_up_and_the_prompt_counts_once() -> None:
    """The last count is the sum of all choices' tokens, and the prompt's that they have in common."""
    engine = ScriptedEngine(*(Script(say(*"abc"[:length]), unseen=1) for length in (1, 2, 3)))
    pieces = await read(engine, choices.bodies({**BODY, "n": 3}, (), 3), n=3)
    assert texts(pieces) == {0: "a", 1: "ab", 2: "abc"}
    assert (pieces[-1].tokens, pieces[-1].prompt_tokens) == (2 + 3 + 4, engine.asked[0].prompt_tokens)
    assert [asked.body for asked in engine.asked] == [BODY] * 3
    assert len({piece.raw["id"] for piece in pieces}) == 1


async def test_counts_never_go_down() -> None:
    """However the choices mix, the running count only rises."""
    engine = ScriptedEngine(babble(40, 1), babble(30, 2), babble(20, 3))
    counts = [piece.tokens for piece in await read(engine, [BODY] * 3, n=3)]
    assert counts == sorted(counts)
    assert counts[-1] == 90


async def test_each_prompt_counts() -> None:
    """Of several prompts each counts once, however many choices continue it."""
    bodies = choices.bodies({"max_tokens": 5, "n": 2}, ("one", "two halves", [1, 2, 3, 4]), 2)
    assert [body["prompt"] for body in bodies] == ["one"] * 2 + ["two halves"] * 2 + [[1, 2, 3, 4]] * 2
    engine = ScriptedEngine(Script(say("x")))
    pieces = await read(engine, bodies, n=2)
    assert (pieces[-1].tokens, pieces[-1].prompt_tokens) == (6, 2 + 3 + 4)
    assert set(texts(pieces)) == set(range(6))


def test_one_seed_makes_different_choices() -> None:
    """The first choice has the payer's seed, the others the ones that follow."""
    assert [body["seed"] for body in choices.bodies({**BODY, "seed": 7}, (), 3)] == [7, 8, 9]
    assert "seed" not in choices.bodies(BODY, (), 2)[1]


async def test_few_at_a_time() -> None:
    """An engine makes only so many choices of one request at a time."""
    gate = asyncio.Semaphore(0)
    engine = ScriptedEngine(Script(say("x")), gate=gate)
    reading = asyncio.create_task(read(engine, [BODY] * 9, n=9))
    for _ in range(100):  # as often as anything could be begun
        await asyncio.sleep(0)
    assert len(engine.asked) == choices.AT_ONCE
    for _ in range(9):
        gate.release()
    assert (await reading)[-1].tokens == 9


async def test_one_that_fails_ends_all() -> None:
    """The error of one choice is the reply's, and the others are cancelled."""
    engine = ScriptedEngine(Script((*say("a"), Hang())), Script((EngineUnavailable("gone"),)))
    with pytest.raises(EngineUnavailable, match="gone"):
        await read(engine, [BODY] * 2, n=2)
    assert engine.asked[0].cancelled


async def test_leaving_cancels_all() -> None:
    """Who leaves a reply in its middle leaves no request of it behind."""
    engine = ScriptedEngine(Script((*say("a"), Hang())))
    async with choices.stream(engine, [BODY] * 3, 50, 3) as reads:
        await anext(reads)
    assert [asked.over.is_set() for asked in engine.asked] == [True] * len(engine.asked)
