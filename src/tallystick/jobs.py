"""`tally job …`: what a payer does with its jobs beside talking. Each function returns what there is to tell.

Works from the payer's store and the chain; the host is asked only where it has a say. Money is in base units.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import Any

import aiohttp

from tallystick import archive, discovery, outgoing, proof, ranking, wallet
from tallystick.chain import Chain
from tallystick.config import BEARER_MAX
from tallystick.contracts import CompletionRequested
from tallystick.discovery import Offer
from tallystick.errors import ConfigError, SessionError
from tallystick.record import Record
from tallystick.session import Session
from tallystick.store import StoredJob
from tallystick.types import Address, Completion, Job, JobId, JobStatus, Settlement, Totals
from tallystick.wallet import Say, Wallet

HOUR = 3600
PATIENCE = 5.0
"""Seconds that a host has to tell its view in."""


async def open_(
    host: str | None, wishes: dict[str, Any], say: Say, interval: int | None = None
) -> tuple[str, dict[str, Any]]:
    """Opens a job with a host. What to say of it, and its facts; `say` is told what comes before."""
    async with wallet.opened(interval=interval) as purse:
        session = await purse.open(purse.host_url(host), purse.wishes(**wishes), say)
        return wallet.describe(purse, session.job), facts(session.job)


async def list_(*, ended: bool) -> list[dict[str, Any]]:
    """The jobs of the store, oldest first, each with what the chain says of it."""
    async with wallet.opened() as purse:
        return [_listed(purse, stored, job) for stored, job in await purse.jobs(ended=ended)]


def _listed(purse: Wallet, stored: StoredJob, job: Job | None) -> dict[str, Any]:
    known = {"job_id": stored.job_id, "host_url": stored.host_url, "model": stored.model}
    if job is None:
        return {**known, "status": "not on this chain"}
    left = wallet.money(purse.chain, job.asset, job.deposit - job.owed)
    return {**known, "status": job.status.name.lower(), "settled": totals(job.settled), "unsettled": left}


async def show(number: int) -> dict[str, Any]:
    """A job as the chain has it, with what was settled, and as its host has it if that can be asked."""
    job_id = JobId(number)
    async with wallet.opened() as purse:
        job = await purse.job(job_id)
        settlements = await purse.chain.settlements(job_id)
        completion = await purse.chain.completion(job_id)
        return {
            **facts(job),
            "settlements": [_settlement(each) for each in settlements],
            "completion": completion and _completed(completion),
            "host_view": await _host_view(purse, job),
        }


async def top_up(number: int, amount: str) -> dict[str, Any]:
    """Adds to a job's deposit: `amount` in whole units of its asset."""
    async with wallet.opened() as purse:
        job = await purse.job(JobId(number))
        if job.status is JobStatus.CLOSED:
            raise SessionError(f"job {number} is closed: open another with `tally job open`")
        topped = await purse.top_up(job, purse.units(amount, job.asset, "AMOUNT"))
        return {
            "job_id": number,
            "asset": job.asset,
            "amount": topped.amount,
            "deposit": topped.deposit,
            "tx": topped.tx,
        }


async def complete(number: int, say: Say) -> dict[str, Any]:
    """Has the host settle the last checkpoint and give the rest back; a job that is closed stays as it is."""
    async with wallet.opened() as purse:
        session = await purse.resume(JobId(number))
        completion = await purse.chain.completion(session.job.id)
        if completion is not None:
            await asyncio.to_thread(purse.store.end, session.job.signer)
        return _completed(completion or await _ended(session, say))


async def _ended(session: Session, say: Say) -> Completion:
    past = f"tally job complete {session.job.id} --on-chain"
    try:
        async with session:
            say(
                f"waiting for {session.host_url} to settle the last tokens and see that confirmed; up to 60 s"
            )
            return await session.complete()
    except SessionError as error:
        if past in str(error):
            raise
        raise SessionError(f"{str(error).rstrip('.')}. Past the host: {past}") from error


async def complete_on_chain(number: int) -> dict[str, Any]:
    """Asks on chain, past a host that does not answer; from `closes_at` on the rest can be reclaimed."""
    async with wallet.opened() as purse:
        result = await purse.transact(purse.chain.complete_session(JobId(number)))
        asked = next(event for event in result.events if isinstance(event, CompletionRequested))
        return {"job_id": number, "closes_at": asked.closes_at, "tx": result.hash}


async def reclaim(number: int) -> dict[str, Any]:
    """Takes the rest of a job back. Raises what `Wallet.reclaim` raises."""
    async with wallet.opened() as purse:
        return _completed(await purse.reclaim(await purse.job(JobId(number))))


