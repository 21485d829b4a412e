"""The hosts that a payer may ask: found or named, kept for a while, with its own record of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tallystick import hosts
from tallystick.chain import Chain
from tallystick.devnet import Devnet
from tallystick.errors import SessionError
from tallystick.hosts import UNKNOWN, Hosts
from tallystick.record import Came, Trouble
from tests.market import CAPS, GOOD, Market
from tests.paying import look_always
from tests.stories.parties import free_port

FAILED = Came(trouble=Trouble.FAILED, cause="it broke off")


@pytest.fixture
async def market(
    devnet: Devnet, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Market]:
    look_always(monkeypatch)
    async with AsyncExitStack() as parts:
        yield Market(devnet, chain, tmp_path, parts)


async def test_hosts_are_asked_once_in_a_while(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quote is relied on for a minute, the registry for ten; both are read again after that."""
    first = await market.sell(1, GOOD)
    known = Hosts(market.wallet())
    assert [each.endpoint for each in await known.listings()] == [first.url]
    second = await market.sell(2, GOOD)
    monkeypatch.setattr(hosts, "QUOTE_AGE", -1.0)
    assert [each.endpoint for each in await known.listings()] == [first.url]
    monkeypatch.setattr(hosts, "REGISTRY_AGE", -1.0)
    assert [each.endpoint for each in await known.listings()] == [first.url, second.url]
    first.cut()
    with pytest.raises(SessionError, match="does not answer"):
        await known.renew(first.url)
    assert [each.endpoint for each in await known.listings() if each.quote] == [second.url]


async def test_a_host_whose_intervals_do_not_fit_is_not_asked(market: Market) -> None:
    """What the payer would sign at a time has to be within what the host takes."""
    await market.sell(1, GOOD, interval_max=50)
    known = Hosts(market.wallet())
    [listing] = await known.listings()
    assert "it takes intervals of" in listing.trouble
    with pytest.raises(SessionError, match="intervals"):
        await known.sold(market.devnet.dollar, CAPS)


async def test_what_a_named_host_lacks_is_told(market: Market) -> None:
    """One that does not answer is listed with its trouble, beside those that do."""
    good = await market.sell(1, GOOD)
    gone = f"http://127.0.0.1:{free_port()}"
    found = await Hosts(market.wallet(), [gone, good.url, gone]).listings()
    assert [(each.host, each.endpoint) for each in found] == [
        (UNKNOWN, gone),
        (market.host(1), good.url),
    ]
    assert "no host answers" in found[0].trouble


async def test_a_record_outlives_the_program(market: Market) -> None:
    """What came of a host is known to the next run, and to another program with the same store."""
    await market.sell(1, GOOD)
    cheap = await market.sell(2, GOOD, price="0.10")
    known, beside = Hosts(market.wallet()), Hosts(market.wallet())
    await beside.listings()
    chosen = await known.choose("scripted", market.devnet.dollar, CAPS)
    assert chosen is not None
    assert chosen.candidate.url == cheap.url
    await known.note(market.host(2), FAILED)
    for each in (known, Hosts(market.wallet())):
        other = await each.choose("scripted", market.devnet.dollar, CAPS)
        assert other is not None
        assert other.candidate.host == market.host(1)
        assert each.is_aside(market.host(2))
