"""The payer's store on disk."""

import os
import stat
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from tallystick import wire
from tallystick.caps import Stake
from tallystick.errors import LedgerError
from tallystick.record import Came, Trouble
from tallystick.store import REVISION, Store, StoredJob, jobs, metadata, receipts
from tallystick.types import ETH, Ack, Address, JobId, Position, Receipt, RequestId, Totals

CONTRACT = Address("0x" + "22" * 20)
SIGNER = Address("0x" + "33" * 20)
OPENING = StoredJob(
    SIGNER, b"k" * 32, 31337, CONTRACT, Address("0x" + "44" * 20), "http://host", "tally", None, False
)


def receipt(tokens: int) -> Receipt:
    position = Position(RequestId("ab" * 16), 12, tokens, b"p" * 32, b"t" * 32)
    return Receipt(JobId(7), Totals(12, tokens), b"q" * 32, bytes([tokens]) * 32, b"s" * 65, (position,))


def test_a_key_is_there_before_its_job(tmp_path: Path) -> None:
    """A payer that stops while opening finds the key, without an id; then the id."""
    store = Store(tmp_path)
    store.opening(OPENING)
    store.close()
    again = Store(tmp_path)
    assert again.openings(31337, CONTRACT) == [OPENING]
    assert again.jobs(31337, CONTRACT) == []
    again.opened(SIGNER, JobId(7))
    job = again.job(31337, CONTRACT, JobId(7))
    assert job is not None
    assert (job.key, job.job_id) == (OPENING.key, 7)
    assert again.openings(31337, CONTRACT) == []
    assert again.job(8453, CONTRACT, JobId(7)) is None


def test_the_last_receipt_survives(tmp_path: Path) -> None:
    """The newest receipt, what it acknowledges and the host's word are read back as they were written."""
    store = Store(tmp_path)
    store.opening(OPENING)
    store.signed(SIGNER, receipt(25), Totals(12, 25))
    store.acked(SIGNER, Ack(JobId(7), Totals(12, 25), bytes([25]) * 32, b"h" * 65))
    store.signed(SIGNER, receipt(50), Totals(12, 50))
    store.close()
    last = Store(tmp_path).last(SIGNER)
    assert last is not None
    assert (last.receipt, last.acknowledged, last.ack) == (receipt(50), Totals(12, 50), None)


def test_a_job_whose_block_is_gone_gives_its_id_away(tmp_path: Path) -> None:
    """A contract gives an id once: a job that had it was in a block that is gone, and may come in another."""
    store = Store(tmp_path)
    store.opening(OPENING)
    store.opened(SIGNER, JobId(7))
    again = replace(OPENING, signer=Address("0x" + "55" * 20), key=b"n" * 32)
    store.opening(again)
    store.opened(again.signer, JobId(7))
    assert [job.signer for job in store.jobs(31337, CONTRACT, ended=True)] == [again.signer]
    assert [job.signer for job in store.openings(31337, CONTRACT)] == [SIGNER]


def test_an_opening_that_was_taken_back_is_looked_for_again(tmp_path: Path) -> None:
    """It has no id then; what it was staked for is kept."""
    store = Store(tmp_path)
    store.opening(OPENING, Stake(SIGNER, ETH, "2026-11-21", 0, 5))
    store.opened(SIGNER, JobId(7))
    store.vanished(SIGNER)
    assert not store.jobs(31337, CONTRACT)
    assert store.stakes(31337, CONTRACT) == [Stake(SIGNER, ETH, "2026-11-21", 0, 5)]
    assert [job.signer for job in store.openings(31337, CONTRACT)] == [SIGNER]


def test_an_ended_job_stays_as_evidence(tmp_path: Path) -> None:
    """An ended job is not used again, and not forgotten."""
    store = Store(tmp_path)
    store.opening(OPENING)
    store.opened(SIGNER, JobId(7))
    store.end(SIGNER)
    assert store.jobs(31337, CONTRACT) == []
    assert [job.job_id for job in store.jobs(31337, CONTRACT, ended=True)] == [7]


