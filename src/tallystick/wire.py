"""What goes over the wire, both ways: OpenAI bodies, receipts, server-sent events, frames, refusals.

Reading checks every member that the package looks at and names the one that is wrong; the rest of a body
passes through as it came. Knows the forms only: who may send what, and when, is for node and session to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import orjson
from eth_utils.address import to_checksum_address

from tallystick import transcript
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
MAX_CHOICES = 128
"""`n`, as OpenAI has it; times the prompts, where there are several."""
MAX_ID = 2**31 - 1
"""The highest id of a token."""
MAX_IDS = 1_000_000
"""Token ids in one prompt: more than any context holds."""
SIGNATURE = "^0x([0-9a-fA-F]{128}|[0-9a-fA-F]{130})$"
"""As JSON Schema has it, as are the next two."""
KEY_PATTERN = "^[!-~]{1,255}$"
"""An `Idempotency-Key`."""
EVENT_PATTERN = "^[0-9]{1,15}$"
"""The id of an event."""
SSE_DONE = b"data: [DONE]\n\n"

_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]
_JobId = Annotated[int, msgspec.Meta(ge=1, le=MAX_JOB_ID)]
_Request = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
_Hash = Annotated[str, msgspec.Meta(pattern=r"^0x[0-9a-fA-F]{64}\Z")]
_Signature = Annotated[str, msgspec.Meta(pattern=SIGNATURE.replace("$", r"\Z"))]
_Money = Annotated[str, msgspec.Meta(pattern=r"^(0|[1-9][0-9]{0,28})\Z")]
_Price = Annotated[str, msgspec.Meta(pattern=r"^(0|[1-9][0-9]{0,24})\Z")]
_Address = Annotated[str, msgspec.Meta(pattern=r"^0x[0-9a-fA-F]{40}\Z")]
_Time = Annotated[int, msgspec.Meta(ge=0, le=2**48 - 1)]
# Of a payer that is a contract it may be of any length (ERC-1271).
_AnySignature = Annotated[str, msgspec.Meta(pattern=r"^0x([0-9a-fA-F]{2}){1,4096}\Z")]
# -1 and null ask for the host's default; a reply of 0 tokens is none, and below -1 there is nothing to mean.
_Limit = Annotated[int, msgspec.Meta(ge=-1, le=MAX_TOKENS, extra_json_schema={"not": {"const": 0}})]
_Choices = Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)]
_TokenId = Annotated[int, msgspec.Meta(ge=0, le=MAX_ID)]
_TokenIds = Annotated[list[_TokenId], msgspec.Meta(min_length=1, max_length=MAX_IDS)]
_Form = TypeVar("_Form")


def parse(raw: bytes | str) -> dict[str, Any]:
    """A JSON object. Refusal `too_large` or `invalid_request`."""
    if len(raw) > MAX_BODY:
        raise Refusal("too_large")
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


def _read(body: Any, form: type[_Form]) -> _Form:
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
    request: _Request
    prompt_tokens: _Count
    tokens: _Count
    prompt_hash: _Hash
    text_hash: _Hash


class ReceiptForm(msgspec.Struct):
    """A receipt as JSON (protocol §5)."""

    job_id: _JobId
    prompt_tokens: _Count
    tokens: _Count
    previous: _Hash
    transcript: _Hash
    signature: _Signature
    positions: Annotated[list[_Position], msgspec.Meta(max_length=MAX_POSITIONS)] = []


class _Ack(msgspec.Struct):
    job_id: _JobId
    prompt_tokens: _Count
    tokens: _Count
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
    return _position(_read(obj, _Position))


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
    return _receipt(_read(obj, ReceiptForm))


def _receipt(form: ReceiptForm) -> Receipt:
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
    form = _read(obj, _Ack)
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
    form = _read(obj, _Ending)
    if form.receipt is not None and form.end is None:
        return _receipt(form.receipt), None
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
    form = _read(obj, OpeningForm)
    opening = Opening(_terms(form.terms), int(form.relay_fee), _bytes(form.salt))
    return opening, _authorization(form.authorization)


def top_up_out(top_up: TopUp, auth: Authorization) -> dict[str, Any]:
    """An authorized top-up as JSON; the path has its job."""
    amount, salt = str(top_up.amount), _hex(top_up.salt)
    return {"amount": amount, "salt": salt, "authorization": _authorization_out(auth)}


def top_up_in(obj: Any) -> tuple[int, bytes, Authorization]:
    """Amount, salt and authorization of a top-up. Refusal `invalid_request`."""
    form = _read(obj, TopUpForm)
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
    prompt_tokens: _Count
    tokens: _Count


class TallyForm(msgspec.Struct):
    """A `tally` as it lies in a frame that the payer reads."""

    request: _Request
    prompt_tokens: _Count
    tokens: _Count
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
    return tally_of(_read(obj, TallyForm))


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


# Requests


class _TextPart(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class _RefusalPart(msgspec.Struct, tag_field="type", tag="refusal"):
    refusal: str


class _Message(msgspec.Struct):
    role: str
    # Engines refuse what they cannot read in ways that look like a fault of theirs, so it is done here.
    content: str | list[_TextPart | _RefusalPart] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _RequestTally(msgspec.Struct):
    request: _Request | None = None
    receipt: ReceiptForm | None = None


class _Asked(msgspec.Struct, kw_only=True):
    """The members of a request that the host reads; what they mean otherwise is the engine's."""

    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: _Limit | None = None
    n: _Choices | None = None
    job_id: _JobId | None = None
    tally: _RequestTally | None = None


