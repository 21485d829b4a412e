"""What a person at the command line is told: cause, move and mend, in one line."""

from __future__ import annotations

import inspect

import pytest

from tallystick import errors
from tallystick.errors import (
    ConfigError,
    ContractError,
    JobClosed,
    LedgerError,
    NotYetReclaimable,
    Refusal,
    RpcError,
    SessionError,
    TallystickError,
    ZeroAmount,
)
from tallystick.mends import complaint

CONTRACT_ERRORS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, ContractError) and kind is not ContractError
]


def test_a_contracts_error_is_its_sentence_with_its_values() -> None:
    """The error's own sentence, with values for names and times for timestamps, then the move."""
    told = complaint(NotYetReclaimable("NotYetReclaimable", {"jobId": 7, "closesAt": 1_800_000_000}))
    assert told == (
        "The host of job 7 may still claim; the rest can be reclaimed from 2027-01-15 08:00:00 UTC on. "
        "The move is the host's: from then on: tally job reclaim 7."
    )


@pytest.mark.parametrize("kind", CONTRACT_ERRORS)
def test_every_contract_error_has_a_line(kind: type[ContractError]) -> None:
    """Whatever a contract says ends as one line that ends as a sentence does; the endpoint is not blamed."""
    told = complaint(kind(kind.__name__, {}))
    assert "\n" not in told
    assert told.endswith(".")
    assert "set RPC_URL" not in told


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConfigError("PAYER_PRIVATE_KEY is not set"), "PAYER_PRIVATE_KEY is not set. The move is yours: "),
        (Refusal("job_closed"), "The move is the payer's: Open a new job."),
        (Refusal("job_unconfirmed"), "The move is nobody's: "),
        (RpcError("127.0.0.1:8545", -32003, "Insufficient funds for gas * price + value"), "ETH for gas."),
        (RpcError("127.0.0.1:8545", -32000, "odd"), "`tally doctor`"),
        (SessionError("the host is gone: tally job complete 7 --on-chain"), "7 --on-chain."),
        (TallystickError("two\nlines"), "two lines."),
        (SessionError("is it running?"), "is it running?"),
        (
            LedgerError("process 12 has the ledger in data open; stop it first"),
            "the node of pid 12 is running",
        ),
        (LedgerError("disk full"), "the space on that disk"),
        (ZeroAmount("ZeroAmount", {}), "The move is yours: deposit more than nothing."),
        (JobClosed("JobClosed", {"jobId": 7}), "`tally job show 7`"),
    ],
)
def test_each_kind_of_error_names_move_and_mend(error: TallystickError, told: str) -> None:
    """Who has to do what stands behind what is wrong, unless the error says so itself."""
    assert told in complaint(error)
    assert "\n" not in complaint(error)
