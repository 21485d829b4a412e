"""The proxy, in front of a real node whose engine follows a script: any client asks, and is paid for."""

from __future__ import annotations

import asyncio
import logging
import shutil
import warnings
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import openai
import orjson
import pytest
from starlette.datastructures import Headers
from structlog.testing import capture_logs

from tallystick import exchange, pricing, sse
from tallystick import proxy as proxies
from tallystick.caps import Caps
from tallystick.chain import Chain
from tallystick.config import Secret
from tallystick.devnet import Devnet
from tallystick.errors import ConfigError, Refusal
from tallystick.proxy import Door, alone
from tallystick.testing.engine import Hang, Script, ScriptedEngine, say
from tallystick.types import JobStatus, Totals
from tests import test_clients
from tests.buying import DEPOSIT, MESSAGES, Bench, Proxy
from tests.conftest import missing
from tests.hosting import started
from tests.paying import register, until
from tests.severing import Line
from tests.stories.parties import free_port


@pytest.fixture
async def bench(devnet: Devnet, chain: Chain, tmp_path: Path) -> AsyncIterator[Bench]:
    await register(devnet, chain)
    async with AsyncExitStack() as parts:
        yield Bench(devnet, chain, tmp_path, parts)


async def test_an_unmodified_client_is_answered_and_the_host_is_paid(bench: Bench) -> None:
    """An answer in one piece, longer than the credit, is streamed, signed for, told in money, and settled."""
    proxy = await bench.proxy(await bench.serve(Script(say(*["word "] * 230))))
    before, _ = await bench.money()
    answer = await proxy.ask()
    [used] = proxy.spender.jobs
    job = used.session.job
    assert answer.choices[0].message.content == "word " * 230
    assert answer.usage.completion_tokens == 230
    assert answer.usage.tally["tokens"] == 230
    await used.session.flush()
    value = pricing.value(used.session.receipted, job.prices)
    assert pricing.to_units(answer.usage.tally["cost"], 12) == value
    await proxy.parts.aclose()
    closed = await bench.chain.job(job.id)
    assert closed is not None
    assert closed.status is JobStatus.CLOSED
    after, _ = await bench.money()
    assert before - after == closed.owed == pricing.owed(closed.settled, job.prices)
    assert closed.settled.tokens == 230


async def test_a_stream_comes_as_it_is_made(bench: Bench) -> None:
    """Streamed, each piece is there before the next one is made; the last ones tell usage and cost."""
    gate = asyncio.Event()
    url = await bench.serve(Script((*say("a", "b"), gate, *say("c"))))
    proxy = await bench.proxy(url)
    stream = await proxy.ask(stream=True, stream_options={"include_usage": True})
    text, usage, reasons = "", None, []
    async for chunk in stream:
        text += chunk.choices[0].delta.content or "" if chunk.choices else ""
        if text == "ab":
            gate.set()
        reasons += [choice.finish_reason for choice in chunk.choices if choice.finish_reason]
        usage = chunk.usage or usage
    assert text == "abc"
    assert reasons == ["stop"]
    assert usage is not None
    assert usage.completion_tokens == 3
    assert usage.model_extra["tally"]["asset"] == "tUSD"


async def test_requests_side_by_side_share_one_job(bench: Bench) -> None:
    """Many requests at once are paid from one job; its total is their sum."""
    proxy = await bench.proxy(await bench.serve(Script(say(*["a "] * 40))))
    answers = await asyncio.gather(*(proxy.ask(max_tokens=60) for _ in range(12)))
    assert [answer.usage.completion_tokens for answer in answers] == [40] * 12
    [used] = proxy.spender.jobs
    await used.session.flush()
    assert used.session.receipted.tokens == 480


@pytest.mark.parametrize(
    ("interval", "words"), [(100, [600] * 8 + [10] * 4 + [2_400]), (4, [10] * 8), (4, [1, 10, 50] * 4)]
)
async def test_prompts_beyond_the_credit_are_asked_for_at_once(
    bench: Bench, interval: int, words: list[int]
) -> None:
    """Law 3: long ones beside short ones are all served, and signed for to the token."""
    proxy = await bench.proxy(await bench.serve(Script(say(*["a "] * 12))), settings={"interval": interval})

    async def ask(number: int) -> Any:
        messages: Any = [{"role": "user", "content": "why " * number}]
        return await proxy.client.chat.completions.create(model="scripted", messages=messages, max_tokens=50)

    answers = await asyncio.gather(*map(ask, words))
    assert [answer.usage.completion_tokens for answer in answers] == [12] * len(words)
    [used] = proxy.spender.jobs
    await used.session.flush()
    assert used.session.receipted == Totals(sum(words) + 6 * len(words), 12 * len(words))


