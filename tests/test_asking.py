"""Requests for replies: what is read strictly, what passes through, what is refused by its name."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick import asking, wire
from tallystick.errors import Refusal
from tallystick.transcript import prompt_hash
from tallystick.types import ZERO_HASH, JobId, Receipt, RequestId, Totals

REQUEST = RequestId("0123456789abcdef" * 2)
USER = {"role": "user", "content": "Hi"}


def receipt(**changes: Any) -> dict[str, Any]:
    """A receipt as JSON."""
    made = Receipt(JobId(121), Totals(12, 100), ZERO_HASH, b"\x03" * 32, bytes(65))
    return {**wire.receipt_out(made), **changes}


def chat(**members: Any) -> bytes:
    return orjson.dumps({"messages": [USER], **members})


def refused(raw: bytes) -> Refusal:
    """The refusal of a chat body."""
    with pytest.raises(Refusal) as refusal:
        asking.parse_chat(raw)
    return refusal.value


def test_a_plain_request_says_nothing_of_ours() -> None:
    """The body that any OpenAI client sends is taken as it is."""
    sent = {"model": "tally-demo", "messages": [USER], "temperature": 0.7, "seed": 7}
    request = asking.parse_chat(orjson.dumps(sent))
    assert request.body == sent
    assert (request.model, request.stream, request.n, request.include_usage) == (
        "tally-demo",
        False,
        1,
        False,
    )
    assert (request.max_tokens, request.job_id, request.request, request.receipt) == (None,) * 4


def test_our_members_are_read_and_kept_from_the_engine() -> None:
    """Job, request id and receipt are the host's: the engine and the prompt are without them."""
    request = asking.parse_chat(
        chat(job_id=121, stream=True, stream_options={"include_usage": True}, n=2,
             tally={"request": REQUEST, "receipt": receipt()})
    )  # fmt: skip
    assert request.job_id == 121
    assert request.request == REQUEST
    assert request.receipt == wire.receipt_in(receipt())
    assert (request.stream, request.include_usage, request.n) == (True, True, 2)
    assert request.body == {
        "messages": [USER],
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": 2,
    }
    assert request.prompt_hash() == prompt_hash({"messages": [USER], "n": 2})


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize(
    ("given_", "meant"), [(None, None), (-1, None), (1, 1), (150, 150), (2**48 - 1, 2**48 - 1)]
)
def test_the_limit_of_a_reply(name: str, given_: int | None, meant: int | None) -> None:
    """Null, -1 and absence ask for the host's default; any other number is meant, under either name."""
    assert asking.parse_chat(chat(**{name: given_})).max_tokens == meant


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("given_", [1.5, 100.25, True, False, "100", -2, 0, [100], {}, 2**48])
def test_a_limit_that_is_no_number_of_tokens_is_refused(name: str, given_: Any) -> None:
    """A fraction, a boolean, a string or nothing at all is refused by name, never rounded or clamped."""
    refusal = refused(chat(**{name: given_}))
    assert (refusal.code, refusal.extra["param"]) == ("invalid_request", name)
    assert name in refusal.detail


def test_the_lower_limit_holds() -> None:
    """`max_tokens` and `max_completion_tokens` are one thing; where they differ nobody pays for more."""
    assert asking.parse_chat(chat(max_tokens=5, max_completion_tokens=5)).max_tokens == 5
    assert asking.parse_chat(chat(max_tokens=None, max_completion_tokens=5)).max_tokens == 5
    assert asking.parse_chat(chat(max_tokens=4, max_completion_tokens=5)).max_tokens == 4


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [{"content": "Hi"}]}, "messages[0]"),
        ({"messages": [{"role": 1}]}, "messages[0].role"),
        ({"model": 7}, "model"),
        ({"stream": "true"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"n": 0}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": True}, "n"),
        ({"job_id": 0}, "job_id"),
        ({"job_id": -1}, "job_id"),
        ({"job_id": "121"}, "job_id"),
        ({"job_id": 2**53}, "job_id"),
        ({"tally": []}, "tally"),
        ({"tally": {"request": REQUEST.upper()}}, "tally.request"),
        ({"tally": {"request": REQUEST + "\n"}}, "tally.request"),
        ({"tally": {"request": REQUEST[1:]}}, "tally.request"),
        ({"tally": {"receipt": {}}}, "tally.receipt"),
        ({"tally": {"receipt": receipt(tokens=-1)}}, "tally.receipt.tokens"),
    ],
)
def test_a_request_of_another_form_is_refused(members: dict[str, Any], param: str) -> None:
    """A member that the host reads has its type, or the refusal names it."""
    refusal = refused(chat(**members))
    assert (refusal.code, refusal.extra["param"]) == ("invalid_request", param)


