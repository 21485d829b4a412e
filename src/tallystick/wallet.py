"""The payer at the command line: its settings, key, chain and store, and which of its jobs to go on with.

Knows no terminal but for asking for a keystore's password.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from getpass import getpass

from tallystick import archive, gasless, opening, pricing, proof
from tallystick.authorization import Consent, Opening, TopUp, new_salt
from tallystick.caps import Caps, Words, option
from tallystick.chain import Chain, TxResult, deployment_at
from tallystick.config import PayerConfig, Secret, TokenizerFile, http_url, tokenizer_files
from tallystick.contracts import Call, ToppedUp
from tallystick.errors import ConfigError, NotYetReclaimable, SessionError
from tallystick.mends import when
from tallystick.networks import Asset, Deployment
from tallystick.opening import Wishes
from tallystick.pricing import MAX_DEPOSIT, MILLION, to_units
from tallystick.recount import Recounts
from tallystick.session import Session
from tallystick.store import Store, StoredJob
from tallystick.types import Address, Completion, Job, JobId, JobStatus, Totals

Say = Callable[[str], object]
LOCAL_HOST = "http://127.0.0.1:8402"
"""Where `tally host run` answers, unless it is told otherwise."""


@dataclass(frozen=True, slots=True)
class Wallet:
    """What a payer pays with. `opened` gives one."""

    config: PayerConfig
    chain: Chain
    store: Store = field(repr=False)
    recounts: Recounts = field(default_factory=Recounts, repr=False)
    """The payer's tokenizers."""

    def key(self) -> bytes:
        """The payer's key. ConfigError if there is none, or its keystore cannot be opened."""
        return key_of(self.config)

    def unlocked(self) -> Wallet:
        """The same with its key at hand, so that a password is asked for once. Raises what `key` raises."""
        config = replace(self.config, payer_private_key=Secret(self.key()), keystore=None)
        return replace(self, config=config)

    def asset(self, named: str | None = None) -> Address:
        """The asset of that symbol or address; by default PAYER_ASSET or the deployment's dollar."""
        return named_asset(self.chain, named) if named else self.config.asset or self.deployment.dollar

    @property
    def deployment(self) -> Deployment:
        """Where the contracts are."""
        return self.chain.deployment

    def stored(self, job_id: JobId) -> StoredJob | None:
        """What the store has of a job."""
        return self.store.job(self.deployment.chain_id, self.deployment.marketplace, job_id)

    def wishes(
        self,
        deposit: str | None,
        model: str | None,
        *,
        asset: str | None = None,
        rate: int = 0,
        gasless: bool = False,
    ) -> Wishes:
        """What the settings and a command's options ask of a job. `deposit` in whole units of the asset."""
        paid_in = self.asset(asset)
        return Wishes(
            deposit=self.escrow(deposit, paid_in, "--deposit"),
            model=model,
            asset=paid_in,
            interval=self.config.interval,
            claim_window=self.config.claim_window,
            # An attested job is short by itself: idle, it is worth rate times time to its host.
            lifetime=None if rate else self.config.expiry,
            max_tokens_per_second=rate,
            gasless=gasless,
            max_relay_fee=self._max_relay_fee(),
        )

    def _max_relay_fee(self) -> int:
        """In base units of the deployment's dollar. ConfigError."""
        try:
            decimals = asset_at(self.chain, self.deployment.dollar).decimals
            return to_units(self.config.relay_fee_max, decimals)
        except ValueError as error:
            raise ConfigError(f"PAYER_RELAY_FEE_MAX: {error}") from error

    def caps(
        self,
        deposit: str | None,
        per_day: str | None,
        prices: Iterable[str],
        asset: Address,
        *,
        named: Callable[[str], str] = option,
    ) -> Caps:
        """What may be spent; a day's cap is one deposit where none is named. ConfigError.

        `prices`: like "0.60", for any model, or "MODEL=0.60"; whole units per million tokens. `named`: what
        caps are called where they were set.
        """
        escrow = self.escrow(deposit, asset, named("deposit"))
        day = escrow if per_day is None else self.units(per_day, asset, named("max_per_day"))
        most = {}
        for entry in prices:
            model, _, price = entry.rpartition("=")
            most[model] = self.units(price, asset, named("max_price"))
        known = asset_at(self.chain, asset)
        words = Words(known.symbol, known.decimals, named)
        return Caps(min(escrow, day), day, most.pop("", None), most, words)

    def host_url(self, named: str | None = None) -> str:
        """The host of that URL, by default HOST_URL's, or this machine's. ConfigError if it is none."""
        return next(iter(self.host_urls([named] if named else [])), LOCAL_HOST)

    def host_urls(self, named: Sequence[str] = (), name: str = "--host") -> list[str]:
        """The hosts of those URLs, by default HOST_URL's; without it none is named.

        ConfigError, which says `name`.
        """
        if not named:
            return [] if self.config.host_url is None else [self.config.host_url]
        try:
            return [http_url(url) for url in named]
        except ValueError as error:
            raise ConfigError(f"{name} {' '.join(named)}: {error}") from None

    def escrow(self, deposit: str | None, asset: Address, name: str) -> int:
        """A deposit in base units, by default PAYER_DEPOSIT. Raises what `units` raises."""
        if deposit is None:
            return self.units(self.config.deposit, asset, "PAYER_DEPOSIT")
        return self.units(deposit, asset, name)

    def units(self, amount: str, asset: Address, name: str) -> int:
        """An amount in base units: "2", or "2 USDC" where the asset is USDC.

        ConfigError, which says `name`, for none that can be escrowed.
        """
        known = asset_at(self.chain, asset)
        number, _, symbol = amount.strip().partition(" ")
        if symbol.strip() not in ("", known.symbol):
            raise ConfigError(f"{name}: {amount} is not in {known.symbol}")
        try:
            units = to_units(number, known.decimals)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from error
        if not 0 < units <= MAX_DEPOSIT:
            most = money(self.chain, asset, MAX_DEPOSIT)
            raise ConfigError(f"{name}: {amount} is not above 0 and at most {most}")
        return units

    async def open(self, host_url: str, wishes: Wishes, say: Say) -> Session:
        """Opens a job, and says before that what the payer should know of the host, and what it signs for it.

        Raises what `opening.open_job` raises.
        """
        key = self.key()
        quote = await opening.fetch_quote(host_url)
        if not quote.paid:
            say(f"{host_url} {opening.UNPAID}")
        _, job = await opening.open_job(
            *(self.chain, self.store, key, host_url, wishes, quote),
            show=lambda agreed: say(shown(self.chain, agreed)),
        )
        return await self.resume(job.id)

    async def resume(self, job_id: JobId) -> Session:
        """A session on a job of the store. SessionError if it is not there, or not on this chain."""
        if self.stored(job_id) is None:
            await self.job(job_id)
        ahead, recounts = self.config.ahead, self.recounts
        return await Session.resume(self.chain, self.store, job_id, ahead=ahead, recounts=recounts)

    async def transact(self, call: Call) -> TxResult:
        """Sends a transaction of the payer's."""
        key = self.key()
        await self.check_gas(proof.address(key))
        return await self.chain.transact(call, key)

    async def job(self, job_id: JobId) -> Job:
        """A job of anybody's, as the chain has it. SessionError if it has none of that number."""
        job = await self.chain.job(job_id)
        if job is None:
            where = f"chain {self.deployment.chain_id}"
            raise SessionError(
                f"job {job_id} does not exist on {where}: check RPC_URL; `tally job list` has yours"
            )
        return job

    async def top_up(self, job: Job, units: int) -> ToppedUp:
        """Adds to a job's deposit; without ETH for gas the job's host is asked to send it.

        Raises what `gasless.top_up` raises where it does, and SessionError where nobody can.
        """
        key = self.key()
        payer = proof.address(key)
        if await gasless.is_short(self.chain, payer) and (sponsor := await self._sponsor(job)) is not None:
            more = TopUp(job.id, job.asset, units, new_salt())
            agreed = await gasless.consent(self.chain, payer, more)
            written = partial(asyncio.to_thread, self.store.authorized, job.signer, agreed.valid_before)
            return await gasless.top_up(self.chain, sponsor, agreed, key, written)
        await self.check_gas(payer)
        call = self.chain.top_up(job.id, units, job.asset)
        result = await self.chain.pay_in(
            *(call, job.asset, units, key),
            ahead=lambda tx: asyncio.to_thread(self.store.sending, job.signer, tx.nonce),
        )
        return next(event for event in result.events if isinstance(event, ToppedUp))

    async def _sponsor(self, job: Job) -> gasless.Sponsor | None:
        """The job's host, if it sends what its payers authorize."""
        stored = self.stored(job.id)
        if stored is None or job.asset != self.deployment.dollar:
            return None
        quote = await opening.fetch_quote(stored.host_url, stored.found_on)
        sends = quote.relay_fee and quote.host == job.host
        return gasless.Sponsor(stored.host_url, job.host, stored.found_on) if sends else None

    async def reclaim(self, job: Job) -> Completion:
        """Takes the rest of a job back.

        NotYetReclaimable before `closes_at`: until then its host may claim.
        """
        now = (await self.chain.block()).timestamp
        if job.status is not JobStatus.CLOSED and now < job.closes_at:
            raise NotYetReclaimable("NotYetReclaimable", {"jobId": job.id, "closesAt": job.closes_at})
        result = await self.transact(self.chain.reclaim(job.id))
        if (stored := self.stored(job.id)) is not None:
            await asyncio.to_thread(self.store.end, stored.signer)
            await archive.keep(self.chain, self.store, stored)
        return next(event for event in result.events if isinstance(event, Completion))

    async def jobs(self, *, ended: bool = False) -> list[tuple[StoredJob, Job | None]]:
        """The jobs of the store with what the chain says of them; None where it does not have them."""
        kept = self.store.jobs(self.deployment.chain_id, self.deployment.marketplace, ended=ended)
        return [(stored, await self._on_chain(stored)) for stored in kept]

    async def latest(self, host_url: str, model: str | None) -> JobId | None:
        """The newest job on this host (and model) that nobody uses and that has enough left; None: none."""
        fitting = [
            job.id
            for stored, job in await self.jobs()
            if job is not None
            and stored.host_url == host_url
            and model in (None, stored.model)
            and not self.store.is_claimed(stored.signer)
            and await self.is_usable(job)
        ]
        return fitting[-1] if fitting else None

    async def _on_chain(self, stored: StoredJob) -> Job | None:
        """A job of a devnet that was started anew has the number of another one, and another signer."""
        assert stored.job_id is not None
        job = await self.chain.job(stored.job_id)
        return job if job is not None and job.signer == stored.signer else None

    def left(self, job: Job) -> int:
        """What of a deposit is neither settled nor signed for, in base units."""
        stored = self.stored(job.id)
        last = self.store.last(stored.signer) if stored is not None else None
        signed = pricing.owed(last.receipt.totals if last else Totals(), job.prices)
        return job.deposit - max(job.owed, signed)

    async def is_usable(self, job: Job) -> bool:
        """A job that signs, is not over, and has more left than one interval costs."""
        now = (await self.chain.block()).timestamp
        rest = self.left(job) * MILLION > pricing.credit(job.interval, job.prices)
        return job.status is JobStatus.OPEN and job.receipted and job.expires_at > now and rest

    async def check_gas(self, payer: Address) -> None:
        """SessionError for an account without ETH, which can send no transaction."""
        if await self.chain.eth_balance(payer) == 0:
            raise SessionError(
                f"{payer} has no ETH for gas on chain {self.deployment.chain_id}: send it some. What a host "
                "completes needs none, and `tally job reclaim JOB` works from any account"
            )


