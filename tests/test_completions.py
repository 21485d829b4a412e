"""Replies over HTTP: what a client sees of them, streamed or in one piece, once and again."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from tallystick import asking, sse
from tallystick.errors import EngineError, EngineRefused, EngineUnavailable, Refusal
from tallystick.testing.engine import Hang, Script, ScriptedEngine, Step, say
from tallystick.types import Totals
from tests.hosting import CHAT, TEXT, Hosting, started
from tests.paying import PROMPT, Signer

# Streams


async def test_stream(hosting: Hosting) -> None:
    """A stream is the engine's chunks, each with a tally, and [DONE] at its end."""
    host = await hosting.serve()
    signer = await hosting.signer()
    *chunks, done = await host.ask(signer)
    assert done == {"done": True}
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert {chunk["model"] for chunk in chunks} == {"scripted"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("tally" in chunk and "usage" not in chunk and "timings" not in chunk for chunk in chunks)
    counts = [chunk["tally"]["tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    last = chunks[-1]
    assert last["choices"][0]["finish_reason"] == "stop"
    assert (last["tally"]["reason"], last["tally"]["due"]) == ("stop", True)
    assert (last["tally"]["prompt_tokens"], last["tally"]["tokens"]) == (PROMPT, 60)


async def test_usage_only_if_asked(hosting: Hosting) -> None:
    """`stream_options.include_usage` adds one chunk without choices, with the usage that is billed."""
    host = await hosting.serve()
    signer = await hosting.signer()
    *chunks, last, _ = await host.ask(signer, stream_options={"include_usage": True})
    assert all(chunk["choices"] and chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": PROMPT,
        "completion_tokens": 60,
        "total_tokens": PROMPT + 60,
    }


async def test_cut_for_money(hosting: Hosting) -> None:
    """A stream that nobody signs for ends within OpenAI's words, and says why in its tally."""
    host = await hosting.serve(ScriptedEngine(Script(say(*"x" * 300))))
    signer = await hosting.signer()
    *_, last, done = await host.ask(signer, signing=False, max_tokens=300)
    assert last["choices"] == [{"index": 0, "delta": {}, "finish_reason": "length"}]
    assert last["tally"]["reason"] == "receipt_due"
    assert done == {"done": True}


async def test_failure_in_the_middle(hosting: Hosting) -> None:
    """An engine that fails after the first byte: an error in OpenAI's shape with a tally, then the end."""
    host = await hosting.serve(ScriptedEngine(Script((*say("a", "b"), EngineError("broken")))))
    signer = await hosting.signer()
    *_, failure, done = await host.ask(signer)
    assert failure["error"]["code"] == "engine_failed"
    assert (failure["tally"]["tokens"], failure["tally"]["reason"]) == (2, "engine_failed")
    assert done == {"done": True}


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (EngineUnavailable("gone"), 503, "engine_unavailable"),
        (EngineRefused("no such tool"), 400, "engine_refused"),
    ],
)
async def test_failure_before_the_first_token(
    hosting: Hosting, error: EngineError, status: int, code: str
) -> None:
    """What fails before its first token has a status of its own, and costs nothing."""
    host = await hosting.serve(ScriptedEngine(Script((error,))))
    signer = await hosting.signer()
    told, refusal = await host.error(signer)
    assert (told, refusal["code"]) == (status, code)
    view = await host.node.desk.view(signer.job.id, signer.access())
    assert view["counted"] == {"prompt_tokens": 0, "tokens": 0}


async def test_a_client_that_leaves(hosting: Hosting) -> None:
    """A client that disconnects frees the engine at once; what it was sent stays in the count."""
    engine = ScriptedEngine(Script((*say("a"), Hang())))
    host = await hosting.serve(engine)
    signer = await hosting.signer()
    async with host.http.post(CHAT, json=signer.body(), headers=signer.headers()) as answer:
        await answer.content.readany()
        answer.close()
    await asyncio.wait_for(engine.asked[0].over.wait(), 10)
    assert engine.asked[0].cancelled
    view = await host.node.desk.view(signer.job.id, signer.access())
    assert view["counted"] == {"prompt_tokens": PROMPT, "tokens": 1}


async def test_a_client_that_does_not_read(hosting: Hosting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that takes nothing for the time limit of a send counts as gone: it holds no engine."""
    monkeypatch.setattr("tallystick.patience.SEND_LIMIT", 0.2)
    engine = ScriptedEngine(Script((Step("x" * 60_000_000), Hang())))
    host = await hosting.serve(engine)
    signer = await hosting.signer()
    _, writer = await asyncio.open_connection(*host.url.removeprefix("http://").split(":"), limit=2**10)
    body = orjson.dumps(signer.body())
    head = f"POST {CHAT} HTTP/1.1\r\nHost: tally\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Authorization: Bearer {signer.bearer()}\r\n\r\n".encode() + body)
    await asyncio.wait_for(started(engine), 10)
    await asyncio.wait_for(engine.asked[0].over.wait(), 10)
    assert engine.asked[0].cancelled
    writer.transport.abort()


async def test_choices(hosting: Hosting) -> None:
    """Several choices come mixed in one stream, each with its end, and all their tokens are one count."""
    engine = ScriptedEngine(*(Script(say(*letter * 5)) for letter in "abc"))
    host = await hosting.serve(engine)
    signer = await hosting.signer()
    *chunks, _ = await host.ask(signer, n=3, seed=5)
    texts = {0: "", 1: "", 2: ""}
    ends: dict[int, str | None] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
            ends[choice["index"]] = choice["finish_reason"] or ends.get(choice["index"])
    assert texts == {0: "aaaaa", 1: "bbbbb", 2: "ccccc"}
    assert ends == {0: "stop", 1: "stop", 2: "stop"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert (chunks[-1]["tally"]["prompt_tokens"], chunks[-1]["tally"]["tokens"]) == (PROMPT, 15)
    assert sorted(asked.body["seed"] for asked in engine.asked) == [5, 6, 7]


async def test_choices_cut_for_money(hosting: Hosting) -> None:
    """Of a stream that ends for money, every choice that was open is told its end."""
    host = await hosting.serve(ScriptedEngine(Script(say(*"x" * 3)), Script(say(*"y" * 300))))
    signer = await hosting.signer()
    *_, last, done = await host.ask(signer, signing=False, n=2, max_tokens=300)
    assert last["choices"] == [{"index": 1, "delta": {}, "finish_reason": "length"}]
    assert (last["tally"]["reason"], done) == ("receipt_due", {"done": True})


PASSED_ON: dict[str, Any] = {
    "stop": ["\n"],
    "logprobs": True,
    "top_logprobs": 2,
    "seed": 7,
    "temperature": 0.5,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "stick", "schema": {"type": "object"}},
    },
    "tools": [{"type": "function", "function": {"name": "split", "parameters": {"type": "object"}}}],
    "tool_choice": "auto",
    "logit_bias": {"5": -100},
    "reasoning_effort": "low",
    "unheard_of": [1, {"a": None}],
}


async def test_passes_on(hosting: Hosting) -> None:
    """What a request says beside what is settled here goes to the engine as it came."""
    engine = ScriptedEngine(Script(say("x")))
    host = await hosting.serve(engine)
    signer = await hosting.signer()
    parts = [{"type": "text", "text": "Why?"}]
    await host.ask(signer, messages=[{"role": "user", "content": parts}], **PASSED_ON)
    body = engine.asked[0].body
    assert {name: body[name] for name in PASSED_ON} == PASSED_ON
    assert body["messages"] == [{"role": "user", "content": parts}]


async def test_other_ends(hosting: Hosting) -> None:
    """An end that OpenAI's clients have no word for is told as `stop`."""
    host = await hosting.serve(ScriptedEngine(Script(say("x"), finish_reason="abort")))
    *_, last, _ = await host.ask(await hosting.signer())
    assert last["choices"][0]["finish_reason"] == "stop"


async def test_tool_calls(hosting: Hosting) -> None:
    """Reasoning and tool calls are text that is signed for, streamed or in one piece."""
    parts = [
        {"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "split"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"in":2}'}}]},
    ]
    steps = (Step(delta={"reasoning_content": "Hm."}), *(Step(delta=part) for part in parts))
    host = await hosting.serve(ScriptedEngine(Script(steps, finish_reason="tool_calls")))
    signer = await hosting.signer()
    *_, last, _ = await host.ask(signer)
    assert last["choices"][0]["finish_reason"] == "tool_calls"
    body = signer.body(2, stream=False, max_tokens=60)
    async with host.http.post(CHAT, json=body, headers=signer.headers()) as answer:
        whole = await answer.json()
    [call] = whole["choices"][0]["message"]["tool_calls"]
    assert call["function"] == {"name": "split", "arguments": '{"in":2}'}
    signer.receive(whole)
    await host.sign(signer)


# Texts that are completed


async def test_completed_text(hosting: Hosting) -> None:
    """A text is completed in a stream of OpenAI's older form, counted and signed for like any other."""
    engine = ScriptedEngine(Script(say(" one", " stick")))
    host = await hosting.serve(engine)
    signer = await hosting.signer()
    body = signer.text_body(prompt="Two halves of", stream=True, stream_options={"include_usage": True})
    async with host.http.post(TEXT, json=body, headers=signer.headers()) as answer:
        events = [orjson.loads(event) for event in sse.SSEParser().feed(await answer.read())[:-1]]
    *chunks, usage = events
    assert {chunk["object"] for chunk in events} == {"text_completion"}
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == " one stick"
    assert [chunk["choices"][0]["logprobs"] for chunk in chunks] == [None] * len(chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert usage["usage"] == {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
    assert engine.asked[0].body["prompt"] == "Two halves of"
    for chunk in chunks:
        signer.receive(chunk)
    await host.sign(signer)
    assert signer.signs.acknowledged == Totals(4, 2)


async def test_completed_texts(hosting: Hosting) -> None:
    """Several prompts, texts or token ids, are completed in one answer: `n` choices of each in turn."""
    engine = ScriptedEngine(*(Script(say(letter)) for letter in "abcd"))
    host = await hosting.serve(engine)
    signer = await hosting.signer()
    body = signer.text_body(prompt=["Two halves", [7, 8, 9]], n=2, max_tokens=10)
    async with host.http.post(TEXT, json=body, headers=signer.headers()) as answer:
        whole = await answer.json()
    assert whole["object"] == "text_completion"
    assert [(choice["index"], choice["text"]) for choice in whole["choices"]] == list(enumerate("abcd"))
    assert whole["usage"] == {"prompt_tokens": 3 + 3, "completion_tokens": 4, "total_tokens": 10}


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [1, "two"]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "echo": True}, "echo"),
    ],
)
def test_malformed_text(members: dict[str, Any], param: str) -> None:
    """What is no text to complete, or asks for what is not done here, is refused by its member's name."""
    with pytest.raises(Refusal) as caught:
        asking.parse_text(orjson.dumps(members))
    assert caught.value.extra == {"param": param}


def test_what_is_taken_of_best_of_is_said() -> None:
    """OpenAI's default may be sent; of any other number it is said which one is taken."""
    assert asking.parse_text(orjson.dumps({"prompt": "a", "best_of": 1})).choices == 1
    with pytest.raises(Refusal, match=r"best_of.*: 1 is all that is taken"):
        asking.parse_text(orjson.dumps({"prompt": "a", "best_of": 2}))


def test_too_many_texts() -> None:
    """Prompts times `n` is the number of choices, and bounded."""
    with pytest.raises(Refusal) as caught:
        asking.parse_text(orjson.dumps({"prompt": ["a"] * 65, "n": 2}))
    assert caught.value.code == "too_many_choices"


# Answers in one piece


async def test_whole(hosting: Hosting) -> None:
    """An answer that is not streamed carries the tally of the last chunk, and OpenAI's usage."""
    host = await hosting.serve()
    signer = await hosting.signer()
    body = signer.body(stream=False, max_tokens=60)
    async with host.http.post(CHAT, json=body, headers=signer.headers()) as answer:
        assert answer.status == 200
        whole = await answer.json()
    assert whole["object"] == "chat.completion"
    assert whole["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "x" * 60, "refusal": None},
            "logprobs": None,
            "finish_reason": "length",
        }
    ]
    assert whole["usage"]["completion_tokens"] == whole["tally"]["tokens"] == 60
    signer.receive(whole)
    await host.sign(signer)
    row = await host.node.ledger.job(signer.job.id)
    assert row is not None
    assert row.claimable == Totals(PROMPT, 60)


