"""What an error of the package looks like to whoever typed a command: one line with cause, move and mend.

Only words. An error that names its mend itself has none here.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import NamedTuple

from tallystick import errors
from tallystick.errors import ConfigError, ContractError, LedgerError, Refusal, RpcError, TallystickError


class Mend(NamedTuple):
    """Whose move it is (`yours`, or a party's), and what it is."""

    move: str
    what: str


_ALL: dict[type[TallystickError], Mend | None] = {
    errors.ConfigError: Mend("yours", "settings come from the environment and from .env here"),
    errors.WrongChain: Mend("yours", "set RPC_URL to an endpoint of that chain"),
    errors.ChainError: Mend(
        "yours", "set RPC_URL, and see `tally doctor`; `tally devnet` is a chain of your own"
    ),
    errors.EngineError: Mend("the host's", "set MODEL_PATH or ENGINE_URL, and see `tally doctor`"),
    errors.LedgerError: Mend(
        "yours", "see HOST_DATA_DIR or LEDGER_URL, PAYER_DATA_DIR, and the space on that disk"
    ),
    errors.ReceiptError: Mend(
        "nobody's", "go no further with this host; what was signed is in PAYER_DATA_DIR"
    ),
    errors.SessionError: None,
    errors.ContractError: Mend("nobody's", "the contract does not take this"),
    errors.HostNotRegistered: Mend("the host's", "tally host register"),
    errors.ERC20InsufficientBalance: Mend("yours", "put more on the account, or deposit less with --deposit"),
    errors.InsufficientBalance: Mend("yours", "put more on the account, or deposit less with --deposit"),
    errors.ZeroAmount: Mend("yours", "deposit more than nothing"),
    errors.DoesNotFit: Mend("yours", "name a smaller number"),
    errors.AboveDeposit: Mend("the payer's", "tally job top-up JOB AMOUNT"),
    errors.NoSuchJob: Mend("yours", "check the number and RPC_URL; `tally job list` has your jobs"),
    errors.JobClosed: Mend("nobody's", "`tally job show {jobId}` tells how it was closed"),
    errors.AlreadyCompleting: Mend("yours", "from then on: tally job reclaim {jobId}"),
    errors.JobExpired: Mend("the host's", "`tally job show {jobId}` tells from when on it can be reclaimed"),
    errors.NotYetReclaimable: Mend("the host's", "from then on: tally job reclaim {jobId}"),
    errors.NotAParty: Mend("yours", "use the key that opened the job"),
    errors.RelayFeeTakesAll: Mend("yours", "deposit more, or offer less for the relay"),
    errors.ERC3009InvalidAuthorizationTime: Mend("the payer's", "sign a new authorization"),
    errors.NotThePayer: Mend("yours", "use the key that opened the job"),
    errors.NothingToWithdraw: Mend("nobody's", "it grows with the next settlement"),
    errors.NotTheTreasury: Mend("the treasury's", "only its key can withdraw"),
    errors.NotThePayout: Mend(
        "yours", "set HOST_PRIVATE_KEY to its key, and name the host: tally host payout TO --host HOST"
    ),
    errors.NotRegistered: Mend("nobody's", "it is not registered as it is; tally host register changes that"),
    errors.InvalidReceiver: Mend("yours", "name another receiver with --to"),
}

_SETTING = re.compile(r"\b[A-Z]+_[A-Z_]+\b")
_HELD = re.compile(r"process (\d+) has the ledger in .* open")
_TIMES = {"closesAt", "expiresAt", "present", "latest"}


def complaint(error: TallystickError) -> str:
    """The error in one line: what is wrong, whose move it is, what mends it."""
    what = _sentence(" ".join(_told(error).split()))
    mend = _mend(error)
    return what if mend is None else f"{what} The move is {mend.move}: {_sentence(mend.what)}"


def _sentence(text: str) -> str:
    return text if text.endswith(("?", "!")) else f"{text.rstrip('.')}."


def _told(error: TallystickError) -> str:
    """The error's own words; of a contract's error the sentence of its class, with its values."""
    if isinstance(error, Refusal):
        return error.detail
    sentence = type(error).__doc__
    if not isinstance(error, ContractError) or not sentence or type(error) is ContractError:
        return str(error)
    return re.sub(r"`(\w+)`", lambda name: _value(name[1], error.values.get(name[1], name[0])), sentence)


def _value(name: str, value: object) -> str:
    return when(value) if name in _TIMES and isinstance(value, int) else str(value)


def when(timestamp: int) -> str:
    """A time of the chain's clock, for people."""
    return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _mend(error: TallystickError) -> Mend | None:
    if isinstance(error, Refusal):
        return Mend({"nobody": "nobody's"}.get(error.row.move, f"the {error.row.move}'s"), error.row.mend)
    if isinstance(error, RpcError) and _is_poor(error):
        return Mend("yours", "send the account ETH for gas")
    if isinstance(error, ConfigError) and not _SETTING.search(str(error)):
        return None  # an option's value
    if isinstance(error, LedgerError) and (held := _HELD.search(str(error))):
        return Mend("yours", f"the node of pid {held[1]} is running: stop it, or let it run")
    mend = next((_ALL[kind] for kind in type(error).__mro__ if kind in _ALL), None)
    if mend is None or not isinstance(error, ContractError):
        return mend
    return mend._replace(what=mend.what.format_map({"jobId": "JOB", **error.values}))


def _is_poor(error: RpcError) -> bool:
    from tallystick.fees import Answer, read_answer

    return read_answer(error.message) is Answer.NO_FUNDS
