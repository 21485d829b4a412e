"""The ledger's statements over jobs, their receipts and positions: one function, one thing that happened.

Each runs on the connection that it is given, in the caller's transaction, and may be run again after a
rollback. Totals only grow here, but for what a reorganised chain takes back. Knows no thread, chain or
clock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
from msgspec.structs import replace
from sqlalchemy import (
    Connection,
    Insert,
    Select,
    Update,
    and_,
    bindparam,
    delete,
    exists,
    insert,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.engine import RowMapping

from tallystick import database, leases, pricing
from tallystick.counter import Record
from tallystick.errors import LedgerError, Refusal
from tallystick.leases import Hold, Owner
from tallystick.tables import (
    Counts,
    JobRow,
    claims,
    counts_in,
    identity,
    job_out,
    job_row,
    jobs,
    positions,
    processes,
    receipt_in,
    receipt_out,
    receipts,
    totals_in,
    totals_out,
)
from tallystick.types import Address, Completion, Job, JobId, Receipt, RequestId, Settlement, Standing, Totals

EXPIRY_MARGIN = 60
"""Seconds before a job expires from when on all that is claimable is due."""

NOTHING = Totals()


@dataclass(frozen=True, slots=True)
class DueRow:
    """A claim to be carried to the chain. `receipt` supports it; an attested or an equal claim needs none."""

    row: JobRow
    totals: Totals
    receipt: Receipt | None
    complete: bool
    """Close the job with it."""


class Arrived(msgspec.Struct, frozen=True):
    """A receipt to be stored, and by what right."""

    hold: Hold
    receipt: Receipt
    acknowledged: Totals
    """What all positions of the job add up to with it."""
    gross: Totals
    """The gross count of the job's slot."""
    due: bool
    """What it lets the host claim is to be settled."""


@dataclass(frozen=True, slots=True)
class Outstanding:
    """What is to be settled of a job, in short: of very many jobs, this much is held in memory."""

    job_id: JobId
    host: Address
    asset: Address
    amount: int
    """The host's part of it, in base units."""
    complete: bool
    """Close the job with it."""
    must: bool
    """Waiting may lose it, or keeps the payer waiting."""
    ending: bool
    """The session was ended here."""
    owner: str | None
    """The process that serves the job, or did."""
    elsewhere: bool
    """Another process serves it now."""


def due_row(row: JobRow, now: int, *, whole: bool = False) -> DueRow | None:
    """What is to be settled of a job at the chain's time `now`; None if nothing is.

    `whole`: all that is claimable; otherwise what whole intervals let the host claim, and all of it only when
    the job is over or about to expire.
    """
    if row.closed:
        return None
    closing = _is_over(row, now)
    if whole or closing or _expires(row, now):
        totals, receipt = row.claimable, row.receipted
    else:
        totals, receipt = row.due, row.due_receipt
    if totals.against(row.settled) is Standing.AHEAD:
        return DueRow(row, totals, receipt, closing)
    return DueRow(row, row.settled, None, True) if closing else None


def _is_over(row: JobRow, now: int) -> bool:
    return row.ending or row.job.asked_at > 0 or row.job.expires_at <= now


def _expires(row: JobRow, now: int) -> bool:
    return row.job.expires_at <= now + EXPIRY_MARGIN


def bind(connection: Connection, name: str) -> None:
    """The chain and contracts that the ledger is for; LedgerError if it is for others."""
    known = connection.execute(select(identity.c.identity)).scalar()
    if known is None:
        connection.execute(insert(identity), {"identity": name})
    elif known != name:
        raise LedgerError(f"the ledger belongs to {known}, not to {name}; use another data directory")


# Statements: built once, as that takes longer than running them

_receipt = receipts.alias("receipt")
_due_receipt = receipts.alias("due_receipt")
_RECEIPT_COLUMNS = [column.name for column in receipts.c]

