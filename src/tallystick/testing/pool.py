"""geth's rules for what a node takes into its pool of transactions, in geth's order and words.

Knows no node: what the chain says of an account comes in, a refusal or nothing comes out. Left out: limits
of the pool's size and of an account's share of it, that geth forgets what was queued for three hours, other
transactions than EIP-1559's, and what an access list costs.
All amounts are in wei, fees in wei for a unit of gas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

from eth_account import Account as EthAccount
from eth_account.typed_transactions.typed_transaction import TypedTransaction
from hexbytes import HexBytes

from tallystick.keccak import keccak
from tallystick.types import Address

ETHER = 10**18
TRANSFER_GAS = 21_000
CREATION_GAS = 32_000
WORD_GAS = 2
"""For each word of a new contract's init code."""
TOKEN_GAS = 4
"""For a zero byte of the data, which is one token; any other byte is four."""
TOKEN_FLOOR = 10
"""The least that a token of the data costs (EIP-7623)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a node is set to. The defaults are geth's."""

    bump: int = 10
    """Per cent by which both fees of a replacement have to be higher."""
    min_tip: int = 1
    fee_cap: int = ETHER
    """The most that a transaction's gas may cost, for the node to accept it by RPC."""
    gas_cap: int = 2**24
    """The most gas that a transaction may have (EIP-7825)."""
    gaps: bool = True
    """Transactions are kept that come after a missing one; False: refused, as other nodes do."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the chain says of an account: how many transactions it has in blocks, and its balance."""

    nonce: int
    balance: int


