"""How a job is opened."""

from dataclasses import replace
from pathlib import Path

import pytest

from tallystick import proof
from tallystick.chain import Chain
from tallystick.devnet import Devnet
from tallystick.errors import SessionError
from tallystick.networks import DEVNET, deployment
from tallystick.opening import Quote, Wishes, fetch_quote, find_openings, quote_in, terms_for
from tallystick.store import Store, StoredJob
from tallystick.types import ETH, Address, JobId, Prices
from tests.paying import open_job, register

HERE = deployment(DEVNET)
DOLLAR = HERE.asset("tUSD")
SIGNER = proof.address(b"\x01" * 32)
QUOTE = Quote(
    host=Address("0x" + "11" * 20),
    chain_id=DEVNET,
    contract=HERE.marketplace,
    models={"tally": {DOLLAR: Prices(900_000, 200_000)}},
    interval_min=4,
    interval_max=1_000,
    claim_window_min=3_600,
)
NOW = 1_800_000_000


def test_terms_are_the_quotes_prices_and_the_payers_wishes() -> None:
    """Terms name the quote's host and prices, the payer's deposit, the dollar and a week unless told
    otherwise.
    """
    model, terms = terms_for(QUOTE, Wishes(deposit=2_000_000), HERE, SIGNER, NOW)
    assert (model, terms.host, terms.prices) == ("tally", QUOTE.host, Prices(900_000, 200_000))
    assert (terms.asset, terms.deposit, terms.signer) == (DOLLAR, 2_000_000, SIGNER)
    assert (terms.max_tokens_per_second, terms.checkpoint_interval) == (0, 100)
    assert terms.expires_at == NOW + 7 * 24 * 3600


def test_an_attested_job_is_opened_for_an_hour() -> None:
    """A host-attested job is worth rate times time to its host, so its time is short."""
    _, terms = terms_for(QUOTE, Wishes(deposit=1, max_tokens_per_second=50), HERE, SIGNER, NOW)
    assert (terms.max_tokens_per_second, terms.expires_at) == (50, NOW + 3600)


@pytest.mark.parametrize(
    ("quote", "wishes", "told"),
    [
        ({"chain_id": 8453}, {}, "chain 8453"),
        ({"contract": Address("0x" + "99" * 20)}, {}, "this package's contract"),
        ({}, {"model": "another"}, "it has tally"),
        ({}, {"asset": ETH}, "does not sell"),
        ({}, {"interval": 2_000}, "4 to 1000"),
        ({}, {"max_price": 899_999}, "above your 899999"),
    ],
)
def test_what_does_not_meet_is_refused_before_money_moves(
    quote: dict[str, object], wishes: dict[str, object], told: str
) -> None:
    """Another chain or contract, an unknown model, asset or interval, a price above the payer's: an error
    each.
    """
    with pytest.raises(SessionError, match=told):
        terms_for(
            replace(QUOTE, **quote),  # type: ignore[arg-type]
            Wishes(**{"deposit": 1, **wishes}),  # type: ignore[arg-type]
            HERE,
            SIGNER,
            NOW,
        )


@pytest.mark.parametrize("body", [{}, {"host": "0x"}, {"host": "0x", "chain_id": "many"}, []])
def test_what_is_no_quote_is_refused(body: object) -> None:
    """A quote of another form is an error, and not a guess."""
    with pytest.raises(SessionError, match="not a host's base URL"):
        quote_in(body)


def test_a_node_that_serves_no_host_is_told_before_money_moves() -> None:
    """A quote without a host is of a node that was not set up: nobody could settle a job there."""
    body: dict[str, object] = {
        "host": None,
        "chain_id": DEVNET,
        "contract": HERE.marketplace,
        "models": [],
        "interval": {"min": 4, "max": 1_000},
        "claim_window_min": 3_600,
    }
    with pytest.raises(SessionError, match="HOST_PRIVATE_KEY"):
        quote_in(body)


async def test_a_host_that_does_not_answer_is_named() -> None:
    """The error names the URL, and what to look for."""
    with pytest.raises(SessionError, match=r"http://127\.0\.0\.1:9;.*tally host run"):
        await fetch_quote("http://127.0.0.1:9")


async def test_an_interrupted_opening_is_found_again(devnet: Devnet, chain: Chain, tmp_path: Path) -> None:
    """Law 7: a payer stopped between sending and learning the id finds its job by the key in its store."""
    await register(devnet, chain)
    store = Store(tmp_path)
    key = proof.new_key()
    payer = devnet.accounts.payer.address
    opening = StoredJob(
        proof.address(key), key, DEVNET, HERE.marketplace, payer, "http://host", "tally", None, False
    )
    store.opening(opening)
    never_sent = replace(opening, signer=proof.address(b"\x07" * 32), key=b"\x07" * 32)
    store.opening(never_sent)
    signer = await open_job(devnet, chain, key=key)
    assert [job.id for job in await find_openings(chain, store)] == [signer.job.id]
    known = store.job(DEVNET, HERE.marketplace, JobId(signer.job.id))
    assert known is not None
    assert known.key == key
    assert store.openings(DEVNET, HERE.marketplace) == [never_sent]
    store.close()
