"""How a payer opens a job: the host's quote read, terms made from it, key written, money put in escrow.

The quote says what the host takes, and is held to its host's signature; addresses of contracts come from this
package alone, never from a host.
What a job costs and what is at risk is known before anything is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
import orjson
from eth_utils.address import to_checksum_address
from eth_utils.conversions import to_hex

from tallystick import gasless, outgoing, pricing, proof
from tallystick.addresses import is_private
from tallystick.authorization import Consent, Opening, new_salt
from tallystick.caps import Stake
from tallystick.chain import Block, Chain
from tallystick.config import CLAIM_WINDOW, LIFETIME, http_url
from tallystick.contracts import Created
from tallystick.errors import ContractError, ReceiptError, RpcError, SessionError
from tallystick.fees import Answer, read_answer
from tallystick.keccak import keccak
from tallystick.mends import when
from tallystick.networks import Deployment
from tallystick.outgoing import LedElsewhere
from tallystick.quote import digest
from tallystick.store import Store, StoredJob
from tallystick.types import ETH, ZERO_HASH, Address, Job, JobId, Prices, Terms

ATTESTED_LIFETIME = 3_600
"""Seconds, for a host-attested job: idle, it is worth rate times time to its host."""
QUOTE_TIMEOUT = 10.0
"""Seconds."""
MAX_QUOTE = 65_536
"""Bytes of a quote that are read of a host that the payer has named."""
UNPAID = (
    "has no key to be paid with: its quote is unsigned and binds nobody, and it settles nothing; the deposit "
    "comes back whole, but only by `tally job complete JOB --on-chain` and, later, `tally job reclaim JOB`"
)
Show = Callable[[Consent[Opening]], object]
"""Is told what the payer's wallet is about to sign."""
_PORTS = {"http": 80, "https": 443}
_MEND = "choose another host (`tally hosts`), or ask this one's operator."


@dataclass(frozen=True, slots=True)
class Quote:
    """What a host takes, as `GET /v1/host` says it. Windows and margins in seconds, intervals in tokens."""

    host: Address
    chain_id: int
    contract: Address
    models: Mapping[str, Mapping[Address, Prices]]
    interval_min: int
    interval_max: int
    claim_window_min: int
    endpoint: str
    """Where the host says that payers reach it."""
    valid_until: int
    """In seconds of the chain's clock."""
    relay_fee: int = 0
    """Base units of the deployment's dollar for sending an opening in it; 0: the host sends none."""
    paid: bool = True
    """False: the host has no key, so the quote is unsigned and binds nobody, nothing will be settled, and all
    comes back after the claim window.
    """
    ready: bool = True
    """False: as the host says itself, it would serve no request now."""

    def prices(self, model: str, asset: Address) -> Prices:
        """What the model costs in this asset. SessionError if the host does not sell it."""
        if model not in self.models:
            raise SessionError(f"the host does not serve {model!r}; it has {', '.join(self.models)}")
        if asset not in self.models[model]:
            raise SessionError(f"the host does not sell {model!r} for {'ETH' if asset == ETH else asset}")
        return self.models[model][asset]


async def fetch_quote(host_url: str, found_on: int | None = None) -> Quote:
    """Asks a host what it takes. `found_on` as `outgoing.client` has it.

    SessionError if nothing answers there, what does is no host, or its quote is not its own.
    """
    limit = aiohttp.ClientTimeout(total=QUOTE_TIMEOUT)
    try:
        async with outgoing.client(limit, found_on=found_on) as http:
            status, body = await read_quote(http, host_url, MAX_QUOTE)
    except LedElsewhere as error:
        raise SessionError(f"{host_url} is not a host's base URL: {error}") from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise SessionError(f"no host answers at {host_url}; is `tally host run` running there?") from error
    try:
        quote = quote_in(orjson.loads(body))
    except orjson.JSONDecodeError:
        told = f"{host_url}/v1/host answers {status}, without a quote"
        raise SessionError(f"{host_url} is not a host's base URL: {told}") from None
    check_endpoint(quote, host_url)
    return quote


async def read_quote(http: aiohttp.ClientSession, host_url: str, most: int) -> tuple[int, bytes]:
    """Status and body of what is at a host's `/v1/host`.

    SessionError for more than `most` bytes; raises what aiohttp raises.
    """
    async with http.get(f"{host_url}/v1/host") as answer:
        raw = b""
        while len(raw) <= most and (more := await answer.content.read(most)):
            raw += more
        if len(raw) > most:
            answer.close()
            raise SessionError(f"the quote at {host_url} is longer than {most} bytes")
        return answer.status, raw


