"""A chain in another process: anvil, over JSON-RPC."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from eth_utils.conversions import to_bytes, to_hex
from web3 import HTTPProvider
from web3.types import RPCEndpoint

from tallystick.types import Address
from tests.differential.chain import Log, Revert
from tests.differential.parties import NOBODY
from tests.differential.steps import Call

GAS = 10_000_000
PATIENCE = 10.0
"""Seconds that a transaction may take to be in a block."""


class AnvilChain:
    """The anvil behind a URL, as it is then. `renewed` puts it back to that."""

    def __init__(self, url: str) -> None:
        self._rpc = HTTPProvider(url)
        self._ask("anvil_autoImpersonateAccount", True)
        self._snapshot = self._ask("evm_snapshot")

    def renewed(self) -> AnvilChain:
        """Itself, with nothing on it that it did not have at first."""
        assert self._ask("evm_revert", self._snapshot)
        self._snapshot = self._ask("evm_snapshot")
        return self

    def transact(self, call: Call, at: int) -> Sequence[Log] | Revert:
        self._ask("evm_setNextBlockTimestamp", at)
        self._ask("anvil_setNextBlockBaseFeePerGas", "0x0")
        sent = {"from": call.by, "to": call.to, "data": to_hex(call.data), "value": hex(call.value)}
        free = {"gas": hex(GAS), "gasPrice": "0x0"}
        receipt = self._receipt(self._ask("eth_sendTransaction", sent | free))
        if receipt["status"] == "0x0":
            return Revert(self._revert_data(receipt["transactionHash"]))
        return [_log(raw) for raw in receipt["logs"]]

    def ask(self, to: Address, data: bytes) -> bytes:
        call = {"from": NOBODY, "to": to, "data": to_hex(data)}
        return to_bytes(hexstr=self._ask("eth_call", call, "latest"))

    def ether(self, owners: Sequence[Address]) -> Sequence[int]:
        return [int(self._ask("eth_getBalance", owner, "latest"), 16) for owner in owners]

    def set_ether(self, owner: Address, wei: int) -> None:
        self._ask("anvil_setBalance", owner, hex(wei))

    def set_code(self, address: Address, code: bytes) -> None:
        self._ask("anvil_setCode", address, to_hex(code))

    def set_word(self, contract: Address, slot: int, value: int) -> None:
        self._ask("anvil_setStorageAt", contract, _word(slot), _word(value))

    def _ask(self, method: str, *params: Any) -> Any:
        answer = self._rpc.make_request(RPCEndpoint(method), list(params))
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _receipt(self, transaction: str) -> Any:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            receipt = self._ask("eth_getTransactionReceipt", transaction)
            if receipt is not None:
                return receipt
        raise TimeoutError(f"{transaction} is in no block after {PATIENCE:g} s")

    def _revert_data(self, transaction: str) -> bytes:
        trace = self._ask("debug_traceTransaction", transaction, {"tracer": "callTracer"})
        return to_bytes(hexstr=trace.get("output", "0x"))


def _log(raw: dict[str, Any]) -> Log:
    topics = [to_bytes(hexstr=topic) for topic in raw["topics"]]
    return Log(Address(raw["address"]), topics, to_bytes(hexstr=raw["data"]))


def _word(value: int) -> str:
    return f"0x{value:064x}"
