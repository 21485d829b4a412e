"""A server at a URL is asked, counted and stopped as it has to be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from tallystick.engines import connection
from tallystick.engines.dialect import ContinuousUsage, Dialect, LlamaCpp
from tallystick.engines.http import HttpEngine
from tallystick.engines.prompts import Told
from tallystick.errors import (
    EngineEmpty,
    EngineError,
    EngineFalseStart,
    EngineRefused,
    EngineStalled,
    EngineTimeout,
    EngineUnavailable,
)
from tallystick.testing.engine import Form, Hang, Script, ScriptedEngine, Step, oai_server, say
from tests.asking import BODY, begin, listening, read, running, text


@asynccontextmanager
async def meet(
    *scripts: Script, form: Form = "llama.cpp", **settings: Any
) -> AsyncGenerator[tuple[HttpEngine, ScriptedEngine], None]:
    """A started HttpEngine and the scripted engine that it asks; `asked[0]` is what it asked at its start."""
    scripted = ScriptedEngine(Script(say("x")), *scripts)
    async with oai_server(scripted, form=form) as url, HttpEngine(url, **settings) as engine:
        yield engine, scripted


MIXED = Script(
    (
        Step(delta={"reasoning_content": "Hm. "}),
        (Step("Two "), Step("halves 🦊", 5)),
        Step("", 2),
        Step(delta={"tool_calls": [{"index": 0, "function": {"name": "cut", "arguments": "{}"}}]}),
        Step("!", logprobs={"content": [{"token": "!", "logprob": -0.5}]}),
    ),
    finish_reason="tool_calls",
    unseen=1,
)


async def test_a_socket_changes_nothing() -> None:
    """Reasoning, tool calls, logprobs, counts and texts are the same through a server as without one."""
    async with meet(MIXED) as (engine, _):
        pieces = await read(engine)
    straight = await read(ScriptedEngine(MIXED))
    assert [(p.text, p.tokens, p.choices, p.finish_reason) for p in pieces] == [
        (p.text, p.tokens, p.choices, p.finish_reason) for p in straight
    ]
    assert text(pieces) == "Hm. Two halves 🦊cut{}!"
    assert pieces[-1].tokens == 12


async def test_a_usage_in_every_chunk_is_a_running_count() -> None:
    """A server that counts as vLLM does is recognised, and its counts are the same."""
    async with meet(MIXED, form="continuous usage") as (engine, scripted):
        pieces = await read(engine)
        assert (engine.models, engine.context) == (["scripted"], 4096)
        assert await engine.count_prompt(BODY) == pieces[-1].prompt_tokens == 11
    assert running(pieces) == running(await read(ScriptedEngine(MIXED)))
    assert scripted.asked[-1].body["stream_options"]["continuous_usage_stats"] is True


@pytest.mark.parametrize("form", ["llama.cpp", "continuous usage"])
@pytest.mark.parametrize(("prompt", "counted"), [("Two halves of", 4), ([12, 7, 99], 3)])
async def test_a_text_is_completed(form: Form, prompt: Any, counted: int) -> None:
    """A prompt, as text or as token ids, is counted as it is billed, and completed by chunks of text."""
    body = {"prompt": prompt}
    async with meet(Script(say(" one", " stick")), form=form) as (engine, _):
        pieces = await read(engine, body)
        assert await engine.count_prompt(body) == pieces[-1].prompt_tokens == counted
    assert (text(pieces), pieces[-1].tokens, pieces[-1].finish_reason) == (" one stick", 2, None)
    assert pieces[0].raw["object"] == "text_completion"


async def test_an_engine_has_to_be_started() -> None:
    """An engine that was not started, or not yet, is not available."""
    async with oai_server(ScriptedEngine()) as url:
        engine = HttpEngine(f"{url}/v1/")
        with pytest.raises(EngineUnavailable, match="not started"):
            await begin(engine)
        with pytest.raises(EngineUnavailable, match="not started"):
            await engine.count_prompt(BODY)


async def test_an_empty_probe_is_no_dialect() -> None:
    """An engine that makes nothing at start is not taken for one that counts less than it does."""
    async with oai_server(ScriptedEngine(Script())) as url:
        with pytest.raises(EngineEmpty):
            await HttpEngine(url).start()


class Miscounting(ScriptedEngine):
    """Counts each prompt one token longer than the one before."""

    async def count_prompt(self, body: Mapping[str, Any]) -> int:
        return len(self.asked) + await super().count_prompt(body)


async def test_a_prompt_counted_otherwise_is_refused_at_start() -> None:
    """A server that bills another prompt than it counts beforehand is not served from."""
    async with oai_server(Miscounting()) as url:
        with pytest.raises(EngineError, match="counts a prompt as 8 tokens and bills 7"):
            await HttpEngine(url).start()


async def test_the_engine_gets_the_payer_s_request() -> None:
    """The engine gets what a payer asks, less what is for the host alone, plus what the host settles."""
    ours = {"job_id": 121, "tally": {"request": "00"}, "id": "00", "access": "tally-…"}
    settled = {"max_tokens": 9, "n": 1, "stream": False, "id_slot": 3, "lora": [], "priority": -1}
    async with meet() as (engine, scripted):
        await read(engine, {**BODY, **ours, **settled, "seed": 5, "stop": ["."]}, 7)
    assert scripted.asked[-1].body == {
        **BODY,
        "seed": 5,
        "stop": ["."],
        "model": "scripted",
        "max_tokens": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
        "timings_per_token": True,
    }


async def test_nothing_is_held_for_the_next_read() -> None:
    """What came is given at once, though the rest is still to come."""
    event = asyncio.Event()
    hold = Script((say("a", "b"), event, Step("c")))
    async with meet(hold) as (engine, _), engine.stream(BODY, 50) as reads:
        assert [piece.text for piece in await anext(reads)] == ["", "a", "b"]
        event.set()
        assert (await anext(reads))[0].text == "c"


@pytest.mark.parametrize(
    ("form", "dialect"), [("llama.cpp", LlamaCpp()), ("continuous usage", ContinuousUsage())]
)
async def test_leaving_cancels(form: Form, dialect: Dialect) -> None:
    """An engine's request ends when its context is left: in the middle, or before anything was read."""
    wait = Script((Step("a"), Hang()))
    async with meet(wait, form=form, dialect=dialect) as (engine, scripted):
        async with engine.stream(BODY, 50) as reads:
            await anext(reads)
        await begin(engine)
        for asked in scripted.asked:
            await asked.over.wait()
    assert [asked.cancelled for asked in scripted.asked] == [False, True, True]


