"""Pauses: a job that failed waits twice as long each time, and not beyond what it waited for."""

from __future__ import annotations

from tallystick.pauses import FIRST, LONGEST, Pauses
from tallystick.rows import Outstanding
from tallystick.types import ETH, Address, JobId

JOB = JobId(7)


def job(*, complete: bool = False) -> Outstanding:
    """What is to be settled of it."""
    return Outstanding(
        job_id=JOB,
        host=Address(ETH),
        asset=ETH,
        amount=1,
        complete=complete,
        must=complete,
        ending=False,
        owner=None,
        elsewhere=False,
    )


def failed(pauses: Pauses, times: int, now: float = 0.0) -> list[float]:
    return [pauses.failed(JOB, now, complete=False) for _ in range(times)]


def test_each_failure_doubles_the_pause_up_to_the_longest() -> None:
    """What stays wrong is tried less and less often, and never less than every ten minutes."""
    assert failed(Pauses(), 9) == [5, 10, 20, 40, 80, 160, 320, 600, 600]


def test_a_job_waits_for_its_pause_and_no_longer() -> None:
    """It is held from its failure until so many seconds later."""
    pauses = Pauses()
    assert not pauses.holds(job(), 0.0)
    failed(pauses, 1, now=100.0)
    assert pauses.holds(job(), 100.0 + FIRST - 0.1)
    assert not pauses.holds(job(), 100.0 + FIRST)


def test_the_wish_to_close_a_job_ends_its_pause() -> None:
    """The claim that failed was another one. If this one fails as well, it waits as after a first failure."""
    pauses = Pauses()
    failed(pauses, 9)
    assert pauses.holds(job(), 1.0)
    assert not pauses.holds(job(complete=True), 1.0)
    assert pauses.failed(JOB, 1.0, complete=True) == FIRST
    assert pauses.holds(job(complete=True), 2.0)
    assert pauses.failed(JOB, 6.0, complete=True) == 2 * FIRST


def test_a_new_fact_ends_all_pauses_and_forgets_no_failure() -> None:
    """The jobs are tried at once, each by itself, and their pauses begin anew."""
    pauses = Pauses()
    failed(pauses, 9)
    pauses.end()
    assert not pauses.holds(job(), 0.0)
    assert JOB in pauses
    assert failed(pauses, 2) == [FIRST, 2 * FIRST]


def test_in_a_hurry_no_pause_grows() -> None:
    """Before a node stops there is no time for long ones."""
    pauses = Pauses()
    failed(pauses, 9)
    pauses.hurry()
    assert not pauses.holds(job(), 0.0)
    assert failed(pauses, 3) == [FIRST] * 3
    assert FIRST < LONGEST


def test_what_is_settled_is_forgotten() -> None:
    """Its next claim goes with the others, without a trial of its own."""
    pauses = Pauses()
    failed(pauses, 2)
    pauses.settled(JOB)
    assert JOB not in pauses
    assert failed(pauses, 1) == [FIRST]
