"""The host's account of a job: what holds after any sequence of prompts, deliveries and receipts."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tallystick import pricing
from tallystick.meter import Fit, JobMeter, Stop, checkpoint, quarter
from tallystick.pricing import INTERVAL, MAX_TOKENS, MILLION
from tallystick.types import Prices, Totals

PRICES = Prices(900_000, 200_000)
DEPOSIT = 2_000_000


def meter(deposit: int = DEPOSIT, prices: Prices = PRICES, interval: int = INTERVAL) -> JobMeter:
    return JobMeter(prices, deposit, interval)


class Job(RuleBasedStateMachine):
    """A job with any number of streams, an honest host and a payer that signs what it likes."""

    @initialize(
        price=st.integers(0, 3_000_000),
        prompt_price=st.integers(0, 3_000_000),
        deposit=st.integers(0, 2_000),
        interval=st.integers(4, 200),
        attested=st.booleans(),
        asked=st.none() | st.builds(Prices, st.integers(0, 3_000_000), st.integers(0, 3_000_000)),
    )
    def open(
        self,
        price: int,
        prompt_price: int,
        deposit: int,
        interval: int,
        attested: bool,
        asked: Prices | None,
    ) -> None:
        self.asked = asked
        self.meter = JobMeter(Prices(price, prompt_price), deposit, interval, asked=asked, attested=attested)
        self.prompts: list[int] = []
        """Reserved and not delivered yet."""
        self.settlements = [Totals()]

    @rule(prompt_tokens=st.integers(0, 300))
    def ask(self, prompt_tokens: int) -> None:
        before = self.meter.room()
        fit = self.meter.reserve(prompt_tokens)
        if fit is Fit.NEEDS_RECEIPT:
            assert not self.meter.attested
            signed = self.meter.to_sign(prompt_tokens)
            assert signed.tokens == self.meter.receipted.tokens
            self.meter.receipt(signed, self.meter.acknowledged)
            assert self.meter.fits_credit(prompt_tokens)
            self.meter.receipt(signed.higher(self.meter.counted), self.meter.acknowledged)
            fit = self.meter.reserve(prompt_tokens)
            assert fit is Fit.FITS
        elif fit is Fit.FITS:
            assert self.meter.room() <= before
        if fit is Fit.FITS:
            assert self.meter.room() >= 1
            self.prompts.append(prompt_tokens)

    @precondition(lambda self: self.prompts)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        prompt = self.prompts.pop(data.draw(st.integers(0, len(self.prompts) - 1)))
        self.meter.count(prompt, min(1, self.meter.room()))

    @precondition(lambda self: self.prompts)
    @rule(data=st.data())
    def fail_before_the_first_token(self, data: st.DataObject) -> None:
        self.meter.release(self.prompts.pop(data.draw(st.integers(0, len(self.prompts) - 1))))

    @rule(share=st.floats(0, 1))
    def deliver(self, share: float) -> None:
        room = min(self.meter.room(), 1_000)
        offered = self.meter.counted.tokens
        due = self.meter.count(0, int(room * share))
        assert due == quarter(offered, self.meter.counted.tokens, self.meter.interval)

    @rule()
    def deliver_one_too_many(self) -> None:
        if self.meter.room() < MAX_TOKENS:
            with pytest.raises(ValueError, match="room"):
                self.meter.count(0, self.meter.room() + 1)

    @precondition(lambda self: not self.meter.attested)
    @rule(share=st.floats(0, 1), ahead=st.integers(0, 50), prompts_ahead=st.integers(0, 300))
    def acknowledge(self, share: float, ahead: int, prompts_ahead: int) -> None:
        open_ = self.meter.counted - self.meter.acknowledged
        more = Totals(int(open_.prompt_tokens * share), int(open_.tokens * share))
        acknowledged = self.meter.acknowledged + more
        signed = (acknowledged + Totals(prompts_ahead, ahead)).higher(self.meter.receipted)
        self.meter.receipt(signed, acknowledged)

    @rule(share=st.floats(0, 1))
    def write_off(self, share: float) -> None:
        open_ = self.meter.counted - self.meter.acknowledged
        off = Totals(int(open_.prompt_tokens * share), int(open_.tokens * share))
        before = self.meter.counted
        taken = self.meter.write_off(off)
        assert self.meter.counted == (before - off if taken else before)

    @rule(more=st.integers(0, 1_000))
    def top_up(self, more: int) -> None:
        self.meter.top_up(self.meter.deposit + more)

    @rule()
    def settle(self) -> None:
        if self.meter.claimable.covers(self.settlements[-1]):
            self.settlements.append(self.meter.claimable)

    @rule()
    def restart(self) -> None:
        was, self.prompts = self.meter, []
        self.meter = JobMeter(
            was.prices,
            was.deposit,
            was.interval,
            asked=self.asked,
            attested=was.attested,
            gross=was.gross,
            acknowledged=was.acknowledged,
            receipted=was.receipted,
            written_off=was.written_off,
        )
        assert (self.meter.counted, self.meter.claimable) == (was.counted, was.claimable)

    @invariant()
    def law_3_one_credit_over_all_streams(self) -> None:
        if not self.meter.attested:
            exposed = self.meter.counted + Totals(sum(self.prompts), 0)
            claimable = exposed.lower(self.meter.receipted)
            risk = pricing.lower(self.meter.prices, self.asked or self.meter.prices)
            unclaimable = pricing.value(exposed, risk) - pricing.value(claimable, risk)
            assert unclaimable <= self.meter.interval * risk.per_million

    @invariant()
    def law_4_never_past_the_deposit(self) -> None:
        exposed = self.meter.counted + Totals(sum(self.prompts), 0)
        assert pricing.owed(exposed, self.meter.prices) <= self.meter.deposit
        assert self.meter.left == self.meter.deposit - pricing.owed(self.meter.counted, self.meter.prices)

    @invariant()
    def law_5_only_what_was_signed_and_served_is_claimed(self) -> None:
        assert self.meter.counted.covers(self.meter.claimable)
        assert self.meter.attested or self.meter.receipted.covers(self.meter.claimable)
        assert self.meter.counted.covers(self.meter.acknowledged)

    @invariant()
    def one_credit_is_written_off_at_most(self) -> None:
        assert pricing.value(self.meter.written_off, self.meter.risk) <= self.meter.credit

    @invariant()
    def room_and_its_reason_agree(self) -> None:
        assert (self.meter.stop() is None) == (self.meter.room() > 0)
        assert self.meter.reserved == sum(self.prompts)

    def teardown(self) -> None:
        """Law 2: however it was settled, what was paid is what the last settlement is worth."""
        if hasattr(self, "meter"):
            prices = self.meter.prices
            steps = [pricing.split(before, after, prices) for before, after in pairwise(self.settlements)]
            whole = pricing.split(Totals(), self.settlements[-1], prices)
            assert sum(step.host for step in steps) == whole.host
            assert sum(step.fee for step in steps) == whole.fee


TestJob = Job.TestCase
TestJob.settings = settings(deadline=None, max_examples=60, stateful_step_count=30)


# Credit


def test_law_3_a_fresh_job_may_deliver_one_interval() -> None:
    """Law 3: without a receipt one interval of generated tokens is delivered, and not one more."""
    job = meter()
    assert job.room() == 100
    job.count(0, 100)
    assert job.room() == 0
    assert job.stop() is Stop.CREDIT


def test_law_3_prompts_use_the_credit_at_their_price() -> None:
    """Law 3: once 12 prompt tokens at 200 000 are reserved, there is room for 97 tokens at 900 000."""
    job = meter()
    assert job.reserve(12) is Fit.FITS
    assert job.room() == 97
    job.count(12, 1)
    assert job.room() == 96


def test_law_3_streams_share_one_interval() -> None:
    """Law 3: a second stream is not granted an interval of its own."""
    job = meter()
    for _ in range(3):
        assert job.reserve(12) is Fit.FITS
    job.count(12, 40)
    job.count(12, 40)
    assert job.room() == 12
    assert job.reserve(60) is Fit.NEEDS_RECEIPT


def test_law_3_a_receipt_gives_back_what_it_signs() -> None:
    """Law 3: what was signed is no risk any more, and its room is there again."""
    job = meter()
    job.count(0, 100)
    job.receipt(Totals(0, 75), Totals(0, 75))
    assert job.room() == 75
    job.receipt(Totals(0, 150), Totals(0, 100))
    assert job.room() == 150


def test_law_3_a_prompt_signed_ahead_pays_for_no_tokens() -> None:
    """Law 3: who signs for 5 000 000 prompt tokens and asks for none gets one interval, as anybody does."""
    job = meter()
    job.receipt(Totals(5_000_000, 0), Totals())
    assert job.room() == 100
    job.count(0, 100)
    assert (job.room(), job.stop(), job.claimable) == (0, Stop.CREDIT, Totals())


def test_law_3_tokens_signed_ahead_pay_for_no_prompt() -> None:
    """Law 3: who signs for 1 000 000 tokens ahead still signs for a prompt beyond the credit."""
    job = meter()
    job.receipt(Totals(0, 1_000_000), Totals())
    assert job.room() == 1_000_100
    assert job.reserve(451) is Fit.NEEDS_RECEIPT
    assert job.reserve(450) is Fit.FITS
    assert job.room() == 1_000_000


def test_law_3_the_payer_does_not_choose_the_credit() -> None:
    """Law 3: a job that pays 10 000 times the host's price has the credit of one that pays what is asked."""
    job = JobMeter(Prices(9_000_000_000, 200_000), DEPOSIT, 100, asked=PRICES)
    assert job.room() == 100
    assert job.reserve(446) is Fit.NEEDS_RECEIPT
    assert job.reserve(445) is Fit.FITS
    assert job.room() == 1