# Once more


def keyed(signer: Signer, key: str = "a-key", **headers: str) -> dict[str, str]:
    return {**signer.headers(), "Idempotency-Key": key, **headers}


def events_of(raw: bytes) -> list[tuple[int, str]]:
    """The number and the data of each event."""
    blocks = [block.split("\n") for block in raw.decode().strip().split("\n\n")]
    return [(int(id_.removeprefix("id: ")), data.removeprefix("data: ")) for id_, data in blocks]


async def test_whole_again(hosting: Hosting) -> None:
    """The same key is answered with the same answer, byte for byte, and what it cost is counted once."""
    engine = ScriptedEngine(Script(say("a", "b")), Script(say("other")))
    host = await hosting.serve(engine)
    signer = await hosting.signer()
    answers = []
    for number in (1, 2):
        body = signer.body(number, stream=False, max_tokens=60)
        async with host.http.post(CHAT, json=body, headers=keyed(signer)) as answer:
            assert answer.status == 200
            answers.append((await answer.read(), answer.headers.get("idempotent-replayed")))
    assert answers == [(answers[0][0], None), (answers[0][0], "true")]
    assert len(engine.asked) == 1
    view = await host.node.desk.view(signer.job.id, signer.access())
    assert view["counted"] == {"prompt_tokens": PROMPT, "tokens": 2}


