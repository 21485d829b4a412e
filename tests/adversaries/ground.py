"""What the sessions of a campaign stand on: a chain, an honest host and an honest payer, each in a process,
and a host that lies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tallystick import proof
from tallystick.chain import Chain, TxResult
from tallystick.contracts import Call, Created
from tallystick.devnet import Account, Devnet
from tallystick.fees import GWEI
from tallystick.types import ZERO_HASH, Address, JobId, Terms
from tests.adversaries.child import Child
from tests.adversaries.client import GRACE, HOUR, Opened
from tests.adversaries.host import LyingHost
from tests.paying import PRICES, register

DEPOSIT = 2_000_000
"""Base units: more than any session spends."""
CLAIM_WINDOW = 12 * HOUR
LIFETIME = 7 * 24 * HOUR
GAS = 600_000
RECEIPT_TIMEOUT = 2
"""Seconds: as short as a busy machine lets an honest client be."""
LIAR, OPENER = 5, 6
"""Accounts of the devnet: of the host that lies, and of the payer that opens jobs by itself."""


@dataclass(frozen=True)
class Faults:
    """What is planted in the honest parties, by name."""

    node: tuple[str, ...] = ()
    payer: tuple[str, ...] = ()


class Purse:
    """One key's transactions, sent without a look at whether they will succeed."""

    def __init__(self, chain: Chain, account: Account) -> None:
        self._chain = chain
        self._account = account
        self._turn = asyncio.Lock()
        self._nonce: int | None = None

    async def send(self, call: Call) -> TxResult:
        """In a block, reverted or not."""
        async with self._turn:
            if self._nonce is None:
                self._nonce = await self._chain.nonce(self._account.address)
            fees = {"gas": GAS, "tip": GWEI, "max_fee": 100 * GWEI}
            signed = self._chain.sign(call, self._account.private_key, nonce=self._nonce, **fees)
            await self._chain.send(signed.raw)
            self._nonce += 1
        return await self._chain.included(signed.hash)


class Ground:
    """`async with` before use."""

    def __init__(self, devnet: Devnet, directory: Path, faults: Faults) -> None:
        self.devnet = devnet
        self.host_url = ""
        """Of the honest host."""
        self.liar_url = ""
        self.liar = devnet.accounts[LIAR]
        self.lying = LyingHost()
        self.chain = Chain(devnet.rpc_url, devnet.deployment)
        self.payer_purse = Purse(self.chain, devnet.accounts.payer)
        self.liar_purse = Purse(self.chain, self.liar)
        self.domain = proof.Domain(devnet.deployment.chain_id, devnet.deployment.marketplace)
        self.made: Sequence[Mapping[str, int]] = ()
        """What the honest host's engine made; known when it has ended."""
        self._parts = AsyncExitStack()
        common = {"rpc_url": devnet.rpc_url}
        host, opener = devnet.accounts.host.private_key.hex(), devnet.accounts[OPENER].private_key.hex()
        start = {**common, "directory": str(directory / "host"), "key": host, "faults": faults.node}
        self._node = Child(
            "tests.adversaries.node", {**start, "grace": GRACE, "receipt_timeout": RECEIPT_TIMEOUT}
        )
        self._payer = Child(
            "tests.adversaries.payer",
            {**common, "directory": str(directory / "payer"), "key": opener, "faults": faults.payer},
        )
        self._errands: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = count()

    async def __aenter__(self) -> Self:
        await self._parts.enter_async_context(self.chain)
        await register(self.devnet, self.chain)
        await self.chain.transact(self.chain.register(self.liar.address, "{}"), self.liar.private_key)
        await self._provide()
        await self._parts.enter_async_context(self._node)
        await self._parts.enter_async_context(self._payer)
        self.liar_url = await self._parts.enter_async_context(self.lying.serving())
        self.host_url = (await self._node.hear())["url"]
        self._hearing = asyncio.create_task(self._hear_payer())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hearing.cancel()
        with suppress(asyncio.CancelledError):
            await self._hearing
        await self._parts.aclose()

    async def _provide(self) -> None:
        """Money for both payers."""
        chain, payer, opener = self.chain, self.devnet.accounts.payer, self.devnet.accounts[OPENER]
        for owner in (payer, opener):
            await self.devnet.mint(owner.address, 10**4 * DEPOSIT)
        await chain.transact(chain.approve(self.devnet.dollar, 2**255), payer.private_key)

    async def open(self, host: Address, interval: int) -> Opened:
        """A job with that host, of the devnet's payer."""
        key = proof.new_key()
        terms = Terms(
            host=host,
            asset=self.devnet.dollar,
            deposit=DEPOSIT,
            prices=PRICES,
            signer=proof.address(key),
            max_tokens_per_second=0,
            claim_window=CLAIM_WINDOW,
            expires_at=(await self.chain.block()).timestamp + LIFETIME,
            checkpoint_interval=interval,
            model_id=ZERO_HASH,
        )
        opened = await self.payer_purse.send(self.chain.create_job(terms))
        created = next(event for event in opened.events if isinstance(event, Created))
        block = await self.chain.block(opened.block)
        prices = (PRICES.per_million, PRICES.prompt_per_million)
        return Opened(created.job_id, key, interval, *prices, block.timestamp)

    async def complete(self, job_id: int) -> None:
        """Asked for on the chain, by the payer."""
        await self.payer_purse.send(self.chain.complete_session(JobId(job_id)))

    async def claim(self, job_id: int, tokens: int, packed: bytes) -> bool:
        """The lying host submits a checkpoint. True: the contract took it."""
        call = self.chain.submit_checkpoint(JobId(job_id), tokens, packed)
        return (await self.liar_purse.send(call)).succeeded

    async def errand(self, **errand: Any) -> dict[str, Any]:
        """Has the honest payer do something: what it says of it."""
        number = next(self._numbers)
        done: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._errands[number] = done
        self._payer.tell({**errand, "errand": number, "deposit": DEPOSIT})
        return await done

    async def settle(self) -> None:
        """Ends the honest host, which settles all that it can."""
        self._node.no_more()
        self.made = (await self._node.hear())["made"]

    async def close_jobs(self, jobs: Sequence[int]) -> None:
        """Once every window is over, whoever wants to has the payers refunded."""
        await self.devnet.increase_time(LIFETIME + CLAIM_WINDOW + HOUR)
        await self.devnet.mine()
        await asyncio.gather(*(self.payer_purse.send(self.chain.reclaim(JobId(job))) for job in jobs))

    async def _hear_payer(self) -> None:
        try:
            while True:
                heard = await self._payer.hear()
                self._errands.pop(heard["errand"]).set_result(heard)
        except RuntimeError as error:
            for errand in self._errands.values():
                errand.set_exception(error)
