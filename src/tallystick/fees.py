"""What a transaction pays, and what to do with it next, given what the chain answered.

    signed --accepted--> waiting --a receipt--> mined --N blocks deep--> confirmed, reverted or cancelled
       |                  |   ^                   |
       |                  |   '--the receipt is gone (reorg): sent again
       |                  |--nothing for a while: sent again, then replaced at higher fees
       |                  '--its nonce was used by a transaction that is not ours: displaced
       |--no funds, or no answer: kept, and sent again until it is taken
       |--underpriced: replaced at higher fees
       '--refused for good: its nonce is filled by a transfer of nothing to oneself

A transaction here is a nonce with a set of hashes: whichever of them is mined, it is done. Knows no network,
clock or key: answers and times come in, decisions go out. All fees are in wei for a unit of gas.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

GWEI = 10**9
MAX_FEE = 100
"""Gwei that a unit of gas may cost, where nothing else is set."""
CANCEL_GAS = 21_000
"""Gas of a transfer to an account without code."""


class Answer(enum.Enum):
    """How an endpoint answered `eth_sendRawTransaction`."""

    ACCEPTED = "accepted"
    KNOWN = "known"
    NONCE_TOO_LOW = "nonce too low"
    UNDERPRICED = "underpriced"
    NO_FUNDS = "no funds"
    REFUSED = "refused"
    SILENCE = "silence"
    """No answer, or one that says nothing about the transaction: it may have been taken."""

    @property
    def taken(self) -> bool:
        """The endpoint holds the transaction."""
        return self in {Answer.ACCEPTED, Answer.KNOWN}


# No standard names these errors. The words are those of geth, erigon, reth, nethermind, besu, anvil and
# hardhat; the first line that fits decides. Refused is only what says that this transaction asks for too
# much, so that a smaller one in its place is taken. What else is called invalid may be the caller's key.
_WORDS = (
    (
        Answer.KNOWN,
        r"already ?known|known transaction|already imported|already exists|already in the |with same hash",
    ),
    (Answer.NONCE_TOO_LOW, r"nonce too low|nonce is too low|old ?nonce|nonce .*(below|already|lower)"),
    (
        Answer.NO_FUNDS,
        r"insufficient ?(funds|balance)|upfront cost|exceeds .*balance|enough (funds|balance)|overdraft",
    ),
    (
        Answer.UNDERPRICED,
        r"underpriced|(fee|price|tip|cap)(s|pergas)?( \(\d+\))?( is)? ?too ?low"
        r"|(less than|lower than|below) .*(minimum|base ?fee)"
        r"|could not replace|replacement ?not ?allowed|insufficient gas price",
    ),
    # It is about the endpoint, which is on another chain; or about what waits before this one.
    (Answer.SILENCE, r"chain.?id|lower nonce"),
    (
        Answer.REFUSED,
        r"\brevert(ed)?\b|intrinsic ?gas|gas ?limit|gas too (low|high)|floor data gas"
        r"|configured cap|fee cap exceeded|priority fee .*(higher than|exceeds) max fee"
        r"|oversized data|rlp ?too ?long|tx ?size ?exceeded|transaction too large"
        r"|^(transaction )?invalid($|, )|^invalid transaction($|:)",
    ),
)
_ANSWERS = tuple((answer, re.compile(words, re.IGNORECASE)) for answer, words in _WORDS)


def read_answer(message: str) -> Answer:
    """What an endpoint's error message means for the transaction that was sent."""
    for answer, words in _ANSWERS:
        if words.search(message):
            return answer
    return Answer.SILENCE


@dataclass(frozen=True, slots=True)
class Fees:
    """EIP-1559: the most that is paid, and what of it goes to the block's proposer."""

    max_fee: int
    tip: int


@dataclass(frozen=True, slots=True)
class Market:
    """The latest block's base fee and the tip that the endpoint suggests."""

    base_fee: int
    tip: int


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to wait and how far to go."""

    ceiling: int = MAX_FEE * GWEI
    """The most that a unit of gas may cost, in wei."""
    bump_after: float = 30.0
    """Seconds in the pool before a transaction is replaced at higher fees."""
    resend_after: float = 10.0
    """Seconds after which the same bytes are sent again."""


def opening(market: Market, ceiling: int) -> Fees:
    """Fees of a first attempt: they hold until the base fee has doubled."""
    max_fee = min(2 * market.base_fee + market.tip, ceiling)
    return Fees(max_fee, min(market.tip, max_fee))


def replaces(new: Fees, old: Fees) -> bool:
    """The rule of every pool in use: both fees a tenth higher, and higher at all."""
    return all(
        after > before and 10 * after >= 11 * before
        for after, before in ((new.max_fee, old.max_fee), (new.tip, old.tip))
    )


def bumped(fees: Fees, market: Market, ceiling: int) -> Fees | None:
    """Both fees an eighth higher, and at least what the market asks; None if that is above the ceiling."""
    least = Fees(_eighth_more(fees.max_fee), _eighth_more(fees.tip))
    if least.max_fee > ceiling:
        return None
    fresh = opening(market, ceiling)
    max_fee = max(least.max_fee, fresh.max_fee)
    return Fees(max_fee, min(max(least.tip, fresh.tip), max_fee))


def _eighth_more(fee: int) -> int:
    return max(fee + 1, -(-fee * 9 // 8))


@dataclass(frozen=True, slots=True)
class Sighting:
    """The receipt of one of a transaction's hashes."""

    hash: str
    block: int
    succeeded: bool


