"""Which steps are tried: for the most part what somebody would do, and often enough what nobody may.

A strategy sees the model as it stands, so that totals, amounts and times lie where something is decided: at
the last affordable token, at the receipt, at the rate, a second before a job closes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from tallystick import pricing
from tallystick.config import CLAIM_WINDOW_BOUNDS, EXPIRY_MAX
from tallystick.pricing import MAX_DEPOSIT, MAX_PRICE, MAX_TOKENS
from tallystick.types import Address, Prices, Terms, Totals
from tests.differential.model import MAX_METADATA, MAX_RATE, Job, Model
from tests.differential.parties import (
    ALICE,
    ANY_MODEL,
    ASSETS,
    BOB,
    COLD,
    ETH,
    HOST,
    HOSTS,
    KEYS,
    LISTED,
    MARKETPLACE,
    NOBODY,
    PARTIES,
    PAYERS,
    RIVAL,
    SIGNERS,
    STRANGER,
    TOKENS,
    TREASURY,
    VAULT,
)
from tests.differential.steps import (
    Attested,
    Authorized,
    Claim,
    CompleteSession,
    CreateJob,
    CreateJobWithAuthorization,
    Flaw,
    Receipted,
    Reclaim,
    Refuse,
    RegisterNode,
    SetPayout,
    Step,
    SubmitCheckpoint,
    SubmitCheckpoints,
    TopUp,
    TopUpWithAuthorization,
    UnregisterNode,
    Wait,
    Withdraw,
    WithdrawFor,
    WithdrawTreasury,
)

T = TypeVar("T")

HOUR, MONTH = CLAIM_WINDOW_BOUNDS
DAY = 24 * HOUR

_parties = st.sampled_from(PARTIES)
_assets = st.sampled_from(ASSETS)
# Of a wide range Hypothesis draws the ends for the most part, and money is not there: hence several ranges.
_prices = st.one_of(
    st.integers(100_000, 3_000_000), st.integers(0, 100), st.sampled_from((904_000, 10**12, MAX_PRICE))
)
_deposits = st.one_of(
    st.integers(1_000, 40_000), st.integers(100_000, 5_000_000), st.sampled_from((1, 10, MAX_DEPOSIT))
)
_rates = st.sampled_from((0,) * 5 + (1, 7, 40, 1_000, MAX_RATE))
_windows = st.sampled_from((HOUR, 12 * HOUR, MONTH))
_lifetimes = st.sampled_from((60, HOUR, 7 * DAY, EXPIRY_MAX))
_salts = st.integers(0, 1)


def _one_in(draw: DrawFn, chances: int) -> bool:
    """True now and then; false is the simpler case."""
    return draw(st.integers(1, chances)) == chances


def _amount(draw: DrawFn, most: int) -> int:
    """Up to `most`: little for the most part, now and then all there is, or one too many."""
    match draw(_sizes):
        case "little":
            return min(most, draw(st.integers(1, 300)))
        case "any":
            return draw(st.integers(0, most))
        case "all":
            return most
        case _:
            return most + 1


_sizes = st.sampled_from(("little",) * 8 + ("any", "all", "one too many"))


def _mostly(draw: DrawFn, likely: Sequence[T], any_: Sequence[T]) -> T:
    """One of the likely ones, if there are any, and now and then one of all."""
    times = 8 * len(any_) // max(1, len(likely))
    return draw(st.sampled_from([*likely] * times + [*any_]))


def _by(draw: DrawFn, *likely: Address) -> Address:
    """One of the likely parties, and now and then anybody."""
    return _mostly(draw, likely, PARTIES)


def _job(draw: DrawFn, model: Model, wanted: Sequence[Job]) -> Job:
    """One of the wanted jobs, or one that is at an edge of its time; now and then any."""
    at_an_edge = [job for job in _not_closed(model) if _to_an_edge(model, job) < 2]
    return _mostly(draw, [*wanted, *at_an_edge], [*model.jobs.values()])


def _to_an_edge(model: Model, job: Job) -> int:
    """Seconds to or from the nearest moment that changes what may be done with a job."""
    return min(abs(at - model.now) for at in _edges(model, job))


def _edges(model: Model, job: Job) -> tuple[int, int]:
    """When a job's tokens cease to count, and when anybody may close it."""
    return job.ends_at, model.closes_at(job)


