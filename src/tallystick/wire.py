"""What goes over the wire, both ways, beside requests for replies: receipts, authorizations, tallies, frames,
refusals.

Reading checks every member that the package looks at and names the one that is wrong. Knows the forms only:
who may send what, and when, is for node and session to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
import orjson
from eth_utils.address import to_checksum_address

from tallystick.authorization import Opening, TopUp
from tallystick.errors import Refusal
from tallystick.pricing import MAX_DEPOSIT, MAX_TOKENS
from tallystick.proof import MAX_JOB_ID
from tallystick.types import (
    Ack,
    Address,
    Authorization,
    JobId,
    Position,
    Prices,
    Receipt,
    RequestId,
    Terms,
    Totals,
)

MAX_BODY = 8_000_000
"""Bytes of a request body, of a WebSocket frame, of one server-sent event."""
MAX_POSITIONS = 256
"""Positions in one receipt."""
SIGNATURE = "^0x([0-9a-fA-F]{128}|[0-9a-fA-F]{130})$"
"""As JSON Schema has it, as are the next two."""
KEY_PATTERN = "^[!-~]{1,255}$"
"""An `Idempotency-Key`."""
EVENT_PATTERN = "^[0-9]{1,15}$"
"""The id of an event."""

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]
"""Tokens, as a form has them."""
JobNumber = Annotated[int, msgspec.Meta(ge=1, le=MAX_JOB_ID)]
"""A job's id, as a form has it."""
RequestName = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
"""A request's id, as a form has it."""
_Hash = Annotated[str, msgspec.Meta(pattern=r"^0x[0-9a-fA-F]{64}\Z")]
_Signature = Annotated[str, msgspec.Meta(pattern=SIGNATURE.replace("$", r"\Z"))]
_Money = Annotated[str, msgspec.Meta(pattern=r"^(0|[1-9][0-9]{0,28})\Z")]
_Price = Annotated[str, msgspec.Meta(pattern=r"^(0|[1-9][0-9]{0,24})\Z")]
_Address = Annotated[str, msgspec.Meta(pattern=r"^0x[0-9a-fA-F]{40}\Z")]
_Time = Annotated[int, msgspec.Meta(ge=0, le=2**48 - 1)]
# Of a payer that is a contract it may be of any length (ERC-1271).
_AnySignature = Annotated[str, msgspec.Meta(pattern=r"^0x([0-9a-fA-F]{2}){1,4096}\Z")]
_Form = TypeVar("_Form")


def parse(raw: bytes | str) -> dict[str, Any]:
    """A JSON object. Refusal `too_large` or `invalid_request`."""
    if len(raw) > MAX_BODY:
        raise Refusal("too_large", f"The body is longer than {MAX_BODY} bytes.")
    try:
        body = orjson.loads(raw)
        # On its way it is written again, perhaps in a frame, and orjson reads deeper nesting than it writes.
        orjson.dumps([body])
    except orjson.JSONDecodeError as error:
        raise Refusal("invalid_request", f"The body is not JSON: {error}.") from None
    except orjson.JSONEncodeError:
        raise Refusal("invalid_request", "The body is nested too deeply.") from None
    if not isinstance(body, dict):
        raise Refusal("invalid_request", "The body is not a JSON object.")
    return body


def read(body: Any, form: type[_Form]) -> _Form:
    """`body` checked against a form. Refusal `invalid_request`, whose `param` is the member that is wrong."""
    try:
        return _converted(body, form)
    except msgspec.ValidationError as error:
        detail, _, path = str(error).partition(" - at `$")
        param = path.rstrip("`").lstrip(".") or None
        where = f"`{param}`: " if param else ""
        raise Refusal("invalid_request", f"{where}{detail}.", param=param) from None


def _converted(body: Any, form: type[_Form]) -> _Form:
    try:
        return msgspec.convert(body, form)
    except msgspec.ValidationError:
        # To JSON, 1.0 and 1e2 are whole numbers; hardly anybody writes them so.
        return msgspec.convert(_whole(body), form)


def _whole(json: Any) -> Any:
    """The same JSON, with every whole number as an int."""
    if isinstance(json, dict):
        return {name: _whole(member) for name, member in json.items()}
    if isinstance(json, list):
        return [_whole(item) for item in json]
    return int(json) if isinstance(json, float) and json.is_integer() else json


def _hex(data: bytes) -> str:
    return "0x" + data.hex()


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text[2:])


# Receipts


class _Position(msgspec.Struct):
    request: RequestName
    prompt_tokens: Count
    tokens: Count
    prompt_hash: _Hash
    text_hash: _Hash


class ReceiptForm(msgspec.Struct):
    """A receipt as JSON (protocol §5)."""

    job_id: JobNumber
    prompt_tokens: Count
    tokens: Count
    previous: _Hash
    transcript: _Hash
    signature: _Signature
    positions: Annotated[list[_Position], msgspec.Meta(max_length=MAX_POSITIONS)] = []


class _Ack(msgspec.Struct):
    job_id: JobNumber
    prompt_tokens: Count
    tokens: Count
    transcript: _Hash
    signature: _Signature | None = None


