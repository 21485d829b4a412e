"""Engines are asked, counted and stopped as they have to be: llama.cpp, and servers that follow a script."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import gguf
import numpy as np
import pytest
from aiohttp import web

import tallystick
from tallystick.engine import ContinuousUsage, Engine, HttpEngine, LlamaCpp, LlamaEngine, Piece, Reply
from tallystick.errors import EngineError, EngineRefused, EngineTimeout, EngineUnavailable
from tallystick.testing.engine import Form, Hang, Script, ScriptedEngine, Step, oai_server, say
from tallystick.wire import SSE_DONE, sse

DEMO = Path(tallystick.__file__).parent / "models" / "tally-demo.gguf"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "What is a tally stick?"}], "temperature": 0}
# The clockwork model says this over and over, a byte a token; no byte comes twice: each has one successor.
CYCLE = "abcdé→jk🦊xyz, "
END = 258
"""The id of the clockwork model's end token."""


async def read(engine: Engine, body: Mapping[str, Any] = BODY, max_tokens: int = 50) -> list[Piece]:
    async with engine.stream(body, max_tokens) as reads:
        return [piece async for pieces in reads for piece in pieces]


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def running(pieces: list[Piece]) -> list[int]:
    return [piece.tokens for piece in pieces]


async def begin(engine: Engine, body: Mapping[str, Any] = BODY) -> None:
    """Asks, and reads nothing."""
    async with engine.stream(body, 50):
        pass


# llama.cpp in the process


