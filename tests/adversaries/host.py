"""A host that lies: it speaks the wire as a host does, and says what its lie has it say.

Serves any number of dealings, each with one honest payer on one job, at `/<number>` of one server in the
campaign's process. Keeps what the payer's receipts were, as they came in on its socket.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from aiohttp import WSMsgType, web

from tallystick import proof
from tallystick.types import JobId, Totals
from tests.adversaries.client import NOTHING, Opened
from tests.adversaries.engine import order_of, word

if TYPE_CHECKING:
    from tests.adversaries.hosts import Lie

WAIT = 0.25
"""Seconds that it waits for a receipt before it goes on without."""
PAUSE = 0.002
"""Seconds between two chunks."""

Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Chunk:
    """What goes out next of a reply: running counts of the request, the text, and why it is the last one."""

    prompt_tokens: int
    tokens: Any
    """A lie may have anything stand there."""
    text: str
    finish_reason: str | None = None


@dataclass
class Dealing:
    """One payer's job with the host, and what is between them."""

    number: int
    job: Opened | None
    domain: proof.Domain
    key: bytes
    """The host's."""
    dice: Random
    lie: Lie = field(init=False)
    receipts: list[dict[str, Any]] = field(default_factory=list)
    """All that came, the newest one last."""
    came: asyncio.Event = field(default_factory=asyncio.Event)
    sent: int = 0
    """Replies begun."""
    counted: Totals = NOTHING
    """What the host says that the job's replies before this one had."""
    told: int = 0
    """Lies that went out."""
    _patient: bool = True
    """It has not waited in vain yet."""

    @property
    def signed(self) -> Totals:
        """By the newest receipt."""
        if not self.receipts:
            return Totals()
        return Totals(self.receipts[-1]["prompt_tokens"], self.receipts[-1]["tokens"])

    def ack(self, receipt: Mapping[str, Any], key: bytes | None = None) -> dict[str, Any]:
        """The host's word for a receipt."""
        totals = Totals(receipt["prompt_tokens"], receipt["tokens"])
        transcript = bytes.fromhex(receipt["transcript"][2:])
        digest = self.domain.receipt(JobId(receipt["job_id"]), totals, transcript)
        said = {name: receipt[name] for name in ("job_id", "prompt_tokens", "tokens", "transcript")}
        return {**said, "signature": "0x" + proof.sign(digest, key or self.key).hex()}

    def tally(self, request: str, chunk: Chunk, **more: Any) -> dict[str, Any]:
        """The counts that go with a chunk, whatever they are."""
        counts = {"prompt_tokens": chunk.prompt_tokens, "tokens": chunk.tokens}
        return {"request": request, **counts, "job": self._job_counts(chunk), "left": "1000000", **more}

    def _job_counts(self, chunk: Chunk) -> dict[str, int]:
        tokens = chunk.tokens if isinstance(chunk.tokens, int) else 0
        return {
            "prompt_tokens": self.counted.prompt_tokens + chunk.prompt_tokens,
            "tokens": max(0, self.counted.tokens + tokens),
        }

    async def deliver(self, request: str, body: Mapping[str, Any], send: Send) -> Chunk:
        """Sends a reply, chunk by chunk, and waits for receipts as an honest host would: the last chunk."""
        chunk = Chunk(0, 0, "")
        self.sent += 1
        for chunk in self.lie.chunks(self.honest(body)):
            await send({"chunk": chunk, "tally": self.tally(request, chunk, due=True)})
            await asyncio.sleep(PAUSE)
            if isinstance(chunk.tokens, int):
                await self._credit(request, chunk, send)
        self.counted += Totals(chunk.prompt_tokens, chunk.tokens)
        return chunk

    async def _credit(self, request: str, chunk: Chunk, send: Send) -> None:
        """Waits for a receipt, where an interval is unsigned; a host that lies goes on without."""
        assert self.job is not None
        counted = self.counted.tokens + chunk.tokens
        if counted - self.signed.tokens < self.job.interval or not self._patient:
            return
        self.came.clear()
        await send({"chunk": None, "tally": self.tally(request, chunk, due=True, waiting=True)})
        try:
            async with asyncio.timeout(WAIT):
                while counted - self.signed.tokens >= self.job.interval:
                    await self.came.wait()
                    self.came.clear()
        except TimeoutError:
            self._patient = False

    def honest(self, body: Mapping[str, Any]) -> list[Chunk]:
        """What an honest host would send: one word a token."""
        order = order_of(body)
        prompt = order_of(body).prompt_tokens
        texts = [word(self.number * 100 + self.sent, number) for number in range(order.tokens)]
        chunks = [Chunk(prompt, count, text) for count, text in enumerate(texts, start=1)]
        return [*chunks[:-1], Chunk(prompt, order.tokens, texts[-1], "length")]


