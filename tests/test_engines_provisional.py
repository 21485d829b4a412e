"""Where an engine tells no running count, the count is provisional, and corrected in the payer's favour."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import tallystick
from tallystick import sse
from tallystick.engines.dialect import FinalUsage
from tallystick.engines.http import HttpEngine
from tallystick.engines.provisional import WINDOW, TextCount
from tallystick.engines.tokenizer import Tokenizer
from tallystick.errors import EngineRefused, EngineUncounted
from tallystick.testing.engine import Form, Script, ScriptedEngine, Step, oai_server, say
from tests.asking import BODY, begin, listening, read, running, text

DEMO = Path(tallystick.__file__).parent / "models" / "tally-demo.gguf"


@asynccontextmanager
async def uncounting(
    script: Script, form: Form, tokenizer: Tokenizer | None = None
) -> AsyncGenerator[HttpEngine, None]:
    """A started engine behind a server that tells no running count, and replies by the script."""
    probes = [Script(say("x", "y"))] * (3 if form == "final usage" else 4)
    scripted = ScriptedEngine(*probes, script)
    async with oai_server(scripted, form=form) as url, HttpEngine(url, tokenizer=tokenizer) as engine:
        yield engine


CHUNKS = Script((say("One", " two"), Step(" three four", 2), Step("", 1)), unseen=1)
"""Three chunks with text, of six tokens."""


async def test_a_final_usage_does_not_raise_a_provisional_count() -> None:
    """Each chunk with a text is a token; what the usage has beyond that, nobody saw, and it is told apart."""
    async with uncounting(CHUNKS, "final usage") as engine:
        pieces = await read(engine)
    assert text(pieces) == "One two three four"
    assert running(pieces) == [0, 1, 2, 3, 3, 3, 3]
    assert [piece.beyond for piece in pieces] == [0, 0, 0, 0, 0, 0, 3]
    assert pieces[-1].usage is not None
    assert pieces[-1].usage["completion_tokens"] == 6


class Overcounting(ScriptedEngine):
    """Cuts each token into two chunks, so that there are more chunks than tokens."""

    async def _reads(self, asked: Any, script: Script) -> AsyncGenerator[list[dict[str, Any]], None]:
        async for chunks in super()._reads(asked, script):
            yield [half for chunk in chunks for half in halves(chunk)]


def halves(chunk: dict[str, Any]) -> list[dict[str, Any]]:
    said = chunk["choices"][0]["delta"].get("content") if chunk["choices"] else None
    if not said:
        return [chunk]
    delta = [{"content": said[:1]}, {"content": said[1:]}]
    return [{**chunk, "choices": [{**chunk["choices"][0], "delta": each}]} for each in delta]


async def test_a_final_usage_lowers_a_provisional_count() -> None:
    """Where there were more chunks than tokens, the usage takes the difference off what is not delivered."""
    scripted = Overcounting(Script(say("One", " two")))
    async with oai_server(scripted, form="final usage") as url, HttpEngine(url) as engine:
        pieces = await read(engine)
    assert running(pieces) == [0, 1, 2, 3, 4, 4, 2]
    assert pieces[-1].beyond == 0


PROSE = {"messages": [{"role": "user", "content": "Seven words of prose in a row. " * 40}]}


async def test_a_prompt_is_estimated_and_then_corrected() -> None:
    """Without a route for it a prompt is counted by its bytes, billed in part, and never above the usage."""
    async with uncounting(Script(say("One", " two")), "final usage") as engine:
        estimated = await engine.count_prompt(PROSE)
        pieces = await read(engine, PROSE)
        truly = await ScriptedEngine().count_prompt(PROSE)
    assert estimated == pytest.approx(len(PROSE["messages"][0]["content"]) / 4, rel=0.1)
    first = next(piece for piece in pieces if piece.tokens)
    assert first.prompt_tokens == pytest.approx(estimated / 2, rel=0.1)
    assert pieces[-1].prompt_tokens == truly


async def test_without_any_count_nothing_is_served() -> None:
    """A server that says nothing of its counts starts, says so, and serves nothing that is paid."""
    async with uncounting(CHUNKS, "no usage") as engine:
        assert engine.lacks() is not None
        with pytest.raises(EngineUncounted, match="ENGINE_TOKENIZER"):
            await engine.count_prompt(BODY)
        with pytest.raises(EngineUncounted):
            await begin(engine)


@pytest.fixture
async def tokenizer() -> AsyncIterator[Tokenizer]:
    tokenizer = Tokenizer(DEMO)
    await tokenizer.start()
    yield tokenizer
    await tokenizer.close()


async def test_a_tokenizer_counts_where_the_engine_says_nothing(tokenizer: Tokenizer) -> None:
    """With a tokenizer the running count is that of the text so far, however it is cut into chunks."""
    async with uncounting(CHUNKS, "no usage", tokenizer) as engine:
        assert engine.lacks() is None
        assert await engine.count_prompt(BODY) == await tokenizer.count_prompt(BODY)
        pieces = await read(engine)
    expected = [
        await tokenizer.count_text(said) if said else 0
        for said in itertools.accumulate(piece.text for piece in pieces)
    ]
    assert running(pieces)[-1] == expected[-1] > 3
    assert running(pieces) == sorted(running(pieces))
    assert all(count <= most for count, most in zip(running(pieces), expected, strict=True))


async def test_a_final_usage_corrects_a_tokenizer(tokenizer: Tokenizer) -> None:
    """A tokenizer that counts more than the engine does is corrected by the usage, for prompt and reply."""
    async with uncounting(Script(say("incomprehensibilities", " x")), "final usage", tokenizer) as engine:
        pieces = await read(engine)
        assert max(running(pieces)) > 2
        assert (pieces[-1].tokens, pieces[-1].beyond) == (2, 0)
        # The probe was billed 7 tokens: what the tokenizer counts beyond that is taken off every prompt.
        assert await engine.count_prompt(HELLO) == 7


HELLO = {"messages": [{"role": "user", "content": "Hello"}]}


class OlderTokenize(ScriptedEngine):
    """As SGLang before its `/tokenize` took messages."""

    async def count_prompt(self, body: Mapping[str, Any]) -> int:
        if "model" in body and "max_tokens" not in body:
            raise EngineRefused("'prompt' is missing")
        return await super().count_prompt(body)


async def test_a_running_count_does_not_need_a_route_for_prompts() -> None:
    """A server that counts its reply but no chat's prompt is served from, with an estimate of the prompt."""
    scripted = OlderTokenize(CHUNKS)
    async with oai_server(scripted, form="continuous usage") as url, HttpEngine(url) as engine:
        assert await engine.count_prompt(PROSE) > 200
        pieces = await read(engine, PROSE)
    assert running(pieces)[-1] == 6
    assert {piece.prompt_tokens for piece in pieces if piece.tokens} == {
        await ScriptedEngine().count_prompt(PROSE)
    }