def byte_tokens() -> list[str]:
    """GPT-2's names of the 256 bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in shown else chr(next(hidden)) for byte in range(256)]


def write_clockwork(path: Path, *, bos: bool) -> None:
    """A model whose next token is decided by its last one alone: real llama.cpp with a known reply."""
    tokens = [*byte_tokens(), "<|start|>", "<|turn|>", "<|end|>", "qq", *(f"<{n}>" for n in range(28))]
    kinds = [gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * 3
    kinds += [gguf.TokenType.NORMAL] + [gguf.TokenType.UNUSED] * 28
    size = len(tokens)
    cycle = list(CYCLE.encode())
    successor = dict(zip(cycle, [*cycle[1:], cycle[0]], strict=True))
    head = np.zeros((size, size), np.float32)
    for byte in range(256):
        head[successor.get(byte, cycle[0]), byte] = 8
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(size)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(size // 4)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["q q"])  # llama.cpp asks for one
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(bos)
    writer.add_chat_template(
        "{{ bos_token }}{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>{% endfor %}"
        "{% if tools %}<|turn|>tools\n{{ tools | tojson }}<|end|>{% endif %}"
        "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
    )
    writer.add_tensor("token_embd.weight", np.eye(size, dtype=np.float32))
    writer.add_tensor("output.weight", head)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(size, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((size, size), np.float32))
    for name, shape in (("ffn_gate", (32, size)), ("ffn_up", (32, size)), ("ffn_down", (size, 32))):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="session", params=[False, True], ids=["without BOS", "with BOS"])
def clockwork_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "clockwork.gguf"
    write_clockwork(path, bos=request.param)
    return path


@pytest.fixture
async def clockwork(clockwork_path: Path) -> AsyncIterator[LlamaEngine]:
    async with LlamaEngine(clockwork_path, context=1024, slots=2, threads=1) as engine:
        yield engine


@pytest.fixture
async def demo() -> AsyncIterator[LlamaEngine]:
    async with LlamaEngine(DEMO, context=1024, slots=2, threads=1) as engine:
        yield engine


PROMPTS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Hello"}]},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Łucja: 🦊 → «é»"},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": "<|end|></s><s> three"},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "in"}, {"type": "text", "text": "parts"}]}
        ]
    },
    {"messages": [{"role": "user", "content": ""}]},
    {"messages": [{"role": "user", "content": "go on"}, {"role": "assistant", "content": "and then"}]},
    {
        "messages": [{"role": "user", "content": "What is the time?"}],
        "tools": [{"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}],
    },
    {"messages": [{"role": "user", "content": "JSON"}], "response_format": {"type": "json_object"}},
]


@pytest.mark.parametrize("prompt", PROMPTS)
async def test_a_prompt_is_counted_as_it_is_billed(demo: LlamaEngine, prompt: dict[str, Any]) -> None:
    """The prompt's tokens, counted beforehand, are those of the usage, and so are the running count's."""
    pieces = await read(demo, prompt)
    usage = pieces[-1].usage
    assert usage is not None
    assert usage["prompt_tokens"] == pieces[-1].prompt_tokens == await demo.count_prompt(prompt)
    assert {piece.prompt_tokens for piece in pieces if piece.tokens} == {usage["prompt_tokens"]}


@pytest.mark.parametrize("prompt", PROMPTS[:7])
async def test_any_template_is_counted_as_it_is_billed(
    clockwork: LlamaEngine, prompt: dict[str, Any]
) -> None:
    """So it is for a model with a BOS and for one without, and for a template that shows tools."""
    assert (await read(clockwork, prompt))[-1].prompt_tokens == await clockwork.count_prompt(prompt)


class OlderLlama(LlamaEngine):
    """llama.cpp as it was before it had a route that counts a chat's prompt."""

    async def _fetch(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return await super()._fetch(path.replace("/input_tokens", "/nowhere"), body)


@pytest.mark.parametrize("prompt", PROMPTS[:7])
async def test_an_older_llama_is_asked_by_template(clockwork_path: Path, prompt: dict[str, Any]) -> None:
    """Without that route, template and tokenizer come to the same count."""
    async with OlderLlama(clockwork_path, context=1024, slots=1, threads=1) as engine:
        assert (await read(engine, prompt))[-1].prompt_tokens == await engine.count_prompt(prompt)


async def test_a_reply_is_counted_to_the_token(demo: LlamaEngine) -> None:
    """The running count only rises, never by more than came, and ends at the usage's completion_tokens."""
    pieces = await read(demo, {**BODY, "ignore_eos": True}, 300)
    usage = pieces[-1].usage
    assert usage is not None
    assert usage["completion_tokens"] == pieces[-1].tokens == 300
    assert running(pieces) == sorted(running(pieces))
    assert pieces[-2].finish_reason == "length"
    assert {piece.raw["model"] for piece in pieces} == {"tally-demo"} == set(demo.models)


@pytest.mark.parametrize("tokens", range(1, len(CYCLE.encode()) + 1))
async def test_a_cut_character_is_counted(clockwork: LlamaEngine, tokens: int) -> None:
    """A reply that ends inside a character has fewer texts than tokens, and all its tokens are counted."""
    pieces = await read(clockwork, max_tokens=tokens)
    assert text(pieces) == CYCLE.encode()[:tokens].decode(errors="ignore")
    assert pieces[-1].tokens == tokens
    shown = [piece for piece in pieces if piece.text]
    assert [piece.tokens for piece in shown] == [
        len(before.encode()) for before in itertools.accumulate(CYCLE[: len(shown)])
    ]


async def test_an_end_token_is_counted_unseen(clockwork: LlamaEngine) -> None:
    """The end token is a token of the reply, though nobody sees it."""
    pieces = await read(clockwork, {**BODY, "logit_bias": [[END, 1000]]})
    assert (text(pieces), pieces[-1].tokens, pieces[-2].finish_reason) == ("", 1, "stop")


async def test_a_stop_string_is_counted_unseen(clockwork: LlamaEngine) -> None:
    """What was made for a stop string is made, though it is not shown."""
    pieces = await read(clockwork, {**BODY, "stop": ["é→"]})
    assert (text(pieces), pieces[-1].tokens, pieces[-2].finish_reason) == ("abcd", 9, "stop")


class MeteredLlama(LlamaEngine):
    """llama.cpp that tells what it does."""

    def _params(self, params: Any) -> Any:
        params.endpoint_metrics = True
        return super()._params(params)

    def metric(self, name: str) -> int:
        lines: list[str] = self._server.handle_metrics().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"llamacpp:{name} "))


async def test_leaving_stops_the_engine() -> None:
    """A request that is left is made no further: the engine is idle before it has made what was asked."""
    async with MeteredLlama(DEMO, context=4096, slots=1, threads=1) as engine:
        async with engine.stream({**BODY, "ignore_eos": True}, 4000) as reads:
            await anext(reads)
            assert engine.metric("requests_processing") == 1
        while engine.metric("requests_processing"):
            await engine.count_prompt(BODY)
        assert 0 < engine.metric("n_decode_total") < 4000


async def test_a_limit_is_the_caller_s(clockwork: LlamaEngine) -> None:
    """No member of a request says more than the host: not by another name, and not about the stream."""
    wish = {"max_completion_tokens": 40, "n_predict": 40, "max_tokens": 40, "n_cmpl": 2}
    way = {"stream": False, "timings_per_token": False, "stream_options": {"include_usage": False}}
    pieces = await read(clockwork, {**BODY, **wish, **way, "response_fields": ["id"], "n": None}, 4)
    assert (text(pieces), running(pieces)) == ("abcd", [0, 1, 2, 3, 4, 4, 4])


