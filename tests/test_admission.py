"""The checks of protocol §8: one good request, and for each refusal the one fact that turns it down."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tallystick import pricing, proof
from tallystick.admission import (
    CHECKS,
    ENDING,
    EXPIRY_MARGIN,
    HOLDING,
    OWNING,
    TERMS,
    Check,
    Facts,
    Offer,
    first_refusal,
)
from tallystick.errors import REFUSALS
from tallystick.meter import Fit
from tallystick.networks import Asset
from tallystick.types import ETH, ZERO_HASH, Address, Job, JobId, JobStatus, Model, Prices, Totals

NOW = 1_800_000_000
HOST = Address("0x70997970C51812dc3A010C7d01b50e0d17dc79C8")
OTHER = Address("0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC")
DOLLAR = Address("0x5FbDB2315678afecb367f032d93F642f64180aa3")
OWN_TOKEN = Address("0xe7f1725E7734CE288F8367e1Bb143E90bb3F0512")
KEY = (7).to_bytes(32, "big")
DOMAIN = proof.Domain(31337, Address("0x9fE46736679d2D9a65F0992F2272dE9f3c7fa6e0"))
PRICES = Prices(900_000, 200_000)
JOB = Job(
    id=JobId(121),
    payer=OTHER,
    host=HOST,
    asset=DOLLAR,
    signer=proof.address(KEY),
    deposit=2_000_000,
    prices=PRICES,
    max_tokens_per_second=0,
    claim_window=12 * 3600,
    created_at=NOW - 60,
    expires_at=NOW + 7 * 24 * 3600,
    asked_at=0,
    closes_at=NOW + 7 * 24 * 3600 + 12 * 3600,
    settled=Totals(),
    owed=0,
    fee=0,
    status=JobStatus.OPEN,
    interval=100,
    model_id=proof.model_id("talky"),
)
OFFER = Offer(
    domain=DOMAIN,
    host=HOST,
    models=(
        Model("talky", {DOLLAR: PRICES, ETH: Prices(10**14, 10**13)}),
        Model("dollars-only", {DOLLAR: PRICES}),
    ),
    assets={ETH: Asset("ETH", 18), DOLLAR: Asset("tUSD", 6), OWN_TOKEN: Asset("OWN", 18)},
    interval_max=1_000,
    claim_window_min=3600,
)


def bearer(key: bytes = KEY, expires_at: int = NOW + 3600, job_id: int = 121) -> str:
    return proof.make_bearer(DOMAIN, JobId(job_id), expires_at, key)


GOOD = Facts(
    offer=OFFER,
    now=NOW,
    authorization=bearer(),
    secure=True,
    named_job=JobId(121),
    job=JOB,
    newest=JOB,
    model="talky",
    prompt_tokens=12,
    longest=12,
    max_tokens=150,
    room=87,
    context=4096,
)


def job(**changed: Any) -> Facts:
    """The good request for a job that is different."""
    other = replace(JOB, **changed)
    return replace(GOOD, job=other, newest=other)


ONE_FACT: dict[str, tuple[str, Facts]] = {
    "no host is set up": ("host_not_set_up", replace(GOOD, offer=replace(OFFER, host=None))),
    "no bearer": ("access_missing", replace(GOOD, authorization=None)),
    "an empty bearer": ("access_missing", replace(GOOD, authorization="")),
    "a bearer in the clear": ("tls_required", replace(GOOD, secure=False)),
    "an API key of another kind": ("access_malformed", replace(GOOD, authorization="sk-1234")),
    "a bearer that ran out this second": (
        "access_expired",
        replace(GOOD, authorization=bearer(expires_at=NOW)),
    ),
    "a bearer for more than 30 days": (
        "access_expired",
        replace(GOOD, authorization=bearer(expires_at=NOW + 30 * 24 * 3600 + 1)),
    ),
    "another job in the body": ("job_mismatch", replace(GOOD, named_job=JobId(122))),
    "a job that is not there": ("job_unknown", replace(GOOD, job=None, newest=None)),
    "a job that is not deep yet": ("job_unconfirmed", replace(GOOD, job=None, depth=9)),
    "a job of another host": ("job_of_another_host", job(host=OTHER)),
    "a job that is closed": ("job_closed", job(status=JobStatus.CLOSED)),
    "a job that is completing": ("job_completing", job(status=JobStatus.COMPLETING)),
    "a job asked to complete in the latest block": (
        "job_completing",
        replace(GOOD, newest=replace(JOB, status=JobStatus.COMPLETING)),
    ),
    "a session that was ended": ("job_ended", replace(GOOD, ended=True)),
    "a stranger's signature": (
        "access_forged",
        replace(GOOD, authorization=bearer(key=(8).to_bytes(32, "big"))),
    ),
    "a signer that served another job": ("signer_reused", replace(GOOD, served=JobId(7))),
    "a token that the payer made itself": ("asset_not_accepted", job(asset=OWN_TOKEN)),
    "an asset that this model is not sold for": (
        "asset_not_accepted",
        replace(job(asset=ETH, model_id=ZERO_HASH, prices=Prices(10**15, 10**15)), model="dollars-only"),
    ),
    "a model that is not served": ("model_unknown", replace(GOOD, model="gpt-5")),
    "a job for another model": ("model_mismatch", replace(GOOD, model="dollars-only")),
    "a job at a price of 1": ("price_too_low", job(prices=Prices(1, 1))),
    "a price one unit too low": ("price_too_low", job(prices=Prices(899_999, 200_000))),
    "prompts one unit too cheap": ("price_too_low", job(prices=Prices(900_000, 199_999))),
    "an interval too large": ("interval_too_large", job(interval=1_001)),
    "an interval without a quarter": ("interval_too_small", job(interval=3)),
    "a claim window too short": ("claim_window_too_short", job(claim_window=3599)),
    "a job about to expire": ("expiry_too_near", job(expires_at=NOW + EXPIRY_MARGIN - 1)),
    "a payer that owes too much": ("payer_exposed", replace(GOOD, payer_exposed=True)),
    "a host that has lent all": ("host_exposed", replace(GOOD, host_exposed=True)),
    "a credit that is used up": ("credit_used_up", replace(GOOD, used_up=True)),
    "more than the context holds": ("context_exceeded", replace(GOOD, max_tokens=4085)),
    "a deposit that is used up": ("deposit_exhausted", replace(GOOD, fit=Fit.NO_DEPOSIT)),
    "too little for a token of every choice": ("deposit_exhausted", replace(GOOD, max_tokens=0, choices=9)),
    "a prompt beyond the credit": ("prompt_receipt_due", replace(GOOD, fit=Fit.NEEDS_RECEIPT)),
    "a prompt beyond the credit of a job that is served early": (
        "job_unconfirmed",
        replace(GOOD, fit=Fit.NEEDS_DEPTH, depth=9),
    ),
    "an answer in one piece beyond the credit": ("stream_required", replace(GOOD, streamed=False)),
    "choices in one piece that add up to more than the credit": (
        "stream_required",
        replace(GOOD, streamed=False, max_tokens=44, choices=2),
    ),
}


def test_good() -> None:
    """A request that meets every term is served."""
    assert first_refusal(CHECKS, GOOD) is None


@pytest.mark.parametrize(("code", "facts"), ONE_FACT.values(), ids=ONE_FACT)
def test_one_fact(code: str, facts: Facts) -> None:
    """Each term has a refusal of its own, and one fact is enough for it."""
    refusal = first_refusal(CHECKS, facts)
    assert refusal is not None
    assert refusal.code == code


def test_every_check_refuses() -> None:
    """No check is without a fact that makes it refuse."""
    idle = [check.__name__ for check in CHECKS if not any(check(f) for f in _read_so_far(check))]
    assert idle == []


def _read_so_far(check: Check) -> list[Facts]:
    """The facts of every case that reaches a check."""
    reached = []
    for _, facts in ONE_FACT.values():
        before = CHECKS[: CHECKS.index(check)]
        if first_refusal(before, facts) is None:
            reached.append(facts)
    return reached


def test_order() -> None:
    """Refusals come in the order of protocol §8: of two things that are wrong, the earlier one is told."""
    both = replace(job(prices=Prices(1, 1), host=OTHER), authorization=None)
    refusal = first_refusal(CHECKS, both)
    assert refusal is not None
    assert refusal.code == "access_missing"
    refusal = first_refusal(CHECKS, replace(both, authorization=bearer()))
    assert refusal is not None
    assert refusal.code == "job_of_another_host"


@pytest.mark.parametrize(("code", "facts"), ONE_FACT.values(), ids=ONE_FACT)
def test_terms(code: str, facts: Facts) -> None:
    """Every 402 says what a good job would look like, and no other status does."""
    refusal = first_refusal(CHECKS, facts)
    assert refusal is not None
    problem = refusal.problem()
    assert ("terms" in problem) == (REFUSALS[code].status == 402)
    if "terms" in problem:
        assert problem["terms"]["models"][0]["prices"][DOLLAR]["per_million"] == "900000"
        assert [asset["symbol"] for asset in problem["terms"]["assets"]] == ["ETH", "tUSD"]


def test_the_tokens_that_do_not_fit_the_context_are_told_as_what_they_are() -> None:
    """Where the deposit pays for less than was asked for, its number is not told as the request's."""
    asked = first_refusal(CHECKS, replace(GOOD, max_tokens=5_000))
    capped = first_refusal(CHECKS, replace(GOOD, max_tokens=5_000, capped=True))
    assert asked is not None
    assert capped is not None
    assert "max_tokens is 5000;" in asked.problem()["detail"]
    assert "the deposit pays for 5000 of max_tokens;" in capped.problem()["detail"]


