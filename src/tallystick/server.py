"""A host's door: the routes of protocol §7 over a node, and the server that they run in.

    POST /v1/chat/completions     GET /v1/models             GET  /v1/jobs/{id}              GET /healthz
    POST /v1/completions          GET /v1/models/{model}     POST /v1/jobs/{id}/receipts     GET /readyz
    GET  /v1/session (WebSocket)  GET /v1/host               POST /v1/jobs/{id}/complete     GET /metrics
                                  POST /v1/jobs              POST /v1/jobs/{id}/top-up

Replies are completions.py's and websocket.py's; all else is here, in one piece. Decides nothing.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Generator
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

from tallystick import asking, openapi, wire
from tallystick.completions import Completions
from tallystick.desk import refusal_of
from tallystick.errors import Elsewhere, Refusal, TallystickError
from tallystick.metrics import CONTENT_TYPE, Metrics
from tallystick.node import STOP_STREAMS, Node
from tallystick.patience import PatientHttp, PatientWebSocket
from tallystick.peer import BODY, PeerGone, access_of, from_here, read_body
from tallystick.proof import MAX_JOB_ID
from tallystick.relay import Relay, was_passed_on
from tallystick.replay import Replays
from tallystick.sponsor import Sponsor
from tallystick.types import JobId
from tallystick.websocket import Sessions, refuse_upgrade

CLOSE_CONNECTIONS = 5
"""Seconds that connections have to close in when the server stops, after the replies have ended."""

_JOB_ID = re.compile(r"[1-9][0-9]{0,15}", re.ASCII)

log = structlog.get_logger(__name__)


def app(node: Node) -> Starlette:
    """The routes over a node, which has to be started before the first request."""
    routes = Routes(node)
    replays = Replays(node.config.grace)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", Completions(node, replays, asking.parse_chat), methods=["POST"]),
            Route("/v1/completions", Completions(node, replays, asking.parse_text), methods=["POST"]),
            WebSocketRoute("/v1/session", Sessions(node, replays)),
            Route("/v1/session", routes.session),
            Route("/v1/models", routes.models),
            Route("/v1/models/{model:path}", routes.model),
            Route("/v1/host", routes.host),
            Route("/v1/jobs", routes.open, methods=["POST"]),
            Route("/v1/jobs/{job_id}", routes.job),
            Route("/v1/jobs/{job_id}/receipts", routes.receipts, methods=["POST"]),
            Route("/v1/jobs/{job_id}/complete", routes.complete, methods=["POST"]),
            Route("/v1/jobs/{job_id}/top-up", routes.top_up, methods=["POST"]),
            Route("/healthz", routes.healthz),
            Route("/readyz", routes.readyz),
            Route("/metrics", routes.metrics),
            Route("/openapi.json", routes.openapi),
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

    async def open(self, request: Request) -> Response:
        body = await read_body(request.scope, request.receive)
        return _json(await self._sponsor.open(*wire.opening_in(wire.parse(body))), status=202)

    async def top_up(self, request: Request) -> Response:
        job_id = _job_in_path(request)
        body = await read_body(request.scope, request.receive)
        sent = await self._sponsor.top_up(job_id, *wire.top_up_in(wire.parse(body)))
        return _json(sent, status=202)

    @property
    def _sponsor(self) -> Sponsor:
        if self._node.sponsor is None:
            raise Refusal("not_relayed")
        return self._node.sponsor

    async def pass_on(self, request: Request, error: Exception) -> Response:
        """Has the process answer that serves the job; one that was asked by another process refuses."""
        assert isinstance(error, Elsewhere)
        refused = _problem(request.url.path, refusal_of(error))
        if error.address is None or was_passed_on(request.scope):
            return refused
        secure = access_of(request.scope, self._node.config.trusted_proxies).secure
        return Relay(error, self._node.ledger, request.scope.get(BODY, b""), refused, secure=secure)

    async def session(self, request: Request) -> Response:
        raise Refusal("upgrade_required")

    async def openapi(self, request: Request) -> Response:
        return Response(openapi.document(), media_type="application/json")

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
    if wire.is_openais(path):
        response = _json(wire.openai_error(refusal), refusal.row.status)
    else:
        response = _json(refusal.problem(), refusal.row.status, "application/problem+json")
    if refusal.row.status == 426:
        response.headers["upgrade"] = "websocket"
    if refusal.row.status == 401:
        response.headers["www-authenticate"] = "Bearer"
    if "retry_after" in refusal.extra:
        response.headers["retry-after"] = str(refusal.extra["retry_after"])
    return response


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
