"""What a devnet's chain says of a job when all is over: payments, wallets, transactions, and their sums.

Reads, and computes nothing that the chain says itself. Amounts are base units of the job's asset.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from eth_utils.abi import filter_abi_by_type, function_abi_to_4byte_selector
from eth_utils.conversions import to_hex

from tallystick.artifacts import artifact
from tallystick.chain import Chain
from tallystick.contracts import TreasuryWithdrawn, Withdrawn
from tallystick.devnet import Devnet
from tallystick.errors import ChainError
from tallystick.networks import Asset
from tallystick.types import Address, Completion, Job, JobId, Settlement

CONTRACTS = ("NodeRegistry", "JobMarketplace", "TestDollar")

Wallets = Mapping[str, int]
"""What each party holds itself, by its name on the devnet."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """One transaction of the chain: what it called or deployed, who sent it, what it used."""

    what: str
    sender: str
    hash: str
    gas: int


@dataclass(frozen=True, slots=True)
class Books:
    """One job from its opening to the last withdrawal."""

    chain_id: int
    contracts: Mapping[str, Address]
    asset: Asset
    job: Job
    settlements: tuple[Settlement, ...]
    completion: Completion
    before: Wallets
    after: Wallets
    withdrawn: Wallets
    """What host and treasury took out of the contract."""
    transactions: tuple[Transaction, ...]

    @property
    def host_earned(self) -> int:
        """By the settlements' events."""
        return sum(each.host_amount for each in self.settlements)

    @property
    def treasury_earned(self) -> int:
        """By the settlements' events."""
        return sum(each.fee for each in self.settlements)

    @property
    def refund(self) -> int:
        """By the completion's event."""
        return self.completion.refund

    def gas(self, tx: str) -> int:
        """Of one transaction of the chain."""
        return next(each.gas for each in self.transactions if each.hash == tx)

    def check(self) -> None:
        """ChainError unless every base unit of the deposit is where the events say, and in the wallets."""
        moved = {name: self.after[name] - self.before[name] for name in self.before}
        sums = {
            "host + treasury + refund = deposit": (
                self.host_earned + self.treasury_earned + self.refund,
                self.job.deposit,
            ),
            "owed = host + treasury": (self.job.owed, self.host_earned + self.treasury_earned),
            "fee = treasury": (self.job.fee, self.treasury_earned),
            "the host's wallet has its earnings": (moved["host"], self.host_earned),
            "the treasury's wallet has its fees": (moved["treasury"], self.treasury_earned),
            "the payer's wallet has lost what was owed": (-moved["payer"], self.job.owed),
        }
        for law, (left, right) in sums.items():
            if left != right:
                raise ChainError(f"the books do not add up: {law}, but {left} is not {right}")

    def told(self) -> dict[str, Any]:
        """For machines, in base units. A checkpoint's totals are the job's so far, its money is its own."""
        return {
            "deposit": self.job.deposit,
            "asset": self.job.asset,
            "price_per_million": self.job.prices.per_million,
            "prompt_price_per_million": self.job.prices.prompt_per_million,
            "tokens": self.job.settled.tokens,
            "prompt_tokens": self.job.settled.prompt_tokens,
            "checkpoints": [self._checkpoint(each) for each in self.settlements],
            "host_earned": self.host_earned,
            "treasury_earned": self.treasury_earned,
            "refund": self.refund,
            "job_id": self.job.id,
            "chain_id": self.chain_id,
            "contracts": dict(self.contracts),
            "transactions": [
                {"what": each.what, "from": each.sender, "tx": each.hash, "gas": each.gas}
                for each in self.transactions
            ],
        }

    def _checkpoint(self, settlement: Settlement) -> dict[str, Any]:
        return {
            "tokens": settlement.totals.tokens,
            "prompt_tokens": settlement.totals.prompt_tokens,
            "owed": settlement.host_amount + settlement.fee,
            "host": settlement.host_amount,
            "treasury": settlement.fee,
            "tx": settlement.tx,
            "gas": self.gas(settlement.tx),
        }


async def wallets(chain: Chain, devnet: Devnet) -> Wallets:
    """What host, treasury and payer hold of the test dollar."""
    parties = {name: getattr(devnet.accounts, name).address for name in ("host", "treasury", "payer")}
    return {name: await chain.token_balance(devnet.dollar, each) for name, each in parties.items()}


async def read_books(chain: Chain, devnet: Devnet, job_id: JobId, before: Wallets) -> Books:
    """The books of a job that is complete. ChainError if it is not."""
    job, completion = await chain.job(job_id), await chain.completion(job_id)
    if job is None or completion is None:
        raise ChainError(f"job {job_id} is not complete")
    deployment = chain.deployment
    return Books(
        chain_id=deployment.chain_id,
        contracts=_contracts(devnet),
        asset=deployment.assets[job.asset],
        job=job,
        settlements=tuple(await chain.settlements(job_id)),
        completion=completion,
        before=before,
        after=await wallets(chain, devnet),
        withdrawn=_withdrawn(await chain.events(0, await chain.block_number()), devnet),
        transactions=tuple(await _transactions(devnet)),
    )


def _withdrawn(events: Iterable[object], devnet: Devnet) -> Wallets:
    taken = {"host": 0, "treasury": 0, "payer": 0}
    for event in events:
        if isinstance(event, TreasuryWithdrawn):
            taken["treasury"] += event.amount
        elif isinstance(event, Withdrawn) and event.owner == devnet.accounts.host.address:
            taken["host"] += event.earnings
    return taken


async def _transactions(devnet: Devnet) -> list[Transaction]:
    """All of the chain, oldest first."""
    names = {
        getattr(devnet.accounts, name).address.lower(): name
        for name in ("deployer", "host", "payer", "treasury")
    }
    deployed = _deployments(devnet)
    last = int(await devnet.ask("eth_blockNumber"), 16)
    found = []
    for number in range(1, last + 1):
        block = await devnet.ask("eth_getBlockByNumber", hex(number), True)
        receipts = await devnet.ask("eth_getBlockReceipts", hex(number))
        for sent, receipt in zip(block["transactions"], receipts, strict=True):
            sender = names.get(sent["from"].lower(), sent["from"])
            what = deployed.get(sent["input"]) or _called(sent)
            found.append(Transaction(what, sender, sent["hash"], int(receipt["gasUsed"], 16)))
    return found


def _deployments(devnet: Devnet) -> dict[str, str]:
    """By what CREATE2's proxy is sent: which contract it deploys."""
    return {to_hex(blueprint.order): f"deploy {blueprint.name}" for blueprint in devnet.blueprints}


def _contracts(devnet: Devnet) -> dict[str, Address]:
    deployment = devnet.deployment
    addresses = (deployment.registry, deployment.marketplace, devnet.dollar)
    return dict(zip(CONTRACTS, addresses, strict=True))


def _called(sent: Mapping[str, Any]) -> str:
    selector = str(sent["input"])[:10]
    return _functions().get(selector, selector)


@cache
def _functions() -> dict[str, str]:
    """By selector: the contracts' functions."""
    return {
        to_hex(function_abi_to_4byte_selector(each)): str(each["name"])
        for name in CONTRACTS
        for each in filter_abi_by_type("function", artifact(name).abi)
    }