async def test_a_client_that_leaves_pays_for_what_came(bench: Bench) -> None:
    """Whoever stops reading ends the reply at the host; what had come is signed for, and no more."""
    proxy = await bench.proxy(await bench.serve(Script((*say(*["a "] * 30), Hang())), Script(say("b"))))
    stream = await proxy.ask(stream=True)
    came = 0
    async for chunk in stream:
        came += bool(chunk.choices and chunk.choices[0].delta.content)
        if came == 30:
            break
    await stream.close()
    assert (await proxy.ask()).choices[0].message.content == "b"
    [used] = proxy.spender.jobs
    await used.session.flush()
    assert used.session.receipted.tokens == 31


# Stopping


async def read_events(proxy: Proxy) -> AsyncGenerator[dict[str, Any] | None, None]:
    """The events of a streamed reply; None for the mark at its end."""
    body = {"messages": MESSAGES, "stream": True, "max_tokens": 300}
    parser = sse.SSEParser()
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{proxy.url}/chat/completions", json=body) as answer,
    ):
        async for data in answer.content.iter_any():
            for payload in parser.feed(data):
                yield None if payload == b"[DONE]" else orjson.loads(payload)


@pytest.mark.parametrize(
    ("hears", "reason"), [pytest.param(True, "cancelled", id="heard"), (False, "proxy_stopping")]
)
async def test_a_proxy_that_stops_ends_its_streams_in_order(
    bench: Bench,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    *,
    hears: bool,
    reason: str,
) -> None:
    """A client has a finish reason, the tally and the mark; the log has no fault."""
    monkeypatch.setattr(exchange, "LEAVING", 0.5)
    deaf = False
    url = await bench.serve(Script((*say(*["a "] * 30), Hang())))
    line = await bench.parts.enter_async_context(Line(url, lambda sent: b"" if deaf else None))
    proxy = await bench.proxy(line.url)
    events: list[dict[str, Any]] = []
    async with aclosing(read_events(proxy)) as reading:
        while len(events) < 30:
            events.append(await reading.__anext__() or {})
        deaf = not hears
        stopping = asyncio.create_task(proxy.parts.aclose())
        rest = [event async for event in reading]
    if deaf:
        line.cut()
    await stopping
    *_, last, mark = rest
    assert mark is None
    assert last is not None
    assert [choice["finish_reason"] for choice in last["choices"]] == ["length"]
    assert (last["tally"]["reason"], last["tally"]["tokens"]) == (reason, 30)
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_proxy_that_stops_begins_nothing(bench: Bench) -> None:
    """Who waits for a first token is told, and so is who comes meanwhile."""
    engine = ScriptedEngine(Script((Hang(),)))
    proxy = await bench.proxy(await bench.serve(engine=engine))
    asking = asyncio.create_task(proxy.ask())
    await started(engine)
    await proxy.gateway.stop()
    for waiting in (asking, proxy.ask()):
        with pytest.raises(openai.APIStatusError) as refused:
            await waiting
        assert (refused.value.status_code, refused.value.code) == (503, "proxy_stopping")


