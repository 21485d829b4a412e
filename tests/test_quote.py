"""A quote is the host's word: signed as wallets sign, on the disk before it is given, kept until its end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eth_account.messages import _hash_eip191_message, encode_typed_data

from tallystick import proof
from tallystick.admission import Offer
from tallystick.errors import LedgerError
from tallystick.networks import Asset
from tallystick.quote import Promises, digest
from tallystick.testing.engine import ScriptedEngine
from tallystick.types import ETH, Address, Model, Prices
from tests.hosting import Hosting

DOLLAR = Address("0x5FbDB2315678afecb367f032d93F642f64180aa3")
HOST = Address("0x70997970C51812dc3A010C7d01b50e0d17dc79C8")
OFFER = Offer(
    domain=proof.Domain(31337, Address("0x9fE46736679d2D9a65F0992F2272dE9f3c7fa6e0")),
    host=HOST,
    models=(
        Model("talky", {DOLLAR: Prices(900_000, 200_000), ETH: Prices(10**14, 10**13)}),
        Model("brief", {DOLLAR: Prices(1, 0)}),
    ),
    assets={ETH: Asset("ETH", 18), DOLLAR: Asset("tUSD", 6)},
    interval_max=1_000,
    claim_window_min=3600,
)
DEARER = replace(OFFER, models=(Model("talky", {DOLLAR: Prices(1_800_000, 400_000)}),), interval_max=500)
QUOTE: dict[str, Any] = {
    **OFFER.terms(),
    "endpoint": "https://host.example",
    "confirmations": 10,
    "receipt_timeout": 10,
    "grace": 60,
    "relay_fee": "0",
    "valid_until": 1_900_000_000,
}
TYPES = {
    "Price": "string model,address asset,uint256 perMillion,uint256 promptPerMillion",
    "Quote": "string endpoint,address host,Price[] prices,uint64 intervalMin,uint64 intervalMax,"
    "uint64 claimWindowMin,uint64 expiryMargin,uint64 confirmations,uint64 receiptTimeout,uint64 grace,"
    "uint256 relayFee,uint64 validUntil",
}


def as_wallets_sign() -> bytes:
    """The digest that eth-account makes of QUOTE."""
    types = {
        name: [dict(zip(("type", "name"), member.split(), strict=True)) for member in members.split(",")]
        for name, members in TYPES.items()
    }
    domain = {"name": "Tallystick", "version": "1", "chainId": 31337}
    message = {
        "endpoint": "https://host.example",
        "host": HOST,
        "prices": [
            {"model": "talky", "asset": ETH, "perMillion": 10**14, "promptPerMillion": 10**13},
            {"model": "talky", "asset": DOLLAR, "perMillion": 900_000, "promptPerMillion": 200_000},
            {"model": "brief", "asset": DOLLAR, "perMillion": 1, "promptPerMillion": 0},
        ],
        "intervalMin": 4,
        "intervalMax": 1_000,
        "claimWindowMin": 3600,
        "expiryMargin": 600,
        "confirmations": 10,
        "receiptTimeout": 10,
        "grace": 60,
        "relayFee": 0,
        "validUntil": 1_900_000_000,
    }
    contract = {"verifyingContract": OFFER.domain.contract}
    return bytes(_hash_eip191_message(encode_typed_data({**domain, **contract}, types, message)))


def test_digest() -> None:
    """What a host signs is what a wallet would make of the quote's typed data."""
    assert digest(QUOTE) == as_wallets_sign()


async def test_a_promise_outlives_a_restart(tmp_path: Path) -> None:
    """A host that starts again with other terms keeps the quoted ones, until the quote's last second."""
    until = await Promises(tmp_path / "quotes.json", OFFER, 3600).extend(1_000)
    assert until == 4_600
    promises = Promises(tmp_path / "quotes.json", DEARER, 3600)
    [present, past] = promises.standing(4_600)
    assert present == DEARER
    assert (past.interval_max, past.model("talky")) == (1_000, OFFER.models[0])
    assert list(promises.standing(4_601)) == [DEARER]


async def test_a_promise_of_the_past_survives_new_ones(tmp_path: Path) -> None:
    """A promise is forgotten by its time, not by what is promised after it."""
    await Promises(tmp_path / "quotes.json", OFFER, 3600).extend(1_000)
    await Promises(tmp_path / "quotes.json", DEARER, 3600).extend(2_000)
    assert len(list(Promises(tmp_path / "quotes.json", DEARER, 3600).standing(4_600))) == 2


async def test_models_that_are_gone(tmp_path: Path) -> None:
    """Nothing is promised of a model that the engine serves no more."""
    await Promises(tmp_path / "quotes.json", OFFER, 3600).extend(1_000)
    _, past = Promises(tmp_path / "quotes.json", DEARER, 3600).standing(1_000)
    assert past.model("brief") is None


async def test_a_quote_is_good_for_half_its_time_at_least(tmp_path: Path) -> None:
    """Who asks late gets a quote that is not about to run out."""
    promises = Promises(tmp_path / "quotes.json", OFFER, 3600)
    assert [await promises.extend(now) for now in (1_000, 2_800, 2_801)] == [4_600, 4_600, 6_401]


async def test_nothing_is_promised_that_cannot_be_written(tmp_path: Path) -> None:
    """Without a disk there is no quote; and a host does not start over promises that it cannot read."""
    with pytest.raises(LedgerError, match="cannot be written"):
        await Promises(tmp_path / "missing" / "quotes.json", OFFER, 3600).extend(1_000)
    (tmp_path / "quotes.json").write_text("{")
    with pytest.raises(LedgerError, match="cannot be read"):
        Promises(tmp_path / "quotes.json", OFFER, 3600)


async def test_served(hosting: Hosting) -> None:
    """A host signs its quote; a job on its terms is served after a restart with dearer ones."""
    cheap = await hosting.serve(ScriptedEngine(), price="0.10", prompt_price="0.10")
    async with cheap.http.get("/v1/host") as answer:
        quote = await answer.json()
    signature = bytes.fromhex(quote["signature"][2:])
    assert proof.recover(digest(quote), signature) == hosting.devnet.accounts.host.address
    assert quote["endpoint"] == cheap.url
    await hosting.parts.aclose()

    dear = await hosting.serve(ScriptedEngine(), price="5", prompt_price="5")
    quoted = await hosting.signer(prices=Prices(100_000, 100_000))
    *_, last, _ = await dear.ask(quoted)
    assert last["tally"]["reason"] == "length"
    status, error = await dear.error(await hosting.signer(prices=Prices(99_999, 100_000)))
    assert (status, error["code"]) == (402, "price_too_low")
    assert error["terms"]["job"]["per_million"] == "5000000"
