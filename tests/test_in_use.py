"""A job that pays for requests."""

from __future__ import annotations

from tallystick.in_use import LONGEST, pause


def test_a_host_that_ends_every_connection_is_left_alone_for_longer_each_time() -> None:
    """At once the first time, then doubled, as long as the host says, and never for longer than a limit."""
    assert [pause(stops, 0) for stops in (1, 2, 3, 4, 99)] == [0, 0.5, 1, 2, LONGEST]
    assert (pause(1, 3), pause(1, 1e9)) == (3, LONGEST)