async def test_who_never_finishes_asking_holds_up_no_end(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that neither reads nor writes is left, without a word in the log."""
    monkeypatch.setattr(proxies, "CLOSE_CONNECTIONS", 0.2)
    proxy = await bench.proxy(await bench.serve(Script(say("a"))))
    address = urlsplit(proxy.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: 100\r\n\r\n{{".encode())
    await writer.drain()
    async with asyncio.timeout(5):
        await proxy.parts.aclose()
    with suppress(ConnectionResetError):
        assert await reader.read() == b""
    writer.close()
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_completed_texts_are_paid_for_as_well(bench: Bench) -> None:
    """The older API, whole and streamed, with several choices."""
    proxy = await bench.proxy(await bench.serve(Script(say("two", " halves"))))
    how: dict[str, Any] = {"model": "scripted", "prompt": "A stick has", "n": 2}
    whole = await proxy.client.completions.create(**how)
    assert [choice.text for choice in whole.choices] == ["two halves"] * 2
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 4
    stream = await proxy.client.completions.create(**how, stream=True)
    texts = [choice.text async for chunk in stream for choice in chunk.choices]
    assert sorted("".join(texts)) == sorted("two halves" * 2)


async def test_a_request_beyond_the_caps_is_final(bench: Bench) -> None:
    """Nothing is asked of a host, the client does not repeat it, and the error says whose move it is."""
    proxy = await bench.proxy(await bench.serve(Script(say("a"))), Caps(100, 100))
    client = proxy.client.with_options(max_retries=3)
    with pytest.raises(openai.APIStatusError) as refused:
        await client.chat.completions.create(model="scripted", messages=MESSAGES, max_tokens=10_000)
    assert refused.value.status_code == 402
    assert refused.value.code == "cap_reached"
    assert isinstance(refused.value.body, dict)
    assert refused.value.body["move"] == "payer"
    assert "--deposit leaves 100" in refused.value.message
    assert proxy.spender.jobs == []


async def test_a_long_prompt_goes_to_the_host(bench: Bench) -> None:
    """Who is let in may send as long a body as a host takes: the host knows its model's context."""
    proxy = await bench.proxy(await bench.serve(Script(say("a"))))
    with pytest.raises(openai.BadRequestError, match="exceeds the available context size") as refused:
        await proxy.client.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": "word " * 60_000}]
        )
    assert refused.value.code == "engine_refused"


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({"model": "another"}, 404, "model_unknown"),
        ({"n": 0}, 400, "invalid_request"),
        ({"messages": []}, 400, "invalid_request"),
        ({"max_tokens": 5000}, 400, "context_exceeded"),
    ],
)
async def test_refusals_have_the_reference_apis_shape(
    bench: Bench, asked: dict[str, Any], status: int, code: str
) -> None:
    """The host's refusals and the proxy's own reach the client with status, code and mend."""
    proxy = await bench.proxy(await bench.serve(Script(say("a"))))
    with pytest.raises(openai.APIStatusError) as refused:
        await proxy.client.chat.completions.create(**{"model": "scripted", "messages": MESSAGES, **asked})
    assert (refused.value.status_code, refused.value.code) == (status, code)
    assert isinstance(refused.value.body, dict)
    assert refused.value.body["mend"]


