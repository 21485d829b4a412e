"""The hash chain: the vectors, and that chunking, settling and order of members never change a hash."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick import transcript
from tallystick.errors import ReceiptError, Refusal
from tallystick.keccak import keccak
from tallystick.transcript import Delivery
from tallystick.types import ZERO_HASH, JobId, Position, RequestId, Totals

VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())
REQUEST = RequestId("0123456789abcdef" * 2)
PROMPT_HASH = keccak(b"a prompt")


def unhex(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def position_of(row: dict[str, str]) -> Position:
    return Position(
        RequestId(row["request"]),
        int(row["promptTokens"]),
        int(row["tokens"]),
        unhex(row["promptHash"]),
        unhex(row["textHash"]),
    )


def delivery(*chunks: tuple[int, str]) -> Delivery:
    """A delivery of chunks: running count and text."""
    made = Delivery(REQUEST, PROMPT_HASH)
    for tokens, text in chunks:
        made.add(12, tokens, text)
    return made


# Vectors


@pytest.mark.parametrize("row", VECTORS["transcripts"], ids=lambda row: row["name"])
def test_transcripts_in_vectors(row: dict[str, Any]) -> None:
    """Links, their hash and the transcript are what the outside witness packed byte by byte."""
    positions = [position_of(position) for position in row["positions"]]
    assert [transcript.link(position) for position in positions] == [
        unhex(position["link"]) for position in row["positions"]
    ]
    assert transcript.positions_hash(positions) == unhex(row["positionsHash"])
    totals = Totals(int(row["promptTokens"]), int(row["tokens"]))
    made = transcript.transcript(unhex(row["previous"]), JobId(int(row["jobId"])), totals, positions)
    assert made == unhex(row["transcript"])


@pytest.mark.parametrize(
    "row",
    [position for row in VECTORS["transcripts"] for position in row["positions"]],
    ids=lambda row: row["text"],
)
def test_deliveries_reach_the_positions_in_vectors(row: dict[str, str]) -> None:
    """A delivery of a vector's text stands at the vector's position."""
    made = Delivery(RequestId(row["request"]), keccak(row["prompt"].encode()))
    made.add(int(row["promptTokens"]), int(row["tokens"]), row["text"])
    assert made.position() == position_of(row)


@pytest.mark.parametrize("row", VECTORS["prompts"], ids=lambda row: row["name"])
def test_prompts_in_vectors(row: dict[str, Any]) -> None:
    """A prompt is the RFC 8785 form of the request less what only says how to carry it."""
    assert transcript.prompt_form(row["body"]).decode() == row["prompt"]
    assert transcript.prompt_hash(row["body"]) == unhex(row["promptHash"])


# Prompts


def test_the_order_of_members_does_not_change_a_prompt() -> None:
    """Two clients that write the same request in another order ask for the same thing."""
    one = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    other = {"messages": [{"content": "Hi", "role": "user"}], "model": "m"}
    assert transcript.prompt_hash(one) == transcript.prompt_hash(other)


@pytest.mark.parametrize("seed", [2**53, -(2**53), 10**30])
def test_a_number_without_a_canonical_form_is_refused(seed: int) -> None:
    """A whole number that JSON readers do not agree on is refused with its value."""
    with pytest.raises(Refusal, match=str(abs(seed))) as refused:
        transcript.prompt_hash({"seed": seed})
    assert refused.value.code == "invalid_request"


@pytest.fixture
def interpreters_own_stack() -> Iterator[None]:
    """Some libraries raise the recursion limit when they are imported."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000)
    yield
    sys.setrecursionlimit(limit)


@pytest.mark.usefixtures("interpreters_own_stack")
def test_a_request_nested_too_deeply_is_refused() -> None:
    """A request that would exhaust the stack is refused."""
    body: dict[str, Any] = {}
    for _ in range(5_000):
        body = {"a": body}
    with pytest.raises(Refusal, match="nested too deeply"):
        transcript.prompt_hash(body)


# Text