def test_a_prompt_beyond_the_credit_is_signed_ahead() -> None:
    """Law 5: a prompt of 90 000 tokens is let in once it is signed for; that survives a failure."""
    job = meter()
    assert job.reserve(90_000) is Fit.NEEDS_RECEIPT
    assert job.to_sign(90_000) == Totals(90_000, 0)
    job.receipt(Totals(90_000, 0), Totals())
    assert job.reserve(90_000) is Fit.FITS
    assert job.claimable == Totals()
    job.release(90_000)
    assert job.reserve(90_000) is Fit.FITS
    job.count(90_000, 1)
    assert job.claimable == Totals(90_000, 0)


def test_a_prompt_signed_ahead_may_wait_for_receipts() -> None:
    """A long prompt that is signed for lacks only what other streams have used of the credit."""
    job = meter()
    job.count(0, 100)
    assert not job.fits_credit(90_000)
    job.receipt(Totals(90_000, 0), Totals())
    assert (job.reserve(90_000), job.fits_credit(90_000)) == (Fit.NEEDS_RECEIPT, True)
    job.receipt(Totals(90_000, 100), Totals(0, 100))
    assert job.reserve(90_000) is Fit.FITS


def test_a_prompt_and_one_token_have_to_fit_the_deposit() -> None:
    """Law 4: a deposit that pays for the prompt alone is too small, and no receipt mends that."""
    prices = Prices(MILLION, 200_000)
    assert meter(18_000, prices).reserve(90_000) is Fit.NO_DEPOSIT
    assert meter(18_001, prices).reserve(90_000) is Fit.NEEDS_RECEIPT


