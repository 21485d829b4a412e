"""What an error says of the host that was asked."""

from __future__ import annotations

import pytest

from tallystick.blame import blame
from tallystick.errors import (
    ChainError,
    HostLate,
    HostNotRegistered,
    HostRefused,
    PriceRose,
    ReceiptError,
    Refusal,
    SessionError,
    TallystickError,
)
from tallystick.frames import Problem
from tallystick.record import Trouble


def refused(code: str, status: int = 400, move: str = "payer") -> HostRefused:
    return HostRefused(Problem(code=code, status=status, move=move))


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (HostLate("late"), Trouble.LATE),
        (ReceiptError("counts"), Trouble.OVERCOUNTED),
        (SessionError("gone"), Trouble.FAILED),
        (HostNotRegistered("HostNotRegistered", {}), Trouble.FAILED),
        (refused("engine_failed", 502), Trouble.FAILED),
        (refused("host_exposed", 503), Trouble.FAILED),
        (refused("price_too_low", 402), Trouble.FAILED),
        (refused("job_unconfirmed", 503), Trouble.FAILED),
        (refused("made_up", 500), Trouble.FAILED),
    ],
)
def test_what_another_host_may_do_better_is_the_hosts(error: TallystickError, trouble: Trouble) -> None:
    """A failure, a late reply, counts that nobody can sign, and what is said of a job opened on its quote."""
    assert blame(error) is trouble


@pytest.mark.parametrize(
    "error",
    [
        refused("invalid_request"),
        refused("context_exceeded"),
        refused("invalid_request", move="host"),
        refused("made_up", 404),
        PriceRose("it asks more"),
        Refusal("cap_reached"),
        ChainError("no answer"),
    ],
)
def test_what_another_host_would_answer_too_is_not(error: TallystickError) -> None:
    """By the package's table, whatever the host says of whose move it is; and a price may rise."""
    assert blame(error) is None