def _not_closed(model: Model) -> list[Job]:
    """The jobs that a host can still claim for."""
    return [job for job in model.jobs.values() if not job.closed]


# Opening and funding


@st.composite
def _terms(draw: DrawFn, model: Model) -> Terms:
    return Terms(
        host=draw(st.sampled_from((HOST, HOST, RIVAL))),
        asset=draw(_assets),
        deposit=draw(_deposits),
        prices=Prices(draw(_prices), draw(_prices)),
        signer=draw(st.sampled_from(SIGNERS)),
        max_tokens_per_second=draw(_rates),
        claim_window=draw(_windows),
        expires_at=model.now + draw(_lifetimes),
        checkpoint_interval=pricing.INTERVAL,
        model_id=ANY_MODEL,
    )


def _spoilt_terms(model: Model, terms: Terms) -> list[Terms]:
    """Terms that the contract refuses, each for a reason of its own."""
    flaws: list[dict[str, Any]] = [
        *({"host": STRANGER}, {"signer": NOBODY}, {"signer": terms.host}),
        *({"claim_window": HOUR - 1}, {"claim_window": MONTH + 1}),
        *({"expires_at": model.now}, {"expires_at": model.now + EXPIRY_MAX + 1}),
        *({"checkpoint_interval": 0}, {"deposit": 0}, {"deposit": MAX_DEPOSIT + 1}),
        *({"prices": Prices(MAX_PRICE + 1, 0)}, {"prices": Prices(0, MAX_PRICE + 1)}),
        {"max_tokens_per_second": MAX_RATE + 1},
    ]
    return [replace(terms, **flaw) for flaw in flaws]


def _value(draw: DrawFn, model: Model, by: Address, asset: Address, amount: int) -> int:
    """The ETH to send along: what is asked for, now and then another amount, and never more than there is."""
    asked = amount if asset == ETH else 0
    return max(0, min(asked + draw(_deviations), model.wallets[by, ETH]))


_deviations: SearchStrategy[int] = st.sampled_from((0,) * 18 + (1, -1))


def _has_room(model: Model) -> bool:
    """Whether another job is not one too many: a sequence is to come far with its jobs."""
    return len(_not_closed(model)) < 4


@st.composite
def _create_job(draw: DrawFn, model: Model) -> CreateJob:
    terms = draw(_terms(model))
    if _one_in(draw, 6):
        terms = draw(st.sampled_from(_spoilt_terms(model, terms)))
    by = _by(draw, *PAYERS)
    return CreateJob(by, terms, _value(draw, model, by, terms.asset, terms.deposit))


@st.composite
def first_job(draw: DrawFn, model: Model) -> CreateJob:
    """One that is opened, so that there is something to do."""
    terms = draw(_terms(model))
    by = draw(st.sampled_from((ALICE, HOST, VAULT)))
    return CreateJob(by, terms, terms.deposit if terms.asset == ETH else 0)


def _authorized(draw: DrawFn, model: Model, payer: Address, amount: int, salt: int) -> Authorized:
    signed_by = payer if payer in KEYS else ALICE
    valid = Authorized(payer, signed_by, amount, salt, valid_after=0, valid_before=model.now + HOUR)
    if not _one_in(draw, 4):
        return valid
    flaws: list[dict[str, Any]] = [
        *({"payer": VAULT}, {"signed_by": STRANGER}, {"amount": amount + 1}, {"salt": 2}),
        *({"valid_after": model.now}, {"valid_after": model.now - 1}, {"valid_before": model.now}),
        *({"valid_before": model.now + 1}, {"cut": 1}),
    ]
    return replace(valid, **draw(st.sampled_from(flaws)))


