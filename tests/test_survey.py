"""Looking at a host's ledger, meter and chain: as of one moment, while a node runs, chain away or not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from aiohttp.test_utils import unused_port

from tallystick import database, tables
from tallystick.chain import Chain
from tallystick.config import HostConfig
from tallystick.counter import Counter
from tallystick.devnet import Devnet
from tallystick.errors import ChainError, ConfigError, LedgerError
from tallystick.ledger import Ledger
from tallystick.node import COUNTER
from tallystick.survey import ChainFacts, audit, read_ledger, survey
from tallystick.types import Totals
from tests.settling import Host


@pytest.fixture
async def host(chain: Chain, devnet: Devnet, tmp_path: Path, ledger_url: str | None) -> AsyncIterator[Host]:
    await chain.transact(chain.register(devnet.accounts.host.address, "{}"), devnet.accounts.host.private_key)
    async with Ledger(tmp_path, ledger_url) as ledger:
        await ledger.bind(chain.deployment.identity((await chain.block(0)).hash))
        yield Host(devnet, chain, ledger)


def nowhere() -> str:
    """An endpoint that nothing answers at."""
    return f"http://127.0.0.1:{unused_port()}"


async def test_while_the_chain_is_away_the_ledger_is_told(host: Host) -> None:
    """It knows by itself which chain it is for; what only the chain can say is an error in its place."""
    job = await host.open()
    await host.sign(job, 100)
    await host.settle()
    found = await survey(host.config(rpc_url=nowhere()))
    assert isinstance(found.chain, ChainError)
    assert found.deployment == host.chain.deployment
    [entry] = found.ledger.entries
    assert (entry.row.job.id, entry.row.confirmed) == (job, Totals(0, 100))
    with pytest.raises(ChainError):
        await audit(host.config(rpc_url=nowhere()))


async def test_a_ledger_of_another_chain_is_refused(host: Host) -> None:
    """Its job numbers mean other jobs here."""
    host.rewrite(sa.update(tables.identity).values(identity="31337:0x00:0x01"))
    with pytest.raises(LedgerError, match="31337:0x00:0x01"):
        await survey(host.config())


async def test_without_a_ledger_there_are_no_jobs(devnet: Devnet, tmp_path: Path) -> None:
    """A node that never ran has none, and nothing is made by looking. With no chain either: ChainError."""
    config = HostConfig(host_address=devnet.accounts.host.address, rpc_url=devnet.rpc_url, data_dir=tmp_path)
    found = await survey(config)
    assert (found.ledger.entries, found.ledger.identity, found.has_key) == ((), None, False)
    assert isinstance(found.chain, ChainFacts)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ChainError):
        await survey(HostConfig(host_address=config.host_address, rpc_url=nowhere(), data_dir=tmp_path))


async def test_it_takes_a_host_to_look_for(devnet: Devnet) -> None:
    """An address is enough: looking takes no key."""
    with pytest.raises(ConfigError, match="HOST_ADDRESS"):
        await survey(HostConfig(rpc_url=devnet.rpc_url))


async def test_a_ledger_that_cannot_be_read_is_told_as_such(devnet: Devnet, tmp_path: Path) -> None:
    """With the place where it is, and without a traceback."""
    (tmp_path / database.DATABASE).write_bytes(b"no database, but long enough to be taken for one" * 20)
    config = HostConfig(host_address=devnet.accounts.host.address, rpc_url=devnet.rpc_url, data_dir=tmp_path)
    with pytest.raises(LedgerError, match=database.DATABASE):
        await survey(config)


async def test_the_ledger_is_read_as_of_one_moment(host: Host) -> None:
    """What is written meanwhile is in none of what is read: figures of one look fit each other."""
    job = await host.open()
    with database.looking(host.ledger.url) as connection:
        assert connection is not None
        count = sa.select(sa.func.count()).select_from(tables.receipts)
        before = connection.scalar(count)
        await host.sign(job, 100)
        assert connection.scalar(count) == before == 0


async def test_a_slot_counts_in_its_own_epoch_alone(host: Host) -> None:
    """A process that has lost the job since counts for nothing; a job that nobody knows is a stray."""
    job = await host.open()
    await host.sign(job, 50, due=False)
    row = await host.ledger.job(job)
    assert row is not None
    with Counter(host.ledger.data_dir / COUNTER) as counter:
        counter.open(job, row.epoch - 1, Totals(0, 80))
        [entry] = read_ledger(host.config(), 0).entries
        assert (entry.slot, entry.counted) == (None, Totals(0, 50))
        counter.open(job, row.epoch, Totals(0, 70))
        [entry] = read_ledger(host.config(), 0).entries
        assert (entry.slot, entry.counted) == (Totals(0, 70), Totals(0, 70))


async def test_a_node_runs_while_its_lease_lasts(host: Host) -> None:
    """That is what tells whether anything is going to be settled."""
    assert read_ledger(host.config(), 0).running
    await host.ledger.close()
    assert not read_ledger(host.config(), 0).running
