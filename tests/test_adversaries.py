"""Both sides of a job among liars: nobody loses more than law 3 allows, and a lesser program is found out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tallystick.devnet import Devnet
from tests import scratch
from tests.adversaries.campaign import campaign, seeds_of, silent
from tests.adversaries.ground import Faults
from tests.adversaries.oracle import Result
from tests.adversaries.report import line

SESSIONS = 100


@pytest.mark.timeout(900)
async def test_nobody_loses_more_than_law_3_allows(devnet: Devnet) -> None:
    """Law 3: whoever lies, and however, the other side loses no more than two credits, or what it signed for.

    Host and payer are processes, and losses are read from the chain and the sockets. Every lie is told.
    """
    with scratch.directory() as directory:
        results = await campaign(devnet, Path(directory), range(SESSIONS))
    assert [line(result) for result in results if result.wrong] == []
    assert silent(results) == []


@pytest.mark.timeout(900)
async def test_a_lesser_host_and_a_lesser_payer_are_found_out(devnet: Devnet) -> None:
    """A node that lends twice or takes any signature is seen to, and a payer that signs any count."""
    faults = Faults(node=("lends_twice", "takes_any_signature"), payer=("signs_whatever_is_counted",))
    lends, forged = "never signs, and breaks off when it is to", "forges the signature"
    counts, honest = "counts more tokens than there are", "counts honestly"
    sessions = {lends: 3, forged: 6, counts: 2, honest: 1}
    seeds = [seed for name, number in sessions.items() for seed in seeds_of(name, number)]
    with scratch.directory() as directory:
        results = await campaign(devnet, Path(directory), seeds, faults)
    found = {name: [result for result in results if result.lie == name] for name in sessions}
    assert any(1 < _share(result) <= 2 for result in found[lends])
    assert any(_share(result) > 2 for result in found[forged])  # more than lending twice brings about
    assert any("bears out" in told for result in found[counts] for told in result.wrong)
    assert [line(result) for result in found[honest] if result.wrong] == []


def _share(result: Result) -> float:
    """What the host lost, of what it may lose."""
    assert result.host is not None
    return result.host.tokens / result.host.most
