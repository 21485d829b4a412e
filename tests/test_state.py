"""A job as the chain tells it: of the opening or the job that is known, or of none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tallystick import state
from tallystick.contracts import Created
from tallystick.types import Address, Job, JobId, JobStatus, Prices, Totals

PAYER, HOST, ASSET, SIGNER = (Address("0x" + digit * 40) for digit in "1234")
OPENING = Created(
    tx="0x" + "ab" * 32,
    block=7,
    job_id=JobId(5),
    payer=PAYER,
    host=HOST,
    signer=SIGNER,
    checkpoint_interval=100,
    model_id=b"\x09" * 32,
)
TOLD = {
    "payer": int(PAYER, 16),
    "host": int(HOST, 16),
    "asset": int(ASSET, 16),
    "signer": int(SIGNER, 16),
    "deposit": 2_000_000,
    "pricePerMillion": 900_000,
    "promptPricePerMillion": 200_000,
    "maxTokensPerSecond": 0,
    "claimWindow": 3_600,
    "createdAt": 1_000,
    "expiresAt": 9_000,
    "askedAt": 0,
    "closesAt": 9_000,
    "promptTokens": 8,
    "tokens": 100,
    "owed": 91,
    "fee": 9,
    "status": int(JobStatus.OPEN),
}
JOB = Job(
    id=JobId(5),
    payer=PAYER,
    host=HOST,
    asset=ASSET,
    signer=SIGNER,
    deposit=2_000_000,
    prices=Prices(900_000, 200_000),
    max_tokens_per_second=0,
    claim_window=3_600,
    created_at=1_000,
    expires_at=9_000,
    asked_at=0,
    closes_at=9_000,
    settled=Totals(8, 100),
    owed=91,
    fee=9,
    status=JobStatus.OPEN,
    interval=100,
    model_id=b"\x09" * 32,
)


def test_a_job_is_its_words_and_what_its_opening_said() -> None:
    """Each member is the word of its name; interval and model are only in the event."""
    assert state.of(OPENING, TOLD) == JOB
    assert state.opened(OPENING, TOLD) == JOB


@pytest.mark.parametrize("party", ["payer", "host", "signer"])
def test_a_state_of_other_parties_is_no_job_of_the_opening(party: str) -> None:
    """After a reorganisation the id is another job's."""
    assert state.opened(OPENING, TOLD | {party: int("9" * 40, 16)}) is None


def test_a_known_job_moves_on_with_the_state() -> None:
    """What changes is read anew; what the contract does not keep stays."""
    next_ = TOLD | {"tokens": 250, "owed": 226, "fee": 22, "askedAt": 2_000, "closesAt": 5_600}
    moved = state.moved_on(JOB, next_)
    assert moved == replace(JOB, settled=Totals(8, 250), owed=226, fee=22, asked_at=2_000, closes_at=5_600)


@pytest.mark.parametrize("party", ["payer", "host", "asset", "signer"])
def test_a_state_of_other_parties_is_not_the_known_job(party: str) -> None:
    """None, too, if there is no job at all: then all words are zero."""
    assert state.moved_on(JOB, TOLD | {party: int("9" * 40, 16)}) is None
    assert state.moved_on(JOB, dict.fromkeys(TOLD, 0)) is None
