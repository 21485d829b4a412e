"""The hands of a client that need not be honest: connections to a host, and a pen.

Written from the protocol alone: of the package it has the signatures of `proof`, and none of what a payer
decides with. Keeps every text that any of its connections brought, and the most that the job's key signed.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp
import rfc8785

from tallystick import proof
from tallystick.keccak import keccak
from tallystick.types import JobId, Totals
from tests.adversaries.engine import Order

CHAT = "/v1/chat/completions"
PATIENCE = 15.0
"""Seconds in which an honest host says something."""
HOUR = 3_600
GRACE = 5
"""Seconds after which the honest host writes off what nobody signed for."""
NOTHING = Totals()


class Refused(Exception):
    """The host did not do what it was asked to."""

    def __init__(self, problem: Mapping[str, Any]) -> None:
        self.code: str = problem.get("code", "none")
        self.problem = problem
        super().__init__(self.code)


@dataclass(frozen=True)
class Opened:
    """A job on the chain, and the keys to it."""

    id: JobId
    key: bytes
    interval: int
    price: int
    prompt_price: int
    created_at: int


@dataclass(frozen=True)
class Chunk:
    """What one event or frame brought."""

    request: str
    text: str
    due: bool
    waiting: bool


@dataclass
class Reply:
    """One request and what came of it, whichever connections that came over."""

    request: str
    prompt_hash: bytes
    text: str = ""
    ends: list[tuple[Totals, int]] = field(default_factory=list)
    """By chunk: the running counts with it, and the length of the text up to there."""
    events: int = 0
    """Frames or events with a number that have come."""

    def take(self, tally: Mapping[str, Any], text: str) -> None:
        self.text += text
        self.ends.append((Totals(tally["prompt_tokens"], tally["tokens"]), len(self.text)))

    @property
    def totals(self) -> Totals:
        return self.ends[-1][0] if self.ends else Totals()

    def position(self, chunk: int = -1, text: str | None = None) -> dict[str, Any]:
        """After that chunk; `text` in place of the one that came."""
        totals, length = self.ends[chunk]
        said = self.text[:length] if text is None else text
        return {
            "request": self.request,
            "prompt_tokens": totals.prompt_tokens,
            "tokens": totals.tokens,
            "prompt_hash": _hex(self.prompt_hash),
            "text_hash": _hex(keccak(said.encode())),
        }


@dataclass
class Pen:
    """Writes receipts of one job (protocol §4, §5), and does not look at what it writes."""

    domain: proof.Domain
    job: Opened
    previous: bytes = bytes(32)
    acknowledged: dict[str, Totals] = field(default_factory=dict)
    """By request, as the host has confirmed it."""
    signed: Totals = NOTHING
    """No receipt that the job's key signed for this job is above it."""

    def write(
        self,
        positions: Sequence[Mapping[str, Any]],
        *,
        more: Totals = NOTHING,
        key: bytes | None = None,
        job_id: int | None = None,
        previous: bytes | None = None,
    ) -> dict[str, Any]:
        """A receipt of these positions, and of `more` than they add up to."""
        at = {**self.acknowledged, **{each["request"]: _totals(each) for each in positions}}
        totals = sum(at.values(), Totals()) + more
        job_id = self.job.id if job_id is None else job_id
        before = self.previous if previous is None else previous
        transcript = keccak(before + _word(job_id) + _packed(totals) + keccak(_links(positions)))
        digest = self.domain.receipt(JobId(job_id), totals, transcript)
        if key in (None, self.job.key) and job_id == self.job.id:
            self.signed = self.signed.higher(totals)
        return {
            "job_id": job_id,
            "prompt_tokens": totals.prompt_tokens,
            "tokens": totals.tokens,
            "previous": _hex(before),
            "transcript": _hex(transcript),
            "signature": _hex(proof.sign(digest, key or self.job.key)),
            "positions": list(positions),
        }

    def confirmed(self, receipt: Mapping[str, Any]) -> None:
        """The host has it on its disk."""
        self.previous = bytes.fromhex(receipt["transcript"][2:])
        self.acknowledged |= {each["request"]: _totals(each) for each in receipt["positions"]}