def test_prompt_receipt() -> None:
    """A prompt beyond the credit is told with its cost and the totals to sign (protocol §8)."""
    facts = replace(GOOD, fit=Fit.NEEDS_RECEIPT, prompt_tokens=5_000, totals=Totals(5_100, 40), context=None)
    refusal = first_refusal(CHECKS, facts)
    assert refusal is not None
    problem = refusal.problem()
    assert (problem["prompt_tokens"], problem["cost"]) == (5_000, "1000")
    assert (problem["terms"]["prompt_tokens"], problem["terms"]["tokens"]) == (5_100, 40)


@pytest.mark.parametrize(("code", "facts"), ONE_FACT.values(), ids=ONE_FACT)
def test_a_good_job(code: str, facts: Facts) -> None:
    """The job that a 402 shows is served: opened as it says, it passes every term."""
    refusal = first_refusal(CHECKS, facts)
    assert refusal is not None
    if "terms" not in refusal.extra:
        return
    good = refusal.extra["terms"]["job"]
    opened = replace(
        JOB,
        host=good["host"],
        asset=good["asset"],
        prices=Prices(int(good["per_million"]), int(good["prompt_per_million"])),
        interval=good["interval"],
        claim_window=good["claim_window"],
        expires_at=good["expires_at"],
        deposit=int(good["deposit"]),
        model_id=bytes.fromhex(good["model_id"][2:]),
    )
    served = replace(facts, job=opened, newest=opened, used_up=False, ended=False)
    assert first_refusal(TERMS, served) is None
    affordable = pricing.affordable(opened.deposit, Totals(facts.prompt_tokens, 0), opened.prices)
    assert affordable >= facts.choices * facts.max_tokens