@pytest.mark.parametrize(
    ("script", "kind", "said"),
    [
        (Script((EngineRefused("too odd"),)), EngineRefused, "^too odd$"),
        (Script((EngineUnavailable("loading"),)), EngineUnavailable, "503: loading"),
        (Script(), EngineEmpty, "without a counted token"),
        (Script((asyncio.Event(), EngineError("crash"))), EngineFalseStart, "connection broke"),
    ],
)
async def test_what_fails_before_its_first_token(script: Script, kind: type[EngineError], said: str) -> None:
    """A refusal is the payer's to mend; any other failure before a token is an engine not available."""
    for read_ in script.reads:
        if isinstance(read_, asyncio.Event):
            read_.set()
    async with meet(script) as (engine, _):
        with pytest.raises(EngineError, match=said) as caught:
            await read(engine)
    assert caught.type is kind


async def test_what_fails_later_gives_what_it_made() -> None:
    """A connection that breaks in the middle is an EngineError, after all pieces that came."""
    event = asyncio.Event()
    broken = Script((say("a", "b"), event, EngineError("crash")))
    async with meet(broken) as (engine, _), engine.stream(BODY, 50) as reads:
        assert text([piece.whole() for piece in await anext(reads)]) == "ab"
        event.set()
        with pytest.raises(EngineError, match="connection broke") as caught:
            await anext(reads)
    assert caught.type is EngineError