async def test_stream_again(hosting: Hosting) -> None:
    """A stream is sent again as it was; with `Last-Event-ID`, what came after that event."""
    engine = ScriptedEngine(Script(say(*"abcde")))
    host = await hosting.serve(engine)
    signer = await hosting.signer()
    sent = []
    for last in (None, None, "3"):
        headers = keyed(signer, **({} if last is None else {"Last-Event-ID": last}))
        async with host.http.post(CHAT, json=signer.body(), headers=headers) as answer:
            sent.append(events_of(await answer.read()))
    assert sent[1] == sent[0]
    assert sent[2] == sent[0][3:]
    assert [number for number, _ in sent[0]] == list(range(1, len(sent[0]) + 1))
    assert sent[0][-1][1] == "[DONE]"
    assert len(engine.asked) == 1


async def test_a_reply_is_resumed_by_its_own_request(hosting: Hosting) -> None:
    """The payer's request id alone does not do: with another prompt or form nothing of the reply is sent."""
    host = await hosting.serve()
    signer = await hosting.signer()
    async with host.http.post(CHAT, json=signer.body(), headers=signer.headers()) as answer:
        await answer.read()
    resumed = {**signer.headers(), "Last-Event-ID": "1"}
    other = signer.body(messages=[{"role": "user", "content": "What else?"}])
    with_usage = signer.body(stream_options={"include_usage": True})
    for body, status in (
        (other, 422),
        (signer.body(stream=False), 422),
        (with_usage, 422),
        (signer.body(), 200),
    ):
        async with host.http.post(CHAT, json=body, headers=resumed) as answer:
            assert answer.status == status
            if status == 422:
                assert (await answer.json())["error"]["code"] == "idempotency_mismatch"


