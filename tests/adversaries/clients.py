"""What clients lie about, class by class, against an honest host: at every chunk, as their dice say.

A class decides and a Client does. `told` counts lies that went out; a class that never lied has shown
nothing.
"""

from __future__ import annotations

import asyncio
import secrets
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass
from typing import Any, ClassVar

from tallystick import proof
from tallystick.types import Totals
from tests.adversaries.client import GRACE, HOUR, Chunk, Client, Opened, Refused, Reply
from tests.adversaries.oracle import CREDITS

DAY = 24 * HOUR
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
"""Of secp256k1: a signature with its `s` subtracted from this is the same one, and not the low one."""


@dataclass
class Scene:
    """What a lie may use beside its own client."""

    parts: AsyncExitStack
    client: Client
    other: Opened
    """Another job of the same host, whose key is there too."""
    complete: Callable[[int], Awaitable[None]]
    """Asks on the chain for a job to be completed, as its payer."""
    join: Callable[[Opened, bool], Client]
    """A further client, of that job; True: nobody who may spend it."""

    async def enter(self, job: Opened | None = None, *, stranger: bool = False) -> Client:
        """A further client, of the same job if none is named."""
        return await self.parts.enter_async_context(self.join(job or self.client.job, stranger))


class Lie:
    """One client's conduct in one session. This one is honest."""

    name: ClassVar[str] = "signs honestly"
    honest: ClassVar[bool] = False
    """It is here for comparison."""
    hasty: ClassVar[bool] = False
    """The engine makes its reply as fast as it can."""
    attempts: ClassVar[int] = 1
    """How often it asks."""
    rest: ClassVar[float] = 0.0
    """Seconds between one attempt and the next."""
    streams: ClassVar[tuple[int, ...]] = (1, 1, 2, 4)
    """At once, of which one number is drawn."""
    strangers_credits: ClassVar[int] = 0
    """What strangers may get at the most."""
    spends_other: ClassVar[bool] = False
    """It asks on the other job as well, which then is nobody else's."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.client = scene.client
        self.dice = scene.client.dice
        self.often = self.dice.choice((0.2, 0.5, 1.0))
        """How likely it lies where it can."""

    async def play(self) -> None:
        """The whole session."""
        streams = self.dice.choice(self.streams)
        for _ in range(self.attempts):
            await asyncio.gather(*(self.reply(number) for number in range(streams)))
            await asyncio.sleep(self.rest)

    async def reply(self, number: int) -> None:
        """One reply, with what it takes to be refused or cut off. `number`: of those at once."""
        await self.read(self.client)

    async def read(self, client: Client, reply: Reply | None = None, **how: Any) -> None:
        """All that comes of one request."""
        with suppress(Refused, ConnectionError):
            async with aclosing(client.ask(reply, **how)) as chunks:
                async for chunk in chunks:
                    await self.each(chunk)
                    if chunk.due:
                        await self.due()

    async def each(self, chunk: Chunk) -> None:
        """At every chunk."""

    async def due(self) -> None:
        """A receipt is asked for."""
        if self.dice.random() < self.often:
            await self.lie()
        else:
            await self.client.sign()

    async def lie(self) -> None:
        """In place of an honest receipt."""
        await self.client.sign()

    async def tell(self, receipt: Mapping[str, Any]) -> bool:
        """A lie goes out in a receipt. True: the host took it."""
        self.client.told += 1
        return await self.client.send(receipt) == "ack"


class Honest(Lie):
    honest = True


class NeverSigns(Lie):
    name = "never signs"
    hasty = True
    attempts = 3
    rest = GRACE + 0.5

    async def due(self) -> None:
        self.client.told += 1


class NeverSignsAtAll(NeverSigns):
    name = "never signs, many streams of both kinds at once"
    attempts = 2
    rest = 0.0
    streams = (8, 16)

    async def reply(self, number: int) -> None:
        await self.read(self.client, socket=number % 2 == 0)


class NeverSignsAndLeaves(NeverSigns):
    name = "never signs, and breaks off when it is to"
    attempts = 4
    rest = 0.0
    streams = (1, 2)

    async def each(self, chunk: Chunk) -> None:
        if chunk.waiting:
            self.client.told += 1
            raise ConnectionError("it leaves")

    async def reply(self, number: int) -> None:
        await super().reply(number)
        await self.client.hang_up()


class StopsSigning(Lie):
    name = "stops signing"
    attempts = 2
    _stopped = False

    async def each(self, chunk: Chunk) -> None:
        self._stopped = self._stopped or self.dice.random() < 0.02

    async def due(self) -> None:
        if self._stopped:
            self.client.told += 1
        else:
            await self.client.sign()


class SignsLess(Lie):
    name = "signs less than came"

    async def lie(self) -> None:
        positions = [
            reply.position(self.dice.randrange(len(reply.ends)))
            for reply in self.client.replies.values()
            if reply.ends
        ]
        receipt = self.client.pen.write(positions)
        if await self.tell(receipt):
            self.client.pen.confirmed(receipt)


class SignsForAnotherJob(Lie):
    name = "signs for another job"

    async def lie(self) -> None:
        if positions := self.client.moved():
            receipt = self.client.pen.write(positions, job_id=self.scene.other.id)
            named = self.dice.choice((self.client.job.id, self.scene.other.id))
            await self.tell({**receipt, "job_id": named})


class Replays(Lie):
    name = "replays a receipt"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._past: list[dict[str, Any]] = []

    async def due(self) -> None:
        if positions := self.client.moved():
            receipt = self.client.pen.write(positions)
            if await self.client.send(receipt) == "ack":
                self.client.pen.confirmed(receipt)
                self._past.append(receipt)
        if self._past and self.dice.random() < self.often:
            receipt = self.dice.choice(self._past)
            await self.tell({**receipt, "previous": self.dice.choice((receipt["previous"], self._newest))})

    @property
    def _newest(self) -> str:
        return "0x" + self.client.pen.previous.hex()


class Forges(Lie):
    name = "forges the signature"

    async def lie(self) -> None:
        if positions := self.client.moved():
            if self.dice.random() < 0.5:
                receipt = self.client.pen.write(positions, key=proof.new_key())
            else:
                receipt = self.client.pen.write(positions)
                receipt["signature"] = self._spoilt(receipt["signature"])
            if await self.tell(receipt):
                self.client.pen.confirmed(receipt)

    def _spoilt(self, signature: str) -> str:
        raw = bytes.fromhex(signature[2:])
        high = (ORDER - int.from_bytes(raw[32:64], "big")).to_bytes(32, "big")
        return (
            "0x"
            + self.dice.choice(
                (
                    raw[:32] + high + bytes([55 - raw[64]]),
                    raw[:64] + bytes([raw[64] ^ 7]),
                    raw[32:64] + raw[:32] + raw[64:],
                    bytes(64) + raw[64:],
                    raw[:10] + bytes([raw[10] ^ 1]) + raw[11:],
                )
            ).hex()
        )


class SignsForWhatNeverCame(Lie):
    name = "signs for another text, prompt or request"

    async def lie(self) -> None:
        if positions := self.client.moved():
            position = dict(self.dice.choice(positions))
            position |= self.dice.choice(
                (
                    {"text_hash": "0x" + secrets.token_hex(32)},
                    {"prompt_hash": "0x" + secrets.token_hex(32)},
                    {"request": secrets.token_hex(16)},
                    {"tokens": position["tokens"] + self.client.job.interval},
                    {"tokens": max(0, position["tokens"] - 1)},
                    {"prompt_tokens": position["prompt_tokens"] + 1},
                )
            )
            await self.tell(self.client.pen.write([position]))


class SignsPromptsForTokens(Lie):
    name = "signs for prompts that it did not send"

    async def lie(self) -> None:
        if positions := self.client.moved():
            no_tokens = [{**position, "tokens": 0} for position in positions]
            more = Totals(self.dice.choice((1_000, 10**6)), 0)
            what = self.dice.choice((positions, no_tokens, []))
            receipt = self.client.pen.write(what, more=more)
            if await self.tell(receipt):
                self.client.pen.confirmed(receipt)


class RacesTwo(Lie):
    name = "races two receipts"

    async def lie(self) -> None:
        client = self.client
        if len(positions := client.moved()) == 0:
            return
        one = client.pen.write(positions)
        reply = client.replies[positions[0]["request"]]
        less = reply.position(self.dice.randrange(len(reply.ends)))
        two = client.pen.write([less])
        receipts = [one, two] if self.dice.random() < 0.5 else [two, one]
        client.told += 1
        answers = await asyncio.gather(*(client.send(receipt) for receipt in receipts))
        for receipt, answer in zip(receipts, answers, strict=True):
            if answer == "ack":
                client.pen.confirmed(receipt)


class Reconnects(Lie):
    name = "reconnects in the middle"
    attempts = 5
    streams = (1, 2)

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._signs = self.dice.choice((0.0, 0.5, 0.9))

    async def each(self, chunk: Chunk) -> None:
        if chunk.waiting or self.dice.random() < 0.05:
            self.client.told += 1
            raise ConnectionError("it leaves")

    async def due(self) -> None:
        if self.dice.random() < self._signs:
            await self.client.sign()

    async def play(self) -> None:
        await super().play()
        for reply in list(self.client.replies.values()):
            if reply.events:
                await self.read(self.client, reply, after=reply.events)

    async def reply(self, number: int) -> None:
        await super().reply(number)
        await self.client.hang_up()


class LeavesBeforeTheFirstToken(Lie):
    name = "leaves before the first token"
    attempts = 6
    streams = (1, 2)

    async def reply(self, number: int) -> None:
        with suppress(Refused, ConnectionError, TimeoutError):
            async with (
                asyncio.timeout(self.dice.uniform(0.0, 0.04)),
                aclosing(self.client.ask()) as chunks,
            ):
                async for _ in chunks:
                    break
        self.client.told += 1
        await self.client.hang_up()


class AsksForItAgain(Lie):
    name = "has a reply sent again, and signs for neither"
    streams = (1,)

    async def due(self) -> None:
        self.client.told += 1

    async def play(self) -> None:
        await super().play()
        for reply in list(self.client.replies.values()):
            again = await self.scene.enter()
            await self.read(again, Reply(reply.request, reply.prompt_hash), after=0)


class CompletesOnChain(Lie):
    name = "completes on the chain in the middle"
    attempts = 2

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._completed = False
        self._signs = self.dice.random() < 0.5

    async def each(self, chunk: Chunk) -> None:
        if not self._completed and self.dice.random() < 0.05:
            self._completed = True
            self.client.told += 1
            await self.scene.complete(self.client.job.id)

    async def due(self) -> None:
        if self._signs or not self._completed:
            await self.client.sign()


class EndsWithLess(Lie):
    name = "ends the session with less than came"
    attempts = 2

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._ended = False

    async def due(self) -> None:
        if not self._ended:
            await self.client.sign()

    async def each(self, chunk: Chunk) -> None:
        if not self._ended and self.dice.random() < 0.05:
            self._ended = True
            self.client.told += 1
            path = f"/v1/jobs/{self.client.job.id}/complete"
            answer = await self.client.post(path, self._end(), {})
            self.client.answers[answer.get("code", "taken")] += 1

    def _end(self) -> dict[str, Any]:
        pen = self.client.pen
        if self.dice.random() < 0.5 and (reply := next(iter(self.client.replies.values()))).ends:
            return {"receipt": pen.write([reply.position(self.dice.randrange(len(reply.ends)))])}
        return {"end": "0x" + proof.sign(pen.domain.end(pen.job.id), pen.job.key).hex()}


class ExpiredBearer(Lie):
    name = "uses a bearer that has run out"

    async def each(self, chunk: Chunk) -> None:
        if self.dice.random() < 0.05:
            await self.intrude(self.bearer())

    def bearer(self) -> str:
        created_at = self.client.job.created_at
        return self.client.bearer(
            expires_at=self.dice.choice((1, created_at - 1, created_at + 31 * DAY, 10**15))
        )

    async def intrude(self, bearer: str, **how: Any) -> None:
        """One more request, by somebody who may not ask."""
        self.client.told += 1
        intruder = await self.scene.enter(stranger=True)
        with suppress(Refused, ConnectionError):
            async with aclosing(intruder.ask(bearer=bearer, **how)) as chunks:
                async for _ in chunks:
                    continue
        self.client.answers += intruder.answers


class AnothersBearer(ExpiredBearer):
    name = "uses another's bearer"

    async def each(self, chunk: Chunk) -> None:
        if self.dice.random() < 0.05:
            await self.intrude(self.bearer(), job_id=self.client.job.id)

    def bearer(self) -> str:
        mine, other = self.client.job, self.scene.other
        return self.client.bearer(
            **self.dice.choice(
                (
                    {"key": other.key},
                    {"key": other.key, "job_id": other.id},
                    {"key": mine.key, "job_id": other.id},
                )
            )
        )


# Strangers: an honest client is served meanwhile


class Stranger(Lie, ABC):
    """Somebody without the job's key, beside its honest payer."""

    streams = (1, 2)
    attempts = 2
    tries = 6

    async def play(self) -> None:
        stranger = await self.scene.enter(stranger=True)
        intruding = asyncio.create_task(self.haunt(stranger))
        await super().play()
        await intruding

    async def haunt(self, stranger: Client) -> None:
        """Tries to get something of the job, again and again."""
        for _ in range(self.tries):
            await asyncio.sleep(self.dice.uniform(0.0, 0.1))
            self.client.told += 1
            await self.intrude(stranger)
        self.client.answers += stranger.answers

    @abstractmethod
    async def intrude(self, stranger: Client) -> None:
        """Tries once."""

    async def take(self, stranger: Client, reply: Reply | None = None, **how: Any) -> None:
        """What comes of one request."""
        with suppress(Refused, ConnectionError):
            async with aclosing(stranger.ask(reply, **how)) as chunks:
                async for _ in chunks:
                    continue


