"""The counter: what was counted is there after kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tallystick import counter
from tallystick.counter import Counter, Record, Taken, read, read_all
from tallystick.errors import LedgerError
from tallystick.types import JobId, Totals
from tests.disk import SmallDisk

SLOT, COPY = 128, 64
SLOTS = (1 << 16) // SLOT
"""Of one piece of the file; the first one is its header."""
JOB = JobId(121)

COUNT_FOR_EVER = """
import os, sys
from pathlib import Path
from tallystick.counter import Counter
slot = Counter(Path(sys.argv[1])).open(121, 1)
while True:
    slot.add(1, 2)
    os.write(1, b".")
"""


def test_kill_9_loses_nothing_that_was_counted_before_it_was_sent(tmp_path: Path) -> None:
    """Law 7: a token is counted before it is sent, so a killed process has sent no more than it counted."""
    path = tmp_path / "counter"
    for _ in range(3):
        path.unlink(missing_ok=True)
        with subprocess.Popen(
            [sys.executable, "-c", COUNT_FOR_EVER, path], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            sent = len(process.stdout.read(1000))
            os.kill(process.pid, signal.SIGKILL)
            sent += len(process.stdout.read())
        with Counter(path) as counter:
            counted = counter.open(JOB, 1).totals
        assert counted in (Totals(sent, 2 * sent), Totals(sent + 1, 2 * sent + 2))


def test_counts_go_on_where_they_stopped(tmp_path: Path) -> None:
    """A job's totals outlive the file's being closed."""
    with Counter(tmp_path / "counter") as counter:
        slot = counter.open(JOB, 1)
        slot.add(12, 0)
        slot.add(0, 30)
    with Counter(tmp_path / "counter") as counter:
        assert counter.recovered() == [Record(JOB, 1, Totals(12, 30))]
        again = counter.open(JOB, 1)
        again.add(0, 5)
        assert again.totals == Totals(12, 35)


def test_the_ledger_raises_a_slot_and_never_lowers_it(tmp_path: Path) -> None:
    """Recovery takes the later of slot and ledger, each total by itself."""
    with Counter(tmp_path / "counter") as counter:
        counter.open(JOB, 1).add(5, 50)
        assert counter.open(JOB, 1, floor=Totals(7, 20)).totals == Totals(7, 50)


def test_a_slot_of_another_epoch_counts_for_nothing(tmp_path: Path) -> None:
    """A process that takes a job over begins with the ledger's count, whatever the old slot says."""
    with Counter(tmp_path / "counter") as counter:
        counter.open(JOB, 1).add(5, 50)
    with Counter(tmp_path / "counter") as counter:
        assert counter.open(JOB, 2, floor=Totals(1, 10)).totals == Totals(1, 10)
        assert counter.recovered() == [Record(JOB, 2, Totals(1, 10))]


@pytest.mark.parametrize("torn", [b"\0" * 8, b"\xff" * 40], ids=["zeros", "ones"])
def test_a_store_cut_in_the_middle_leaves_the_count_before_it(tmp_path: Path, torn: bytes) -> None:
    """Two copies take turns: whichever one is broken, the other one counts."""
    path = tmp_path / "counter"
    with Counter(path) as counter:
        slot = counter.open(JOB, 1)
        for _ in range(4):
            slot.add(0, 10)
    whole = path.read_bytes()
    for copy, left in ((0, {30, 40}), (1, {30, 40})):
        broken = bytearray(whole)
        place = SLOT + copy * COPY
        broken[place : place + len(torn)] = torn
        path.write_bytes(broken)
        with Counter(path) as counter:
            [record] = counter.recovered()
            left.remove(record.totals.tokens)
            assert len(left) == 1


def test_a_slot_with_both_copies_broken_is_free(tmp_path: Path) -> None:
    """What cannot be read is no count: the ledger's is taken then."""
    path = tmp_path / "counter"
    with Counter(path) as counter:
        counter.open(JOB, 1).add(0, 10)
    broken = bytearray(path.read_bytes())
    broken[SLOT : 2 * SLOT] = b"\x55" * SLOT
    path.write_bytes(broken)
    with Counter(path) as counter:
        assert counter.recovered() == []
        assert counter.open(JOB, 1, floor=Totals(0, 7)).totals == Totals(0, 7)


def test_the_file_grows_under_slots_in_use(tmp_path: Path) -> None:
    """More jobs than one piece of the file holds: each keeps its own count, now and after a restart."""
    path = tmp_path / "counter"
    with Counter(path) as counter:
        first = counter.open(JobId(1), 1)
        slots = [counter.open(JobId(job), 1) for job in range(2, 1300)]
        for slot in [first, *slots]:
            slot.add(slot.job_id, 2 * slot.job_id)
    with Counter(path) as counter:
        found = {record.job_id: record.totals for record in counter.recovered()}
    assert found == {job: Totals(job, 2 * job) for job in range(1, 1300)}


def test_a_released_slot_serves_the_next_job(tmp_path: Path) -> None:
    """A closed job's slot is used again, and what still adds to the closed job counts for nobody."""
    path = tmp_path / "counter"
    with Counter(path) as counter:
        for job in range(1, 3000):
            slot = counter.open(JobId(job), 1)
            slot.add(0, job)
            counter.release(JobId(job))
            slot.add(0, 1)
        counter.open(JOB, 1).add(0, 3)
        assert path.stat().st_size == 1 << 16
    with Counter(path) as counter:
        assert counter.recovered() == [Record(JOB, 1, Totals(0, 3))]


