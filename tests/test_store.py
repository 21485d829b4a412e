"""The payer's store on disk."""

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from tallystick.errors import LedgerError
from tallystick.store import Store, StoredJob
from tallystick.types import Ack, Address, JobId, Position, Receipt, RequestId, Totals

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


def test_a_job_of_a_devnet_that_is_gone_gives_its_id_away(tmp_path: Path) -> None:
    """A contract gives an id once: a second job with it replaces one of a chain that was begun anew."""
    store = Store(tmp_path)
    store.opening(OPENING)
    store.opened(SIGNER, JobId(7))
    again = replace(OPENING, signer=Address("0x" + "55" * 20), key=b"n" * 32)
    store.opening(again)
    store.opened(again.signer, JobId(7))
    assert [job.signer for job in store.jobs(31337, CONTRACT, ended=True)] == [again.signer]
    assert store.openings(31337, CONTRACT) == []


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
