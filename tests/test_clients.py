"""The whole surface of OpenAI's own clients, unmodified: each method is run, or refused by its code.

`clients/python.txt` and `clients/javascript.txt` list every method of a client with what becomes of it on a
host-attested job and, asked directly, on a receipted one: `served`; `local`, if the host is not asked at all;
or the code of the refusal.
"""

from __future__ import annotations

import asyncio
import inspect
import shutil
import warnings
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import orjson
import pydantic
import pytest
from openai._resource import AsyncAPIResource
from openai.lib.beta.agents._files import AgentFilePreparationError
from openai.lib.streaming.chat import AsyncChatCompletionStream
from websockets.exceptions import InvalidStatus

from tallystick.testing.engine import Script, ScriptedEngine, say
from tests.conftest import missing
from tests.hosting import Host, Hosting
from tests.paying import MESSAGES, Signer

CLIENTS = Path(__file__).parent / "clients"
ANSWER = '{"halves": 2}'
SERVED_LENGTH = 300
"""Tokens of a streamed reply, more than an unsigned job's credit."""
SHARED = ("not_found", "not_allowed", "local")
"""Outcomes that are the same for any number of methods on one job."""
Outcomes = dict[str, str]


def table(client: str) -> tuple[Outcomes, Outcomes]:
    """What becomes of each method on a host-attested job, and on a receipted one."""
    lines = (CLIENTS / f"{client}.txt").read_text().splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    attested = {method: outcome for method, outcome, *_ in rows}
    return attested, {method: receipted for method, _, receipted in rows}


def engine() -> ScriptedEngine:
    """Answers with JSON; where a stream is asked for, at a length."""
    return ScriptedEngine(lambda body: Script((say(ANSWER, *(" " * SERVED_LENGTH)),)))


# Python


class Stick(pydantic.BaseModel):
    halves: int


def python_methods(client: openai.AsyncOpenAI) -> dict[str, Callable[..., Any]]:
    return dict(_methods(client, ""))


def _methods(resource: Any, path: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in dir(type(resource)):
        if not name.startswith(("_", "with_")):
            member = getattr(resource, name)
            if isinstance(member, AsyncAPIResource):
                yield from _methods(member, f"{path}{name}.")
            elif path and callable(member):
                yield path + name, member


def python_arguments(name: str, method: Callable[..., Any], file: Path) -> dict[str, Any]:
    """What a method is called with: for most, anything that its signature takes."""
    chat: dict[str, Any] = {"model": "scripted", "messages": MESSAGES}
    upload = ("halves.txt", b"2")
    stale = {"webhook-id": "x", "webhook-timestamp": "1", "webhook-signature": "x"}
    name = name.removeprefix("beta.") if name.startswith("beta.chat.") else name
    given: dict[str, dict[str, Any]] = {
        "chat.completions.create": chat,
        "chat.completions.parse": {**chat, "response_format": Stick},
        "chat.completions.stream": {**chat, "max_tokens": SERVED_LENGTH},
        "completions.create": {"model": "scripted", "prompt": "Two halves of"},
        "models.retrieve": {"model": "scripted"},
        "responses.stream": {"model": "scripted", "input": "Why?"},
        "admin.organization.external_keys.create": _filled("external_id kms_arn name role_arn type"),
        "audio.voices.create": {"name": "x", "consent": "x", "audio_sample": upload},
        "beta.agents.automations.create": _filled("expression name target timezone type"),
        "beta.agents.environments.files.create": _filled("environment_id file_id path type"),
        "beta.agents.environments.files.prepare": {"files": {"/workspace/halves.txt": file}},
        "beta.agents.environments.files.prepare_directory": {
            "root": file.parent,
            "destination": "/workspace",
            "include": [file.name],
        },
        "beta.agents.environments.files.upload": {
            "environment_id": "x",
            "file": upload,
            "path": "/workspace/halves.txt",
        },
        "beta.agents.sessions.artifacts.for_result": {
            "result": SimpleNamespace(session_id="x", turn_id="x"),
        },
        "uploads.upload_file_chunked": {"file": file, "mime_type": "text/plain", "purpose": "assistants"},
        "webhooks.unwrap": {"payload": "x", "headers": stale},
        "webhooks.verify_signature": {"payload": "x", "headers": stale},
    }
    files = {**dict.fromkeys(("file", "image", "video", "recording", "data"), upload), "files": [upload]}
    needed = {
        parameter.name: files.get(parameter.name, "x")
        for parameter in inspect.signature(method).parameters.values()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    }
    return given.get(name, needed)


def _filled(names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), "x")


