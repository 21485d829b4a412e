"""`tally proxy`: OpenAI's API on this machine, for any client, paid from jobs that are opened when needed.

It is a wallet on a port: it answers programs on this machine, and no web page, whatever name that page has
found for it. What a request costs and whether it may is for `spending.py` and `caps.py` to say.
"""

from __future__ import annotations

import asyncio
import fcntl
import hmac
import socket
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import orjson
import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tallystick import page, pricing, wallet
from tallystick.config import PayerConfig, Secret, address_and_port
from tallystick.errors import ConfigError, Refusal, TallystickError
from tallystick.gateway import ROUTES, Answer, Gateway, refused
from tallystick.page import Page
from tallystick.peer import PeerGone, bearer_of, read_body
from tallystick.repeats import Repeats
from tallystick.spending import IDLE, Spender
from tallystick.types import Prices
from tallystick.wallet import Wallet

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
CLOSE_CONNECTIONS = 5
"""Seconds that clients have to read the end of their replies in when the proxy stops."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Door:
    """Who may ask: the rules, without I/O."""

    address: str
    """That is listened on."""
    port: int
    api_key: Secret[str] | None = None

    def __post_init__(self) -> None:
        if self.api_key is None and not _is_loopback(self.address):
            raise ConfigError(
                f"PROXY_LISTEN {self.address}: whoever reaches the proxy spends your money, "
                "so elsewhere than on this machine's loopback it needs a PROXY_API_KEY"
            )

    @property
    def names(self) -> list[str]:
        """What a `Host` header may say; none: anything, as the key alone opens then."""
        if _is_any(self.address):
            return []
        shown = f"[{self.address}]" if ":" in self.address else self.address
        return [f"{name}:{self.port}" for name in dict.fromkeys((*LOOPBACK, shown))]

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Refusal `page_refused`, `json_required` or `key_refused`."""
        self._check_page(headers)
        if method == "POST" and _media_type(headers) != "application/json" and not _is_unknown(path):
            raise Refusal("json_required")
        if self.api_key is not None and path != "/healthz" and not page.is_open(path):
            shown = bearer_of(headers.get("authorization")) or ""
            if not hmac.compare_digest(shown.encode(), self.api_key.reveal().encode()):
                raise Refusal("key_refused")

    def _check_page(self, headers: Headers) -> None:
        """A page can have a browser ask here, and have a name of its own lead here; the headers tell."""
        host = headers.get("host", "")
        names = self.names or [host]
        if host not in names:
            raise Refusal("page_refused", f"The proxy does not go by the name of {host!r}.")
        origin = headers.get("origin")
        if origin is not None and origin not in [f"http://{name}" for name in names]:
            raise Refusal("page_refused", f"The request is that of a web page of {origin!r}.")
        site = headers.get("sec-fetch-site")
        if site not in (None, "same-origin", "none"):
            raise Refusal("page_refused", f"A web page asks, and it is {site}.")


def _is_unknown(path: str) -> bool:
    """A route of OpenAI's that is not served here: what takes uploads is told that, not how to send them."""
    return path.startswith("/v1/") and path not in ROUTES


def _is_loopback(address: str) -> bool:
    return address == "localhost" or _ip(address).is_loopback


def _is_any(address: str) -> bool:
    return address != "localhost" and _ip(address).is_unspecified


def _ip(address: str) -> IPv4Address | IPv6Address:
    try:
        return ip_address(address)
    except ValueError:
        raise ConfigError(
            f"PROXY_LISTEN {address}: what is listened on is an IP address or localhost, not another name"
        ) from None


def _media_type(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


class Guard:
    """Turns away whom the door does not let in."""

    def __init__(self, app: ASGIApp, door: Callable[[], Door]) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] == "http":
                self._door().check(scope["method"], scope["path"], Headers(scope=scope))
        except Refusal as refusal:
            await _send(refused(refusal), send)
            return
        if scope["type"] == "websocket":
            await _refuse_upgrade(refused(Refusal("not_found")), send)
        else:
            await self._app(scope, receive, send)


