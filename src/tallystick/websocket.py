"""A payer's WebSocket (protocol §10): several replies at once, receipts, the end of the session.

An upgrade with a bearer that does not hold is refused before it is accepted; without one, each request has to
bring its own. Frames for a job that another process of the host serves go there, and its answers come back.
Knows frames, and decides nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import replace
from typing import Any

import orjson
import structlog
from starlette.types import Receive, Scope, Send

from tallystick import asking, wire
from tallystick.desk import Access, refusal_of
from tallystick.engine import Piece
from tallystick.errors import Elsewhere, LedgerError, Refusal, TallystickError
from tallystick.node import Node, Payout
from tallystick.peer import PeerGone, access_of, bearer_of
from tallystick.proof import MAX_JOB_ID
from tallystick.relay import Uplinks, was_passed_on
from tallystick.replay import Replays, Tape
from tallystick.stream import CANCELLED, Chunk, End, Stream
from tallystick.types import JobId, RequestId

PROBLEM = [(b"content-type", b"application/problem+json")]
MAX_REPLIES = 256
"""Requests under way on one socket."""
TRY_AGAIN = 1013
"""The code that a socket is closed with when the process is gone that served a job of it."""

log = structlog.get_logger(__name__)


class Sessions:
    """`GET /v1/session`, as an ASGI application."""

    def __init__(self, node: Node, replays: Replays) -> None:
        self._node = node
        self._replays = replays

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        access = access_of(scope, self._node.config.trusted_proxies)
        await receive()  # the upgrade
        try:
            job_id = await self._node.desk.identify(access) if access.authorization else None
        except TallystickError as error:
            refusal = refusal_of(error)
            body = orjson.dumps(refusal.problem())
            await refuse_upgrade(send, refusal.row.status, PROBLEM, body)
            return
        await send({"type": "websocket.accept"})
        passed_on = was_passed_on(scope)
        connection = Connection(self._node, self._replays, access, receive, send, passed_on=passed_on)
        await connection.run(job_id)


async def refuse_upgrade(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    """Answers an upgrade as a request is answered."""
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


def _frames_of(request: RequestId) -> str:
    """What the frames of a reply are kept under."""
    return f"frames {request}"


class Reply:
    """One reply on its way over a socket, and onto its tape."""

    def __init__(self, stream: Stream, tape: Tape | None, say: Callable[[str], Awaitable[None]]) -> None:
        self.stream = stream
        self._tape = tape
        self._say = say

    async def deliver(self) -> None:
        """Until its end. PeerGone once its client has left, and has not come back for it elsewhere."""
        async for chunks in self.stream:
            for chunk in chunks:
                await self._send_chunk(chunk)
        assert self.stream.end is not None
        await self._send_end(self.stream.end)

    def leave(self) -> None:
        """The socket is gone: so is the reply, unless its client follows it on another one."""
        if self._tape is None:
            self.stream.cut(CANCELLED)
        else:
            self._tape.leave(lambda: self.stream.cut(CANCELLED))

    async def _send_chunk(self, chunk: Chunk) -> None:
        tally = chunk.tally
        # A count without a choice is told with `done`, and a role alone says nothing.
        if chunk.piece is not None and chunk.piece.choices and (chunk.piece.tokens or chunk.piece.text):
            await self._tell("token", **_token(chunk.piece), tally=tally)
        if tally.get("due"):
            await self._tell("checkpoint", tally=tally)
        if tally.get("low"):
            await self._tell("balance_low", tally=tally)

    async def _send_end(self, end: End) -> None:
        if end.failure is not None:
            await self._tell("error", problem=end.failure.problem(), tally=end.tally)
            return
        members = {"finish_reason": end.finish_reason, "reason": end.reason, "usage": end.usage}
        await self._tell("done", **members, tally=end.tally)

    async def _tell(self, kind: str, **members: Any) -> None:
        frame = wire.frame(kind, request=self.stream.order.request, **members)
        if self._tape is not None:
            self._tape.add(frame.encode())
        try:
            await self._say(frame)
        except PeerGone:
            if self._tape is None or not self._tape.followed:
                raise


class Connection:
    """One WebSocket that was accepted."""

    def __init__(
        self,
        node: Node,
        replays: Replays,
        access: Access,
        receive: Receive,
        send: Send,
        *,
        passed_on: bool = False,
    ) -> None:
        """`passed_on`: another process of the host is at the other end, so frames go no further."""
        self._node = node
        self._replays = replays
        self._access = access
        """Of the upgrade."""
        self._accesses: dict[JobId, Access] = {}
        """By the jobs that were asked for here."""
        self._receive = receive
        self._send = send
        self._sending = asyncio.Lock()
        self._replies: dict[RequestId, Reply] = {}
        """Those under way."""
        self._asking = 0
        """Requests under way, admitted or not."""
        self._following: set[asyncio.Task[None]] = set()
        """Replies that began on another socket."""
        self._watching = AsyncExitStack()
        self._passed_on = passed_on
        self._uplinks = Uplinks(
            node.ledger, access.authorization, self._say, self._give_up, secure=access.secure
        )
        self._gone = False

    async def run(self, job_id: JobId | None) -> None:
        """Until the other end leaves. `job_id`: the job of the upgrade's bearer."""
        # Nothing may be told any more once the group has ended: it takes no task then.
        async with self._uplinks, self._watching, asyncio.TaskGroup() as self._tasks:
            self._reading = self._tasks.create_task(self._read())
            if job_id is not None:
                await self._attend(job_id)

    async def _read(self) -> None:
        try:
            while (message := await self._receive())["type"] != "websocket.disconnect":
                frame: dict[str, Any] = {}
                try:
                    frame = wire.parse_frame(message.get("text") or message.get("bytes") or b"")
                    await self._take(frame)
                except TallystickError as error:
                    await self._pass_on_or_refuse(error, frame)
        finally:
            self._leave()

    async def _take(self, frame: dict[str, Any]) -> None:
        match frame["type"]:
            case "inference":
                self._begin(frame)
            case "receipt":
                await self._receipt(frame)
            case "resume":
                self._follow(frame)
            case "cancel":
                await self._cancel(frame)
            case "session_end":
                await self._end(frame)
            case other:
                raise Refusal("invalid_request", f"No frame to the host is called {other!r}.", param="type")

    # Replies

    def _begin(self, frame: dict[str, Any]) -> None:
        if self._asking >= MAX_REPLIES:
            raise Refusal("too_many_replies", f"{MAX_REPLIES} replies are under way on this socket.")
        self._asking += 1
        self._tasks.create_task(self._infer(frame)).add_done_callback(self._asked)

    def _asked(self, _: asyncio.Task[None]) -> None:
        self._asking -= 1

    async def _infer(self, frame: dict[str, Any]) -> None:
        request: RequestId | None = None
        stream: Stream | None = None
        try:
            if "request" not in frame:
                raise Refusal("invalid_request", "`request`: it says what is asked for.", param="request")
            asked, bearer = asking.parse_inference(frame["request"])
            request = asked.request
            access = replace(self._access, authorization=bearer_of(bearer)) if bearer else self._access
            stream = await self._node.desk.admit(asked, access)
            self._join(stream.account.job.id, access)
            await self._deliver(stream)
        except PeerGone:
            pass  # nobody reads why
        except TallystickError as error:
            if stream is None:
                await self._pass_on_or_refuse(error, frame, request)
            else:  # a reply that has begun here does not begin anew elsewhere
                await self._refuse(error, request)

    async def _deliver(self, stream: Stream) -> None:
        request = stream.order.request
        name = (stream.account.job.id, _frames_of(request))
        with self._replays.recording(name, b"") as tape:
            reply = self._replies[request] = Reply(stream, tape, self._say)
            try:
                async with stream:
                    await reply.deliver()
            finally:
                del self._replies[request]

    # Replies that began on another socket

    def _follow(self, frame: dict[str, Any]) -> None:
        if len(self._following) >= MAX_REPLIES:
            raise Refusal("too_many_replies", f"{MAX_REPLIES} replies are followed on this socket.")
        task = self._tasks.create_task(self._resume(frame))
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def _resume(self, frame: dict[str, Any]) -> None:
        """Sends the frames of a reply past those that its client has, to the job's own key alone."""
        request: RequestId | None = None
        try:
            request, after, bearer = asking.resume_in(frame)
            access = replace(self._access, authorization=bearer_of(bearer)) if bearer else self._access
            job_id = await self._node.desk.identify(access)
            tape = self._replays.find((job_id, _frames_of(request)))
            if tape is None:
                raise await self._node.desk.accounts.elsewhere(job_id) or Refusal("reply_gone")
            self._join(job_id, access)
            async with aclosing(tape.follow(after)) as reads:
                async for frames in reads:
                    for told in frames:
                        await self._say(told.decode())
        except PeerGone:
            pass  # nobody reads why
        except TallystickError as error:
            await self._pass_on_or_refuse(error, frame, request)

    async def _cancel(self, frame: dict[str, Any]) -> None:
        """A reply that is over already needs no cancelling, and is no mistake of the payer's."""
        request = frame.get("request")
        if not isinstance(request, str):
            raise Refusal("invalid_request", "`request`: it says which reply to cancel.", param="request")
        stream = self._stream(RequestId(request))
        if stream is not None:
            stream.cut(CANCELLED)
        else:
            await self._uplinks.pass_to_all(orjson.dumps(frame).decode())

    def _stream(self, request: RequestId) -> Stream | None:
        """A reply to this socket, or over HTTP to a job that it has shown the bearer of."""
        accounts = filter(None, map(self._node.desk.accounts.get, self._accesses))
        others = (stream for account in accounts for stream in account.streams)
        if (reply := self._replies.get(request)) is not None:
            return reply.stream
        return next((stream for stream in others if stream.order.request == request), None)

    # Receipts and the end

    async def _receipt(self, frame: dict[str, Any]) -> None:
        receipt = wire.receipt_in(frame.get("receipt"))
        access = self._accesses.get(receipt.job_id, self._access)
        answer = await self._node.desk.receipt(receipt, access)
        await self._tell("ack", **answer.out())

    async def _end(self, frame: dict[str, Any]) -> None:
        receipt, end = wire.ending_in(frame)
        job_id = frame.get("job_id", receipt and receipt.job_id)
        # A boolean is an int to Python.
        if type(job_id) is not int or not 1 <= job_id <= MAX_JOB_ID:
            raise Refusal("invalid_request", "`job_id`: it says which session ends.", param="job_id")
        view = await self._node.desk.end(JobId(job_id), receipt, end)
        self._join(JobId(job_id), self._access)
        await self._tell("session_end", job_id=job_id, job=view)

    def _join(self, job_id: JobId, access: Access) -> None:
        """From now on this socket hears of the job's settlements."""
        if job_id not in self._accesses:
            self._watching.enter_context(self._node.watch(job_id, self._settled))
        self._accesses[job_id] = access

    def _settled(self, payout: Payout) -> None:
        # A group that is ending takes no task; and a job is told of where it is served as well.
        if not self._gone and payout.job_id not in self._uplinks.jobs:
            self._tasks.create_task(self._tell_settled(payout))

    async def _tell_settled(self, payout: Payout) -> None:
        with suppress(PeerGone):
            await self._tell("settled", **payout.out())

    # Jobs that another process serves

    async def _attend(self, job_id: JobId) -> None:
        """Hears of the settlements of the upgrade's job, from where that is served."""
        self._join(job_id, self._access)
        with suppress(LedgerError):  # nothing was asked yet that could be refused
            owner = None if self._passed_on else await self._node.desk.accounts.elsewhere(job_id)
            if owner is not None:
                await self._uplinks.connect(owner)

    async def _pass_on_or_refuse(
        self, error: TallystickError, frame: dict[str, Any], request: RequestId | None = None
    ) -> None:
        try:
            if not isinstance(error, Elsewhere) or self._passed_on:
                raise error
            await self._uplinks.pass_on(error, orjson.dumps(frame).decode())
        except TallystickError as refused:
            await self._refuse(refused, request)

    async def _give_up(self) -> None:
        """A process that served a job of this socket is gone: the client connects again, as to that one."""
        async with self._sending:
            if not self._gone:
                with suppress(OSError, RuntimeError):
                    await self._send({"type": "websocket.close", "code": TRY_AGAIN})
        self._leave()

    # Sending

    async def _refuse(self, error: TallystickError, request: RequestId | None = None) -> None:
        if isinstance(error, PeerGone):
            return
        named = {"request": request} if request else {}
        with suppress(PeerGone):  # whoever left while it was refused does not read why
            await self._tell("error", **named, problem=refusal_of(error).problem())

    async def _tell(self, kind: str, **members: Any) -> None:
        await self._say(wire.frame(kind, **members))

    async def _say(self, frame: str) -> None:
        """Sends one frame. PeerGone, and every reply of the socket ends, if it is not taken."""
        message = {"type": "websocket.send", "text": frame}
        async with self._sending:
            if self._gone:
                raise PeerGone("the client left")
            try:
                await self._send(message)
            except (OSError, RuntimeError) as error:  # uvicorn's, for a connection that it gave up just now
                self._leave()
                raise PeerGone("the client left") from error

    def _leave(self) -> None:
        self._gone = True
        self._reading.cancel()
        for task in self._following:
            task.cancel()
        for reply in self._replies.values():
            reply.leave()


def _token(piece: Piece) -> dict[str, Any]:
    """The members of a `token` frame that come from the engine."""
    choice = piece.choices[0] if piece.choices else {}
    delta = choice.get("delta") or {}
    content, reasoning = delta.get("content"), delta.get("reasoning_content") or delta.get("reasoning")
    token: dict[str, Any] = {"text": content if isinstance(content, str) else ""}
    if isinstance(reasoning, str):
        token["reasoning"] = reasoning
    if delta.get("tool_calls"):
        token["tool_calls"] = delta["tool_calls"]
    if index := choice.get("index"):
        token["index"] = index
    if piece.ids:
        token["ids"] = piece.ids
    if piece.finish_reason:
        token["finish_reason"] = piece.finish_reason
    return token
