"""Many replies at once on one job, over HTTP and WebSocket: one count, one credit, nobody held up."""

from __future__ import annotations

import asyncio

import orjson

from tallystick import wire
from tallystick.testing.engine import ScriptedEngine
from tallystick.types import RequestId, Totals
from tests.hosting import CHAT, Host, Hosting
from tests.paying import PROMPT, Signer

STREAMS = 64
TOKENS = 40


class Payer:
    """One job's payer, who signs for whatever came, one receipt at a time, and watches what it is lent."""

    def __init__(self, host: Host, signer: Signer) -> None:
        self.host = host
        self.signer = signer
        self.most = 0
        """The most that was unsigned, in micro base units."""
        self._signing = asyncio.Lock()

    async def over_http(self, number: int) -> None:
        parser = wire.SSEParser()
        body = self.signer.body(number, max_tokens=TOKENS)
        async with self.host.http.post(CHAT, json=body, headers=self.signer.headers()) as answer:
            assert answer.status == 200, await answer.text()
            async for data in answer.content.iter_any():
                for payload in parser.feed(data):
                    if payload != b"[DONE]":
                        event = orjson.loads(payload)
                        self.signer.receive(event)
                        await self.sign(due=event["tally"].get("due", False))

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
                await self.sign(due=frame["type"] in ("checkpoint", "done"))

    def _prompt(self, number: int) -> dict[str, object]:
        request = RequestId(f"{number:032x}")
        body = {"prompt": "Why was the stick split?", "max_tokens": TOKENS}
        self.signer.signs.begin(request, body, TOKENS)
        return {**body, "id": request}

    async def sign(self, *, due: bool) -> None:
        account = self.host.node.desk.accounts.get(self.signer.job.id)
        assert account is not None
        self.most = max(self.most, account.meter.unsigned)
        if due:
            async with self._signing:
                await self.host.sign(self.signer)


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
    account = host.node.desk.accounts.get(signer.job.id)
    assert account is not None
    assert (account.meter.counted, account.meter.acknowledged) == (total, total)
    assert engine.tokens == total.tokens
    assert 0 < payer.most <= account.meter.credit
    assert account.meter.reserved == 0


async def test_a_slow_reader_holds_up_nobody(hosting: Hosting) -> None:
    """What a client has not read is its own position: the job's other replies go on, and are signed for."""
    host = await hosting.serve(ScriptedEngine())
    signer = await hosting.signer(checkpoint_interval=100)
    payer = Payer(host, signer)
    body = signer.body(99, max_tokens=TOKENS)
    async with host.http.post(CHAT, json=body, headers=signer.headers()) as slow:
        await slow.content.readany()  # and nothing after it
        for number in range(1, 6):
            await payer.over_http(number)
    account = host.node.desk.accounts.get(signer.job.id)
    assert account is not None
    assert account.meter.acknowledged == Totals(5 * PROMPT, 5 * TOKENS)
