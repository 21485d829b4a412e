"""Who is served, and on what terms: the checks of protocol §8 in its order, each with a refusal of its own.

Rules only: facts in, the first refusal out. Where a fact comes from (a header, the chain, the ledger, the
meter) is for desk.py to know, which finds them out step by step, as a request turned down early needs few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from typing import Any

from tallystick import proof
from tallystick.config import BEARER_MAX, INTERVAL_MIN, LIFETIME
from tallystick.errors import ReceiptError, Refusal
from tallystick.meter import IN_FLIGHT_PERCENT, Fit
from tallystick.networks import Asset
from tallystick.pricing import MILLION, from_units, lower, owed
from tallystick.types import ZERO_HASH, Address, Job, JobId, JobStatus, Model, Prices, Totals

NOTHING = Totals()
BEARERS_KEPT = 10_000
"""Bearers whose signer is remembered; all else of them is looked at each time."""
EXPIRY_MARGIN = 600
"""Seconds that a job has to have left when a reply begins (protocol §13)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that jobs may owe unsigned, in base units of each asset; of others there is no limit."""

    per_payer: Mapping[Address, int] = field(default_factory=dict)
    in_all: Mapping[Address, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Offer:
    """What the host sells, and what it asks of a job."""

    domain: proof.Domain
    host: Address | None
    """Whom jobs have to name; none: the node is not set up to be paid."""
    models: tuple[Model, ...]
    assets: dict[Address, Asset]
    interval_max: int
    """Tokens."""
    claim_window_min: int
    """Seconds."""
    limits: Limits = Limits()
    relay_fee: int = 0
    """Base units of the deployment's dollar for sending a payer's opening; 0: the host sends none."""

    def model(self, name: str | None) -> Model | None:
        """The model of that name; the first one if none is named."""
        if name is None:
            return self.models[0] if self.models else None
        return next((model for model in self.models if model.name == name), None)

    def asked(self, job: Job) -> Prices | None:
        """The least that the host asks for what the job may be used for; None: nothing of it is sold."""
        prices = [
            model.prices[job.asset]
            for model in self.models
            if job.asset in model.prices and job.model_id in (ZERO_HASH, proof.model_id(model.name))
        ]
        return reduce(lower, prices) if prices else None

    def takes(self, asset: Address) -> bool:
        """True if some model is sold in that asset."""
        return any(asset in model.prices for model in self.models)

    def terms(self) -> dict[str, Any]:
        """What a good job looks like, as it goes over the wire."""
        return {
            "host": self.host,
            "chain_id": self.domain.chain_id,
            "contract": self.domain.contract,
            "assets": [
                {"address": address, "symbol": asset.symbol, "decimals": asset.decimals}
                for address, asset in self.assets.items()
                if self.takes(address)
            ],
            "models": [{"name": model.name, "prices": _prices_out(model)} for model in self.models],
            "interval": {
                "min": INTERVAL_MIN,
                "max": self.interval_max,
                "in_flight_percent": IN_FLIGHT_PERCENT,
            },
            "claim_window_min": self.claim_window_min,
            "expiry_margin": EXPIRY_MARGIN,
            "relay_fee": str(self.relay_fee),
        }


def _prices_out(model: Model) -> dict[str, dict[str, str]]:
    return {
        asset: {"per_million": str(prices.per_million), "prompt_per_million": str(prices.prompt_per_million)}
        for asset, prices in model.prices.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that is known of a request so far. A check relies on those before it."""

    offer: Offer
    now: int
    """The timestamp of the chain's latest block."""
    authorization: str | None = field(default=None, repr=False)
    """The bearer as it came."""
    secure: bool = False
    """It came over TLS or from this machine."""
    named_job: JobId | None = None
    """The job that the request is about, beside the bearer's."""
    named_in: str = "body"
    """Where it is named."""

    job: Job | None = None
    """As of the block that is as deep as the host asks, or if it serves earlier, as of the latest."""
    early: bool = False
    """It does not lie that deep, and is served for one credit in all."""
    newest: Job | None = None
    """As of the latest block."""
    depth: int = 0
    """Blocks that have to lie above a job's."""
    ended: bool = False
    """Its session was ended here."""
    served: JobId | None = None
    """The job that this signer already served here."""
    model: str | None = None
    """As asked for; none: the first one."""

    payer_exposed: bool = False
    """The payer's jobs owe as much unsigned as the host lends it."""
    host_exposed: bool = False
    """All jobs together owe as much unsigned as the host lends."""
    used_up: bool = False
    """Clients that are gone left more unsigned than the job's one credit."""
    fit: Fit = Fit.FITS
    prompt_tokens: int = 0
    """Of all prompts."""
    longest: int = 0
    """Tokens of the longest prompt."""
    max_tokens: int = 0
    """Of each choice."""
    capped: bool = False
    """More were asked for than the deposit pays for, which are these."""
    choices: int = 1
    room: int = 0
    """Generated tokens that could be delivered without another receipt, the prompt taken off."""
    streamed: bool = True
    context: int | None = None
    """Tokens that the model's context holds."""
    totals: Totals = NOTHING
    """What a receipt would have to sign for the prompt to fit, once what was received is signed for."""

    @property
    def bearer(self) -> proof.Bearer | None:
        """The bearer, if it can be read."""
        try:
            return proof.read_bearer(self.authorization or "")
        except ReceiptError:
            return None

    @property
    def known(self) -> Job:
        """The job as checks after `unknown` may rely on it: its money lies deep, or a credit is risked."""
        assert self.job is not None
        return self.job


