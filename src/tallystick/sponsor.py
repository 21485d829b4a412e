"""What the host sends for payers without ETH: openings and top-ups that they have authorized (protocol §7).

    terms, fee, limit, budget -> asked of the chain -> in the ledger -> sent, once for each authorization

What the chain would not take is not sent, so it costs nothing. What it takes may still be undone by its payer
in the meantime: that costs the gas of a revert, and counts against the payer's limit and the day's budget.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from tallystick import admission, fees, pricing, proof
from tallystick.admission import Facts, Offer, first_refusal
from tallystick.authorization import Opening, Purpose, TopUp
from tallystick.chain import Chain
from tallystick.config import DAY
from tallystick.contracts import Created
from tallystick.errors import ContractError, Elsewhere, Refusal
from tallystick.fees import Fees, Market
from tallystick.ledger import Ledger
from tallystick.lookout import Lookout
from tallystick.quote import Promises
from tallystick.sender import Sender, limit_of
from tallystick.tables import IN_FLIGHT, Errand, Sent
from tallystick.types import Address, Authorization, Job, JobId, JobStatus, Terms, Totals

MARGIN = 60
"""Seconds that an authorization has to be good still when it is sent."""
JOB = (admission.unknown, admission.another_host, admission.closed, admission.completing)
"""What a job has to pass to be topped up."""

log = structlog.get_logger(__name__)

Checks = Callable[[int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Allowance:
    """What may be sent for payers on a day of the chain's clock, UTC."""

    budget: int
    """Wei, for gas."""
    per_payer: int
    """Openings and top-ups together."""

    def check_payer(self, payer: Address, today: Iterable[Sent]) -> None:
        """Refusal `relay_limit`. What reverted counts as well."""
        number = sum(sent.errand.payer == payer for sent in today)
        if number >= self.per_payer:
            raise Refusal("relay_limit", f"{number} were sent for {payer} today; that is the limit.")

    def check_budget(self, cost: int, today: Iterable[Sent]) -> None:
        """Refusal `relay_budget_spent` for what may cost so many wei."""
        spent = sum(sent.at_most for sent in today)
        if spent + cost > self.budget:
            raise Refusal(
                "relay_budget_spent",
                f"It may cost {cost} wei; {max(0, self.budget - spent)} of {self.budget} are left today.",
            )


class Sponsor:
    """Sends for payers, by the key of the host. `dollar`: the one asset that it takes its fee in."""

    def __init__(
        self,
        chain: Chain,
        ledger: Ledger,
        sender: Sender,
        lookout: Lookout,
        promises: Promises,
        allowance: Allowance,
    ) -> None:
        deployment = chain.deployment
        self._chain = chain
        self._ledger = ledger
        self._sender = sender
        self._lookout = lookout
        self._promises = promises
        self._allowance = allowance
        self._dollar = deployment.dollar
        self._domain = proof.Domain(deployment.chain_id, deployment.marketplace)
        self._turn = asyncio.Lock()
        """One at a time: what is left of limit and budget is known before the next."""

    async def open(self, opening: Opening, auth: Authorization) -> dict[str, Any]:
        """Opens a job for its payer: the answer of protocol §7. The same again has what was sent before.

        Refusal for what is not on the host's terms, over a limit, or not taken by the chain.
        """
        check = partial(self._check_opening, opening, auth.payer)
        return await self._answer(await self._send(opening, auth, check))

    async def top_up(self, job_id: JobId, amount: int, salt: bytes, auth: Authorization) -> dict[str, Any]:
        """Tops a job up for its payer, likewise."""
        top_up = TopUp(job_id, self._dollar, amount, salt)
        return await self._answer(await self._send(top_up, auth, partial(self._check_top_up, top_up)))

    # What is asked

    async def _check_opening(self, opening: Opening, payer: Address, now: int) -> None:
        served = await self._ledger.job_of(opening.terms.signer)
        if served is not None:
            raise Refusal("signer_reused", f"The job's signer already served job {served} here.")
        job = job_of(opening.terms, payer, now)
        offers = self._promises.standing(now)
        refusals = [opening_refusal(opening, job, offer, now, self._dollar) for offer in offers]
        if None not in refusals:
            raise next(filter(None, refusals))
        _check_deposit(job.deposit - opening.relay_fee, job)

    async def _check_top_up(self, top_up: TopUp, now: int) -> None:
        offer = next(self._promises.standing(now))
        sight = await self._lookout.job(top_up.job_id)
        job = sight.newest
        refusal = first_refusal(JOB, Facts(offer=offer, now=now, job=job, newest=job))
        if refusal is not None:
            raise refusal
        assert job is not None
        if not offer.relay_fee or job.asset != self._dollar:
            raise Refusal("not_relayed")
        _check_deposit(top_up.amount, job)
        await self._check_earned(job, offer.relay_fee)

    async def _check_earned(self, job: Job, relay_fee: int) -> None:
        """The contract pays nobody for sending a top-up, so the job has to have earned what it costs."""
        row = await self._ledger.job(job.id)
        signed = row.claimable if row is not None else job.settled
        earned = pricing.split(Totals(), signed, job.prices).host
        needed = relay_fee * (1 + len(await self._ledger.errands_of(job.id)))
        if earned < needed:
            raise Refusal(
                "top_up_not_earned", f"The job has earned its host {earned} base units; it takes {needed}."
            )

    # Sending

    async def _send(self, purpose: Purpose, auth: Authorization, check: Checks) -> Sent:
        """What was sent with this authorization, now or before."""
        nonce = purpose.nonce(self._domain)
        # Another process of the host may have sent it, which need not be asked.
        sent = await self._ledger.errand(auth.payer, nonce)
        if sent is not None:
            return sent
        await self._refuse_elsewhere()
        async with self._turn:
            sent = await self._ledger.errand(auth.payer, nonce)
            if sent is not None:
                return sent
            now = await self._lookout.now()
            await check(now)
            job_id = purpose.job_id if isinstance(purpose, TopUp) else None
            return await self._submit(purpose, auth, Errand(auth.payer, nonce, now, job_id))

    async def _refuse_elsewhere(self) -> None:
        owner = await self._ledger.sender_elsewhere(self._sender.address)
        if owner is not None:
            raise Elsewhere(None, owner.address, owner.seconds)

    async def _submit(self, purpose: Purpose, auth: Authorization, errand: Errand) -> Sent:
        _check_time(auth, errand.at)
        today = await self._today(errand.at)
        self._allowance.check_payer(auth.payer, today)
        call = self._chain.authorized(purpose, auth)
        try:
            gas = limit_of(await self._chain.estimate_gas(call, self._sender.address))
            cost = gas * (await self._fees()).max_fee + await self._chain.data_fee(call.data)
            self._allowance.check_budget(cost, today)
            await self._check_funds(cost)
            sent = await self._sender.submit(call, "for a payer", gas=gas, errand=errand)
        except ContractError as error:
            raise _reverts(error) from error
        told = {"payer": errand.payer, "tx": sent.newest.hash, "at_most": cost, "unit": "wei"}
        log.info("opening.sent" if errand.job_id is None else "top_up.sent", **told)
        return Sent(errand, sent, None)

    async def _fees(self) -> Fees:
        head = await self._chain.block()
        return fees.opening(Market(head.base_fee, await self._chain.priority_fee()), self._sender.ceiling)

    async def _check_funds(self, cost: int) -> None:
        if self._sender.starving or await self._chain.eth_balance(self._sender.address) < cost:
            raise Refusal("relay_no_gas")

    async def _today(self, now: int) -> list[Sent]:
        """All that was sent on this day, each with what it has cost, once that is final."""
        sent = await self._ledger.errands_since(now - now % DAY)
        return [await self._with_cost(each) for each in sent]

    async def _with_cost(self, sent: Sent) -> Sent:
        transaction = sent.transaction
        if sent.cost is not None or transaction.state in IN_FLIGHT:
            return sent
        result = await self._chain.result(sent.tx)
        cost = result.cost if result is not None else 0
        await self._ledger.errand_cost(sent, cost)
        return Sent(sent.errand, transaction, cost)

    async def _answer(self, sent: Sent) -> dict[str, Any]:
        """As it goes over the wire; the job that was opened is told once the transaction is in a block."""
        return {
            "tx": sent.tx,
            "state": sent.transaction.state.value,
            "job_id": sent.errand.job_id or await self._opened(sent),
        }

    async def _opened(self, sent: Sent) -> JobId | None:
        result = await self._chain.result(sent.tx)
        events = result.events if result is not None else ()
        return next((event.job_id for event in events if isinstance(event, Created)), None)