class Chat(_Asked, kw_only=True):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    max_completion_tokens: _Limit | None = None


class Text(_Asked, kw_only=True):
    """The body of `POST /v1/completions`."""

    prompt: str | Annotated[list[str | _TokenId | _TokenIds], msgspec.Meta(min_length=1, max_length=MAX_IDS)]
    best_of: Literal[1] | None = None
    """Each choice that is made is told."""
    echo: bool | None = None


class _Inference(msgspec.Struct):
    prompt: str | None = None
    id: _Request | None = None
    access: str | None = None


Prompt = str | list[int]
"""A text to complete, or its token ids."""


@dataclass(frozen=True)
class ReplyRequest:
    """One request for a reply, of any route and transport."""

    body: dict[str, Any] = field(repr=False)
    """The request for the engine: as sent, without our members."""
    sent: dict[str, Any] = field(repr=False)
    """The request object as sent, which is what its prompt is made of."""
    model: str | None
    stream: bool
    max_tokens: int | None
    """None: the host's default. Above 0 otherwise."""
    job_id: JobId | None
    request: RequestId | None
    receipt: Receipt | None
    n: int
    """Choices for each prompt."""
    include_usage: bool
    prompts: tuple[Prompt, ...] = field(default=(), repr=False)
    """The texts to complete; none: it is a chat."""

    @property
    def choices(self) -> int:
        """How many choices the reply has."""
        return self.n * (len(self.prompts) or 1)

    def prompt_form(self) -> bytes:
        """The RFC 8785 form of the prompt (protocol §4). Refusal `invalid_request` if it has none."""
        return transcript.prompt_form(self.sent)

    def prompt_hash(self) -> bytes:
        """The 32-byte hash of the prompt. Raises what `prompt_form` raises."""
        return self._prompt_hash

    @cached_property
    def _prompt_hash(self) -> bytes:
        return transcript.prompt_hash(self.sent)


def parse_chat(raw: bytes) -> ReplyRequest:
    """The body of `POST /v1/chat/completions`. Refusal `too_large` or `invalid_request`."""
    sent = parse(raw)
    return _chat(sent, _without(sent, {"job_id", "tally"}))


def parse_text(raw: bytes) -> ReplyRequest:
    """The body of `POST /v1/completions`. Refusal `too_large` or `invalid_request`."""
    sent = parse(raw)
    form = _read(sent, Text)
    prompts = _prompts(form.prompt)
    n = form.n or 1
    if n * len(prompts) > MAX_CHOICES:
        raise Refusal("too_many_choices", f"There are {len(prompts)} prompts, and {n} choices of each.")
    if form.echo:
        raise Refusal("invalid_request", "`echo`: this host does not send prompts back.", param="echo")
    body = _without(sent, {"job_id", "tally", "prompt"})
    request = _request(form, _limit("max_tokens", form.max_tokens), body, sent)
    return replace(request, prompts=prompts)


def _prompts(prompt: str | list[str | int | list[int]]) -> tuple[Prompt, ...]:
    """A list of token ids is one prompt, any other list has one in each place."""
    if isinstance(prompt, str):
        return (prompt,)
    ids = [each for each in prompt if isinstance(each, int)]
    if not ids:
        return tuple(each for each in prompt if not isinstance(each, int))
    if len(ids) < len(prompt):
        raise Refusal("invalid_request", "`prompt`: it mixes token ids and prompts.", param="prompt")
    return (ids,)


def parse_inference(frame_request: Any) -> tuple[ReplyRequest, str | None]:
    """The `request` of a WebSocket `inference` frame, and the bearer in it. Refusal `invalid_request`."""
    form = _read(frame_request, _Inference)
    sent: dict[str, Any] = frame_request
    if (form.prompt is None) == (sent.get("messages") is None):
        raise Refusal("invalid_request", "Send either `prompt` or `messages`.", param="prompt")
    body = _without(sent, {"job_id", "tally", "id", "access", "prompt"})
    if form.prompt is not None:
        body["messages"] = [{"role": "user", "content": form.prompt}]
    checked = {**sent, "messages": body.get("messages"), "stream": True}
    return _chat(checked, body, sent=sent, request=form.id), form.access


