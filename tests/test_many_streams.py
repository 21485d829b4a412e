"""Many replies at once on one job, over HTTP and WebSocket: one count, one credit, nobody held up."""

from __future__ import annotations

import asyncio

import orjson

from tallystick import sse, wire
from tallystick.account import Account
from tallystick.testing.engine import Script, ScriptedEngine, Step, babble
from tallystick.types import RequestId, Totals
from tests.hosting import CHAT, Host, Hosting
from tests.paying import PROMPT, Signer, until

STREAMS = 64
TOKENS = 40


class Payer:
    """One job's payer, who signs for whatever came, one receipt at a time, and watches what it is lent."""

    def __init__(self, host: Host, signer: Signer) -> None:
        self.host = host
        self.signer = signer
        self.most = 0
        """The most that was unsigned, in micro base units."""
        self.came: dict[int, int] = {}
        """By reply: tokens that have come."""
        self.signing = asyncio.Event()
        """It signs while this is set."""
        self.signing.set()
        self._due = False
        """A receipt is to be made."""
        self._task: asyncio.Task[None] | None = None

    async def over_http(self, number: int, tokens: int = TOKENS) -> None:
        parser = sse.SSEParser()
        body = self.signer.body(number, max_tokens=tokens)
        async with self.host.http.post(CHAT, json=body, headers=self.signer.headers()) as answer:
            assert answer.status == 200, await answer.text()
            async for data in answer.content.iter_any():
                for payload in parser.feed(data):
                    if payload != b"[DONE]":
                        event = orjson.loads(payload)
                        self.signer.receive(event)
                        self.came[number] = event["tally"]["tokens"]
                        self.sign(due=event["tally"].get("due", False))

    async def over_websocket(self, numbers: range) -> None:
        url = "/v1/session"
        async with self.host.http.ws_connect(url, headers=self.signer.headers()) as socket:
            for number in numbers:
                await socket.send_str(wire.frame("inference", request=self._prompt(number)))
            left = len(numbers)
            while left:
                frame = orjson.loads((await socket.receive(timeout=60)).data)
                assert frame["type"] != "error", frame
                if frame["type"] in ("token", "done"):
                    choice = {
                        "delta": {"content": frame.get("text")},
                        "finish_reason": frame["finish_reason"] if frame["type"] == "done" else None,
                    }
                    self.signer.receive({"choices": [choice], "tally": frame["tally"]})
                left -= frame["type"] == "done"
                self.sign(due=frame["type"] in ("checkpoint", "done"))

    def _prompt(self, number: int) -> dict[str, object]:
        request = RequestId(f"{number:032x}")
        body = {"prompt": "Why was the stick split?", "max_tokens": TOKENS}
        self.signer.signs.begin(request, body, TOKENS)
        return {**body, "id": request}

    def sign(self, *, due: bool) -> None:
        self.most = max(self.most, _account(self).meter.unsigned)
        if due and not self._due:
            self._due = True
            self._task = asyncio.create_task(self._sign_next(self._task))

    async def _sign_next(self, before: asyncio.Task[None] | None) -> None:
        """One receipt at a time, beside the reading; what is due meanwhile goes into the next."""
        if before is not None:
            await before
        await self.signing.wait()
        self._due = False
        await self.host.sign(self.signer)

    async def over(self) -> None:
        """All that was due is signed for."""
        if self._task is not None:
            await self._task


async def test_many_streams(hosting: Hosting) -> None:
    """The total of 64 replies is their sum, and no more than one credit is lent at any time."""
    engine = ScriptedEngine()
    host = await hosting.serve(engine, receipt_timeout=30)
    signer = await hosting.signer(checkpoint_interval=200)
    payer = Payer(host, signer)
    half = STREAMS // 2
    await asyncio.gather(
        *(payer.over_http(number) for number in range(1, half + 1)),
        *(payer.over_websocket(range(start, start + 8)) for start in range(half + 1, STREAMS + 1, 8)),
    )
    total = Totals(STREAMS * PROMPT, STREAMS * TOKENS)
    account = _account(payer)
    await payer.over()
    assert (account.meter.counted, account.meter.acknowledged) == (total, total)
    assert engine.tokens == total.tokens
    assert 0 < payer.most <= account.meter.credit
    assert account.meter.reserved == 0


