"""Token counts that survive kill -9: one slot of a memory-mapped file for each job under way.

A store into a shared mapping belongs to the kernel at once, so nothing that was counted is lost with the
process; a thread brings it to the disk within 10 ms, which is what a power cut can cost. A slot holds
two copies, written in turn: a kill in the middle of one leaves the other whole, with the count before
it. Each process has a file of its own, which says whose it is; a dead one's is for the next process, and what
it holds can be read by all.

Knows no ledger, no receipt and no price.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Self

import structlog

from tallystick.errors import LedgerError
from tallystick.types import JobId, Totals

NOTHING = Totals()
SYNC_INTERVAL = 0.010
"""Seconds between a count and its way to the disk, at most, while the disk keeps up."""

RETRY_EVERY = 1.0
"""Seconds between tries while the disk fails."""

_MAGIC = b"tally.counter.1\n"
_SLOT = 128
_COPY = 64
"""Bytes of one copy: a cache line, so that no copy shares one with another."""
_SEGMENT = 1 << 16
"""Bytes that the file grows by: a multiple of every page size in use. The first slot is the file's header."""
_SPARE = _SLOT - 1
"""A byte of each slot, and of the header, that is never anything but zero."""
_OWNER = struct.Struct("<100sI")  # whose file it is, and a checksum; after the magic

_RECORD = struct.Struct("<QQQQQ")  # job id, epoch, sequence, prompt tokens, tokens
_CHECKED = struct.Struct("<QQQQQQ")  # the same and their checksum
_pack, _pack_into, _crc = _RECORD.pack, _CHECKED.pack_into, zlib.crc32

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """What a slot held when the file was opened: the gross totals of a job in one epoch of its ownership."""

    job_id: JobId
    epoch: int
    totals: Totals