@pytest.mark.parametrize(
    ("delta", "text"),
    [
        ({}, ""),
        ({"role": "assistant", "content": None}, ""),
        ({"content": "Hi"}, "Hi"),
        ({"content": "Hi", "reasoning_content": "Hm. "}, "Hm. Hi"),
        ({"content": "Hi", "reasoning": "Hm. "}, "Hm. Hi"),
        ({"reasoning": "Hm. ", "reasoning_content": "Hm. "}, "Hm. "),
        (
            {"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "sum", "arguments": "{"}}]},
            "sum{",
        ),
        ({"tool_calls": [{"function": {"arguments": "1"}}, {"function": {"arguments": "}"}}]}, "1}"),
        ({"content": "a", "tool_calls": [{"function": {"name": "b"}}]}, "ab"),
    ],
)
def test_the_text_of_a_chunk(delta: dict[str, Any], text: str) -> None:
    """A chunk's text is its reasoning, its content, then each tool call's name and arguments."""
    assert transcript.delta_text(delta) == text


@pytest.mark.parametrize(
    "delta",
    [{"content": 7}, {"tool_calls": "x"}, {"tool_calls": [None, {"function": []}]}, {"reasoning": {}}],
)
def test_a_delta_of_another_shape_has_no_text(delta: dict[str, Any]) -> None:
    """What the other side may have written by mistake or malice does not stop the count."""
    assert transcript.delta_text(delta) == ""


# Deliveries


@settings(deadline=None)
@given(st.lists(st.text(), min_size=1, max_size=20), st.data())
def test_settling_on_the_way_does_not_change_what_comes_after(texts: list[str], data: st.DataObject) -> None:
    """A position hashes all text up to it, however it was cut and whatever was settled before."""
    whole, settled = delivery(), delivery()
    for tokens, text in enumerate(texts, 1):
        whole.add(12, tokens, text)
        settled.add(12, tokens, text)
        if data.draw(st.booleans()):
            settled.settle(settled.position())
        assert settled.position() == whole.position()
    assert whole.position().text_hash == keccak("".join(texts).encode())


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.text(max_size=3)), min_size=1, max_size=12), st.data())
def test_every_end_of_a_chunk_matches_until_it_is_passed(
    chunks: list[tuple[int, str]], data: st.DataObject
) -> None:
    """The payer may acknowledge any chunk's end, and none before the last that it acknowledged."""
    made, ends, tokens = delivery(), [], 0
    for more, text in chunks:
        tokens += more
        made.add(12, tokens, text)
        ends.append(made.position())
    assert all(made.matches(end) for end in ends)
    chosen = data.draw(st.sampled_from(ends))
    made.settle(chosen)
    assert all(made.matches(end) for end in ends[ends.index(chosen) :])
    assert not any(made.matches(end) for end in ends if end.tokens < chosen.tokens)


def test_a_position_that_was_never_reached_does_not_match() -> None:
    """A count between two chunks, another text, prompt or request is no position of this delivery."""
    made = delivery((3, "one "), (5, "two "))
    here = made.position()
    others = [
        Position(REQUEST, 12, 4, PROMPT_HASH, here.text_hash),
        Position(REQUEST, 12, 5, PROMPT_HASH, keccak(b"one 2")),
        Position(REQUEST, 12, 6, PROMPT_HASH, here.text_hash),
        Position(REQUEST, 11, 5, PROMPT_HASH, here.text_hash),
        Position(REQUEST, 12, 5, ZERO_HASH, here.text_hash),
        Position(RequestId("f" * 32), 12, 5, PROMPT_HASH, here.text_hash),
    ]
    assert made.matches(here)
    assert not any(made.matches(other) for other in others)
    for other in others:
        with pytest.raises(ReceiptError):
            made.settle(other)
    assert made.position() == here


def test_position_at_stays_within_a_bound() -> None:
    """The payer signs the last chunk's end within its bound, with all text that came with that count."""
    made = delivery((3, "one "), (5, "tw"), (5, "o "), (9, "three"))
    assert made.position_at(4).tokens == 3
    assert made.position_at(5).text_hash == keccak(b"one two ")
    assert made.position_at(8) == made.position_at(5)
    assert made.position_at(100) == made.position()
    assert made.position_at(2) == Position(REQUEST, 0, 0, PROMPT_HASH, keccak(b""))


def test_position_at_does_not_go_behind_what_is_settled() -> None:
    """Text that is acknowledged is forgotten, so a position before it is an error."""
    made = delivery((3, "one "), (5, "two "))
    made.settle(made.position_at(3))
    assert made.position_at(3).tokens == 3
    with pytest.raises(ReceiptError, match="settled up to 3"):
        made.position_at(2)


@pytest.mark.parametrize("counts", [(12, 4), (11, 5), (0, 0)])
def test_a_count_never_goes_down(counts: tuple[int, int]) -> None:
    """Running counts only grow; a chunk that takes one back is refused."""
    made = delivery((5, "one"))
    with pytest.raises(ReceiptError, match="counted down"):
        made.add(*counts, "x")
    assert made.totals == Totals(12, 5)


def test_positions_are_ordered_by_request() -> None:
    """The order in which positions are told does not change a transcript."""
    positions = [position_of(position) for position in VECTORS["transcripts"][2]["positions"]]
    assert len(positions) == 3
    assert transcript.positions_hash(positions) == transcript.positions_hash(reversed(positions))
