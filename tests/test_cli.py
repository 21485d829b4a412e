"""The command line: every command on a real chain with a real node, every error in one line, never a key."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp.test_utils import unused_port
from eth_account import Account as EthAccount
from typer.testing import CliRunner, Result

from tallystick import networks
from tallystick.chain import Chain
from tallystick.cli import app
from tallystick.commands.job import INTERVALS, JOB_MAX
from tallystick.commands.output import keep_logs
from tallystick.config import INTERVAL_MIN
from tallystick.devnet import Account, Anvil, Devnet, account
from tallystick.proof import MAX_JOB_ID, read_bearer
from tallystick.testing.engine import Script, ScriptedEngine, oai_server, say
from tallystick.types import JobId, JobStatus
from tests.deploying import BASE, undeployed

HOST, PAYER, TREASURY = account(1), account(2), account(3)
MODEL = Path(sys.modules["tallystick.cli"].__file__ or "").parent / "models" / "tally-demo.gguf"
HIDE_CURSOR, SHOW_CURSOR = b"\x1b[?25l", b"\x1b[?25h"
NONE: Mapping[str, str | None] = {}
COMMAND = [sys.executable, "-m", "tallystick.cli"]


def shows_a_key(output: str) -> bool:
    """True if one of the devnet's keys is in it."""
    return any(account(index).private_key.hex() in output.lower() for index in range(10))


class Tally:
    """`tally` in this process, with the settings of the devnet's parties."""

    def __init__(self, devnet: Devnet, directory: Path) -> None:
        self.devnet = devnet
        self.directory = directory
        self.listen = f"127.0.0.1:{unused_port()}"
        self.settings = {
            "RPC_URL": devnet.rpc_url,
            "HOST_PRIVATE_KEY": HOST.private_key.hex(),
            "HOST_DATA_DIR": str(directory / "host"),
            "HOST_LISTEN": self.listen,
            "HOST_URL": f"http://{self.listen}",
            "MODEL_PATH": str(MODEL),
            "PAYER_PRIVATE_KEY": PAYER.private_key.hex(),
            "PAYER_DATA_DIR": str(directory / "payer"),
            "TREASURY_PRIVATE_KEY": TREASURY.private_key.hex(),
        }

    def __call__(
        self, *args: str, status: int = 0, typed: str | None = None, settings: Mapping[str, str | None] = NONE
    ) -> Result:
        """Runs a command, which has to end with `status`, and never shows a key."""
        done = CliRunner().invoke(app, args, env={**self.settings, **settings}, input=typed)
        assert done.exit_code == status, (done.output, done.exception)
        assert not shows_a_key(done.output)
        return done

    def json(self, *args: str, **settings: str) -> Any:
        """What a command prints for machines."""
        return json.loads(self(*args, "--json", settings=settings).stdout)

    def error(self, *args: str, **settings: str | None) -> str:
        """The one line of a command that fails. A setting of None is not set."""
        done = self(*args, status=1, settings=settings)
        assert done.stdout == ""
        [line] = done.stderr.splitlines()
        assert line.startswith("tally: ")
        return str(line)

    @contextmanager
    def node(self, *options: str) -> Iterator[Path]:
        """`tally host run` in a process of its own, which ends in order: its log."""
        log = self.directory / "host.log"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [*COMMAND, "host", "run", *options], env=self.environment, stderr=stderr, cwd=self.directory
            )
        try:
            self._wait_until_ready(process)
            yield log
        finally:
            process.terminate()
            assert process.wait(30) == 0
            assert not shows_a_key(log.read_text())

    @property
    def environment(self) -> dict[str, str]:
        """Of a process of its own."""
        return {"PATH": os.environ["PATH"], **self.settings}

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert process.poll() is None
            try:
                with urllib.request.urlopen(f"http://{self.listen}/healthz") as answer:
                    assert answer.status == 200
                    return
            except OSError:
                time.sleep(0.05)
        pytest.fail("the node was not ready in time")