def test_a_missing_member_is_named() -> None:
    """A request without messages is told what it lacks."""
    assert "messages" in refused(b"{}").detail


@pytest.mark.parametrize("n", [129, 200.0, 1e300])
def test_more_choices_than_the_most_are_refused_as_such(n: float) -> None:
    """Of `n` as of `n` times the prompts there are 128 at most; one more has a refusal of its own."""
    assert asking.parse_chat(chat(n=128)).choices == 128
    refusal = refused(chat(n=n))
    assert (refusal.code, refusal.extra["param"]) == ("too_many_choices", "n")


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"a": NaN}', b"[" * 5_000])
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    """Bytes that are no JSON object are refused before anything is looked up."""
    assert refused(raw).code == "invalid_request"


def nested(depth: int) -> bytes:
    return b'{"type": "inference", "x": ' + b"[" * depth + b"]" * depth + b"}"


def test_what_cannot_be_written_again_is_refused() -> None:
    """JSON can be nested more deeply than an engine could be sent it: the same holds of bodies and frames."""
    for depth in (300, 900):
        for read in (wire.parse, wire.parse_frame):
            with pytest.raises(Refusal, match="nested too deeply") as caught:
                read(nested(depth))
            assert caught.value.code == "invalid_request"
    deepest = max(depth for depth in range(260) if is_taken(nested(depth)))
    assert deepest > 200
    assert orjson.loads(wire.frame("inference", request=wire.parse(nested(deepest))))


def is_taken(raw: bytes) -> bool:
    try:
        return bool(wire.parse(raw))
    except Refusal:
        return False


def test_a_body_above_the_limit_is_refused() -> None:
    """A body above 8 MB is refused unread."""
    assert refused(b" " * (wire.MAX_BODY + 1)).code == "too_large"
    assert refused(b" " * wire.MAX_BODY).code == "invalid_request"


SCALARS = st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@settings(deadline=None)
@given(
    JSON,
    st.sampled_from(["model", "max_tokens", "n", "stream", "stream_options", "job_id", "tally", "other"]),
)
def test_any_json_is_read_or_refused(value: Any, name: str) -> None:
    """Whatever a stranger writes in a member, the answer is a request or a refusal that names the member."""
    try:
        request = asking.parse_chat(json.dumps({"messages": [USER], name: value}).encode())
    except Refusal as refusal:
        told = refusal.extra["param"]
    else:
        told = name
        assert request.sent == {"messages": [USER], name: value}
    assert told.split(".")[0] == name


# Frames


def test_the_briefs_request_is_one_user_message() -> None:
    """`{"job_id": 121, "prompt": "…", "max_tokens": 150}` is a chat with one message, streamed."""
    sent = {"job_id": 121, "prompt": "Tell me of tally sticks.", "max_tokens": 150}
    request, access = asking.parse_inference(sent)
    assert access is None
    assert request.body == {
        "max_tokens": 150,
        "messages": [{"role": "user", "content": "Tell me of tally sticks."}],
    }
    assert (request.job_id, request.max_tokens, request.stream) == (121, 150, True)
    assert request.prompt_hash() == prompt_hash({"prompt": "Tell me of tally sticks.", "max_tokens": 150})


def test_an_inference_may_carry_all_that_a_chat_does() -> None:
    """Messages, sampling members, request id, bearer and receipt come in one frame."""
    request, access = asking.parse_inference(
        {
            "id": REQUEST,
            "access": "tally-121",
            "messages": [USER],
            "temperature": 0,
            "tally": {"receipt": receipt()},
        }
    )
    assert (request.request, access) == (REQUEST, "tally-121")
    assert request.receipt == wire.receipt_in(receipt())
    assert request.body == {"messages": [USER], "temperature": 0}


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "Hi", "messages": [USER]}, "prompt"),
        ({"prompt": ["Hi"]}, "prompt"),
        ({"messages": []}, "messages"),
        ({"prompt": "Hi", "id": "7"}, "id"),
        ({"prompt": "Hi", "access": 7}, "access"),
        ({"prompt": "Hi", "max_tokens": 1.5}, "max_tokens"),
        ({"prompt": "Hi", "id": REQUEST, "tally": {"request": "f" * 32}}, "tally.request"),
    ],
)
def test_an_inference_of_another_form_is_refused(members: dict[str, Any], param: str) -> None:
    """A frame's request is read as strictly as a body."""
    with pytest.raises(Refusal) as refusal:
        asking.parse_inference(members)
    assert (refusal.value.code, refusal.value.extra["param"]) == ("invalid_request", param)


@pytest.mark.parametrize("obj", [None, [], "Hi"])
def test_an_inference_without_a_request_is_refused(obj: Any) -> None:
    """The `request` of a frame is an object."""
    with pytest.raises(Refusal, match="invalid_request"):
        asking.parse_inference(obj)
