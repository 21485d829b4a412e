"""llama.cpp in the process is asked, counted and stopped as it has to be."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import gguf
import numpy as np
import pytest

import tallystick
from tallystick.engines.connection import Connection
from tallystick.engines.llama import LlamaEngine
from tallystick.errors import EngineError, EngineRefused, EngineUnavailable
from tests.asking import BODY, begin, read, running, text

DEMO = Path(tallystick.__file__).parent / "models" / "tally-demo.gguf"
# The clockwork model says this over and over, a byte a token; no byte comes twice: each has one successor.
CYCLE = "abcdé→jk🦊xyz, "
END = 258
"""The id of the clockwork model's end token."""


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


class OlderConnection(Connection):
    """To llama.cpp as it was before it had a route that counts a chat's prompt."""

    async def fetch(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return await super().fetch(path.replace("/input_tokens", "/nowhere"), body)


@pytest.mark.parametrize("prompt", PROMPTS[:7])
async def test_an_older_llama_is_asked_by_template(
    clockwork_path: Path, prompt: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without that route, template and tokenizer come to the same count."""
    monkeypatch.setattr("tallystick.engines.llama.Connection", OlderConnection)
    async with LlamaEngine(clockwork_path, context=1024, slots=1, threads=1) as engine:
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

    def _params(self, api_key: str) -> Any:
        params = super()._params(api_key)
        params.endpoint_metrics = True
        return params

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


@pytest.mark.parametrize("prompt", ["The tally stick was split", [5, 6, 7, 8]])
async def test_a_text_is_completed(demo: LlamaEngine, prompt: Any) -> None:
    """A text, or token ids, is counted exactly as it is billed, and completed."""
    body = {"prompt": prompt, "temperature": 0}
    pieces = await read(demo, body)
    assert await demo.count_prompt(body) == pieces[-1].prompt_tokens
    assert text(pieces)
    assert 0 < pieces[-1].tokens <= 50


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
    assert demo.connection.api_key is not None
    assert demo.connection.api_key not in repr(demo)


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