_JOBS = (
    select(
        jobs,
        *(_receipt.c[name].label(f"receipt__{name}") for name in _RECEIPT_COLUMNS),
        *(_due_receipt.c[name].label(f"due_receipt__{name}") for name in _RECEIPT_COLUMNS),
    )
    .outerjoin(_receipt, _receipt.c.id == jobs.c.receipt_id)
    .outerjoin(_due_receipt, _due_receipt.c.id == jobs.c.due_receipt_id)
    .order_by(jobs.c.job_id)
)
_JOB = _JOBS.where(jobs.c.job_id == bindparam("of"))
_OPEN_JOBS = _JOBS.where(jobs.c.closed.is_(False))
_SERVED = _JOBS.where(jobs.c.owner == bindparam("by"))
_NOT_IN_FLIGHT = jobs.c.job_id.not_in(select(claims.c.job_id).where(claims.c.active))
_OVER = or_(jobs.c.ending, jobs.c.asked_at > 0, jobs.c.expires_at <= bindparam("before"))
_DUE = or_(jobs.c.due_tokens > jobs.c.settled_tokens, jobs.c.due_prompt_tokens > jobs.c.settled_prompt_tokens)
# Of what is counted, not all need be claimable.
_COUNTED = or_(
    jobs.c.gross_tokens > jobs.c.settled_tokens, jobs.c.gross_prompt_tokens > jobs.c.settled_prompt_tokens
)
_WANTED = {whole: and_(or_(_COUNTED if whole else _DUE, _OVER), _NOT_IN_FLIGHT) for whole in (False, True)}
_DUE_JOBS = {whole: _OPEN_JOBS.where(wanted) for whole, wanted in _WANTED.items()}
_SERVED_NOW = exists().where(
    processes.c.id == jobs.c.owner, processes.c.id != bindparam("by"), processes.c.until > database.now()
)
_OUTSTANDING = {
    whole: select(jobs, _SERVED_NOW.label("elsewhere"))
    .where(jobs.c.closed.is_(False), wanted, jobs.c.job_id > bindparam("after"))
    .order_by(jobs.c.job_id)
    .limit(bindparam("most"))
    for whole, wanted in _WANTED.items()
}
_OPEN_PAGE = _OPEN_JOBS.where(jobs.c.job_id > bindparam("after")).limit(bindparam("most"))
_THESE = _OPEN_JOBS.where(jobs.c.job_id.in_(bindparam("these", expanding=True)))
_TOTALS = (
    select(
        *(
            jobs.c[f"{name}_{column}"]
            for name in ("gross", "written_off", "acknowledged", "receipted", "due", "settled", "confirmed")
            for column in ("prompt_tokens", "tokens")
        ),
        jobs.c.job_id,
        jobs.c.max_tokens_per_second,
        jobs.c.owner,
        jobs.c.epoch,
        jobs.c.closed,
        jobs.c.due_receipt_id,
    )
    .where(jobs.c.job_id.in_(bindparam("these", expanding=True)))
    .order_by(jobs.c.job_id)
    .with_for_update()
)
"""What a change goes by: the rows are locked, by all in the same order, so that nobody changes them."""
_UPDATE = update(jobs).where(jobs.c.job_id == bindparam("of"))
_REOPEN = _UPDATE.where(jobs.c.closed_by == bindparam("by")).values(closed=False, closed_by=None)
_KNOWN = select(jobs.c.job_id).where(jobs.c.job_id == bindparam("of"))
_OWNER = select(jobs.c.owner).where(jobs.c.job_id == bindparam("of"))
_SERVED_BY = select(jobs.c.job_id).where(jobs.c.signer == bindparam("by"))
_POSITIONS = select(positions).where(positions.c.job_id == bindparam("of"))
_RECEIPTS = select(receipts).where(receipts.c.job_id == bindparam("of")).order_by(receipts.c.id)
_ADD_RECEIPTS = insert(receipts).returning(receipts.c.job_id, receipts.c.id)
_SIGNED = (
    "job_id",
    *(
        f"{name}_{column}"
        for name in ("gross", "written_off", "acknowledged", "receipted", "due")
        for column in ("prompt_tokens", "tokens")
    ),
    "receipt_id",
    "due_receipt_id",
)
"""The columns that a receipt changes."""


