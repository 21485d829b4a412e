"""How a payer without ETH has its host send what it authorizes (protocol §7), and sees it on the chain.

What was signed can be used by anybody until it runs out, whatever the host answers; so only the chain tells
what came of it. What may be paid is decided in opening.py and wallet.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import aiohttp
import orjson

from tallystick import fees, frames, outgoing, proof, wire
from tallystick.authorization import VALID, Consent, Opening, P, TopUp
from tallystick.chain import INCLUSION_TIMEOUT, Chain
from tallystick.contracts import Created, Logged, ToppedUp
from tallystick.errors import ChainError, HostRefused, SessionError
from tallystick.fees import Market, Pace
from tallystick.types import Address

GAS = 280_000
"""Gas of an approval and an opening, with what is added to an estimate; docs/gas.md has the figures."""
ASK = 30.0
"""Seconds that a host has to answer in: it asks the chain and writes to its disk meanwhile."""
POLL = 0.5
"""Seconds between looks at the chain, at most."""

E = TypeVar("E", bound=Logged)
Ahead = Callable[[], Awaitable[None]]


class Sponsor(NamedTuple):
    """The host that is to send what a payer authorizes."""

    url: str
    host: Address
    found_on: int | None = None
    """As `outgoing.client` has it."""


async def is_short(chain: Chain, payer: Address) -> bool:
    """True for an account whose ETH does not pay for an approval and an opening at the present fees."""
    head = await chain.block()
    market = Market(head.base_fee, await chain.priority_fee())
    return await chain.eth_balance(payer) < GAS * fees.opening(market, Pace().ceiling).max_fee


async def consent(chain: Chain, payer: Address, purpose: P) -> Consent[P]:
    """What `payer` is to sign, good for a quarter of an hour of the chain's clock. ChainError."""
    deployment = chain.deployment
    domain = proof.Domain(deployment.chain_id, deployment.marketplace)
    valid_before = (await chain.block()).timestamp + VALID
    return Consent(purpose, payer, valid_before, domain, await chain.token_domain(purpose.asset))


async def open_job(
    chain: Chain, sponsor: Sponsor, agreed: Consent[Opening], key: bytes, ahead: Ahead
) -> Created:
    """Has the host open a job, and waits until the chain has it, as deep as the deployment asks.

    ContractError if the chain would not take it. `ahead` is told after that, and before anything is given
    away. HostRefused, or SessionError if it does not come; whoever has the authorization can use it until it
    runs out all the same.
    """
    opening, since = agreed.purpose, await chain.block_number()
    auth = agreed.sign(key)
    await chain.simulate(chain.authorized(opening, auth), sponsor.host)
    await ahead()
    await _ask(sponsor, "/v1/jobs", wire.opening_out(opening, auth))

    async def find() -> Created | None:
        found = await chain.jobs(payer=agreed.payer, since=since)
        return next((event for event in found if event.signer == opening.terms.signer), None)

    return await _seen(chain, sponsor.url, find)


async def top_up(
    chain: Chain, sponsor: Sponsor, agreed: Consent[TopUp], key: bytes, ahead: Ahead
) -> ToppedUp:
    """Has the host add to a job's deposit, likewise."""
    more, since = agreed.purpose, await chain.block_number()
    auth = agreed.sign(key)
    await chain.simulate(chain.authorized(more, auth), sponsor.host)
    await ahead()
    await _ask(sponsor, f"/v1/jobs/{more.job_id}/top-up", wire.top_up_out(more, auth))

    async def find() -> ToppedUp | None:
        events = await chain.events(since + 1, await chain.block_number(), ["JobToppedUp"])
        of_job = (each for each in events if isinstance(each, ToppedUp) and each.job_id == more.job_id)
        return next((each for each in of_job if each.amount == more.amount), None)

    return await _seen(chain, sponsor.url, find)


async def _ask(sponsor: Sponsor, path: str, body: dict[str, Any]) -> None:
    """Asks, and once more where no answer came: the same is never done twice. HostRefused, SessionError."""
    try:
        await _ask_once(sponsor, path, body)
    except HostRefused:
        raise
    except SessionError:
        await _ask_once(sponsor, path, body)


async def _ask_once(sponsor: Sponsor, path: str, body: dict[str, Any]) -> None:
    url = f"{sponsor.url}{path}"
    try:
        async with (
            outgoing.client(aiohttp.ClientTimeout(total=ASK), found_on=sponsor.found_on) as http,
            http.post(url, json=body) as answer,
        ):
            status, raw = answer.status, await answer.content.read(wire.MAX_BODY)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise SessionError(f"{url} does not answer: {error}") from error
    if status != 202:
        raise HostRefused(frames.problem(_object(raw)))


def _object(raw: bytes) -> dict[str, Any]:
    with suppress(orjson.JSONDecodeError):
        told = orjson.loads(raw)
        return told if isinstance(told, dict) else {}
    return {}


async def _seen(chain: Chain, host_url: str, find: Callable[[], Awaitable[E | None]]) -> E:
    """The event that `find` finds, once it is as deep as the deployment asks."""
    pause = 0.02
    try:
        async with asyncio.timeout(INCLUSION_TIMEOUT):
            while True:
                # An endpoint that fails meanwhile is asked again: what was sent is not undone by that.
                with suppress(ChainError):
                    event = await find()
                    if event and await chain.block_number() - event.block >= chain.deployment.depth:
                        return event
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, POLL)
    except TimeoutError:
        raise SessionError(
            f"{host_url} says that it has sent it, and after {INCLUSION_TIMEOUT:g} s the chain does not have "
            "it; it may still come until the authorization has run out"
        ) from None
