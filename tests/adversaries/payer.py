"""The honest payer: sessions as the package has them, many at once, in a process of their own.

Each line it is told is an errand: to ask a host on a job whose key it is given, or to open a job with a host.
What it then says is what came, and what it has signed by its own store. A fault can be planted in it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

from tallystick import session as patience
from tallystick.chain import Chain, deployment_at
from tallystick.countersign import Countersigner
from tallystick.errors import TallystickError
from tallystick.exchange import Exchange
from tallystick.opening import Wishes
from tallystick.proof import address
from tallystick.session import Session, Text
from tallystick.store import Store, StoredJob
from tallystick.types import JobId, Totals
from tests.adversaries.child import say, told

PATIENCE = 120.0
"""Seconds for one errand."""


def signs_whatever_is_counted() -> None:
    """The payer does not hold the host's count against what came."""
    Countersigner._can_be = staticmethod(lambda *_: True)  # type: ignore[method-assign,assignment]


FAULTS = {fault.__name__: fault for fault in (signs_whatever_is_counted,)}


class Payer:
    """`chain` and `store` serve all errands."""

    def __init__(self, chain: Chain, store: Store, key: bytes) -> None:
        self._chain = chain
        self._store = store
        self._key = key

    async def run(self, errand: Mapping[str, Any]) -> None:
        """Says what came of it; what goes wrong is told, whatever it is."""
        came: dict[str, Any] = {"errand": errand["errand"], "replies": [], "trouble": None, "opened": None}
        try:
            async with asyncio.timeout(PATIENCE):
                await (self._open if errand["job"] is None else self._ask)(errand, came)
        except (TallystickError, TimeoutError) as error:
            came["trouble"] = f"{type(error).__name__}: {error}"
        came["signed"] = self._signed(errand)
        say(came)

    async def _open(self, errand: Mapping[str, Any], came: dict[str, Any]) -> None:
        wishes = Wishes(deposit=errand["deposit"])
        session = await Session.open(self._chain, self._store, self._key, errand["url"], wishes)
        came["opened"] = session.job.id

    async def _ask(self, errand: Mapping[str, Any], came: dict[str, Any]) -> None:
        session = await Session.resume(self._chain, self._store, self._adopted(errand))
        async with session:
            for body in errand["bodies"]:
                reply = {"text": ""}
                came["replies"].append(reply)
                try:
                    async for text in _texts(session, errand, body):
                        reply["text"] += text
                except TallystickError as error:
                    came["trouble"] = f"{type(error).__name__}: {error}"
                    await session.connect()

    def _adopted(self, errand: Mapping[str, Any]) -> JobId:
        """The job is in the store as if it had been opened from there."""
        key, deployment = bytes.fromhex(errand["key"]), self._chain.deployment
        signer, job_id = address(key), JobId(errand["job"])
        where = (deployment.chain_id, deployment.marketplace)
        payer = address(self._key)
        self._store.opening(StoredJob(signer, key, *where, payer, errand["url"], "scripted", None, False))
        self._store.opened(signer, job_id)
        return job_id

    def _signed(self, errand: Mapping[str, Any]) -> list[int]:
        if errand["job"] is None:
            return [0, 0]
        signed = Totals()
        for stored in self._store.receipts(address(bytes.fromhex(errand["key"]))):
            signed = signed.higher(stored.receipt.totals)
        return [signed.prompt_tokens, signed.tokens]


async def _texts(session: Session, errand: Mapping[str, Any], body: Mapping[str, Any]) -> AsyncIterator[str]:
    """Of one reply, as it comes."""
    if errand["over"] == "http":
        path, limit = "/v1/chat/completions", body["max_tokens"]
        async with Exchange(session, path, body, max_tokens=limit) as exchange:
            async for parts in exchange:
                for part in parts:
                    yield part.content
    else:
        async with aclosing(session.stream(body["messages"], body["max_tokens"])) as stream:
            async for said in stream:
                if isinstance(said, Text):
                    yield said.text


async def main() -> None:
    lines = told()
    start = await anext(lines)
    for fault in start["faults"]:
        FAULTS[fault]()
    # A host that lies does not answer; nothing here hangs on how long that is waited for.
    patience.ACK_TIMEOUT, patience.LEAVING = 2.0, 0.5
    store = Store(Path(start["directory"]))
    deployment = await deployment_at(start["rpc_url"])
    async with Chain(start["rpc_url"], deployment) as chain, asyncio.TaskGroup() as errands:
        payer = Payer(chain, store, bytes.fromhex(start["key"]))
        async for errand in lines:
            errands.create_task(payer.run(errand))
    store.close()


if __name__ == "__main__":
    logging.disable()
    asyncio.run(main())
