"""Replies over HTTP: server-sent events as they come, or one answer; and both again for who comes back.

A request with an `Idempotency-Key` that was used is answered with what the first one was, counted once. With
`Last-Event-ID` the events past that one are sent. Plain ASGI messages, since this is the path of every token:
what one read of the engine brought is one write. Knows how replies look on the wire, and decides nothing.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import msgspec
import orjson
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from tallystick import plain, proof, sse, wire
from tallystick.asking import ReplyRequest
from tallystick.desk import Access, refusal_of
from tallystick.errors import ReceiptError, Refusal, TallystickError
from tallystick.keccak import keccak
from tallystick.node import Node
from tallystick.peer import access_of, read_body
from tallystick.plain import Shape, Wording
from tallystick.replay import Name, Replays, Tape
from tallystick.reply import TEXT
from tallystick.stream import CANCELLED, Chunk, End, Order, Part, Run, Stream
from tallystick.types import Totals

EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
WHOLE = [(b"content-type", b"application/json")]
LOW = (b"tally-balance", b"low")
"""The header of replies that begin with a fifth of the deposit left, or less."""
REPLAYED = (b"idempotent-replayed", b"true")


class Completions:
    """`POST /v1/chat/completions` or `/v1/completions`, by what reads its body, as an ASGI application."""

    def __init__(self, node: Node, replays: Replays, parse: Callable[[bytes], ReplyRequest]) -> None:
        self._node = node
        self._replays = replays
        self._parse = parse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        access = access_of(scope, self._node.config.trusted_proxies)
        body = await read_body(scope, receive, lambda: self._node.desk.identify(access))
        asked = self._parse(body)
        again = Again(Headers(scope=scope), access, asked)
        while again.keyed:
            if await self._replayed(again, access, receive, send):
                return
            if self._replays.find(again.name) is None:
                break  # and nobody else begins before this does
        with self._replays.recording(again.name, again.fingerprint) as tape:
            stream = await self._node.desk.admit(asked, access)
            async with stream, _leaving_cuts(receive, stream, tape):
                await (_send_events if asked.stream else _send_whole)(stream, tape, send)

    async def _replayed(self, again: Again, access: Access, receive: Receive, send: Send) -> bool:
        """Sends what was sent before, to the job's own key alone. False: nothing was."""
        tape = self._replays.find(again.name)
        if tape is None and again.after is None:
            return False
        job_id = await self._node.desk.identify(access)
        if tape is None:
            if (elsewhere := await self._node.desk.accounts.elsewhere(job_id)) is not None:
                raise elsewhere
            raise Refusal("reply_gone")
        if tape.fingerprint != again.fingerprint:
            raise Refusal("idempotency_mismatch")
        return await _follow(tape, again, receive, send)


class Again:
    """What tells a request that is sent again from a new one. Refusal `invalid_request` for a bad header."""

    def __init__(self, headers: Headers, access: Access, asked: ReplyRequest) -> None:
        key = headers.get("idempotency-key")
        if key is not None and re.fullmatch(wire.KEY_PATTERN, key) is None:
            raise Refusal("invalid_request", "`Idempotency-Key` has 1 to 255 visible characters of ASCII.")
        self.after = _number(headers.get("last-event-id"))
        """The number of the last event that came; none: the reply is asked for from its beginning."""
        self.keyed = key is not None or self.after is not None
        self.streamed = asked.stream
        self.name = _name(access, key, asked)
        named = self.keyed or self.name is not None
        form = bytes([asked.stream, asked.stream and asked.include_usage])
        self.fingerprint = keccak(asked.prompt_hash() + form) if named else b""


def _name(access: Access, key: str | None, asked: ReplyRequest) -> Name | None:
    """What the reply is kept under: the key, or the payer's own request id. None: under nothing.

    Whose job it is has not been shown yet: who cannot show it is refused before anything is sent.
    """
    called = f"key {key}" if key is not None else asked.request
    try:
        return None if called is None else (proof.read_bearer(access.authorization or "").job_id, called)
    except ReceiptError:
        return None


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    if re.fullmatch(wire.EVENT_PATTERN, text) is None:
        raise Refusal("invalid_request", "`Last-Event-ID` is not the id of an event.", param="Last-Event-ID")
    return int(text)


# Sending


async def _send_events(stream: Stream, tape: Tape | None, send: Send) -> None:
    """Nothing is sent before the first chunk, so that what fails until then has a status of its own."""
    parts = await stream.take()
    if not parts:
        _raise_failure(stream)
    events = Events(stream.order)
    await send({"type": "http.response.start", "status": 200, "headers": _headers(stream, EVENTS)})
    try:
        while parts:
            body = _recorded(events.told(parts), tape)
            await send({"type": "http.response.body", "body": body, "more_body": True})
            parts = await stream.take()
        assert stream.end is not None
        last = events.end(stream.end)
    except TallystickError as error:
        last = events.failure(refusal_of(error))
    await send({"type": "http.response.body", "body": _recorded(last, tape)})


async def _send_whole(stream: Stream, tape: Tape | None, send: Send) -> None:
    pieces = [
        chunk.piece async for chunks in stream for chunk in chunks if chunk.piece and chunk.piece.choices
    ]
    _raise_failure(stream)
    assert stream.end is not None
    answer = _open(pieces[-1].raw, stream.order)
    body = orjson.dumps({**answer, "usage": stream.end.usage, "tally": stream.end.tally})
    if tape is not None:
        tape.add(body)
    await send({"type": "http.response.start", "status": 200, "headers": _headers(stream, WHOLE)})
    await send({"type": "http.response.body", "body": body})


