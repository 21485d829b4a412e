"""What a transaction cost, and its floor: the price of what it carries, reads, changes, recovers and logs,
which no code that does the same could save.

All but the number of signatures is read from the chain: what the transaction sent and logged, and from the
tracer which accounts and slots it touched, and what became of them. In gas, as the EVM has it since Cancun.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tallystick.devnet import Devnet

TRANSACTION = 21_000
ZERO_BYTE, OTHER_BYTE = 4, 16
COLD_ACCOUNT, COLD_SLOT = 2_600, 2_100
SLOT_SET, SLOT_CHANGED, SLOT_CLEARED = 20_000, 2_900, 2_900 - 4_800
"""From zero; from one value to another; to zero, less what is given back for it."""
RECOVERY = 3_000
VALUE = 9_000 - 2_300
"""For sending ETH along with a call, less what the receiver leaves of its stipend."""
LOG, TOPIC, LOG_BYTE = 375, 375, 8

PRECOMPILES = range(0x100)

Slots = dict[tuple[str, str], int]
"""By account and slot."""


@dataclass(frozen=True)
class Cost:
    """What a transaction cost in all, and its floor by what it is for; or of both a row's part."""

    gas: int
    parts: Mapping[str, int]

    @property
    def floor(self) -> int:
        return sum(self.parts.values())

    def __sub__(self, other: Cost) -> Cost:
        parts = {part: gas - other.parts[part] for part, gas in self.parts.items()}
        return Cost(self.gas - other.gas, parts)

    def each(self, rows: int) -> Cost:
        """What one of so many rows costs, rounded up."""
        return Cost(-(-self.gas // rows), {part: -(-gas // rows) for part, gas in self.parts.items()})


async def cost_of(devnet: Devnet, tx: str, signatures: int) -> Cost:
    """`signatures` is how many the transaction had recovered."""
    sent = await devnet.ask("eth_getTransactionByHash", tx)
    receipt = await devnet.ask("eth_getTransactionReceipt", tx)
    block = await devnet.ask("eth_getBlockByHash", receipt["blockHash"], False)
    touched = await _trace(devnet, tx)
    changes = await _trace(devnet, tx, diffMode=True)
    # A block's proposer is warm from the start, too (EIP-3651).
    warm = {each.lower() for each in (sent["from"], sent["to"], block["miner"])}
    parts = {
        "transaction": TRANSACTION,
        "calldata": calldata(bytes.fromhex(sent["input"][2:])),
        "accounts": COLD_ACCOUNT * len(_others(touched, warm)),
        "slots": COLD_SLOT * len(_slots(touched)),
        "writes": writes(_slots(changes["pre"]), _slots(changes["post"])),
        "ETH": VALUE * len(_others(_received(changes), warm)),
        "signatures": RECOVERY * signatures,
        "logs": logs(receipt["logs"]),
    }
    return Cost(int(receipt["gasUsed"], 16), parts)


def calldata(data: bytes) -> int:
    """Gas for a transaction's data."""
    zeros = data.count(0)
    return zeros * ZERO_BYTE + (len(data) - zeros) * OTHER_BYTE


def logs(logged: Iterable[Mapping[str, Any]]) -> int:
    """Gas for a receipt's logs."""
    return sum(
        LOG + TOPIC * len(log["topics"]) + LOG_BYTE * len(bytes.fromhex(log["data"][2:])) for log in logged
    )


def writes(before: Slots, after: Slots) -> int:
    """Gas for the slots that changed, beyond the first look at them. One that is missing is zero."""
    return sum(
        _write(before.get(slot, 0), after.get(slot, 0))
        for slot in before.keys() | after.keys()
        if before.get(slot, 0) != after.get(slot, 0)
    )


def _write(before: int, after: int) -> int:
    if before == 0:
        return SLOT_SET
    return SLOT_CHANGED if after else SLOT_CLEARED


def _slots(accounts: Mapping[str, Any]) -> Slots:
    return {
        (address, slot): int(value, 16)
        for address, account in accounts.items()
        for slot, value in account.get("storage", {}).items()
    }


def _others(addresses: Iterable[str], known: set[str]) -> list[str]:
    return [each for each in addresses if each not in known and int(each, 16) not in PRECOMPILES]


def _received(changes: Mapping[str, Any]) -> list[str]:
    """Whose ETH became more."""
    before, after = changes["pre"], changes["post"]
    return [
        address
        for address, account in after.items()
        if int(account.get("balance", "0x0"), 16) > int(before.get(address, {}).get("balance", "0x0"), 16)
    ]


async def _trace(devnet: Devnet, tx: str, **config: bool) -> Any:
    return await devnet.ask(
        "debug_traceTransaction", tx, {"tracer": "prestateTracer", "tracerConfig": config}
    )