class StrangerWithoutABearer(Stranger):
    name = "a stranger without a bearer"

    async def intrude(self, stranger: Client) -> None:
        forged = stranger.bearer(key=proof.new_key())
        await self.take(
            stranger, bearer=self.dice.choice(("", "tally-1-1-", "sk-none", forged, forged[:-2] + "AA"))
        )


class StrangerWithAJob(Stranger):
    name = "a stranger with a job of its own"

    async def intrude(self, stranger: Client) -> None:
        other, mine = self.scene.other, self.client.job.id
        bearer = stranger.bearer(key=other.key, job_id=other.id)
        headers = {"Authorization": f"Bearer {bearer}"}
        end = {"end": "0x" + proof.sign(stranger.pen.domain.end(mine), other.key).hex()}
        path = f"/v1/jobs/{mine}"
        match self.dice.randrange(4):
            case 0:
                await self.take(stranger, bearer=bearer, job_id=mine)
            case 1:
                self._note(stranger, await stranger.get(path, headers))
            case 2:
                self._note(stranger, await stranger.post(f"{path}/complete", end, headers))
            case _:
                receipt = stranger.pen.write([], more=Totals(0, 10**6), key=other.key)
                await stranger.send(receipt, bearer=bearer)

    @staticmethod
    def _note(stranger: Client, answer: Mapping[str, Any]) -> None:
        stranger.answers[answer.get("code", "taken")] += 1


