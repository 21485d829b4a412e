"""The contracts as compiled, and the addresses that follow."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from eth_abi.abi import encode

from tallystick.artifacts import CREATE2_PROXY, SALT, artifact, blueprint, blueprints, standard_json
from tallystick.devnet import account
from tallystick.keccak import keccak
from tests.conftest import missing

ROOT = Path(__file__).parent.parent
TREASURY = account(3).address


def test_an_address_is_create2s() -> None:
    """The address is the one of EIP-1014: of proxy, salt and the hash of the init code."""
    for each in blueprints(TREASURY):
        made_of = b"\xff" + bytes.fromhex(CREATE2_PROXY[2:]) + SALT + keccak(each.init_code)
        assert each.address.lower() == "0x" + keccak(made_of)[-20:].hex()
        assert each.order == SALT + each.init_code


def test_the_treasury_decides_the_marketplace_alone() -> None:
    """Registry and treasury are the marketplace's arguments; the registry has none, and stays where it is."""
    registry, marketplace = blueprints(TREASURY)
    same_registry, other = blueprints(account(4).address)
    assert same_registry == registry
    assert other.address != marketplace.address
    assert marketplace.arguments == encode(["address", "address"], [registry.address, TREASURY])
    assert marketplace.init_code == artifact("JobMarketplace").bytecode + marketplace.arguments


def test_the_code_stays_out_of_a_repr() -> None:
    """A blueprint can be printed in a line."""
    assert len(repr(blueprints(TREASURY))) < 1000
    assert blueprint("TestDollar").init_code.hex() not in repr(blueprint("TestDollar"))


@pytest.mark.parametrize("name", ["NodeRegistry", "JobMarketplace"])
def test_the_standard_json_gives_the_very_bytecode(name: str) -> None:
    """What a block explorer is handed, compiled by the pinned compiler, is what the package deploys."""
    if not (ROOT / "node_modules" / "solc").is_dir() or shutil.which("node") is None:
        missing("solc (npm ci)")
    command = [str(ROOT / "scripts" / "solc"), "--standard-json"]
    done = subprocess.run(command, input=standard_json(name), capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert [each for each in answer.get("errors", []) if each["severity"] == "error"] == []
    compiled = artifact(name)
    path, contract = compiled.source.split(":")
    result = answer["contracts"][path][contract]
    assert bytes.fromhex(result["evm"]["bytecode"]["object"]) == compiled.bytecode
    assert json.loads(result["metadata"])["compiler"]["version"] == compiled.compiler


def test_the_standard_json_is_complete_and_no_more() -> None:
    """Each source is inlined under a relative path, and none is a test's."""
    for name in ("NodeRegistry", "JobMarketplace"):
        sources = json.loads(standard_json(name))["sources"]
        assert all(source["content"] for source in sources.values())
        assert all(path.startswith(("src/", "lib/@openzeppelin/")) for path in sources)