@pytest.fixture
def tally(devnet: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tally:
    """The command line in a directory without a `.env`."""
    monkeypatch.chdir(tmp_path)
    return Tally(devnet, tmp_path)


def on_chain(devnet: Devnet, ask: Any) -> Any:
    """What the chain says to `ask(chain)`."""

    async def asked() -> Any:
        async with Chain(devnet.rpc_url, devnet.deployment) as chain:
            return await ask(chain)

    return asyncio.run(asked())


def test_help_is_there_at_once_and_names_every_command() -> None:
    """`tally --help` imports neither web3 nor the node; the commands of the documentation are all in it."""
    loaded = "import sys, tallystick.cli; print({'web3', 'starlette', 'xllamacpp'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    for group, commands in {
        (): ("demo", "devnet", "host", "chat", "job", "withdraw", "doctor", "reconcile", "contracts"),
        ("host",): ("register", "unregister", "payout", "run", "jobs", "pending"),
        ("contracts",): ("deploy", "check", "books", "source"),
        ("job",): ("open", "list", "show", "top-up", "complete", "reclaim", "token"),
    }.items():
        told = CliRunner().invoke(app, [*group, "--help"]).stdout
        assert all(re.search(rf"\b{command}\b", told) for command in commands)


def test_a_paid_conversation_from_the_command_line(tally: Tally) -> None:
    """Register, serve, talk in two processes' turns, complete and withdraw: sessions outlive each command."""
    registered = tally.json("host", "register")
    assert registered["host"] == HOST.address
    with tally.node() as log:
        first = tally.json("chat", "Tell me about the tide.", "--max-tokens", "60")
        [reply] = first["replies"]
        assert (reply["tokens"], reply["reason"], first["completed"]) == (60, "length", False)
        second = tally("chat", "--max-tokens", "60", typed="What is a tally stick?\n\nAnd a ledger?\n")
        assert "going on with job 1" in second.stdout
        assert second.stdout.count("[60 tokens") == 2
        assert "tally job complete 1" in second.stdout

        [listed] = tally.json("job", "list")
        assert (listed["job_id"], listed["status"]) == (1, "open")
        shown = tally.json("job", "show", "1")
        assert shown["host_view"]["acknowledged"]["tokens"] == 180
        bearer = read_bearer(tally("job", "token", "1", "--hours", "2").stdout.strip())
        assert bearer.job_id == JobId(1)

        report = tally("doctor")
        assert "FAIL" not in report.stdout

        completed = tally.json("job", "complete", "1")
        assert tally.json("job", "complete", "1") == completed
        again = tally.json("chat", "Hello", "--max-tokens", "5", "--complete")
        assert (again["job_id"], again["completed"]) == (2, True)
        assert "checkpoint.confirmed" in log.read_text()
    earned = tally.json("withdraw")["amount"] + tally.json("withdraw", "--as", "treasury")["amount"]
    jobs = [tally.json("job", "show", number)["completion"] for number in ("1", "2")]
    assert earned == sum(job["owed"] for job in jobs)
    assert all(job["owed"] + job["refund"] == 2_000_000 for job in jobs)


def test_a_host_sees_what_it_is_owed_and_that_all_agrees(tally: Tally) -> None:
    """While the node runs and after; what is changed in its ledger is found. Status 1 for what differs."""
    tally("host", "register")
    assert "no job was asked" in tally("host", "jobs").stdout
    with tally.node():
        assert tally.json("chat", "Tell me about the tide.", "--max-tokens", "130")["job_id"] == 1
        [job] = tally.json("host", "jobs")["jobs"]
        assert (job["state"], job["served"]["tokens"], job["signed"]["tokens"]) == ("open", 130, 130)
        pending = tally("host", "pending").stdout
        assert "    1  0.0000" in pending
        assert "when the job ends" in pending
        report = tally.json("reconcile")
        assert (report["agrees"], report["jobs"]) == (True, 1)
    [asset] = tally.json("host", "jobs")["assets"]
    assert asset["confirmed"]["amount"] == asset["to_withdraw"] == asset["served"]["amount"]
    assert "nothing is owed" in tally("host", "pending").stdout
    assert "tUSD to withdraw: tally withdraw --asset tUSD" in tally("host", "jobs").stdout
    books = tally("contracts", "books").stdout
    assert re.search(r"pass  tUSD held +\S+ tUSD are held, \S+ tUSD owed\n", books)
    assert tally("reconcile").stdout.endswith("chain, ledger and meter agree, to the unit\n")
    with closing(sqlite3.connect(tally.directory / "host" / "ledger.db")) as ledger, ledger:
        ledger.execute("UPDATE jobs SET confirmed_tokens = 100")
    differing = tally("reconcile", status=1).stdout
    assert "    1  not_confirmed_in_ledger" in differing
    assert differing.endswith("1 difference\n")


