"""What a host sends over the WebSocket (protocol §10), as the payer reads it: one typed form for each frame.

Reading is strict where the payer relies on a member, and blind to members and kinds of frames that it does
not know. A host may send anything: whatever does not fit is one SessionError that says what. Knows no socket.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from tallystick import wire
from tallystick.errors import Refusal, SessionError
from tallystick.pricing import MAX_DEPOSIT, MAX_TOKENS
from tallystick.transcript import delta_text
from tallystick.types import Ack, Receipt, Totals


class Problem(msgspec.Struct):
    """What is wrong, in the host's words (protocol §12)."""

    code: str = "error"
    detail: str = ""
    title: str = ""
    move: str = ""
    mend: str | None = None
    status: int = 0
    """Of HTTP; 0: not told."""
    retry: bool = False
    """The same request can succeed later."""
    stored: dict[str, Any] | None = None
    prompt_tokens: int = 0
    terms: dict[str, Any] = {}
    retry_after: float = 0
    """Seconds after which it can; 0: not told."""

    def __str__(self) -> str:
        """In a line: what is wrong, whose move it is, what mends it."""
        told = f"{self.code}: {self.detail or self.title or 'the host gave no reason'}"
        if self.mend is None:
            return told
        move = {"payer": "yours", "host": "the host's"}.get(self.move, "nobody's")
        return f"{told.rstrip('.')}. The move is {move}: {self.mend}"

    @property
    def least_prompt_tokens(self) -> int:
        """The total of prompt tokens to sign, where a prompt does not fit the credit."""
        least = self.terms.get("prompt_tokens")
        return least if isinstance(least, int) else 0


Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]


class Running(msgspec.Struct, gc=False):
    """What the payer reads of the `tally` of an event of a stream: there is one for every token."""

    request: str
    prompt_tokens: Count
    tokens: Count
    left: str
    """As `left` reads it."""
    due: bool = False
    waiting: bool = False
    low: bool = False
    reason: str | None = None

    @property
    def totals(self) -> Totals:
        """Of this request."""
        return Totals(self.prompt_tokens, self.tokens)


class Token(msgspec.Struct, tag="token"):
    """A piece of a reply."""

    request: str
    tally: wire.TallyForm
    text: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = []

    @property
    def delta(self) -> str:
        """Its text as the transcript has it."""
        return delta_text(self.members)

    @property
    def members(self) -> dict[str, Any]:
        """As OpenAI's deltas have it."""
        return {"reasoning": self.reasoning, "content": self.text, "tool_calls": self.tool_calls}


class Checkpoint(msgspec.Struct, tag="checkpoint"):
    """A stream offers a checkpoint, and may stand still until it is signed."""

    request: str
    tally: wire.TallyForm


class Finished(msgspec.Struct, tag="done"):
    """A reply is over."""

    request: str
    finish_reason: str
    reason: str
    tally: wire.TallyForm


class Answer(msgspec.Struct, tag="ack"):
    """The host's answer to a receipt; `stored` for one that was equal or stale."""

    ack: dict[str, Any]
    stored: dict[str, Any] | None = None


class Low(msgspec.Struct, tag="balance_low"):
    """A fifth of the deposit or less is left."""

    tally: wire.TallyForm


class Paid(msgspec.Struct, tag="settled"):
    """A settlement was confirmed, as the host says."""

    prompt_tokens: int
    tokens: int
    host: str
    treasury: str
    tx: str
    completed: bool = False
    refund: str | None = None


class Ended(msgspec.Struct, tag="session_end"):
    """The end of the session is on the host's disk."""


class Failed(msgspec.Struct, tag="error"):
    """A request, or (without one) a receipt or an end, was refused."""

    problem: Problem
    request: str | None = None


Frame = Token | Checkpoint | Finished | Answer | Low | Paid | Ended | Failed
OfRequest = Token | Checkpoint | Finished | Failed

_FORMS: dict[str, type[Frame]] = {
    "token": Token,
    "checkpoint": Checkpoint,
    "done": Finished,
    "ack": Answer,
    "balance_low": Low,
    "settled": Paid,
    "session_end": Ended,
    "error": Failed,
}


def read(raw: str) -> Frame | None:
    """One frame; None for a kind that this version does not know. SessionError for anything else."""
    try:
        members = wire.parse_frame(raw)
        form = _FORMS.get(members["type"])
        return None if form is None else msgspec.convert(members, form)
    except Refusal as refusal:
        raise SessionError(f"the host sent what is no frame: {refusal.detail}") from refusal
    except msgspec.ValidationError as error:
        raise SessionError(f"the host sent a frame that cannot be read: {error}") from error


def problem(body: Any) -> Problem:
    """A problem object that came as an HTTP answer; what is none becomes one without a reason."""
    try:
        return msgspec.convert(body, Problem)
    except msgspec.ValidationError:
        return Problem()


def tally(form: wire.TallyForm) -> wire.Tally:
    """The counts of a frame. SessionError."""
    try:
        return wire.tally_of(form)
    except Refusal as refusal:
        raise SessionError(f"the host's counts cannot be read: {refusal.detail}") from refusal


def left(told: str) -> int:
    """What a deposit has left, in base units. SessionError."""
    if not (told.isascii() and told.isdecimal()) or int(told) > MAX_DEPOSIT:
        raise SessionError(f"the host's counts cannot be read: {told[:40]!r} is left")
    return int(told)


def receipt(body: Any) -> Receipt:
    """A receipt that the host holds. SessionError."""
    try:
        return wire.receipt_in(body)
    except Refusal as refusal:
        raise SessionError(f"the host's stored receipt cannot be read: {refusal.detail}") from refusal


def ack(body: Any) -> Ack:
    """A host's acknowledgement. SessionError."""
    try:
        return wire.ack_in(body)
    except Refusal as refusal:
        raise SessionError(f"the host's acknowledgement cannot be read: {refusal.detail}") from refusal
