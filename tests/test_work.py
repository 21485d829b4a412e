"""What a process has done is summed up by the words that clients are told."""

from __future__ import annotations

import pytest

from tallystick.errors import (
    ChainError,
    Elsewhere,
    EngineRefused,
    EngineStalled,
    LedgerError,
    Refusal,
    TallystickError,
)
from tallystick.work import Work


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Refusal("price_too_low"), "price_too_low"),
        (EngineRefused("too odd"), "engine_refused"),
        (EngineStalled("silent"), "engine_stalled"),
        (LedgerError("full"), "ledger_unavailable"),
        (ChainError("down"), "chain_unavailable"),
    ],
)
def test_a_refusal_counts_by_its_code(error: TallystickError, code: str) -> None:
    """Whatever turned a request down, it counts under the code that the client reads."""
    work = Work()
    work.refuse(error)
    assert work.refused == {code: 1}


def test_what_another_process_answers_is_no_refusal() -> None:
    """A request that is passed on counts where it is answered."""
    work = Work()
    work.refuse(Elsewhere(1, None, 1.0))
    assert not work.refused
