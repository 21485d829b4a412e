"""A host's door: the routes of protocol §7 over a node, and the server that they run in.

    POST /v1/chat/completions     GET /v1/models             GET  /v1/jobs/{id}              GET /healthz
    POST /v1/completions          GET /v1/models/{model}     POST /v1/jobs/{id}/receipts     GET /readyz
    GET  /v1/session (WebSocket)  GET /v1/host               POST /v1/jobs/{id}/complete

Replies go out as plain ASGI messages, since they are the path of every token; all else is Starlette's. Knows
how things look on the wire, and decides nothing.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any

import orjson
import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from tallystick import wire
from tallystick.desk import refusal_of
from tallystick.errors import Elsewhere, Refusal, TallystickError
from tallystick.metrics import CONTENT_TYPE, Metrics
from tallystick.node import STOP_STREAMS, Node
from tallystick.peer import BODY, PeerGone, access_of, from_here, read_body
from tallystick.proof import MAX_JOB_ID
from tallystick.relay import Relay, was_passed_on
from tallystick.reply import TEXT
from tallystick.stream import CANCELLED, Chunk, End, Order, Stream
from tallystick.types import JobId
from tallystick.websocket import Sessions, refuse_upgrade

OURS = ("/v1/host", "/v1/jobs", "/v1/session")
"""Routes that OpenAI's API has no counterpart of."""
SEND_LIMIT = 30.0
"""Seconds for which a connection may be full before it counts as broken."""
CLOSE_CONNECTIONS = 5
"""Seconds that connections have to close in when the server stops, after the replies have ended."""
EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

_JOB_ID = re.compile(r"[1-9][0-9]{0,15}", re.ASCII)

log = structlog.get_logger(__name__)


def app(node: Node) -> Starlette:
    """The routes over a node, which has to be started before the first request."""
    routes = Routes(node)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", Completions(node, wire.parse_chat), methods=["POST"]),
            Route("/v1/completions", Completions(node, wire.parse_text), methods=["POST"]),
            WebSocketRoute("/v1/session", Sessions(node)),
            Route("/v1/models", routes.models),
            Route("/v1/models/{model:path}", routes.model),
            Route("/v1/host", routes.host),
            Route("/v1/jobs/{job_id}", routes.job),
            Route("/v1/jobs/{job_id}/receipts", routes.receipts, methods=["POST"]),
            Route("/v1/jobs/{job_id}/complete", routes.complete, methods=["POST"]),
            Route("/healthz", routes.healthz),
            Route("/readyz", routes.readyz),
            Route("/metrics", routes.metrics),
            WebSocketRoute("/{path:path}", NoSocket()),
        ],
        exception_handlers={
            Elsewhere: routes.pass_on,
            TallystickError: _refused,
            HTTPException: _no_route,
            Exception: _fault,
        },
    )


