"""The wire: what is read strictly, what passes through, and how a stream is cut into events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick import wire
from tallystick.errors import REFUSALS, Refusal
from tallystick.transcript import prompt_hash
from tallystick.types import ZERO_HASH, Ack, JobId, Position, Receipt, RequestId, Totals
from tallystick.wire import SSEParser

VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())
REQUEST = RequestId("0123456789abcdef" * 2)
USER = {"role": "user", "content": "Hi"}

COUNTS = st.integers(0, 2**48 - 1)
TOTALS = st.builds(Totals, COUNTS, COUNTS)
JOBS = st.integers(1, 2**53 - 1).map(JobId)
HASHES = st.binary(min_size=32, max_size=32)
SIGNATURES = st.binary(min_size=64, max_size=65)
REQUESTS = st.binary(min_size=16, max_size=16).map(lambda raw: RequestId(raw.hex()))
POSITIONS = st.builds(Position, REQUESTS, COUNTS, COUNTS, HASHES, HASHES)
RECEIPTS = st.builds(
    Receipt,
    JOBS,
    TOTALS,
    HASHES,
    HASHES,
    SIGNATURES,
    st.lists(POSITIONS, max_size=4, unique_by=lambda position: position.request).map(tuple),
)
ACKS = st.builds(Ack, JOBS, TOTALS, HASHES, SIGNATURES | st.none())


def receipt(**changes: Any) -> dict[str, Any]:
    """The receipt of protocol §5 as JSON."""
    position = Position(REQUEST, 12, 100, b"\x01" * 32, b"\x02" * 32)
    made = Receipt(JobId(121), Totals(12, 100), ZERO_HASH, b"\x03" * 32, bytes(65), (position,))
    return {**wire.receipt_out(made), **changes}


def chat(**members: Any) -> bytes:
    return orjson.dumps({"messages": [USER], **members})


def refused(raw: bytes) -> Refusal:
    """The refusal of a chat body."""
    with pytest.raises(Refusal) as refusal:
        wire.parse_chat(raw)
    return refusal.value


# Receipts


@settings(deadline=None)
@given(RECEIPTS)
def test_receipts_survive_the_way(receipt: Receipt) -> None:
    """A receipt that was written reads back as itself."""
    assert wire.receipt_in(orjson.loads(orjson.dumps(wire.receipt_out(receipt)))) == receipt


@settings(deadline=None)
@given(ACKS)
def test_acknowledgements_survive_the_way(ack: Ack) -> None:
    """An acknowledgement, of a host with a key or without, reads back as itself."""
    assert wire.ack_in(orjson.loads(orjson.dumps(wire.ack_out(ack)))) == ack


@settings(deadline=None)
@given(POSITIONS)
def test_positions_survive_the_way(position: Position) -> None:
    """A position that was written reads back as itself."""
    assert wire.position_in(orjson.loads(orjson.dumps(wire.position_out(position)))) == position


def test_a_receipt_is_written_as_the_protocol_shows_it() -> None:
    """The members of a receipt and of its positions are those of protocol §5."""
    assert list(receipt()) == [
        "job_id", "prompt_tokens", "tokens", "previous", "transcript", "signature", "positions",
    ]  # fmt: skip
    assert receipt()["positions"] == [
        {
            "request": REQUEST,
            "prompt_tokens": 12,
            "tokens": 100,
            "prompt_hash": "0x" + "01" * 32,
            "text_hash": "0x" + "02" * 32,
        }
    ]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"job_id": 0}, "job_id"),
        ({"job_id": 2**53}, "job_id"),
        ({"job_id": "121"}, "job_id"),
        ({"job_id": True}, "job_id"),
        ({"tokens": -1}, "tokens"),
        ({"tokens": 2**48}, "tokens"),
        ({"tokens": 100.5}, "tokens"),
        ({"prompt_tokens": None}, "prompt_tokens"),
        ({"previous": "0x00"}, "previous"),
        ({"previous": "00" * 32}, "previous"),
        ({"transcript": "0x" + "0g" * 32}, "transcript"),
        ({"transcript": "0x" + "00" * 32 + "\n"}, "transcript"),
        ({"signature": "0x" + "00" * 66}, "signature"),
        ({"signature": None}, "signature"),
        ({"positions": {}}, "positions"),
        ({"positions": [receipt()["positions"][0] | {"request": "A" * 32}]}, "positions[0].request"),
        ({"positions": [receipt()["positions"][0] | {"tokens": 1.5}]}, "positions[0].tokens"),
        ({"positions": receipt()["positions"] * 257}, "positions"),
    ],
)
def test_a_receipt_of_another_form_is_refused(changes: dict[str, Any], param: str) -> None:
    """A member of another type, size or spelling is refused, and the refusal names it."""
    with pytest.raises(Refusal) as refusal:
        wire.receipt_in(receipt(**changes))
    assert refusal.value.code == "invalid_request"
    assert refusal.value.extra["param"] == param


def test_a_request_has_one_position() -> None:
    """A receipt that names a request twice does not say how much of it came."""
    with pytest.raises(Refusal) as refusal:
        wire.receipt_in(receipt(positions=receipt()["positions"] * 2))
    assert refusal.value.code == "receipt_mismatch"


def test_whole_numbers_in_any_spelling() -> None:
    """To JSON 100.0 and 1e2 are the integer 100, and they are read as it."""
    assert wire.receipt_in(receipt(tokens=100.0)) == wire.receipt_in(receipt(tokens=100))
    assert wire.parse_chat(b'{"messages": [{"role": "user", "content": "?"}], "n": 1e0}').n == 1


@pytest.mark.parametrize("obj", [None, [], "receipt", 7, {}])
def test_what_is_no_receipt_is_refused(obj: Any) -> None:
    """Something else in a receipt's place is refused."""
    with pytest.raises(Refusal, match="invalid_request"):
        wire.receipt_in(obj)