def test_a_host_is_told_what_its_ledger_knows_while_the_chain_is_away(tally: Tally) -> None:
    """What is shown, and that it is only that; reconciling takes a chain, and says so in a line."""
    tally("host", "register")
    with tally.node():
        tally("chat", "Tell me about the tide.", "--max-tokens", "30")
    away = {"RPC_URL": "http://127.0.0.1:9"}
    told = tally("host", "jobs", settings=away).stdout
    assert "The chain is away" in told
    assert "    1  open" in told
    assert "The chain is away" in tally("host", "pending", settings=away).stdout
    assert "127.0.0.1:9" in tally.error("reconcile", **away)


def test_a_devnet_says_where_it_is_and_keeps_its_keys_out_of_sight(tmp_path: Path) -> None:
    """Keys go into a file that its owner alone can read, never over one that is there; Ctrl-C ends it."""
    command = [*COMMAND, "devnet", "--port", "0", "--env", ".env", "--json"]
    environment = {"PATH": os.environ["PATH"]}
    with subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        printed = "".join(iter(process.stdout.readline, "}\n")) + "}"
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=30)
    assert process.returncode == 0
    assert rest == ("", "")
    told = json.loads(printed)
    assert not shows_a_key(printed)
    assert told["accounts"]["host"] == HOST.address
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    settings = dict(line.split("=", 1) for line in (tmp_path / ".env").read_text().splitlines())
    assert settings["RPC_URL"] == told["rpc_url"]
    assert settings["HOST_PRIVATE_KEY"] == "0x" + HOST.private_key.hex()
    again = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert again.returncode == 1
    assert again.stderr.startswith("tally: .env is there already")


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty chain that says that it is Base, and a `networks.json` of the test's own."""
    monkeypatch.setattr(networks, "FILE", undeployed(tmp_path / "networks.json"))
    loop = asyncio.new_event_loop()
    anvil = Anvil(chain_id=BASE)
    loop.run_until_complete(anvil.start())
    yield anvil.rpc_url
    loop.run_until_complete(anvil.close())
    loop.close()


def test_contracts_are_deployed_once_it_is_agreed_to(tally: Tally, base: str) -> None:
    """The plan with its cost is shown first, and nothing is sent without a yes; what is there is found."""
    deploy = ("contracts", "deploy", "--rpc-url", base, "--treasury", TREASURY.address)
    key = {"DEPLOYER_PRIVATE_KEY": account(0).private_key.hex()}
    shown = tally(*deploy, typed="n\n", status=1, settings=key).stdout
    assert re.search(r"JobMarketplace +0x\w+ +is to be created\n", shown)
    assert re.search(r"\d gas, 0\.0\d+ ETH at the present fee", shown)
    assert "`tally contracts deploy" in tally.error("host", "register", RPC_URL=base)
    assert "`tally contracts deploy" in tally("doctor", status=1, settings={"RPC_URL": base}).stdout

    deployed = json.loads(tally(*deploy, "--yes", "--json", settings=key).stdout)
    assert deployed["recorded"] == str(networks.FILE)
    again = tally(*deploy).stdout
    assert again.count("is there\n") == 2
    registry = tally.json("host", "register", RPC_URL=base)
    assert registry["host"] == HOST.address
    assert "another one" in tally.error(*deploy[:-1], HOST.address)