Check = Callable[[Facts], Refusal | None]


def first_refusal(checks: Iterable[Check], facts: Facts) -> Refusal | None:
    """What the first check that fails says. A 402 tells what a good job would look like."""
    refusal = next(filter(None, (check(facts) for check in checks)), None)
    if refusal is not None and refusal.row.status == 402:
        refusal.extra["terms"] = {**_full_terms(facts), **refusal.extra.get("terms", {})}
    return refusal


def _full_terms(facts: Facts) -> dict[str, Any]:
    """All that the host asks, and one job that would be served what was asked for."""
    terms = facts.offer.terms()
    model = facts.offer.model(facts.model) or facts.offer.model(None)
    if facts.job is None or model is None or not model.prices:
        return terms
    return {**terms, "job": _good_job(facts, facts.job, model)}


def _good_job(facts: Facts, job: Job, model: Model) -> dict[str, Any]:
    """As it goes into `createJob`; as much like the one that was tried as the terms allow."""
    asset = job.asset if job.asset in model.prices else next(iter(model.prices))
    prices = model.prices[asset]
    wanted = Totals(facts.prompt_tokens, facts.choices * max(1, facts.max_tokens))
    return {
        "host": facts.offer.host,
        "asset": asset,
        "model": model.name,
        "model_id": "0x" + proof.model_id(model.name).hex(),
        "per_million": str(prices.per_million),
        "prompt_per_million": str(prices.prompt_per_million),
        "interval": min(max(job.interval, INTERVAL_MIN), facts.offer.interval_max),
        "claim_window": max(job.claim_window, facts.offer.claim_window_min),
        "expires_at": facts.now + LIFETIME,
        # What was asked for, where its prompt was counted already; any other job takes a base unit at least.
        "deposit": str(max(1, owed(wanted, prices))),
    }


# Who asks: nothing but the request and the clock is needed.


def not_set_up(facts: Facts) -> Refusal | None:
    return Refusal("host_not_set_up") if facts.offer.host is None else None


def access_missing(facts: Facts) -> Refusal | None:
    return None if facts.authorization else Refusal("access_missing")


def in_the_clear(facts: Facts) -> Refusal | None:
    return None if facts.secure else Refusal("tls_required")


def access_malformed(facts: Facts) -> Refusal | None:
    try:
        proof.read_bearer(facts.authorization or "")
    except ReceiptError as error:
        return Refusal("access_malformed", f"The bearer cannot be read: {error}.")
    return None


def access_expired(facts: Facts) -> Refusal | None:
    bearer = facts.bearer
    assert bearer is not None
    if bearer.expires_at <= facts.now:
        return Refusal("access_expired", f"The bearer ran out {facts.now - bearer.expires_at} s ago.")
    if bearer.expires_at > facts.now + BEARER_MAX:
        return Refusal("access_expired", "The bearer is made out for more than 30 days, which is not taken.")
    return None


def job_mismatch(facts: Facts) -> Refusal | None:
    bearer = facts.bearer
    assert bearer is not None
    if facts.named_job in (None, bearer.job_id):
        return None
    return Refusal(
        "job_mismatch", f"The {facts.named_in} names job {facts.named_job}, the bearer job {bearer.job_id}."
    )


# Which job: it has been read from the chain.


def unknown(facts: Facts) -> Refusal | None:
    return Refusal("job_unknown") if facts.newest is None and facts.job is None else None


def unconfirmed(facts: Facts) -> Refusal | None:
    return None if facts.job is not None else _too_early(facts, "The job")


