"""What tests of the payer's side start from: a node whose engine follows a script, and a proxy before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from tallystick import opening, proof
from tallystick.caps import Caps
from tallystick.chain import Chain
from tallystick.config import HostConfig, PayerConfig, Secret
from tallystick.devnet import Devnet
from tallystick.gateway import Gateway
from tallystick.node import Node
from tallystick.opening import Wishes
from tallystick.proxy import listening
from tallystick.server import running
from tallystick.spending import Spender
from tallystick.store import Store, StoredJob
from tallystick.testing.engine import Script, ScriptedEngine
from tallystick.types import Job
from tallystick.wallet import Wallet

DEPOSIT = 2_000_000
MESSAGES: list[Any] = [{"role": "user", "content": "Why was the stick split?"}]


async def open_staked(
    purse: Wallet, url: str, wishes: Wishes, day: str = "2027-01-15"
) -> tuple[StoredJob, Job]:
    """A job that counts against a day's cap, of which nothing was taken before."""
    key, quote = purse.key(), await opening.fetch_quote(url)
    draft = await opening.drafted(purse.chain, proof.address(key), url, wishes, quote)
    opened = await opening.carry_out(
        purse.chain, purse.store, key, draft, opening.Staking(draft.stake(day), [])
    )
    assert opened is not None
    return opened


@dataclass
class Bench:
    """A node, and a proxy in front of it."""

    devnet: Devnet
    chain: Chain
    directory: Path
    parts: AsyncExitStack

    async def serve(
        self,
        *scripts: Script,
        models: tuple[str, ...] = ("scripted",),
        engine: ScriptedEngine | None = None,
        parts: AsyncExitStack | None = None,
        port: int = 0,
        **settings: Any,
    ) -> str:
        """A node with that engine, or one that follows these scripts: its URL. It ends with `parts`."""
        key = Secret(self.devnet.accounts.host.private_key)
        config = HostConfig(
            rpc_url=self.devnet.rpc_url,
            **{
                "host_private_key": key,
                "data_dir": self.directory / "host",
                "receipt_timeout": 5,
                **settings,
            },
        )
        node = Node(config, engine=engine or ScriptedEngine(*scripts, models=models))
        return await (parts or self.parts).enter_async_context(running(node, port=port))

    def wallet(self, **settings: Any) -> Wallet:
        """The devnet's payer."""
        key = Secret(self.devnet.accounts.payer.private_key)
        store = Store(self.directory / "payer")
        self.parts.callback(store.close)
        config = PayerConfig(payer_private_key=key, rpc_url=self.devnet.rpc_url, **settings)
        return Wallet(config, self.chain, store)

    async def proxy(
        self,
        host_urls: str | Sequence[str],
        caps: Caps | None = None,
        *,
        api_key: str | None = None,
        settings: Mapping[str, Any] | None = None,
        **how: Any,
    ) -> Proxy:
        """A proxy for one or several hosts (none: those of the registry), and clients of it.

        Closing its parts ends it in order.
        """
        parts = await self.parts.enter_async_context(AsyncExitStack())
        urls = [host_urls] if isinstance(host_urls, str) else host_urls
        spender = Spender(self.wallet(**settings or {}), caps or Caps(DEPOSIT, DEPOSIT), urls, **how)
        await parts.enter_async_context(spender)
        secret = Secret(api_key) if api_key else None
        gateway = Gateway(spender)
        url = await parts.enter_async_context(listening(spender, gateway, "127.0.0.1", 0, secret))
        client = openai.AsyncOpenAI(base_url=url, api_key=api_key or "-", max_retries=0)
        await parts.enter_async_context(client)
        return Proxy(url, client, spender, gateway, parts)

    async def money(self) -> tuple[int, int]:
        """What payer and contract have of the dollar."""
        payer, contract = self.devnet.accounts.payer.address, self.devnet.deployment.marketplace
        dollar = self.devnet.dollar
        return await self.chain.token_balance(dollar, payer), await self.chain.token_balance(dollar, contract)


@dataclass
class Proxy:
    url: str
    client: openai.AsyncOpenAI
    spender: Spender
    gateway: Gateway
    parts: AsyncExitStack

    async def ask(self, max_tokens: int = 300, **how: Any) -> Any:
        return await self.client.chat.completions.create(
            model=how.pop("model", "scripted"), messages=MESSAGES, max_tokens=max_tokens, **how
        )
