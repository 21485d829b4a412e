"""Models with one mistake each, as a sure hand makes them. A campaign has to find every one."""

from __future__ import annotations

from tallystick import pricing
from tallystick.pricing import Payment
from tallystick.types import Address, Terms, Totals
from tests.differential.authorization import Authorization
from tests.differential.model import Job, Model, Refused
from tests.differential.parties import MARKETPLACE


class FeeOfEachCheckpoint(Model):
    """The fee is a tenth of each payment, not of what the totals are worth."""

    def split(self, job: Job, claimed: Totals) -> Payment:
        owed = super().split(job, claimed).owed
        return Payment(owed, owed - pricing.fee(owed), pricing.fee(owed))


class OwedForEachCheckpoint(Model):
    """What is owed is rounded down at each checkpoint, not on the totals."""

    def split(self, job: Job, claimed: Totals) -> Payment:
        return pricing.split(Totals(), claimed - job.settled, job.prices)


class RestMinusOne(Model):
    """One base unit of the rest stays behind."""

    def rest(self, job: Job) -> int:
        return max(0, super().rest(job) - 1)


class ClosesASecondLate(Model):
    """A job can be reclaimed after `closesAt`, not at it."""

    def closes_at(self, job: Job) -> int:
        return super().closes_at(job) + 1


class ClosesAWindowAfterExpiry(Model):
    """Asking to complete does not bring the end nearer."""

    def closes_at(self, job: Job) -> int:
        return job.terms.expires_at + job.terms.claim_window


class StaleInBoth(Model):
    """A claim is stale only if both totals are lower."""

    def is_stale(self, job: Job, claimed: Totals) -> bool:
        return claimed.prompt_tokens < job.settled.prompt_tokens and claimed.tokens < job.settled.tokens

    def split(self, job: Job, claimed: Totals) -> Payment:
        before, after = pricing.owed(job.settled, job.prices), pricing.owed(claimed, job.prices)
        part = pricing.fee(after) - pricing.fee(before)
        return Payment(after - before, after - before - part, part)


class EqualIsStale(Model):
    """A claim of what is settled already is an error."""

    def is_stale(self, job: Job, claimed: Totals) -> bool:
        return claimed == job.settled or super().is_stale(job, claimed)


class RateWithoutPrompts(Model):
    """The rate of a host-attested job does not count prompts."""

    def attested(self, claimed: Totals) -> int:
        return claimed.tokens


class RateBelowTheMost(Model):
    """The last token that the rate allows is one too many."""

    def most(self, job: Job) -> int:
        return super().most(job) - 1


class RateAfterTheEnd(Model):
    """The rate runs on after the job has ended."""

    def most(self, job: Job) -> int:
        return job.terms.max_tokens_per_second * (self.now - job.created_at)


class ExpiryASecondLate(Model):
    """A job can still be topped up at its expiry."""

    def is_expired(self, job: Job) -> bool:
        return self.now > job.terms.expires_at


class RelayFeeInTheDeposit(Model):
    """The relay fee is the job's too."""

    def _open(self, payer: Address, terms: Terms, deposit: int) -> Job:
        return super()._open(payer, terms, terms.deposit)


class AuthorizationForEver(Model):
    """An authorization can be brought again."""

    def _pull_authorized(self, asset: Address, amount: int, nonce: bytes, auth: Authorization) -> None:
        self._move(auth.payer, MARKETPLACE, asset, amount)


class BadRowRevertsTheBatch(Model):
    """A row that is refused takes the others with it."""

    def _skip(self, job_id: int, refusal: Refused) -> None:
        raise refusal


class RefundsToThePayout(Model):
    """What was refunded to a host as a payer goes to its payout address."""

    def pays_refunds(self, owner: Address, payout: Address) -> bool:
        return True


MISTAKES: tuple[type[Model], ...] = (
    FeeOfEachCheckpoint,
    OwedForEachCheckpoint,
    RestMinusOne,
    ClosesASecondLate,
    ClosesAWindowAfterExpiry,
    StaleInBoth,
    EqualIsStale,
    RateWithoutPrompts,
    RateBelowTheMost,
    RateAfterTheEnd,
    ExpiryASecondLate,
    RelayFeeInTheDeposit,
    AuthorizationForEver,
    BadRowRevertsTheBatch,
    RefundsToThePayout,
)
