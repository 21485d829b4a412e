"""The named chains, and where the contracts are on each."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from eth_utils.address import is_checksum_address

from tallystick import networks
from tallystick.artifacts import blueprint, blueprints
from tallystick.devnet import account
from tallystick.errors import ConfigError
from tallystick.networks import DEVNET, Addresses, deployment, network
from tallystick.types import ETH

BASE, BASE_SEPOLIA = 8453, 84532


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `networks.json`, in the place of the package's."""
    copy = tmp_path / "networks.json"
    copy.write_bytes(networks.FILE.read_bytes())
    monkeypatch.setattr(networks, "FILE", copy)
    return copy


def test_the_named_networks_have_circles_dollar() -> None:
    """Base and Base Sepolia have ETH and Circle's own USDC of 6 decimals, and wait for 10 blocks."""
    for chain_id, name, usdc in (
        (BASE, "Base", "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"),
        (BASE_SEPOLIA, "Base Sepolia", "0x036CbD53842c5426634e7929541eC2318f3dCF7e"),
    ):
        planned = network(chain_id).planned(account(0).address)
        assert (planned.chain_id, planned.name, planned.confirmations) == (chain_id, name, 10)
        assert list(planned.assets) == [ETH, usdc]
        assert planned.asset("usdc") == usdc
        assert planned.assets[planned.asset("USDC")].decimals == 6


def test_a_devnets_contracts_follow_from_the_package() -> None:
    """Nothing of a devnet is recorded but its treasury: addresses are computed, the test dollar's too."""
    devnet = deployment(DEVNET)
    registry, marketplace = blueprints(account(3).address)
    assert devnet.treasury == account(3).address
    assert (devnet.registry, devnet.marketplace) == (registry.address, marketplace.address)
    assert devnet.asset("tUSD") == blueprint("TestDollar").address
    assert network(DEVNET).contracts is None
    names = [each.name for each in network(DEVNET).blueprints(devnet.treasury)]
    assert names == ["NodeRegistry", "JobMarketplace", "TestDollar"]


def test_a_network_without_contracts_says_what_puts_them_there(file: Path) -> None:
    """`deployment` of a chain that has none yet is a ConfigError that names the command."""
    known = network(BASE)
    networks.save(msgspec.structs.replace(known, treasury=None, contracts=None))
    with pytest.raises(
        ConfigError, match=r"not on Base \(chain 8453\) yet: `tally contracts deploy --rpc-url"
    ):
        deployment(BASE)


def test_an_unknown_chain_is_refused_by_name() -> None:
    """A chain that nothing is known of is a ConfigError that lists the known ones, and says what to set."""
    with pytest.raises(ConfigError, match=r"chain 1; .* 8453 \(Base\), .* 31337 \(devnet\): set RPC_URL"):
        deployment(1)


def test_what_is_saved_is_found(file: Path) -> None:
    """What is recorded is what `deployment` answers from then on; other networks stay as they are."""
    treasury = account(3).address
    planned = network(BASE).planned(treasury)
    contracts = Addresses(planned.registry, planned.marketplace)
    before = network(BASE_SEPOLIA)
    networks.save(
        msgspec.structs.replace(network(BASE), treasury=treasury, contracts=contracts, from_block=17)
    )
    found = deployment(BASE)
    assert (found.registry, found.marketplace, found.treasury) == (
        *msgspec.structs.astuple(contracts),
        treasury,
    )
    assert (found.from_block, found.assets) == (17, planned.assets)
    assert network(BASE_SEPOLIA) == before
    assert not networks.in_source()


def test_a_recorded_deployment_outlives_the_build(file: Path) -> None:
    """Recorded addresses are taken as they are, whatever this package's code would give."""
    contracts = Addresses(account(7).address, account(8).address)
    networks.save(msgspec.structs.replace(network(BASE), treasury=account(3).address, contracts=contracts))
    assert deployment(BASE).marketplace == account(8).address


def test_saving_what_is_known_changes_nothing(file: Path) -> None:
    """The file is in the form in which it is written, so that a deployment's difference is its own."""
    before = file.read_bytes()
    for known in networks.networks().values():
        networks.save(known)
    assert file.read_bytes() == before
    assert [each.name for each in file.parent.iterdir()] == [file.name]


def test_a_file_that_cannot_be_used_is_told(file: Path) -> None:
    """What makes no sense, and what cannot be written, is a ConfigError with the file's name."""
    draft = file.with_suffix(".new")
    draft.mkdir()
    with pytest.raises(ConfigError, match=r"networks\.json cannot be written"):
        networks.save(network(BASE))
    file.write_text('[{"chain_id": "one"}]')
    with pytest.raises(ConfigError, match=r"networks\.json cannot be read: Expected `int`"):
        network(BASE)


def test_the_package_knows_where_its_source_is() -> None:
    """Here `networks.json` is the source's."""
    assert networks.in_source()


def test_every_address_adds_up() -> None:
    """The checksum of each address in the file holds."""
    for known in networks.networks().values():
        told = [*known.assets, *filter(None, [known.treasury])]
        told += msgspec.structs.astuple(known.contracts) if known.contracts else ()
        assert all(map(is_checksum_address, told))


def test_an_asset_is_found_by_its_symbol() -> None:
    """Symbols are taken in any case, and an unknown one is a ConfigError that lists the known ones."""
    devnet = deployment(DEVNET)
    assert devnet.asset("eth") == ETH
    assert devnet.assets[devnet.asset("TUSD")].decimals == 6
    with pytest.raises(ConfigError, match="no asset 'DOGE' on devnet; it has ETH, tUSD"):
        devnet.asset("DOGE")


def test_one_confirmation_is_the_latest_block() -> None:
    """Confirmations count the block that holds the fact, so the depth to read at is one less."""
    for known in networks.networks().values():
        assert known.planned(account(3).address).depth == known.confirmations - 1 >= 0