def _too_early(facts: Facts, what: str) -> Refusal:
    return Refusal(
        "job_unconfirmed", f"{what} has to lie {facts.depth} blocks deep.", confirmations=facts.depth + 1
    )


def another_host(facts: Facts) -> Refusal | None:
    if facts.known.host == facts.offer.host:
        return None
    return Refusal("job_of_another_host", f"The job names {facts.known.host}; this is {facts.offer.host}.")


def _status(facts: Facts) -> JobStatus:
    """The newest: a job that completes is not served for as long as that takes to lie deep."""
    return (facts.newest or facts.known).status


def closed(facts: Facts) -> Refusal | None:
    return Refusal("job_closed") if _status(facts) is JobStatus.CLOSED else None


def completing(facts: Facts) -> Refusal | None:
    return Refusal("job_completing") if _status(facts) is JobStatus.COMPLETING else None


def ended(facts: Facts) -> Refusal | None:
    return Refusal("job_ended") if facts.ended else None


def access_forged(facts: Facts) -> Refusal | None:
    bearer = facts.bearer
    assert bearer is not None
    digest = facts.offer.domain.access(bearer.job_id, bearer.expires_at)
    try:
        signer = _signer(digest, bearer.signature)
    except ReceiptError as error:
        return Refusal("access_forged", f"The bearer's signature does not hold: {error}.")
    if signer == facts.known.signer:
        return None
    return Refusal("access_forged", f"The bearer was signed by {signer}, not by the job's signer.")


# A payer shows one bearer with all that it asks for and signs.
_signer = lru_cache(maxsize=BEARERS_KEPT)(proof.recover)


def signer_reused(facts: Facts) -> Refusal | None:
    if facts.served in (None, facts.known.id):
        return None
    return Refusal("signer_reused", f"The job's signer already served job {facts.served} here.")


def asset_not_accepted(facts: Facts) -> Refusal | None:
    if facts.offer.takes(facts.known.asset):
        return None
    taken = ", ".join(
        f"{asset.symbol} ({address})"
        for address, asset in facts.offer.assets.items()
        if facts.offer.takes(address)
    )
    return Refusal("asset_not_accepted", f"The job is in {facts.known.asset}; this host takes {taken}.")


def model_unknown(facts: Facts) -> Refusal | None:
    if facts.offer.model(facts.model) is not None:
        return None
    served = ", ".join(model.name for model in facts.offer.models) or "none"
    return Refusal("model_unknown", f"This host does not serve {facts.model!r}; it serves {served}.")


def _model(facts: Facts) -> Model:
    model = facts.offer.model(facts.model)
    assert model is not None
    return model


def model_mismatch(facts: Facts) -> Refusal | None:
    name = _model(facts).name
    if facts.known.model_id in (ZERO_HASH, proof.model_id(name)):
        return None
    return Refusal("model_mismatch", f"The job was not opened for {name}.")


def price_too_low(facts: Facts) -> Refusal | None:
    asked = _model(facts).prices.get(facts.known.asset)
    asset = facts.offer.assets[facts.known.asset]
    if asked is None:
        return Refusal(
            "asset_not_accepted", f"This host does not sell {_model(facts).name} for {asset.symbol}."
        )
    paid = facts.known.prices
    if paid.per_million >= asked.per_million and paid.prompt_per_million >= asked.prompt_per_million:
        return None
    return Refusal(
        "price_too_low", f"The job pays {_priced(paid, asset)}; this host asks {_priced(asked, asset)}."
    )


def _priced(prices: Prices, asset: Asset) -> str:
    tokens, prompt = (
        from_units(price, asset.decimals) for price in (prices.per_million, prices.prompt_per_million)
    )
    return f"{tokens} {asset.symbol} a million tokens and {prompt} a million prompt tokens"


def interval_too_large(facts: Facts) -> Refusal | None:
    if facts.known.interval <= facts.offer.interval_max:
        return None
    return Refusal(
        "interval_too_large",
        f"The job's interval is {facts.known.interval} tokens; this host allows {facts.offer.interval_max}.",
    )


def interval_too_small(facts: Facts) -> Refusal | None:
    if facts.known.interval >= INTERVAL_MIN:
        return None
    return Refusal(
        "interval_too_small",
        f"The job's interval is {facts.known.interval} tokens; {INTERVAL_MIN} is the least.",
    )


