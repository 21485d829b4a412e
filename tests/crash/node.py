"""The whole node as the program that is killed, and a payer on a real socket who sees what it does."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from tallystick import wire
from tallystick.chain import Chain
from tallystick.config import HostConfig, Secret
from tallystick.node import Node
from tallystick.server import running
from tallystick.testing.engine import Script, ScriptedEngine, Step
from tallystick.types import Totals
from tests.crash.driver import ENDS, Start, Witness
from tests.crash.recovery import Truth
from tests.hosting import CHAT
from tests.paying import PROMPT, Signer

if TYPE_CHECKING:
    from tests.crash.nursery import Driver

LISTENS = "listens"
HEADERS = {"Content-Type": "application/json", "Connection": "close"}
PATIENCE = 60.0
"""Seconds for an answer."""
STOP = signal.SIGUSR1
TOKENS = 40
"""Of each reply: an interval ends in the last one."""
REPLIES = 3
PAUSE = 0.005
"""Seconds between two tokens: what comes at once goes out at once, and all of it is then in flight."""


def slowly(_: Mapping[str, Any]) -> Script:
    """A reply whose tokens come one by one."""
    loop = asyncio.get_running_loop()
    gates = [asyncio.Event() for _ in range(TOKENS)]

    def open_next(number: int) -> None:
        if number < TOKENS:
            gates[number].set()
            loop.call_later(PAUSE, open_next, number + 1)

    open_next(0)
    return Script(tuple(read for gate in gates for read in (gate, Step("x"))))


@dataclass(frozen=True)
class NodeStart(Start):
    """A node that serves until it is told to stop."""

    async def work(self, file: int) -> None:
        witness = Witness(file)
        config = HostConfig(
            host_private_key=Secret(self.key),
            rpc_url=self.rpc_url,
            data_dir=self.directory,
            receipt_timeout=1,
        )
        told = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(STOP, told.set)
        async with running(Node(config, engine=ScriptedEngine(slowly))) as url:
            witness.tell(LISTENS, url)
            await told.wait()
        witness.tell(ENDS)


class Payer:
    """Asks for replies and signs for them, until the node is gone."""

    def __init__(self, start: Start, truth: Truth) -> None:
        chain = Chain(start.rpc_url, start.deployment)
        opened = start.jobs[start.seed % len(start.jobs)]
        self._signer = Signer(chain, opened.job, opened.key)
        self._job = opened.job.id
        self._truth = truth

    def spend(self, url: str) -> None:
        """Returns at the end of the last reply, or when the connection breaks."""
        self._netloc = urlsplit(url).netloc
        with suppress(HTTPException, OSError):
            for number in range(1, REPLIES + 1):
                self._ask(number)

    def _ask(self, number: int) -> None:
        before = Totals()
        # Nothing tells of a piece but its coming: the prompt counts with the first token.
        self._truth.in_flight[self._job] = Totals(PROMPT, 1)
        for line in self._post(CHAT, self._signer.body(number)):
            if line.startswith(b"data: {"):
                event = orjson.loads(line.removeprefix(b"data: "))
                before = self._take(event, before)
                if event.get("tally", {}).get("due"):
                    # Who is dead or cannot write takes no receipt; what it sent is read all the same.
                    with suppress(HTTPException, OSError):
                        self._sign()
            elif line.startswith(b"data: [DONE]"):
                self._truth.in_flight[self._job] = Totals()
                self._sign()
                return
        raise ConnectionError("the reply broke off")

    def _post(self, path: str, body: object) -> HTTPResponse:
        # All that the kernel has of an answer is read, also once the other end is dead.
        connection = HTTPConnection(self._netloc, timeout=PATIENCE)
        connection.request("POST", path, orjson.dumps(body), {**HEADERS, **self._signer.headers()})
        answer = connection.getresponse()
        if answer.status != HTTPStatus.OK:
            raise ConnectionRefusedError(answer.read().decode())
        return answer

    def _take(self, event: dict[str, Any], before: Totals) -> Totals:
        if "choices" not in event:
            return before
        self._signer.receive(event)
        after = Totals(event["tally"]["prompt_tokens"], event["tally"]["tokens"])
        self._truth.delivered[self._job] += after - before
        self._truth.in_flight[self._job] = Totals(0, 1)
        return after

    def _sign(self) -> None:
        while (receipt := self._signer.receipt()) is not None:
            self._truth.offered[self._job] = receipt.totals
            answer = self._post(f"/v1/jobs/{self._job}/receipts", wire.receipt_out(receipt))
            self._signer.acked(orjson.loads(answer.read()))
            self._truth.acknowledged[self._job] = receipt.totals


async def served(driver: Driver, start: NodeStart, truth: Truth) -> str:
    """Has a payer spend all that it wants, and the node stop. What the node had told until then."""
    first = await asyncio.to_thread(driver.line)
    what, _, url = first.strip().partition(" ")
    if what == LISTENS:
        try:
            await asyncio.to_thread(Payer(start, truth).spend, url)
        finally:
            with suppress(ProcessLookupError):
                os.kill(driver.pid, STOP)
    return first
