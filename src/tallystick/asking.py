"""Requests for replies: the bodies of OpenAI's two routes, and the frames that ask for the same.

Every member that the host looks at is checked, and the one that is wrong named; the others pass through to
the engine as they came. Knows nothing of who may ask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, TypeVar

import msgspec

from tallystick import transcript, wire
from tallystick.errors import Refusal
from tallystick.pricing import MAX_TOKENS
from tallystick.types import JobId, Receipt, RequestId
from tallystick.wire import Count, JobNumber, RequestName

MAX_CHOICES = 128
"""`n`, as OpenAI has it; times the prompts, where there are several."""
MAX_ID = 2**31 - 1
"""The highest id of a token."""
MAX_IDS = 1_000_000
"""Token ids in one prompt: more than any context holds."""

# -1 and null ask for the host's default; a reply of 0 tokens is none, and below -1 there is nothing to mean.
_Limit = Annotated[int, msgspec.Meta(ge=-1, le=MAX_TOKENS, extra_json_schema={"not": {"const": 0}})]
# More than the most is a refusal of its own.
_Choices = Annotated[int, msgspec.Meta(ge=1, extra_json_schema={"maximum": MAX_CHOICES})]
_BestOf = Annotated[int, msgspec.Meta(extra_json_schema={"const": 1})]
_TokenId = Annotated[int, msgspec.Meta(ge=0, le=MAX_ID)]
_TokenIds = Annotated[list[_TokenId], msgspec.Meta(min_length=1, max_length=MAX_IDS)]
_Form = TypeVar("_Form")


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
    request: RequestName | None = None
    receipt: wire.ReceiptForm | None = None


class _Asked(msgspec.Struct, kw_only=True):
    """The members of a request that the host reads; what they mean otherwise is the engine's."""

    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: _Limit | None = None
    n: _Choices | None = None
    job_id: JobNumber | None = None
    tally: _RequestTally | None = None


class Chat(_Asked, kw_only=True):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    max_completion_tokens: _Limit | None = None


class Text(_Asked, kw_only=True):
    """The body of `POST /v1/completions`."""

    prompt: str | Annotated[list[str | _TokenId | _TokenIds], msgspec.Meta(min_length=1, max_length=MAX_IDS)]
    best_of: _BestOf | None = None
    echo: bool | None = None


class _Inference(msgspec.Struct):
    prompt: str | None = None
    id: RequestName | None = None
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
    """The body of `POST /v1/chat/completions`. Refusal `too_large`, `too_many_choices`, `invalid_request`."""
    sent = wire.parse(raw)
    return _chat(sent, _without(sent, {"job_id", "tally"}))


def parse_text(raw: bytes) -> ReplyRequest:
    """The body of `POST /v1/completions`. Refusal `too_large`, `too_many_choices`, `invalid_request`."""
    sent = wire.parse(raw)
    form = wire.read(sent, Text)
    prompts = _prompts(form.prompt)
    if form.best_of not in (None, 1):
        told = "`best_of`: 1 is all that is taken, as each choice that is made is told."
        raise Refusal("invalid_request", told, param="best_of")
    if form.echo:
        raise Refusal("invalid_request", "`echo`: this host does not send prompts back.", param="echo")
    body = _without(sent, {"job_id", "tally", "prompt"})
    request = _request(form, _limit("max_tokens", form.max_tokens), body, sent)
    return _within_choices(replace(request, prompts=prompts))


def _within_choices(request: ReplyRequest) -> ReplyRequest:
    """Refusal `too_many_choices`."""
    if request.choices <= MAX_CHOICES:
        return request
    raise Refusal(
        "too_many_choices",
        f"The request asks for {request.choices} choices; {MAX_CHOICES} are the most.",
        param="prompt" if len(request.prompts) > 1 else "n",
    )


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
    """The `request` of a WebSocket `inference` frame, and the bearer in it.

    Refusal `too_many_choices` or `invalid_request`.
    """
    form = wire.read(frame_request, _Inference)
    sent: dict[str, Any] = frame_request
    if (form.prompt is None) == (sent.get("messages") is None):
        raise Refusal("invalid_request", "Send either `prompt` or `messages`.", param="prompt")
    body = _without(sent, {"job_id", "tally", "id", "access", "prompt"})
    if form.prompt is not None:
        body["messages"] = [{"role": "user", "content": form.prompt}]
    checked = {**sent, "messages": body.get("messages"), "stream": True}
    return _chat(checked, body, sent=sent, request=form.id), form.access


class _Resume(msgspec.Struct):
    request: RequestName
    after: Count = 0
    access: str | None = None


def resume_in(frame: Any) -> tuple[RequestId, int, str | None]:
    """A `resume` frame: the reply, how many of its frames came, the bearer. Refusal `invalid_request`."""
    form = wire.read(frame, _Resume)
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
    form = wire.read(checked, Chat)
    names = ("max_tokens", "max_completion_tokens")
    limits = [_limit(name, getattr(form, name)) for name in names]
    max_tokens = min(filter(None, limits), default=None)
    return _within_choices(_request(form, max_tokens, body, checked if sent is None else sent, request))


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
        receipt=None if ours.receipt is None else wire.receipt_of(ours.receipt),
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
