"""A node as strict as geth, made of anvil: the pool of transactions is here, the chain is anvil's.

anvil takes a replacement that pays one wei more, refuses what is below the base fee, and forgets, when it
mines, what does not fit the block; geth asks for a tenth more on both fees, keeps what is below the base fee,
and holds back what does not fit. What a program does there shows only on a pool that does the same.

    async with Devnet() as devnet, Geth(devnet.rpc_url) as geth:
        await geth.answer(Request("eth_sendRawTransaction", ["0x02…"]))    # refused, or kept in its pool
        await geth.mine()                                                 # a block of what fits it

Time, balances, base fee and reorganisations are the devnet's to change, under the node's feet.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import orjson
from aiohttp import ClientSession
from eth_utils.address import to_checksum_address

from tallystick.errors import RpcError
from tallystick.testing.pool import Limits, Pool, Pooled, Standing
from tallystick.types import Address

REFUSED = -32000
"""The code of a refusal: geth has one for all of them."""
WRONG_CHAIN = "invalid sender: invalid chain id for signer: have {have} want {want}"

Answer = dict[str, Any]
"""What a node answers: a `result`, or an `error` with `code` and `message`."""


@dataclass(frozen=True, slots=True)
class Request:
    """One JSON-RPC call."""

    method: str
    params: Sequence[Any] = ()


class Node(Protocol):
    """Whatever answers JSON-RPC."""

    async def answer(self, request: Request) -> Answer: ...


class Upstream:
    """A node at a URL, as it is. `async with` closes its connections."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session: ClientSession | None = None

    async def __aenter__(self) -> Upstream:
        self._session = ClientSession(headers={"Content-Type": "application/json"})
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def answer(self, request: Request) -> Answer:
        assert self._session is not None, "it is open inside of `async with`"
        asked = {"jsonrpc": "2.0", "id": 1, "method": request.method, "params": list(request.params)}
        async with self._session.post(self._url, data=orjson.dumps(asked)) as response:
            told: Answer = orjson.loads(await response.read())
        return {name: told[name] for name in ("result", "error") if name in told}


class Geth:
    """anvil at a URL behind geth's pool. Mines when `mine` is called; with `automine`, for each transaction.

    What is sent to anvil itself goes around the pool. `fired` counts refusals, by their words before the
    first colon, and as "held back" each time that a block left out a transaction which did not pay its way.
    """

    def __init__(
        self,
        rpc_url: str,
        limits: Limits | None = None,
        *,
        automine: bool = False,
        fired: Counter[str] | None = None,
    ) -> None:
        self.pool = Pool(limits)
        self.fired: Counter[str] = Counter() if fired is None else fired
        self._anvil = Upstream(rpc_url)
        self._automine = automine
        self._anvil_mines = False
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Geth:
        await self._anvil.__aenter__()
        self._anvil_mines = await self._ask("anvil_getAutomine")
        await self._ask("evm_setAutomine", False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._ask("evm_setAutomine", self._anvil_mines)
        finally:
            await self._anvil.__aexit__(kind, error, trace)

    async def answer(self, request: Request) -> Answer:
        """As a node answers. What its pool has no part in is anvil's answer."""
        match request.method, *request.params:
            case "eth_sendRawTransaction", str(raw):
                async with self._turn:
                    return await self._take(bytes.fromhex(raw.removeprefix("0x")))
            case "eth_getTransactionCount", str(sender), "pending":
                return await self._count(Address(to_checksum_address(sender)))
            case "eth_getTransactionByHash", str(tx):
                return await self._find(request, tx)
        return await self._anvil.answer(request)

    async def mine(self, blocks: int = 1) -> None:
        """Adds blocks, each of what the pool has for it."""
        async with self._turn:
            for _ in range(blocks):
                await self._mine()

    async def _take(self, raw: bytes) -> Answer:
        try:
            tx = Pooled.read(raw)
        except ValueError as error:
            return self._refuse(str(error))
        refusal = await self._refusal(tx)
        if refusal is not None:
            return self._refuse(refusal)
        if self._automine:
            await self._mine()
        return {"result": tx.hash}

    async def _refusal(self, tx: Pooled) -> str | None:
        chain_id = int(await self._ask("eth_chainId"), 16)
        if tx.chain_id != chain_id:
            return WRONG_CHAIN.format(have=tx.chain_id, want=chain_id)
        standing = await self._standing(tx.sender)
        self.pool.forget_mined(tx.sender, standing.nonce)
        latest = await self._ask("eth_getBlockByNumber", "latest", False)
        return self.pool.add(tx, standing, int(latest["gasLimit"], 16))

    def _refuse(self, words: str) -> Answer:
        self.fired[words.partition(":")[0]] += 1
        return {"error": {"code": REFUSED, "message": words}}

    async def _count(self, sender: Address) -> Answer:
        standing = await self._standing(sender)
        return {"result": hex(self.pool.next_nonce(sender, standing.nonce))}

    async def _find(self, request: Request, tx: str) -> Answer:
        answer = await self._anvil.answer(request)
        kept = self.pool.find(tx)
        return {"result": _told(kept)} if kept and answer.get("result") is None else answer

    async def _mine(self) -> None:
        # The pending block is the next one: what it asks for is what has to be paid.
        following = await self._ask("eth_getBlockByNumber", "pending", False)
        base_fee, gas = int(following["baseFeePerGas"], 16), int(following["gasLimit"], 16)
        standings = await self._standings()
        if left_out := self.pool.underpaying(standings, base_fee):
            self.fired["held back"] += left_out
        for tx in self.pool.block(standings, base_fee, gas):
            await self._ask("eth_sendRawTransaction", "0x" + tx.raw.hex())
        await self._ask("anvil_mine", "0x1")
        self.pool.settle(await self._standings())

    async def _standings(self) -> dict[Address, Standing]:
        return {sender: await self._standing(sender) for sender in self.pool.senders}

    async def _standing(self, sender: Address) -> Standing:
        nonce = await self._ask("eth_getTransactionCount", sender, "latest")
        balance = await self._ask("eth_getBalance", sender, "latest")
        return Standing(int(nonce, 16), int(balance, 16))

    async def _ask(self, method: str, *params: Any) -> Any:
        """anvil's result. RpcError: it is an error."""
        answer = await self._anvil.answer(Request(method, params))
        if "error" in answer:
            raise RpcError("anvil", answer["error"]["code"], answer["error"]["message"])
        return answer["result"]


def _told(tx: Pooled) -> dict[str, Any]:
    """A transaction that is in no block, as `eth_getTransactionByHash` tells it."""
    return {
        "type": "0x2",
        "hash": tx.hash,
        "chainId": hex(tx.chain_id),
        "from": tx.sender,
        "to": tx.to,
        "nonce": hex(tx.nonce),
        "gas": hex(tx.gas),
        "maxFeePerGas": hex(tx.max_fee),
        "maxPriorityFeePerGas": hex(tx.tip),
        "value": hex(tx.value),
        "input": "0x" + tx.data.hex(),
        "blockHash": None,
        "blockNumber": None,
        "transactionIndex": None,
    }