class Api:
    """`/v1/…`, as an ASGI application."""

    def __init__(self, repeats: Repeats) -> None:
        self._repeats = repeats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, unless the client leaves before."""
        try:
            body = await read_body(scope, receive, _passed_the_door)
        except PeerGone:
            return
        except TallystickError as error:
            await _send(refused(error), send)
            return
        answering = asyncio.create_task(self._answer(scope, body, send))
        leaving = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            answering.cancel()
            await asyncio.wait([answering])
        if not answering.cancelled():
            answering.result()

    async def _answer(self, scope: Scope, body: bytes, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        async with self._repeats.answer(scope["method"], scope["path"], body, headers) as answer:
            await _send(answer, send)


async def _passed_the_door() -> None:
    """Whoever comes so far may send as long a body as a host takes."""


async def _refuse_upgrade(answer: Answer, send: Send) -> None:
    """Says no as a request is told no: no route of the proxy is a WebSocket's."""
    headers = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
    start = {"type": "websocket.http.response.start", "status": answer.status, "headers": headers}
    await send(start)
    await send({"type": "websocket.http.response.body", "body": answer.body})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(answer: Answer, send: Send) -> None:
    headers = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
    if isinstance(answer.body, bytes):
        headers.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    if isinstance(answer.body, bytes):
        await send({"type": "http.response.body", "body": answer.body})
        return
    async with aclosing(answer.body) as events:
        async for event in events:
            if event:
                await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body"})


class Routes:
    """What is asked of the proxy itself."""

    def __init__(self, spender: Spender) -> None:
        self._spender = spender

    async def healthz(self, request: Request) -> Response:
        return Response(orjson.dumps({"status": "alive"}), media_type="application/json")

    async def jobs(self, request: Request) -> Response:
        """The jobs in use, with what is in them in base units."""
        told = [
            {
                "job_id": used.session.job.id,
                "model": used.session.model,
                "host_url": used.session.host_url,
                "requests": used.requests,
                "deposit": str(used.purse.deposit),
                "owed": str(used.purse.owed),
                "left": str(used.purse.rest),
            }
            for used in self._spender.jobs
        ]
        return Response(orjson.dumps({"jobs": told}), media_type="application/json")


def app(spender: Spender, repeats: Repeats, shown: Page, door: Callable[[], Door]) -> Starlette:
    """The routes over a payer's jobs, behind the door."""
    routes = Routes(spender)
    methods = ["GET", "POST", "DELETE", "PUT", "PATCH"]
    return Starlette(
        routes=[
            Route("/v1/{path:path}", Api(repeats), methods=methods),
            Route("/tally/jobs", routes.jobs),
            Route("/healthz", routes.healthz),
            *shown.routes,
        ],
        middleware=[Middleware(Guard, door=door)],
        exception_handlers={404: _no_route, 405: _no_route},
    )


async def _no_route(request: Request, error: Exception) -> Response:
    answer = refused(Refusal("not_found"))
    assert isinstance(answer.body, bytes)
    return Response(answer.body, answer.status, media_type="application/json")


class Server(uvicorn.Server):
    """uvicorn, which lets the replies of its gateway end before it closes their connections."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._gateway.stop()
        cutting = asyncio.get_running_loop().call_later(CLOSE_CONNECTIONS, self._cut)
        await super().shutdown(sockets)
        cutting.cancel()

    def _cut(self) -> None:
        """Leaves clients that do not read, or never finish asking."""
        for connection in list(self.server_state.connections):
            assert connection.transport is not None
            connection.transport.abort()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leaves signals to whoever runs the event loop."""
        yield


