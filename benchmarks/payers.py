"""Payers of a benchmark: jobs opened on a devnet, requests and receipts written before the clock starts."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack

from benchmarks import mock
from benchmarks.load import Client
from tallystick import proof, wire
from tallystick.asking import parse_chat
from tallystick.chain import Chain
from tallystick.contracts import Created
from tallystick.devnet import Devnet
from tallystick.transcript import Delivery, transcript
from tallystick.types import ZERO_HASH, Job, Position, Prices, Receipt, RequestId, Terms, Totals

PRICES = Prices(900_000, 200_000)
INTERVAL = 1_000
"""Tokens that a payer of many streams lets the host be ahead by: the most that the quote allows."""
SIGNED_EVERY = 100
"""Tokens between two receipts."""
DEPOSIT = 50_000_000
DAY = 24 * 3_600
MESSAGES = [{"role": "user", "content": "Say two hundred words."}]


class Payer:
    """One job, and how far its receipts have come."""

    def __init__(self, job: Job, key: bytes, domain: proof.Domain) -> None:
        self.job = job
        self._key = key
        self._domain = domain
        self.bearer = proof.make_bearer(domain, job.id, job.created_at + DAY, key)
        self._asked = 0
        self._totals = Totals()
        self._previous = ZERO_HASH

    def client(self, requests: int, address: str, tokens: int = mock.TOKENS) -> Client:
        """What the payer will send: requests for whole replies, and a receipt for each 100 tokens."""
        planned = Client([], tokens)
        for _ in range(requests):
            begun = len(planned.requests) * tokens
            planned.requests.append(self._request(address, tokens))
            for at, receipt in self._receipts(planned.requests[-1], tokens):
                planned.receipts.append((begun + at, self._posted(receipt, address)))
        return planned

    def sign(self, totals: Totals, link: bytes = ZERO_HASH) -> bytes:
        """The payer's signature over totals and a transcript."""
        return proof.sign(self._domain.receipt(self.job.id, totals, link), self._key)

    def _request(self, address: str, tokens: int) -> bytes:
        self._asked += 1
        request = f"{self.job.id:016x}{self._asked:016x}"
        return post("/v1/chat/completions", address, asking(tokens, request=request), self.bearer)

    def _receipts(self, request: bytes, tokens: int) -> list[tuple[int, Receipt]]:
        asked = parse_chat(request.partition(b"\r\n\r\n")[2])
        assert asked.request is not None
        delivery = Delivery(asked.request, asked.prompt_hash())
        signed: list[tuple[int, Receipt]] = []
        for number in range(1, tokens + 1):
            delivery.add(mock.PROMPT_TOKENS, number, mock.text(number))
            if number % SIGNED_EVERY == 0 or number == tokens:
                position = delivery.position()
                signed.append((number, self._receipt(position, first=len(signed) == 0)))
                delivery.settle(position)
        return signed

    def _receipt(self, position: Position, *, first: bool) -> Receipt:
        before = 0 if first else SIGNED_EVERY * ((position.tokens - 1) // SIGNED_EVERY)
        self._totals += Totals(position.prompt_tokens if first else 0, position.tokens - before)
        link = transcript(self._previous, self.job.id, self._totals, (position,))
        signature = self.sign(self._totals, link)
        receipt = Receipt(self.job.id, self._totals, self._previous, link, signature, (position,))
        self._previous = link
        return receipt

    def _posted(self, receipt: Receipt, address: str) -> bytes:
        return post(f"/v1/jobs/{self.job.id}/receipts", address, wire.receipt_out(receipt), self.bearer)


def asking(tokens: int, *, request: RequestId | str | None = None) -> dict[str, object]:
    """The body of a request for a streamed reply of so many tokens."""
    body = {"model": mock.MODEL, "messages": MESSAGES, "max_tokens": tokens, "stream": True}
    return body if request is None else {**body, "tally": {"request": request}}


def post(path: str, address: str, body: object, bearer: str = "none") -> bytes:
    """An HTTP request, as it goes over the socket."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {bearer}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def registered(stack: AsyncExitStack) -> tuple[Devnet, Chain]:
    """A chain of its own for one host, which is registered there: two would meet at their key's nonces."""
    devnet = await stack.enter_async_context(Devnet())
    chain = await stack.enter_async_context(Chain(devnet.rpc_url, devnet.deployment))
    host = devnet.accounts.host
    await chain.transact(chain.register(host.address, "{}"), host.private_key)
    return devnet, chain


async def open_jobs(devnet: Devnet, chain: Chain, count: int, *, interval: int = INTERVAL) -> list[Payer]:
    """Payers with a job each, at the devnet's host, which is registered."""
    payer, domain = (
        devnet.accounts.payer,
        proof.Domain(devnet.deployment.chain_id, chain.deployment.marketplace),
    )
    await devnet.mint(payer.address, count * DEPOSIT)
    await chain.transact(chain.approve(devnet.dollar, 2**255), payer.private_key, confirmations=1)
    expires_at = (await chain.block()).timestamp + 7 * DAY
    payers = []
    for _ in range(count):
        key = proof.new_key()
        terms = Terms(
            host=devnet.accounts.host.address,
            asset=devnet.dollar,
            deposit=DEPOSIT,
            prices=PRICES,
            signer=proof.address(key),
            max_tokens_per_second=0,
            claim_window=12 * 3_600,
            expires_at=expires_at,
            checkpoint_interval=interval,
            model_id=ZERO_HASH,
        )
        opened = await chain.transact(chain.create_job(terms), payer.private_key, confirmations=1)
        created = next(event for event in opened.events if isinstance(event, Created))
        job = await chain.job(created.job_id)
        assert job is not None
        payers.append(Payer(job, key, domain))
    return payers