class PythonRun:
    """Calls every method of the client, with a bearer as its key."""

    def __init__(self, host: Host, signer: Callable[[], Awaitable[Signer]], file: Path) -> None:
        self._host = host
        self._signer = signer
        self._file = file
        self._requests = 0

    async def outcomes(self, names: Mapping[str, str]) -> Outcomes:
        """What becomes of each. A method that is not refused as unknown gets a job of its own."""
        told = {}
        async with self._client(await self._signer()) as shared:
            methods = python_methods(shared)
            for name, expected in names.items():
                if expected in SHARED:
                    told[name] = await self._outcome(name, methods[name])
                else:
                    async with self._client(await self._signer()) as own:
                        told[name] = await self._outcome(name, python_methods(own)[name])
        return told

    async def _outcome(self, name: str, method: Callable[..., Any]) -> str:
        self._requests = 0
        try:
            async with asyncio.timeout(30):
                outcome = await _run(method(**python_arguments(name, method, self._file)))
        except openai.InvalidWebhookSignatureError:
            outcome = "local"
        except openai.APIStatusError as error:
            outcome = str(error.code)
        except AgentFilePreparationError as error:
            outcome = str(getattr(error.__cause__, "code", error))
        except InvalidStatus as error:
            return str(orjson.loads(error.response.body or b"")["error"]["code"])
        assert self._requests == (outcome != "local"), f"{name} made {self._requests} requests"
        return outcome

    def _client(self, signer: Signer) -> openai.AsyncOpenAI:
        key = signer.bearer()
        return openai.AsyncOpenAI(
            api_key=key,
            admin_api_key=key,
            webhook_secret="whsec_MDA=",
            base_url=f"{self._host.url}/v1",
            websocket_base_url=f"{self._host.url.replace('http', 'ws', 1)}/v1",
            http_client=openai.DefaultAsyncHttpxClient(event_hooks={"request": [self._count]}),
        )

    async def _count(self, request: Any) -> None:
        self._requests += 1


async def _run(result: Any) -> str:
    """Takes what a method gives to its end, and says what became of it."""
    if hasattr(result, "__aenter__"):
        async with result as stream:
            assert isinstance(stream, AsyncChatCompletionStream), "only a chat is served as a stream"
            return _ended([event.chunk async for event in stream if event.type == "chunk"])
    if inspect.isawaitable(result):
        result = await result
    if hasattr(result, "__aiter__"):
        return "served" if [item.id async for item in result] == ["scripted"] else "other"
    return _checked(result)


def _ended(chunks: list[Any]) -> str:
    reason = chunks[-1].tally["reason"]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    return "served" if reason in ("stop", "length") else str(reason)


def _checked(result: Any) -> str:
    """`served`, if what came is what was asked for; what needs no host is `local`."""
    match result:
        case openai.types.chat.ParsedChatCompletion():
            assert result.choices[0].message.parsed == Stick(halves=2)
        case openai.types.chat.ChatCompletion():
            assert (result.choices[0].message.content or "").startswith(ANSWER)
        case openai.types.Completion():
            assert result.choices[0].text.startswith(ANSWER)
        case openai.types.Model():
            assert result.id == "scripted"
        case _:
            return "local"
    return "served"


async def job(hosting: Hosting, kind: str) -> Signer:
    """A receipted job, or one that nobody has to sign for, and that is old enough for its rate."""
    if kind == "receipted":
        return await hosting.signer()
    signer = await hosting.signer(max_tokens_per_second=100_000)
    await hosting.devnet.increase_time(60)
    return signer


def test_the_table_names_every_method() -> None:
    """No method of the Python client is left out, and none is listed that it does not have."""
    client = openai.AsyncOpenAI(api_key="x")
    assert sorted(python_methods(client)) == list(table("python")[0])


@pytest.mark.parametrize("kind", ["attested", "receipted"])
async def test_python(hosting: Hosting, tmp_path: Path, kind: str) -> None:
    """Each method of the Python client does what the table says, in one request: no refusal is repeated."""
    file = tmp_path / "halves.txt"
    file.write_text("2")
    host = await hosting.serve(engine())
    expected = table("python")[kind == "receipted"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the client's own, of methods that it keeps
        outcomes = await PythonRun(host, partial(job, hosting, kind), file).outcomes(expected)
    assert outcomes == expected


# JavaScript


async def javascript(host: Host | None, methods: Mapping[str, str] | None = None) -> Any:
    """What clients/run.mjs tells: without methods the names of all."""
    node = shutil.which("node") or missing("node")
    asked = {"url": host.url, "methods": methods} if host else {"url": "http://127.0.0.1"}
    process = await asyncio.create_subprocess_exec(
        node, str(CLIENTS / "run.mjs"), stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    told, errors = await process.communicate(orjson.dumps(asked))
    assert process.returncode == 0, errors.decode()
    return orjson.loads(told)


async def test_the_table_names_every_method_of_javascript() -> None:
    """No method of the JavaScript client is left out, and none is listed that it does not have."""
    assert await javascript(None) == list(table("javascript")[0])


@pytest.mark.parametrize("kind", ["attested", "receipted"])
async def test_javascript(hosting: Hosting, kind: str) -> None:
    """Each method of the JavaScript client does what the table says, in one request."""
    host = await hosting.serve(engine())
    expected = table("javascript")[kind == "receipted"]
    shared = await job(hosting, kind)
    methods = {
        name: (shared if outcome in SHARED else await job(hosting, kind)).bearer()
        for name, outcome in expected.items()
    }
    assert await javascript(host, methods) == expected
