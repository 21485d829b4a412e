"""The doctor: every cause for which a host is not paid fails its own check, and says what mends it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from tallystick import doctor
from tallystick.chain import Chain
from tallystick.config import HostConfig, Secret
from tallystick.counter import Counter
from tallystick.devnet import Devnet, account
from tallystick.doctor import (
    CHECKS,
    ChainFacts,
    Facts,
    JobFacts,
    NodeFacts,
    examine,
    judge,
)
from tallystick.errors import ChainError, ConfigError, LedgerError
from tallystick.ledger import Ledger
from tallystick.networks import DEVNET, deployment
from tallystick.proof import address
from tallystick.types import Check, Job, JobId, JobStatus, Prices, Totals

TestServer.__test__ = False  # pytest would collect it by its name

HOST = account(1)
OTHER = account(4).address
NOTHING = Totals()
MODEL = Path(doctor.__file__).parent / "models" / "tally-demo.gguf"
CONFIG = HostConfig(host_private_key=Secret(HOST.private_key), host_address=HOST.address, model_path=MODEL)
CHAIN = ChainFacts(
    "127.0.0.1:8545", deployment(DEVNET), code=True, registered=True, balance=10**18, fee=10**9
)
NODE = NodeFacts("http://127.0.0.1:8402", HOST.address, paid=True, models=("m",), reasons=())
PAID = JobFacts(
    JobId(7), 100, False, False, Totals(10, 130), Totals(10, 125), Totals(10, 100), confirmed=Totals(10, 100)
)
SOUND = Facts(CONFIG, CHAIN, NODE, (PAID,))


def failing(facts: Facts) -> dict[str, Check]:
    """The checks that fail, by name. None of them is without a mend, none shows the key."""
    checks = judge(facts)
    assert len(checks) == len(CHECKS)
    for check in checks:
        assert check.passed == (not check.mend)
        assert HOST.private_key.hex() not in check.seen + check.mend
    return {check.name: check for check in checks if not check.passed}


def test_a_host_that_is_paid_passes_every_check() -> None:
    """With all conditions met nothing fails, and nothing is left to mend."""
    assert failing(SOUND) == {}


@pytest.mark.parametrize(
    ("facts", "name", "seen", "mend"),
    [
        (
            replace(SOUND, config=replace(CONFIG, host_private_key=None)),
            "HOST_PRIVATE_KEY",
            "not set",
            "set HOST_",
        ),
        (replace(SOUND, config=replace(CONFIG, host_address=OTHER)), "HOST_ADDRESS", OTHER, "HOST_ADDRESS="),
        (replace(SOUND, chain=ChainError("gone")), "RPC_URL", "gone", "tally devnet"),
        (replace(SOUND, chain=ConfigError("on chain 1")), "chain", "on chain 1", "RPC_URL"),
        (replace(SOUND, chain=replace(CHAIN, code=False)), "contracts", "no code", "tally devnet"),
        (
            replace(SOUND, chain=replace(CHAIN, registered=False)),
            "registered",
            "not reg",
            "tally host register",
        ),
        (replace(SOUND, chain=replace(CHAIN, balance=10**13)), "gas", "for 0 settlements", "send ETH"),
        (replace(SOUND, config=replace(CONFIG, model_path=None)), "engine", "neither", "MODEL_PATH"),
        (replace(SOUND, model=False), "engine", "no file", "MODEL_PATH"),
        (replace(SOUND, unread=("Line 2 of .env sets nothing.",)), "settings", "Line 2", ".env"),
        (
            replace(
                SOUND,
                config=replace(CONFIG, host_private_key=None),
                node=replace(NODE, paid=False),
                jobs=(replace(PAID, confirmed=NOTHING),),
            ),
            "settled",
            "100 tokens are due",
            "set HOST_PRIVATE_KEY",
        ),
        (replace(SOUND, node="nothing answers"), "node", "nothing answers", "tally host run"),
        (replace(SOUND, node=replace(NODE, reasons=("no disk",))), "node", "no disk", "log"),
        (replace(SOUND, node=replace(NODE, host=OTHER)), "node", OTHER, "tally host run"),
        (replace(SOUND, node=replace(NODE, paid=False)), "node", "other settings", "tally host run"),
        (replace(SOUND, jobs=()), "requests", "not yet", "tally chat"),
        (replace(SOUND, jobs=(replace(PAID, counted=NOTHING),)), "tokens", "not yet", "tally chat"),
        (
            replace(SOUND, jobs=(replace(PAID, counted=Totals(1, 62), due=NOTHING, confirmed=NOTHING),)),
            "threshold",
            "job 7 has 62 of 100 tokens",
            "tally job complete 7",
        ),
        (
            replace(SOUND, jobs=(replace(PAID, receipted=Totals(), due=NOTHING, confirmed=NOTHING),)),
            "threshold",
            "its payer signed for 0",
            "a client that signs",
        ),
        (replace(SOUND, jobs=(replace(PAID, confirmed=NOTHING),)), "settled", "100 tokens are due", "gas"),
    ],
)
def test_each_cause_fails_its_check(facts: Facts, name: str, seen: str, mend: str) -> None:
    """What keeps a host from being paid is named, with what was seen and what mends it."""
    check = failing(facts)[name]
    assert seen in check.seen
    assert mend in check.mend


def test_a_job_that_pays_only_at_its_end_has_reached_the_threshold() -> None:
    """What was settled when a session ended counts, whole interval or not; a closed job owes nothing."""
    short = replace(PAID, counted=Totals(1, 17), due=NOTHING, confirmed=Totals(1, 17), closed=True)
    assert failing(replace(SOUND, jobs=(short,))) == {}
    reclaimed = replace(PAID, confirmed=NOTHING, closed=True)
    assert failing(replace(SOUND, jobs=(reclaimed,))) == {}


def test_what_cannot_be_told_fails_and_says_what_comes_first() -> None:
    """A check that hangs on another one does not pass by default."""
    price = failing(replace(SOUND, wrong={"HOST_PRICE": "HOST_PRICE: bad."}))
    assert [check.seen for check in price.values()] == ["HOST_PRICE: bad."]
    listen = failing(replace(SOUND, node=None, wrong={"HOST_LISTEN": "HOST_LISTEN: bad."}))
    assert set(listen) == {"settings", "node"}
    assert listen["node"].mend == "mend HOST_LISTEN first"
    down = failing(replace(SOUND, chain=ChainError("gone")))
    assert set(down) == {"RPC_URL", "chain", "contracts", "registered", "gas"}
    assert down["gas"].mend == "mend RPC_URL first"
    damaged = failing(replace(SOUND, jobs=LedgerError("the ledger is damaged")))
    assert set(damaged) == {"requests", "tokens", "threshold", "settled"}
    assert all("damaged" in check.seen for check in damaged.values())


# Gathering, from a real chain, ledger and socket


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, devnet: Devnet) -> pytest.MonkeyPatch:
    """The environment of the devnet's host, in a directory without a `.env`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RPC_URL", devnet.rpc_url)
    monkeypatch.setenv("HOST_PRIVATE_KEY", HOST.private_key.hex())
    monkeypatch.setenv("MODEL_PATH", str(MODEL))
    monkeypatch.setenv("HOST_DATA_DIR", str(tmp_path / "host"))
    monkeypatch.setenv("HOST_LISTEN", f"127.0.0.1:{unused_port()}")
    return monkeypatch


