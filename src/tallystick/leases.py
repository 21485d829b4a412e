"""Who may write what, where several processes share a ledger: a job or a key belongs to one at a time.

    process   renewed every few seconds; once its lease runs out, or it leaves, all that it owns is free
    job       owned by the process that serves it    \\ whoever takes it begins a new epoch
    key       owned by the process that sends for it /

A write says by which process it is, and in which epoch, and is turned down in its own transaction if either
has changed: a process that was stopped, and goes on after another one has taken over, changes nothing. All
times are the database's. Each function runs on the connection that it is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection, bindparam, delete, insert, select, update
from sqlalchemy.engine import RowMapping

from tallystick import database
from tallystick.errors import Elsewhere, Superseded
from tallystick.tables import jobs, processes, senders
from tallystick.types import Address, JobId

LEASE = 10.0
"""Seconds that a process which is not heard of keeps what it owns."""
RENEW_EVERY = 2.0
"""Seconds between renewals: several may fail before a lease runs out."""
FORGET_AFTER = 86_400.0
"""Seconds after which a process whose lease ran out leaves no trace."""


class Hold(msgspec.Struct, frozen=True):
    """By what right something is written. No epoch: as of now, and what is nobody's is taken with it."""

    process: str
    epoch: int | None = None


@dataclass(frozen=True, slots=True)
class Owner:
    """Another process that owns something now."""

    address: str | None
    """Where it is reached, if it has said so."""
    seconds: float
    """Until its lease runs out, unless it is renewed."""


_LEFT = (processes.c.until - database.now()).label("seconds")
_PROCESS = select(processes.c.address, _LEFT).where(processes.c.id == bindparam("of"))
_RENEW = update(processes).where(processes.c.id == bindparam("of"))
_TAKE_JOB = update(jobs).where(jobs.c.job_id == bindparam("of"))
_SENDER = select(senders.c.owner, senders.c.epoch).where(senders.c.address == bindparam("of"))
_TAKE_SENDER = update(senders).where(senders.c.address == bindparam("of"))


# Processes


def renew(connection: Connection, process: str, address: str | None, seconds: float = LEASE) -> bool:
    """Keeps what the process owns for so long from now. False: its lease had run out, or it had none."""
    known = connection.execute(_PROCESS.with_for_update(), {"of": process}).mappings().first()
    until = database.now() + seconds
    if known is None:
        connection.execute(insert(processes).values(id=process, address=address, until=until))
        connection.execute(delete(processes).where(processes.c.until < database.now() - FORGET_AFTER))
        return False
    connection.execute(_RENEW.values(address=address, until=until), {"of": process})
    return bool(known["seconds"] > 0)


def leave(connection: Connection, process: str) -> None:
    """Frees all that the process owns; what it counted is in the ledger."""
    connection.execute(update(jobs).where(jobs.c.owner == process).values(owner=None))
    connection.execute(delete(processes).where(processes.c.id == process))


def other(connection: Connection, owner: str | None, process: str) -> Owner | None:
    """The owner, if that is another process than `process`, and its lease lasts."""
    if owner is None or owner == process:
        return None
    found = connection.execute(_PROCESS, {"of": owner}).mappings().first()
    return Owner(**found) if found is not None and found["seconds"] > 0 else None


# Jobs: `row` is one of `jobs` that the transaction has locked


def take_job(connection: Connection, row: RowMapping, process: str) -> int:
    """The epoch in which the job is the process's from now on. Elsewhere if it is another one's."""
    _refuse_other(connection, row, process)
    epoch: int = row["epoch"] + 1
    connection.execute(_TAKE_JOB, {"of": row["job_id"], "owner": process, "epoch": epoch})
    return epoch


def release_job(connection: Connection, job_id: JobId, process: str) -> None:
    """The job is nobody's, if it was the process's."""
    mine = jobs.c.owner == process
    connection.execute(_TAKE_JOB.where(mine).values(owner=None), {"of": job_id})


def check_job(connection: Connection, row: RowMapping, hold: Hold) -> None:
    """Elsewhere, or Superseded, unless the hold on the job is good."""
    # A job that was given up is its last owner's for as long as nobody begins a new epoch.
    if row["owner"] in (hold.process, None) and hold.epoch == row["epoch"]:
        return
    if hold.epoch is None:
        if row["owner"] != hold.process:
            take_job(connection, row, hold.process)
        return
    _refuse_other(connection, row, hold.process)
    raise Superseded(f"job {row['job_id']} was taken up anew: {hold.epoch} is no longer its epoch")


def _refuse_other(connection: Connection, row: RowMapping, process: str) -> None:
    owner = other(connection, row["owner"], process)
    if owner is not None:
        raise Elsewhere(JobId(row["job_id"]), owner.address, owner.seconds)


# Keys


def lead(connection: Connection, address: Address, process: str) -> int | None:
    """The epoch in which the process sends for a key, which it takes if it can; None: another one does.

    Nor does a process send whose own lease has run out: another may take the key at any moment.
    """
    if not _is_alive(connection, process):
        return None
    new = database.put(senders, connection.dialect.name).values(address=address, owner=process, epoch=0)
    connection.execute(new.on_conflict_do_nothing())
    row = connection.execute(_SENDER.with_for_update(), {"of": address}).mappings().one()
    if row["owner"] == process and row["epoch"] > 0:
        return int(row["epoch"])
    if other(connection, row["owner"], process) is not None:
        return None
    epoch = int(row["epoch"]) + 1
    connection.execute(_TAKE_SENDER, {"of": address, "owner": process, "epoch": epoch})
    return epoch


def led(connection: Connection, address: Address, process: str) -> int | None:
    """As `lead`, and takes nothing."""
    row = connection.execute(_SENDER, {"of": address}).mappings().first()
    if row is None or row["owner"] != process or not _is_alive(connection, process):
        return None
    return int(row["epoch"]) or None


def is_led_by_other(connection: Connection, address: Address, process: str) -> bool:
    """True if there is no use in trying to take a key."""
    return led_elsewhere(connection, address, process) is not None


def led_elsewhere(connection: Connection, address: Address, process: str) -> Owner | None:
    """The other process that sends for a key."""
    row = connection.execute(_SENDER, {"of": address}).mappings().first()
    return None if row is None else other(connection, row["owner"], process)


def check_sender(connection: Connection, address: Address, hold: Hold) -> None:
    """Superseded unless the process sends for the key in that epoch; until the transaction ends, it does."""
    row = connection.execute(_SENDER.with_for_update(read=True), {"of": address}).mappings().first()
    if row is None or (row["owner"], row["epoch"]) != (hold.process, hold.epoch):
        raise Superseded(f"this process does not send for {address}: another one has taken over")


def _is_alive(connection: Connection, process: str) -> bool:
    row = connection.execute(_PROCESS, {"of": process}).mappings().first()
    return row is not None and row["seconds"] > 0