@cache
def _sign(dialect: str) -> Update:
    """What receipts change, of many jobs at once."""
    signed = database.rows("signed", [jobs.c[name] for name in _SIGNED], dialect)
    changed = {name: signed.c[name] for name in _SIGNED[1:]}
    return update(jobs).where(jobs.c.job_id == signed.c.job_id).values(changed)


@cache
def _put_moved(dialect: str) -> Insert:
    """Many positions: an insert that replaces."""
    moved = database.rows("moved", list(positions.c), dialect)
    # Without WHERE, SQLite takes ON CONFLICT for a join's ON.
    source = select(moved).where(true())
    statement = database.put(positions, dialect).from_select(list(positions.c), source)
    newer = {name: statement.excluded[name] for name in ("prompt_tokens", "tokens")}
    replacing: Insert = statement.on_conflict_do_update(index_elements=["job_id", "request"], set_=newer)
    return replacing


# Reading


def _rows(connection: Connection, query: Select[Any], **values: Any) -> list[JobRow]:
    found = connection.execute(query, values).mappings()
    return [job_row(row, _receipt_of(row, "receipt"), _receipt_of(row, "due_receipt")) for row in found]


def _receipt_of(row: RowMapping, prefix: str) -> Receipt | None:
    if row[f"{prefix}__id"] is None:
        return None
    return receipt_in({name: row[f"{prefix}__{name}"] for name in _RECEIPT_COLUMNS})


def find(connection: Connection, job_id: JobId) -> JobRow | None:
    """A job, or None."""
    found = _rows(connection, _JOB, of=job_id)
    return found[0] if found else None


def served_by(connection: Connection, signer: Address) -> JobId | None:
    """The job that a signer serves, or None."""
    found = connection.execute(_SERVED_BY, {"by": signer}).scalar()
    return None if found is None else JobId(found)


def open_jobs(connection: Connection) -> list[JobRow]:
    """Every job that is not closed."""
    return _rows(connection, _OPEN_JOBS)


def open_page(connection: Connection, after: JobId, most: int) -> list[JobRow]:
    """The next jobs after that one that are not closed, by id."""
    return _rows(connection, _OPEN_PAGE, after=after, most=most)


def open_of(connection: Connection, these: Collection[JobId]) -> list[JobRow]:
    """Of these jobs, those that are known and not closed."""
    return _rows(connection, _THESE, these=list(these))


def served(connection: Connection, process: str) -> list[JobRow]:
    """Every job that the process serves; one that was closed until that is released."""
    return _rows(connection, _SERVED, by=process)


def due(
    connection: Connection, now: int, these: Collection[JobId] | None = None, *, whole: bool = False
) -> list[DueRow]:
    """What is to be settled at the chain's time `now`, of all (or these) jobs that are not in flight."""
    query, values = _DUE_JOBS[whole], {"before": now + EXPIRY_MARGIN}
    if these is not None:
        query = query.where(jobs.c.job_id.in_(these))
    found = (due_row(row, now, whole=whole) for row in _rows(connection, query, **values))
    return [row for row in found if row is not None]


def outstanding(
    connection: Connection, now: int, process: str, after: JobId, most: int, *, whole: bool
) -> tuple[list[Outstanding], JobId | None]:
    """The same in short, of the next jobs after that one; and where to go on, None at the end."""
    values = {"before": now + EXPIRY_MARGIN, "by": process, "after": after, "most": most}
    found = connection.execute(_OUTSTANDING[whole], values).mappings().all()
    told = (_outstanding(row, now, whole=whole) for row in found)
    return [each for each in told if each is not None], found[-1]["job_id"] if len(found) == most else None


def _outstanding(found: RowMapping, now: int, *, whole: bool) -> Outstanding | None:
    row = job_row(found, None, None)
    due = due_row(row, now, whole=whole)
    if due is None:
        return None
    return Outstanding(
        job_id=row.job.id,
        host=row.job.host,
        asset=row.job.asset,
        amount=pricing.split(row.settled, due.totals, row.job.prices).host,
        complete=due.complete,
        must=due.complete or _expires(row, now),
        ending=row.ending,
        owner=row.owner,
        elsewhere=found["elsewhere"],
    )