def test_contracts_that_differ_from_the_build_fail_their_check(tally: Tally) -> None:
    """Status 0 while all is as it was built, 1 from the first byte that is not; a line a check."""
    sound = tally(
        "contracts", "check", "--rpc-url", tally.devnet.rpc_url, settings={"RPC_URL": "http://127.0.0.1:9"}
    )
    assert "FAIL" not in sound.stdout
    assert re.search(r"pass  JobMarketplace +0x\w+: \d+ bytes, as built\n", sound.stdout)
    asyncio.run(tally.devnet.ask("anvil_setCode", tally.devnet.deployment.registry, "0x00"))
    broken = json.loads(tally("contracts", "check", "--json", status=1).stdout)
    assert [check["name"] for check in broken["checks"] if not check["passed"]] == ["NodeRegistry"]
    assert not broken["sound"]


def test_the_compilers_input_is_written_out(tally: Tally) -> None:
    """A file for each contract, with what an explorer asks for beside it."""
    told = tally.json("contracts", "source", "inputs")
    for name, facts in told.items():
        sources = json.loads((tally.directory / facts["file"]).read_text())["sources"]
        assert f"contract {name} " in sources[f"src/{name}.sol"]["content"]
    people = tally("contracts", "source", "inputs").stdout
    assert all(facts["compiler"] in people for facts in told.values())


def test_a_host_registers_itself_and_brings_its_metadata_up_to_date(tally: Tally) -> None:
    """The first time it is registerNode(host, metadata), then updateNode; the chain has what was said."""
    assert "HOST_PRIVATE_KEY is not set" in tally.error("host", "register", HOST_PRIVATE_KEY="")
    assert "--model" in tally.error("host", "register", MODEL_PATH="")
    tally("host", "register")
    told = tally.json("host", "register", "--endpoint", "https://host.example", "--model", "m")["metadata"]
    kept = on_chain(tally.devnet, lambda chain: chain.metadata(HOST.address))
    assert json.loads(kept) == told
    assert told["endpoint"] == "https://host.example"
    [model] = told["models"]
    assert model["name"] == "m"
    assert [price["per_million"] for price in model["prices"].values()] == ["900000"]


def test_a_host_registers_what_its_engine_serves(tally: Tally) -> None:
    """With ENGINE_URL alone the models are the ones that the server there lists, and no node has to run."""
    engine = ScriptedEngine(Script(say("One", " stick.")))

    async def registered() -> Any:
        async with oai_server(engine) as url:
            settings = {"MODEL_PATH": "", "ENGINE_URL": url}
            return await asyncio.to_thread(tally.json, "host", "register", **settings)

    models = asyncio.run(registered())["metadata"]["models"]
    assert [model["name"] for model in models] == engine.models


def test_a_job_without_its_host_comes_back(tally: Tally) -> None:
    """A host that has gone cannot keep the deposit: ask on chain, wait, reclaim. Before that it says when."""
    tally("host", "register")
    with tally.node():
        opened = tally.json("job", "open", "--deposit", "0.5")
        assert (opened["deposit"], opened["status"], opened["interval"]) == (500_000, "open", 100)
    assert "--on-chain" in tally.error("job", "complete", "1")
    assert "does not answer" in tally.json("job", "show", "1")["host_view"]
    asked = tally.json("job", "complete", "1", "--on-chain")
    early = tally.error("job", "reclaim", "1")
    assert "can be reclaimed from 20" in early
    assert "tally job reclaim 1." in early
    again = tally.error("job", "complete", "1", "--on-chain")
    assert "on. The move is yours: from then on: tally job reclaim 1." in again
    asyncio.run(tally.devnet.increase_time(asked["closes_at"]))
    assert tally.json("job", "reclaim", "1")["refund"] == 500_000
    assert tally.json("job", "list") == []
    assert [each["status"] for each in tally.json("job", "list", "--all")] == ["closed"]
    job = on_chain(tally.devnet, lambda chain: chain.job(JobId(1)))
    assert job.status is JobStatus.CLOSED


def test_an_attested_job_says_what_it_is_worth_to_its_host(tally: Tally) -> None:
    """The host's word is paid on it, idle or not: that is said in money before it is used."""
    tally("host", "register")
    with tally.node():
        told = tally("job", "open", "--rate", "50").stdout
    assert "The host's word is paid, up to 50 tokens a second: 0.162 tUSD an hour, idle or not" in told