def test_only_its_owner_reads_the_keys(tmp_path: Path) -> None:
    """The file with the session keys is readable by its owner alone, and no key is in a job's repr."""
    Store(tmp_path / "new")
    assert stat.S_IMODE((tmp_path / "new" / "payer.db").stat().st_mode) == 0o600
    assert "kkkk" not in repr(OPENING)


def test_a_store_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    """A file that is no database is named, with the setting that chooses another."""
    (tmp_path / "payer.db").write_bytes(b"this is no database, and long enough to be looked at as one" * 20)
    with pytest.raises(LedgerError, match="PAYER_DATA_DIR"):
        Store(tmp_path)


def test_the_migrations_build_the_tables(tmp_path: Path) -> None:
    """The tables in the code and those that the migrations leave behind are the same."""
    Store(tmp_path).close()
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'payer.db'}")
    options = {"compare_type": True, "compare_server_default": True}
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=options)
        assert context.get_current_revision() == REVISION
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_a_store_from_before_there_were_revisions_goes_on(tmp_path: Path) -> None:
    """What an earlier program wrote is there, keys and receipts alike."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'payer.db'}")
    metadata.create_all(engine, [jobs, receipts])
    engine.dispose()
    _write_a_job(tmp_path)
    store = Store(tmp_path)
    last = store.last(SIGNER)
    assert last is not None
    assert last.receipt == receipt(25)
    assert store.stakes(31337, CONTRACT) == []


def _write_a_job(directory: Path) -> None:
    """As the program did that knew no revisions: rows as they are today, but for what has come since."""
    row = {column.name: getattr(OPENING, column.name) for column in jobs.columns}
    signed = orjson.dumps(wire.receipt_out(receipt(25)))
    engine = sa.create_engine(f"sqlite:///{directory / 'payer.db'}")
    with engine.begin() as connection:
        connection.execute(jobs.insert().values(**row))
        connection.execute(
            receipts.insert().values(
                signer=SIGNER,
                number=1,
                body=signed,
                acknowledged_prompt_tokens=12,
                acknowledged_tokens=25,
            )
        )
        for column in ("good_until", "found", "nonce", "raw"):
            connection.exec_driver_sql(f"ALTER TABLE jobs DROP COLUMN {column}")
    engine.dispose()


def test_a_store_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    """Rather than write what it does not understand, the program says so."""
    Store(tmp_path).close()
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'payer.db'}")
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    with pytest.raises(LedgerError, match="another version"):
        Store(tmp_path)


def test_what_a_job_may_cost_is_written_with_its_key(tmp_path: Path) -> None:
    """A stake is there with the key, changes, goes where the opening failed; amounts beyond 2^63 are kept."""
    store = Store(tmp_path)
    stake = Stake(SIGNER, CONTRACT, "2027-01-15", 0, 2**95)
    store.opening(OPENING, stake)
    assert store.stakes(31337, CONTRACT) == [stake]
    assert store.stakes(8453, CONTRACT) == []
    store.stake(replace(stake, began=5, most=2**96 - 1))
    assert store.stakes(31337, CONTRACT) == [replace(stake, began=5, most=2**96 - 1)]
    store.drop(SIGNER)
    assert store.stakes(31337, CONTRACT) == []


def test_a_job_is_claimed_by_one(tmp_path: Path) -> None:
    """Who uses a job says so, to other processes with the same store too, until it ends in whatever way."""
    store, another = Store(tmp_path), Store(tmp_path)
    file = store.claim(SIGNER)
    assert file is not None
    assert another.claim(SIGNER) is None
    assert another.is_claimed(SIGNER)
    os.close(file)
    assert not another.is_claimed(SIGNER)


def test_what_came_of_a_host_is_kept_by_its_address(tmp_path: Path) -> None:
    """Each request adds to it, also from another program with this store, and each chain has its own."""
    store, another = Store(tmp_path), Store(tmp_path)
    first = store.note(31337, CONTRACT, Came(100, 0.2), 5.0, 60.0)
    both = another.note(31337, CONTRACT, Came(trouble=Trouble.LATE, cause="late"), 6.5, 60.0)
    assert both == first.after(Came(trouble=Trouble.LATE, cause="late"), 6.5, 60.0)
    assert store.records(31337) == {CONTRACT: both}
    assert store.records(8453) == {}