class _PriceForm(msgspec.Struct):
    per_million: str
    prompt_per_million: str


class _ModelForm(msgspec.Struct):
    name: str
    prices: dict[str, _PriceForm]


class _IntervalForm(msgspec.Struct):
    min: int
    max: int


class _QuoteForm(msgspec.Struct):
    host: str | None
    chain_id: int
    contract: str
    models: list[_ModelForm]
    interval: _IntervalForm
    claim_window_min: int
    endpoint: str
    valid_until: int
    signature: str | None
    relay_fee: str = "0"
    paid: bool = True
    ready: bool = True


def quote_in(body: Any) -> Quote:
    """Reads a quote, and checks its signature. SessionError if it is not one, is of a node that serves no
    host, or is not signed by its host; only a host without a key may leave it unsigned.
    """
    try:
        form = msgspec.convert(body, _QuoteForm)
        quote = _quote_in(form)
    except (msgspec.ValidationError, ValueError) as error:
        raise SessionError(f"it is not a host's base URL, or a host of another version: {error}") from error
    if quote.paid == (form.signature is None):
        raise SessionError(
            "the host's quote is not signed, and says that the host has a key, or the other way round. "
            f"The move is the host's: {_MEND}"
        )
    if form.signature is not None:
        _check_signer(body, form.signature, quote.host)
    return quote


def _quote_in(form: _QuoteForm) -> Quote:
    if form.host is None:
        raise SessionError("the node there serves no paid job: its operator has to set HOST_PRIVATE_KEY")
    return Quote(
        host=_address(form.host),
        chain_id=form.chain_id,
        contract=_address(form.contract),
        models={model.name: _prices(model) for model in form.models},
        interval_min=form.interval.min,
        interval_max=form.interval.max,
        claim_window_min=form.claim_window_min,
        endpoint=http_url(form.endpoint),
        valid_until=form.valid_until,
        relay_fee=int(form.relay_fee),
        paid=form.paid,
        ready=form.ready,
    )


