"""Who is told what happens: one that fails is its own fault."""

from __future__ import annotations

from structlog.testing import capture_logs

from tallystick.listeners import Listeners


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