# Rules


def job_of(terms: Terms, payer: Address, now: int) -> Job:
    """The job that an opening would bring, as yet without a number."""
    return Job(
        id=JobId(0),
        payer=payer,
        host=terms.host,
        asset=terms.asset,
        signer=terms.signer,
        deposit=terms.deposit,
        prices=terms.prices,
        max_tokens_per_second=terms.max_tokens_per_second,
        claim_window=terms.claim_window,
        created_at=now,
        expires_at=terms.expires_at,
        asked_at=0,
        closes_at=terms.expires_at + terms.claim_window,
        settled=Totals(),
        owed=0,
        fee=0,
        status=JobStatus.OPEN,
        interval=terms.checkpoint_interval,
        model_id=terms.model_id,
    )


def opening_refusal(opening: Opening, job: Job, offer: Offer, now: int, dollar: Address) -> Refusal | None:
    """Why a host with that offer does not send the opening of that job; None: it does."""
    if not offer.relay_fee or opening.terms.asset != dollar:
        return Refusal("not_relayed")
    named = (model.name for model in offer.models if proof.model_id(model.name) == job.model_id)
    facts = Facts(offer=offer, now=now, job=job, newest=job, model=next(named, None))
    refusal = first_refusal((admission.not_set_up, admission.another_host, *admission.TERMS), facts)
    if refusal is not None:
        return refusal
    if opening.relay_fee < offer.relay_fee:
        asked = f"{opening.relay_fee} base units are offered; this host asks {offer.relay_fee}."
        return Refusal("relay_fee_too_low", asked, terms=offer.terms())
    return None


def _check_deposit(units: int, job: Job) -> None:
    """Refusal `deposit_too_low` for less than one interval of the job costs."""
    least = max(1, pricing.at_risk(job.interval, job.prices))
    if units < least:
        raise Refusal("deposit_too_low", f"{units} base units would be in escrow; the least is {least}.")


def _check_time(auth: Authorization, now: int) -> None:
    if auth.valid_before < now + MARGIN:
        left = auth.valid_before - now
        raise Refusal("authorization_runs_out", f"It is good for {left} s; {MARGIN} s is the least.")


def _reverts(error: ContractError) -> Refusal:
    """Told by the contract's name for it, with its values as text."""
    values = {name: _text(value) for name, value in error.values.items()}
    return Refusal("authorization_reverts", f"The chain answers {error}.", error=error.name, values=values)


def _text(value: Any) -> str:
    return "0x" + value.hex() if isinstance(value, bytes) else str(value)