async def failures() -> dict[str, Check]:
    """What fails of what is found out now."""
    return {check.name: check for check in await examine() if not check.passed}


async def test_a_fresh_host_has_to_register_serve_and_wait(
    settings: pytest.MonkeyPatch, chain: Chain
) -> None:
    """Settings, chain, contracts and gas hold; the host registers, starts its node, waits for requests."""
    assert set(await failures()) == {"registered", "node", "requests", "tokens", "threshold"}
    await chain.transact(chain.register(HOST.address, "{}"), HOST.private_key)
    assert "registered" not in await failures()


async def test_an_account_without_eth_is_seen(settings: pytest.MonkeyPatch, devnet: Devnet) -> None:
    """A host that cannot pay for gas cannot settle."""
    await devnet.set_balance(HOST.address, 0)
    assert "for 0 settlements" in (await failures())["gas"].seen


async def test_an_endpoint_that_is_down_is_seen(settings: pytest.MonkeyPatch) -> None:
    """The URL may hold a key: only its host and port are shown."""
    settings.setenv("RPC_URL", f"http://127.0.0.1:{unused_port()}/v2/secret")
    failed = (await failures())["RPC_URL"]
    assert "cannot be reached" in failed.seen
    assert "secret" not in failed.seen


async def test_each_of_several_endpoints_is_shown(settings: pytest.MonkeyPatch, devnet: Devnet) -> None:
    """One that is down does not keep the host from being paid, and is named; its URL is not."""
    down = f"127.0.0.1:{unused_port()}"
    settings.setenv("RPC_URL", f"http://{down}/secret,{devnet.rpc_url}")
    [check] = [check for check in await examine() if check.name == "RPC_URL"]
    assert check.passed
    assert f"{down} cannot be reached" in check.seen
    assert f"{devnet.rpc_url.removeprefix('http://')} is at block" in check.seen
    assert "secret" not in check.seen


