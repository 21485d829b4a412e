"""What was tried for one request, as the client is told of it."""

from __future__ import annotations

from tallystick.errors import HostRefused, PriceRose, Refusal, SessionError
from tallystick.frames import Problem
from tallystick.tries import Tries, Try
from tallystick.types import JobId

GONE = Try("http://1", SessionError("nobody answers"))
FAILED = Try("http://2", HostRefused(Problem(code="engine_failed", detail="it broke")), {"tokens": 3})
ROSE = Try("http://3", PriceRose("it asks 2 now"))


def tries(*each: Try) -> Tries:
    made = Tries()
    for one in each:
        made.add(one)
    return made


def test_of_one_host_its_own_error_is_told() -> None:
    """Where there was nobody else, nothing is put around what the host said."""
    assert tries(FAILED).error is FAILED.error


def test_of_several_hosts_each_is_told() -> None:
    """In words for people, and in members for programs: with the host's code, and what came and was paid."""
    refusal = tries(GONE, FAILED).error
    assert isinstance(refusal, Refusal)
    assert refusal.code == "hosts_failed"
    assert "http://1: nobody answers" in refusal.detail
    assert "http://2: engine_failed: it broke" in refusal.detail
    one, two = refusal.problem()["tried"]
    assert one == {"host": "http://1", "detail": "nobody answers."}
    assert (two["code"], two["tokens"]) == ("engine_failed", 3)


def test_a_price_that_rose_is_no_failure() -> None:
    """Such a host is passed over, and may be asked again where there is no other."""
    made = tries(GONE, ROSE)
    assert sorted(made.urls) == ["http://1", "http://3"]
    assert (list(made.failed), list(made.risen)) == (["http://1"], ["http://3"])


def test_what_a_failed_host_holds_is_named_with_the_way_back() -> None:
    """A cap that is reached while taking over says which jobs hold the money."""
    refusal = tries(GONE).after(Refusal("cap_reached", "--max-per-day leaves 0."), [JobId(7)])
    assert refusal.code == "cap_reached"
    assert refusal.detail.startswith("--max-per-day leaves 0. It was to go on elsewhere: http://1:")
    assert "tally job complete 7 --on-chain" in refusal.detail