def test_unknown_members_are_ignored() -> None:
    """A receipt may carry members of a later version."""
    assert wire.receipt_in(receipt(later={"version": 2})) == wire.receipt_in(receipt())


def test_a_session_ends_with_a_receipt_or_a_signature() -> None:
    """Either the last receipt or a signed end completes a session, not both, not neither."""
    assert wire.ending_in({"receipt": receipt()}) == (wire.receipt_in(receipt()), None)
    assert wire.ending_in({"end": "0x" + "01" * 64}) == (None, b"\x01" * 64)
    for both_or_neither in ({}, {"receipt": receipt(), "end": "0x" + "01" * 64}):
        with pytest.raises(Refusal, match="either"):
            wire.ending_in(both_or_neither)


# Tally


@settings(deadline=None)
@given(
    REQUESTS, TOTALS, TOTALS, st.integers(0, 2**96 - 1), st.booleans(), st.sampled_from([None, "receipt_due"])
)
def test_tallies_survive_the_way(
    request_id: RequestId, totals: Totals, job: Totals, left: int, flag: bool, reason: str | None
) -> None:
    """The payer reads the counts that the host wrote."""
    sent = wire.tally(request_id, totals, job, left, due=flag, waiting=flag, low=flag, reason=reason)
    read = wire.tally_in(orjson.loads(orjson.dumps(sent)))
    assert read == wire.Tally(request_id, totals, job, left, flag, flag, flag, reason)


def test_a_tally_says_nothing_that_is_not_so() -> None:
    """Flags are there when they are true, and money is a string (2^53 is not much of it)."""
    assert wire.tally(REQUEST, Totals(12, 25), Totals(12, 25), 1_999_950, due=True) == {
        "request": REQUEST,
        "prompt_tokens": 12,
        "tokens": 25,
        "job": {"prompt_tokens": 12, "tokens": 25},
        "left": "1999950",
        "due": True,
    }


@pytest.mark.parametrize("left", [1_999_950, "-1", "01", "1.5", "", str(2**96), "9" * 40])
def test_money_of_another_form_is_refused(left: Any) -> None:
    """Money is a string of decimal digits that a deposit can hold."""
    sent = wire.tally(REQUEST, Totals(), Totals(), 0) | {"left": left}
    with pytest.raises(Refusal) as refusal:
        wire.tally_in(sent)
    assert refusal.value.extra["param"] == "left"


# Requests