@pytest.mark.parametrize(("before", "kind"), [((), EngineTimeout), (say("a", "b"), EngineStalled)])
async def test_silence_is_bounded(before: tuple[Step, ...], kind: type[EngineError]) -> None:
    """An engine that makes no token for too long is given up, at the start and in the middle."""
    async with meet(Script((*before, Hang())), first_token=1.0, next_token=1.0) as (engine, scripted):
        with pytest.raises(EngineTimeout) as caught:
            await read(engine)
        await scripted.asked[1].over.wait()
    assert caught.type is kind
    assert scripted.asked[1].cancelled


async def test_a_wrong_key_is_the_host_s() -> None:
    """A key that the engine does not take is a setting of the host's, and the error names it."""
    async with oai_server(ScriptedEngine(), api_key="right") as url:
        with pytest.raises(EngineUnavailable, match="ENGINE_API_KEY"):
            await HttpEngine(url, api_key="wrong").start()


def met(url: str, **settings: Any) -> HttpEngine:
    """An engine that counts as llama.cpp does, and was asked nothing yet."""
    engine = HttpEngine(url, dialect=LlamaCpp(), **settings)
    engine.connection.open()
    engine._prompts = Told(LlamaCpp(), engine.connection.fetch)
    return engine


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (500, EngineFalseStart),
        (502, EngineFalseStart),
        (503, EngineUnavailable),
        (429, EngineUnavailable),
        (302, EngineUnavailable),
        (422, EngineRefused),
    ],
)
async def test_a_status_says_whose_move_it_is(status: int, kind: type[EngineError]) -> None:
    """What has begun and failed, what takes nothing now, and what the payer can mend are told apart."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "so it is"}}, status=status)

    async with listening(answer) as url:
        engine = met(url)
        with pytest.raises(EngineError, match="so it is") as caught:
            await read(engine)
        await engine.close()
    assert caught.type is kind


@pytest.mark.parametrize("body", [b"", b"<html>", b": ping\n\n", b"data: [DONE]\n\n"])
async def test_an_empty_200_is_no_reply(body: bytes) -> None:
    """A reply without a token is an EngineEmpty, however it lacks one: it costs nothing."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body)

    async with listening(answer) as url:
        engine = met(url)
        with pytest.raises(EngineEmpty):
            await read(engine)
        await engine.close()


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"data": [{"name": "x"}]}', b'{"data": []}'])
async def test_another_server_is_no_engine(body: bytes) -> None:
    """A URL where something else answers is said to be that."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body)

    async with listening(answer) as url:
        with pytest.raises(EngineError, match=r"OpenAI-compatible|no model"):
            await HttpEngine(url).start()


async def test_a_strange_count_is_an_engine_s_error() -> None:
    """What is no count of a prompt is the engine's failure, not the node's."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"input_tokens": None})

    async with listening(answer) as url:
        engine = met(url)
        with pytest.raises(EngineError, match="OpenAI-compatible"):
            await engine.count_prompt(BODY)
        await engine.close()


async def test_nobody_there_is_unavailable() -> None:
    """A URL where nobody listens is an engine that cannot be reached; the error names the setting."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response()

    async with listening(answer) as url:
        pass
    with pytest.raises(EngineUnavailable, match="ENGINE_URL"):
        await HttpEngine(url).start()


async def test_comments_are_silence() -> None:
    """A server that sends comments, and no token, is as silent as one that sends nothing."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b":\n\n")
            await asyncio.sleep(0.01)

    async with listening(answer) as url:
        engine = met(url, first_token=0.2)
        with pytest.raises(EngineTimeout):
            await read(engine)
        await engine.close()


WHOLE = (
    b'data: {"choices": [{"delta": {"content": "a"}}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}'
    b"\n\ndata: [DONE]\n\n"
)


