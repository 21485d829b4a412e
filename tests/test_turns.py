"""Turns, taken by tasks of one event loop and of several."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tallystick.turns import Turns


async def test_turns_are_taken_in_the_order_they_were_asked_for() -> None:
    """Nobody is inside beside another, and nobody is overtaken."""
    turns, told = Turns(), []

    async def take(number: int) -> None:
        async with turns:
            told.append(number)
            await asyncio.sleep(0)
            told.append(number)

    await asyncio.gather(*map(take, range(5)))
    assert told == [number for number in range(5) for _ in range(2)]


def test_turns_hold_over_loops_and_threads() -> None:
    """Four threads, each with a loop of its own: what each reads and writes inside is lost to none."""
    turns, counted, inside = Turns(), [0], threading.Lock()

    async def count() -> None:
        for _ in range(50):
            async with turns:
                assert inside.acquire(blocking=False)
                seen = counted[0]
                await asyncio.sleep(0)
                counted[0] = seen + 1
                inside.release()

    threads = [threading.Thread(target=asyncio.run, args=(count(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted == [200]


@pytest.mark.parametrize("handed", [False, True])
async def test_who_gives_up_waiting_holds_nobody_up(handed: bool) -> None:
    """Cancelled before its turn, or in the moment it comes: the next one has it."""
    turns = Turns()
    await turns.__aenter__()

    async def take() -> str:
        async with turns:
            return "taken"

    gives_up, waits = asyncio.create_task(take()), asyncio.create_task(take())
    await asyncio.sleep(0)
    if handed:
        await turns.__aexit__(None, None, None)
        gives_up.cancel()
    else:
        gives_up.cancel()
        await turns.__aexit__(None, None, None)
    with pytest.raises(asyncio.CancelledError):
        await gives_up
    assert await waits == "taken"
    assert await take() == "taken"
