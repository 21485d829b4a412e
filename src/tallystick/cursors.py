"""The ledger's statements over how far the chain's events were read. Each runs on the connection that it is
given, in the caller's transaction.
"""

from __future__ import annotations

from sqlalchemy import Connection, select

from tallystick import database
from tallystick.tables import Cursor, cursors
from tallystick.types import Address


def find(connection: Connection, host: Address) -> Cursor | None:
    """How far a host's events were read; None: they never were."""
    row = connection.execute(select(cursors).where(cursors.c.host == host)).mappings().first()
    return None if row is None else Cursor(row["block"], row["hash"])


def move(connection: Connection, host: Address, cursor: Cursor) -> None:
    """A host's events are read up to there."""
    put = database.put(cursors, connection.dialect.name)
    put = put.values(host=host, block=cursor.block, hash=cursor.hash)
    there = {"block": cursor.block, "hash": cursor.hash}
    connection.execute(put.on_conflict_do_update(index_elements=["host"], set_=there))
