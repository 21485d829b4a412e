"""Which hosts there are: found in the registry, asked for their signed quotes, ordered by price.

The registry holds what strangers wrote. So what is fetched is https from a public address, small, soon there,
and led nowhere else; a quote counts only if the registered host signed it, and it is good now. On a devnet,
and there alone, a host may be on this machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp
import orjson

from tallystick import outgoing
from tallystick.addresses import is_literal, is_loopback, is_public
from tallystick.chain import Chain
from tallystick.config import http_url
from tallystick.errors import SessionError
from tallystick.networks import DEVNET, Deployment
from tallystick.opening import Quote, check_endpoint, check_holds, quote_in, read_quote
from tallystick.outgoing import LedElsewhere
from tallystick.types import Address, Prices

MAX_QUOTE = 4096
"""Bytes of a quote that are read of a stranger."""
PATIENCE = 5.0
"""Seconds that a host has to answer in, name and connection included."""
AT_ONCE = 16
"""Hosts that are asked at a time."""


@dataclass(frozen=True, slots=True)
class Listing:
    """A registered host: with its quote, or with what keeps it from being used."""

    host: Address
    endpoint: str
    quote: Quote | None = None
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Offer:
    """A model that a host sells in one asset."""

    listing: Listing
    model: str
    prices: Prices


async def listings(chain: Chain) -> list[Listing]:
    """All registered hosts, longest known first. ChainError if the chain cannot be asked."""
    return await asked(chain, await chain.hosts())


async def asked(chain: Chain, registered: Mapping[Address, str]) -> list[Listing]:
    """Each of these hosts, asked for its quote; to each how it describes itself. ChainError."""
    now = (await chain.block()).timestamp
    turns = asyncio.Semaphore(AT_ONCE)
    limit = aiohttp.ClientTimeout(total=PATIENCE)
    async with outgoing.client(limit, found_on=chain.deployment.chain_id, force_close=True) as http:

        async def ask(host: Address, metadata: str) -> Listing:
            async with turns:
                return await _asked(http, host, metadata, chain.deployment, now)

        return await asyncio.gather(*(ask(host, metadata) for host, metadata in registered.items()))


async def _asked(
    http: aiohttp.ClientSession, host: Address, metadata: str, deployment: Deployment, now: int
) -> Listing:
    endpoint = ""
    try:
        endpoint = endpoint_of(metadata, local=deployment.chain_id == DEVNET)
        _, raw = await read_quote(http, endpoint, MAX_QUOTE)
        quote = checked(raw, host, deployment, now)
        check_endpoint(quote, endpoint)
        return Listing(host, endpoint, quote)
    except SessionError as error:
        return Listing(host, endpoint, trouble=str(error))
    except LedElsewhere as error:
        return Listing(host, endpoint, trouble=str(error))
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return Listing(host, endpoint, trouble=f"it does not answer: {error!r}")


def endpoint_of(metadata: str, *, local: bool) -> str:
    """Where a host says that it is. SessionError for what is not to be fetched from."""
    try:
        told = orjson.loads(metadata)
        endpoint = http_url(told["endpoint"])
        parts = urlsplit(endpoint)
    except (orjson.JSONDecodeError, ValueError, LookupError, TypeError, AttributeError):
        raise SessionError("its metadata names no endpoint") from None
    if local and is_loopback(parts.hostname or ""):
        return endpoint
    if parts.scheme != "https" or parts.username or parts.password:
        raise SessionError("its endpoint is not https")
    if is_literal(parts.hostname or "") and not is_public(parts.hostname or ""):
        raise SessionError("its endpoint is no public address")
    return endpoint


def checked(raw: bytes, host: Address, deployment: Deployment, now: int) -> Quote:
    """A quote that holds, and is the registered host's. SessionError for any other."""
    try:
        quote = quote_in(orjson.loads(raw))
    except orjson.JSONDecodeError as error:
        raise SessionError(f"its quote cannot be read: {error}") from None
    if not quote.paid:
        raise SessionError("it has no key, and signs no quote")
    if quote.host != host:
        raise SessionError(f"its quote is signed by {quote.host}")
    check_holds(quote, deployment, now)
    return quote


def offers(found: Iterable[Listing], asset: Address, model: str | None = None) -> list[Offer]:
    """What is sold in an asset, cheapest generated tokens first; of one model, or of all."""
    sold = [
        Offer(listing, name, prices[asset])
        for listing in found
        if listing.quote is not None
        for name, prices in listing.quote.models.items()
        if asset in prices and model in (None, name)
    ]
    return sorted(sold, key=lambda offer: (offer.prices.per_million, offer.prices.prompt_per_million))