class Routes:
    """All that is asked and answered in one piece."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._metrics = Metrics(node)

    async def models(self, request: Request) -> Response:
        return _json({"object": "list", "data": self._models()})

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        model = next((model for model in self._models() if model["id"] == name), None)
        if model is None:
            raise Refusal("model_unknown")
        return _json(model)

    def _models(self) -> list[dict[str, Any]]:
        terms = self._node.offer.terms()
        return [
            {"id": model["name"], "object": "model", "created": 0, "owned_by": terms["host"] or "", **model}
            for model in terms["models"]
        ]

    async def host(self, request: Request) -> Response:
        return _json(await self._node.quote())

    async def job(self, request: Request) -> Response:
        access = access_of(request.scope, self._node.config.trusted_proxies)
        return _json(await self._node.desk.view(_job_in_path(request), access))

    async def receipts(self, request: Request) -> Response:
        job_id = _job_in_path(request)
        receipt = wire.receipt_in(wire.parse(await read_body(request.scope, request.receive)))
        _same_job(job_id, receipt.job_id)
        access = access_of(request.scope, self._node.config.trusted_proxies)
        answer = await self._node.desk.receipt(receipt, access)
        return _json(answer.out())

    async def complete(self, request: Request) -> Response:
        job_id = _job_in_path(request)
        receipt, end = wire.ending_in(wire.parse(await read_body(request.scope, request.receive)))
        if receipt is not None:
            _same_job(job_id, receipt.job_id)
        return _json(await self._node.desk.end(job_id, receipt, end), status=202)

    async def pass_on(self, request: Request, error: Exception) -> Response:
        """Has the process answer that serves the job; one that was asked by another process refuses."""
        assert isinstance(error, Elsewhere)
        refused = _problem(request.url.path, refusal_of(error))
        if error.address is None or was_passed_on(request.scope):
            return refused
        secure = access_of(request.scope, self._node.config.trusted_proxies).secure
        return Relay(error, self._node.ledger, request.scope.get(BODY, b""), refused, secure=secure)

    async def healthz(self, request: Request) -> Response:
        return _json({"status": "alive"})

    async def readyz(self, request: Request) -> Response:
        reasons = await self._node.unready()
        engines = [engine._asdict() for engine in self._node.engine.health()]
        ready = {"ready": not reasons, "reasons": reasons, "engines": engines}
        return _json(ready, status=503 if reasons else 200)

    async def metrics(self, request: Request) -> Response:
        if not from_here(request.scope):
            raise Refusal("not_found")
        return Response(await self._metrics.page(), media_type=CONTENT_TYPE)


def _job_in_path(request: Request) -> JobId:
    """Refusal `not_found` for a number that no job can have."""
    text = request.path_params["job_id"]
    # Python refuses to read a number of thousands of digits, so their count is looked at first.
    if _JOB_ID.fullmatch(text) is None or int(text) > MAX_JOB_ID:
        raise Refusal("not_found", f"Job ids are 1 to {MAX_JOB_ID}.")
    return JobId(int(text))


def _same_job(named: JobId, job_id: JobId) -> None:
    if named != job_id:
        raise Refusal("job_mismatch", f"The receipt is of job {job_id}; the path names job {named}.")


class NoSocket:
    """Every other upgrade, told what it is refused for before it is accepted."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = _problem(scope["path"], Refusal("not_found"))
        await refuse_upgrade(send, refused.status_code, refused.raw_headers, bytes(refused.body))


# Replies


class Completions:
    """`POST /v1/chat/completions` or `/v1/completions`, by what reads its body, as an ASGI application."""

    def __init__(self, node: Node, parse: Callable[[bytes], wire.ReplyRequest]) -> None:
        self._node = node
        self._parse = parse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        access = access_of(scope, self._node.config.trusted_proxies)
        asked = self._parse(await read_body(scope, receive))
        stream = await self._node.desk.admit(asked, access)
        async with stream, _leaving_cuts(receive, stream):
            if asked.stream:
                await self._send_events(stream, send)
            else:
                await self._send_whole(stream, send)

    async def _send_events(self, stream: Stream, send: Send) -> None:
        """Nothing is sent before the first chunk, so that what fails until then has a status of its own."""
        chunks = await anext(stream, None)
        if chunks is None:
            _raise_failure(stream)
        events = Events(stream.order)
        await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
        try:
            while chunks is not None:
                body = events.chunks(chunks)
                await send({"type": "http.response.body", "body": body, "more_body": True})
                chunks = await anext(stream, None)
            assert stream.end is not None
            last = events.end(stream.end)
        except TallystickError as error:
            last = events.failure(refusal_of(error))
        await send({"type": "http.response.body", "body": last})

    async def _send_whole(self, stream: Stream, send: Send) -> None:
        pieces = [
            chunk.piece async for chunks in stream for chunk in chunks if chunk.piece and chunk.piece.choices
        ]
        _raise_failure(stream)
        assert stream.end is not None
        body = _open(pieces[-1].raw, stream.order)
        response = _json({**body, "usage": stream.end.usage, "tally": stream.end.tally})
        headers = response.raw_headers
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": response.body})


@asynccontextmanager
async def _leaving_cuts(receive: Receive, stream: Stream) -> AsyncIterator[None]:
    """Cuts the stream when the client disconnects."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        stream.cut(CANCELLED)

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

    def chunks(self, chunks: Iterable[Chunk]) -> bytes:
        """What is sent in one write."""
        return b"".join([wire.sse(self._event(chunk)) for chunk in chunks])

    def end(self, end: End) -> bytes:
        """What a reply ends with, after its last piece."""
        if end.failure is not None:
            return self.failure(end.failure, end.tally)
        last = b""
        if end.untold:
            how = {**self._order.form.blank, "finish_reason": end.finish_reason}
            cut = [{"index": choice, **how} for choice in end.untold]
            last += wire.sse({**self._chunk, "choices": cut, **self._nulls, "tally": end.tally})
        if self._order.include_usage:
            last += wire.sse({**self._chunk, "choices": [], "usage": end.usage, "tally": end.tally})
        return last + wire.SSE_DONE

    def failure(self, refusal: Refusal, tally: dict[str, Any] | None = None) -> bytes:
        """What a reply ends with that cannot go on."""
        error = wire.openai_error(refusal)
        return wire.sse({**error, "tally": tally} if tally else error) + wire.SSE_DONE

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


def _open(raw: dict[str, Any], order: Order) -> dict[str, Any]:
    """A chunk of the engine's as the client gets it: without the counts that only the host had asked for."""
    event = {name: member for name, member in raw.items() if name not in ("usage", "timings")}
    event["model"] = order.model
    return event