@pytest.mark.parametrize(
    "facts",
    [
        replace(GOOD, model=None),
        replace(GOOD, named_job=None),
        replace(GOOD, served=JobId(121)),
        replace(GOOD, authorization=bearer(expires_at=NOW + 30 * 24 * 3600)),
        replace(GOOD, streamed=False, max_tokens=87),
        replace(GOOD, context=None, max_tokens=2**40),
        job(model_id=ZERO_HASH),
        job(prices=Prices(900_001, 2**79)),
        job(interval=1_000),
        job(interval=4),
        job(claim_window=3600),
        job(expires_at=NOW + EXPIRY_MARGIN),
        replace(job(max_tokens_per_second=20), streamed=False),
    ],
)
def test_bounds(facts: Facts) -> None:
    """What is just good enough is good enough."""
    assert first_refusal(CHECKS, facts) is None


def test_receipts_outlive_bearers() -> None:
    """A bearer that ran out does not keep a payer from signing, and a closed job may be looked at."""
    late = replace(job(status=JobStatus.CLOSED), authorization=bearer(expires_at=NOW - 1))
    assert first_refusal(HOLDING + OWNING, late) is None


def test_ending_takes_no_bearer() -> None:
    """To end a session takes the signer's word, not a bearer; and a job in an asset that the host takes."""
    assert first_refusal(ENDING, replace(GOOD, authorization=None, secure=False)) is None
    refusal = first_refusal(ENDING, job(asset=OWN_TOKEN))
    assert refusal is not None
    assert refusal.code == "asset_not_accepted"


def test_bearer_is_no_log_line() -> None:
    """A bearer is as good as a password until it expires: no repr shows it."""
    assert bearer()[-20:] not in repr(GOOD)