@asynccontextmanager
async def opened(
    config: PayerConfig | None = None, tokenizers: Sequence[str] = (), interval: int | None = None
) -> AsyncIterator[Wallet]:
    """The wallet of these settings, by default the environment's, with jobs whose opening was interrupted.

    `tokenizers`: as PAYER_TOKENIZERS has them, one each; they go before the settings', as does `interval`.
    ConfigError.
    """
    config = config or PayerConfig.from_env()
    config = config if interval is None else replace(config, interval=interval)
    files = _files(config, tokenizers)
    deployment = await deployment_at(config.rpc_url)
    async with Chain(config.rpc_url, deployment) as chain:
        store = await asyncio.to_thread(Store, config.data_dir)
        try:
            await opening.find_openings(chain, store)
            async with Recounts(files) as recounts:
                yield Wallet(config, chain, store, recounts)
        finally:
            store.close()


def _files(config: PayerConfig, named: Sequence[str]) -> list[TokenizerFile]:
    try:
        mine = tokenizer_files(",".join(named))
    except ValueError as error:
        raise ConfigError(f"--tokenizer: {error}.") from None
    return list(
        ({file.model: file for file in config.tokenizers} | {file.model: file for file in mine}).values()
    )


def dollar(chain: Chain) -> Address:
    """The deployment's dollar."""
    return chain.deployment.dollar


