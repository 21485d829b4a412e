"""The scripted engine does what its script says, in the process and over a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest

from tallystick.engine import Engine, Piece
from tallystick.errors import EngineError, EngineRefused, EngineTimeout, EngineUnavailable
from tallystick.testing.engine import Form, Hang, Script, ScriptedEngine, Step, babble, oai_server, say

BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "What is a tally stick?"}]}
TWO = Script(say("one", " two"))


async def read(engine: Engine, body: dict[str, Any] = BODY, max_tokens: int = 100) -> list[Piece]:
    async with engine.stream(body, max_tokens) as reads:
        return [piece.whole() async for pieces in reads for piece in pieces]


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


async def test_says_its_script() -> None:
    """A script's texts come one token each, then the reason and the usage."""
    pieces = await read(ScriptedEngine(TWO))
    assert text(pieces) == "one two"
    assert [piece.tokens for piece in pieces] == [0, 1, 2, 2, 2]
    assert [piece.prompt_tokens for piece in pieces] == [0, 11, 11, 11, 11]
    assert pieces[-2].finish_reason == "stop"
    assert pieces[-1].usage == {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13}


async def test_steps_of_one_read_come_together() -> None:
    """A tuple of steps is one read, and each step may bring several tokens or none that can be seen."""
    engine = ScriptedEngine(Script(((Step("a"), Step("→", 3)), Step("", 2), Step("b"))))
    async with engine.stream(BODY, 100) as reads:
        lists = [[(piece.text, piece.tokens) for piece in pieces] async for pieces in reads]
    assert lists == [[("", 0), ("a", 1), ("→", 4)], [("", 6)], [("b", 7)], [("", 7), ("", 7)]]


async def test_unseen_tokens_are_in_the_usage_alone() -> None:
    """Tokens without a chunk of their own are counted when the usage comes."""
    pieces = await read(ScriptedEngine(Script(say("a"), unseen=2)))
    assert [piece.tokens for piece in pieces] == [0, 1, 1, 3]


async def test_an_end_token_alone_is_a_reply() -> None:
    """A reply of nothing but its end token is one token, not an empty reply."""
    pieces = await read(ScriptedEngine(Script(unseen=1)))
    assert (text(pieces), pieces[-1].tokens) == ("", 1)


async def test_max_tokens_cuts_a_script() -> None:
    """No more than `max_tokens` are made, a character that does not fit is not shown; the reason: length."""
    engine = ScriptedEngine(Script((Step("a"), Step("🦊", 4), Step("b"))))
    pieces = await read(engine, max_tokens=3)
    assert (text(pieces), pieces[-1].tokens, pieces[-2].finish_reason) == ("a", 3, "length")
    assert engine.asked[0].tokens == engine.tokens == 3


async def test_scripts_are_taken_in_turn() -> None:
    """Each request has the next script; the last one serves on; a function makes one from the body."""
    engine = ScriptedEngine(TWO, lambda body: Script(say(body["messages"][0]["content"])))
    assert [text(await read(engine)) for _ in range(3)] == ["one two"] + ["What is a tally stick?"] * 2
    assert [asked.number for asked in engine.asked] == [0, 1, 2]


async def test_babble_is_the_same_for_the_same_seed() -> None:
    """Without a script a reply has exactly `max_tokens` tokens, and is decided by seed and prompt."""
    first, again, other = ScriptedEngine(seed=1), ScriptedEngine(seed=1), ScriptedEngine(seed=2)
    pieces = await read(first)
    assert pieces[-1].tokens == 100
    assert text(pieces) == text(await read(again)) != text(await read(other))
    assert sum(step.tokens for step in babble(33).reads if isinstance(step, Step)) == 33


async def test_a_gate_lets_reads_through_one_by_one() -> None:
    """With a gate nothing is made before it is released."""
    gate = asyncio.Semaphore(0)
    engine = ScriptedEngine(Script(say("a", "b")), gate=gate)
    async with engine.stream(BODY, 100) as reads:
        first = asyncio.ensure_future(anext(reads))
        await asyncio.sleep(0)
        assert engine.tokens == 0
        gate.release()
        assert [piece.text for piece in await first] == ["", "a"]
        assert engine.tokens == 1


async def test_an_event_holds_a_script() -> None:
    """A script goes on when the event in it is set."""
    event = asyncio.Event()
    engine = ScriptedEngine(Script((Step("a"), event, Step("b"))))
    async with engine.stream(BODY, 100) as reads:
        assert (await anext(reads))[-1].text == "a"
        second = asyncio.ensure_future(anext(reads))
        await asyncio.sleep(0)
        assert not second.done()
        event.set()
        assert [piece.text for piece in await second] == ["b"]