def test_a_file_cut_short_while_it_grew_is_made_whole(tmp_path: Path) -> None:
    """A kill while the file grows leaves a piece of a piece behind."""
    path = tmp_path / "counter"
    with Counter(path) as counter:
        counter.open(JOB, 1).add(0, 10)
    with path.open("ab") as file:
        file.write(bytes(100))
    with Counter(path) as counter:
        assert counter.recovered() == [Record(JOB, 1, Totals(0, 10))]


def test_another_file_is_left_alone(tmp_path: Path) -> None:
    """A file of another kind is refused and not written to."""
    path = tmp_path / "counter"
    path.write_bytes(b"the wrong file" * 20)
    with pytest.raises(LedgerError, match="not a file of token counts"):
        Counter(path)
    assert path.read_bytes() == b"the wrong file" * 20


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """The error names the file."""
    with pytest.raises(LedgerError, match=r"missing/counter"):
        Counter(tmp_path / "missing" / "counter")


def test_a_disk_that_fails_takes_no_new_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A count that does not reach the disk is told to whoever opens the next slot; those open go on.

    Once the disk takes all of them again, so does the counter.
    """
    with Counter(tmp_path / "counter") as counter:
        slot = counter.open(JOB, 1)

        def fail(_: int) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fail)
            counter._flush()
            slot.add(0, 1)
            assert slot.totals == Totals(0, 1)
            with pytest.raises(LedgerError, match="Input/output error"):
                counter.open(JobId(122), 1)
        wait_until(lambda: counter.failure is None)
        counter.open(JobId(122), 1).add(0, 2)
    assert read(tmp_path / "counter") == [Record(JOB, 1, Totals(0, 1)), Record(JobId(122), 1, Totals(0, 2))]


def wait_until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    """Waits for what a thread brings about."""
    give_up = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.01)


@pytest.mark.parametrize("left", [0, 20_000], ids=["full", "nearly full"])
def test_a_full_disk_takes_no_new_job(small_disk: SmallDisk, left: int) -> None:
    """The file grows whole or not at all; jobs that are counted go on, new ones as soon as there is room."""
    path = small_disk.path / "counter"
    with Counter(path) as counter:
        slots = [counter.open(JobId(job), 1) for job in range(1, SLOTS)]
        small_disk.fill()
        os.truncate(small_disk.path / "filler", (small_disk.path / "filler").stat().st_size - left)
        for _ in range(2):
            with pytest.raises(LedgerError, match="No space left on device"):
                counter.open(JobId(SLOTS), 1)
        for slot in slots:
            slot.add(0, slot.job_id)
        small_disk.free()
        counter.open(JobId(SLOTS), 1).add(0, SLOTS)
    with Counter(path) as counter:
        found = {record.job_id: record.totals.tokens for record in counter.recovered()}
    assert found == {job: job for job in range(1, SLOTS + 1)}


def test_each_process_has_a_file_of_its_own(tmp_path: Path) -> None:
    """One that is in use is left alone; the one of a dead process is the next one's, with its name on it."""
    path = tmp_path / "counter"
    with Counter.claim(path) as first, Counter.claim(path) as second:
        assert (first.path.name, second.path.name) == ("counter", "counter.2")
        assert (first.predecessor, second.predecessor) == ("", "")
        with pytest.raises(Taken):
            Counter(path)
        first.sign("host:12:ab")
    with Counter.claim(path) as third:
        assert (third.path, third.predecessor) == (path, "host:12:ab")
        third.sign("host:345:cd")
        assert third.recovered() == []
    with Counter(path) as fourth:
        assert fourth.predecessor == "host:345:cd"


def test_what_others_counted_can_be_read(tmp_path: Path) -> None:
    """Dead or alive: the counts of all processes over one directory are there for each of them."""
    path = tmp_path / "counter"
    with Counter.claim(path) as first, Counter.claim(path) as second, Counter.claim(path) as third:
        first.open(JOB, 1).add(12, 30)
        second.open(JOB, 2).add(0, 7)
        second.open(JobId(122), 1).add(0, 9)
        assert third.left() == [
            Record(JOB, 1, Totals(12, 30)),
            Record(JOB, 2, Totals(0, 7)),
            Record(JobId(122), 1, Totals(0, 9)),
        ]
        assert second.found(JOB) == [Record(JOB, 2, Totals(0, 7)), Record(JOB, 1, Totals(12, 30))]
        assert third.found(JobId(123)) == []
        assert len(read_all(path)) == 3


def test_who_only_looks_sees_the_counts_and_changes_nothing(tmp_path: Path) -> None:
    """A counter in use can be read beside the process that counts: released slots are not in it."""
    path = tmp_path / "counter"
    assert read(path) == []
    with Counter(path) as counter:
        counter.open(JobId(7), 1).add(1, 1)
        counter.release(JobId(7))
        slot = counter.open(JOB, 3)
        slot.add(12, 30)
        slot.add(0, 1)
        before = path.read_bytes()
        assert read(path) == [Record(JOB, 3, Totals(12, 31))]
        assert path.read_bytes() == before
    with pytest.raises(LedgerError, match="cannot be read"):
        read(tmp_path)


def test_a_power_cut_costs_ten_milliseconds() -> None:
    """Law 7: counts reach the disk within the 10 ms that the module promises."""
    assert counter.SYNC_INTERVAL == 0.010