async def test_at_once(hosting: Hosting) -> None:
    """Requests with one key at the same time are one request: the later ones get what the first one gets."""
    gate = asyncio.Semaphore(0)
    engine = ScriptedEngine(Script(say(*"abc")), gate=gate)
    host = await hosting.serve(engine)
    signer = await hosting.signer()
    body = signer.body(stream=False, max_tokens=60)

    async def ask() -> bytes:
        async with host.http.post(CHAT, json=body, headers=keyed(signer)) as answer:
            assert answer.status == 200
            return await answer.read()

    asking = [asyncio.create_task(ask()) for _ in range(3)]
    await started(engine)
    for _ in range(3):
        gate.release()
    assert len(set(await asyncio.gather(*asking))) == 1
    assert len(engine.asked) == 1


async def test_what_failed_may_be_asked_again(hosting: Hosting) -> None:
    """A request that was refused has used up no key."""
    engine = ScriptedEngine(Script((EngineUnavailable("gone"),)), Script(say("a")))
    host = await hosting.serve(engine)
    signer = await hosting.signer()
    statuses = []
    for number in (1, 2):
        body = signer.body(number, stream=False, max_tokens=60)
        async with host.http.post(CHAT, json=body, headers=keyed(signer)) as answer:
            statuses.append(answer.status)
    assert statuses == [503, 200]