def acknowledged_positions(connection: Connection, job_id: JobId) -> dict[RequestId, Totals]:
    """How far every request of a job is acknowledged."""
    found = connection.execute(_POSITIONS, {"of": job_id}).mappings()
    return {RequestId(row["request"]): Totals(row["prompt_tokens"], row["tokens"]) for row in found}


def stored_receipts(connection: Connection, job_id: JobId) -> list[Receipt]:
    """Every receipt of a job, oldest first."""
    return [receipt_in(row) for row in connection.execute(_RECEIPTS, {"of": job_id}).mappings()]


def _held(connection: Connection, job_id: JobId, hold: Hold) -> RowMapping:
    """As `_totals`, of a job that the writer owns: only its owner counts and stores receipts."""
    row = _totals(connection, job_id)
    leases.check_job(connection, row, hold)
    return row


def _totals(connection: Connection, job_id: JobId) -> RowMapping:
    return _there(_found(connection, job_id), job_id)


def _found(connection: Connection, job_id: JobId) -> RowMapping | None:
    return connection.execute(_TOTALS, {"these": [job_id]}).mappings().first()


def _there(row: RowMapping | None, job_id: JobId) -> RowMapping:
    if row is None:
        raise LedgerError(f"job {job_id} is not in the ledger")
    return row


def _set(connection: Connection, job_id: JobId, /, **columns: Any) -> None:
    connection.execute(_UPDATE, {"of": job_id, **columns})


# Counting


def adopt(connection: Connection, job: Job) -> JobRow:
    """A job as the chain tells it: its row is made, or brought up to date."""
    _insert_job(connection, job)
    _totals(connection, job.id)
    [row] = _rows(connection, _JOB, of=job.id)
    if not row.job.is_same_as(job):
        raise LedgerError(f"job {job.id} in the ledger is another one than job {job.id} on the chain")
    if row.job == job:
        return row
    columns = job_out(job) | totals_out("settled", row.settled.higher(job.settled))
    # Read N blocks deep, a request to complete may not be there yet that the latest block has shown.
    columns["asked_at"] = job.asked_at or row.job.asked_at
    _set(connection, job.id, **columns)
    [adopted] = _rows(connection, _JOB, of=job.id)
    return adopted


def _insert_job(connection: Connection, job: Job) -> None:
    """Nothing happens if the job is there, made by another process a moment ago perhaps."""
    if connection.execute(_KNOWN, {"of": job.id}).first() is not None:
        return
    settled_before = totals_out("gross", job.settled) | totals_out("settled", job.settled)
    new = database.put(jobs, connection.dialect.name).values(job_out(job) | settled_before)
    connection.execute(new.on_conflict_do_nothing())
    other = served_by(connection, job.signer)
    if other != job.id:
        raise Refusal("signer_reused", f"the signer {job.signer} has served job {other}")


def serve(connection: Connection, process: str, job: Job, records: Iterable[Record], *, deep: bool) -> JobRow:
    """A job that is the process's from now on, with what `records` of slots know of it.

    `deep`: it lies N blocks deep, so another one that had its id before is no more.
    """
    epoch = _forget_vanished(connection, job) if deep else None
    adopt(connection, job)
    if epoch is None:
        recover(connection, records)
    else:
        _set(connection, job.id, epoch=epoch)  # a slot of the other one is void
    leases.take_job(connection, _totals(connection, job.id), process)
    [row] = _rows(connection, _JOB, of=job.id)
    return row


def _forget_vanished(connection: Connection, job: Job) -> int | None:
    """Drops the job that had the id of this one before a reorganisation: its epoch. None: there is none.

    Nothing was ever confirmed of it, or it would have been too deep to go; nor is anything in flight.
    """
    row = find(connection, job.id)
    if row is None or row.job.is_same_as(job) or row.confirmed != NOTHING:
        return None
    flying = select(claims.c.job_id).where(claims.c.job_id == job.id, claims.c.active)
    if connection.execute(flying).first() is not None:
        return None
    for table in (claims, positions, receipts, jobs):
        connection.execute(delete(table).where(table.c.job_id == job.id))
    return row.epoch


