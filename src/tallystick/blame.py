"""What an error says of the host that was asked: whether it is the host's, and what kind of trouble it is.

By this package's own table of refusals, and not by whose move a host says that it is. Rules only.
"""

from __future__ import annotations

from tallystick.errors import (
    REFUSALS,
    HostLate,
    HostNotRegistered,
    HostRefused,
    PriceRose,
    ReceiptError,
    SessionError,
    TallystickError,
)
from tallystick.record import Trouble

NOT_YET = frozenset({"job_unconfirmed", "deposit_exhausted"})
"""What a host says of a job that it has not seen grow yet: by the payer's own count there is enough."""
USED_UP = frozenset(
    """
    job_closed job_completing job_ended job_unknown credit_used_up expiry_too_near price_too_low
    interval_too_small interval_too_large claim_window_too_short asset_not_accepted model_mismatch
    signer_reused
    """.split()
)
"""What another job mends; of a job that was opened just now on the host's own quote, it mends nothing."""


def blame(error: TallystickError) -> Trouble | None:
    """The kind of trouble; None: another host would answer the same, or was not the one that failed."""
    match error:
        case PriceRose():
            return None  # it may, as long as no job is open
        case HostLate():
            return Trouble.LATE
        case ReceiptError():
            return Trouble.OVERCOUNTED
        case HostRefused():
            return Trouble.FAILED if _is_hosts(error.problem.code, error.problem.status) else None
        case SessionError() | HostNotRegistered():
            return Trouble.FAILED
        case _:
            return None


def _is_hosts(code: str, status: int) -> bool:
    if code in NOT_YET or code in USED_UP:
        return True
    row = REFUSALS.get(code)
    return status >= 500 if row is None else row.move != "payer"
