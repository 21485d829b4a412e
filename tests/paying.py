"""A payer for tests of the host: a job opened on the devnet, and the session key that signs for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tallystick import lookout, proof, wire
from tallystick.chain import Chain
from tallystick.contracts import Created
from tallystick.countersign import Countersigner
from tallystick.desk import Access
from tallystick.devnet import Devnet
from tallystick.reply import choice_text
from tallystick.types import ZERO_HASH, Job, JobId, Prices, Receipt, RequestId, Terms, Totals

PRICES = Prices(900_000, 200_000)
MESSAGES = [{"role": "user", "content": "Why was the stick split?"}]
PROMPT = 11
"""Tokens that a ScriptedEngine counts for MESSAGES."""


async def register(devnet: Devnet, chain: Chain) -> None:
    """Registers the devnet's host."""
    host = devnet.accounts.host
    await chain.transact(chain.register(host.address, "{}"), host.private_key)


def look_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has hosts read the chain for each request, in tests that change it and ask at once."""
    monkeypatch.setattr(lookout, "FRESH", 0.0)
    monkeypatch.setattr(lookout, "RELIED", 0.0)


async def open_job(devnet: Devnet, chain: Chain, *, key: bytes | None = None, **changed: Any) -> Signer:
    """Opens a job with the devnet's host, on terms that are good but for `changed`."""
    key = key or proof.new_key()
    terms: dict[str, Any] = {
        "host": devnet.accounts.host.address,
        "asset": devnet.dollar,
        "deposit": 2_000_000,
        "prices": PRICES,
        "signer": proof.address(key),
        "max_tokens_per_second": 0,
        "claim_window": 12 * 3600,
        "expires_at": (await chain.block()).timestamp + 7 * 24 * 3600,
        "checkpoint_interval": 100,
        "model_id": ZERO_HASH,
        **changed,
    }
    payer = devnet.accounts.payer.private_key
    await chain.transact(chain.approve(devnet.dollar, terms["deposit"]), payer, confirmations=1)
    opened = await chain.transact(chain.create_job(Terms(**terms)), payer, confirmations=1)
    created = next(event for event in opened.events if isinstance(event, Created))
    job = await chain.job(created.job_id)
    assert job is not None
    return Signer(chain, job, key)


async def until(holds: Callable[[], Awaitable[bool]], seconds: float = 30.0) -> None:
    """Waits until something holds that another task brings about."""
    async with asyncio.timeout(seconds):
        while not await holds():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)


@dataclass(frozen=True)
class Told:
    """What one chunk or frame told."""

    text: str
    tally: Mapping[str, Any]
    finish_reason: str | None = None


class Signer:
    """The payer's side of one job: bearers, receipts, the end."""

    def __init__(self, chain: Chain, job: Job, key: bytes) -> None:
        self.chain = chain
        self.job = job
        self.key = key
        deployment = chain.deployment
        self.domain = proof.Domain(deployment.chain_id, deployment.marketplace)
        self.signs = Countersigner(job.id, job.prices, job.interval, self.domain, key)

    def bearer(self, *, expires_at: int | None = None, key: bytes | None = None) -> str:
        """A bearer for an hour, unless told otherwise."""
        expires_at = self.job.created_at + 3600 if expires_at is None else expires_at
        return proof.make_bearer(self.domain, self.job.id, expires_at, key or self.key)

    def access(self, **how: Any) -> Access:
        """The bearer as it comes in from this machine."""
        return Access(self.bearer(**how), secure=True)

    def headers(self, **how: Any) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.bearer(**how)}"}

    def body(self, number: int = 1, **members: Any) -> dict[str, Any]:
        """A request of this payer's, with its own request id; what comes of it can then be signed for."""
        request = RequestId(f"{number:032x}")
        body = {"messages": MESSAGES, "stream": True, "max_tokens": 100, **members}
        self.signs.begin(request, body, body["max_tokens"], body.get("n", 1))
        return {**body, "tally": {"request": request, **members.get("tally", {})}}

    def text_body(self, number: int = 1, **members: Any) -> dict[str, Any]:
        """A request to complete a text, with its own request id."""
        request = RequestId(f"{number:032x}")
        body = {"max_tokens": 100, **members}
        self.signs.begin(request, body, body["max_tokens"], body.get("n", 1))
        return {**body, "tally": {"request": request}}

    def receive(self, chunk: Mapping[str, Any]) -> Told:
        """Takes one chunk of an SSE stream, or the answer to a request that was not streamed."""
        tally = chunk["tally"]
        choice = chunk["choices"][0] if chunk.get("choices") else {}
        text = choice_text(choice)
        totals = Totals(tally["prompt_tokens"], tally["tokens"])
        self.signs.receive(tally["request"], totals, text, choice.get("finish_reason"))
        return Told(text, tally, choice.get("finish_reason"))

    def receipt(self) -> Receipt | None:
        """The next receipt, if there is anything to sign for."""
        return self.signs.next()

    def acked(self, answer: Mapping[str, Any]) -> None:
        """The host's answer to the receipt; its signature is checked if it has one."""
        assert "stored" not in answer
        self.signs.acked(wire.ack_in(answer["ack"]), self.job.host)

    def end(self, key: bytes | None = None) -> bytes:
        return proof.sign(self.domain.end(JobId(self.job.id)), key or self.key)