class Keeping:
    """A server that answers as vLLM does, and notes on which connection it is asked what.

    `drops`: it ends a connection at this request on it, from 1, without an answer. `late`: what it waits for
    between a reply and the end of its body; without, they come together.
    """

    def __init__(self, drops: int = 0, late: asyncio.Event | None = None) -> None:
        self.asked: list[web.BaseRequest] = []
        self.left = asyncio.Event()
        """A connection was closed before its reply's body ended."""
        self._drops = drops
        self._late = late

    @property
    def ways(self) -> list[int]:
        """The connection of each request, by its number from 0."""
        connections = [id(request.protocol) for request in self.asked]
        return [list(dict.fromkeys(connections)).index(each) for each in connections]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        self.asked.append(request)
        if self.ways.count(self.ways[-1]) == self._drops:
            assert request.transport is not None
            request.transport.abort()
        if request.path == "/tokenize":
            return web.json_response({"count": 3})
        if self._late is None:
            return web.Response(body=WHOLE)
        return await self._in_parts(request, self._late)

    async def _in_parts(self, request: web.Request, late: asyncio.Event) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(WHOLE)
        try:
            await late.wait()
        except asyncio.CancelledError:
            self.left.set()
            raise
        return response


@asynccontextmanager
async def keeping(server: Keeping) -> AsyncGenerator[HttpEngine, None]:
    """An engine that asks such a server and keeps its connections."""
    async with listening(server.answer) as url:
        engine = HttpEngine(url, dialect=ContinuousUsage())
        engine.connection.open()
        engine.connection.keeps = True
        engine._prompts = Told(ContinuousUsage(), engine.connection.fetch)
        try:
            yield engine
        finally:
            await engine.close()


async def test_a_server_that_counts_as_vllm_does_keeps_connections() -> None:
    """Connections to vLLM are used again; to llama.cpp, which has a thread for each, they are not."""
    async with meet(form="continuous usage") as (engine, _):
        assert engine.connection.keeps
    async with meet(form="llama.cpp") as (engine, _):
        assert not engine.connection.keeps


async def test_a_whole_reply_leaves_its_connection() -> None:
    """Counts of prompts and whole replies come over one connection, one after the other."""
    server = Keeping()
    async with keeping(server) as engine:
        for _ in range(3):
            await engine.count_prompt(BODY)
            assert text(await read(engine)) == "a"
    assert server.ways == [0] * 6


async def test_a_body_may_end_later_than_its_reply() -> None:
    """A whole reply is not held up by the end of its body, and its connection is used again after that."""
    late = asyncio.Event()
    server = Keeping(late=late)
    async with keeping(server) as engine:
        assert text(await read(engine)) == "a"
        await engine.count_prompt(BODY)
        assert server.ways == [0, 1]
        late.set()
        while server.ways.count(0) < 2:
            await asyncio.gather(engine.count_prompt(BODY), engine.count_prompt(BODY))


async def test_a_body_that_does_not_end_loses_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply whose body goes on is whole all the same; its connection closes."""
    monkeypatch.setattr(connection, "LINGER", 0.01)
    server = Keeping(late=asyncio.Event())
    async with keeping(server) as engine:
        assert text(await read(engine)) == "a"
        await server.left.wait()


async def test_a_dropped_connection_fails_no_request() -> None:
    """A connection that the server drops as it is used again costs no request: it is sent once more, anew."""
    server = Keeping(drops=2)
    async with keeping(server) as engine:
        assert await engine.count_prompt(BODY) == 3
        assert text(await read(engine)) == "a"
    assert server.ways == [0, 0, 1]


async def test_a_new_connection_that_drops_is_a_failure() -> None:
    """A request that a server drops on a connection of its own is not sent again: it may be the cause."""
    server = Keeping(drops=1)
    async with keeping(server) as engine:
        with pytest.raises(EngineUnavailable, match="cannot be reached"):
            await read(engine)
    assert server.ways == [0]