def test_free_tokens_are_served_without_end() -> None:
    """Law 3: generated tokens that cost nothing are no risk; a prompt that costs is signed for first."""
    job = meter(prices=Prices(0, 200_000))
    assert job.room() == MAX_TOKENS
    assert job.reserve(1) is Fit.NEEDS_RECEIPT
    job.receipt(job.to_sign(1), Totals())
    assert job.reserve(1) is Fit.FITS
    assert job.room() == MAX_TOKENS


# Deposit


def test_law_4_stops_at_the_last_affordable_token() -> None:
    """Law 4: a deposit of 9 base units ends at 11 tokens of 0.9, which owe 9.9; a top-up goes on."""
    job = meter(deposit=9)
    job.count(0, 11)
    assert (job.room(), job.stop(), job.left) == (0, Stop.DEPOSIT, 0)
    job.top_up(18)
    assert (job.room(), job.stop(), job.left) == (10, None, 9)


def test_law_4_the_deposit_is_named_before_the_credit() -> None:
    """Law 4: where both are used up the stream ends, as no receipt mends it."""
    job = meter(deposit=90, prices=Prices(MILLION, 0), interval=90)
    job.count(0, 90)
    assert job.stop() is Stop.DEPOSIT


def test_law_4_the_balance_is_low_at_a_fifth() -> None:
    """Law 4: with a fifth of the deposit left the balance is low, with one unit more it is not."""
    job = meter(deposit=100, prices=Prices(MILLION, 0))
    job.count(0, 79)
    assert (job.left, job.low) == (21, False)
    job.count(0, 1)
    assert (job.left, job.low) == (20, True)


