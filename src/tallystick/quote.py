"""What a host promises: its offer, signed, and good until a moment that the quote says (protocol §3, §7).

A promise is on the disk before it is made, so that a host which comes back with other terms keeps it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from tallystick import proof
from tallystick.admission import Offer
from tallystick.errors import LedgerError
from tallystick.keccak import keccak
from tallystick.types import Address, Model, Prices

FILE = "quotes.json"
"""Beside the ledger."""
_PRICE = "Price(string model,address asset,uint256 perMillion,uint256 promptPerMillion)"
_QUOTE = (
    "Quote(string endpoint,address host,Price[] prices,uint64 intervalMin,uint64 intervalMax,"
    "uint64 claimWindowMin,uint64 expiryMargin,uint64 confirmations,uint64 receiptTimeout,uint64 grace,"
    "uint256 relayFee,uint64 validUntil)"
)
PRICE_TYPE = keccak(_PRICE.encode())
QUOTE_TYPE = keccak((_QUOTE + _PRICE).encode())


def digest(quote: Mapping[str, Any]) -> bytes:
    """The 32 bytes that a host signs of a quote, as `GET /v1/host` shows it. KeyError for a lesser one."""
    prices = b"".join(
        keccak(PRICE_TYPE + _text(model["name"]) + _address(asset) + _prices(price))
        for model in quote["models"]
        for asset, price in sorted(model["prices"].items(), key=lambda entry: str(entry[0]).lower())
    )
    interval = quote["interval"]
    numbers = [interval["min"], interval["max"], quote["claim_window_min"], quote["expiry_margin"]]
    numbers += [quote["confirmations"], quote["receipt_timeout"], quote["grace"]]
    numbers += [int(quote["relay_fee"]), quote["valid_until"]]
    words = _text(quote["endpoint"]) + _address(quote["host"]) + keccak(prices) + _words(*numbers)
    return proof.Domain(quote["chain_id"], quote["contract"]).typed(keccak(QUOTE_TYPE + words))


def _text(text: str) -> bytes:
    return keccak(text.encode())


def _address(address: str) -> bytes:
    return bytes(12) + bytes.fromhex(address[2:])


def _prices(price: Mapping[str, str]) -> bytes:
    return _words(int(price["per_million"]), int(price["prompt_per_million"]))


def _words(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(32, "big") for number in numbers)


class _Prices(msgspec.Struct):
    per_million: str
    prompt_per_million: str


class _Model(msgspec.Struct):
    name: str
    prices: dict[str, _Prices]


class _Promise(msgspec.Struct):
    """One entry of the file."""

    host: str | None
    models: list[_Model]
    interval_max: int
    claim_window_min: int
    valid_until: int
    relay_fee: str = "0"


@dataclass(frozen=True, slots=True)
class Promise:
    """An offer that holds until `valid_until`, in seconds of the chain's clock."""

    offer: Offer
    valid_until: int


class Promises:
    """What the host's quotes promise. `seconds`: for how long a new one is good."""

    def __init__(self, path: Path, offer: Offer, seconds: int) -> None:
        """Reads what was promised before under other terms. LedgerError if that cannot be read."""
        self._path = path
        self._seconds = seconds
        self._writing = asyncio.Lock()
        self._present = Promise(offer, 0)
        self._past = [promise for promise in _read(path, offer) if promise.offer != offer]

    def standing(self, now: int) -> Iterator[Offer]:
        """The offers that hold: the present one, and those of quotes that are still good."""
        yield self._present.offer
        yield from (promise.offer for promise in self._past if now <= promise.valid_until)

    async def extend(self, now: int) -> int:
        """Until when the present offer is promised; for half the time of a quote at least.

        LedgerError if it cannot be written down.
        """
        async with self._writing:
            if self._present.valid_until - now < self._seconds / 2:
                self._past = [promise for promise in self._past if now <= promise.valid_until]
                promise = replace(self._present, valid_until=now + self._seconds)
                await asyncio.to_thread(_write, self._path, [promise, *self._past])
                self._present = promise
            return self._present.valid_until


def _read(path: Path, offer: Offer) -> list[Promise]:
    try:
        entries = msgspec.json.decode(path.read_bytes(), type=list[_Promise])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError) as error:
        raise LedgerError(f"what the host's quotes promised cannot be read from {path}: {error}") from error
    return [_promise_in(entry, offer) for entry in entries if entry.host == offer.host]


def _promise_in(entry: _Promise, offer: Offer) -> Promise:
    """Of models that are served no more nothing can be kept."""
    models = tuple(_model_in(model) for model in entry.models if offer.model(model.name) is not None)
    interval_max, claim_window_min = entry.interval_max, entry.claim_window_min
    past = replace(
        offer,
        models=models,
        interval_max=interval_max,
        claim_window_min=claim_window_min,
        # What a host that sends nothing any more has promised, it cannot keep.
        relay_fee=int(entry.relay_fee) if offer.relay_fee else 0,
    )
    return Promise(past, entry.valid_until)


def _model_in(model: _Model) -> Model:
    prices = {
        Address(asset): Prices(int(price.per_million), int(price.prompt_per_million))
        for asset, price in model.prices.items()
    }
    return Model(model.name, prices)


def _write(path: Path, promises: list[Promise]) -> None:
    entries = [
        {
            **promise.offer.terms(),
            "interval_max": promise.offer.interval_max,
            "valid_until": promise.valid_until,
        }
        for promise in promises
    ]
    new = path.with_suffix(".new")
    try:
        with new.open("wb") as file:
            file.write(msgspec.json.encode(entries))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise LedgerError(f"what a quote promises cannot be written to {path}: {error}") from error