async def test_what_llama_refuses_is_the_payer_s(clockwork: LlamaEngine) -> None:
    """A request that llama.cpp does not take is refused in its words, counted or made."""
    long = {"messages": [{"role": "user", "content": "x" * 2000}]}
    with pytest.raises(EngineRefused, match="exceeds the available context size"):
        await begin(clockwork, long)
    with pytest.raises(EngineRefused, match="messages"):
        await begin(clockwork, {"messages": "hello"})
    with pytest.raises(EngineRefused, match="messages"):
        await clockwork.count_prompt({"messages": "hello"})
    with pytest.raises(EngineRefused, match="temperature"):
        await begin(clockwork, {**BODY, "temperature": "warm"})
    with pytest.raises(EngineRefused, match="n has to be 1"):
        await begin(clockwork, {**BODY, "n": 2})


async def test_a_stranger_cannot_use_the_engine(demo: LlamaEngine) -> None:
    """llama.cpp in the process listens on loopback and refuses who has not its key, which shows nowhere."""
    assert demo.url.startswith("http://127.0.0.1:")
    for headers in ({}, {"Authorization": "Bearer guess"}):
        async with aiohttp.ClientSession(headers=headers) as session:
            for path in ("/v1/chat/completions", "/completion", "/tokenize"):
                assert (await session.post(demo.url + path, json=BODY)).status == 401
            assert (await session.get(f"{demo.url}/slots")).status == 401
    assert demo._api_key is not None
    assert demo._api_key not in repr(demo)


async def test_several_requests_at_a_time(clockwork: LlamaEngine) -> None:
    """Requests beyond the slots wait for one, and all are whole."""
    replies = await asyncio.gather(*(read(clockwork, max_tokens=20) for _ in range(5)))
    assert {(text(reply), reply[-1].tokens) for reply in replies} == {(CYCLE, 20)}


async def test_name_and_context_are_told(demo: LlamaEngine) -> None:
    """A model is called after its file unless it has a name; the context is what one request may fill."""
    assert (demo.models, demo.context) == (["tally-demo"], 1024)
    async with LlamaEngine(DEMO, name="tally", context=512, slots=3, threads=1) as named:
        assert (named.models, named.context) == (["tally"], 512)
        assert (await read(named))[-1].raw["model"] == "tally"


async def test_closing_stops_it(demo: LlamaEngine) -> None:
    """A closed engine breaks off what it streams, listens no longer, and can be closed again."""
    async with demo.stream({**BODY, "ignore_eos": True}, 1000) as reads:
        await anext(reads)
        await demo.close()
        with pytest.raises(EngineError):
            async for _ in reads:
                pass
    await demo.close()
    with pytest.raises(EngineUnavailable):
        await demo.count_prompt(BODY)
    with pytest.raises(aiohttp.ClientConnectorError):
        async with aiohttp.ClientSession() as session:
            await session.get(demo.url)


def directory(path: Path) -> None:
    path.mkdir()


def text_file(path: Path) -> None:
    path.write_text("import this\n")


def half_a_model(path: Path) -> None:
    path.write_bytes(DEMO.read_bytes()[:100_000])


def nothing(path: Path) -> None:
    assert not path.exists()