@st.composite
def _create_job_with_authorization(draw: DrawFn, model: Model) -> CreateJobWithAuthorization:
    terms = replace(draw(_terms(model)), asset=ETH if _one_in(draw, 12) else draw(st.sampled_from(TOKENS)))
    relay_fee = terms.deposit if _one_in(draw, 12) else draw(st.integers(0, (terms.deposit - 1) // 10))
    salt = draw(_salts)
    auth = _authorized(draw, model, _by(draw, ALICE, BOB, HOST), terms.deposit, salt)
    if _one_in(draw, 8):
        terms = draw(st.sampled_from(_spoilt_terms(model, terms)))
    return CreateJobWithAuthorization(_by(draw, STRANGER), terms, relay_fee, salt, auth)


def _to_fund(model: Model) -> list[Job]:
    """The jobs whose deposit can be added to."""
    return [job for job in _not_closed(model) if not job.asked_at and not model.is_expired(job)]


@st.composite
def _top_up(draw: DrawFn, model: Model) -> TopUp:
    job = _job(draw, model, _to_fund(model))
    by = _by(draw, job.payer)
    amount = draw(st.sampled_from((0, MAX_DEPOSIT, MAX_DEPOSIT + 1))) if _one_in(draw, 8) else draw(_deposits)
    return TopUp(by, job.id, amount, _value(draw, model, by, job.terms.asset, amount))


@st.composite
def _top_up_with_authorization(draw: DrawFn, model: Model) -> TopUpWithAuthorization:
    wanted = [job for job in _to_fund(model) if job.terms.asset != ETH and job.payer in KEYS]
    job, amount, salt = _job(draw, model, wanted), draw(_deposits), draw(_salts)
    auth = _authorized(draw, model, _by(draw, job.payer), amount, salt)
    return TopUpWithAuthorization(_by(draw, STRANGER), job.id, job.terms.asset, amount, salt, auth)


# Claiming


def _ahead(draw: DrawFn, model: Model, job: Job) -> Totals:
    """Totals that a host can claim by now, up to the last token that deposit and rate allow."""
    prompted = job.settled + Totals(draw(st.integers(0, 50)), 0)
    within = prompted if _room(model, job, prompted) >= 0 else job.settled
    return within + Totals(0, _amount(draw, max(0, _room(model, job, within))))


def _room(model: Model, job: Job, totals: Totals) -> int:
    """Generated tokens that can still be claimed beyond `totals`; below zero if those are too many."""
    if pricing.owed(totals, job.prices) > job.deposit or totals.prompt_tokens > MAX_TOKENS:
        return -1
    affordable = pricing.affordable(job.deposit, totals, job.prices)
    if job.receipted:
        return affordable
    return min(affordable, model.most(job) - totals.prompt_tokens - totals.tokens)


def _supported(draw: DrawFn, job: Job, totals: Totals) -> Claim:
    """A claim of the job's totals, with a proof as it should be."""
    if not job.receipted:
        return Claim(job.id, totals, Attested())
    spare = Totals(draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    form = draw(st.sampled_from((Flaw.NONE, Flaw.COMPACT)))
    return Claim(job.id, totals, Receipted(totals + spare, job.terms.signer, job.id, form))


def _doubtful_claims(model: Model, job: Job) -> list[Claim]:
    """Claims of a job that are too high, too low, too long, or signed by another or for another."""
    one_more = job.settled + Totals(0, 1)
    signed = Receipted(one_more, job.terms.signer, job.id)
    return [
        *(Claim(job.id, totals, _support(job, totals)) for totals in _doubtful_totals(model, job)),
        *(Claim(job.id, one_more, support) for support in _doubtful_supports(job, signed)),
        Claim(len(model.jobs) + 1, one_more, signed),
    ]


def _doubtful_totals(model: Model, job: Job) -> list[Totals]:
    prompt_tokens, tokens = job.settled.prompt_tokens, job.settled.tokens
    found = [
        Totals(prompt_tokens + 1, max(0, tokens - 1)),
        Totals(max(0, prompt_tokens - 1), tokens + 1),
        job.settled + Totals(0, max(0, _room(model, job, job.settled)) + 1),
        Totals(0, MAX_TOKENS + 1),
        Totals(MAX_TOKENS + 1, MAX_TOKENS + 1),
    ]
    if not job.receipted:
        most = max(0, model.most(job) - prompt_tokens)
        by_now = job.terms.max_tokens_per_second * (model.now - job.created_at)
        found += [Totals(prompt_tokens, most + 1), Totals(prompt_tokens + 1, most), Totals(0, by_now)]
    return found


def _doubtful_supports(job: Job, signed: Receipted) -> list[Receipted | Attested]:
    found: list[Receipted | Attested] = [Attested(), Attested(7), Attested(9), signed]
    if job.receipted:
        found += [replace(signed, flaw=flaw) for flaw in Flaw]
        found += [replace(signed, signed=each) for each in (job.settled, Totals(0, MAX_TOKENS))]
        found += [replace(signed, by=STRANGER), replace(signed, job_id=job.id + 1)]
    return found


def _support(job: Job, totals: Totals) -> Receipted | Attested:
    return Receipted(totals, job.terms.signer, job.id) if job.receipted else Attested()


@st.composite
def _claim(draw: DrawFn, model: Model, job: Job) -> Claim:
    return _supported(draw, job, _ahead(draw, model, job))


@st.composite
def _checkpoint(draw: DrawFn, model: Model) -> SubmitCheckpoint:
    job = _job(draw, model, _not_closed(model))
    return SubmitCheckpoint(job.terms.host, draw(_claim(model, job)))


@st.composite
def _doubtful_checkpoint(draw: DrawFn, model: Model) -> SubmitCheckpoint:
    job = _job(draw, model, _not_closed(model))
    claim = draw(st.sampled_from(_doubtful_claims(model, job)))
    return SubmitCheckpoint(_by(draw, job.terms.host), claim)


@st.composite
def _batch(draw: DrawFn, model: Model) -> SubmitCheckpoints:
    by = _by(draw, *(job.terms.host for job in _not_closed(model)))
    own = [job for job in _not_closed(model) if job.terms.host == by]
    return SubmitCheckpoints(by, tuple(draw(st.lists(_row(model, own), min_size=1, max_size=5))))


@st.composite
def _row(draw: DrawFn, model: Model, own: Sequence[Job]) -> Claim:
    job = _job(draw, model, own)
    doubtful = _one_in(draw, 4)
    claim = draw(st.sampled_from(_doubtful_claims(model, job)) if doubtful else _claim(model, job))
    return claim.completing() if _one_in(draw, 3) else claim


# Ending


@st.composite
def _complete(draw: DrawFn, model: Model) -> CompleteSession:
    job = _job(draw, model, _not_closed(model))
    by = _by(draw, job.terms.host, job.payer, job.terms.signer, job.terms.host)
    return CompleteSession(by, job.id)


def _nearly_over(model: Model) -> list[Job]:
    """The jobs that anybody may close, by now or in a second."""
    return [job for job in _not_closed(model) if model.closes_at(job) <= model.now + 1]


@st.composite
def _reclaim(draw: DrawFn, model: Model) -> Reclaim:
    return Reclaim(draw(_parties), _job(draw, model, _nearly_over(model)).id)


_waits = st.builds(Wait, st.integers(1, 60) | st.sampled_from((HOUR, 12 * HOUR, 8 * DAY)))


def _wait(model: Model) -> SearchStrategy[Wait]:
    return _waits


@st.composite
def _wait_for_an_edge(draw: DrawFn, model: Model) -> Wait:
    """To the end of a job or of its claim window, or a second before or after."""
    edges = [edge for job in _not_closed(model) for edge in _edges(model, job)]
    ahead = [edge - model.now for edge in edges if edge > model.now]
    if not ahead:
        return Wait(1)
    return Wait(draw(st.sampled_from(ahead)) + draw(st.sampled_from((0, 0, -1, 1))))


# Paying out


def _kept(model: Model) -> list[tuple[Address, Address]]:
    """Whose money, in which asset, the contract keeps."""
    return [of for amounts in (model.earnings, model.refunds) for of, amount in amounts.items() if amount]


def _owner(draw: DrawFn, model: Model) -> tuple[Address, Address]:
    return _mostly(draw, _kept(model), [(party, asset) for party in PARTIES for asset in ASSETS])


_receivers = st.sampled_from((*PARTIES, NOBODY, MARKETPLACE))


@st.composite
def _withdraw(draw: DrawFn, model: Model) -> Withdraw:
    by, asset = _owner(draw, model)
    return Withdraw(by, asset, draw(_receivers) if _one_in(draw, 3) else by)


@st.composite
def _withdraw_for(draw: DrawFn, model: Model) -> WithdrawFor:
    owner, asset = _owner(draw, model)
    return WithdrawFor(draw(_parties), owner, asset)


def _fees(model: Model) -> list[Address]:
    """The assets in which the treasury has something."""
    return [asset for asset in ASSETS if model.fees[asset]]


@st.composite
def _withdraw_treasury(draw: DrawFn, model: Model) -> WithdrawTreasury:
    asset = _mostly(draw, _fees(model), ASSETS)
    return WithdrawTreasury(_by(draw, TREASURY), asset, draw(_receivers))


# Around


@st.composite
def _set_payout(draw: DrawFn, model: Model) -> SetPayout:
    host = draw(st.sampled_from(HOSTS))
    to = NOBODY if _one_in(draw, 8) else draw(st.sampled_from((COLD, host, VAULT)))
    return SetPayout(_by(draw, model.payout_of(host)), host, to)


@st.composite
def _register(draw: DrawFn, model: Model) -> RegisterNode:
    host = _mostly(draw, _unregistered(model), HOSTS)
    return RegisterNode(_by(draw, host), host, draw(_metadata))


_metadata = st.sampled_from(("{}",) * 10 + ("", "{" * MAX_METADATA, "{" * (MAX_METADATA + 1)))


def _unregistered(model: Model) -> list[Address]:
    return [host for host in HOSTS if host not in model.registered]


def _all_registered(model: Model) -> bool:
    return not _unregistered(model)


@st.composite
def _unregister(draw: DrawFn, model: Model) -> UnregisterNode:
    return UnregisterNode(_by(draw, RIVAL))


@st.composite
def _refuse(draw: DrawFn, model: Model) -> Refuse:
    party, asset = draw(st.sampled_from(_refusable(model)))
    return Refuse(party, asset, (party, asset) not in model.refusing)


def _refusable(model: Model) -> list[tuple[Address, Address]]:
    """Payers of running jobs that can refuse the rest, and the treasury: with the asset."""
    owners = [(job.payer, job.terms.asset) for job in _not_closed(model)]
    return [of for of in owners if of == (VAULT, ETH) or of[1] == LISTED] + [(TREASURY, LISTED)]


# Together


def _always(model: Model) -> bool:
    return True


class _Kind(NamedTuple):
    """A kind of step: how often it is tried, and when at all."""

    weight: int
    strategy: Callable[[Model], SearchStrategy[Step]]
    when: Callable[[Model], object] = _always


_KINDS = (
    _Kind(8, _checkpoint, _not_closed),
    _Kind(4, _create_job, _has_room),
    _Kind(3, _create_job_with_authorization, _has_room),
    _Kind(2, _top_up, _to_fund),
    _Kind(2, _top_up_with_authorization, _to_fund),
    _Kind(6, _doubtful_checkpoint, _not_closed),
    _Kind(5, _batch, _not_closed),
    _Kind(3, _complete, _not_closed),
    _Kind(4, _reclaim, _nearly_over),
    _Kind(1, _wait),
    _Kind(4, _wait_for_an_edge),
    _Kind(2, _withdraw, _kept),
    _Kind(3, _withdraw_for, _kept),
    _Kind(1, _withdraw_treasury, _fees),
    _Kind(1, _set_payout),
    _Kind(2, _register, _unregistered),
    _Kind(1, _unregister, _all_registered),
    _Kind(2, _refuse),
)


def next_step(model: Model, used: Sequence[Step]) -> SearchStrategy[Step]:
    """Any step that may come to something now; `used` are the authorizations that were brought before."""
    kinds = [kind for kind in _KINDS if kind.when(model)]
    weighted = [kind.strategy for kind in kinds for _ in range(kind.weight)]
    again = [lambda _: st.sampled_from(used)] if used else []
    return st.sampled_from(weighted + again).flatmap(lambda strategy: strategy(model))
