"""The ledger's statements over transactions: a nonce, every signed form of it, the claims that it carries.

A transaction is saved before it is sent, and is in flight until it is final; meanwhile no other one carries
its jobs. Whoever changes one has to be the process that sends for its key. Each function runs on the
connection that it is given, in the caller's transaction. Knows no chain and no key.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, insert, select, update
from sqlalchemy.engine import RowMapping

from tallystick import leases, rows
from tallystick.leases import Hold
from tallystick.tables import (
    IN_FLIGHT,
    Attempt,
    Carried,
    Draft,
    Errand,
    Sent,
    State,
    Transaction,
    UnderWay,
    attempt_in,
    attempt_out,
    attempts,
    claims,
    errands,
    transactions,
)
from tallystick.types import Address, Completion, JobId, Settlement, Totals

# Reading


def next_nonce(connection: Connection, sender: Address) -> int:
    """The nonce after the highest one known of a key; 0 if none is."""
    highest = select(func.max(transactions.c.nonce)).where(transactions.c.sender == sender)
    found = connection.execute(highest).scalar()
    return 0 if found is None else int(found) + 1


def in_flight(connection: Connection, sender: Address) -> list[Transaction]:
    """The transactions of a key that are not final, by nonce."""
    return _find(connection, and_(transactions.c.sender == sender, transactions.c.state.in_([*IN_FLIGHT])))


def under_way(connection: Connection, sender: Address) -> UnderWay:
    """The same, in short."""
    flying = select(transactions.c.id).where(
        transactions.c.sender == sender, transactions.c.state.in_([*IN_FLIGHT])
    )
    ids = connection.execute(flying).all()
    carried = connection.execute(select(claims.c.job_id).where(claims.c.transaction_id.in_(flying)))
    return UnderWay(len(ids), frozenset(JobId(job_id) for job_id in carried.scalars()))


def known(connection: Connection, hashes: Collection[str]) -> set[str]:
    """Of these hashes, those of transactions that were ever signed here."""
    found = connection.execute(select(attempts.c.hash).where(attempts.c.hash.in_(hashes)))
    return set(found.scalars())


def at_nonces(connection: Connection, sender: Address, nonces: range) -> list[Transaction]:
    """The transactions of a key with these nonces, by nonce."""
    within = and_(transactions.c.nonce >= nonces.start, transactions.c.nonce < nonces.stop)
    return _find(connection, and_(transactions.c.sender == sender, within))


def errand(connection: Connection, payer: Address, nonce: bytes) -> Sent | None:
    """What was sent with an authorization of a payer's; None: nothing was."""
    found = _sent(connection, and_(errands.c.payer == payer, errands.c.nonce == nonce))
    return found[0] if found else None


def errands_since(connection: Connection, at: int) -> list[Sent]:
    """All that was sent for payers from a moment of the chain's clock on, oldest first."""
    return _sent(connection, errands.c.at >= at)


def errands_of(connection: Connection, job_id: JobId) -> list[Sent]:
    """The top-ups of a job that were sent for its payer, oldest first."""
    return _sent(connection, errands.c.job_id == job_id)


def _sent(connection: Connection, condition: ColumnElement[bool]) -> list[Sent]:
    query = select(errands).where(condition).order_by(errands.c.transaction_id)
    return [
        Sent(_errand_in(row), _one(connection, row["transaction_id"]), row["cost"])
        for row in connection.execute(query).mappings().all()
    ]


def _errand_in(row: RowMapping) -> Errand:
    return Errand(Address(row["payer"]), row["nonce"], row["at"], row["job_id"])


def _one(connection: Connection, id_: int) -> Transaction:
    [found] = _find(connection, transactions.c.id == id_)
    return found


def _find(connection: Connection, condition: ColumnElement[bool]) -> list[Transaction]:
    query = select(transactions).where(condition).order_by(transactions.c.nonce)
    return [_read(connection, row) for row in connection.execute(query).mappings().all()]


def _read(connection: Connection, row: RowMapping) -> Transaction:
    tried = select(attempts).where(attempts.c.transaction_id == row["id"]).order_by(attempts.c.number)
    return Transaction(
        id=row["id"],
        draft=Draft(
            sender=Address(row["sender"]),
            nonce=row["nonce"],
            purpose=row["purpose"],
            to=Address(row["to"]),
            data=row["data"],
            value=row["value"],
            gas=row["gas"],
            carried=_carried(connection, row["id"]),
        ),
        state=State(row["state"]),
        mined_hash=row["mined_hash"],
        mined_block=row["mined_block"],
        attempts=tuple(attempt_in(each) for each in connection.execute(tried).mappings()),
    )


def _carried(connection: Connection, transaction_id: int) -> tuple[Carried, ...]:
    query = select(claims).where(claims.c.transaction_id == transaction_id).order_by(claims.c.job_id)
    return tuple(
        Carried(JobId(row["job_id"]), Totals(row["prompt_tokens"], row["tokens"]), row["complete"])
        for row in connection.execute(query).mappings()
    )


# Sending


def save(connection: Connection, hold: Hold, draft: Draft, attempt: Attempt) -> Transaction:
    """A signed transaction. IntegrityError if its nonce is used, or one of its jobs is in flight."""
    leases.check_sender(connection, draft.sender, hold)
    columns = {
        "sender": draft.sender,
        "nonce": draft.nonce,
        "purpose": draft.purpose,
        "to": draft.to,
        "data": draft.data,
        "value": draft.value,
        "gas": draft.gas,
        "state": State.OPEN,
    }
    id_ = connection.execute(insert(transactions).values(columns).returning(transactions.c.id)).scalar_one()
    connection.execute(insert(attempts), attempt_out(id_, 0, attempt))
    if draft.carried:
        connection.execute(insert(claims), [_claim_out(id_, carried) for carried in draft.carried])
    if draft.errand is not None:
        connection.execute(insert(errands), _errand_out(id_, draft.errand))
    return _one(connection, id_)