def test_a_plain_request_says_nothing_of_ours() -> None:
    """The body that any OpenAI client sends is taken as it is."""
    sent = {"model": "tally-demo", "messages": [USER], "temperature": 0.7, "seed": 7}
    request = wire.parse_chat(orjson.dumps(sent))
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
    request = wire.parse_chat(
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
    assert wire.parse_chat(chat(**{name: given_})).max_tokens == meant


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("given_", [1.5, 100.25, True, False, "100", -2, 0, [100], {}, 2**48])
def test_a_limit_that_is_no_number_of_tokens_is_refused(name: str, given_: Any) -> None:
    """A fraction, a boolean, a string or nothing at all is refused by name, never rounded or clamped."""
    refusal = refused(chat(**{name: given_}))
    assert (refusal.code, refusal.extra["param"]) == ("invalid_request", name)
    assert name in refusal.detail


def test_the_lower_limit_holds() -> None:
    """`max_tokens` and `max_completion_tokens` are one thing; where they differ nobody pays for more."""
    assert wire.parse_chat(chat(max_tokens=5, max_completion_tokens=5)).max_tokens == 5
    assert wire.parse_chat(chat(max_tokens=None, max_completion_tokens=5)).max_tokens == 5
    assert wire.parse_chat(chat(max_tokens=4, max_completion_tokens=5)).max_tokens == 4


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
        ({"n": 129}, "n"),
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
        request = wire.parse_chat(json.dumps({"messages": [USER], name: value}).encode())
    except Refusal as refusal:
        told = refusal.extra["param"]
    else:
        told = name
        assert request.sent == {"messages": [USER], name: value}
    assert told.split(".")[0] == name


# WebSocket


def test_the_briefs_request_is_one_user_message() -> None:
    """`{"job_id": 121, "prompt": "…", "max_tokens": 150}` is a chat with one message, streamed."""
    sent = {"job_id": 121, "prompt": "Tell me of tally sticks.", "max_tokens": 150}
    request, access = wire.parse_inference(sent)
    assert access is None
    assert request.body == {
        "max_tokens": 150,
        "messages": [{"role": "user", "content": "Tell me of tally sticks."}],
    }
    assert (request.job_id, request.max_tokens, request.stream) == (121, 150, True)
    assert request.prompt_hash() == prompt_hash({"prompt": "Tell me of tally sticks.", "max_tokens": 150})


def test_an_inference_may_carry_all_that_a_chat_does() -> None:
    """Messages, sampling members, request id, bearer and receipt come in one frame."""
    request, access = wire.parse_inference(
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
        wire.parse_inference(members)
    assert (refusal.value.code, refusal.value.extra["param"]) == ("invalid_request", param)


@pytest.mark.parametrize("obj", [None, [], "Hi"])
def test_an_inference_without_a_request_is_refused(obj: Any) -> None:
    """The `request` of a frame is an object."""
    with pytest.raises(Refusal, match="invalid_request"):
        wire.parse_inference(obj)


def test_frames_survive_the_way() -> None:
    """A frame says what it is, and its members read back."""
    sent = wire.frame("token", text="été 木", tally={"tokens": 1})
    assert wire.parse_frame(sent) == {"type": "token", "text": "été 木", "tally": {"tokens": 1}}
    assert wire.parse_frame(sent.encode()) == wire.parse_frame(sent)


@pytest.mark.parametrize("raw", ["", "{}", "[]", '{"type": 7}', b"\xff"])
def test_a_frame_that_does_not_say_what_it_is_is_refused(raw: bytes | str) -> None:
    """A frame without a type, or that is no object, is refused."""
    with pytest.raises(Refusal, match="invalid_request"):
        wire.parse_frame(raw)


# Server-sent events


@settings(deadline=None)
@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20), min_size=1), max_size=6),
    st.lists(st.integers(1, 40), max_size=30),
    st.booleans(),
)
def test_events_are_the_same_however_they_arrive(
    objects: list[dict[str, str]], cuts: list[int], carriage_returns: bool
) -> None:
    """A stream cut anywhere, with either line end and with comments, gives the events that were sent."""
    raw = b": a comment\n\n" + b"".join(map(wire.sse, objects)) + wire.SSE_DONE
    if carriage_returns:
        raw = raw.replace(b"\n", b"\r\n")
    parser, payloads = SSEParser(), []
    for cut in cuts:
        payloads += parser.feed(raw[:cut])
        raw = raw[cut:]
    payloads += parser.feed(raw)
    assert [orjson.loads(payload) for payload in payloads[:-1]] == objects
    assert payloads[-1] == b"[DONE]"


@pytest.mark.parametrize(
    ("raw", "payloads"),
    [
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data:a\n\ndata:  b\n\n", [b"a", b" b"]),
        (b"event: message\nid: 7\nretry: 10\ndata: a\n\n", [b"a"]),
        (b": ping\n\n\n\ndata: a\n\n", [b"a"]),
        (b"data: a: b\n\n", [b"a: b"]),
        (b"database: a\n\ndata\n\ndata:\n\n", []),
        (b"data: not ended\n", []),
        (b"data: not ended", []),
    ],
)
def test_events_are_read_as_the_standard_has_it(raw: bytes, payloads: list[bytes]) -> None:
    """Several lines of data are one payload; comments, other fields and unfinished events are none."""
    assert SSEParser().feed(raw) == payloads


def feed_without_end(parser: SSEParser, part: bytes) -> None:
    for _ in range(100):
        assert parser.feed(part) == []


@pytest.mark.parametrize(
    "part", [b"x", b"data: x\n", b"\ndata: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"]
)
def test_an_event_without_end_is_given_up(part: bytes) -> None:
    """What the other side never finishes is not kept without bound."""
    parser = SSEParser(limit=40)
    with pytest.raises(ValueError, match="longer than 40 bytes"):
        feed_without_end(parser, part)


def test_many_events_within_the_limit_are_not_one_too_long() -> None:
    """The limit is an event's, not the stream's."""
    parser = SSEParser(limit=40)
    assert sum(len(parser.feed(b"data: xxxxxxxxxx\n\n")) for _ in range(100)) == 100


# Refusals


@pytest.mark.parametrize("code", REFUSALS)
def test_openais_client_reads_every_refusal(code: str) -> None:
    """A refusal has what OpenAI's client looks for, and all of the problem object beside it."""
    refusal = Refusal(code, "A detail.", param="n", terms={"interval": 100})
    error = wire.openai_error(refusal)["error"]
    assert error == {**refusal.problem(), "message": "A detail.", "param": "n"}
    read = openai.APIError("failed", request=None, body=error)  # type: ignore[arg-type]
    assert (read.code, read.param, read.type) == (code, "n", f"urn:tallystick:error:{code}")