def served_elsewhere(connection: Connection, job_id: JobId, process: str) -> Owner | None:
    """The other process that serves a job now."""
    owner = connection.execute(_OWNER, {"of": job_id}).scalar()
    return leases.other(connection, owner, process)


def store_receipts(connection: Connection, arrived: Sequence[Arrived]) -> list[None]:
    """Receipts that are ahead of the stored ones."""
    waiting = list(arrived)
    while waiting:
        # Of one job one at a time, as each comes after the one before it.
        first = {each.receipt.job_id: each for each in reversed(waiting)}
        waiting = [each for each in waiting if first[each.receipt.job_id] is not each]
        _store_receipts(connection, first)
    return [None] * len(arrived)


def _store_receipts(connection: Connection, arrived: Mapping[JobId, Arrived]) -> None:
    found = connection.execute(_TOTALS, {"these": list(arrived)}).mappings().all()
    rows: dict[JobId, RowMapping] = {row["job_id"]: row for row in found}
    signed = [
        each
        for job_id, each in arrived.items()
        if _is_new(connection, _there(rows.get(job_id), job_id), each)
    ]
    if not signed:
        return
    added = connection.execute(_ADD_RECEIPTS, [receipt_out(each.receipt) for each in signed])
    receipt_ids: dict[JobId, int] = dict(added.all())
    _put_positions(connection, [each.receipt for each in signed])
    changes = [_change(rows[of], arrived[of], receipt_id) for of, receipt_id in receipt_ids.items()]
    connection.execute(_sign(connection.dialect.name), {"signed": database.packed(changes)})


def _is_new(connection: Connection, row: RowMapping, arrived: Arrived) -> bool:
    leases.check_job(connection, row, arrived.hold)
    receipt = arrived.receipt
    receipted = totals_in(row, "receipted")
    if receipt.totals.against(receipted) is Standing.AHEAD:
        return True
    if _is_stored(connection, receipt):
        return False  # whoever stored it was not told: the commit's answer was lost
    raise LedgerError(f"a receipt over {receipt.totals} does not come after one over {receipted}")


def _is_stored(connection: Connection, receipt: Receipt) -> bool:
    [row] = _rows(connection, _JOB, of=receipt.job_id)
    return row.receipted == receipt


def _change(row: RowMapping, arrived: Arrived, receipt_id: int) -> list[int | None]:
    """What becomes of a job's row, in the order of `_SIGNED`."""
    counts = _signed(counts_in(row), arrived.receipt.totals, arrived.acknowledged, arrived.gross)
    due, due_receipt_id = totals_in(row, "due"), row["due_receipt_id"]
    if arrived.due:
        due, due_receipt_id = counts.claimable.higher(due), receipt_id
    totals = (counts.gross, counts.written_off, counts.acknowledged, counts.receipted, due)
    pairs = [number for each in totals for number in (each.prompt_tokens, each.tokens)]
    return [row["job_id"], *pairs, receipt_id, due_receipt_id]


def _signed(before: Counts, receipted: Totals, acknowledged: Totals, gross: Totals) -> Counts:
    """The payer's word is the last on what arrived: what it acknowledges is counted, and not written off."""
    acknowledged = before.acknowledged.higher(acknowledged)
    gross = before.gross.higher(gross).higher(acknowledged)
    written_off = before.written_off.lower(gross - acknowledged)
    return Counts(before.attested, gross, written_off, acknowledged, receipted)


def _counts_out(counts: Counts) -> dict[str, int]:
    return (
        totals_out("gross", counts.gross)
        | totals_out("written_off", counts.written_off)
        | totals_out("acknowledged", counts.acknowledged)
        | totals_out("receipted", counts.receipted)
    )