async def test_a_client_that_comes_back(hosting: Hosting) -> None:
    """A stream that was cut is resumed by its request id: what was counted is sent again, and paid once."""
    engine = ScriptedEngine(Script((*say(*"abc"), Hang())))
    host = await hosting.serve(engine)
    signer = await hosting.signer()
    body = signer.body()
    async with host.http.post(CHAT, json=body, headers=signer.headers()) as answer:
        await answer.content.readuntil(b"\n\n")
        answer.close()
    await asyncio.wait_for(engine.asked[0].over.wait(), 10)
    headers = {**signer.headers(), "Last-Event-ID": "1"}
    async with host.http.post(CHAT, json=body, headers=headers) as answer:
        *events, (_, done) = events_of(await answer.read())
    chunks = [orjson.loads(event) for _, event in events]
    assert [number for number, _ in events] == list(range(2, 2 + len(events)))
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]) in "abc"
    assert (chunks[-1]["tally"]["reason"], done) == ("cancelled", "[DONE]")
    assert len(engine.asked) == 1
    view = await host.node.desk.view(signer.job.id, signer.access())
    assert view["counted"]["tokens"] == chunks[-1]["tally"]["tokens"]


async def test_a_client_that_comes_back_in_time(hosting: Hosting) -> None:
    """A stream whose client has come back on another connection goes on when the first one breaks."""
    gate = asyncio.Semaphore(0)
    engine = ScriptedEngine(Script(say(*"abcdef")), gate=gate)
    host = await hosting.serve(engine)
    signer = await hosting.signer()
    body = signer.body()
    gate.release()
    async with host.http.post(CHAT, json=body, headers=keyed(signer)) as first:
        begun = await first.content.readuntil(b"\n\n")
        async with host.http.post(CHAT, json=body, headers=keyed(signer)) as second:
            again = await second.content.readuntil(b"\n\n")
            assert again == begun
            first.close()
            for _ in range(5):
                gate.release()
            rest = events_of(await second.read())
    assert rest[-1][1] == "[DONE]"
    assert orjson.loads(rest[-2][1])["tally"]["reason"] == "stop"
    assert engine.asked[0].tokens == 6


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Idempotency-Key": ""}, 400, "invalid_request"),
        ({"Idempotency-Key": "k" * 256}, 400, "invalid_request"),
        ({"Last-Event-ID": "one"}, 400, "invalid_request"),
        ({"Last-Event-ID": "1"}, 410, "reply_gone"),
        ({"Idempotency-Key": "used"}, 422, "idempotency_mismatch"),
        ({"Idempotency-Key": "used", "Last-Event-ID": "99"}, 422, "idempotency_mismatch"),
    ],
)
async def test_what_cannot_be_sent_again(
    hosting: Hosting, headers: dict[str, str], status: int, code: str
) -> None:
    """A key of another request, an event that nobody was sent, a header that is none: each is refused."""
    host = await hosting.serve()
    signer = await hosting.signer()
    async with host.http.post(CHAT, json=signer.body(), headers=keyed(signer, "used")) as answer:
        await answer.read()
    other = signer.body(2, messages=[{"role": "user", "content": "What else?"}])
    async with host.http.post(CHAT, json=other, headers={**signer.headers(), **headers}) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (status, code)


async def test_stored_answers_are_the_job_s_own(hosting: Hosting) -> None:
    """Another job's bearer, or a forged one of this job, gets nothing of a stored answer."""
    engine = ScriptedEngine(Script(say("secret")), Script(say("other")))
    host = await hosting.serve(engine)
    owner, stranger = await hosting.signer(), await hosting.signer()
    body = owner.body(stream=False, max_tokens=60)
    async with host.http.post(CHAT, json=body, headers=keyed(owner)) as answer:
        assert b"secret" in await answer.read()
    async with host.http.post(CHAT, json=body, headers=keyed(stranger)) as answer:
        assert (answer.status, b"secret" in await answer.read()) == (200, False)
    forged = {**keyed(owner), **owner.headers(key=stranger.key)}
    async with host.http.post(CHAT, json=body, headers=forged) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (401, "access_forged")


async def test_low_balance(hosting: Hosting) -> None:
    """A reply that begins with a fifth of the deposit left says so in a header."""
    host = await hosting.serve(ScriptedEngine(Script(say("a"))))
    signer = await hosting.signer(deposit=10)
    lows = []
    for number in (1, 2, 3):
        body = signer.body(number, stream=False, max_tokens=1)
        async with host.http.post(CHAT, json=body, headers=signer.headers()) as answer:
            assert answer.status == 200
            lows.append(answer.headers.get("tally-balance"))
            signer.receive(await answer.json())
        await host.sign(signer)
    assert lows == [None, None, "low"]