async def test_leaving_is_recorded() -> None:
    """Who leaves before the end has cancelled; who stays to the end has not."""
    engine = ScriptedEngine(Script((Step("a"), Hang())), TWO)
    async with engine.stream(BODY, 100) as reads:
        await anext(reads)
    await read(engine)
    assert [(asked.cancelled, asked.over.is_set(), asked.tokens) for asked in engine.asked] == [
        (True, True, 1),
        (False, True, 2),
    ]


@pytest.mark.parametrize("error", [EngineUnavailable("down"), EngineRefused("no"), EngineTimeout("slow")])
async def test_an_error_that_comes_first_refuses(error: EngineError) -> None:
    """An error at a script's head is raised before there is anything to read."""
    engine = ScriptedEngine(Script((error,)))
    with pytest.raises(type(error)):
        async with engine.stream(BODY, 100):
            pytest.fail("the request was taken")
    assert engine.asked[0].over.is_set()
    assert not engine.asked[0].cancelled


async def test_a_later_error_comes_after_what_was_made() -> None:
    """An error in a script's middle is raised once what came before it is read."""
    engine = ScriptedEngine(Script((*say("a", "b"), EngineError("crash"))))
    async with engine.stream(BODY, 100) as reads:
        assert [(await anext(reads))[-1].text for _ in range(2)] == ["a", "b"]
        with pytest.raises(EngineError, match="crash"):
            await anext(reads)
    assert not engine.asked[0].cancelled


async def test_an_empty_script_is_an_engine_that_failed() -> None:
    """A reply without a token is no reply."""
    with pytest.raises(EngineUnavailable):
        await read(ScriptedEngine(Script()))


async def test_refuses_what_llama_cpp_refuses() -> None:
    """A prompt beyond the context, or none, is the payer's to mend."""
    engine = ScriptedEngine(context=10)
    with pytest.raises(EngineRefused, match="exceeds the available context"):
        await engine.count_prompt(BODY)
    with pytest.raises(EngineRefused, match="messages"):
        await read(engine, {"messages": "hello"})
    with pytest.raises(ValueError, match="max_tokens"):
        await read(engine, max_tokens=0)
    assert engine.asked == []


@pytest.fixture
async def client() -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        oai_server(ScriptedEngine(TWO), api_key="a key") as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="a key", max_retries=0) as client,
    ):
        yield client


async def test_openai_s_client_reads_the_server(client: openai.AsyncOpenAI) -> None:
    """The server is one to OpenAI's own client."""
    assert [model.id async for model in client.models.list()] == ["scripted"]
    stream = await client.chat.completions.create(
        model="scripted",
        messages=[{"role": "user", "content": "Hello"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert [chunk.choices[0].delta.content for chunk in chunks if chunk.choices] == [
        None,
        "one",
        " two",
        None,
    ]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 2


async def test_the_server_refuses_a_stranger(client: openai.AsyncOpenAI) -> None:
    """With an API key set, who does not bring it gets nothing."""
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="another").models.list()


ALL = {"timings_per_token": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}


async def counts(form: Form, asks: dict[str, Any]) -> list[tuple[str, int]]:
    """Where a server of that form tells its count of generated tokens, chunk by chunk, to who asks so."""
    told = []
    async with oai_server(ScriptedEngine(TWO), form=form) as url, aiohttp.ClientSession() as session:
        response = await session.post(f"{url}/v1/chat/completions", json={**BODY, **asks})
        for line in (await response.text()).split("\n\n"):
            chunk = json.loads(line[6:]) if line.startswith("data: {") else {}
            if "usage" in chunk:
                told.append(("usage", chunk["usage"]["completion_tokens"]))
            elif "timings" in chunk:
                told.append(("timings", chunk["timings"]["predicted_n"]))
    return told


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ("llama.cpp", [("timings", 1), ("timings", 2), ("usage", 2)]),
        ("continuous usage", [("usage", 0), ("usage", 1), ("usage", 2), ("usage", 2), ("usage", 2)]),
        ("final usage", [("usage", 2)]),
        ("no usage", []),
    ],
)
async def test_a_server_counts_as_its_form_does(form: Form, told: list[tuple[str, int]]) -> None:
    """Asked for all that there is, each form tells what its servers do; not asked, none tells anything."""
    assert await counts(form, ALL) == told
    assert await counts(form, {}) == []
