"""How long a job waits after its claim failed, and what ends that sooner.

It waits twice as long each time, so that what is wrong with one job costs little. A new fact ends the wait:
its end was asked for, the chain answers again, the node stops. Rules only; times are in seconds, on any clock
that only goes forward.
"""

from __future__ import annotations

from dataclasses import dataclass

from tallystick.rows import Outstanding
from tallystick.types import JobId

FIRST, LONGEST = 5.0, 600.0
"""Seconds that a job waits: at first, doubled each time, and at most."""


@dataclass(frozen=True, slots=True)
class _Pause:
    until: float
    length: float
    complete: bool
    """The claim that failed was to close the job."""


class Pauses:
    """The jobs whose last claim failed."""

    def __init__(self) -> None:
        self._pauses: dict[JobId, _Pause] = {}
        self._longest = LONGEST

    def __contains__(self, job_id: JobId) -> bool:
        return job_id in self._pauses

    def failed(self, job_id: JobId, now: float, *, complete: bool) -> float:
        """A claim came to nothing; for how long the job waits. `complete`: it was to close the job."""
        before = self._pauses.get(job_id)
        length = FIRST
        if before is not None and (before.complete or not complete):
            length = min(max(FIRST, 2 * before.length), self._longest)
        self._pauses[job_id] = _Pause(now + length, length, complete)
        return length

    def holds(self, job: Outstanding, now: float) -> bool:
        """True while the job waits. One whose end was asked for since its claim failed does no longer."""
        pause = self._pauses.get(job.job_id)
        return pause is not None and now < pause.until and (pause.complete or not job.complete)

    def settled(self, job_id: JobId) -> None:
        """A claim of the job's did what it was for."""
        self._pauses.pop(job_id, None)

    def end(self) -> None:
        """All of them are over, and short again; the jobs are still ones whose claim failed."""
        for job_id, pause in self._pauses.items():
            self._pauses[job_id] = _Pause(float("-inf"), 0.0, pause.complete)

    def hurry(self) -> None:
        """The same, and from now on none is longer than the first."""
        self._longest = FIRST
        self.end()
