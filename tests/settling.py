"""A host for tests of settlement: its ledger, its payers, and what either does, stepped by the test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import Executable

from tallystick import database, proof
from tallystick.chain import Chain
from tallystick.config import HostConfig, Secret
from tallystick.contracts import Created
from tallystick.devnet import Devnet
from tallystick.ledger import Ledger
from tallystick.policy import Thrift
from tallystick.sender import Sender
from tallystick.settlement import Drain, Settlement
from tallystick.types import (
    ETH,
    Completion,
    JobId,
    JobStatus,
    Position,
    Prices,
    Receipt,
    RequestId,
    Terms,
    Totals,
)
from tallystick.types import Settlement as Settled

PRICES = Prices(904_000, 500_000)
DEPOSIT = 500_000
HOUR = 3_600
DAY = 24 * HOUR


class Host:
    """A registered host with a ledger, its payer, and what either does."""

    def __init__(self, devnet: Devnet, chain: Chain, ledger: Ledger) -> None:
        self.devnet = devnet
        self.chain = chain
        self.ledger = ledger
        self.host, self.payer = devnet.accounts.host, devnet.accounts.payer
        self.domain = proof.Domain(chain.deployment.chain_id, chain.deployment.marketplace)
        self.signers: dict[JobId, bytes] = {}
        self.heard: list[Settled | Completion] = []
        self.now = 0.0
        self.restart()

    def restart(
        self, *, thrift: Thrift | None = None, drain: Drain | None = None, through: Chain | None = None
    ) -> None:
        """Sender and settlement that remember nothing but what the ledger does."""
        chain = through or self.chain
        self.sender = Sender(chain, self.ledger, self.host.private_key, clock=lambda: 10**6 + self.now)
        self.settlement = Settlement(
            self.ledger, chain, self.sender, thrift=thrift, drain=drain, clock=lambda: self.now
        )
        self.settlement.listen(self.heard.append)

    def confirm_after(self, blocks: int) -> None:
        """What is so deep counts, from now on."""
        self.chain.deployment = replace(self.chain.deployment, confirmations=blocks)

    def cap_gas(self, most: int) -> None:
        """No transaction may have more gas, from now on."""
        self.chain.deployment = replace(self.chain.deployment, gas_cap=most)

    def config(self, **changed: Any) -> HostConfig:
        """The settings with which it is looked at."""
        url = self.ledger.url
        settings: dict[str, Any] = {
            "host_private_key": Secret(self.host.private_key),
            "rpc_url": self.devnet.rpc_url,
            "data_dir": self.ledger.data_dir,
            "ledger_url": Secret(url) if database.is_shared(url) else None,
        }
        return HostConfig(**{**settings, **changed})

    async def open(self, *, adopt: bool = True, **changes: Any) -> JobId:
        """A job of the payer's, as the node adopts it."""
        key = proof.new_key()
        terms = Terms(
            host=self.host.address,
            asset=self.devnet.dollar,
            deposit=DEPOSIT,
            prices=PRICES,
            signer=proof.address(key),
            max_tokens_per_second=0,
            claim_window=HOUR,
            expires_at=(await self.chain.block()).timestamp + DAY,
            checkpoint_interval=100,
            model_id=bytes(32),
        )
        terms = replace(terms, **changes)
        if terms.asset != ETH:
            await self._transact(self.chain.approve(terms.asset, terms.deposit))
        [opened] = [e for e in (await self._transact(self.chain.create_job(terms))) if isinstance(e, Created)]
        self.signers[opened.job_id] = key
        if adopt:
            await self.adopt(opened.job_id)
        return opened.job_id

    async def adopt(self, job_id: JobId) -> None:
        job = await self.chain.job(job_id)
        assert job is not None
        await self.ledger.adopt(job)

    async def _transact(self, call: Any) -> tuple[Any, ...]:
        return (await self.chain.transact(call, self.payer.private_key, confirmations=1)).events

    def receipt(self, job_id: JobId, totals: Totals) -> Receipt:
        transcript = totals.tokens.to_bytes(32, "big")
        digest = self.domain.receipt(job_id, totals, transcript)
        signature = proof.sign(digest, self.signers[job_id])
        one = Position(RequestId(f"{job_id:032x}"), totals.prompt_tokens, totals.tokens, bytes(32), bytes(32))
        return Receipt(job_id, totals, bytes(32), transcript, signature, (one,))

    async def sign(self, job_id: JobId, tokens: int, prompt_tokens: int = 0, *, due: bool = True) -> None:
        """The payer's receipt over what was counted."""
        receipt = self.receipt(job_id, Totals(prompt_tokens, tokens))
        await self.ledger.store_receipt(receipt, acknowledged=receipt.totals, gross=receipt.totals, due=due)

    async def ask_to_complete(self, job_id: JobId) -> None:
        await self._transact(self.chain.complete_session(job_id))

    async def settle_by_hand(self, job_id: JobId, tokens: int) -> None:
        """Somebody settles with the host's key, past the node, with a receipt that the payer has signed."""
        receipt = self.receipt(job_id, Totals(0, tokens))
        claim = self.chain.submit_checkpoint(job_id, tokens, proof.checkpoint_proof(0, receipt))
        await self.chain.transact(claim, self.host.private_key, confirmations=1)

    def rewrite(self, statement: Executable) -> None:
        """Changes the ledger behind the node's back."""
        engine = database.engine(self.ledger.url, writing=True)
        with engine.begin() as connection:
            connection.execute(statement)
        engine.dispose()

    async def top_up(self, job_id: JobId, amount: int) -> None:
        await self._transact(self.chain.approve(self.devnet.dollar, amount))
        await self._transact(self.chain.top_up(job_id, amount, self.devnet.dollar))

    async def reclaim(self, job_id: JobId) -> None:
        await self._transact(self.chain.reclaim(job_id))

    async def settle(self, rounds: int = 3) -> None:
        """What the two loops do, until nothing is left to do."""
        for _ in range(rounds):
            self.now += 20
            await self.settlement.step()
            while await self.sender.step():
                self.now += 11
                await self.devnet.mine()

    async def on_chain(self, job_id: JobId) -> Totals:
        job = await self.chain.job(job_id)
        assert job is not None
        return job.settled

    async def status(self, job_id: JobId) -> JobStatus:
        job = await self.chain.job(job_id)
        assert job is not None
        return job.status

    async def confirmed(self, job_id: JobId) -> Totals:
        row = await self.ledger.job(job_id)
        assert row is not None
        return row.confirmed

    async def sent(self) -> int:
        """How many transactions the host has sent since it registered."""
        return await self.ledger.next_nonce(self.host.address)


def events(logs: list[Any], *names: str) -> list[dict[str, Any]]:
    return [line for line in logs if line["event"] in names]