async def test_a_usage_with_the_reason_is_no_running_count() -> None:
    """A usage that comes once, in the chunk that has the finish reason, is a final one."""
    said = {"index": 0, "delta": {"content": "x"}, "finish_reason": None}
    last = {"index": 0, "delta": {}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    chunks = [{"choices": [said]}, {"choices": [said]}, {"choices": [last], "usage": usage}]

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/v1/models":
            return web.json_response({"data": [{"id": "m"}]})
        if request.path == "/v1/chat/completions":
            return web.Response(body=b"".join(map(sse.event, chunks)) + sse.DONE)
        return web.Response(status=404)

    async with listening(answer) as url, HttpEngine(url) as engine:
        pieces = await read(engine)
    assert isinstance(engine._dialect, FinalUsage)
    assert running(pieces) == [1, 2, 2]


async def test_a_long_text_is_counted_by_its_end(tokenizer: Tokenizer) -> None:
    """Read by read, a long text comes to the count that it has in one piece, but for the window's edges."""
    said = "The tally stick was split in two halves, and both of them were kept. " * 30
    count = TextCount(tokenizer)
    counts = [await count.add(said[at : at + 7]) for at in range(0, len(said), 7)]
    assert counts == sorted(counts)
    assert abs(counts[-1] - await tokenizer.count_text(said)) <= len(said) // (WINDOW // 2)