async def hosts(model: str | None, asset: str | None) -> dict[str, Any]:
    """What registered hosts sell in an asset, cheapest first, each with this payer's own record of it.

    And who cannot be used, and why.
    """
    async with wallet.opened() as purse:
        chain, paid_in = purse.chain, purse.asset(asset)
        found = await discovery.listings(chain)
        records = await asyncio.to_thread(purse.store.records, chain.deployment.chain_id)
        return {
            "offers": [
                _offered(chain, offer, paid_in, records.get(offer.listing.host, Record(offer.listing.host)))
                for offer in discovery.offers(found, paid_in, model)
            ],
            "unusable": [
                {"host": each.host, "endpoint": each.endpoint, "trouble": each.trouble}
                for each in found
                if each.quote is None
            ],
        }


def _offered(chain: Chain, offer: Offer, asset: Address, record: Record) -> dict[str, Any]:
    return {
        "model": offer.model,
        "price": wallet.money(chain, asset, offer.prices.per_million),
        "prompt_price": wallet.money(chain, asset, offer.prices.prompt_per_million),
        "endpoint": offer.listing.endpoint,
        "host": offer.listing.host,
        "record": asdict(record),
        "told": ranking.told(record, time.time()),
    }


async def evidence(number: int) -> bytes:
    """What `tally verify` checks: a job of the store with all that was signed and settled."""
    async with wallet.opened() as purse:
        stored = purse.stored(JobId(number))
        if stored is None:
            raise SessionError(f"the session key of job {number} is not in {purse.store.path}")
        return await archive.gather(purse.chain, purse.store, stored)


async def token(number: int, hours: float | None) -> str:
    """A bearer for a job of the store, good for so many hours of the chain's clock."""
    async with wallet.opened() as purse:
        wanted = purse.config.bearer if hours is None else hours * HOUR
        if not 1 <= wanted <= BEARER_MAX:  # nor is it, if it is no number
            raise ConfigError(f"--hours: a bearer is good for a second to {BEARER_MAX // HOUR} h")
        session = await purse.resume(JobId(number))
        return await _bearer(purse, session, int(wanted))


def facts(job: Job) -> dict[str, Any]:
    """A job as the chain has it."""
    return {
        "job_id": job.id,
        "status": job.status.name.lower(),
        "payer": job.payer,
        "host": job.host,
        "signer": job.signer,
        "asset": job.asset,
        "deposit": job.deposit,
        "owed": job.owed,
        "treasury": job.fee,
        "unsettled": job.deposit - job.owed,
        "settled": totals(job.settled),
        "price_per_million": job.prices.per_million,
        "prompt_price_per_million": job.prices.prompt_per_million,
        "interval": job.interval,
        "max_tokens_per_second": job.max_tokens_per_second,
        "expires_at": job.expires_at,
        "closes_at": job.closes_at,
    }


def totals(of: Totals) -> dict[str, int]:
    """Both totals by name."""
    return {"prompt_tokens": of.prompt_tokens, "tokens": of.tokens}


def _settlement(of: Settlement) -> dict[str, Any]:
    """What one settlement paid, and where."""
    return {**totals(of.totals), "host": of.host_amount, "treasury": of.fee, "tx": of.tx}


def _completed(completion: Completion) -> dict[str, Any]:
    """How a job was closed."""
    return {
        "job_id": completion.job_id,
        "owed": completion.owed,
        "treasury": completion.fee,
        "refund": completion.refund,
        "tx": completion.tx,
    }


async def _bearer(purse: Wallet, session: Session, seconds: int) -> str:
    return session.bearer((await purse.chain.block()).timestamp + seconds)


async def _host_view(purse: Wallet, job: Job) -> dict[str, Any] | str:
    """What the host counts, or why that cannot be told."""
    stored = purse.stored(job.id)
    if stored is None or stored.signer != job.signer:
        return "its session key is not in this store"
    domain = proof.Domain(stored.chain_id, stored.contract)
    expires_at = (await purse.chain.block()).timestamp + HOUR
    headers = {"Authorization": f"Bearer {proof.make_bearer(domain, job.id, expires_at, stored.key)}"}
    try:
        limit = aiohttp.ClientTimeout(total=PATIENCE)
        async with (
            outgoing.client(limit, found_on=stored.found_on, headers=headers) as http,
            http.get(f"{stored.host_url}/v1/jobs/{job.id}") as answer,
        ):
            view = await answer.json(content_type=None)
            return dict(view) if answer.status == 200 else str(view.get("detail"))
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, AttributeError) as error:
        return f"{stored.host_url} does not answer: {error}"
