"""The evidence of a payer's jobs: gathered from store and chain, kept beside the store, held to a chain."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from tallystick import evidence
from tallystick.chain import Chain, deployment_at
from tallystick.config import rpc_urls
from tallystick.errors import (
    ChainError,
    ConfigError,
    LedgerError,
    ReceiptError,
    SessionError,
    WrongChain,
)
from tallystick.evidence import Evidence
from tallystick.store import Store, StoredJob
from tallystick.types import Check

log = structlog.get_logger(__name__)


async def gather(chain: Chain, store: Store, stored: StoredJob) -> bytes:
    """The evidence of a job as it stands now. ChainError; SessionError if the chain does not have the job."""
    job = None if stored.job_id is None else await chain.job(stored.job_id)
    if job is None or job.signer != stored.signer:
        raise SessionError(f"job {stored.job_id} is not on this chain")
    settlements = await chain.settlements(job.id)
    completion = await chain.completion(job.id)
    receipts = await asyncio.to_thread(store.receipts, stored.signer)
    return evidence.document(stored, job, receipts, settlements, completion)


async def keep(chain: Chain, store: Store, stored: StoredJob) -> Path | None:
    """Writes the evidence of a job that is over. None, and a warning, where that has to be done later."""
    try:
        content = await gather(chain, store, stored)
        return await asyncio.to_thread(store.keep, place(store, stored).name, content)
    except (ChainError, LedgerError, SessionError) as error:
        mend = f"tally job evidence {stored.job_id}"
        log.warning("evidence.not_kept", job=stored.job_id, cause=str(error), mend=mend)
        return None


def place(store: Store, stored: StoredJob) -> Path:
    """Where the evidence of a job of the store is kept, once the job is over."""
    name = f"job-{stored.chain_id}-{stored.contract[2:10].lower()}-{stored.job_id}.json"
    return store.path.parent / "evidence" / name


def read(path: Path) -> Evidence:
    """A file of evidence. ConfigError if it cannot be read, or is none."""
    try:
        return Evidence(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ReceiptError as error:
        raise ConfigError(f"{path} is no evidence: {error}") from error


async def confirmed(read: Evidence, rpc_url: str) -> list[Check]:
    """What the chain at that endpoint says. ConfigError for no URL; raises what `confirm` raises."""
    try:
        url = rpc_urls(rpc_url)
    except ValueError as error:
        raise ConfigError(f"--rpc-url: {error}") from None
    async with Chain(url, await deployment_at(url)) as chain:
        return await confirm(read, chain)


async def confirm(read: Evidence, chain: Chain) -> list[Check]:
    """What the chain says to a file of evidence. WrongChain if it is of another chain or contract."""
    here = (chain.deployment.chain_id, chain.deployment.marketplace)
    if here != (read.form.chain_id, read.form.contract):
        raise WrongChain(f"the evidence is of {read.form.contract} on chain {read.form.chain_id}")
    job = await chain.job(read.job_id)
    settlements = [] if job is None else await chain.settlements(read.job_id)
    completion = None if job is None else await chain.completion(read.job_id)
    return evidence.against(read, job, settlements, completion)
