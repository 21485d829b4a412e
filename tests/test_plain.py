"""The short way of plain chunks: whatever comes, it gives what the general way gives, byte for byte."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count, pairwise
from typing import Any, ClassVar

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick import plain
from tallystick.completions import Events
from tallystick.counter import Counter
from tallystick.engine import Piece, Pieces, Plain
from tallystick.engines.dialect import ContinuousUsage, Dialect, LlamaCpp
from tallystick.engines.reading import Reading
from tallystick.reply import CHAT, TEXT
from tallystick.stream import Run
from tallystick.testing.engine import ScriptedEngine
from tallystick.types import JobId
from tests.test_stream import JOB, PROMPT, Host

DONE = b"data: [DONE]\n\n"


class LlamaCppInGeneral(LlamaCpp):
    running: ClassVar[plain.Running | None] = None


class ContinuousUsageInGeneral(ContinuousUsage):
    running: ClassVar[plain.Running | None] = None


WAYS: dict[type[Dialect], type[Dialect]] = {
    LlamaCpp: LlamaCppInGeneral,
    ContinuousUsage: ContinuousUsageInGeneral,
}
"""Each dialect, and the same without the short way."""


# What engines send


def vllm(choice: Mapping[str, Any], tokens: int, text: bool = False) -> dict[str, Any]:
    return {
        "id": "cmpl-1" if text else "chatcmpl-1",
        "object": "text_completion" if text else "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": '100%d "it\'s" 9100000000000002',
        "choices": [choice],
        "usage": {
            "prompt_tokens": PROMPT,
            "total_tokens": PROMPT + tokens,
            "completion_tokens": tokens,
            "prompt_tokens_details": {"cached_tokens": 3},
        },
    }


def llama_cpp(choice: Mapping[str, Any], tokens: int, text: bool = False) -> dict[str, Any]:
    return {
        "choices": [choice],
        "created": 1_700_000_000,
        "id": "chatcmpl-1",
        "model": "m",
        "object": "text_completion" if text else "chat.completion.chunk",
        "timings": {
            "cache_n": 1,
            "prompt_n": PROMPT - 1,
            "predicted_n": tokens,
            "predicted_ms": 12.5 * tokens,
        },
    }


MAKERS = {ContinuousUsage: vllm, LlamaCpp: llama_cpp}

# What an engine makes of one token or more: its text, and by how much its count moves.
words = st.tuples(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from(
            ['"', "\\", "\n\n", "data: ", '},"logprobs"', "%d", "{}", "é🦊", "\u2028", '"content":"']
        ),
    ),
    st.sampled_from([0, 1, 1, 1, 1, 2, 7]),
)
# What makes a chunk another than a plain one.
odd: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        {"delta": {"role": "assistant", "content": "x"}},
        {"delta": {"reasoning_content": "hm"}},
        {"delta": {}},
        {"delta": {"content": None}},
        {"delta": {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{"}}]}},
        {"logprobs": {"content": []}},
        {"finish_reason": "stop"},
        {"finish_reason": "eos"},
        {"token_ids": [1, 2]},
        {"text": "both"},
    ]
)
chunks = st.lists(st.tuples(words, st.one_of(st.none(), st.none(), st.none(), odd)), min_size=1, max_size=40)
noise = st.sampled_from(
    [b"", b"", b"", b"", b": ping\n\n", b"\n\n", b"event: message\n", b"\r\n", b"id: 7\n"]
)
wordings: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [
        {"separators": (",", ":")},
        {"separators": (",", ":"), "ensure_ascii": False},
        {},
        {"sort_keys": True, "separators": (",", ":")},
        {"indent": 0},
    ]
)


@st.composite
def replies(draw: st.DrawFn) -> tuple[type[Dialect], bool, list[bytes]]:
    """A dialect, whether a text is completed, and a reply's bytes as they are read."""
    dialect = draw(st.sampled_from(list(WAYS)))
    text, wording = draw(st.booleans()), draw(wordings)
    said, tokens = [], 0
    for (word, more), oddity in draw(chunks):
        tokens += more
        brings: dict[str, Any] = {"text": word} if text else {"delta": {"content": word}}
        choice = {"index": 0, **brings, "logprobs": None, "finish_reason": None, **(oddity or {})}
        dumped = json.dumps(MAKERS[dialect](choice, tokens, text), **wording).replace("\n", "\ndata: ")
        said.append(draw(noise) + b"data: " + dumped.encode(errors="ignore") + b"\n\n")
    whole = b"".join(said) + (DONE if draw(st.booleans()) else b"")
    cuts = sorted(draw(st.sets(st.integers(0, len(whole)), max_size=6)))
    ends = [0, *cuts, len(whole)]
    return dialect, text, [whole[begin:end] for begin, end in pairwise(ends)]


# Reading


def pieces_of(dialect: Dialect, reads: Sequence[bytes]) -> tuple[list[list[Piece]], str]:
    """What each read brings, and how it ends."""
    reading = Reading(dialect)
    brought = [
        [piece.whole() for piece in reading.feed(read)]
        for read in reads
        if not reading.done and reading.failure is None
    ]
    reading.end()
    return brought, f"{reading.done} {reading.tokens} {reading.prompt_tokens} {reading.failure}"