def test_a_top_up_that_is_taken_back_leaves_nothing_negative() -> None:
    """Law 9: a reorganised chain may take a top-up back; nothing is left then, and nothing more is served."""
    job = meter(deposit=90)
    job.count(0, 100)
    job.top_up(45)
    assert (job.left, job.room(), job.stop()) == (0, 0, Stop.DEPOSIT)


# Counting


@pytest.mark.parametrize(("prompt_tokens", "tokens"), [(0, 101), (1, 1)])
def test_what_does_not_fit_is_not_counted(prompt_tokens: int, tokens: int) -> None:
    """Law 3: more than there is room for, or a prompt that was not let in, leaves no trace."""
    job = meter()
    with pytest.raises(ValueError, match=r"room|reserved"):
        job.count(prompt_tokens, tokens)
    assert (job.counted, job.room()) == (Totals(), 100)


def test_only_what_was_reserved_is_released() -> None:
    """A reservation is given back once."""
    job = meter()
    job.reserve(12)
    job.release(12)
    with pytest.raises(ValueError, match="never reserved"):
        job.release(1)


def test_checkpoints_are_offered_at_every_quarter() -> None:
    """A checkpoint is offered by the token that completes a quarter of the interval, over all streams."""
    job = meter()
    assert [n for n in range(1, 101) if job.count(0, 1)] == [25, 50, 75, 100]


@pytest.mark.parametrize(
    ("before", "after", "interval", "due"),
    [
        (0, 24, 100, False),
        (24, 26, 100, True),
        (25, 49, 100, False),
        (0, 1, 4, True),
        (0, 1, 3, True),
        (5, 5, 4, False),
    ],
)
def test_a_quarter_ends_between_two_counts(before: int, after: int, interval: int, due: bool) -> None:
    """A quarter is max(1, interval // 4) tokens of the job."""
    assert quarter(before, after, interval) is due


# Checkpoints


@pytest.mark.parametrize(
    ("before", "after", "due"),
    [
        (Totals(0, 0), Totals(0, 99), False),
        (Totals(0, 99), Totals(0, 100), True),
        (Totals(0, 100), Totals(0, 125), False),
        (Totals(0, 75), Totals(0, 312), True),
        (Totals(0, 0), Totals(449, 0), False),
        (Totals(0, 0), Totals(450, 0), True),
        (Totals(450, 0), Totals(899, 99), False),
    ],
)
def test_whole_intervals_are_settled(before: Totals, after: Totals, due: bool) -> None:
    """A whole interval of tokens, or of prompt tokens worth 90 base units, is a checkpoint to settle."""
    assert checkpoint(before, after, 100, PRICES) is due


