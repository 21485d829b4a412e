"""Served nodes for tests, and a client of them that pays."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from tallystick import sse, wire
from tallystick.chain import Chain
from tallystick.config import HostConfig, Secret
from tallystick.devnet import Devnet
from tallystick.engine import Engine
from tallystick.node import Node
from tallystick.server import running
from tallystick.testing.engine import Script, ScriptedEngine, say
from tests.paying import Signer, open_job, until

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


class Host:
    """A served node, and a client of it."""

    def __init__(self, node: Node, url: str, http: aiohttp.ClientSession) -> None:
        self.node = node
        self.url = url
        self.http = http

    async def ask(
        self, signer: Signer, number: int = 1, *, signing: bool = True, **members: Any
    ) -> list[dict[str, Any]]:
        """A whole streamed reply, signed for as it comes: its events."""
        events: list[dict[str, Any]] = []
        parser = sse.SSEParser()
        async with self.http.post(
            CHAT, json=signer.body(number, **members), headers=signer.headers()
        ) as answer:
            assert answer.status == 200, await answer.text()
            assert answer.content_type == "text/event-stream"
            async for data in answer.content.iter_any():
                for payload in parser.feed(data):
                    if payload == b"[DONE]":
                        events.append({"done": True})
                        continue
                    event = orjson.loads(payload)
                    events.append(event)
                    if "choices" in event:
                        signer.receive(event)
                    if signing and event.get("tally", {}).get("due"):
                        await self.sign(signer)
        return events

    async def sign(self, signer: Signer) -> None:
        while (receipt := signer.receipt()) is not None:
            url = f"/v1/jobs/{signer.job.id}/receipts"
            async with self.http.post(
                url, json=wire.receipt_out(receipt), headers=signer.headers()
            ) as answer:
                assert answer.status == 200, await answer.text()
                signer.acked(await answer.json())

    async def problem(self, method: str, path: str, **how: Any) -> Mapping[str, Any]:
        """The problem+json that a request is refused with."""
        async with self.http.request(method, path, **how) as answer:
            problem: Mapping[str, Any] = orjson.loads(await answer.read())
            assert answer.content_type == "application/problem+json"
            assert problem["status"] == answer.status
            assert problem["type"] == f"urn:tallystick:error:{problem['code']}"
            return problem

    async def error(self, signer: Signer, **members: Any) -> tuple[int, Mapping[str, Any]]:
        """The status and the error, in OpenAI's shape, that a request for a reply is refused with."""
        async with self.http.post(CHAT, json=signer.body(**members), headers=signer.headers()) as answer:
            body = await answer.json()
            assert {"message", "type", "param", "code", "mend", "move"} <= body["error"].keys()
            return answer.status, body["error"]


class Hosting:
    """Serves nodes for one test."""

    def __init__(self, devnet: Devnet, chain: Chain, data_dir: Path) -> None:
        self.devnet = devnet
        self.chain = chain
        self.data_dir = data_dir
        self.parts = AsyncExitStack()

    async def serve(self, engine: Engine | None = None, **settings: Any) -> Host:
        config = HostConfig(
            **{
                "host_private_key": Secret(self.devnet.accounts.host.private_key),
                "rpc_url": self.devnet.rpc_url,
                "data_dir": self.data_dir,
                "receipt_timeout": 1,
                **settings,
            }
        )
        node = Node(config, engine=engine or ScriptedEngine(Script(say(*"x" * 60))))
        url = await self.parts.enter_async_context(running(node))
        http = await self.parts.enter_async_context(aiohttp.ClientSession(url))
        return Host(node, url, http)

    async def signer(self, **changed: Any) -> Signer:
        return await open_job(self.devnet, self.chain, **changed)


async def started(engine: ScriptedEngine, requests: int = 1) -> None:
    """Waits until the engine is asked for something, or for so many replies."""

    async def asked() -> bool:
        return len(engine.asked) >= requests

    await until(asked)
