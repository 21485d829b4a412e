"""Calls, events and job records as the contracts' ABI writes them: 32-byte words, read as integers.

The package has this too, through web3, at a millisecond a call; a campaign makes millions of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from eth_abi.abi import encode
from eth_utils.abi import (
    event_abi_to_log_topic,
    filter_abi_by_type,
    function_abi_to_4byte_selector,
    get_abi_input_types,
)

from tallystick.artifacts import artifact
from tallystick.types import Address, Terms


@cache
def _function(contract: str, name: str) -> tuple[bytes, list[str]]:
    functions = filter_abi_by_type("function", artifact(contract).abi)
    function = next(each for each in functions if each["name"] == name)
    return function_abi_to_4byte_selector(function), get_abi_input_types(function)


def calldata(contract: str, function: str, *args: Any) -> bytes:
    """A call of a function that its contract has one of."""
    selector, types = _function(contract, function)
    return selector + encode(types, args)


def terms(terms: Terms) -> tuple[Any, ...]:
    """The contract's `Terms`."""
    return (
        *(terms.host, terms.asset, terms.deposit),
        *(terms.prices.per_million, terms.prices.prompt_per_million),
        *(terms.signer, terms.max_tokens_per_second, terms.claim_window),
        *(terms.expires_at, terms.checkpoint_interval, terms.model_id),
    )


def word(value: int | bytes | Address) -> int:
    """A value as the integer that its word is."""
    if isinstance(value, bytes):
        return int.from_bytes(value, "big")
    return int(value, 16) if isinstance(value, str) else value


def words(values: Iterable[int | bytes | Address]) -> list[int]:
    """Many of them."""
    return [word(value) for value in values]


def read_words(data: bytes) -> list[int]:
    """The words in what a contract answered or logged."""
    return [int.from_bytes(data[at : at + 32], "big") for at in range(0, len(data), 32)]


@cache
def _error_words() -> dict[str, int]:
    """The selectors of the marketplace's errors, each as a word holds a `bytes4`."""
    errors = filter_abi_by_type("error", artifact("JobMarketplace").abi)
    return {each["name"]: word(function_abi_to_4byte_selector(each).ljust(32, b"\0")) for each in errors}


def error_word(name: str) -> int:
    """An error in `CheckpointSkipped`."""
    return _error_words()[name]


def error_name(error_word: int) -> str | None:
    """The error that `CheckpointSkipped` names; None for a word that is none."""
    return next((name for name, each in _error_words().items() if each == error_word), None)


@cache
def event_names() -> dict[bytes, str]:
    """The marketplace's events by their topics."""
    events = filter_abi_by_type("event", artifact("JobMarketplace").abi)
    return {event_abi_to_log_topic(each): each["name"] for each in events}


@cache
def job_members() -> list[str]:
    """The members of the contract's `Job`, in order."""
    functions = filter_abi_by_type("function", artifact("JobMarketplace").abi)
    get_job = next(each for each in functions if each["name"] == "getJob")
    return [str(member["name"]) for member in get_job["outputs"][0]["components"]]