@asynccontextmanager
async def listening(
    spender: Spender, gateway: Gateway, address: str, port: int, api_key: Secret[str] | None = None
) -> AsyncIterator[str]:
    """Serves in this event loop: the base URL for clients. Port 0: any free one. OSError, ConfigError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    Door(address, port, api_key)  # before anything is listened on
    with closing(socket.create_server((address, port), family=family)) as listener:
        door = Door(address, listener.getsockname()[1], api_key)
        shown, repeats = Page(spender), Repeats(gateway)
        config = uvicorn.Config(
            app(spender, repeats, shown, lambda: door),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
        )
        server = Server(config, gateway)
        serving = asyncio.create_task(server.serve([listener]))
        try:
            yield f"http://{f'[{address}]' if ':' in address else address}:{door.port}/v1"
        finally:
            shown.close()
            server.should_exit = True
            await serving
            await repeats.close()


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Two proxies with one store would pay from the same jobs. ConfigError if there is one already."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (directory / "proxy.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            told = f"another proxy pays from the jobs in {directory}: stop it, or set another PAYER_DATA_DIR"
            raise ConfigError(told) from None
        yield


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options of the command. Amounts are in whole units of the asset."""

    hosts: Sequence[str] = ()
    """URLs to choose among; none: HOST_URL, or all registered hosts."""
    deposit: str | None = None
    per_day: str | None = None
    prices: Sequence[str] = ()
    """`0.60`, for any model, or `MODEL=0.60`."""
    listen: str | None = None
    api_key: str | None = None
    idle: float = IDLE
    tokenizers: Sequence[str] = ()
    """`MODEL=FILE@sha256:…`."""
    interval: int | None = None
    """Tokens; None: PAYER_INTERVAL."""


def listen_of(config: PayerConfig, named: str | None) -> tuple[str, int]:
    """Where to listen. ConfigError."""
    try:
        return config.proxy_listen if named is None else address_and_port(named)
    except ValueError as error:
        raise ConfigError(f"--listen: {error}") from None


@asynccontextmanager
async def running(wanted: Wanted) -> AsyncIterator[tuple[str, str]]:
    """The whole proxy: the base URL for clients, and what to say of it. Leaving completes its jobs.

    ConfigError, ChainError, LedgerError.
    """
    async with wallet.opened(tokenizers=wanted.tokenizers, interval=wanted.interval) as locked:
        with alone(locked.config.data_dir):
            purse = locked.unlocked()  # a keystore's password is asked for now, not with the first request
            address, port = listen_of(purse.config, wanted.listen)
            key = Secret(wanted.api_key) if wanted.api_key else purse.config.proxy_api_key
            asset, urls = purse.asset(), purse.host_urls(wanted.hosts)
            caps = purse.caps(wanted.deposit, wanted.per_day, wanted.prices, asset)
            async with Spender(purse, caps, urls, asset=asset, idle=wanted.idle) as spender:
                gateway = Gateway(spender, max_tokens=purse.config.max_tokens)
                try:
                    async with listening(spender, gateway, address, port, key) as url:
                        yield url, _told(purse, spender)
                except OSError as error:
                    told = f"PROXY_LISTEN {address}:{port} cannot be listened on: {error.strerror}"
                    raise ConfigError(told) from error


def _told(purse: Wallet, spender: Spender) -> str:
    deposit, per_day = (
        wallet.money(purse.chain, spender.asset, units)
        for units in (spender.caps.deposit, spender.caps.per_day)
    )
    urls = spender.hosts.urls
    hosts = ", ".join(urls) if urls else "registered hosts (`tally hosts` lists them)"
    pays = f"pays {hosts}: at most {deposit} in escrow for a job, at most {per_day} a day"
    return f"{pays}\n{_risk(purse, spender)}"


def _risk(purse: Wallet, spender: Spender) -> str:
    """What each side can lose while tokens are delivered and not signed for (law 3)."""
    price = spender.caps.price

    def worth(tokens: int) -> str:
        if price is None:
            return f"{tokens} tokens"
        most = wallet.money(purse.chain, spender.asset, pricing.at_risk(tokens, Prices(price, price)))
        return f"{tokens} tokens ({most} at most)"

    config = purse.config
    return f"at risk at a time: {worth(config.interval)} of the host's, {worth(config.ahead)} of yours"
