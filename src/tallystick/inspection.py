"""`tally contracts check`: what is on the chain, held against what was built.

The endpoint is believed in what it answers; each check is a pure function of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from eth_utils.conversions import to_hex

from tallystick import proof
from tallystick.artifacts import Blueprint
from tallystick.chain import network_at
from tallystick.errors import ChainError
from tallystick.networks import Asset, Deployment
from tallystick.site import Constants, Site
from tallystick.types import ETH, Address, Check

ELSEWHERE = "deploy this version's with `tally contracts deploy`, or use the version that these are of"
FALSE = "do not use them through this endpoint: it, or the chain, is not what it says"


async def inspect(rpc_url: str) -> list[Check]:
    """All checks of contracts and assets at an endpoint. ConfigError if none should be there; ChainError."""
    network = await network_at(rpc_url)
    deployment = network.deployment()
    async with Site(rpc_url, deployment) as site:
        contracts = await inspect_contracts(site, network.blueprints(deployment.treasury))
        return contracts + [await _inspect_asset(site, address) for address in deployment.assets]


async def inspect_contracts(site: Site, blueprints: Sequence[Blueprint]) -> list[Check]:
    """The checks of code and constants."""
    checks = [await _inspect_code(site, blueprint) for blueprint in blueprints]
    try:
        return checks + constants(await site.constants(), site.deployment)
    except ChainError as error:
        return [*checks, Check("constants", False, str(error), FALSE)]


async def _inspect_code(site: Site, blueprint: Blueprint) -> Check:
    address = recorded(blueprint, site.deployment)
    return code(blueprint, address, await site.code(address), await site.built_code(blueprint))


async def _inspect_asset(site: Site, address: Address) -> Check:
    known = site.deployment.assets[address]
    if address == ETH:
        return asset(address, known, known)
    try:
        return asset(address, await site.asset(address), known)
    except ChainError as error:
        return Check(known.symbol, False, str(error), FALSE)


# Judging


def recorded(blueprint: Blueprint, deployment: Deployment) -> Address:
    """Where the deployment has the contract of that name."""
    places = {"NodeRegistry": deployment.registry, "JobMarketplace": deployment.marketplace}
    return places.get(blueprint.name, blueprint.address)


def code(blueprint: Blueprint, address: Address, found: bytes, built: bytes) -> Check:
    """The code at `address` is what was built, with the constructor's arguments in it."""
    if not found:
        return Check(blueprint.name, False, f"no code at {address}", "tally contracts deploy")
    if address != blueprint.address:
        seen = f"recorded at {address}; this version's belongs to {blueprint.address}"
        return Check(blueprint.name, False, seen, ELSEWHERE)
    if found != built:
        return Check(blueprint.name, False, f"{address}: {difference(found, built)}", FALSE)
    return Check(blueprint.name, True, f"{address}: {len(found)} bytes, as built")


def difference(found: bytes, built: bytes) -> str:
    """The first byte in which they differ."""
    pairs = zip(found, built, strict=False)
    first = next((at for at, (here, there) in enumerate(pairs) if here != there), min(len(found), len(built)))
    return f"{len(found)} bytes, {len(built)} were built; the first that differs is byte {first}"


def constants(found: Constants, deployment: Deployment) -> list[Check]:
    """The marketplace was created with what the deployment says."""
    separator = proof.Domain(deployment.chain_id, deployment.marketplace).separator
    return [
        _same("registry", found.registry, deployment.registry),
        _same("treasury", found.treasury, deployment.treasury),
        _same("DOMAIN_SEPARATOR", to_hex(found.separator), to_hex(separator)),
    ]


def asset(address: Address, found: Asset, known: Asset) -> Check:
    """An asset has the symbol and the decimals that are known of it."""
    told, expected = (f"{each.symbol!r} with {each.decimals} decimals" for each in (found, known))
    check = _same(known.symbol, told, expected)
    return replace(check, seen=f"{address}: {check.seen}")


def _same(name: str, found: str, expected: str) -> Check:
    if found != expected:
        return Check(name, False, f"{found}, where {expected} is expected", FALSE)
    return Check(name, True, found)
