"""What a streamed token costs its payer in time of the processor, beside what the network and the disk take.

    python -m benchmarks.sdk session | openai

`session` is the SDK from the bytes of a read to the text that is handed on: events cut and decoded, counted,
held against the bound, receipts made, signed and acknowledged. `openai` is the official client from the bytes
of a read to the chunk that is handed on; nobody counts there. Both get the same reply, a token a read, which
is the worst case. Prints one object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import httpx2
import openai

from benchmarks import mock
from benchmarks.payers import MESSAGES, PRICES
from tallystick import proof, sse, wire
from tallystick.countersign import Countersigner
from tallystick.exchange import Exchange
from tallystick.session import Session
from tallystick.tab import Tab
from tallystick.types import Ack, Address, JobId, RequestId, Totals

REPLIES = 100
WARM_UP = 10
"""Replies that are not measured."""
INTERVAL = 100
"""Tokens: the default, so a receipt is signed for every 25."""
JOB = JobId(7)
DEPOSIT = 2_000_000
DOMAIN = proof.Domain(31337, Address("0x5FbDB2315678afecb367f032d93F642f64180aa3"))
KEY, HOST_KEY = (bytes.fromhex(digits * 32) for digits in ("11", "22"))
HOST = proof.address(HOST_KEY)
BODY: dict[str, Any] = {"model": mock.MODEL, "messages": MESSAGES, "max_tokens": mock.TOKENS, "stream": True}


class Watch:
    """Adds up the processor's time of what is in its `with` blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self, sign: int = 1) -> Iterator[None]:
        began = time.thread_time()
        yield
        self.seconds += sign * (time.thread_time() - began)

    def not_running(self) -> AbstractContextManager[None]:
        """For what is in between and somebody else's."""
        return self.running(-1)


def events(request: RequestId) -> list[bytes]:
    """A reply as a node sends it, event by event."""
    return [_event(request, number) for number in range(1, mock.TOKENS + 1)]


def _event(request: RequestId, number: int) -> bytes:
    totals = Totals(mock.PROMPT_TOKENS, number)
    choice = {"index": 0, "delta": {"content": mock.text(number)}, "logprobs": None, "finish_reason": None}
    head = {"id": "chatcmpl-0f0e0d0c0b0a09080706050403020100", "object": "chat.completion.chunk"}
    told = wire.tally(request, totals, totals, DEPOSIT - number, due=number % 25 == 0)
    return sse.event(
        {**head, "created": 1_700_000_000, "model": mock.MODEL, "choices": [choice], "tally": told}
    )


class Job:
    """In a Session's place: counts and signs as it does, and has no connection."""

    def __init__(self) -> None:
        self.signs = Countersigner(JOB, PRICES, INTERVAL, DOMAIN, KEY)
        self.due = asyncio.Event()

    def counting(self, body: dict[str, Any], max_tokens: int, choices: int = 1) -> Tab:
        return Tab(self.signs, self.due, lambda over: None, body, max_tokens, choices)


async def session(watch: Watch) -> None:
    """One reply to the SDK."""
    job, text = Job(), ""
    with watch.running():
        exchange = Exchange(cast("Session", job), "/v1/chat/completions", BODY, max_tokens=mock.TOKENS)
        parser = sse.SSEParser()
        with watch.not_running():
            reads = events(exchange.tab.request)
        for read in reads:
            parts = [exchange._part(payload) for payload in parser.feed(read)]
            exchange._hold(parts)
            text += "".join([part.content for part in parts])
            if job.due.is_set():
                job.due.clear()
                _sign(job.signs, watch)
    assert text == "".join(map(mock.text, range(1, mock.TOKENS + 1)))
    assert job.signs.receipted == Totals(mock.PROMPT_TOKENS, mock.TOKENS)


def _sign(signs: Countersigner, watch: Watch) -> None:
    while (receipt := signs.next()) is not None:
        with watch.not_running():
            digest = DOMAIN.receipt(receipt.job_id, receipt.totals, receipt.transcript)
            ack = Ack(receipt.job_id, receipt.totals, receipt.transcript, proof.sign(digest, HOST_KEY))
        signs.acked(ack, HOST)


class _Reads(httpx2.AsyncByteStream):
    """A body that comes read by read, and no time of the processor is spent on where from."""

    def __init__(self, reads: list[bytes]) -> None:
        self._reads = reads

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for read in self._reads:
            yield read


async def official(watch: Watch) -> None:
    """One reply to the official client."""
    reads = [*events(RequestId("0f" * 16)), sse.DONE]

    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=_Reads(reads))

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    client = openai.AsyncOpenAI(base_url="http://mock.invalid/v1", api_key="-", http_client=http)
    asked = {name: member for name, member in BODY.items() if name != "stream"}
    text = ""
    with watch.running():
        async for chunk in await client.chat.completions.create(**asked, stream=True):
            text += chunk.choices[0].delta.content or ""
    assert text == "".join(map(mock.text, range(1, mock.TOKENS + 1)))
    await client.close()


async def measure(what: str) -> float:
    """Microseconds a token."""
    reply = {"session": session, "openai": official}[what]
    for _ in range(WARM_UP):
        await reply(Watch())
    watch = Watch()
    for _ in range(REPLIES):
        await reply(watch)
    return watch.seconds / (REPLIES * mock.TOKENS) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("session", "openai"))
    print(json.dumps({"microseconds": asyncio.run(measure(parser.parse_args().what))}))


if __name__ == "__main__":
    main()
