"""Which host is asked: laws of the order, and the reason that goes with it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tallystick.caps import Caps
from tallystick.discovery import Listing
from tallystick.errors import Refusal, SessionError
from tallystick.networks import DEVNET, deployment
from tallystick.opening import Quote
from tallystick.ranking import Candidate, check_sold, choose, offers, ranked, told, within
from tallystick.record import Came, Record, Trouble
from tallystick.types import ETH, Address, Prices

HERE = deployment(DEVNET)
DOLLAR = HERE.asset("tUSD")
NOW = 1_000.0
CAPS = Caps(1, 1)
BROKEN = Came(0, None, Trouble.FAILED, "the reply broke off")
GOOD = Came(10, 0.1)


def host(number: int) -> Address:
    return Address("0x" + f"{number:02x}" * 20)


def candidate(
    number: int, price: int = 1_000, *came: Came, at: float = NOW, engaged: bool = False
) -> Candidate:
    record = Record(host(number))
    for each in came:
        record = record.after(each, at, 60.0)
    return Candidate(host(number), f"http://{number}", "tally", Prices(price, 0), record, engaged)


def listing(number: int, models: dict[str, int], asset: Address = DOLLAR) -> Listing:
    sold = {name: {asset: Prices(price, price // 2)} for name, price in models.items()}
    quote = Quote(
        host(number), DEVNET, HERE.marketplace, sold, 4, 1_000, 3_600, f"http://{number}", 2_000_000_000
    )
    return Listing(host(number), f"http://{number}", quote)


def names(*candidates: Candidate) -> list[str]:
    return [each.url for each in ranked(candidates, NOW)]


def test_the_cheapest_comes_first() -> None:
    """Of hosts that were never asked the lower price wins, in whatever order they are listed."""
    assert names(candidate(1, 30), candidate(2, 10), candidate(3, 20)) == ["http://2", "http://3", "http://1"]


def test_an_open_job_is_used_up_before_another_is_opened() -> None:
    """A dearer host where a job is open comes before a cheaper one; not once it is set aside."""
    there = candidate(1, 30, engaged=True)
    assert names(there, candidate(2, 10))[0] == "http://1"
    failed = candidate(1, 30, BROKEN, engaged=True)
    assert names(failed, candidate(2, 10))[0] == "http://2"


def test_what_was_asked_in_vain_makes_a_host_dearer() -> None:
    """A tenth of the price saved is not worth a fifth of the requests lost."""
    long_ago = NOW - 10_000
    wasteful = candidate(1, 90, *[GOOD] * 9, *[BROKEN] * 2, GOOD, at=long_ago)
    assert not wasteful.record.is_aside(NOW)
    assert names(wasteful, candidate(2, 100)) == ["http://2", "http://1"]
    assert names(replace(wasteful, prices=Prices(80, 0)), candidate(2, 100)) == ["http://1", "http://2"]


def test_who_is_set_aside_comes_last() -> None:
    """Whatever it asks; when all are, whoever has failed least in a row is asked all the same."""
    once, twice = candidate(1, 20, BROKEN), candidate(2, 10, BROKEN, BROKEN)
    assert names(once, candidate(3, 99)) == ["http://3", "http://1"]
    assert names(twice, once) == ["http://1", "http://2"]


@pytest.mark.parametrize(
    ("candidates", "why"),
    [
        ([candidate(1)], "no other that is left sells it within the caps"),
        ([candidate(1, engaged=True), candidate(2, 1)], "a job is open there"),
        ([candidate(1, 10), candidate(2, 20)], "the lowest price of 2"),
        ([candidate(1, 10), candidate(2, 5, BROKEN)], "the lowest price of 2, 1 set aside"),
        (
            [candidate(1, 100), candidate(2, 90, BROKEN, GOOD)],
            "the lowest price of 2 once your own record of each counts",
        ),
        (
            [candidate(1, 10, BROKEN), candidate(2, 5, BROKEN, BROKEN)],
            "all 2 are set aside, and it has failed least of late",
        ),
    ],
)
def test_the_reason_is_told(candidates: list[Candidate], why: str) -> None:
    """In words that are so: they name the price, the record or the job that decided."""
    chosen = choose(candidates, NOW)
    assert chosen is not None
    assert (chosen.candidate.url, chosen.why) == ("http://1", why)


def test_of_nobody_nobody_is_chosen() -> None:
    """Without a candidate there is no choice, and no guess."""
    assert choose([], NOW) is None


def test_only_what_the_caps_allow_is_offered() -> None:
    """By model and asset, in the host's order; a listing without a quote offers nothing."""
    whole = listing(1, {"dear": 500, "cheap": 100})
    record = Record(host(1))
    assert [each.model for each in offers(whole, record, DOLLAR, Caps(1, 1, 400))] == ["cheap"]
    assert [each.model for each in offers(whole, record, DOLLAR, CAPS)] == ["dear", "cheap"]
    assert offers(whole, record, ETH, CAPS) == []
    assert offers(replace(whole, quote=None), record, DOLLAR, CAPS) == []


@pytest.mark.parametrize(
    ("listings", "model", "caps", "code"),
    [
        ([listing(1, {"a": 1}), listing(2, {"b": 1})], "c", CAPS, "model_unknown"),
        ([listing(1, {"a": 1}, ETH)], "a", CAPS, "asset_not_accepted"),
        ([listing(1, {"a": 9}), listing(2, {"a": 8})], "a", Caps(1, 1, 7), "price_above_cap"),
        ([listing(1, {"a": 9})], None, Caps(1, 1, 7), "price_above_cap"),
    ],
)
def test_why_nobody_can_be_asked(listings: list[Listing], model: str | None, caps: Caps, code: str) -> None:
    """Each reason has its own refusal."""
    with pytest.raises(Refusal) as refused:
        check_sold(listings, DOLLAR, caps, model)
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("listings", "told_as"),
    [
        ([], "no host is registered.*The move is yours"),
        ([Listing(host(1), "http://1", trouble="it is away")], "^it is away$"),
        ([Listing(host(n), f"http://{n}", trouble="away") for n in (1, 2)], "http://1: away; http://2: away"),
    ],
)
def test_without_any_quote_each_hosts_trouble_is_told(listings: list[Listing], told_as: str) -> None:
    """And whose move it is."""
    with pytest.raises(SessionError, match=told_as):
        check_sold(listings, DOLLAR, CAPS, "a")


def test_a_price_is_within_another_if_neither_part_is_higher() -> None:
    """A prompt price that rose is a price that rose."""
    assert within(Prices(1, 1), Prices(1, 1))
    assert not within(Prices(1, 2), Prices(1, 1))
    assert not within(Prices(2, 1), Prices(1, 1))


def test_a_host_that_is_set_aside_is_told_with_the_cause() -> None:
    """And for how long."""
    record = Record(host(1)).after(BROKEN, NOW, 60.0)
    assert told(record, NOW + 20) == "0 replies, 0 tokens, 1 failed; set aside for 40 s: the reply broke off"
    assert told(record, NOW + 60) == "0 replies, 0 tokens, 1 failed"