def position_out(position: Position) -> dict[str, Any]:
    """A position as it stands in a receipt."""
    return {
        "request": position.request,
        "prompt_tokens": position.prompt_tokens,
        "tokens": position.tokens,
        "prompt_hash": _hex(position.prompt_hash),
        "text_hash": _hex(position.text_hash),
    }


def position_in(obj: Any) -> Position:
    """A position. Refusal `invalid_request`."""
    return _position(read(obj, _Position))


def _position(form: _Position) -> Position:
    return Position(
        RequestId(form.request),
        form.prompt_tokens,
        form.tokens,
        _bytes(form.prompt_hash),
        _bytes(form.text_hash),
    )


def receipt_out(receipt: Receipt) -> dict[str, Any]:
    """A receipt as JSON (protocol §5)."""
    return {
        "job_id": receipt.job_id,
        "prompt_tokens": receipt.totals.prompt_tokens,
        "tokens": receipt.totals.tokens,
        "previous": _hex(receipt.previous),
        "transcript": _hex(receipt.transcript),
        "signature": _hex(receipt.signature),
        "positions": [position_out(position) for position in receipt.positions],
    }


def receipt_in(obj: Any) -> Receipt:
    """A receipt; whether it holds is for others to say. Refusal `invalid_request`."""
    return receipt_of(read(obj, ReceiptForm))


def receipt_of(form: ReceiptForm) -> Receipt:
    if len({position.request for position in form.positions}) < len(form.positions):
        raise Refusal("receipt_mismatch", "A request is named twice in `positions`.")
    return Receipt(
        JobId(form.job_id),
        Totals(form.prompt_tokens, form.tokens),
        _bytes(form.previous),
        _bytes(form.transcript),
        _bytes(form.signature),
        tuple(map(_position, form.positions)),
    )


def ack_out(ack: Ack) -> dict[str, Any]:
    """An acknowledgement as JSON (protocol §5)."""
    return {
        "job_id": ack.job_id,
        "prompt_tokens": ack.totals.prompt_tokens,
        "tokens": ack.totals.tokens,
        "transcript": _hex(ack.transcript),
        "signature": None if ack.signature is None else _hex(ack.signature),
    }


def ack_in(obj: Any) -> Ack:
    """An acknowledgement. Refusal `invalid_request`."""
    form = read(obj, _Ack)
    return Ack(
        JobId(form.job_id),
        Totals(form.prompt_tokens, form.tokens),
        _bytes(form.transcript),
        None if form.signature is None else _bytes(form.signature),
    )


class _Ending(msgspec.Struct):
    receipt: ReceiptForm | None = None
    end: _Signature | None = None


def ending_in(obj: Any) -> tuple[Receipt | None, bytes | None]:
    """What ends a session: the last receipt, or the signature over `End`; the other is None.

    Refusal `invalid_request` for both or neither.
    """
    form = read(obj, _Ending)
    if form.receipt is not None and form.end is None:
        return receipt_of(form.receipt), None
    if form.end is not None and form.receipt is None:
        return None, _bytes(form.end)
    raise Refusal("invalid_request", "Send either `receipt` or `end`.")


# Authorizations: what a payer has signed, for the host to send


class AuthorizationForm(msgspec.Struct):
    """A payer's EIP-3009 authorization as JSON (protocol §7)."""

    payer: _Address
    valid_after: _Time
    valid_before: _Time
    signature: _AnySignature


class TermsForm(msgspec.Struct):
    """A job's terms as JSON (protocol §7)."""

    host: _Address
    asset: _Address
    deposit: _Money
    price_per_million: _Price
    prompt_price_per_million: _Price
    signer: _Address
    max_tokens_per_second: _Time
    claim_window: _Time
    expires_at: _Time
    interval: _Time
    model_id: _Hash


class OpeningForm(msgspec.Struct):
    """An opening that a payer has authorized, as JSON (protocol §7)."""

    terms: TermsForm
    relay_fee: _Money
    salt: _Hash
    authorization: AuthorizationForm


class TopUpForm(msgspec.Struct):
    """A top-up that a payer has authorized, as JSON (protocol §7)."""

    amount: _Money
    salt: _Hash
    authorization: AuthorizationForm


def opening_out(opening: Opening, auth: Authorization) -> dict[str, Any]:
    """An authorized opening as JSON."""
    terms = opening.terms
    return {
        "terms": {
            "host": terms.host,
            "asset": terms.asset,
            "deposit": str(terms.deposit),
            "price_per_million": str(terms.prices.per_million),
            "prompt_price_per_million": str(terms.prices.prompt_per_million),
            "signer": terms.signer,
            "max_tokens_per_second": terms.max_tokens_per_second,
            "claim_window": terms.claim_window,
            "expires_at": terms.expires_at,
            "interval": terms.checkpoint_interval,
            "model_id": _hex(terms.model_id),
        },
        "relay_fee": str(opening.relay_fee),
        "salt": _hex(opening.salt),
        "authorization": _authorization_out(auth),
    }


