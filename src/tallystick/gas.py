"""What settling costs, and how much of it fits one transaction. Rules only; wei and gas as named.

The figures are those of `benchmarks/gas.json`, measured from receipts; `test_gas.py` holds them to it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass

from tallystick.policy import Gas
from tallystick.types import ETH, Address

BASE = 36_000
"""Gas of a batch, whatever is in it: 21 000, and what is read and written once for all rows of an asset."""
ROW = 20_000
"""Gas of a claim in a batch, at most."""
ASSET = 45_000
"""Gas that the first row of an asset may cost more than the others: two slots that were emptied meanwhile."""
CLOSING = 75_000
"""Gas that a row may cost more if it completes its job: a token behind a proxy, or a refund that is kept."""
REFUND = 100_000
"""Gas that whoever gets a refund in ETH may use up, the contract's limit; and what has to be left for it."""

MOST_BYTES = 128 * 1024 - 1024
"""Of a transaction's data: pools take transactions of up to 128 KiB, envelope and signature included."""
WORD = 32
BATCH_BYTES = 4 + 2 * WORD
ROW_BYTES = 6 * WORD
"""Of a claim, beside its proof: where it begins, four members, the proof's length."""


@dataclass(frozen=True, slots=True)
class Row:
    """What a claim takes of a transaction's room."""

    asset: Address
    proof_bytes: int
    complete: bool

    @property
    def gas(self) -> int:
        """At most, whatever its receiver does."""
        if not self.complete:
            return ROW
        return ROW + CLOSING + (REFUND if self.asset == ETH else 0)

    @property
    def size(self) -> int:
        """Bytes of data."""
        return ROW_BYTES + -(-self.proof_bytes // WORD) * WORD


@dataclass(slots=True)
class Load:
    """A transaction that is being filled. `most`: gas that it may have."""

    most: int
    gas: int = BASE
    size: int = BATCH_BYTES
    asset: Address | None = None
    closes: bool = False
    """There is a row that completes its job."""

    def take(self, row: Row) -> bool:
        """False, and nothing changed, if the row has to go with another transaction."""
        gas, size = self.gas + self._gas_with(row), self.size + row.size
        if gas > self.most or size > MOST_BYTES:
            return False
        self.gas, self.size, self.asset = gas, size, row.asset
        self.closes |= row.complete
        return True

    def _gas_with(self, row: Row) -> int:
        asset = ASSET if row.asset != self.asset else 0
        # The contract refunds only with so much left, whether or not it is used.
        left = REFUND if row.complete and not self.closes else 0
        return row.gas + asset + left


def limit(rows: Iterable[Row]) -> int:
    """Gas that a transaction with these rows needs at most."""
    load = Load(most=sys.maxsize)
    for row in rows:
        load.take(row)
    return load.gas


def priced(fee: int, data_fee: int, data_fee_of_many: int, many: int) -> Gas:
    """What settling costs at `fee` wei for a unit of gas.

    `data_fee`, `data_fee_of_many`: wei that the chain asks beside, for the data of a batch of one row, and of
    `many` rows.
    """
    each = -(-(data_fee_of_many - data_fee) // (many - 1))
    return Gas(base=BASE * fee + max(0, data_fee - each), row=ROW * fee + each)