@given(replies())
def test_reads_what_the_general_way_reads(reply: tuple[type[Dialect], bool, list[bytes]]) -> None:
    """However a reply is worded and cut, its pieces are those of the general way, read by read."""
    dialect, _, reads = reply
    assert pieces_of(dialect(), reads) == pieces_of(WAYS[dialect](), reads)


def plain_reply(dialect: type[Dialect], tokens: int) -> bytes:
    said = [{"index": 0, "delta": {"content": f" {n}"}, "finish_reason": None} for n in range(1, tokens + 1)]
    return b"".join(
        b"data: " + orjson.dumps(MAKERS[dialect](choice, n)) + b"\n\n" for n, choice in enumerate(said, 1)
    )


@pytest.mark.parametrize("dialect", WAYS)
def test_takes_the_short_way(dialect: type[Dialect]) -> None:
    """All chunks after the first plain one go the short way, those that a read cuts among them."""
    reply, reading = plain_reply(dialect, 50), Reading(dialect())
    pieces = [piece for at in range(0, len(reply), 1_000) for piece in reading.feed(reply[at : at + 1_000])]
    assert [type(piece) for piece in pieces] == [Piece, *[Plain] * 49]


# From the engine to the client


class Cuts(ScriptedEngine):
    """Gives what is read of one reply."""

    def __init__(self, dialect: Dialect, reads: Sequence[bytes]) -> None:
        super().__init__()
        self._dialect = dialect
        self._cuts = reads

    @asynccontextmanager
    async def stream(self, body: Mapping[str, Any], max_tokens: int) -> AsyncIterator[AsyncIterator[Pieces]]:
        yield self._pieces()

    async def _pieces(self) -> AsyncIterator[Pieces]:
        reading = Reading(self._dialect)
        for read in self._cuts:
            if pieces := reading.feed(read):
                yield pieces
            if reading.failure is not None:
                raise reading.failure
            if reading.done:
                return
        reading.end()
        if reading.failure is not None:
            raise reading.failure


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counter]:
    with Counter(tmp_path_factory.mktemp("plain") / "counter") as counter:
        yield counter


numbers = count(1_000)


def unnamed(events: list[bytes]) -> list[bytes]:
    """Without the name and time that a reply gets before the engine has named it: each time others."""
    return [
        re.sub(rb'"id":"\w+-[0-9a-f]{24}","object":"[\w.]+","created":\d+', b"", event) for event in events
    ]


async def sent(
    counter: Counter, engine: Cuts, interval: int, deposit: int, *, text: bool, usage: bool
) -> tuple[list[list[bytes]], bool, str]:
    """What is sent, write by write, to a payer that signs; whether some of it went the short way; the end."""
    host = Host(counter, engine, replace(JOB, id=JobId(next(numbers)), interval=interval, deposit=deposit))
    stream = host.ask(1_000, timeout=0)
    stream.order = replace(stream.order, form=TEXT if text else CHAT, include_usage=usage)
    events, writes, short = Events(stream.order), [], False
    async with stream:
        while parts := await stream.take():
            assert host.slot.totals == host.counted
            writes.append(unnamed(events.told(parts)))
            short |= any(type(part) is Run for part in parts)
            for chunk in (chunk for part in parts for chunk in part.each()):
                host.receive(stream, chunk)
                if chunk.tally.get("due") or chunk.tally.get("waiting"):
                    host.sign()
    counter.release(host.account.job.id)
    assert stream.end is not None
    return (
        [*writes, unnamed(events.end(stream.end))],
        short,
        f"{stream.end} {host.counted} {stream.delivery.totals}",
    )


@given(replies(), st.integers(4, 120), st.sampled_from([0, 5, 30, 2_000_000]), st.booleans())
def test_sends_what_the_general_way_sends(
    counter: Counter, reply: tuple[type[Dialect], bool, list[bytes]], interval: int, deposit: int, usage: bool
) -> None:
    """To the byte and write by write, whatever falls due, runs low or breaks off meanwhile."""
    dialect, text, reads = reply
    enough = 4 + deposit  # for the prompt and a token
    ways = [
        asyncio.run(sent(counter, Cuts(way(), reads), interval, enough, text=text, usage=usage))
        for way in (dialect, WAYS[dialect])
    ]
    (writes, _, end), (expected, short, expected_end) = ways
    assert not short
    assert (writes, end) == (expected, expected_end)


async def test_sends_runs(counter: Counter) -> None:
    """A plain reply goes the short way to its client, too."""
    engine = Cuts(ContinuousUsage(), [plain_reply(ContinuousUsage, 50) + DONE])
    writes, short, _ = await sent(counter, engine, 1_000, 2_000_000, text=False, usage=False)
    assert short
    tallies = [orjson.loads(event[len("data: ") :])["tally"] for event in writes[0]]
    assert [tally["tokens"] for tally in tallies] == list(range(1, 51))