# Answers


def _json(content: Any, status: int = 200, media_type: str = "application/json") -> Response:
    return Response(orjson.dumps(content), status, media_type=media_type)


async def _refused(request: Request, error: Exception) -> Response:
    """A refusal: OpenAI's clients read another form of it than everybody else."""
    assert isinstance(error, TallystickError)
    if isinstance(error, PeerGone):
        return Response(status_code=400)  # nobody reads it
    return _problem(request.url.path, refusal_of(error))


def _problem(path: str, refusal: Refusal) -> Response:
    if _is_openais(path):
        response = _json(wire.openai_error(refusal), refusal.row.status)
    else:
        response = _json(refusal.problem(), refusal.row.status, "application/problem+json")
    if refusal.row.status == 401:
        response.headers["www-authenticate"] = "Bearer"
    if "retry_after" in refusal.extra:
        response.headers["retry-after"] = str(refusal.extra["retry_after"])
    return response


def _is_openais(path: str) -> bool:
    """Whatever OpenAI's clients may ask for, served or not; not what only this protocol has."""
    return path.startswith("/v1/") and not path.startswith(OURS)


async def _no_route(request: Request, error: Exception) -> Response:
    """What Starlette itself turns down."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "not_allowed"}.get(error.status_code, "invalid_request")
    response = _problem(request.url.path, Refusal(code))
    response.headers.update(error.headers or {})
    return response


async def _fault(request: Request, error: Exception) -> Response:
    """A fault of ours; Starlette raises it again for the log once this is sent."""
    return _problem(request.url.path, Refusal("node_failed"))


# Running


class Patient(asyncio.Protocol):
    """Gives a connection up whose other end takes nothing: nobody holds a reply by not reading it."""

    transport: asyncio.Transport
    _given_up: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        self._given_up = asyncio.get_running_loop().call_later(SEND_LIMIT, self._give_up)
        super().pause_writing()

    def resume_writing(self) -> None:
        self._keep()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._keep()
        super().connection_lost(exc)

    def _keep(self) -> None:
        if self._given_up is not None:
            self._given_up.cancel()

    def _give_up(self) -> None:
        log.info("client.not_reading", seconds=SEND_LIMIT)
        self.transport.abort()


class PatientHttp(Patient, HttpToolsProtocol):
    """uvicorn's HTTP, with an end to its patience."""


class PatientWebSocket(Patient, WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, with an end to its patience."""


class Server(uvicorn.Server):
    """uvicorn, which lets the replies of its node end before it closes their connections."""

    def __init__(self, node: Node, host: str, port: int) -> None:
        super().__init__(
            uvicorn.Config(
                app(node),
                host,
                port,
                http=PatientHttp,
                ws=PatientWebSocket,
                # Frames are a few hundred bytes: packing them costs more than it saves.
                ws_per_message_deflate=False,
                ws_max_size=wire.MAX_BODY,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                # Whether a bearer came in the clear depends on who is at the other end: see peer.py.
                proxy_headers=False,
                timeout_graceful_shutdown=CLOSE_CONNECTIONS,
            )
        )
        self._node = node

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leaves signals to whoever runs the event loop: uvicorn would end the process too early."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._node.desk.stop(STOP_STREAMS)
        await super().shutdown(sockets)


@asynccontextmanager
async def running(node: Node, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Starts a node and serves it in this event loop: the base URL. Port 0: any free one.

    Leaving ends the replies under way, settles what is due, and closes all. Raises what `Node.start` raises,
    and OSError where it cannot listen.
    """
    six = ":" in host
    family = socket.AF_INET6 if six else socket.AF_INET
    async with node:
        with closing(socket.create_server((host, port), family=family)) as listener:
            url = f"http://{f'[{host}]' if six else host}:{listener.getsockname()[1]}"
            await node.ledger.reach(node.config.peer_url or url)
            node.url = node.config.public_url or url
            server = Server(node, host, port)
            serving = asyncio.create_task(server.serve([listener]))
            try:
                yield url
            finally:
                server.should_exit = True
                await serving
