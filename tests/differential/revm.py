"""A chain in this process: revm, at some hundredths of a millisecond a call."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pyrevm import EVM, AccountInfo, BlockEnv, CfgEnv, Env

from tallystick.artifacts import CREATE2_PROXY
from tallystick.types import Address
from tests.differential import bytecode
from tests.differential.chain import Log, Revert
from tests.differential.parties import CHAIN_ID, NOBODY
from tests.differential.steps import Call

_REVERTED = re.compile(r"Revert \{ .*output: (0x[0-9a-f]*) \}")


class Revm:
    """A fresh chain."""

    def __init__(self) -> None:
        self._evm = EVM(env=Env(cfg=CfgEnv(chain_id=CHAIN_ID)), spec_id="CANCUN")
        self.set_code(CREATE2_PROXY, bytecode.CREATE2)

    def transact(self, call: Call, at: int) -> Sequence[Log] | Revert:
        self._evm.set_block_env(BlockEnv(timestamp=at))
        self._evm.reset_transient_storage()
        try:
            self._evm.message_call(call.by, call.to, call.data, call.value)
        except RuntimeError as error:
            reverted = _REVERTED.fullmatch(str(error))
            if reverted is None:
                raise
            return Revert(bytes.fromhex(reverted[1][2:]))
        result = self._evm.result
        return [Log(Address(log.address), *log.data) for log in result.logs] if result is not None else []

    def ask(self, to: Address, data: bytes) -> bytes:
        return self._evm.message_call(NOBODY, to, data, is_static=True)

    def ether(self, owners: Sequence[Address]) -> Sequence[int]:
        return [self._evm.get_balance(owner) for owner in owners]

    def set_ether(self, owner: Address, wei: int) -> None:
        self._evm.set_balance(owner, wei)

    def set_code(self, address: Address, code: bytes) -> None:
        self._evm.insert_account_info(address, AccountInfo(nonce=1, code=code))

    def set_word(self, contract: Address, slot: int, value: int) -> None:
        self._evm.insert_account_storage(contract, slot, value)
