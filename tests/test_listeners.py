"""Who is told what happens: one that fails is its own fault."""

from __future__ import annotations

import asyncio

from structlog.testing import capture_logs

from tallystick.listeners import Hearing, Listeners


def test_one_that_raises_is_logged_and_the_others_are_told() -> None:
    """In the order in which they were added; the log has the name and the traceback."""
    heard: list[str] = []
    told: Listeners[[str]] = Listeners()

    def faulty(event: str) -> None:
        heard.append(f"faulty {event}")
        raise KeyError(event)

    told.add(faulty)
    told.add(heard.append)
    with capture_logs() as logs:
        told.tell("settled")
    assert heard == ["faulty settled", "settled"]
    assert [(line["event"], line["exc_info"]) for line in logs] == [("listener.failed", True)]
    assert logs[0]["listener"].endswith("faulty")


async def test_what_a_listener_gives_is_awaited_in_its_turn() -> None:
    """One after the other, also after one that fails, which is logged; leaving waits for all."""
    heard: list[str] = []
    told: Listeners[[str]] = Listeners()

    async def slow(event: str) -> None:
        heard.append(f"{event} comes")
        await asyncio.sleep(0)
        if event == "one":
            raise KeyError(event)
        heard.append(f"{event} is over")

    with capture_logs() as logs:
        async with Hearing() as hearing:
            told.add(hearing.of(slow))
            told.add(hearing.of(heard.append))
            told.tell("one")
            told.tell("two")
    assert heard == ["one", "two", "one comes", "two comes", "two is over"]
    assert [line["event"] for line in logs] == ["listener.failed"]
    assert logs[0]["listener"].endswith("slow")
