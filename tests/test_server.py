"""The routes of protocol §7, over real sockets: what a client sees, and what is refused how."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import orjson
import pytest

from tallystick import wire
from tallystick.errors import EngineError, EngineRefused, EngineUnavailable, Refusal
from tallystick.peer import secure
from tallystick.testing.engine import Hang, Script, ScriptedEngine, Step, say
from tallystick.types import Totals
from tests.hosting import CHAT, TEXT, Host, Hosting
from tests.paying import PROMPT, Signer, until

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
    monkeypatch.setattr("tallystick.server.SEND_LIMIT", 0.2)
    engine = ScriptedEngine(Script((Step("x" * 60_000_000), Hang())))
    host = await hosting.serve(engine)
    signer = await hosting.signer()
    _, writer = await asyncio.open_connection(*host.url.removeprefix("http://").split(":"), limit=2**10)
    body = orjson.dumps(signer.body())
    head = f"POST {CHAT} HTTP/1.1\r\nHost: tally\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Authorization: Bearer {signer.bearer()}\r\n\r\n".encode() + body)
    await asyncio.wait_for(_started(engine), 10)
    await asyncio.wait_for(engine.asked[0].over.wait(), 10)
    assert engine.asked[0].cancelled
    writer.transport.abort()


async def _started(engine: ScriptedEngine) -> None:
    async def asked() -> bool:
        return bool(engine.asked)

    await until(asked)


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
        events = [orjson.loads(event) for event in wire.SSEParser().feed(await answer.read())[:-1]]
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
        ({"prompt": ["a"] * 65, "n": 2}, "n"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "echo": True}, "echo"),
    ],
)
def test_malformed_text(members: dict[str, Any], param: str) -> None:
    """What is no text to complete, or asks for what is not done here, is refused by its member's name."""
    with pytest.raises(Refusal) as caught:
        wire.parse_text(orjson.dumps(members))
    assert caught.value.extra == {"param": param}


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


# Refusals


async def test_unknown_routes_and_methods(hosting: Hosting) -> None:
    """What is no route, and no method of a route, is a problem like any other."""
    host = await hosting.serve()
    assert (await host.problem("GET", "/nothing"))["code"] == "not_found"
    async with host.http.get("/v1/embeddings") as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (404, "not_found")
    assert (await host.problem("DELETE", "/v1/host"))["code"] == "not_allowed"
    async with host.http.get(CHAT) as answer:
        assert answer.status == 405
        assert answer.headers["allow"] == "POST"
        assert (await answer.json())["error"]["code"] == "not_allowed"


async def test_malformed(hosting: Hosting) -> None:
    """A body that cannot be used is refused by its member's name, before anything else is looked at."""
    host = await hosting.serve()
    signer = await hosting.signer()
    status, error = await host.error(signer, n=0)
    assert (status, error["code"], error["param"]) == (400, "invalid_request", "n")
    async with host.http.post(CHAT, data=b"{", headers=signer.headers()) as answer:
        assert (await answer.json())["error"]["code"] == "invalid_request"
    async with host.http.post(CHAT, data=io.BytesIO(bytes(wire.MAX_BODY + 1))) as answer:
        assert answer.status == 413
        assert (await answer.json())["error"]["code"] == "too_large"


async def test_access(hosting: Hosting) -> None:
    """Without a bearer that holds nothing is served, and 401 says which scheme is wanted."""
    host = await hosting.serve()
    signer = await hosting.signer()
    async with host.http.post(CHAT, json=signer.body()) as answer:
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert (await answer.json())["error"]["code"] == "access_missing"
    path = f"/v1/jobs/{signer.job.id}"
    for headers, code in (
        ({"Authorization": "Bearer sk-123"}, "access_malformed"),
        ({"Authorization": "Basic dTpw"}, "access_malformed"),
        (signer.headers(expires_at=1), "access_expired"),
        (signer.headers() | {"X-Forwarded-Proto": "http"}, "tls_required"),
    ):
        assert (await host.problem("GET", path, headers=headers))["code"] == code
    other = f"/v1/jobs/{signer.job.id + 1}"
    problem = await host.problem("GET", other, headers=signer.headers())
    assert problem["code"] == "job_mismatch"
    assert problem["detail"].startswith("The path names job")


@pytest.mark.parametrize("job_id", ["0", "-1", str(2**53), str(2**257), "9" * 5000, "1.5", "one", "٣"])
async def test_what_no_job_can_be_called(hosting: Hosting, job_id: str) -> None:
    """A path with a number that no job can have is answered before the chain is asked for it."""
    host = await hosting.serve()
    signer = await hosting.signer()
    end = {"end": "0x" + signer.end().hex()}
    for method, route in (("GET", ""), ("POST", "/receipts"), ("POST", "/complete")):
        path = f"/v1/jobs/{job_id}{route}"
        assert (await host.problem(method, path, json=end, headers=signer.headers()))["code"] == "not_found"