@pytest.mark.parametrize("make", [nothing, directory, text_file, half_a_model])
async def test_a_bad_model_is_named(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """A model that is missing, unreadable, another thing or cut off is named, with its setting."""
    path = tmp_path / "model.gguf"
    make(path)
    engine = LlamaEngine(path)
    with pytest.raises(EngineError, match="MODEL_PATH") as caught:
        await engine.start()
    assert str(path) in str(caught.value)


# A server at a URL


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


async def test_a_final_usage_alone_is_refused_at_start() -> None:
    """A server that tells its count only at the end cannot be metered, and that is said at the start."""
    async with oai_server(ScriptedEngine(), form="final usage") as url:
        engine = HttpEngine(f"{url}/v1/")
        with pytest.raises(EngineError, match="no running count"):
            await engine.start()
        with pytest.raises(EngineUnavailable, match="not started"):
            await begin(engine)


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


async def test_leaving_cancels() -> None:
    """An engine's request ends when its context is left: in the middle, or before anything was read."""
    wait = Script((Step("a"), Hang()))
    async with meet(wait) as (engine, scripted):
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
        (Script(), EngineUnavailable, "no counted token"),
        (Script((asyncio.Event(), EngineError("crash"))), EngineUnavailable, "connection broke"),
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
        assert text(await anext(reads)) == "ab"
        event.set()
        with pytest.raises(EngineError, match="connection broke") as caught:
            await anext(reads)
    assert caught.type is EngineError


@pytest.mark.parametrize("before", [(), say("a", "b")])
async def test_silence_is_bounded(before: tuple[Step, ...]) -> None:
    """An engine that makes no token for too long is an EngineTimeout, at the start and in the middle."""
    async with meet(Script((*before, Hang())), first_token=1.0, next_token=1.0) as (engine, scripted):
        with pytest.raises(EngineTimeout):
            await read(engine)
        await scripted.asked[1].over.wait()
    assert scripted.asked[1].cancelled


async def test_a_wrong_key_is_the_host_s() -> None:
    """A key that the engine does not take is a setting of the host's, and the error names it."""
    async with oai_server(ScriptedEngine(), api_key="right") as url:
        with pytest.raises(EngineUnavailable, match="ENGINE_API_KEY"):
            await HttpEngine(url, api_key="wrong").start()


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def listening(answer: Answer) -> AsyncGenerator[str, None]:
    """A server that gives every request the same answer."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield "http://{}:{}".format(*runner.addresses[0][:2])
    finally:
        await runner.cleanup()


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
        engine = HttpEngine(url, dialect=LlamaCpp())
        engine._session = engine._connect()
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
        engine = HttpEngine(url, dialect=LlamaCpp(), first_token=0.2)
        engine._session = engine._connect()
        with pytest.raises(EngineTimeout):
            await read(engine)
        await engine.close()


# Reading a reply


def counted(tokens: int, said: str = "x") -> dict[str, Any]:
    return {
        "choices": [{"index": 0, "delta": {"content": said}, "finish_reason": None}],
        "timings": {"prompt_n": 1, "cache_n": 6, "predicted_n": tokens},
    }


def feed(*chunks: Any) -> tuple[Reply, list[Piece]]:
    reply = Reply(LlamaCpp())
    return reply, reply.feed(b"".join(sse(chunk) for chunk in chunks))


def test_a_reply_may_be_cut_anywhere() -> None:
    """However the network cuts a reply, the pieces are the same."""
    whole = b": ping\n\n" + b"".join(sse(counted(n, "é🦊")) for n in (1, 4, 5)) + SSE_DONE
    expected = Reply(LlamaCpp()).feed(whole)
    assert running(expected) == [1, 4, 5]
    for size in range(1, 60):
        reply = Reply(LlamaCpp())
        cuts = [whole[at : at + size] for at in range(0, len(whole), size)]
        assert [piece for cut in cuts for piece in reply.feed(cut)] == expected
        assert reply.done


def test_the_prompt_is_counted_with_the_first_token() -> None:
    """Before a token there is no prompt to pay for, though a server may have told its length."""
    reply = Reply(ContinuousUsage())
    early = {
        "choices": [{"delta": {"role": "assistant"}}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 0},
    }
    assert reply.piece(early).prompt_tokens == 0
    assert reply.piece({**early, "usage": {"prompt_tokens": 7, "completion_tokens": 1}}).prompt_tokens == 7


def test_an_error_in_a_stream_keeps_what_came_before() -> None:
    """Pieces of the same read are given before the error is raised."""
    reply, pieces = feed(counted(1), counted(2), {"error": {"code": 500, "message": "out of memory"}})
    assert running(pieces) == [1, 2]
    assert type(reply.failure) is EngineError
    assert "out of memory" in str(reply.failure)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 400, "message": "bad"}, EngineRefused),
        ({"code": 500, "message": "bad"}, EngineUnavailable),
        ({"code": "internal_error", "message": "bad"}, EngineUnavailable),
        ("bad", EngineUnavailable),
    ],
)
def test_an_error_before_the_first_token(error: Any, kind: type[EngineError]) -> None:
    """An error in the stream, before any token, is judged as a status would be."""
    reply, pieces = feed({"error": error})
    assert pieces == []
    assert type(reply.failure) is kind
    assert "bad" in str(reply.failure)


@pytest.mark.parametrize(
    "data",
    [
        b"data: {\n\n",
        b"data: []\n\n",
        b'data: {"choices": 5}\n\n',
        b'data: {"timings": {"predicted_n": "9"}}\n\n',
    ],
)
def test_what_cannot_be_read_is_a_failure(data: bytes) -> None:
    """A chunk that is no chunk ends the reply with an error that says so."""
    reply, _ = feed(counted(1))
    assert reply.feed(data) == []
    assert type(reply.failure) is EngineError
    assert "cannot be read" in str(reply.failure)


def test_a_count_never_goes_back() -> None:
    """A running count that falls is an engine's fault, not a credit."""
    reply, pieces = feed(counted(5), counted(4))
    assert running(pieces) == [5]
    assert "went back from 5 to 4" in str(reply.failure)


def test_a_reply_without_its_end_broke_off() -> None:
    """A stream that ends without saying so is not whole."""
    reply, _ = feed(counted(5))
    reply.end()
    assert not reply.done
    assert "broke off after 5 tokens" in str(reply.failure)