@dataclass(frozen=True, slots=True)
class Pooled:
    """A signed EIP-1559 transaction."""

    hash: str
    raw: bytes = field(repr=False)
    chain_id: int
    sender: Address
    to: str | None
    nonce: int
    gas: int
    max_fee: int
    tip: int
    value: int
    data: bytes = field(repr=False)

    @classmethod
    def read(cls, raw: bytes) -> Self:
        """ValueError: it is of another type."""
        if raw[:1] != b"\x02":
            raise ValueError("transaction type not supported")
        fields = TypedTransaction.from_bytes(HexBytes(raw)).as_dict()
        to = bytes(fields["to"])
        return cls(
            hash="0x" + keccak(raw).hex(),
            raw=raw,
            chain_id=fields["chainId"],
            sender=Address(EthAccount.recover_transaction(raw)),
            to="0x" + to.hex() if to else None,
            nonce=fields["nonce"],
            gas=fields["gas"],
            max_fee=fields["maxFeePerGas"],
            tip=fields["maxPriorityFeePerGas"],
            value=fields["value"],
            data=bytes(fields["data"]),
        )

    @property
    def cost(self) -> int:
        """The most that it can take from its sender."""
        return self.gas * self.max_fee + self.value

    @property
    def intrinsic_gas(self) -> int:
        """What it uses before anything is executed."""
        gas = TRANSFER_GAS + TOKEN_GAS * self._tokens
        if self.to is None:
            gas += CREATION_GAS + WORD_GAS * -(-len(self.data) // 32)
        return gas

    @property
    def floor_gas(self) -> int:
        """What it pays for its data, however little is executed."""
        return TRANSFER_GAS + TOKEN_FLOOR * self._tokens

    @property
    def _tokens(self) -> int:
        return 4 * len(self.data) - 3 * self.data.count(0)

    def reward(self, base_fee: int) -> int:
        """What the block's proposer gets of a unit of gas; negative: it fits no block of that base fee."""
        return min(self.tip, self.max_fee - base_fee)


class Pool:
    """What a node keeps of transactions that are in no block yet."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._kept: dict[Address, dict[int, Pooled]] = {}

    def __iter__(self) -> Iterator[Pooled]:
        return (tx for kept in self._kept.values() for tx in kept.values())

    @property
    def senders(self) -> list[Address]:
        """Whose transactions are here."""
        return list(self._kept)

    def find(self, tx: str) -> Pooled | None:
        """The transaction of that hash."""
        return next((kept for kept in self if kept.hash == tx), None)

    def add(self, tx: Pooled, standing: Standing, block_gas: int) -> str | None:
        """Takes it, in place of one with its nonce if there is one; or says in geth's words why not."""
        refusal = (
            self._capped(tx)
            or ("already known" if self.find(tx.hash) else None)
            or self._malformed(tx, block_gas)
            or self._out_of_order(tx, standing)
            or self._overspent(tx, standing)
            or self._too_cheap_a_replacement(tx)
        )
        if refusal is None:
            self._kept.setdefault(tx.sender, {})[tx.nonce] = tx
        return refusal

    def drop(self, tx: str) -> None:
        """Forgets the transaction of that hash."""
        self._keep(lambda kept: kept.hash != tx)

    def forget_mined(self, sender: Address, nonce: int) -> None:
        """Forgets what an account has in blocks, given its next nonce there."""
        self._keep(lambda kept: kept.sender != sender or kept.nonce >= nonce)

    def settle(self, standings: Mapping[Address, Standing]) -> None:
        """Forgets, as after each block, what was mined or cannot be paid any longer."""
        for sender, standing in standings.items():
            self.forget_mined(sender, standing.nonce)
        self._keep(lambda kept: kept.cost <= standings[kept.sender].balance)

    def pending(self, sender: Address, nonce: int) -> list[Pooled]:
        """Those of an account that follow one another from its next nonce on; the others wait for a gap."""
        kept, run = self._kept.get(sender, {}), []
        while nonce in kept:
            run.append(kept[nonce])
            nonce += 1
        return run

    def next_nonce(self, sender: Address, nonce: int) -> int:
        """The account's nonce with the pending ones counted in, as `eth_getTransactionCount` tells it."""
        return nonce + len(self.pending(sender, nonce))

    def underpaying(self, standings: Mapping[Address, Standing], base_fee: int) -> int:
        """How many pending transactions fit no block of that base fee."""
        pending = (tx for sender in self.senders for tx in self.pending(sender, standings[sender].nonce))
        return sum(tx.reward(base_fee) < self.limits.min_tip for tx in pending)

    def block(self, standings: Mapping[Address, Standing], base_fee: int, gas: int) -> list[Pooled]:
        """What a proposer puts into a block: the best paid first, of each account in order."""
        queues = [self._includable(sender, standings[sender], base_fee) for sender in self.senders]
        chosen = []
        while queues := [queue for queue in queues if queue and queue[0].gas <= gas]:
            best = max(queues, key=lambda queue: queue[0].reward(base_fee))
            chosen.append(best.pop(0))
            gas -= chosen[-1].gas
        return chosen

    def _includable(self, sender: Address, standing: Standing, base_fee: int) -> list[Pooled]:
        """Up to the first that does not pay its way or is not covered: it holds up those after it."""
        found, balance = [], standing.balance
        for tx in self.pending(sender, standing.nonce):
            balance -= tx.cost
            if balance < 0 or tx.reward(base_fee) < self.limits.min_tip:
                break
            found.append(tx)
        return found

    def _keep(self, wanted: Callable[[Pooled], bool]) -> None:
        left = {
            sender: {nonce: tx for nonce, tx in kept.items() if wanted(tx)}
            for sender, kept in self._kept.items()
        }
        self._kept = {sender: kept for sender, kept in left.items() if kept}

    # Refusals, in geth's order. None: nothing against it.

    def _capped(self, tx: Pooled) -> str | None:
        fee, cap = tx.gas * tx.max_fee, self.limits.fee_cap
        if fee <= cap:
            return None
        return f"tx fee ({fee / ETHER:.2f} ether) exceeds the configured cap ({cap / ETHER:.2f} ether)"

    def _malformed(self, tx: Pooled, block_gas: int) -> str | None:
        if tx.gas > self.limits.gas_cap:
            return f"transaction gas limit too high (cap: {self.limits.gas_cap}, tx: {tx.gas})"
        if tx.gas > block_gas:
            return "exceeds block gas limit"
        if tx.max_fee < tx.tip:
            return "max priority fee per gas higher than max fee per gas"
        if tx.gas < tx.intrinsic_gas:
            return f"intrinsic gas too low: gas {tx.gas}, minimum needed {tx.intrinsic_gas}"
        if tx.gas < tx.floor_gas:
            return f"insufficient gas for floor data gas cost: gas {tx.gas}, minimum needed {tx.floor_gas}"
        if tx.tip < self.limits.min_tip:
            return f"transaction underpriced: gas tip cap {tx.tip}, minimum needed {self.limits.min_tip}"
        return None

    def _out_of_order(self, tx: Pooled, standing: Standing) -> str | None:
        if tx.nonce < standing.nonce:
            return f"nonce too low: next nonce {standing.nonce}, tx nonce {tx.nonce}"
        gap = self.next_nonce(tx.sender, standing.nonce)
        if tx.nonce > gap and not self.limits.gaps:
            return f"nonce too high: tx nonce {tx.nonce}, gapped nonce {gap}"
        return None

    def _overspent(self, tx: Pooled, standing: Standing) -> str | None:
        """What is pending has to be covered all together; what waits for a gap does not count."""
        told = f"insufficient funds for gas * price + value: balance {standing.balance}"
        if tx.cost > standing.balance:
            return f"{told}, tx cost {tx.cost}, overshot {tx.cost - standing.balance}"
        pending = {kept.nonce: kept.cost for kept in self.pending(tx.sender, standing.nonce)}
        queued, known = sum(pending.values()), tx.nonce in pending
        more = tx.cost - pending.get(tx.nonce, 0)
        overshot = queued + more - standing.balance
        if overshot <= 0:
            return None
        what = "bumped" if known else "cost"
        return f"{told}, queued cost {queued}, tx {what} {more}, overshot {overshot}"

    def _too_cheap_a_replacement(self, tx: Pooled) -> str | None:
        old = self._kept.get(tx.sender, {}).get(tx.nonce)
        if old is None or all(
            after > before and after >= before * (100 + self.limits.bump) // 100
            for after, before in ((tx.max_fee, old.max_fee), (tx.tip, old.tip))
        ):
            return None
        return "replacement transaction underpriced"