def claim_window_too_short(facts: Facts) -> Refusal | None:
    if facts.known.claim_window >= facts.offer.claim_window_min:
        return None
    return Refusal(
        "claim_window_too_short",
        f"The job's claim window is {facts.known.claim_window} s; "
        f"this host asks {facts.offer.claim_window_min} s.",
    )


def expiry_too_near(facts: Facts) -> Refusal | None:
    left = facts.known.expires_at - facts.now
    if left >= EXPIRY_MARGIN:
        return None
    return Refusal("expiry_too_near", f"The job expires in {left} s; a reply may take {EXPIRY_MARGIN} s.")


# What it may cost: prompt counted, and held against what the job's account has left.


def credit_used_up(facts: Facts) -> Refusal | None:
    return Refusal("credit_used_up") if facts.used_up else None


def payer_exposed(facts: Facts) -> Refusal | None:
    return Refusal("payer_exposed") if facts.payer_exposed else None


def host_exposed(facts: Facts) -> Refusal | None:
    return Refusal("host_exposed") if facts.host_exposed else None


def context_exceeded(facts: Facts) -> Refusal | None:
    if facts.context is None or facts.longest + facts.max_tokens <= facts.context:
        return None
    asked = "the deposit pays for {} of max_tokens" if facts.capped else "max_tokens is {}"
    return Refusal(
        "context_exceeded",
        f"The prompt has {facts.longest} tokens and {asked.format(facts.max_tokens)}; "
        f"the context holds {facts.context}.",
    )


def deposit_exhausted(facts: Facts) -> Refusal | None:
    # Of an answer in one piece every choice has to have a token.
    if facts.fit is not Fit.NO_DEPOSIT and facts.max_tokens > 0:
        return None
    return Refusal(
        "deposit_exhausted",
        f"The deposit left does not pay for the prompt's {facts.prompt_tokens} tokens and "
        f"{'one more' if facts.choices == 1 else f'one more of each of {facts.choices} choices'}.",
    )


def prompt_receipt_due(facts: Facts) -> Refusal | None:
    if facts.fit is not Fit.NEEDS_RECEIPT:
        return None
    cost = facts.prompt_tokens * facts.known.prices.prompt_per_million // MILLION
    return Refusal(
        "prompt_receipt_due",
        f"The prompt's {facts.prompt_tokens} tokens cost {cost} base units, more than the credit left.",
        prompt_tokens=facts.prompt_tokens,
        cost=str(cost),
        terms={"prompt_tokens": facts.totals.prompt_tokens, "tokens": facts.totals.tokens},
    )


def depth_due(facts: Facts) -> Refusal | None:
    if facts.fit is not Fit.NEEDS_DEPTH:
        return None
    return _too_early(facts, "For more than the job's first interval, it")


def stream_required(facts: Facts) -> Refusal | None:
    tokens = facts.choices * facts.max_tokens
    if facts.streamed or not facts.known.receipted or tokens <= facts.room:
        return None
    return Refusal(
        "stream_required",
        f"The answer may have {tokens} tokens; {facts.room} fit the credit that is left.",
    )


ASKING: tuple[Check, ...] = (
    not_set_up,
    access_missing,
    in_the_clear,
    access_malformed,
    access_expired,
    job_mismatch,
)
JOB: tuple[Check, ...] = (
    unknown,
    unconfirmed,
    another_host,
    closed,
    completing,
    ended,
    access_forged,
    signer_reused,
)
TERMS: tuple[Check, ...] = (
    asset_not_accepted,
    model_unknown,
    model_mismatch,
    price_too_low,
    interval_too_large,
    interval_too_small,
    claim_window_too_short,
    expiry_too_near,
)
COST: tuple[Check, ...] = (
    payer_exposed,
    host_exposed,
    context_exceeded,
    deposit_exhausted,
    depth_due,
    prompt_receipt_due,
    stream_required,
)
LIFE: tuple[Check, ...] = (credit_used_up,)
"""What a job has to pass before a prompt of it is counted."""
CHECKS = ASKING + JOB + TERMS + LIFE + COST
"""What a request for a reply has to pass, in the order of protocol §8."""

HOLDING: tuple[Check, ...] = tuple(check for check in ASKING if check is not access_expired)
"""What a receipt has to pass: a bearer that ran out does not keep a payer from signing."""
OWNING: tuple[Check, ...] = (unknown, unconfirmed, another_host, access_forged)
"""What whoever only wants to see the job, or to sign for it, has to pass."""
ENDING: tuple[Check, ...] = (not_set_up, unknown, unconfirmed, another_host, closed, asset_not_accepted)
"""What a job has to pass to be ended, beside its signer's word."""