def _errand_out(transaction_id: int, errand: Errand) -> dict[str, Any]:
    return {
        "transaction_id": transaction_id,
        "payer": errand.payer,
        "nonce": errand.nonce,
        "job_id": errand.job_id,
        "at": errand.at,
    }


def _claim_out(transaction_id: int, carried: Carried) -> dict[str, Any]:
    return {
        "transaction_id": transaction_id,
        "job_id": carried.job_id,
        "prompt_tokens": carried.totals.prompt_tokens,
        "tokens": carried.totals.tokens,
        "complete": carried.complete,
        "active": True,
    }


def add_attempt(
    connection: Connection, hold: Hold, transaction: Transaction, attempt: Attempt
) -> Transaction:
    """One more signed form."""
    leases.check_sender(connection, transaction.draft.sender, hold)
    row = attempt_out(transaction.id, len(transaction.attempts), attempt)
    connection.execute(insert(attempts), row)
    return _one(connection, transaction.id)


def taken(
    connection: Connection, hold: Hold, transaction: Transaction, attempt: Attempt, at: float
) -> Transaction:
    """An endpoint took an attempt; only the first time counts."""
    leases.check_sender(connection, transaction.draft.sender, hold)
    fresh = and_(attempts.c.hash == attempt.hash, attempts.c.taken_at.is_(None))
    connection.execute(update(attempts).where(fresh), {"taken_at": at})
    return _one(connection, transaction.id)


# What became of it


def mined(
    connection: Connection,
    hold: Hold,
    transaction: Transaction,
    tx: str,
    block: int,
    settlements: Sequence[Settlement],
) -> Transaction:
    """It has a receipt, which may yet go."""
    leases.check_sender(connection, transaction.draft.sender, hold)
    _set_state(connection, transaction, State.MINED, tx, block)
    _mark(connection, transaction, active=True, paid=False)
    for settlement in settlements:
        _mark(connection, transaction, settlement.job_id, paid=True)
        rows.settled(connection, settlement.job_id, settlement.totals)
    return _one(connection, transaction.id)


def finish(
    connection: Connection,
    hold: Hold,
    transaction: Transaction,
    state: State,
    tx: str | None,
    block: int | None,
    settlements: Sequence[Settlement],
    completions: Sequence[Completion],
) -> Transaction:
    """It is final."""
    leases.check_sender(connection, transaction.draft.sender, hold)
    _set_state(connection, transaction, state, tx, block)
    _mark(connection, transaction, active=False, paid=False)
    for settlement in settlements:
        _mark(connection, transaction, settlement.job_id, paid=True)
        rows.witnessed(connection, settlement)
    for completion in completions:
        rows.closed(connection, completion, hold.process)
    return _one(connection, transaction.id)


def cost(connection: Connection, transaction_id: int, wei: int) -> None:
    """What an errand has cost, by its receipt."""
    connection.execute(update(errands).where(errands.c.transaction_id == transaction_id), {"cost": wei})


def take_back(connection: Connection, hold: Hold, transaction: Transaction) -> Transaction:
    """Its receipt is gone: what it did is undone, and it is in flight again."""
    leases.check_sender(connection, transaction.draft.sender, hold)
    _set_state(connection, transaction, State.OPEN, None, None)
    _mark(connection, transaction, paid=False)
    for carried in transaction.draft.carried:
        # A later one may carry the job by now; it goes on, as totals cannot be paid twice.
        if not _is_in_flight(connection, carried.job_id):
            _mark(connection, transaction, carried.job_id, active=True)
        rows.recount(connection, carried.job_id, *_paid(connection, carried.job_id))
        rows.reopened(connection, carried.job_id, transaction.mined_hash)
    return _one(connection, transaction.id)


def _set_state(
    connection: Connection, transaction: Transaction, state: State, tx: str | None, block: int | None
) -> None:
    columns = {"state": state, "mined_hash": tx, "mined_block": block}
    connection.execute(update(transactions).where(transactions.c.id == transaction.id), columns)


def _mark(
    connection: Connection, transaction: Transaction, job_id: JobId | None = None, **columns: bool
) -> None:
    statement = update(claims).where(claims.c.transaction_id == transaction.id)
    if job_id is not None:
        statement = statement.where(claims.c.job_id == job_id)
    connection.execute(statement, columns)


def _is_in_flight(connection: Connection, job_id: JobId) -> bool:
    active = select(claims.c.job_id).where(and_(claims.c.job_id == job_id, claims.c.active))
    return connection.execute(active).first() is not None


def _paid(connection: Connection, job_id: JobId) -> tuple[Totals, Totals]:
    """The highest totals of a job that our transactions settled, and those of them that are confirmed."""
    query = (
        select(claims.c.prompt_tokens, claims.c.tokens, transactions.c.state)
        .join(transactions, transactions.c.id == claims.c.transaction_id)
        .where(and_(claims.c.job_id == job_id, claims.c.paid))
    )
    settled = confirmed = Totals()
    for prompt_tokens, tokens, state in connection.execute(query):
        settled = settled.higher(Totals(prompt_tokens, tokens))
        if state == State.CONFIRMED:
            confirmed = confirmed.higher(Totals(prompt_tokens, tokens))
    return settled, confirmed