@pytest.mark.parametrize(("prompt_price", "due"), [(1, True), (0, False)])
def test_any_prompt_that_costs_is_worth_more_than_free_tokens(prompt_price: int, due: bool) -> None:
    """Where tokens are free there is no credit to measure a prompt by: one that costs is settled."""
    assert checkpoint(Totals(0, 0), Totals(1, 0), 100, Prices(0, prompt_price)) is due


def test_the_first_receipt_at_or_past_a_whole_interval_is_settled() -> None:
    """Receipts at each quarter: the one at 100 and the first past 200 are settled, none else."""
    job, settled = meter(), []
    for tokens in (25, 50, 75, 100, 125, 175, 203, 225):
        job.count(0, tokens - job.counted.tokens)
        if job.receipt(Totals(0, tokens), Totals(0, tokens)):
            settled.append(tokens)
    assert settled == [100, 203]


def test_what_is_signed_ahead_completes_no_interval() -> None:
    """Law 5: what is signed past 100 is settled once 100 are acknowledged, a prompt once it is."""
    job = meter()
    job.count(0, 60)
    assert not job.receipt(Totals(90_000, 110), Totals(0, 60))
    job.reserve(90_000)
    job.count(90_000, 40)
    assert job.receipt(Totals(90_000, 150), Totals(0, 100))
    assert job.receipt(Totals(90_000, 151), Totals(90_000, 100))
    assert not job.receipt(Totals(90_000, 152), Totals(90_000, 100))


def test_law_5_what_is_signed_ahead_is_not_claimed_before_it_is_served() -> None:
    """Law 5: a receipt that signs 50 tokens ahead is a ceiling, and what was counted is the claim."""
    job = meter()
    job.count(0, 60)
    job.receipt(Totals(0, 110), Totals(0, 60))
    assert job.claimable == Totals(0, 60)
    job.count(0, 80)
    assert job.claimable == Totals(0, 110)


@pytest.mark.parametrize(
    ("totals", "acknowledged"),
    [
        (Totals(0, 49), Totals(0, 49)),
        (Totals(1, 49), Totals(0, 49)),
        (Totals(0, 60), Totals(0, 49)),
        (Totals(0, 60), Totals(0, 61)),
    ],
)
def test_law_1_a_stale_receipt_does_not_reach_the_account(totals: Totals, acknowledged: Totals) -> None:
    """Law 1: totals that go back, or that are below what they acknowledge, change nothing."""
    job = meter()
    job.count(0, 100)
    job.receipt(Totals(0, 50), Totals(0, 50))
    with pytest.raises(ValueError, match=r"stale|below"):
        job.receipt(totals, acknowledged)
    assert (job.receipted, job.acknowledged) == (Totals(0, 50), Totals(0, 50))


# Write-offs


def test_at_most_one_credit_is_written_off_in_a_jobs_life() -> None:
    """The second credit that nobody acknowledged stays in the count, and the job is to be completed."""
    job = meter()
    job.count(0, 80)
    assert job.write_off(Totals(0, 80))
    assert job.counted == Totals()
    job.count(0, 80)
    assert not job.write_off(Totals(0, 80))
    assert job.counted == Totals(0, 80)
    assert job.write_off(Totals(0, 20))


def test_only_what_nobody_acknowledged_is_written_off() -> None:
    """What the payer acknowledged is not the host's to forgo."""
    job = meter()
    job.count(0, 80)
    job.receipt(Totals(0, 60), Totals(0, 60))
    with pytest.raises(ValueError, match="not acknowledged"):
        job.write_off(Totals(0, 21))


def test_a_late_acknowledgement_undoes_a_write_off() -> None:
    """What was written off and is acknowledged after all counts, once, and so does what is delivered next."""
    job = meter()
    job.count(0, 80)
    job.write_off(Totals(0, 80))
    job.receipt(Totals(0, 50), Totals(0, 50))
    assert (job.counted, job.written_off) == (Totals(0, 50), Totals(0, 30))
    job.count(0, 10)
    assert job.counted == Totals(0, 60)