async def test_another_chain_is_seen(settings: pytest.MonkeyPatch) -> None:
    """An endpoint that answers, on a chain without our contracts, fails as the wrong chain."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"jsonrpc": "2.0", "id": (await request.json())["id"], "result": "0x1"})

    routes = web.Application()
    routes.router.add_post("/", answer)
    async with TestServer(routes) as server:
        settings.setenv("RPC_URL", str(server.make_url("/")))
        failed = await failures()
    assert "RPC_URL" not in failed
    assert "chain 1;" in failed["chain"].seen


async def test_a_stranger_on_the_nodes_port_is_no_node(settings: pytest.MonkeyPatch) -> None:
    """Something that answers, and not as a node does, is not taken for one."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(["hello"])

    routes = web.Application()
    routes.router.add_get("/{path:.*}", answer)
    async with TestServer(routes) as server:
        settings.setenv("HOST_LISTEN", f"127.0.0.1:{server.port}")
        assert "no node" in (await failures())["node"].seen


def job(number: int) -> Job:
    """A job of the devnet's host, as a ledger keeps it."""
    return Job(
        id=JobId(number),
        payer=OTHER,
        host=HOST.address,
        asset=deployment(DEVNET).asset("tUSD"),
        signer=address(number.to_bytes(32, "big")),
        deposit=2_000_000,
        prices=Prices(900_000, 200_000),
        max_tokens_per_second=0,
        claim_window=3_600,
        created_at=1,
        expires_at=2**40,
        asked_at=0,
        closes_at=2**41,
        settled=NOTHING,
        owed=0,
        fee=0,
        status=JobStatus.OPEN,
        interval=100,
    )


async def test_a_ledger_in_use_is_read_and_left_alone(settings: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The node holds the ledger's lock and goes on writing: what it counted a moment ago is seen."""
    directory = tmp_path / "host"
    async with Ledger(directory) as ledger:
        row = await ledger.adopt(job(3))
        with Counter(directory / "counter") as counter:
            counter.open(JobId(3), row.epoch).add(11, 62)
            failed = await failures()
            assert not {"requests", "tokens"} & set(failed)
            assert "job 3 has 62 of 100 tokens" in failed["threshold"].seen
        await ledger.checkpoint(JobId(3), Totals(11, 63))
        failed = await failures()
    assert "job 3 has 63 of 100 tokens" in failed["threshold"].seen


async def test_a_damaged_ledger_is_told_as_one(settings: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file that is no ledger fails the checks that need it, with its path."""
    path = tmp_path / "host" / "ledger.db"
    path.parent.mkdir()
    await asyncio.to_thread(path.write_text, "not a database at all" * 100)
    assert str(path) in (await failures())["tokens"].seen


async def test_settings_that_make_no_sense_fail_first(settings: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A key that cannot be read is named, and not shown; what does not hang on it is told all the same."""
    settings.setenv("HOST_PRIVATE_KEY", "0x" + "zz" * 32)
    settings.setenv("HOST_ADDRESS", HOST.address)
    settings.setenv("HOST_GRACE", "soon")
    (tmp_path / ".env").write_text("HOST_PRICE=1\nwhat is this\n")
    failed = await failures()
    assert "HOST_PRIVATE_KEY" in failed["settings"].seen
    assert "zz" not in failed["settings"].seen
    assert "HOST_GRACE" in failed["settings"].seen
    assert "Line 2 of .env sets nothing" in failed["settings"].seen
    assert not {"RPC_URL", "chain", "contracts", "gas", "engine", "settled"} & set(failed)
    assert failed["node"].mend == "mend HOST_PRIVATE_KEY first"
    settings.setenv("MODEL_PATH", "nowhere.gguf")
    assert "nowhere.gguf" in (await failures())["engine"].seen


def test_every_check_says_what_it_is_about() -> None:
    """The list of the checks can be read as the list of conditions."""
    assert all(check.__doc__ for check in CHECKS)
    names = [check.name for check in judge(SOUND)]
    assert len(set(names)) == len(names)