def _check_signer(body: Any, signature: str, host: Address) -> None:
    try:
        signer = proof.recover(digest(body), bytes.fromhex(signature.removeprefix("0x")))
    except (ReceiptError, LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise SessionError(
            f"the signature of the host's quote cannot be read: {error}. The move is the host's: {_MEND}"
        ) from error
    if signer != host:
        raise SessionError(
            f"the host's quote names {host}, and is signed by {signer}: it was changed, or is of somebody "
            f"without the host's key. The move is the host's: {_MEND}"
        )


def _prices(model: _ModelForm) -> dict[Address, Prices]:
    return {
        _address(asset): Prices(int(each.per_million), int(each.prompt_per_million))
        for asset, each in model.prices.items()
    }


def _address(text: str) -> Address:
    return Address(to_checksum_address(text))


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the payer wants of a job. `deposit` in base units of `asset`; times in seconds."""

    deposit: int
    model: str | None = None
    """None: the first one that the host names."""
    asset: Address | None = None
    """None: the deployment's dollar."""
    interval: int = pricing.INTERVAL
    claim_window: int = CLAIM_WINDOW
    lifetime: int | None = None
    max_tokens_per_second: int = 0
    """Above 0: a host-attested job. No receipt is asked for: the host's word is paid, up to this rate."""
    max_price: int | None = None
    """Base units per million tokens of either kind that the payer is ready to pay; None: what is asked."""
    gasless: bool = False
    """Have the host send the opening in any case; otherwise it does where there is too little ETH for gas."""
    max_relay_fee: int | None = None
    """Base units of the deposit that the host may get for that; None: what is asked."""
    found: bool = False
    """The registry named the host, and not the user."""


def terms_for(
    quote: Quote, wishes: Wishes, deployment: Deployment, signer: Address, now: int
) -> tuple[str, Terms]:
    """The model's name and the terms that the host takes and the payer wants. SessionError where they do not
    meet.
    """
    check_holds(quote, deployment, now)
    if not quote.ready:
        raise SessionError(
            "the host serves nothing now, as it says itself, so no money is put in escrow with it: its "
            f"/readyz says why. The move is the host's: {_MEND}"
        )
    model = wishes.model or next(iter(quote.models), "")
    asset = wishes.asset if wishes.asset is not None else deployment.dollar
    prices = quote.prices(model, asset)
    asked = max(prices.per_million, prices.prompt_per_million)
    if wishes.max_price is not None and asked > wishes.max_price:
        told, most = (deployment.amount(asset, units) for units in (asked, wishes.max_price))
        raise SessionError(f"the host asks {told} a million tokens, above your {most}")
    if not quote.interval_min <= wishes.interval <= quote.interval_max:
        raise SessionError(
            f"the host takes intervals of {quote.interval_min} to {quote.interval_max} tokens, "
            f"not {wishes.interval}"
        )
    attested = wishes.max_tokens_per_second > 0
    return model, Terms(
        host=quote.host,
        asset=asset,
        deposit=wishes.deposit,
        prices=prices,
        signer=signer,
        max_tokens_per_second=wishes.max_tokens_per_second,
        claim_window=max(wishes.claim_window, quote.claim_window_min),
        expires_at=now + (wishes.lifetime or (ATTESTED_LIFETIME if attested else LIFETIME)),
        checkpoint_interval=wishes.interval,
        model_id=proof.model_id(model) if wishes.model else ZERO_HASH,
    )


def check_holds(quote: Quote, deployment: Deployment, now: int) -> None:
    """SessionError for a quote of another chain or contract, or one that has run out. `now`: of the chain."""
    here = (deployment.chain_id, deployment.marketplace.lower())
    if (quote.chain_id, quote.contract.lower()) != here:
        raise SessionError(
            f"the host settles on chain {quote.chain_id} at {quote.contract}, and this package's contract is "
            f"{deployment.marketplace} on chain {deployment.chain_id}: check RPC_URL, or choose another host"
        )
    if quote.valid_until < now:
        raise SessionError(
            f"the host's quote has run out, {now - quote.valid_until} s ago by the clock of the chain at "
            "RPC_URL: it is an old one, or the host's clock is behind. The move is the host's, or yours if "
            f"other hosts' quotes have run out too, for then that chain is ahead: {_MEND}"
        )


def check_endpoint(quote: Quote, asked: str) -> None:
    """SessionError for a quote of a host that is reached elsewhere than where it was asked.

    What is private on either side is a tunnel, or where the node listens, and names nothing to the other.
    """
    named, used = urlsplit(quote.endpoint), urlsplit(asked)
    if is_private(named.hostname or "") or is_private(used.hostname or ""):
        return
    if _origin(quote.endpoint) != _origin(asked):
        raise SessionError(
            f"what answers at {asked} shows the quote of the host at {quote.endpoint!r}. The move is yours: "
            "use that URL if it is the host that you mean; if both are one, its operator has to set "
            "HOST_PUBLIC_URL."
        )


def _origin(url: str) -> tuple[str, str | None, int, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme], parts.path.rstrip("/")


@dataclass(frozen=True, slots=True)
class Draft:
    """An opening of which nothing is written, signed or sent."""

    stored: StoredJob
    terms: Terms
    agreed: Consent[Opening] | None
    """What the payer is to sign so that the host sends it; None: the payer sends it itself."""

    @property
    def relay_fee(self) -> int:
        """What of the deposit whoever sends it gets, in base units."""
        return 0 if self.agreed is None else self.agreed.purpose.relay_fee

    def stake(self, day: str) -> Stake:
        """What it may cost on `day`: the fee is spent when the job begins, and nothing of it is the job's."""
        fee = self.relay_fee
        return Stake(self.terms.signer, self.terms.asset, day, -fee, self.terms.deposit - fee)


@dataclass(frozen=True, slots=True)
class Staking:
    """What an opening is staked with, and the stakes that were there when that was found to fit."""

    stake: Stake
    seen: Collection[Stake]


async def open_job(
    chain: Chain,
    store: Store,
    payer_key: bytes,
    host_url: str,
    wishes: Wishes,
    quote: Quote | None = None,
    *,
    show: Show | None = None,
) -> tuple[StoredJob, Job]:
    """Opens a job that no cap is on: the session key is in the store before the money moves.

    A payer without ETH for gas authorizes its host to, where its quote has a relay fee; `show` is told
    before anything is signed for that. SessionError where host and payer do not meet, ContractError if the
    chain refuses (no balance, host not registered).
    """
    quote = quote or await fetch_quote(host_url)
    draft = await drafted(chain, proof.address(payer_key), host_url, wishes, quote)
    opened = await carry_out(chain, store, payer_key, draft, show=show)
    assert opened is not None
    return opened


async def drafted(chain: Chain, payer: Address, host_url: str, wishes: Wishes, quote: Quote) -> Draft:
    """What host and payer agree on, with a key of its own. SessionError where they do not meet."""
    key = proof.new_key()
    now = (await chain.block()).timestamp
    deployment = chain.deployment
    model, terms = terms_for(quote, wishes, deployment, proof.address(key), now)
    agreed = await _authorizing(chain, payer, quote, wishes, terms)
    place = deployment.chain_id, deployment.marketplace
    stored = StoredJob(
        *(terms.signer, key, *place, payer, host_url, model), job_id=None, ended=False, found=wishes.found
    )
    return Draft(stored, terms, agreed)


async def carry_out(
    chain: Chain,
    store: Store,
    payer_key: bytes,
    draft: Draft,
    staking: Staking | None = None,
    *,
    show: Show | None = None,
) -> tuple[StoredJob, Job] | None:
    """Opens the job. None, and nothing is done, if others have staked since `staking` was found to fit.

    Until it is done the job is claimed: who else finds it in the store leaves it alone. Raises what
    `open_job` raises; nothing is staked then unless something was signed that can still open it.
    """
    stored, seen = draft.stored, None if staking is None else staking.seen
    stake = None if staking is None else staking.stake
    with store.claiming(stored.signer):
        if not await asyncio.to_thread(store.opening, stored, stake, seen):
            return None
        if draft.agreed is not None and show is not None:
            show(draft.agreed)
        try:
            job_id = await _sent(chain, store, payer_key, draft)
        except BaseException as error:
            # In this thread: who is cancelled waits for no other.
            if isinstance(error, ContractError) or not _is_signed(store, stored.signer):
                store.drop(stored.signer)
            raise
        return await _opened(chain, store, stored, job_id)


def _is_signed(store: Store, signer: Address) -> bool:
    pending = store.pending(signer)
    return pending is not None and pending.is_signed


async def _sent(chain: Chain, store: Store, payer_key: bytes, draft: Draft) -> JobId:
    """Has the opening sent, by whoever sends it, written ahead (law 7): the id of its job."""
    signer, terms, agreed = draft.stored.signer, draft.terms, draft.agreed
    if agreed is not None:
        written = partial(asyncio.to_thread, store.authorized, signer, agreed.valid_before)
        sponsor = gasless.Sponsor(draft.stored.host_url, terms.host, draft.stored.found_on)
        return (await gasless.open_job(chain, sponsor, agreed, payer_key, written)).job_id
    result = await chain.pay_in(
        *(chain.create_job(terms), terms.asset, terms.deposit, payer_key),
        ahead=lambda tx: asyncio.to_thread(store.sending, signer, tx.nonce, tx.raw),
    )
    return next(event for event in result.events if isinstance(event, Created)).job_id


async def _authorizing(
    chain: Chain, payer: Address, quote: Quote, wishes: Wishes, terms: Terms
) -> Consent[Opening] | None:
    """What the payer is to sign so that the host sends the opening; None: the payer sends it itself.

    SessionError for a payer that can do neither.
    """
    if not wishes.gasless and not await gasless.is_short(chain, payer):
        return None
    obstacle = _obstacle(quote, wishes, terms, chain.deployment)
    if obstacle is None:
        opening = Opening(terms, quote.relay_fee, new_salt())
        return await gasless.consent(chain, payer, opening)
    if wishes.gasless:
        raise SessionError(f"the host cannot be asked to send the opening: {obstacle}")
    if await chain.eth_balance(payer) == 0:
        where = f"chain {chain.deployment.chain_id}"
        raise SessionError(
            f"{payer} has no ETH for gas on {where}, and the host does not open the job for it: {obstacle}. "
            "Send it some ETH, or choose a host that does"
        )
    return None


def _obstacle(quote: Quote, wishes: Wishes, terms: Terms, deployment: Deployment) -> str | None:
    """Why the host does not send an opening on these terms."""
    symbol = deployment.assets[deployment.dollar].symbol
    fee = deployment.amount(terms.asset, quote.relay_fee)
    if not quote.relay_fee:
        return "its quote has no relay_fee"
    if terms.asset != deployment.dollar:
        return f"it does so for {symbol} alone"
    if wishes.max_relay_fee is not None and quote.relay_fee > wishes.max_relay_fee:
        most = deployment.amount(terms.asset, wishes.max_relay_fee)
        return f"it asks {fee}, above the {most} of PAYER_RELAY_FEE_MAX"
    least = quote.relay_fee + max(1, pricing.at_risk(terms.checkpoint_interval, terms.prices))
    if terms.deposit < least:
        deposit, needed = (deployment.amount(terms.asset, units) for units in (terms.deposit, least))
        return f"beside its fee of {fee} a deposit of {deposit} is too little; deposit {needed} or more"
    return None


async def find_openings(chain: Chain, store: Store) -> list[Job]:
    """Finds jobs whose key was written and whose id is not known: the payer was stopped in between, or a
    reorganisation took the id back. Writes their ids.

    An opening for which nothing was signed is over, and so is one whose authorization has run out, or whose
    nonce another transaction has used: nothing is staked for it any more.
    """
    waiting = store.openings(chain.deployment.chain_id, chain.deployment.marketplace)
    if not waiting:
        return []
    found = []
    async with chain.view():
        past = await _past(chain)
        ids = {
            event.signer: event.job_id
            for payer in {stored.payer for stored in waiting}
            for event in await chain.jobs(payer=payer)
        }
        for stored in waiting:
            if (job_id := ids.get(stored.signer)) is not None:
                found.append((await _opened(chain, store, stored, job_id))[1])
            else:
                await _drop_if_over(chain, store, stored.signer, past)
    return found


async def _drop_if_over(chain: Chain, store: Store, signer: Address, past: Block) -> None:
    """Drops an opening that had not come when all blocks after `past` were looked at, and never will."""
    with store.claiming(signer) as mine:
        # Read once more: whoever was about it may have gone on until now.
        stored = store.pending(signer) if mine else None
        if stored is not None and await _is_over(chain, stored, past):
            await asyncio.to_thread(store.drop, signer)


async def is_over(chain: Chain, stored: StoredJob) -> bool:
    """Whether nothing that was signed to pay into a job can do so any more: what did is on the chain."""
    async with chain.view():
        return await _is_over(chain, stored, await _past(chain))


async def _past(chain: Chain) -> Block:
    """The newest block that no reorganisation takes back."""
    return await chain.block(max(0, await chain.block_number() - chain.deployment.depth))


async def _is_over(chain: Chain, stored: StoredJob, past: Block) -> bool:
    if stored.good_until is not None and past.timestamp < stored.good_until:
        return False
    return stored.nonce is None or await chain.nonce_at(stored.payer, past.number) > stored.nonce


async def send_again(chain: Chain, store: Store) -> list[Job]:
    """Sends once more, byte for byte, what was signed to open jobs and may not have arrived; waits for it.

    What came of them. ChainError if it cannot be sent, or does not come.
    """
    for stored in store.openings(chain.deployment.chain_id, chain.deployment.marketplace):
        if stored.raw is not None:
            with store.claiming(stored.signer) as mine:
                if mine:
                    await _resent(chain, stored.raw)
    return await find_openings(chain, store)


async def _resent(chain: Chain, raw: bytes) -> None:
    try:
        await chain.resend(raw)
    except RpcError as error:
        if read_answer(error.message) is not Answer.NONCE_TOO_LOW:
            raise
    else:
        await chain.included(to_hex(keccak(raw)), chain.deployment.confirmations)


def awaited(stored: StoredJob, *, claimed: bool = False) -> str:
    """What is known of an opening that is not on the chain, and what ends it, for people.

    `claimed`: somebody is about it at this moment.
    """
    told = f"the opening of a job with {stored.host_url}"
    if claimed:
        return f"{told} is under way: another program or session with this store is making it at this moment"
    if stored.raw is not None:
        return (
            f"{told} is signed and not on the chain: transaction {to_hex(keccak(stored.raw))}, number "
            f"{stored.nonce} of {stored.payer}. It is sent again when its money is needed; any other "
            "transaction of that number ends it"
        )
    if stored.good_until is not None:
        return f"{told} is authorized: its host may open it until {when(stored.good_until)}"
    if stored.nonce is not None:
        return f"{told} is of an earlier version of this program, which did not write down what it sent"
    return f"{told} was begun and nothing signed for it: the next command that opens the store ends it"


async def _opened(chain: Chain, store: Store, stored: StoredJob, job_id: JobId) -> tuple[StoredJob, Job]:
    await asyncio.to_thread(store.opened, stored.signer, job_id)
    known = store.job(stored.chain_id, stored.contract, job_id)
    job = await chain.job(job_id)
    if known is None or job is None:
        raise SessionError(f"job {job_id} was opened and has gone again: a reorg took it back; open it anew")
    return known, job