async def test_a_host_that_is_gone_is_told_as_such(bench: Bench) -> None:
    """Without its host the proxy answers at once, with a status that clients may try again after."""
    proxy = await bench.proxy(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(openai.InternalServerError) as refused:
        await proxy.ask()
    assert (refused.value.status_code, refused.value.code) == (503, "host_unreachable")


async def test_a_job_that_was_ended_elsewhere_is_followed_by_another(bench: Bench) -> None:
    """A job that takes no more requests is replaced, and the client's request is answered all the same."""
    url = await bench.serve(Script(say(*["a "] * 30)))
    proxy = await bench.proxy(url, Caps(DEPOSIT, 2 * DEPOSIT))
    first = await proxy.ask()
    [used] = proxy.spender.jobs
    await used.session.flush()
    wallet = proxy.spender.wallet
    await wallet.transact(bench.chain.complete_session(used.session.job.id))

    async def closed() -> bool:
        job = await bench.chain.job(used.session.job.id)
        return job is not None and job.status is JobStatus.CLOSED

    await until(closed)
    second = await proxy.ask()
    assert second.choices[0].message.content == "a " * 30
    assert second.usage.tally["job_id"] != first.usage.tally["job_id"]


async def test_a_host_that_comes_back_is_gone_on_with(bench: Bench) -> None:
    """After a restart of the host the next request connects again, and is paid from the same job."""
    port = free_port()
    node = await bench.parts.enter_async_context(AsyncExitStack())
    url = await bench.serve(Script(say(*["a "] * 30)), parts=node, port=port)
    proxy = await bench.proxy(url)
    first = await proxy.ask()
    await node.aclose()
    with pytest.raises(openai.InternalServerError):
        await proxy.ask()
    await bench.serve(Script(say(*["b "] * 30)), port=port)
    again = await proxy.ask()
    assert again.choices[0].message.content == "b " * 30
    assert again.usage.tally["job_id"] == first.usage.tally["job_id"]


async def test_models_are_those_that_the_caps_allow(bench: Bench) -> None:
    """A client sees what it can ask for."""
    url = await bench.serve(Script(say("a")), models=("one", "two"))
    proxy = await bench.proxy(url, Caps(DEPOSIT, DEPOSIT, 1, {"two": 900_000}))
    assert [model.id async for model in proxy.client.models.list()] == ["two"]
    assert (await proxy.client.models.retrieve("two")).id == "two"
    with pytest.raises(openai.NotFoundError):
        await proxy.client.models.retrieve("one")


# The door


def headers(**given: str) -> Headers:
    """Of a program's request, but for what is given."""
    named = {name.replace("_", "-"): value for name, value in given.items()}
    return Headers({"host": "127.0.0.1:4402", "content-type": "application/json", **named})


@pytest.mark.parametrize(
    "given",
    [
        {"host": "localhost:4402"},
        {"host": "[::1]:4402"},
        {"origin": "http://127.0.0.1:4402", "sec_fetch_site": "same-origin"},
        {"sec_fetch_site": "none"},
        {"content_type": "application/json; charset=utf-8"},
    ],
)
def test_programs_of_this_machine_are_let_in(given: dict[str, str]) -> None:
    """So are the proxy's own pages."""
    Door("127.0.0.1", 4402).check("POST", "/v1/chat/completions", headers(**given))


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"host": "evil.example:4402"}, "page_refused"),
        ({"host": "127.0.0.1"}, "page_refused"),
        ({"host": "127.0.0.1:80"}, "page_refused"),
        ({"origin": "https://evil.example"}, "page_refused"),
        ({"origin": "null"}, "page_refused"),
        ({"origin": "http://127.0.0.1:8080"}, "page_refused"),
        ({"sec_fetch_site": "cross-site"}, "page_refused"),
        ({"sec_fetch_site": "same-site"}, "page_refused"),
        ({"content_type": "text/plain"}, "json_required"),
        ({"content_type": "application/x-www-form-urlencoded"}, "json_required"),
        ({"content_type": ""}, "json_required"),
    ],
)
def test_pages_are_turned_away(given: dict[str, str], code: str) -> None:
    """What a page can have a browser send is never served, under whatever name the page came here."""
    with pytest.raises(Refusal) as refused:
        Door("127.0.0.1", 4402).check("POST", "/v1/chat/completions", headers(**given))
    assert refused.value.code == code


@pytest.mark.parametrize("shown", ["", "Bearer", "Bearer another", "Basic secret"])
def test_with_a_key_nobody_is_let_in_without_it(shown: str) -> None:
    """The key is asked of every route but the one that says that the proxy is alive."""
    door = Door("0.0.0.0", 4402, Secret("secret"))
    with pytest.raises(Refusal) as refused:
        door.check("GET", "/v1/models", headers(host="any.example", authorization=shown))
    assert refused.value.code == "key_refused"
    door.check("GET", "/v1/models", headers(host="any.example", authorization="Bearer secret"))
    door.check("GET", "/healthz", headers(host="any.example"))


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.7"])
def test_elsewhere_than_on_loopback_it_needs_a_key(address: str) -> None:
    """Whoever reaches the port spends: without a key it is not opened to a network."""
    with pytest.raises(ConfigError, match="PROXY_API_KEY"):
        Door(address, 4402)


@pytest.mark.parametrize("name", ["foo", "host.example", "127.0.0.256"])
def test_what_is_listened_on_is_an_address(name: str) -> None:
    """A name, which may lead anywhere, is refused in words."""
    with pytest.raises(ConfigError, match=f"PROXY_LISTEN {name}: .*an IP address or localhost"):
        Door(name, 4402)