class StrangerWhoResumes(Stranger):
    name = "a stranger with a job of its own, who knows the requests"
    strangers_credits = 1
    spends_other = True

    async def haunt(self, stranger: Client) -> None:
        await super().haunt(await self.scene.enter(self.scene.other, stranger=True))

    async def intrude(self, stranger: Client) -> None:
        if self.client.replies:
            known = self.dice.choice(list(self.client.replies.values()))
            await self.take(stranger, Reply(known.request, known.prompt_hash), after=0)


class ThiefOfABearer(Stranger):
    """It is to its host what the payer is, but that it cannot sign: law 3 bounds both together."""

    name = "a thief of the bearer"
    strangers_credits = CREDITS

    async def intrude(self, stranger: Client) -> None:
        with suppress(Refused, ConnectionError):
            async with aclosing(stranger.ask(bearer=self.client.bearer())) as chunks:
                async for chunk in chunks:
                    if chunk.waiting:
                        break
                    if chunk.due and (positions := stranger.moved()):
                        await stranger.send(stranger.pen.write(positions, key=proof.new_key()))


LIES: tuple[type[Lie], ...] = (
    Honest,
    NeverSigns,
    NeverSignsAtAll,
    NeverSignsAndLeaves,
    StopsSigning,
    SignsLess,
    SignsForAnotherJob,
    Replays,
    Forges,
    SignsForWhatNeverCame,
    SignsPromptsForTokens,
    RacesTwo,
    Reconnects,
    LeavesBeforeTheFirstToken,
    AsksForItAgain,
    CompletesOnChain,
    EndsWithLess,
    ExpiredBearer,
    AnothersBearer,
    StrangerWithoutABearer,
    StrangerWithAJob,
    StrangerWhoResumes,
    ThiefOfABearer,
)
