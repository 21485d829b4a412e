"""Which row goes to the chain for what is due."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tallystick import claims, proof
from tallystick.claims import NOTHING, Ready, ready
from tallystick.rows import DueRow
from tallystick.tables import Counts, JobRow
from tallystick.types import Address, Job, JobId, JobStatus, Prices, Receipt, Totals

NOW = 10_000
JOB = Job(
    id=JobId(7),
    payer=Address("0x" + "01" * 20),
    host=Address("0x" + "02" * 20),
    asset=Address("0x" + "03" * 20),
    signer=Address("0x" + "04" * 20),
    deposit=1_000,
    prices=Prices(1_000_000, 1_000_000),
    max_tokens_per_second=0,
    claim_window=3_600,
    created_at=NOW - 100,
    expires_at=NOW + 1_000,
    asked_at=0,
    closes_at=NOW + 4_600,
    settled=Totals(2, 50),
    owed=52,
    fee=5,
    status=JobStatus.OPEN,
)
ATTESTED = replace(JOB, max_tokens_per_second=3)


def due(totals: Totals, *, complete: bool = False, job: Job = JOB) -> DueRow:
    receipt = Receipt(job.id, totals, bytes(32), bytes(32), bytes(65)) if job.receipted else None
    counts = Counts(not job.receipted, totals, NOTHING, totals, totals)
    row = JobRow(job, 1, counts, receipt, totals, receipt, job.settled, job.settled, complete, closed=False)
    return DueRow(row, totals, receipt, complete)


def made(row: Ready | None) -> tuple[Totals, bool] | None:
    return None if row is None else (row.totals, row.claim.complete)


def test_what_is_ahead_goes() -> None:
    """With its proof; together with the completion if the session is over."""
    totals = Totals(2, 51)
    row = ready(due(totals), JOB, NOW)
    assert made(row) == (totals, False)
    assert row is not None
    assert (row.claim.tokens, len(row.claim.proof)) == (51, 121)
    assert made(ready(due(totals, complete=True), JOB, NOW)) == (totals, True)


def test_what_is_settled_does_not_go() -> None:
    """But for a completion, which needs nobody's signature then."""
    for totals in (JOB.settled, Totals(2, 49), Totals(1, 60)):
        assert ready(due(totals), JOB, NOW) is None
    row = ready(due(JOB.settled, complete=True), JOB, NOW)
    assert made(row) == (NOTHING, True)
    assert row is not None
    assert row.claim.proof == proof.attested_proof(2)


def test_no_more_than_the_deposit_pays() -> None:
    """A contract refuses a claim that is worth more."""
    assert made(ready(due(Totals(2, 5_000)), JOB, NOW)) == (Totals(2, 998), False)


def test_an_attested_job_that_is_over_claims_what_its_time_has_earned() -> None:
    """Until now, the expiry, or the moment at which the payer asked: whichever came first."""
    totals = Totals(10, 900)
    for job, most in (
        (ATTESTED, 300),
        (replace(ATTESTED, asked_at=NOW - 50), 150),
        (replace(ATTESTED, expires_at=NOW - 60), 120),
    ):
        assert claims.earned(job, NOW) == most
        over = ready(due(totals, complete=True, job=job), job, NOW)
        assert made(over) == (Totals(10, most - 10), True)
    assert claims.earned(JOB, NOW) is None


pairs = st.builds(Totals, st.integers(0, 2_000), st.integers(0, 2_000))


@given(pairs, pairs, st.booleans(), st.booleans())
def test_a_row_is_never_stale(settled: Totals, totals: Totals, complete: bool, attested: bool) -> None:
    """Whatever is due and settled: what goes is ahead and affordable, or completes what is equal."""
    job = replace(ATTESTED if attested else JOB, settled=settled, deposit=10_000)
    row = ready(due(totals, complete=complete, job=job), job, NOW)
    if row is None:
        assert not complete
    elif row.totals != NOTHING:
        assert row.totals.covers(settled)
        assert totals.covers(row.totals)
    else:
        assert row.claim.complete
        assert row.claim.tokens == settled.tokens


def test_samples_are_as_long_as_claims() -> None:
    """And all different, as those are."""
    made = list(claims.samples(11))
    assert {len(claim.proof) for claim in made} == {len(ready_proof())}
    assert len({claim.proof for claim in made}) == 11


def ready_proof() -> bytes:
    row = ready(due(Totals(2, 51)), JOB, NOW)
    assert row is not None
    return row.claim.proof
