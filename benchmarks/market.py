"""A host, a payer and a relay on a devnet, and the transactions between them whose cost is told.

Keys and totals are the same each time, so that the same contracts cost the same. Amounts are base units.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from typing import Any

from eth_account import Account as EthAccount
from web3 import Web3

from benchmarks.cost import Cost, cost_of
from tallystick import proof
from tallystick.artifacts import artifact
from tallystick.chain import Chain, TxResult
from tallystick.contracts import Call, Claim, Created
from tallystick.devnet import Account, Devnet
from tallystick.keccak import keccak
from tallystick.types import ZERO_HASH, JobId, Prices, Receipt, Terms, Totals

DEPOSIT = 2_000_000
UNLIMITED = 2**256 - 1

AUTHORIZATION = {
    "from": "address",
    "to": "address",
    "value": "uint256",
    "validAfter": "uint256",
    "validBefore": "uint256",
    "nonce": "bytes32",
}
"""EIP-3009's `ReceiveWithAuthorization`."""


@dataclass(frozen=True)
class Opened:
    """A job, and the key of its signer."""

    id: JobId
    key: bytes


class Market:
    """A registered host, a payer with money, a relay, and the jobs between them."""

    def __init__(self, devnet: Devnet, chain: Chain) -> None:
        self.devnet, self.chain = devnet, chain
        self.host, self.payer, self.relay = (
            devnet.accounts.host,
            devnet.accounts.payer,
            devnet.accounts.stranger,
        )
        self._domain = proof.Domain(chain.deployment.chain_id, chain.deployment.marketplace)
        self._marketplace = Web3().eth.contract(abi=artifact("JobMarketplace").abi)
        self._opened = 0
        self._start = 0

    async def prepare(self) -> None:
        """Registers the host and has the payer approve whatever it may deposit."""
        self._start = (await self.chain.block()).timestamp
        await self.register(self.host)
        await self.devnet.mint(self.relay.address, 1)
        await self.approve(UNLIMITED)

    async def register(self, host: Account) -> None:
        await self.send(self.chain.register(host.address, "https://host.example"), host)

    async def approve(self, amount: int) -> None:
        await self.send(self.chain.approve(self.devnet.dollar, amount), self.payer)

    async def send(self, call: Call, by: Account) -> TxResult:
        """A transaction that succeeded."""
        nonce = await self.chain.nonce(by.address)
        signed = self.chain.sign(call, by.private_key, nonce=nonce, gas=5_000_000, tip=1, max_fee=10**11)
        result = await self.chain.included(await self.chain.send(signed.raw))
        if not result.succeeded:
            raise RuntimeError(f"transaction {signed.hash} failed")
        return result

    async def cost(self, call: Call, by: Account, signatures: int = 0) -> Cost:
        """What `call` costs. `signatures` is how many it has recovered."""
        result = await self.send(call, by)
        return await cost_of(self.devnet, result.hash, signatures)

    # Openings

    def terms(self, **changes: Any) -> tuple[Terms, bytes]:
        """Terms of a job, with the key of a signer of its own."""
        self._opened += 1
        key = keccak(b"signer %d" % self._opened)
        terms = Terms(
            host=self.host.address,
            asset=self.devnet.dollar,
            deposit=DEPOSIT,
            prices=Prices(904_000, 150_000),
            signer=proof.address(key),
            max_tokens_per_second=0,
            claim_window=12 * 3600,
            expires_at=self._start + 7 * 86_400,
            checkpoint_interval=100,
            model_id=proof.model_id("model"),
        )
        return replace(terms, **changes), key

    async def open(self, **changes: Any) -> Opened:
        """A job on such terms."""
        terms, key = self.terms(**changes)
        result = await self.send(self.chain.create_job(terms), self.payer)
        [created] = [event for event in result.events if isinstance(event, Created)]
        return Opened(created.job_id, key)

    async def opening(self, **changes: Any) -> Cost:
        """What it costs to open a job on such terms."""
        terms, _ = self.terms(**changes)
        return await self.cost(self.chain.create_job(terms), self.payer)

    async def relayed(self, relay: Account, fee: int, salt: bytes = ZERO_HASH) -> Cost:
        """What it costs to open a job for a payer who has authorized it, and to earn `fee`."""
        terms, _ = self.terms()
        host, asset, deposit, prices, *others = astuple(terms)
        bound = ((host, asset, deposit, *prices, *others), fee, salt)
        nonce = await self._ask("openNonce", *bound)
        authorization = (self.payer.address, 0, terms.expires_at, self._authorized(terms, nonce))
        return await self.cost(self._call("createJobWithAuthorization", *bound, authorization), relay, 1)

    def _authorized(self, terms: Terms, nonce: bytes) -> bytes:
        """The payer's signature over what `receiveWithAuthorization` is to move."""
        moved = (
            self.payer.address,
            self.chain.deployment.marketplace,
            terms.deposit,
            0,
            terms.expires_at,
            nonce,
        )
        signed = EthAccount.sign_typed_data(
            self.payer.private_key,
            domain_data={
                "name": "Test Dollar",
                "version": "2",
                "chainId": self.chain.deployment.chain_id,
                "verifyingContract": terms.asset,
            },
            message_types={
                "ReceiveWithAuthorization": [
                    {"name": name, "type": kind} for name, kind in AUTHORIZATION.items()
                ]
            },
            message_data=dict(zip(AUTHORIZATION, moved, strict=True)),
        )
        return bytes(signed.signature)

    def _call(self, function: str, *args: Any) -> Call:
        data = self._marketplace.encode_abi(function, args=list(args))
        return Call(self.chain.deployment.marketplace, bytes.fromhex(data[2:]))

    async def _ask(self, function: str, *args: Any) -> bytes:
        call = self._call(function, *args)
        answer = await self.devnet.ask("eth_call", {"to": call.to, "data": "0x" + call.data.hex()}, "latest")
        return bytes.fromhex(answer[2:])

    # Claims

    def claim(
        self, job: Opened, totals: Totals, *, key: bytes | None = None, complete: bool = False
    ) -> Claim:
        """A claim of exactly what was signed, by the job's signer unless another `key` is given."""
        transcript = keccak(b"transcript %d %d" % (job.id, totals.tokens))
        signature = proof.sign(self._domain.receipt(job.id, totals, transcript), key or job.key)
        receipt = Receipt(job.id, totals, ZERO_HASH, transcript, signature)
        return Claim(job.id, totals.tokens, proof.checkpoint_proof(totals.prompt_tokens, receipt), complete)

    def attest(self, job: Opened, totals: Totals) -> Claim:
        """A claim of a host-attested job."""
        return Claim(job.id, totals.tokens, proof.attested_proof(totals.prompt_tokens))

    async def single(self, claim: Claim, signatures: int) -> Cost:
        """What one claim costs by itself."""
        call = self.chain.submit_checkpoint(claim.job_id, claim.tokens, claim.proof)
        return await self.cost(call, self.host, signatures)

    async def batch(self, claims: Iterable[Claim], signatures: int) -> Cost:
        """What many claims cost in one transaction."""
        return await self.cost(self.chain.submit_checkpoints(claims), self.host, signatures)

    async def completion(self, job: Opened) -> Cost:
        """What it costs the host to end a job for which it claims nothing."""
        return await self.cost(self.chain.complete_session(job.id), self.host)