def _due_out(counts: Counts, row: RowMapping, receipt_id: int | None) -> dict[str, Any]:
    claim = counts.claimable.higher(totals_in(row, "due"))
    return {"due_receipt_id": receipt_id, **totals_out("due", claim)}


def _put_positions(connection: Connection, signed: Iterable[Receipt]) -> None:
    moved = [
        (receipt.job_id, each.request, each.prompt_tokens, each.tokens)
        for receipt in signed
        for each in receipt.positions
    ]
    if moved:
        connection.execute(_put_moved(connection.dialect.name), {"moved": database.packed(moved)})


def checkpoint(connection: Connection, hold: Hold, job_id: JobId, gross: Totals, due: bool) -> None:
    """The gross count so far; `due`: all that is claimable is to be settled."""
    _count(connection, _held(connection, job_id, hold), gross, due=due)


def _count(connection: Connection, row: RowMapping, gross: Totals, *, due: bool = False) -> None:
    before = counts_in(row)
    after = replace(before, gross=before.gross.higher(gross))
    claim = _due_out(after, row, None) if due else {}
    _set(connection, row["job_id"], **_counts_out(after), **claim)


def write_off(connection: Connection, hold: Hold, job_id: JobId, written_off: Totals) -> None:
    """The total that is written off now."""
    _held(connection, job_id, hold)
    _set(connection, job_id, **totals_out("written_off", written_off))


def end(connection: Connection, hold: Hold, job_id: JobId, gross: Totals | None) -> None:
    """The session is over."""
    _count(connection, _held(connection, job_id, hold), gross or NOTHING)
    _set(connection, job_id, ending=True)


def recover(connection: Connection, records: Iterable[Record]) -> list[JobId]:
    """What slots hold. Returns the jobs whose slots count for nothing.

    A slot of a job's present epoch was its owner's, whoever reads it now.
    """
    void = []
    for record in records:
        row = _found(connection, record.job_id)
        if row is None or row["closed"] or row["epoch"] != record.epoch:
            void.append(record.job_id)
        else:
            _count(connection, row, record.totals)
    return void


# What the chain says


def settled(connection: Connection, job_id: JobId, totals: Totals) -> None:
    """Totals seen settled in the latest block."""
    row = _totals(connection, job_id)
    _set(connection, job_id, **totals_out("settled", totals_in(row, "settled").higher(totals)))


def witnessed(connection: Connection, settlement: Settlement) -> bool:
    """A settlement seen N blocks deep. True if it is ahead of what was confirmed."""
    row = _totals(connection, settlement.job_id)
    was_settled, was_confirmed = totals_in(row, "settled"), totals_in(row, "confirmed")
    totals = settlement.totals
    recount(connection, settlement.job_id, was_settled.higher(totals), was_confirmed.higher(totals))
    return not was_confirmed.covers(totals)


def unsettled(connection: Connection, job_id: JobId, totals: Totals) -> None:
    """No more than these totals are settled."""
    row = _totals(connection, job_id)
    was_settled, was_confirmed = totals_in(row, "settled"), totals_in(row, "confirmed")
    recount(connection, job_id, was_settled.lower(totals), was_confirmed.lower(totals))


def recount(connection: Connection, job_id: JobId, to_settled: Totals, to_confirmed: Totals) -> None:
    """What is settled and what is confirmed."""
    _set(connection, job_id, **totals_out("settled", to_settled), **totals_out("confirmed", to_confirmed))


def closed(connection: Connection, completion: Completion, process: str) -> bool:
    """A completion seen N blocks deep by a process. True if the job was not known to be closed."""
    row = _totals(connection, completion.job_id)
    if not row["closed"]:
        _set(connection, completion.job_id, closed=True, closed_by=completion.tx)
    # Another process that serves it has to hear of it first.
    leases.release_job(connection, completion.job_id, process)
    return not row["closed"]


def reopened(connection: Connection, job_id: JobId, tx: str | None) -> None:
    """The transaction that closed a job is gone; nothing happens if another one did."""
    connection.execute(_REOPEN, {"of": job_id, "by": tx})