def named_asset(chain: Chain, named: str) -> Address:
    """The asset of that symbol or address. ConfigError if the deployment does not have it."""
    for address in chain.deployment.assets:
        if named.lower() == address.lower():
            return address
    return chain.deployment.asset(named)


def asset_at(chain: Chain, address: Address) -> Asset:
    """Symbol and decimals of an asset. ConfigError if the deployment does not have it."""
    known = chain.deployment.assets.get(address)
    if known is None:
        raise ConfigError(f"{address} is no asset of {chain.deployment.name} that this package knows")
    return known


def money(chain: Chain, asset: Address, units: int) -> str:
    """An amount for people: "1.5 tUSD"."""
    return chain.deployment.amount(asset, units)


def shown(chain: Chain, agreed: Consent[Opening]) -> str:
    """What a payer's wallet is about to sign, for people: the terms, and the hashes that stand for them."""
    opening, token = agreed.purpose, agreed.token
    terms, asset = opening.terms, opening.asset
    deposit, fee, rest, price, prompt_price = (
        money(chain, asset, units)
        for units in (
            *(terms.deposit, opening.relay_fee, terms.deposit - opening.relay_fee),
            *(terms.prices.per_million, terms.prices.prompt_per_million),
        )
    )
    lines = {
        "payer": agreed.payer,
        "pays": f"{deposit}: {rest} into escrow, {fee} to who sends it",
        "host": terms.host,
        "price": f"{price} a million tokens, {prompt_price} a million prompt tokens",
        "session key": terms.signer,
        "interval": f"{terms.checkpoint_interval} tokens",
        "claim window": f"{terms.claim_window} s",
        "ends by itself": when(terms.expires_at),
        "good until": when(agreed.valid_before),
        "contract": f"{agreed.domain.contract} on chain {token.chain_id}",
        "nonce": f"0x{agreed.nonce.hex()} (the hash of these terms)",
        "signed for": f"{token.name} {token.version} at {token.token}, ReceiveWithAuthorization (EIP-3009)",
        "domain hash": f"0x{token.separator.hex()}",
        "message hash": f"0x{agreed.message.hex()}",
        "digest": f"0x{agreed.digest.hex()}",
    }
    told = "\n".join(f"  {name:<15}{value}" for name, value in lines.items())
    return f"the host opens the job, for {fee} of the deposit; this wallet signs, and sends nothing:\n{told}"