class Slot:
    """The gross count of one job. Add from one thread only."""

    __slots__ = ("_counter", "_map", "_offset", "_sequence", "epoch", "job_id", "prompt_tokens", "tokens")

    def __init__(self, counter: Counter, segment: mmap.mmap, offset: int) -> None:
        self._counter = counter
        self._map = segment
        self._offset = offset
        self._sequence = 0
        self.job_id = JobId(0)
        self.epoch = 0
        self.prompt_tokens = 0
        self.tokens = 0

    def __repr__(self) -> str:
        return f"Slot(job_id={self.job_id}, epoch={self.epoch}, {self.totals})"

    @property
    def totals(self) -> Totals:
        """All that was ever counted for the job, in tokens."""
        return Totals(self.prompt_tokens, self.tokens)

    def add(self, prompt_tokens: int, tokens: int) -> None:
        """Counts tokens. Call it before they are sent: when it returns, kill -9 cannot lose them."""
        self.prompt_tokens += prompt_tokens
        self.tokens += tokens
        self._store()

    def _store(self) -> None:
        sequence = self._sequence = self._sequence + 1
        job_id, epoch, prompt_tokens, tokens = self.job_id, self.epoch, self.prompt_tokens, self.tokens
        offset = self._offset + (sequence & 1) * _COPY
        checksum = _crc(_pack(job_id, epoch, sequence, prompt_tokens, tokens))
        _pack_into(self._map, offset, job_id, epoch, sequence, prompt_tokens, tokens, checksum)
        counter = self._counter
        if not counter._dirty:
            counter._dirty = True
            counter._wake.set()

    def _assign(self, job_id: JobId, epoch: int, totals: Totals) -> None:
        self.job_id, self.epoch = job_id, epoch
        self.prompt_tokens, self.tokens = totals.prompt_tokens, totals.tokens
        self._store()

    def _load(self) -> None:
        """Takes the later valid copy; a slot without one is free."""
        later = _later(self._map, self._offset)
        if later is not None:
            self.job_id, self.epoch, self._sequence, self.prompt_tokens, self.tokens = later
        elif any(self._map[self._offset : self._offset + _SLOT]):
            log.error("counter.slot_damaged", slot=self._offset // _SLOT)


class Taken(LedgerError):
    """Another process counts in the file."""


class Counter:
    """The file of slots. Opening it reads what an earlier process left; `recovered` tells what that is."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the file. LedgerError if it cannot be written, or is no file of this kind.

        Taken if another process has it open.
        """
        self.path = path
        self.failure: OSError | None = None
        """Why the disk takes no counts. They still survive kill -9, but no new job is counted meanwhile."""
        self._file = -1
        self._segments: list[mmap.mmap] = []
        self._jobs: dict[JobId, Slot] = {}
        self._free: list[Slot] = []
        self._dirty = False
        self._wake = threading.Event()
        self._stop = threading.Event()
        try:
            self._file = _locked(path)
            self._map_file()
        except OSError as error:
            self._let_go()
            raise LedgerError(f"tokens cannot be counted in {path}: {error}") from error
        self.predecessor = self._owner()
        """The process that counted here last, which is dead; "" if none did."""
        self._thread = threading.Thread(target=self._sync, name="tallystick-counter", daemon=True)
        self._thread.start()

    @classmethod
    def claim(cls, path: Path) -> Self:
        """The file at `path`, or the first beside it that no living process counts in. LedgerError."""
        for number in count(1):
            try:
                return cls(path if number == 1 else path.with_name(f"{path.name}.{number}"))
            except Taken:
                continue
        raise AssertionError("numbers do not end")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def recovered(self) -> list[Record]:
        """What every slot in use holds now."""
        return [Record(slot.job_id, slot.epoch, slot.totals) for slot in self._jobs.values()]

    def sign(self, process: str) -> None:
        """From here on the slots are this process's: what its predecessor left is in the ledger."""
        name = process.encode()[:100]
        _OWNER.pack_into(self._segments[0], len(_MAGIC), name, _crc(name))
        self._wake.set()

    def found(self, job_id: JobId) -> list[Record]:
        """What all files here hold of a job: this process's slot, and those of processes beside it."""
        slot = self._jobs.get(job_id)
        mine = [Record(job_id, slot.epoch, slot.totals)] if slot is not None else []
        return mine + [record for record in self.left() if record.job_id == job_id]

    def left(self) -> list[Record]:
        """What the slots of processes beside this one hold, dead or alive."""
        return [record for path in _files(self.path) if path != self.path for record in read(path)]

    def open(self, job_id: JobId, epoch: int, floor: Totals = NOTHING) -> Slot:
        """The slot of a job in an epoch, never below `floor`, the ledger's gross count.

        A slot of the job from another epoch counts for nothing: another process has owned the job since.
        LedgerError if the disk takes no more.
        """
        if self.failure is not None:
            raise LedgerError(f"counts do not reach the disk: {self.failure}") from self.failure
        slot = self._jobs.get(job_id)
        if slot is None:
            slot = self._jobs[job_id] = self._take_free()
        known = slot.totals if (slot.job_id, slot.epoch) == (job_id, epoch) else NOTHING
        slot._assign(job_id, epoch, known.higher(floor))
        return slot

    def release(self, job_id: JobId) -> None:
        """Gives the slot of a closed job to the next one. Nothing happens if the job has none."""
        slot = self._jobs.pop(job_id, None)
        if slot is not None:
            slot._assign(JobId(0), 0, NOTHING)
            # The next job gets an object of its own: a late add by the old one must not count for it.
            heir = Slot(self, slot._map, slot._offset)
            heir._sequence = slot._sequence
            slot._map = mmap.mmap(-1, _SLOT)
            slot._offset = 0
            self._free.append(heir)

    def close(self) -> None:
        """Brings the counts to the disk and lets the file go."""
        self._stop.set()
        self._wake.set()
        self._thread.join()
        self._flush()
        self._let_go()

    def _let_go(self) -> None:
        for segment in self._segments:
            segment.close()
        if self._file >= 0:
            os.close(self._file)

    def _map_file(self) -> None:
        size = os.fstat(self._file).st_size
        if size == 0:
            self._grow()
            self._segments[0][: len(_MAGIC)] = _MAGIC
            self._dirty = True
            self._wake.set()
            return
        if os.pread(self._file, len(_MAGIC), 0) != _MAGIC and any(os.pread(self._file, _SLOT, 0)):
            self._let_go()
            raise LedgerError(f"{self.path} is not a file of token counts")
        self._reserve(size, -size % _SEGMENT)
        for offset in range(0, size, _SEGMENT):
            self._map_segment(offset)
        self._segments[0][: len(_MAGIC)] = _MAGIC

    def _owner(self) -> str:
        name, checksum = _OWNER.unpack_from(self._segments[0], len(_MAGIC))
        name = name.rstrip(b"\0")
        return name.decode() if _crc(name) == checksum else ""

    def _grow(self) -> None:
        size = len(self._segments) * _SEGMENT
        self._reserve(size, _SEGMENT)
        self._map_segment(size)

    def _reserve(self, offset: int, length: int) -> None:
        """Zeros at the end of the file: written, since a store into a hole of a full disk is a SIGBUS."""
        end = offset + length
        while offset < end:
            # A disk that is nearly full takes a part, and says only the next time that it is.
            offset += os.pwrite(self._file, bytes(end - offset), offset)
        if length:
            os.fsync(self._file)

    def _map_segment(self, offset: int) -> None:
        """Maps one more piece; those mapped before stay where they are, and slots in use with them."""
        segment = mmap.mmap(self._file, _SEGMENT, offset=offset)
        first = len(self._segments) == 0
        self._segments.append(segment)
        for slot in self._slots(segment, start=_SLOT if first else 0):
            slot._load()
            self._keep(slot)

    def _slots(self, segment: mmap.mmap, start: int) -> Iterator[Slot]:
        # Reversed, so that the free list hands out the front of the file first.
        return (Slot(self, segment, offset) for offset in reversed(range(start, _SEGMENT, _SLOT)))

    def _keep(self, slot: Slot) -> None:
        if slot.job_id != 0:
            held = self._jobs.setdefault(slot.job_id, slot)
            if held is slot:
                return
            # Two slots of one job: a power cut took the release of the older one.
            if (slot.epoch, slot.tokens) > (held.epoch, held.tokens):
                self._jobs[slot.job_id], slot = slot, held
            slot._assign(JobId(0), 0, NOTHING)
        self._free.append(slot)

    def _take_free(self) -> Slot:
        if not self._free:
            try:
                self._grow()
            except OSError as error:
                raise LedgerError(f"no room for another job's count in {self.path}: {error}") from error
        return self._free.pop()

    def _sync(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(None if self.failure is None else RETRY_EVERY)
            self._stop.wait(SYNC_INTERVAL)
            # In this order: a store after the second line sets both again, one before it is in this flush.
            self._wake.clear()
            self._dirty = False
            self._flush()

    def _flush(self) -> None:
        try:
            if self.failure is not None:
                self._touch()
            self._flush_file()
        except OSError as error:
            if self.failure is None:
                log.error("counter.sync_failed", path=str(self.path), error=str(error))
            self.failure = error
        else:
            if self.failure is not None:
                log.info("counter.recovered", path=str(self.path))
            self.failure = None

    def _touch(self) -> None:
        """Has every page written again: those that a disk once failed to take count as taken."""
        for segment in list(self._segments):
            for page in range(0, _SEGMENT, mmap.PAGESIZE):
                segment[page + _SPARE] = 0

    def _flush_file(self) -> None:
        if hasattr(os, "fdatasync"):
            # Takes the mapping's pages along, and lets other threads run meanwhile, as mmap.flush need not.
            os.fdatasync(self._file)
            return
        for segment in self._segments:
            segment.flush()
        os.fsync(self._file)


def _locked(path: Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise Taken(f"another process counts in {path}") from None
    return file


def _files(path: Path) -> list[Path]:
    """A file of slots, and those of other processes in its directory."""
    first = path.with_suffix("")
    return sorted({first, *first.parent.glob(f"{first.name}.*")})


def read_all(path: Path) -> list[Record]:
    """As `read`, of all processes that count or counted in the directory."""
    return [record for each in _files(path) for record in read(each)]


def read(path: Path) -> list[Record]:
    """What every slot in use holds now, for one who only looks: a process that counts is not disturbed.

    Nothing if there is no file. LedgerError if it cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise LedgerError(f"the counts in {path} cannot be read: {error}") from error
    slots = (_later(data, offset) for offset in range(_SLOT, len(data) - _SLOT + 1, _SLOT))
    return [Record(slot[0], slot[1], Totals(slot[3], slot[4])) for slot in slots if slot and slot[0]]


_Copy = tuple[JobId, int, int, int, int]


def _later(data: bytes | mmap.mmap, offset: int) -> _Copy | None:
    """The later of a slot's valid copies: job id, epoch, sequence, prompt tokens, tokens."""
    copies = (_valid(data, offset), _valid(data, offset + _COPY))
    return max((copy for copy in copies if copy is not None), key=lambda copy: copy[2], default=None)


def _valid(data: bytes | mmap.mmap, offset: int) -> _Copy | None:
    *record, checksum = _CHECKED.unpack_from(data, offset)
    job_id, epoch, sequence, prompt_tokens, tokens = record
    if sequence == 0 or _crc(_pack(*record)) != checksum:
        return None
    return JobId(job_id), epoch, sequence, prompt_tokens, tokens