def test_one_proxy_has_the_store(tmp_path: Path) -> None:
    """Two that pay from the same jobs would sign against each other."""
    with alone(tmp_path), pytest.raises(ConfigError, match="another proxy"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


@pytest.mark.parametrize(
    "sent",
    [
        {"Host": "rebound.example"},
        {"Origin": "https://evil.example"},
        {"Content-Type": "text/plain"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
async def test_what_a_page_sends_spends_nothing(bench: Bench, sent: dict[str, str]) -> None:
    """The page that posts, and the name that was rebound, over a socket: refused, and no job is opened."""
    proxy = await bench.proxy(await bench.serve(Script(say("a"))))
    body = b'{"model": "scripted", "messages": [{"role": "user", "content": "Why?"}]}'
    named = {"Content-Type": "application/json", **sent}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{proxy.url}/chat/completions", data=body, headers=named) as answer,
    ):
        assert answer.status in (403, 415)
        assert "access-control-allow-origin" not in answer.headers
    assert proxy.spender.jobs == []


async def test_a_host_cannot_have_the_proxy_ask_itself(bench: Bench) -> None:
    """Such a request would pass the door, as a program's does: it is not made, and the host to blame."""
    asked: list[bytes] = []

    def lead(sent: bytes) -> bytes | None:
        if not sent.startswith(b"POST /v1/chat/completions "):
            return None
        asked.append(sent)
        to = f"location: {proxy.url}/chat/completions"
        return f"HTTP/1.1 307 Temporary Redirect\r\n{to}\r\ncontent-length: 0\r\n\r\n".encode()

    line = await bench.parts.enter_async_context(Line(await bench.serve(Script(say("a"))), lead))
    proxy = await bench.proxy(line.url)
    with capture_logs() as logs, pytest.raises(openai.APIStatusError, match="HTTP 307") as refused:
        await proxy.ask()
    assert refused.value.code == "host_unreachable"
    assert len(asked) == 1
    assert [line["trouble"] for line in logs if line["event"] == "host.set_aside"] == ["failed"]


async def test_a_preflight_is_not_answered(bench: Bench) -> None:
    """A browser that asks whether a page may ask is told no."""
    proxy = await bench.proxy(await bench.serve(Script(say("a"))))
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    async with (
        aiohttp.ClientSession() as http,
        http.options(f"{proxy.url}/chat/completions", headers=asked) as answer,
    ):
        assert answer.status == 403
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]


class Anybody:
    """What a proxy without a key asks of its clients."""

    def bearer(self) -> str:
        return "-"


async def anybody() -> Any:
    return Anybody()


async def test_the_python_client_needs_no_signature_of_its_own(bench: Bench, tmp_path: Path) -> None:
    """Each method does on a receipted job what it does on a host-attested one: served, or refused alike."""
    proxy = await bench.proxy(await bench.serve(engine=test_clients.engine()))
    file = tmp_path / "halves.txt"
    file.write_text("2")
    expected = test_clients.table("python")[0]
    host: Any = SimpleNamespace(url=proxy.url.removesuffix("/v1"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the client's own, of methods that it keeps
        outcomes = await test_clients.PythonRun(host, anybody, file).outcomes(expected)
    assert outcomes == expected


async def test_the_javascript_client_needs_no_signature_of_its_own(
    bench: Bench,
) -> None:
    """The same, method by method, for the official JavaScript client."""
    proxy = await bench.proxy(await bench.serve(engine=test_clients.engine()))
    expected = test_clients.table("javascript")[0]
    host: Any = SimpleNamespace(url=proxy.url.removesuffix("/v1"))
    assert await test_clients.javascript(host, dict.fromkeys(expected, "-")) == expected


async def test_curl_is_a_client(bench: Bench) -> None:
    """A line of curl streams, and ends as the reference API does."""
    curl = shutil.which("curl") or missing("curl")
    proxy = await bench.proxy(await bench.serve(Script(say("a", "b"))))
    body = '{"messages": [{"role": "user", "content": "Why?"}], "stream": true}'
    command = (
        curl,
        "-sN",
        f"{proxy.url}/chat/completions",
        "-H",
        "Content-Type: application/json",
        "-d",
        body,
    )
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    told, _ = await process.communicate()
    events = [line.removeprefix(b"data: ") for line in told.split(b"\n\n") if line]
    assert events[-1] == b"[DONE]"
    texts = [orjson.loads(event)["choices"][0]["delta"].get("content") for event in events[:-1]]
    assert "".join(filter(None, texts)) == "ab"
