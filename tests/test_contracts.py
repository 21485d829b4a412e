"""What is known of the contracts without a chain."""

from __future__ import annotations

import re

import pytest
from eth_abi.abi import encode
from eth_utils.abi import filter_abi_by_type, function_signature_to_4byte_selector

from tallystick import errors
from tallystick.artifacts import artifact
from tallystick.contracts import EVENTS, decode_revert
from tallystick.devnet import account
from tallystick.errors import ContractError, Panicked, Reverted, UnknownRevert

CONTRACTS = ("JobMarketplace", "NodeRegistry", "TestDollar")


def selector(signature: str) -> bytes:
    return function_signature_to_4byte_selector(signature)


def test_each_contract_error_has_one_class() -> None:
    """The errors of the contracts' ABIs and the subclasses of ContractError are the same set."""
    in_abi = {each["name"] for name in CONTRACTS for each in filter_abi_by_type("error", artifact(name).abi)}
    of_solidity = {"Reverted", "Panicked", "UnknownRevert"}
    classes = {kind.__name__ for kind in ContractError.__subclasses__()}
    assert classes - of_solidity == in_abi
    assert of_solidity < classes


def test_the_docstring_of_an_error_names_only_values_that_it_has() -> None:
    """What an error's docstring puts in backquotes in the form of a value is a value of the ABI's error."""
    for name in CONTRACTS:
        for each in filter_abi_by_type("error", artifact(name).abi):
            values = {value["name"] for value in each.get("inputs", [])}
            told = set(re.findall(r"`(\w+)`", getattr(errors, each["name"]).__doc__))
            assert told <= values | {"updateNode", "withdrawFor"}, each["name"]


def test_each_event_has_one_reader() -> None:
    """All that marketplace and registry log is read, but for EIP-5267's event, which neither ever logs."""
    names = [
        each["name"]
        for contract in ("JobMarketplace", "NodeRegistry")
        for each in filter_abi_by_type("event", artifact(contract).abi)
    ]
    assert set(names) - {"EIP712DomainChanged"} == set(EVENTS)


def test_a_revert_becomes_its_class_with_its_values() -> None:
    """A custom error is decoded from the ABI: values by name, addresses checksummed."""
    data = selector("NotThePayer(address,address)") + encode(
        ["address", "address"], [account(1).address, account(2).address]
    )
    error = decode_revert(data)
    assert type(error) is errors.NotThePayer
    assert error.values == {"caller": account(1).address, "payer": account(2).address}
    assert str(error) == f"NotThePayer(caller={account(1).address}, payer={account(2).address})"


def test_a_plain_string_and_a_panic_are_told() -> None:
    """Solidity's own two errors have classes too."""
    said = decode_revert(selector("Error(string)") + encode(["string"], ["Only host can submit checkpoints"]))
    assert type(said) is Reverted
    assert said.values == {"reason": "Only host can submit checkpoints"}
    overflow = decode_revert(selector("Panic(uint256)") + encode(["uint256"], [0x11]))
    assert type(overflow) is Panicked
    assert overflow.values == {"code": 0x11}


@pytest.mark.parametrize(
    "data", [b"", b"\x01\x02", b"\xde\xad\xbe\xef", selector("NoSuchJob(uint256)") + b"\x01"]
)
def test_a_revert_that_nobody_knows_keeps_its_data(data: bytes) -> None:
    """Data without a known error, or too short for it, is kept as it is rather than guessed at."""
    error = decode_revert(data)
    assert type(error) is UnknownRevert
    assert error.values == {"data": "0x" + data.hex()}