@pytest.mark.parametrize(
    ("scheme", "peer", "forwarded", "good"),
    [
        ("https", "203.0.113.9", None, True),
        ("wss", "203.0.113.9", "http", True),
        ("http", "127.0.0.1", None, True),
        ("http", "::1", None, True),
        ("http", "::ffff:127.0.0.1", None, True),
        ("http", None, None, True),
        ("http", "127.0.0.1", "https", True),
        ("http", "127.0.0.1", "http", False),
        ("http", "203.0.113.9", None, False),
        ("http", "203.0.113.9", "https", False),
        ("http", "10.0.0.7", "https", True),
        ("http", "10.0.0.7", "https, http", False),
        ("http", "10.0.0.7", None, False),
        ("http", "10.0.0.8", "https", False),
    ],
)
def test_in_the_clear(scheme: str, peer: str | None, forwarded: str | None, good: bool) -> None:
    """A bearer is taken over TLS, from this machine, or from a proxy trusted to have ended the TLS."""
    assert secure(scheme, peer, forwarded, ["10.0.0.7/32"]) is good


async def test_fault(hosting: Hosting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the node's own is told as one, without its innards."""
    host = await hosting.serve()
    monkeypatch.setattr(host.node, "quote", lambda: 1 / 0)
    problem = await host.problem("GET", "/v1/host")
    assert (problem["code"], problem["status"]) == ("node_failed", 500)
    assert "division" not in str(problem)


# Jobs


async def test_job(hosting: Hosting) -> None:
    """The host's view of a job is there before its first request, and follows it to its end."""
    host = await hosting.serve()
    signer = await hosting.signer()
    path = f"/v1/jobs/{signer.job.id}"
    async with host.http.get(path, headers=signer.headers()) as answer:
        view = await answer.json()
    assert (view["status"], view["deposit"], view["left"], view["receipt"]) == (
        "open",
        "2000000",
        "2000000",
        None,
    )
    await host.ask(signer)
    async with host.http.post(f"{path}/complete", json={"end": "0x" + signer.end().hex()}) as answer:
        assert answer.status == 202
        view = await answer.json()
    assert (view["ended"], view["counted"], view["receipt"]["tokens"]) == (
        True,
        {"prompt_tokens": PROMPT, "tokens": 60},
        60,
    )


async def test_stored_receipt(hosting: Hosting) -> None:
    """A receipt that comes again is answered with the stored one; one of another job is refused."""
    host = await hosting.serve()
    signer = await hosting.signer()
    await host.ask(signer)
    path = f"/v1/jobs/{signer.job.id}/receipts"
    assert signer.signs.last is not None
    last = wire.receipt_out(signer.signs.last)
    async with host.http.post(path, json=last, headers=signer.headers()) as answer:
        assert (await answer.json())["stored"] == last
    problem = await host.problem("POST", "/v1/jobs/999/receipts", json=last, headers=signer.headers())
    assert problem["code"] == "job_mismatch"


async def test_offer(hosting: Hosting) -> None:
    """The quote and the models say what a job has to look like; the probes say whether it would be served."""
    host = await hosting.serve()
    async with host.http.get("/v1/host") as answer:
        quote = await answer.json()
    assert quote["host"] == hosting.devnet.accounts.host.address
    assert quote["paid"]
    dollar = {"per_million": "900000", "prompt_per_million": "200000"}
    assert quote["models"] == [{"name": "scripted", "prices": {hosting.devnet.dollar: dollar}}]
    async with host.http.get("/v1/models") as answer:
        [model] = (await answer.json())["data"]
    assert (model["id"], model["object"], model["prices"]) == (
        "scripted",
        "model",
        {hosting.devnet.dollar: dollar},
    )
    for probe in ("/healthz", "/readyz"):
        async with host.http.get(probe) as answer:
            assert answer.status == 200
    async with host.http.get("/readyz") as answer:
        assert (await answer.json())["engines"] == [{"streams": 0, "why": None}]


async def test_stopping(hosting: Hosting) -> None:
    """A server that stops lets its replies end, with their reason, before it closes their connections."""
    engine = ScriptedEngine(Script((*say("a"), Hang())))
    host = await hosting.serve(engine)
    signer = await hosting.signer()
    asking = asyncio.create_task(host.ask(signer))
    await _started(engine)
    await until(lambda: _delivered(host, signer))
    await host.node.desk.stop(5.0)
    *_, last, done = await asking
    assert (last["tally"]["reason"], done) == ("node_stopping", {"done": True})
    status, error = await host.error(signer)
    assert (status, error["code"]) == (503, "node_stopping")
    async with host.http.get("/readyz") as answer:
        assert answer.status == 503


async def _delivered(host: Host, signer: Signer) -> bool:
    view = await host.node.desk.view(signer.job.id, signer.access())
    return bool(view["counted"]["tokens"])