def opening_in(obj: Any) -> tuple[Opening, Authorization]:
    """An authorized opening; whether it holds is for others to say. Refusal `invalid_request`."""
    form = read(obj, OpeningForm)
    opening = Opening(_terms(form.terms), int(form.relay_fee), _bytes(form.salt))
    return opening, _authorization(form.authorization)


def top_up_out(top_up: TopUp, auth: Authorization) -> dict[str, Any]:
    """An authorized top-up as JSON; the path has its job."""
    amount, salt = str(top_up.amount), _hex(top_up.salt)
    return {"amount": amount, "salt": salt, "authorization": _authorization_out(auth)}


def top_up_in(obj: Any) -> tuple[int, bytes, Authorization]:
    """Amount, salt and authorization of a top-up. Refusal `invalid_request`."""
    form = read(obj, TopUpForm)
    return int(form.amount), _bytes(form.salt), _authorization(form.authorization)


def _authorization_out(auth: Authorization) -> dict[str, Any]:
    return {
        "payer": auth.payer,
        "valid_after": auth.valid_after,
        "valid_before": auth.valid_before,
        "signature": _hex(auth.signature),
    }


def _authorization(form: AuthorizationForm) -> Authorization:
    payer = Address(to_checksum_address(form.payer))
    return Authorization(payer, form.valid_after, form.valid_before, _bytes(form.signature))


def _terms(form: TermsForm) -> Terms:
    return Terms(
        host=Address(to_checksum_address(form.host)),
        asset=Address(to_checksum_address(form.asset)),
        deposit=int(form.deposit),
        prices=Prices(int(form.price_per_million), int(form.prompt_price_per_million)),
        signer=Address(to_checksum_address(form.signer)),
        max_tokens_per_second=form.max_tokens_per_second,
        claim_window=form.claim_window,
        expires_at=form.expires_at,
        checkpoint_interval=form.interval,
        model_id=_bytes(form.model_id),
    )


# Tally: the running counts that come with every chunk


@dataclass(frozen=True, slots=True)
class Tally:
    """The running counts with one chunk (protocol §6). `left` is in base units."""

    request: RequestId
    totals: Totals
    """Of this request, with this chunk."""
    job: Totals
    """Counted totals of the job."""
    left: int
    due: bool = False
    waiting: bool = False
    low: bool = False
    reason: str | None = None


class _Totals(msgspec.Struct):
    prompt_tokens: Count
    tokens: Count


class TallyForm(msgspec.Struct):
    """A `tally` as it lies in a frame that the payer reads."""

    request: RequestName
    prompt_tokens: Count
    tokens: Count
    job: _Totals
    left: _Money
    due: bool = False
    waiting: bool = False
    low: bool = False
    reason: str | None = None


def tally(
    request: RequestId,
    totals: Totals,
    job_totals: Totals,
    left: int,
    *,
    due: bool = False,
    waiting: bool = False,
    low: bool = False,
    reason: str | None = None,
) -> dict[str, Any]:
    """The `tally` of one chunk; members that say nothing are left out."""
    out: dict[str, Any] = {
        "request": request,
        "prompt_tokens": totals.prompt_tokens,
        "tokens": totals.tokens,
        "job": {"prompt_tokens": job_totals.prompt_tokens, "tokens": job_totals.tokens},
        "left": str(left),
    }
    if due:
        out["due"] = True
    if waiting:
        out["waiting"] = True
    if low:
        out["low"] = True
    if reason is not None:
        out["reason"] = reason
    return out


def tally_in(obj: Any) -> Tally:
    """The `tally` of one chunk, as the payer reads it. Refusal `invalid_request`."""
    return tally_of(read(obj, TallyForm))


def tally_of(form: TallyForm) -> Tally:
    """A `tally` that was read with its frame. Refusal `invalid_request`."""
    if int(form.left) > MAX_DEPOSIT:
        raise Refusal("invalid_request", "`left`: more than a deposit can hold.", param="left")
    return Tally(
        RequestId(form.request),
        Totals(form.prompt_tokens, form.tokens),
        Totals(form.job.prompt_tokens, form.job.tokens),
        int(form.left),
        form.due,
        form.waiting,
        form.low,
        form.reason,
    )


# WebSocket frames


def frame(type: str, **members: Any) -> str:
    """One frame to send."""
    return orjson.dumps({"type": type, **members}).decode()


def parse_frame(raw: bytes | str) -> dict[str, Any]:
    """One frame: an object whose `type` is a string. Refusal `too_large` or `invalid_request`."""
    members = parse(raw)
    if not isinstance(members.get("type"), str):
        raise Refusal("invalid_request", "`type`: the frame does not say what it is.", param="type")
    return members


# Refusals

OURS = ("/v1/host", "/v1/jobs", "/v1/session")
"""Routes that OpenAI's API has no counterpart of."""


def is_openais(path: str) -> bool:
    """Whatever OpenAI's clients may ask for, served or not; not what only this protocol has."""
    return path.startswith("/v1/") and not path.startswith(OURS)


def openai_error(refusal: Refusal) -> dict[str, Any]:
    """A refusal as OpenAI's clients read it: the problem object, with `message` and `param` in it."""
    problem = refusal.problem()
    return {"error": {**problem, "message": refusal.detail, "param": problem.get("param")}}