def _headers(stream: Stream, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [*headers, LOW] if stream.account.meter.low else headers


def _recorded(events: list[bytes], tape: Tape | None) -> bytes:
    """What is sent in one write: of a reply that is recorded, each event with its number."""
    if tape is None:
        return b"".join(events)
    numbered = [b"id: %d\n%b" % (tape.last + at, event) for at, event in enumerate(events, 1)]
    for event in numbered:
        tape.add(event)
    return b"".join(numbered)


async def _follow(tape: Tape, again: Again, receive: Receive, send: Send) -> bool:
    """Sends the rest of a tape as it comes. False: nothing came of the reply; it may be asked for anew."""
    following = asyncio.create_task(_send_tape(tape, again, send))
    left = asyncio.create_task(_left(receive))
    try:
        await asyncio.wait([following, left], return_when=asyncio.FIRST_COMPLETED)
        return following.result() if following.done() else True
    finally:
        following.cancel()
        left.cancel()
        await asyncio.wait([following, left])


async def _send_tape(tape: Tape, again: Again, send: Send) -> bool:
    headers = [*(EVENTS if again.streamed else WHOLE), REPLAYED]
    begun = False
    try:
        async with aclosing(tape.follow(again.after or 0)) as reads:
            async for events in reads:
                if not begun:
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                    begun = True
                await send({"type": "http.response.body", "body": b"".join(events), "more_body": True})
    except Refusal:  # too slow a reader to keep anything for: it may come back from where it is
        if not begun:
            raise
    if begun:
        await send({"type": "http.response.body", "body": b""})
    return begun


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def _leaving_cuts(receive: Receive, stream: Stream, tape: Tape | None) -> AsyncIterator[None]:
    """Cuts the stream when the client disconnects, unless it has come back for it already."""

    async def watch() -> None:
        await _left(receive)
        if tape is None:
            stream.cut(CANCELLED)
        else:
            tape.leave(lambda: stream.cut(CANCELLED))

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()


def _raise_failure(stream: Stream) -> None:
    if stream.end is not None and stream.end.failure is not None:
        raise stream.end.failure


class Events:
    """One streamed reply as server-sent events."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._nulls: dict[str, Any] = {"usage": None} if order.include_usage else {}
        """What clients that wait for a usage expect of every chunk before it."""
        self._chunk: dict[str, Any] = {
            "id": order.form.id + secrets.token_hex(12),
            "object": order.form.chunk,
            "created": int(time.time()),
            "model": order.model,
        }
        """What every chunk has; the engine's own once it has sent one."""
        self._shape: Shape | None = None
        self._wording: Wording | None = None
        """For plain chunks of that shape; None: they go the general way."""

    def told(self, parts: Iterable[Part]) -> list[bytes]:
        """What is sent in one write."""
        events: list[bytes] = []
        for part in parts:
            if type(part) is Run and (wording := self._wording_of(part)) is not None:
                events += _worded(part, wording)
            else:
                events += [sse.event(self._event(chunk)) for chunk in part.each()]
        return events

    def _wording_of(self, run: Run) -> Wording | None:
        """Learnt anew where the engine's chunks take another shape."""
        first = run.pieces[0]
        if first.shape is not self._shape:
            prompt_tokens, tokens, job_prompt_tokens, job_tokens, left = plain.MARKS
            job = Totals(job_prompt_tokens, job_tokens)
            tally = wire.tally(run.request, Totals(prompt_tokens, tokens), job, left)
            marked = msgspec.structs.replace(first, text=plain.MARK).whole()
            self._shape = first.shape
            self._wording = plain.learn_wording(sse.event(self._event(Chunk(tally, marked))))
        return self._wording

    def end(self, end: End) -> list[bytes]:
        """What a reply ends with, after its last piece."""
        if end.failure is not None:
            return self.failure(end.failure, end.tally)
        last = []
        if end.untold:
            how = {**self._order.form.blank, "finish_reason": end.finish_reason}
            cut = [{"index": choice, **how} for choice in end.untold]
            last.append(sse.event({**self._chunk, "choices": cut, **self._nulls, "tally": end.tally}))
        if self._order.include_usage:
            last.append(sse.event({**self._chunk, "choices": [], "usage": end.usage, "tally": end.tally}))
        return [*last, sse.DONE]

    def failure(self, refusal: Refusal, tally: dict[str, Any] | None = None) -> list[bytes]:
        """What a reply ends with that cannot go on."""
        error = wire.openai_error(refusal)
        return [sse.event({**error, "tally": tally} if tally else error), sse.DONE]

    def _event(self, chunk: Chunk) -> dict[str, Any]:
        if chunk.piece is None:
            return {**self._chunk, "choices": [], **self._nulls, "tally": chunk.tally}
        event = _open(chunk.piece.raw, self._order)
        self._chunk = {name: event[name] for name in self._chunk if name in event}
        for choice in chunk.piece.choices:
            choice.setdefault("finish_reason", None)
            if self._order.form is TEXT:
                choice.setdefault("logprobs", None)
        event.update(self._nulls)
        event["tally"] = chunk.tally
        return event


def _worded(run: Run, wording: Wording) -> list[bytes]:
    """What the general way makes of a run."""
    write, prompt_tokens, job_prompt_tokens = wording.write, run.prompt_tokens, run.job_prompt_tokens
    return [
        write(piece.text, prompt_tokens, piece.tokens, (job_prompt_tokens, tokens), left)
        for piece, tokens, left in zip(run.pieces, run.job_tokens, run.left, strict=True)
    ]


def _open(raw: dict[str, Any], order: Order) -> dict[str, Any]:
    """A chunk of the engine's as the client gets it: without the counts that only the host had asked for."""
    event = {name: member for name, member in raw.items() if name not in ("usage", "timings")}
    event["model"] = order.model
    return event