class Client:
    """One client of one host. `async with` it; its decisions are somebody else's."""

    def __init__(self, url: str, pen: Pen, order: Order, dice: random.Random, *, socket: bool) -> None:
        """`socket`: asks over a WebSocket, not over HTTP. `order`: what it asks for."""
        self.pen = pen
        self.job = pen.job
        self.order = order
        self.dice = dice
        self.replies: dict[str, Reply] = {}
        self.heard: list[str] = []
        """Every text that came, in pieces."""
        self.answers: Counter[str] = Counter()
        """What the host said to requests and receipts."""
        self.told = 0
        """Lies that went out."""
        self.over_socket = socket
        self._url = url
        self._http = aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=None, sock_read=PATIENCE))
        self._socket: Socket | None = None
        self._signing = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.hang_up()
        await self._http.close()

    # Bearers

    def bearer(
        self, *, key: bytes | None = None, job_id: int | None = None, expires_at: int | None = None
    ) -> str:
        """Good for an hour, unless told otherwise."""
        until = self.job.created_at + HOUR if expires_at is None else expires_at
        return proof.make_bearer(self.pen.domain, JobId(job_id or self.job.id), until, key or self.job.key)

    # Asking

    def begin(self) -> Reply:
        """A request that has not been sent."""
        request = f"{self.dice.getrandbits(128):032x}"
        reply = Reply(request, keccak(rfc8785.dumps(self.order.body())))
        self.replies[request] = reply
        return reply

    async def ask(
        self,
        reply: Reply | None = None,
        *,
        bearer: str | None = None,
        socket: bool | None = None,
        after: int | None = None,
        **members: Any,
    ) -> AsyncGenerator[Chunk, None]:
        """A reply, or the rest of one: all of it `after` so many events. Refused; ConnectionError where it
        breaks off. `socket`: over a WebSocket, unlike what the client does by itself.
        """
        reply = reply or self.begin()
        over = self._over_socket if (self.over_socket if socket is None else socket) else self._over_http
        bearer = self.bearer() if bearer is None else bearer
        try:
            async with aclosing(over(reply, bearer, after, members)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except Refused as refused:
            self.answers[refused.code] += 1
            raise
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ConnectionError(str(error)) from error

    async def _over_http(
        self, reply: Reply, bearer: str, after: int | None, members: Mapping[str, Any]
    ) -> AsyncGenerator[Chunk, None]:
        body = {**self.order.body(), "stream": True, "tally": {"request": reply.request}, **members}
        headers = _authorized(bearer) | ({} if after is None else {"Last-Event-ID": str(after)})
        async with self._http.post(CHAT, json=body, headers=headers) as answer:
            if answer.status != 200:
                raise _refusal(await answer.read())
            async for line in answer.content:
                if line.startswith(b"id: "):
                    reply.events = int(line[4:])
                elif line.startswith(b"data: {") and (chunk := self._event(reply, json.loads(line[6:]))):
                    yield chunk

    def _event(self, reply: Reply, event: Mapping[str, Any]) -> Chunk | None:
        deltas = [choice.get("delta") or {} for choice in event.get("choices", ())]
        text = "".join(delta.get("content") or "" for delta in deltas)
        return self._take(reply, event.get("tally"), text)

    async def _over_socket(
        self, reply: Reply, bearer: str, after: int | None, members: Mapping[str, Any]
    ) -> AsyncGenerator[Chunk, None]:
        socket = await self._connected(bearer)
        frames = socket.follow(reply.request)
        if after is not None:
            await socket.send(type="resume", request=reply.request, after=after, access=bearer)
        else:
            asked = {"job_id": self.job.id, "id": reply.request, "access": bearer}
            await socket.send(type="inference", request={**self.order.body(), **asked, **members})
        async for frame in frames:
            reply.events += 1
            if frame["type"] == "error":
                raise Refused(frame["problem"])
            if chunk := self._take(reply, frame.get("tally"), frame.get("text", "")):
                yield chunk
            if frame["type"] == "done":
                return

    def _take(self, reply: Reply, tally: Mapping[str, Any] | None, text: str) -> Chunk | None:
        self.heard.append(text)
        if tally is None:
            return None
        reply.take(tally, text)
        return Chunk(reply.request, text, bool(tally.get("due")), bool(tally.get("waiting")))

    async def _connected(self, bearer: str) -> Socket:
        if self._socket is None or self._socket.gone:
            self._socket = await Socket.connect(self._http, bearer)
        return self._socket

    async def hang_up(self) -> None:
        """Breaks the WebSocket off, with whatever was under way on it."""
        if self._socket is not None:
            await self._socket.close()
            self._socket = None

    # Signing

    async def sign(self) -> None:
        """Signs for all that came, as an honest client does."""
        async with self._signing:
            if positions := self.moved():
                receipt = self.pen.write(positions)
                if await self.send(receipt) == "ack":
                    self.pen.confirmed(receipt)

    def moved(self) -> list[dict[str, Any]]:
        """The newest position of each reply, where there is something new to sign for."""
        return [
            reply.position()
            for reply in self.replies.values()
            if reply.totals != self.pen.acknowledged.get(reply.request, Totals())
        ]

    async def send(self, receipt: Mapping[str, Any], *, bearer: str | None = None) -> str:
        """The host's answer: `ack`, `stored` to a receipt that was not ahead, or the code of a refusal."""
        path, headers = f"/v1/jobs/{self.job.id}/receipts", _authorized(bearer or self.bearer())
        if self.over_socket and bearer is None and self._socket is not None and self.dice.random() < 0.5:
            answer = await self._socket.ask(type="receipt", receipt=receipt)
        else:
            answer = await self.post(path, receipt, headers)
        said = answer.get("code") or ("stored" if answer.get("stored") else "ack")
        self.answers[said] += 1
        return said

    async def post(self, path: str, body: Any, headers: Mapping[str, str]) -> dict[str, Any]:
        """The answer's JSON; of a refusal the problem. An empty object if nothing came."""
        with suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with self._http.post(path, json=body, headers=headers) as answer:
                return _problem(await answer.read())
        return {"code": "no answer"}

    async def get(self, path: str, headers: Mapping[str, str]) -> dict[str, Any]:
        """As `post`."""
        async with self._http.get(path, headers=headers) as answer:
            return _problem(await answer.read())


class Socket:
    """A WebSocket to a host (protocol §10)."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._frames: dict[str, asyncio.Queue[dict[str, Any] | None]] = {}
        self._answers: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._asking = asyncio.Lock()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, http: aiohttp.ClientSession, bearer: str) -> Self:
        """Refused, as the upgrade was."""
        try:
            return cls(await http.ws_connect("/v1/session", headers=_authorized(bearer)))
        except aiohttp.WSServerHandshakeError as error:
            raise Refused({"code": f"upgrade {error.status}"}) from error

    @property
    def gone(self) -> bool:
        return self._reading.done()

    def follow(self, request: str) -> AsyncIterator[dict[str, Any]]:
        """The frames with that request. ConnectionError once the socket is closed."""
        queue = self._frames[request] = asyncio.Queue()
        return _drained(queue)

    async def send(self, **frame: Any) -> None:
        await self._socket.send_json(frame)

    async def ask(self, **frame: Any) -> dict[str, Any]:
        """The answer to a receipt: the frame, or the problem in it."""
        async with self._asking:
            with suppress(ConnectionError, TimeoutError):
                await self.send(**frame)
                async with asyncio.timeout(PATIENCE):
                    answer = await self._answers.get()
                if answer is not None:
                    problem: dict[str, Any] = answer.get("problem", answer)
                    return problem
        return {"code": "no answer"}

    async def close(self) -> None:
        await self._socket.close()
        await asyncio.wait([self._reading])

    async def _read(self) -> None:
        with suppress(aiohttp.ClientError):  # the socket is closed then
            async for message in self._socket:
                self._hand_over(json.loads(message.data))
        self._answers.put_nowait(None)
        for queue in self._frames.values():
            queue.put_nowait(None)

    def _hand_over(self, frame: dict[str, Any]) -> None:
        if frame.get("request") in self._frames:
            self._frames[frame["request"]].put_nowait(frame)
        elif frame["type"] in ("ack", "error"):
            self._answers.put_nowait(frame)


async def _drained(queue: asyncio.Queue[dict[str, Any] | None]) -> AsyncIterator[dict[str, Any]]:
    while True:
        async with asyncio.timeout(PATIENCE):
            frame = await queue.get()
        if frame is None:
            raise ConnectionError("the socket is closed")
        yield frame


def _authorized(bearer: str) -> dict[str, str]:
    """No header at all for no bearer."""
    return {} if not bearer else {"Authorization": f"Bearer {bearer}"}


def _refusal(raw: bytes) -> Refused:
    return Refused(_problem(raw))


def _problem(raw: bytes) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(raw)
    problem: dict[str, Any] = body.get("error", body)
    return problem


def _totals(position: Mapping[str, Any]) -> Totals:
    return Totals(position["prompt_tokens"], position["tokens"])


def _links(positions: Sequence[Mapping[str, Any]]) -> bytes:
    ordered = sorted(positions, key=lambda position: str(position["request"]))
    return b"".join(
        bytes.fromhex(each["request"])
        + _packed(_totals(each))
        + bytes.fromhex(each["prompt_hash"][2:])
        + bytes.fromhex(each["text_hash"][2:])
        for each in ordered
    )


def _packed(totals: Totals) -> bytes:
    return totals.prompt_tokens.to_bytes(8, "big") + totals.tokens.to_bytes(8, "big")


def _word(number: int) -> bytes:
    return number.to_bytes(32, "big")


def _hex(data: bytes) -> str:
    return "0x" + data.hex()