def describe(purse: Wallet, job: Job) -> str:
    """What was opened, and what it costs."""
    deposit, price, prompt_price = (
        money(purse.chain, job.asset, units)
        for units in (job.deposit, job.prices.per_million, job.prices.prompt_per_million)
    )
    told = (
        f"opened job {job.id} with {job.host}: {deposit} in escrow, "
        f"{price} a million tokens, {prompt_price} a million prompt tokens"
    )
    if job.receipted:
        return f"{told}. {_risk(purse, job)}"
    rate = job.max_tokens_per_second
    worth = money(purse.chain, job.asset, min(job.deposit, rate * 3600 * job.prices.per_million // MILLION))
    return f"{told}. The host's word is paid, up to {rate} tokens a second: {worth} an hour, idle or not"


def _risk(purse: Wallet, job: Job) -> str:
    """What each side can lose while tokens are delivered and not signed for (law 3)."""
    host, payer = (
        money(purse.chain, job.asset, pricing.at_risk(tokens, job.prices))
        for tokens in (job.interval, purse.config.ahead)
    )
    return f"At risk at a time: {host} of the host's, {payer} of yours"


def key_of(config: PayerConfig) -> bytes:
    """The payer's key. ConfigError if there is none, or its keystore cannot be opened."""
    if config.payer_private_key is not None:
        return config.payer_private_key.reveal()
    if config.keystore is None:
        raise ConfigError("neither PAYER_PRIVATE_KEY nor PAYER_KEYSTORE is set: nobody pays")
    return _decrypted(config)


def _decrypted(config: PayerConfig) -> bytes:
    from eth_account import Account

    assert config.keystore is not None
    password = config.keystore_password
    try:
        secret = password.reveal() if password else getpass(f"Password of {config.keystore}: ")
        return bytes(Account.decrypt(config.keystore.read_text(), secret))
    except (OSError, EOFError) as error:
        raise ConfigError(f"PAYER_KEYSTORE {config.keystore} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"PAYER_KEYSTORE {config.keystore} cannot be opened: {error}") from error