@dataclass(frozen=True, slots=True)
class Flight:
    """What is remembered of a transaction under way."""

    nonce: int
    fees: Fees
    """Of the newest attempt."""
    cancelling: bool = False
    """The newest attempt only fills the nonce."""
    mined: Sighting | None = None
    """Where it was last seen."""
    answer: Answer | None = None
    """To the last broadcast by this process."""
    sent_at: float | None = None
    """The last broadcast by this process."""
    taken_at: float | None = None
    """When an endpoint first took the newest attempt."""
    passed_at: int | None = None
    """The block at which its nonce was first found used by none of its hashes."""
    first: bool = True
    """No transaction of the key with a lower nonce is under way."""


@dataclass(frozen=True, slots=True)
class View:
    """What the chain shows at this moment."""

    head: int
    """Number of the latest block."""
    nonce: int
    """The key's transaction count in the latest block."""
    market: Market
    confirmations: int
    """Blocks that make a fact final; 1: the one that holds it."""
    sighting: Sighting | None = None


class Move(enum.Enum):
    """What to do with a transaction."""

    WAIT = "wait"
    SEND = "send"
    BUMP = "bump"
    CANCEL = "cancel"
    MINED = "mined"
    TAKE_BACK = "take back"
    FINISH = "finish"
    PASSED = "passed"
    DISPLACED = "displaced"


@dataclass(frozen=True, slots=True)
class Decision:
    """A move, with the fees of the next attempt for BUMP and CANCEL."""

    move: Move
    fees: Fees | None = None


def decide(flight: Flight, view: View, now: float, pace: Pace) -> Decision:
    """The next move of one transaction. `now` in seconds, on the clock of `sent_at` and `taken_at`."""
    if view.sighting is not None:
        return Decision(_seen(flight, view, view.sighting))
    if flight.mined is not None:
        # An endpoint that has not come to that block yet cannot know that it is gone.
        return Decision(Move.TAKE_BACK if view.head >= flight.mined.block else Move.WAIT)
    if view.nonce > flight.nonce:
        return Decision(_passed(flight, view))
    return _unmined(flight, view.market, now, pace)


def _seen(flight: Flight, view: View, sighting: Sighting) -> Move:
    if view.head - sighting.block + 1 >= view.confirmations:
        return Move.FINISH
    return Move.WAIT if sighting == flight.mined else Move.MINED


def _passed(flight: Flight, view: View) -> Move:
    """The nonce is used, by none of ours as far as is seen; a lagging endpoint gets N blocks to catch up."""
    if flight.passed_at is None:
        return Move.PASSED
    return Move.DISPLACED if view.head - flight.passed_at >= view.confirmations else Move.WAIT


def _unmined(flight: Flight, market: Market, now: float, pace: Pace) -> Decision:
    if flight.sent_at is None:
        return Decision(Move.SEND)
    raised = bumped(flight.fees, market, pace.ceiling)
    if flight.answer is Answer.REFUSED and not flight.cancelling:
        return Decision(Move.CANCEL, raised or flight.fees)
    if raised is not None and (flight.answer is Answer.UNDERPRICED or _stuck(flight, market, now, pace)):
        return Decision(Move.BUMP, raised)
    return Decision(Move.SEND if _is_past(flight.sent_at, pace.resend_after, now) else Move.WAIT)


def _stuck(flight: Flight, market: Market, now: float, pace: Pace) -> bool:
    """Long in the pool, and not merely behind another one."""
    if flight.taken_at is None or flight.answer is Answer.NO_FUNDS:
        return False
    return _is_past(flight.taken_at, pace.bump_after, now) and (
        flight.first or flight.fees.max_fee < market.base_fee
    )


def _is_past(since: float, seconds: float, now: float) -> bool:
    """So many seconds have gone by. A clock that was set back cannot say: then they have."""
    return not since <= now < since + seconds