class LyingHost:
    """The server. `serving` gives its URL; a dealing is at `<URL>/<number>`."""

    def __init__(self) -> None:
        self.dealings: dict[int, Dealing] = {}

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        app = web.Application(client_max_size=2**24)
        app.add_routes(
            [
                web.get("/{number}/v1/host", self._quote),
                web.get("/{number}/v1/jobs/{job}", self._job),
                web.post("/{number}/v1/jobs/{job}/receipts", self._receipts),
                web.post("/{number}/v1/chat/completions", self._chat),
                web.get("/{number}/v1/session", self._session),
            ]
        )
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            yield f"http://{host}:{port}"
        finally:
            await runner.cleanup()

    def _dealing(self, request: web.Request) -> Dealing:
        return self.dealings[int(request.match_info["number"])]

    async def _quote(self, request: web.Request) -> web.Response:
        return web.json_response(self._dealing(request).lie.quote())

    async def _job(self, request: web.Request) -> web.Response:
        dealing = self._dealing(request)
        return web.json_response({"job_id": int(request.match_info["job"]), "receipt": dealing.lie.stored()})

    async def _receipts(self, request: web.Request) -> web.Response:
        return web.json_response(await self._dealing(request).lie.receipt(await request.json()))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        dealing, body = self._dealing(request), await request.json()
        problem = dealing.lie.refusal(body)
        if problem is not None:
            return web.json_response({"error": problem}, status=402)
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)

        async def send(what: dict[str, Any]) -> None:
            await answer.write(
                b"data: " + json.dumps(_event(what["chunk"], what["tally"])).encode() + b"\n\n"
            )

        if not await _told(dealing, body["tally"]["request"], body, send):
            assert request.transport is not None
            request.transport.close()
            return answer
        await answer.write(b"data: [DONE]\n\n")
        return answer

    async def _session(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        dealing = self._dealing(request)
        async with asyncio.TaskGroup() as replies:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    await self._frame(dealing, socket, json.loads(message.data), replies)
        return socket

    async def _frame(
        self,
        dealing: Dealing,
        socket: web.WebSocketResponse,
        frame: dict[str, Any],
        replies: asyncio.TaskGroup,
    ) -> None:
        match frame["type"]:
            case "inference":
                replies.create_task(_converse(dealing, socket, frame["request"]))
            case "receipt":
                answer = await dealing.lie.receipt(frame["receipt"])
                kind = "error" if "code" in answer else "ack"
                await _put(socket, {"type": kind, **({"problem": answer} if kind == "error" else answer)})


async def _converse(dealing: Dealing, socket: web.WebSocketResponse, body: dict[str, Any]) -> None:
    """One reply over a WebSocket."""
    request = body["id"]
    if (problem := dealing.lie.refusal(body)) is not None:
        await _put(socket, {"type": "error", "request": request, "problem": problem})
        return

    async def send(what: dict[str, Any]) -> None:
        for frame in _frames(request, what["chunk"], what["tally"]):
            await _put(socket, frame)

    if not await _told(dealing, request, body, send):
        await socket.close()


async def _told(dealing: Dealing, request: str, body: Mapping[str, Any], send: Send) -> bool:
    """Has the lie told. False: the host is to break off."""
    try:
        await dealing.deliver(request, body, send)
    except BreakOff:
        return False
    except (ConnectionError, RuntimeError):  # the payer has left
        return False
    return True


class BreakOff(Exception):
    """The host closes the connection."""


async def _put(socket: web.WebSocketResponse, frame: Mapping[str, Any]) -> None:
    with suppress(ConnectionError):  # the payer may leave at any time
        if not socket.closed:
            await socket.send_json(frame)


def _frames(request: str, chunk: Chunk | None, tally: Mapping[str, Any]) -> list[dict[str, Any]]:
    if chunk is None:
        return [{"type": "checkpoint", "request": request, "tally": tally}]
    token = {"type": "token", "request": request, "text": chunk.text, "tally": tally}
    if chunk.finish_reason is None:
        return [token]
    end = {"finish_reason": chunk.finish_reason, "reason": chunk.finish_reason}
    return [token, {"type": "done", "request": request, **end, "usage": {}, "tally": tally}]


def _event(chunk: Chunk | None, tally: Mapping[str, Any]) -> dict[str, Any]:
    if chunk is None:
        return {"choices": [], "tally": tally}
    choice = {"index": 0, "delta": {"content": chunk.text}, "finish_reason": chunk.finish_reason}
    return {"choices": [choice], "tally": tally}
