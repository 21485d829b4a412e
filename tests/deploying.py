"""A deployment of a test: networks of its own, chains that say that they are Base, and what came of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tallystick import deployment, networks
from tallystick.config import DeployerConfig, Secret
from tallystick.deployment import Deployed, Plan
from tallystick.devnet import Anvil, account
from tallystick.types import Address

BASE, BASE_SEPOLIA = 8453, 84532
DEPLOYER, TREASURY = account(0), account(3)


def undeployed(place: Path) -> Path:
    """Writes `networks.json` as if nothing was deployed yet; one confirmation, as anvil stands still."""
    entries: list[dict[str, Any]] = json.loads(networks.FILE.read_bytes())
    for entry in entries:
        entry["confirmations"] = 1
        if entry["chain_id"] != networks.DEVNET:
            for deployed in ("treasury", "contracts", "from_block"):
                entry.pop(deployed, None)
    place.write_text(json.dumps(entries))
    return place


async def deploy(
    anvil: Anvil, treasury: Address | None = TREASURY.address, *, key: bytes | None = DEPLOYER.private_key
) -> tuple[Plan, Deployed]:
    """Deploys, by default with the deployer's key: the plan that was agreed to, and what came of it."""
    plans: list[Plan] = []
    config = DeployerConfig(Secret(key) if key else None, anvil.rpc_url)
    done = await deployment.deploy(config, treasury, plans.append, lambda _: None)
    [plan] = plans
    return plan, done


async def sent(anvil: Anvil) -> int:
    """How many transactions the deployer has sent."""
    return int(await anvil.ask("eth_getTransactionCount", DEPLOYER.address, "pending"), 16)