def test_ctrl_c_ends_a_reply_and_the_job_stays_open(tally: Tally) -> None:
    """What had come is signed for, and what was on its way is less than an interval; the way back is said."""
    tally("host", "register")
    command = [*COMMAND, "chat", "Tell me about the tide.", "--max-tokens", "3000"]
    with (
        tally.node(),
        subprocess.Popen(
            command, env=tally.environment, cwd=tally.directory, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stdout is not None
        assert "opened job 1" in process.stdout.readline()
        process.stdout.read(40)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(30) == 0
        view = tally.json("job", "show", "1")["host_view"]
    assert "interrupted" in rest
    assert "job 1 stays open" in rest
    signed, counted = view["acknowledged"]["tokens"], view["counted"]["tokens"]
    assert 0 < signed <= counted < signed + 100


def test_ctrl_c_between_replies_ends_the_conversation(tally: Tally) -> None:
    """Nobody has to press return as well, and the process ends in order."""
    tally("host", "register")
    command = [*COMMAND, "chat", "--max-tokens", "5"]
    with (
        tally.node(),
        subprocess.Popen(
            command,
            env=tally.environment,
            cwd=tally.directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("Hello\n")
        process.stdin.flush()
        while "[5 tokens" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert "job 1 stays open" in process.stdout.read()


def test_sigterm_leaves_the_terminal_as_it_was(tally: Tally) -> None:
    """Asked to end in the middle of a reply, chat shows the cursor again and says how the job stands."""
    tally("host", "register")
    terminal, its_end = pty.openpty()
    command = [*COMMAND, "chat", "Tell me about the tide.", "--max-tokens", "3000"]
    environment = {**tally.environment, "TERM": "xterm", "COLUMNS": "200"}
    with tally.node():
        process = subprocess.Popen(
            command, env=environment, cwd=tally.directory, stdin=its_end, stdout=its_end, stderr=its_end
        )
        os.close(its_end)
        seen = b""
        while HIDE_CURSOR not in seen:
            seen += os.read(terminal, 4096)
        process.terminate()
        with suppress(OSError):  # how Linux tells that the other side of a terminal is closed
            while read := os.read(terminal, 4096):
                seen += read
        assert process.wait(30) == 0
    os.close(terminal)
    assert seen.rindex(SHOW_CURSOR) > seen.rindex(HIDE_CURSOR)
    assert b"job 1 stays open" in seen


def test_earnings_go_to_the_payout_address(tally: Tally) -> None:
    """Who has moved a host's payout elsewhere cannot be robbed with the host's key: --to is refused."""
    elsewhere = account(4).address
    tally("host", "register")
    with tally.node():
        tally("chat", "Hello", "--max-tokens", "150", "--complete")
    call = lambda chain: chain.transact(chain.set_payout(HOST.address, elsewhere), HOST.private_key)  # noqa: E731
    on_chain(tally.devnet, call)
    assert elsewhere in tally.error("withdraw", "--to", HOST.address)
    drawn = tally.json("withdraw")
    assert drawn["to"] == elsewhere
    asset = tally.devnet.dollar
    assert on_chain(tally.devnet, lambda chain: chain.token_balance(asset, elsewhere)) == drawn["amount"]
    assert "nothing" in tally.error("withdraw")


def test_a_keystore_pays_as_well(tally: Tally, tmp_path: Path) -> None:
    """The payer's key may be in an encrypted file; a wrong password is told as one."""
    keystore = tmp_path / "payer.json"
    keystore.write_text(json.dumps(EthAccount.encrypt(PAYER.private_key, "right", iterations=2)))
    in_file = {"PAYER_PRIVATE_KEY": "", "PAYER_KEYSTORE": str(keystore)}
    wrong = tally.error("withdraw", "--as", "payer", **in_file, PAYER_KEYSTORE_PASSWORD="wrong")
    assert "cannot be opened" in wrong
    right = tally.error("withdraw", "--as", "payer", **in_file, PAYER_KEYSTORE_PASSWORD="right")
    assert f"{PAYER.address} has nothing" in right


@pytest.mark.parametrize(
    ("command", "settings", "told"),
    [
        ("chat hi", {"HOST_URL": "http://127.0.0.1:9"}, "no host answers at http://127.0.0.1:9"),
        ("chat hi --deposit two", {}, "--deposit: "),
        ("chat hi", {"PAYER_PRIVATE_KEY": ""}, "neither PAYER_PRIVATE_KEY nor PAYER_KEYSTORE is set"),
        ("chat hi", {"PAYER_PRIVATE_KEY": "0x" + "00" * 32}, "PAYER_PRIVATE_KEY: "),
        ("chat hi --job 9", {}, "job 9 does not exist on chain 31337"),
        ("chat hi --job 9 --deposit 1", {}, "tally job top-up 9 1"),
        ("chat hi --host notaurl", {}, "--host notaurl: it is not of the form http://HOST:PORT"),
        ("chat hi --host http://127.0.0.1:99999", {}, "it is not of the form"),
        ("chat hi", {"HOST_URL": "http://127.0.0.1:99999"}, "HOST_URL: it is not of the form"),
        ("job open --deposit 0", {}, "--deposit: 0 is not above 0"),
        ("job top-up 9 1", {}, "job 9 does not exist on chain 31337"),
        ("job list", {"RPC_URL": "http://127.0.0.1:9"}, "`tally doctor`"),
        ("job show 9", {}, "job 9 does not exist on chain 31337"),
        ("job reclaim 9", {}, "job 9 does not exist"),
        ("job token 9", {}, "job 9 does not exist on chain 31337"),
        ("job token 9 --hours 1000", {}, "to 720 h"),
        ("job token 9 --hours nan", {}, "to 720 h"),
        ("job token 9 --hours inf", {}, "to 720 h"),
        ("job open --asset GBP", {}, "it has ETH, tUSD"),
        ("withdraw --as treasury", {"TREASURY_PRIVATE_KEY": ""}, "TREASURY_PRIVATE_KEY is not set"),
        ("withdraw --as treasury", {"TREASURY_PRIVATE_KEY": HOST.private_key.hex()}, "only its key"),
        ("withdraw --to nobody", {}, "--to: 'nobody' is not an address"),
        ("contracts deploy --treasury nobody", {}, "--treasury: 'nobody' is not an address"),
        ("contracts check --rpc-url nowhere", {}, "--rpc-url: it is not of the form http"),
        ("host run --level loud", {}, "--level"),
        ("host run", {"MODEL_PATH": ""}, "MODEL_PATH"),
        ("host run", {"MODEL_PATH": "nowhere.gguf"}, "MODEL_PATH"),
        ("host run", {"RPC_URL": "http://127.0.0.1:9"}, "RPC_URL"),
    ],
)
def test_every_expected_error_is_one_line(
    tally: Tally, command: str, settings: dict[str, str], told: str
) -> None:
    """What is wrong stands on standard error in a line that says what mends it, with status 1."""
    assert told in tally.error(*command.split(), **settings)


def test_options_have_the_bounds_of_what_they_stand_for() -> None:
    """The commands start without importing the modules that have them."""
    assert (JOB_MAX, INTERVALS[0]) == (MAX_JOB_ID, INTERVAL_MIN)


@pytest.mark.parametrize(
    "command",
    [
        "job show 0",
        "job open --interval 3",
        "job token 9007199254740992",
        "chat hi --job -1",
        "chat hi --job 9007199254740992",
        "job open --rate 99999999999999",
        "devnet --port 65536",
    ],
)
def test_numbers_out_of_range_are_refused_where_they_are_typed(tally: Tally, command: str) -> None:
    """Usage is status 2, before any setting is read."""
    assert "Invalid value" in tally(*command.split(), status=2).stderr


def test_an_exhausted_job_is_left_for_another_or_topped_up(tally: Tally) -> None:
    """What is signed for counts, settled or not; --deposit opens a new job; attested jobs are no chat's."""
    tally("host", "register")
    with tally.node():
        tally("job", "open", "--deposit", "0.000001")
        tally("job", "open", "--rate", "5")
        first = tally.json("chat", "Hello", "--deposit", "0.0002", "--max-tokens", "150")
        assert first["job_id"] == 3
        assert 0 < first["replies"][0]["left"] < 90
        assert tally.json("chat", "Hello", "--max-tokens", "5")["job_id"] == 4
        assert tally.json("chat", "Hello", "--max-tokens", "5", "--deposit", "1")["job_id"] == 5
        short = tally("chat", "Hello", "--job", "1", status=1).stderr
        assert "deposit_exhausted" in short
        assert "tally job top-up 1 AMOUNT" in short
        topped = tally.json("job", "top-up", "3", "0.5")
        assert (topped["amount"], topped["deposit"]) == (500_000, 500_200)
        assert tally.json("chat", "Hello", "--max-tokens", "5", "--job", "3")["job_id"] == 3


def test_what_is_no_host_is_told_as_that(tally: Tally) -> None:
    """An endpoint of the chain and a path too much are named as what they are."""
    assert "is not a host's base URL" in tally.error("chat", "hi", "--host", tally.devnet.rpc_url)
    with tally.node():
        line = tally.error("chat", "hi", "--host", f"http://{tally.listen}/v1")
    assert "is not a host's base URL" in line


def test_an_unpaid_host_is_known_before_the_money_moves(tally: Tally) -> None:
    """A host without a key cannot complete a job: that is said first, and the payer may go on."""
    tally("host", "register")
    keyless = {"HOST_PRIVATE_KEY": "", "HOST_ADDRESS": HOST.address}
    tally.settings |= keyless
    with tally.node():
        done = tally("job", "open")
    assert "settles nothing" in done.stderr
    assert "opened job 1" in done.stdout


def test_a_job_that_was_ended_meanwhile_is_told_as_closed(tally: Tally) -> None:
    """The last word of a conversation is what the chain says of its job."""
    tally("host", "register")
    with (
        tally.node(),
        subprocess.Popen(
            [*COMMAND, "chat", "--max-tokens", "5"],
            env=tally.environment,
            cwd=tally.directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        assert "opened job 1" in process.stdout.readline()
        assert tally.json("job", "complete", "1")["owed"] == 0
        process.stdin.close()
        assert process.wait(30) in (0, 1)
        rest = process.stdout.read()
    assert "job 1 was closed" in rest
    assert "stays open" not in rest


def test_a_lost_connection_says_how_to_go_on(tally: Tally) -> None:
    """A payer whose host goes away is told the number of its job, and the commands that it can go on with."""
    tally("host", "register")
    with tally.node():
        process = subprocess.Popen(
            [*COMMAND, "chat", "--max-tokens", "5"],
            env=tally.environment,
            cwd=tally.directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        assert "opened job 1" in process.stdout.readline()
    told, _ = process.communicate("Hello\n", timeout=30)
    assert process.returncode == 1
    assert told.startswith("tally: ")
    assert "Go on: tally chat --job 1." in told
    assert "End: tally job complete 1." in told


def test_an_account_without_eth_is_told_before_anything_is_sent(tally: Tally) -> None:
    """A payer that cannot pay for gas is not left with a session key for a job that was never opened."""
    tally("host", "register")
    asyncio.run(tally.devnet.set_balance(PAYER.address, 0))
    with tally.node():
        assert "has no ETH for gas" in tally.error("job", "open")


def test_a_port_in_use_is_told_as_one(tally: Tally) -> None:
    """The node does not come up on a port that is another's; the setting is named."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = tally("host", "run", status=1, settings={"HOST_LISTEN": f"127.0.0.1:{port}"}).stderr
    assert f"HOST_LISTEN 127.0.0.1:{port} cannot be listened on" in line.splitlines()[-1]


def test_a_devnet_does_not_take_a_port_in_use(tally: Tally) -> None:
    """The port is named with the option that changes it, in one line."""
    taken = tally.devnet.rpc_url.rsplit(":", 1)[1]
    assert tally.error("devnet", "--port", taken).startswith(f"tally: port {taken} is in use: choose")


def test_a_nodes_log_can_be_read_by_machines(tally: Tally) -> None:
    """With --json each line of the log is an object with its event."""
    tally("host", "register")
    with tally.node("--json") as log:
        events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert "node.listening" in events


@pytest.mark.parametrize("as_json", [False, True])
def test_a_fault_in_the_log_shows_no_key(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    """A traceback says where it was, and nothing of what was in the variables there."""

    def sign(key: bytes) -> None:
        secret = key.hex()
        raise KeyError(len(secret))

    keep_logs(as_json=as_json)
    try:
        sign(account(1).private_key)
    except KeyError as error:
        structlog.get_logger("test").error("fault", exc_info=error)
    told = capsys.readouterr().err
    assert "KeyError" in told
    assert "in sign" in told
    assert not shows_a_key(told)


def test_what_is_logged_leaves_the_output_alone(tally: Tally) -> None:
    """An endpoint that is set aside is told on standard error; what is printed for programs stays JSON."""
    away = f"http://127.0.0.1:9,{tally.devnet.rpc_url}"
    done = tally("host", "register", "--json", settings={"RPC_URL": away})
    assert json.loads(done.stdout)["host"] == HOST.address
    assert "endpoint.set_aside" in done.stderr


def test_a_host_names_a_payout_address_and_leaves(tally: Tally) -> None:
    """It is shown, changed when it is agreed to, from then on by the new one alone; leaving ends no job."""
    tally("host", "register")
    assert tally.json("host", "payout")["payout"] == HOST.address
    cold = TREASURY.address
    shown = tally("host", "payout", cold, typed="n\n", status=1).stdout
    assert f"goes to {cold}" in shown
    assert tally.json("host", "payout")["payout"] == HOST.address
    assert tally.json("host", "payout", cold, "--yes")["payout"] == cold
    refused = tally.error("host", "payout", HOST.address, "--yes")
    assert "payout" in refused.lower()
    back = tally("host", "payout", HOST.address, "--host", HOST.address, "--yes", settings=as_host(TREASURY))
    assert f"go to {HOST.address}: 0x" in back.stdout
    assert "takes no new jobs" in tally("host", "unregister").stdout
    assert not on_chain(tally.devnet, lambda chain: chain.is_registered(HOST.address))
    assert "TO: " in tally.error("host", "payout", "0x12")


def as_host(account: Account) -> Mapping[str, str]:
    return {"HOST_PRIVATE_KEY": account.private_key.hex()}


def test_a_payer_finds_its_host_and_keeps_the_evidence(tally: Tally, tmp_path: Path) -> None:
    """Hosts are listed with their prices; a job that is over can be checked, offline and on the chain."""
    tally("host", "register")
    assert "unusable" in tally("hosts").stderr
    with tally.node():
        [offer] = tally.json("hosts")["offers"]
        assert (offer["told"], offer["record"]["replies"]) == ("never asked", 0)
        tally("chat", "Why?", "--host", offer["endpoint"], "--complete", "--max-tokens", "20")
    [kept] = (tmp_path / "payer" / "evidence").iterdir()
    assert tally.json("verify", str(kept))["sound"]
    assert tally.json("verify", str(kept), "--rpc-url", tally.devnet.rpc_url)["sound"]
    assert "20 generated tokens" in tally("verify", str(kept)).stdout
    again = tmp_path / "again.json"
    tally("job", "evidence", "1", str(again))
    assert again.read_bytes() == kept.read_bytes() == tally("job", "evidence", "1").stdout.encode()
    again.write_bytes(kept.read_bytes().replace(b'"claim_window": 43200', b'"claim_window": 43201'))
    assert "FAIL  seal" in tally("verify", str(again), status=1).stdout
    again.write_text("{}")
    assert "is no evidence" in tally.error("verify", str(again))


def test_a_key_is_made_where_there_is_none(tally: Tally, tmp_path: Path) -> None:
    """Its address is told and the setting that uses it; it is never written over."""
    file = tmp_path / "payer.key"
    settings = {"PAYER_KEYSTORE_PASSWORD": "a long password"}
    told = tally("key", "new", str(file), settings=settings).stdout
    assert f"PAYER_KEYSTORE={file}" in told
    assert json.loads(file.read_text())["address"].lower() in told.lower()
    assert "may hold money" in tally.error("key", "new", str(file), **settings)