def test_the_count_is_never_below_what_was_acknowledged() -> None:
    """Law 7: a counter that lost tokens in a power cut is taken up at what the payer acknowledged."""
    job = JobMeter(
        PRICES, DEPOSIT, 100, gross=Totals(12, 90), acknowledged=Totals(12, 100), receipted=Totals(12, 100)
    )
    assert job.counted == job.claimable == Totals(12, 100)


# Host-attested jobs


def test_an_attested_job_is_bounded_by_deposit_and_rate() -> None:
    """A host-attested job knows no credit: the rate and the deposit alone bound it."""
    job = JobMeter(PRICES, 900, 100, attested=True)
    assert job.reserve(400) is Fit.FITS
    assert job.room() == 912
    assert job.room(rate_cap=500) == 100
    assert (job.room(rate_cap=400), job.stop(rate_cap=400)) == (0, Stop.RATE)
    assert job.room(rate_cap=399) == 0
    job.count(400, 912)
    assert (job.stop(), job.claimable) == (Stop.DEPOSIT, Totals(400, 912))


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_an_attested_claim_stays_within_its_rate(prompt_tokens: int, cap: int) -> None:
    """Both totals together never pass what the contract takes at the rate by now."""
    job = JobMeter(PRICES, DEPOSIT, 100, attested=True)
    assert job.reserve(prompt_tokens) is Fit.FITS
    room = job.room(rate_cap=cap)
    job.count(prompt_tokens, room)
    assert prompt_tokens + room <= max(cap, prompt_tokens)


# Served before it lies deep


def test_law_4_an_early_job_has_one_credit_in_all() -> None:
    """Whatever is signed, no more than one interval is delivered; what is signed counts once it is deep."""
    job = JobMeter(PRICES, DEPOSIT, INTERVAL, early=True)
    assert job.room() == INTERVAL
    job.count(0, 60)
    job.receipt(Totals(0, 60), Totals(0, 60))
    assert job.room() == INTERVAL - 60
    job.count(0, 40)
    job.receipt(Totals(0, 100), Totals(0, 100))
    assert (job.room(), job.stop()) == (0, Stop.DEPTH)
    assert job.reserve(10) is Fit.NEEDS_DEPTH
    job.confirm()
    assert (job.room(), job.stop()) == (INTERVAL, None)


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 150)), max_size=20), st.booleans(), st.booleans()
)
def test_law_4_no_more_than_a_credit_is_risked_early(
    asked: list[tuple[int, int]], signing: bool, attested: bool
) -> None:
    """Over all requests and prompts, attested or not: what was delivered is worth one credit at most."""
    job = JobMeter(PRICES, DEPOSIT, INTERVAL, early=True, attested=attested)
    for prompt_tokens, tokens in asked:
        if job.reserve(prompt_tokens) is Fit.FITS:
            job.count(prompt_tokens, min(tokens, job.room()))
        if signing and not attested:
            job.receipt(job.counted, job.counted)
    assert pricing.value(job.counted, PRICES) <= job.credit


def test_signed_ahead_does_not_help_an_early_job() -> None:
    """A payer that signs for more than it got gives the host nothing that a reorganisation leaves it."""
    job = JobMeter(PRICES, DEPOSIT, INTERVAL, early=True)
    job.receipt(Totals(1_000, 1_000), Totals())
    assert job.room() == INTERVAL
    assert job.reserve(1_000) is Fit.NEEDS_DEPTH


def test_prompts_leave_tokens_a_quarter_of_the_credit() -> None:
    """Several prompts at work leave room for tokens; one alone may have all of the credit."""
    job = meter()
    assert not job.crowds(400)
    assert job.reserve(200) is Fit.FITS
    assert not job.crowds(137)  # 337 of them are worth three quarters of 100 tokens
    assert job.crowds(138)
    job.receipt(Totals(200, 0), Totals())
    assert not job.crowds(138)  # what is signed for uses no credit


def test_room_beside_a_prompt_is_what_it_would_leave() -> None:
    """As if it had been let in before."""
    job, other = meter(), meter()
    other.reserve(200)
    assert job.room_beside(200) == other.room() < job.room() == job.room_beside(0)