async def test_streams_take_turns(hosting: Hosting) -> None:
    """Replies that are under way at the same time come on alike: none waits until another is over."""
    host = await hosting.serve(ScriptedEngine(), receipt_timeout=30)
    signer = await hosting.signer(checkpoint_interval=100)
    payer = Payer(host, signer)
    replies = [asyncio.create_task(payer.over_http(number, 90)) for number in range(1, 13)]
    await asyncio.wait(replies, return_when=asyncio.FIRST_COMPLETED)
    least = min(payer.came.get(number, 0) for number in range(1, 13))
    await asyncio.gather(*replies)
    await payer.over()
    assert least >= 45


async def test_a_slow_reader_holds_up_nobody(hosting: Hosting) -> None:
    """What a client has not read is its own position: the job's other replies go on, and are signed for."""
    host = await hosting.serve(ScriptedEngine(), receipt_timeout=60)
    signer = await hosting.signer(checkpoint_interval=100)
    payer = Payer(host, signer)
    payer.signing.clear()
    fast = asyncio.create_task(payer.over_http(1, 1000))
    await until(lambda: _is(payer.came.get(1, 0) > 90))
    body, headers = signer.body(99, max_tokens=1000), signer.headers()
    asking = asyncio.create_task(host.http.post(CHAT, json=body, headers=headers).__aenter__())
    await until(lambda: _is(_account(payer).line.prompts == 1))
    payer.signing.set()
    slow = await asking
    await slow.content.readany()  # and nothing after it
    await fast
    slow.close()
    await payer.over()
    assert _account(payer).meter.acknowledged == Totals(PROMPT, 1000)


async def test_large_pieces_have_their_turn(hosting: Hosting) -> None:
    """A reply whose tokens come many at a time is over before others that came first and are longer."""
    large = Script((Step("I", 1), Step("w" * 60, 60), Step(".", 1)))
    engine = ScriptedEngine(lambda body: large if body["max_tokens"] == 62 else babble(body["max_tokens"]))
    host = await hosting.serve(engine, receipt_timeout=30)
    payer = Payer(host, await hosting.signer(checkpoint_interval=100))
    others = [asyncio.create_task(payer.over_http(number, 2000)) for number in (1, 2, 3)]
    await until(lambda: _is(all(payer.came.get(number, 0) > 20 for number in (1, 2, 3))))
    await payer.over_http(4, 62)
    assert not any(other.done() for other in others)
    await asyncio.gather(*others)
    await payer.over()


async def test_whole_answers_at_once_are_all_served(hosting: Hosting) -> None:
    """What is let in at once goes out one after the other, each once those before it are signed for."""
    host = await hosting.serve(ScriptedEngine(), receipt_timeout=60)
    signer = await hosting.signer(checkpoint_interval=100)
    signing = asyncio.Lock()

    async def whole(number: int) -> None:
        body = signer.body(number, stream=False, max_tokens=90)
        async with host.http.post(CHAT, json=body, headers=signer.headers()) as answer:
            assert answer.status == 200, await answer.text()
            signer.receive(await answer.json())
        async with signing:
            await host.sign(signer)

    async with asyncio.timeout(30):
        await asyncio.gather(*map(whole, (1, 2, 3)))


async def test_a_reader_that_stopped_does_not_shut_the_job(hosting: Hosting) -> None:
    """Once nobody has signed for what it left unread for as long as is waited, others are let in again."""
    host = await hosting.serve(ScriptedEngine(), receipt_timeout=1, grace=600)
    signer = await hosting.signer(checkpoint_interval=100)
    body, headers = signer.body(99, max_tokens=1000), signer.headers()
    async with host.http.post(CHAT, json=body, headers=headers) as slow:
        await slow.content.readany()  # and nothing after it
        payer = Payer(host, signer)
        await until(lambda: _is(_account(payer).room() < 10))
        await payer.over_http(1, 300)
        await payer.over()
    assert payer.came[1] == 300


async def test_a_piece_beyond_the_interval_ends_its_reply_at_once(hosting: Hosting) -> None:
    """No receipt would make room for it, so nobody waits: the reply says that the interval is too small."""
    engine = ScriptedEngine(Script((Step("I", 1), Step("w" * 150, 150))))
    host = await hosting.serve(engine, receipt_timeout=60)
    signer = await hosting.signer(checkpoint_interval=100)
    async with asyncio.timeout(30):
        events = await host.ask(signer, max_tokens=300)
    assert events[-2]["tally"]["reason"] == "interval_too_small"
    assert events[-2]["tally"]["tokens"] == 1


async def _is(fact: bool) -> bool:
    return fact


def _account(payer: Payer) -> Account:
    account = payer.host.node.desk.accounts.get(payer.signer.job.id)
    assert account is not None
    return account
