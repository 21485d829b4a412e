"""Who is at the other end of a connection: what it showed, how that came in, and what it sent.

Knows ASGI's scopes and messages, no route and no job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from tallystick.desk import Access
from tallystick.errors import Refusal, TallystickError
from tallystick.wire import MAX_BODY

BODY = "tallystick.body"
FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")
"""Headers by which proxies say that they ask for somebody else."""
STRANGERS_BODY = 128_000
"""Bytes of a body, or of a frame, from who has not shown a bearer that holds; any receipt is shorter."""
BODY_LIMIT = 30.0
"""Seconds in which a request's body has to arrive."""


class PeerGone(TallystickError):
    """The other end has left."""


def access_of(scope: Scope, trusted: Sequence[str]) -> Access:
    """What came with a request or an upgrade; `trusted` as `secure` has it."""
    headers = Headers(scope=scope)
    client = scope.get("client")
    return Access(
        bearer_of(headers.get("authorization")),
        secure(scope["scheme"], client and client[0], headers.get("x-forwarded-proto"), trusted),
    )


def bearer_of(authorization: str | None) -> str | None:
    """The credentials of an `Authorization` header; of another scheme than Bearer as they stand."""
    if authorization is None:
        return None
    scheme, _, credentials = authorization.strip().partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else authorization


def secure(scheme: str, peer: str | None, forwarded: str | None, trusted: Sequence[str]) -> bool:
    """True if nobody on the way could read what came.

    `peer`: the address that the connection is from, None for a local socket. `forwarded`:
    `X-Forwarded-Proto`, of whose steps the worst counts; taken from `trusted` networks, and held against a
    proxy on this machine.
    """
    if scheme in ("https", "wss") or peer is None:
        return True
    forwarded_securely = forwarded is not None and all(
        step.strip() in ("https", "wss") for step in forwarded.split(",")
    )
    address = _address(peer)
    if address.is_loopback:
        return forwarded is None or forwarded_securely
    return forwarded_securely and any(address in ip_network(network) for network in trusted)


def _address(peer: str) -> IPv4Address | IPv6Address:
    address = ip_address(peer)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def from_here(scope: Scope) -> bool:
    """True for a request of this machine's own, which no proxy passes on for somebody else."""
    headers, client = Headers(scope=scope), scope.get("client")
    if any(name in headers for name in FORWARDED):
        return False
    return client is None or _address(client[0]).is_loopback


async def read_body(
    scope: Scope, receive: Receive, vouch: Callable[[], Awaitable[object]] | None = None
) -> bytes:
    """The whole body of a request, kept in its scope for whoever has to pass it on.

    `vouch` is asked once it is longer than anybody's may be, and raises where it is a stranger's; without it
    none is longer. Refusal `too_large`; `invalid_request` for one that does not arrive.
    """
    scope[BODY] = await _whole(receive, vouch)
    body: bytes = scope[BODY]
    return body


async def _whole(receive: Receive, vouch: Callable[[], Awaitable[object]] | None) -> bytes:
    limit = STRANGERS_BODY
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_LIMIT):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise PeerGone("the client left before its request had arrived")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > limit:
                    if vouch is None or size > MAX_BODY:
                        raise Refusal("too_large", f"The body is longer than {limit} bytes.")
                    await vouch()
                    limit = MAX_BODY
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise Refusal("invalid_request", f"The body did not arrive within {BODY_LIMIT:g} s.") from None
