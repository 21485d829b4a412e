"""How others are asked over HTTP: they lead nowhere else, and whom the registry named is at a public address.

A host is a stranger, with a payer behind whose firewall there is more than this program. So no redirect is
followed, and where a name leads is looked at each time that it is used, not only when it was found.
"""

from __future__ import annotations

import errno
import socket
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from tallystick.addresses import is_loopback, is_public
from tallystick.networks import DEVNET

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class LedElsewhere(aiohttp.ClientError):
    """Who was asked answers with a redirect."""

    def __init__(self, status: int, location: str) -> None:
        self.strerror = f"it answers HTTP {status}, to lead to {_place(location)}, and is not followed"
        super().__init__(self.strerror)


def _place(location: str) -> str:
    """Whose place it is, without the path: there may be a key in that."""
    try:
        parts = urlsplit(location)
    except ValueError:
        return "nowhere"
    name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else "another path"
    return repr(name[:100])


def client(
    timeout: aiohttp.ClientTimeout,
    *,
    found_on: int | None = None,
    limit: int = 100,
    force_close: bool = False,
    **options: Any,
) -> aiohttp.ClientSession:
    """A client that raises LedElsewhere for a redirect. Call it in an event loop; `async with` it.

    `found_on`: id of the chain whose registry named the host that is asked; None: the user named it, wherever
    it is. `limit`: connections at a time, 0: any number; `options` are ClientSession's.
    """
    resolver = None if found_on is None else Resolver(local=found_on == DEVNET)
    connector = aiohttp.TCPConnector(resolver=resolver, limit=limit, force_close=force_close)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, middlewares=[_stay], **options)


async def _stay(request: aiohttp.ClientRequest, ask: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    answer = await ask(request)
    if answer.status in _REDIRECTS:
        answer.close()
        raise LedElsewhere(answer.status, answer.headers.get("location", ""))
    return answer


class Resolver(AbstractResolver):
    """Names as this machine knows them, less the addresses that a stranger's name may not lead to."""

    def __init__(self, *, local: bool) -> None:
        """`local`: a name of this machine leads to it."""
        self._local = local
        self._names = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The public addresses of a name. OSError if it has none."""
        found = await self._names.resolve(host, port, family)
        if self._local and is_loopback(host):
            return found
        public = [each for each in found if is_public(each["host"])]
        if not public:
            raise OSError(errno.EHOSTUNREACH, f"{host} is at no public address")
        return public

    async def close(self) -> None:
        """Nothing is held."""
        await self._names.close()