class _Resume(msgspec.Struct):
    request: _Request
    after: _Count = 0
    access: str | None = None


def resume_in(frame: Any) -> tuple[RequestId, int, str | None]:
    """A `resume` frame: the reply, how many of its frames came, the bearer. Refusal `invalid_request`."""
    form = _read(frame, _Resume)
    return RequestId(form.request), form.after, form.access


def _without(sent: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: member for name, member in sent.items() if name not in names}


def _chat(
    checked: dict[str, Any],
    body: dict[str, Any],
    *,
    sent: dict[str, Any] | None = None,
    request: str | None = None,
) -> ReplyRequest:
    form = _read(checked, Chat)
    names = ("max_tokens", "max_completion_tokens")
    limits = [_limit(name, getattr(form, name)) for name in names]
    max_tokens = min(filter(None, limits), default=None)
    return _request(form, max_tokens, body, checked if sent is None else sent, request)


def _request(
    form: _Asked,
    max_tokens: int | None,
    body: dict[str, Any],
    sent: dict[str, Any],
    request: str | None = None,
) -> ReplyRequest:
    ours = form.tally or _RequestTally()
    named = _same("id", request, "tally.request", ours.request)
    options = form.stream_options or _StreamOptions()
    return ReplyRequest(
        body=body,
        sent=sent,
        model=form.model,
        stream=bool(form.stream),
        max_tokens=max_tokens,
        job_id=None if form.job_id is None else JobId(form.job_id),
        request=None if named is None else RequestId(named),
        receipt=None if ours.receipt is None else _receipt(ours.receipt),
        n=form.n or 1,
        include_usage=bool(options.include_usage),
    )


def _limit(name: str, tokens: int | None) -> int | None:
    """The most tokens of a choice; None: the host's default. Refusal `invalid_request` for none at all."""
    if tokens == 0:
        raise Refusal("invalid_request", f"`{name}`: 0 asks for no reply.", param=name)
    return None if tokens == -1 else tokens


def _same(name: str, one: _Form | None, alias: str, other: _Form | None) -> _Form | None:
    """The one value of two members that mean the same. Refusal if they differ."""
    if one is not None and other is not None and one != other:
        raise Refusal("invalid_request", f"`{name}` and `{alias}` differ.", param=alias)
    return other if one is None else one


# Server-sent events


def sse(obj: Any) -> bytes:
    """One event with `obj` as its JSON."""
    return b"data: " + orjson.dumps(obj) + b"\n\n"


class SSEParser:
    """Cuts a stream of server-sent events, as it arrives, into the payloads of their `data`."""

    def __init__(self, limit: int = MAX_BODY) -> None:
        self._limit = limit
        self._rest = bytearray()
        """The line that has not ended yet."""
        self._data: list[bytes] = []
        self._held = 0
        """Bytes in `_data`."""

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads of the events that `data` completes. ValueError for an event beyond the limit."""
        if not self._rest and not self._data and (payloads := self._whole(data)):
            return payloads
        self._rest += data
        if b"\n" not in data:
            self._check(len(self._rest))
            return []
        *lines, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        payloads = [payload for line in lines if (payload := self._line(line.removesuffix(b"\r")))]
        self._check(len(self._rest))
        return payloads

    def take_back(self) -> bytes | None:
        """What was fed of an event that has not ended, as if it had not been; None: a line of it is read."""
        if self._data:
            return None
        begun, self._rest = bytes(self._rest), bytearray()
        return begun

    def _whole(self, data: bytes) -> list[bytes]:
        """The payloads of a read that is whole events of one `data` line each, as most are; else none."""
        if not data.startswith(b"data: ") or not data.endswith(b"\n\n") or len(data) > self._limit:
            return []
        payloads = data[6:-2].split(b"\n\ndata: ")
        plain = data.count(b"\n") == 2 * len(payloads) and b"\r" not in data and b"" not in payloads
        return payloads if plain else []

    def _line(self, line: bytes) -> bytes:
        """Takes one line; the payload of the event that it ends, or nothing."""
        if not line:
            payload = b"\n".join(self._data)
            self._data.clear()
            self._held = 0
            return payload
        name, _, value = line.partition(b":")  # a comment is a line without a name
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._held += len(value)
            self._check(0)
        return b""

    def _check(self, more: int) -> None:
        if self._held + more > self._limit:
            raise ValueError(f"a server-sent event is longer than {self._limit} bytes")


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
