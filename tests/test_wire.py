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

from tallystick import asking, wire
from tallystick.errors import REFUSALS, Refusal
from tallystick.types import ZERO_HASH, Ack, JobId, Position, Receipt, RequestId, Totals

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
    assert asking.parse_chat(b'{"messages": [{"role": "user", "content": "?"}], "n": 1e0}').n == 1


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


# WebSocket


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


# Refusals


@pytest.mark.parametrize("code", REFUSALS)
def test_openais_client_reads_every_refusal(code: str) -> None:
    """A refusal has what OpenAI's client looks for, and all of the problem object beside it."""
    refusal = Refusal(code, "A detail.", param="n", terms={"interval": 100})
    error = wire.openai_error(refusal)["error"]
    assert error == {**refusal.problem(), "message": "A detail.", "param": "n"}
    read = openai.APIError("failed", request=None, body=error)  # type: ignore[arg-type]
    assert (read.code, read.param, read.type) == (code, "n", f"urn:tallystick:error:{code}")
