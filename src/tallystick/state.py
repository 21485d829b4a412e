"""A job as the chain tells it: the words of `getJob`, with what only the event of its opening has.

An id names another job once a reorganisation has undone the opening, so a state is held against the job or
the opening that is known. Rules only. Units are those of types.Job.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from eth_utils.address import to_checksum_address

from tallystick.contracts import Created
from tallystick.types import Address, Job, JobId, JobStatus, Prices, Totals


class _Parties(NamedTuple):
    """Who a job is between, and in what: by these it is told from another that has its id on another fork."""

    payer: Address
    host: Address
    asset: Address
    signer: Address


def of(opening: Created, state: Mapping[str, int]) -> Job:
    """The job of an opening in a state that is its own."""
    return _job(_parties(state), opening.job_id, opening.checkpoint_interval, opening.model_id, state)


def opened(opening: Created, state: Mapping[str, int]) -> Job | None:
    """The job of that opening; None if the chain tells of another job, or of none."""
    parties = _parties(state)
    if (parties.payer, parties.host, parties.signer) != (opening.payer, opening.host, opening.signer):
        return None
    return _job(parties, opening.job_id, opening.checkpoint_interval, opening.model_id, state)


def moved_on(known: Job, state: Mapping[str, int]) -> Job | None:
    """A known job in the state that the chain tells; None if that is of another job, or of none."""
    parties = _Parties(known.payer, known.host, known.asset, known.signer)
    # As numbers: the checksums of ten thousand jobs take seconds.
    if [state[name] for name in _Parties._fields] != [int(each, 16) for each in parties]:
        return None
    return _job(parties, known.id, known.interval, known.model_id, state)


def _parties(state: Mapping[str, int]) -> _Parties:
    words = (state[name] for name in _Parties._fields)
    return _Parties(*map(_address, words))


# The checksum is most of what reading a job costs, and the parties come back with every reading.
@lru_cache(maxsize=4096)
def _address(word: int) -> Address:
    return Address(to_checksum_address(f"0x{word:040x}"))


def _job(parties: _Parties, job_id: JobId, interval: int, model_id: bytes, state: Mapping[str, int]) -> Job:
    return Job(
        id=job_id,
        payer=parties.payer,
        host=parties.host,
        asset=parties.asset,
        signer=parties.signer,
        deposit=state["deposit"],
        prices=Prices(state["pricePerMillion"], state["promptPricePerMillion"]),
        max_tokens_per_second=state["maxTokensPerSecond"],
        claim_window=state["claimWindow"],
        created_at=state["createdAt"],
        expires_at=state["expiresAt"],
        asked_at=state["askedAt"],
        closes_at=state["closesAt"],
        settled=Totals(state["promptTokens"], state["tokens"]),
        owed=state["owed"],
        fee=state["fee"],
        status=JobStatus(state["status"]),
        interval=interval,
        model_id=model_id,
    )
