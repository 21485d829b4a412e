"""What hosts lie about, class by class, to an honest payer: at every chunk as dice say, and on the chain.

A class says what a Dealing sends and what it submits. All claim everything that the payer signed for.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, ClassVar

from tallystick import proof, quote
from tallystick.networks import Deployment
from tallystick.types import JobId, Receipt, Totals
from tests.adversaries.engine import PROMPT_OVERHEAD
from tests.adversaries.host import BreakOff, Chunk, Dealing

HUGE = 2**40
CLAIMS = 3
"""Receipts, or other dealings, of which it claims before the last one."""
LINGERING = 20
"""Chunks that say nothing new."""
Claim = Callable[[int, int, bytes], Awaitable[bool]]
"""Submits a checkpoint: job, tokens, proof. True: the contract took it."""


@dataclass
class Scene:
    """What a lie may use beside its own dealing."""

    claim: Claim
    others: Sequence[Dealing]
    """The host's other dealings."""
    deployment: Deployment
    host: str
    """The address of the dealing's key."""
    url: str
    now: int
    """Of the chain."""


class Lie:
    """One host's conduct in one dealing. This one is honest, but that it claims all that is signed."""

    name: ClassVar[str] = "counts honestly"
    honest: ClassVar[bool] = False
    """It is here for comparison."""
    opens: ClassVar[bool] = False
    """The payer is to open a job with it; otherwise there is one."""
    stops: ClassVar[bool] = False
    """Its replies end as the model wants, not where they reach their length."""

    def __init__(self, dealing: Dealing, scene: Scene) -> None:
        self.dealing = dealing
        self.scene = scene
        self.dice = dealing.dice
        self.answers: Counter[str] = Counter()
        """What became of what was submitted."""

    def chunks(self, honest: Sequence[Chunk]) -> Iterator[Chunk]:
        """What is sent in place of an honest reply."""
        yield from honest

    def refusal(self, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """The problem that a request is answered with, if it is."""
        return None

    def stored(self) -> dict[str, Any] | None:
        """The receipt that the host says it holds."""
        return self.dealing.receipts[-1] if self.dealing.receipts else None

    async def receipt(self, receipt: dict[str, Any]) -> dict[str, Any]:
        """Takes one, and answers with an ack or a problem."""
        self.dealing.receipts.append(receipt)
        self.dealing.came.set()
        return {"ack": self.dealing.ack(receipt)}

    async def end(self) -> None:
        """The payer is done: claims all that it signed for, in a few steps."""
        for receipt in self.some_receipts():
            signed = _receipt(receipt)
            await self.claim(signed.totals, signed, lies=False)

    def some_receipts(self) -> list[dict[str, Any]]:
        """A few of those that came, rising, and the highest."""
        receipts = sorted(self.dealing.receipts, key=lambda each: (each["tokens"], each["prompt_tokens"]))
        some = sorted(self.dice.sample(range(len(receipts)), min(CLAIMS, len(receipts))))
        return [*(receipts[number] for number in some), *receipts[-1:]]

    def told(self) -> None:
        """A lie goes out."""
        self.dealing.told += 1

    async def claim(
        self, totals: Totals, receipt: Receipt, *, lies: bool = True, job_id: int | None = None
    ) -> None:
        """Submits a checkpoint of these totals, with that receipt as its proof."""
        packed = proof.checkpoint_proof(totals.prompt_tokens, receipt)
        await self.submit(totals.tokens, packed, lies=lies, job_id=job_id)

    async def submit(
        self, tokens: int, packed: bytes, *, lies: bool = True, job_id: int | None = None
    ) -> None:
        """Submits a checkpoint with any proof."""
        assert self.dealing.job is not None
        if lies:
            self.told()
        taken = await self.scene.claim(job_id or self.dealing.job.id, tokens, packed)
        if lies:
            self.answers["taken" if taken else "reverted"] += 1

    def quote(self) -> dict[str, Any]:
        """A good one, signed by its host."""
        return self._signed(self._quote(), self.dealing.key)

    def _quote(self) -> dict[str, Any]:
        deployment = self.scene.deployment
        dollar = next(asset for asset in deployment.assets if int(asset, 16))
        return {
            "host": self.scene.host,
            "chain_id": deployment.chain_id,
            "contract": deployment.marketplace,
            "assets": [],
            "models": [
                {
                    "name": "scripted",
                    "prices": {dollar: {"per_million": "900000", "prompt_per_million": "200000"}},
                }
            ],
            "interval": {"min": 4, "max": 1000},
            "claim_window_min": 3600,
            "expiry_margin": 600,
            "confirmations": 1,
            "receipt_timeout": 1,
            "grace": 1,
            "endpoint": self.scene.url,
            "relay_fee": "0",
            "valid_until": self.scene.now + 3600,
            "paid": True,
            "version": "1",
        }

    @staticmethod
    def _signed(body: dict[str, Any], key: bytes) -> dict[str, Any]:
        return {**body, "signature": "0x" + proof.sign(quote.digest(body), key).hex()}


class Honest(Lie):
    honest = True


class InflatesCounts(Lie):
    name = "counts more tokens than there are"

    def chunks(self, honest: Sequence[Chunk]) -> Iterator[Chunk]:
        factor, since = self.dice.choice((2, 10, 1000)), self.dice.randrange(len(honest))
        yield from honest[:since]
        for chunk in honest[since:]:
            self.told()
            yield replace(chunk, tokens=chunk.tokens * factor)


class CountsBytes(Lie):
    name = "counts a token for every byte"

    def chunks(self, honest: Sequence[Chunk]) -> Iterator[Chunk]:
        length = 0
        for chunk in honest:
            self.told()
            length += len(chunk.text.encode())
            yield replace(chunk, tokens=length)


class CountsWithoutText(Lie):
    name = "counts tokens that have no text"

    def chunks(self, honest: Sequence[Chunk]) -> Iterator[Chunk]:
        extra = 0
        for chunk in honest:
            for _ in range(self.dice.choice((0, 1, LINGERING))):
                self.told()
                extra += self.dice.choice((1, 7))
                yield replace(chunk, tokens=chunk.tokens - 1 + extra, text="", finish_reason=None)
            yield replace(chunk, tokens=chunk.tokens + extra)


class InflatesPrompts(Lie):
    name = "counts longer prompts"

    def chunks(self, honest: Sequence[Chunk]) -> Iterator[Chunk]:
        more = self.dice.choice((50, 1_000, HUGE))
        for chunk in honest:
            self.told()
            yield replace(chunk, prompt_tokens=chunk.prompt_tokens + more)


class CountsDown(Lie):
    name = "counts down, and then up again"

    def chunks(self, honest: Sequence[Chunk]) -> Iterator[Chunk]:
        for chunk in honest:
            yield chunk
            if self.dice.random() < 0.1:
                self.told()
                yield replace(chunk, tokens=self.dice.randrange(chunk.tokens), finish_reason=None)


class Pads(Lie):
    name = "pads the text with what nobody sees, and counts that"

    def chunks(self, honest: Sequence[Chunk]) -> Iterator[Chunk]:
        length = 0
        for chunk in honest:
            self.told()
            text = chunk.text + "\u200b" * self.dice.randrange(30)
            length += len(text.encode())
            yield replace(chunk, text=text, tokens=length)


class RepeatsText(Lie):
    name = "sends the same text again, and counts it again"

    def chunks(self, honest: Sequence[Chunk]) -> Iterator[Chunk]:
        tokens = count(1)
        for chunk in honest:
            for _ in range(self.dice.choice((0, 0, 3))):
                self.told()
                yield replace(chunk, tokens=next(tokens), finish_reason=None)
            yield replace(chunk, tokens=next(tokens))


class EndsAgain(Lie):
    name = "ends a reply often, for the end token of each"
    stops = True

    def chunks(self, honest: Sequence[Chunk]) -> Iterator[Chunk]:
        yield from honest[:-1]
        last = replace(honest[-1], finish_reason="stop")
        for extra in range(LINGERING):
            self.told()
            yield replace(last, tokens=last.tokens + extra, text=last.text if extra == 0 else "")


class SaysWhatIsNoCount(Lie):
    name = "sends counts that are none"

    def chunks(self, honest: Sequence[Chunk]) -> Iterator[Chunk]:
        at = self.dice.randrange(len(honest))
        yield from honest[:at]
        self.told()
        nonsense: Any = self.dice.choice((-1, 2**60, "7", 1.5, None, [3]))
        yield replace(honest[at], tokens=nonsense)
        yield from honest[at:]


class ClaimsUnsigned(Lie):
    name = "claims totals that nobody signed"

    async def receipt(self, receipt: dict[str, Any]) -> dict[str, Any]:
        answer = await super().receipt(receipt)
        if self.dice.random() < 0.5:
            await self._lie()
        return answer

    async def end(self) -> None:
        await self._lie()
        await super().end()
        await self._lie()

    async def _lie(self) -> None:
        if not self.dealing.receipts:
            return
        signed = _receipt(self.dealing.receipts[-1])
        more = signed.totals + self.dice.choice(
            (Totals(0, 1), Totals(1, 0), Totals(HUGE, 0), Totals(0, HUGE))
        )
        digest = self.dealing.domain.receipt(signed.job_id, more, signed.transcript)
        mine = proof.sign(digest, self.dealing.key)
        spoilt = bytes([*signed.signature[:64], signed.signature[64] ^ 7])
        await self.claim(
            more,
            self.dice.choice(
                (
                    signed,
                    replace(signed, totals=more),
                    replace(signed, totals=more, signature=mine),
                    replace(signed, totals=more, signature=spoilt),
                    replace(signed, totals=more, signature=bytes(65)),
                )
            ),
        )


class ClaimsByItsWord(Lie):
    name = "claims as on a job that needs no signature"

    async def end(self) -> None:
        for tokens in (1, 10_000):
            await self.submit(tokens, proof.attested_proof(tokens))
            await self.submit(tokens, b"")
        await super().end()


class ReplaysCheckpoints(Lie):
    name = "replays a checkpoint"

    async def end(self) -> None:
        await super().end()
        for receipt in self.some_receipts():
            await self.claim(_receipt(receipt).totals, _receipt(receipt))


class ReplaysTranscripts(Lie):
    name = "replays a transcript on another job"

    async def end(self) -> None:
        await super().end()
        others = [other for other in self.scene.others if other.receipts]
        for other in self.dice.sample(others, min(CLAIMS, len(others))):
            foreign = _receipt(other.receipts[-1])
            await self.claim(foreign.totals, foreign)
            more = self.dealing.signed + foreign.totals
            await self.claim(more, replace(foreign, totals=more))


class AcknowledgesFalsely(Lie):
    name = "acknowledges falsely"

    async def receipt(self, receipt: dict[str, Any]) -> dict[str, Any]:
        answer = await super().receipt(receipt)
        if self.dice.random() < 0.6:
            return answer
        self.told()
        lie: Mapping[str, Any] = self.dice.choice(
            (
                {"ack": self.dealing.ack(receipt, secrets.token_bytes(32))},
                {"ack": self.dealing.ack({**receipt, "tokens": receipt["tokens"] + 1000})},
                {"ack": self.dealing.ack(self.dealing.receipts[0])},
                {"ack": {**answer["ack"], "signature": None}},
                {"ack": {}},
            )
        )
        return dict(lie)


class HoldsAnotherReceipt(Lie):
    name = "says that it holds another receipt"

    async def receipt(self, receipt: dict[str, Any]) -> dict[str, Any]:
        answer = await super().receipt(receipt)
        if self.dice.random() < 0.6:
            return answer
        self.told()
        held = self.dice.choice(
            (
                self.dealing.receipts[0],
                {**receipt, "tokens": receipt["tokens"] + 1000},
                {**receipt, "signature": "0x" + secrets.token_hex(64) + "1b"},
                None,
            )
        )
        if self.dice.random() < 0.5:
            return {"code": "receipt_out_of_order", "status": 422, "stored": held}
        return {"ack": self.dealing.ack(held or receipt), "stored": held}


class ForgetsReceipts(Lie):
    name = "forgets receipts, and has them signed anew"

    def stored(self) -> dict[str, Any] | None:
        self.told()
        return self.dice.choice([None, *self.dealing.receipts])

    def chunks(self, honest: Sequence[Chunk]) -> Iterator[Chunk]:
        for chunk in honest:
            yield chunk
            if self.dealing.receipts and self.dice.random() < 0.03:
                raise BreakOff


class StopsInTheMiddle(Lie):
    name = "stops in the middle"

    def chunks(self, honest: Sequence[Chunk]) -> Iterator[Chunk]:
        for chunk in honest:
            yield chunk
            if self.dice.random() < 0.03:
                self.told()
                raise BreakOff


class WantsPromptsSigned(Lie):
    name = "has a prompt signed for, and serves nothing"

    def refusal(self, body: Mapping[str, Any]) -> dict[str, Any]:
        self.told()
        prompt = len(body["messages"][0]["content"].split()) + PROMPT_OVERHEAD
        prompt = self.dice.choice((prompt, prompt + 100, HUGE))
        least = self.dice.choice((prompt, prompt + 100, HUGE))
        terms = {"prompt_tokens": least, "tokens": 0}
        return {"code": "prompt_receipt_due", "status": 402, "prompt_tokens": prompt, "terms": terms}


class ForgesQuotes(Lie):
    name = "shows a quote that is not its host's"
    opens = True

    def quote(self) -> dict[str, Any]:
        self.told()
        body = self._quote()
        name, price = "0x" + secrets.token_hex(20), {"per_million": "1", "prompt_per_million": "1"}
        good = self._signed(body, self.dealing.key)
        lies: tuple[dict[str, Any], ...] = (
            self._signed(body, secrets.token_bytes(32)),
            {**good, "paid": False},
            {**good, "signature": None},
            {**good, "signature": "0x" + "11" * 65},
            {**good, "interval": {"min": 4, "max": 10**6}},
            {**good, "valid_until": self.scene.now + 10**6},
            {**good, "models": [{"name": "scripted", "prices": {name: price}}]},
            self._signed({**body, "valid_until": self.scene.now - 3600}, self.dealing.key),
            self._signed({**body, "chain_id": 1}, self.dealing.key),
            self._signed({**body, "contract": proof.address(self.dealing.key)}, self.dealing.key),
        )
        return self.dice.choice(lies)


LIES: tuple[type[Lie], ...] = (
    Honest,
    InflatesCounts,
    CountsBytes,
    CountsWithoutText,
    InflatesPrompts,
    CountsDown,
    Pads,
    RepeatsText,
    EndsAgain,
    SaysWhatIsNoCount,
    ClaimsUnsigned,
    ClaimsByItsWord,
    ReplaysCheckpoints,
    ReplaysTranscripts,
    AcknowledgesFalsely,
    HoldsAnotherReceipt,
    ForgetsReceipts,
    StopsInTheMiddle,
    WantsPromptsSigned,
    ForgesQuotes,
)


def _receipt(body: Mapping[str, Any]) -> Receipt:
    return Receipt(
        JobId(body["job_id"]),
        Totals(body["prompt_tokens"], body["tokens"]),
        bytes.fromhex(body["previous"][2:]),
        bytes.fromhex(body["transcript"][2:]),
        bytes.fromhex(body["signature"][2:]),
    )
