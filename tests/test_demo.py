"""The demonstration: what it prints is what the chain says, in a pipe as on a terminal."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from tallystick import pricing
from tallystick.books import Books
from tallystick.demo import DEPOSIT, THRESHOLD, TOKENS
from tallystick.devnet import account
from tallystick.errors import ChainError
from tallystick.networks import Asset
from tallystick.types import ETH, Address, Completion, Job, JobId, JobStatus, Prices, Settlement, Totals

ENVIRONMENT = {"PATH": os.environ["PATH"], "TERM": "dumb"}


def demo(*options: str) -> subprocess.CompletedProcess[str]:
    """`tally demo` in a process of its own; it may not show a key."""
    command = [sys.executable, "-m", "tallystick.cli", "demo", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    for index in range(5):
        assert account(index).private_key.hex() not in done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """What `tally demo --json` prints: one object and nothing else."""
    done = demo("--json")
    assert done.stderr == ""
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_every_base_unit_of_the_deposit_is_accounted_for(told: dict[str, Any]) -> None:
    """Law 2: host + treasury + refund = deposit, and each is what the totals are worth at the prices."""
    assert told["deposit"] == DEPOSIT
    assert told["host_earned"] + told["treasury_earned"] + told["refund"] == told["deposit"]
    totals = Totals(told["prompt_tokens"], told["tokens"])
    prices = Prices(told["price_per_million"], told["prompt_price_per_million"])
    owed = pricing.owed(totals, prices)
    assert told["host_earned"] + told["treasury_earned"] == owed
    assert told["treasury_earned"] == owed // 10
    assert told["tokens"] == TOKENS


def test_there_are_two_checkpoints_at_a_hundred_and_at_the_end(told: dict[str, Any]) -> None:
    """The first is the first position at or past 100; the last pays the rest; each pays what is new."""
    first, last = told["checkpoints"]
    assert THRESHOLD <= first["tokens"] < TOKENS == last["tokens"]
    assert first["tx"] != last["tx"]
    for checkpoint in (first, last):
        assert checkpoint["owed"] == checkpoint["host"] + checkpoint["treasury"]
        assert checkpoint["gas"] > 21_000
    for name, total in (("host", "host_earned"), ("treasury", "treasury_earned")):
        assert first[name] + last[name] == told[total]
    assert first["treasury"] == first["owed"] // 10


def test_the_object_says_where_it_happened(told: dict[str, Any]) -> None:
    """Chain, job and contracts are named, so that another program can look them up."""
    assert told["chain_id"] == 31337
    assert told["job_id"] == 1
    assert set(told["contracts"]) == {"JobMarketplace", "NodeRegistry", "TestDollar"}
    assert told["asset"] == told["contracts"]["TestDollar"]


def test_in_a_pipe_the_story_reads_line_by_line() -> None:
    """No escape sequence, nothing twice, under 60 lines; the live line at checkpoints, the sum at the end."""
    done = demo()
    lines = done.stdout.splitlines()
    assert "\x1b" not in done.stdout
    assert "\r" not in done.stdout
    assert len(lines) < 60
    assert done.stderr == ""
    assert "40 tokens a second" in done.stdout
    live = [
        line for line in lines if re.fullmatch(r"-- \d+ tokens · cost [\d.]+ tUSD · left [\d.]+ tUSD", line)
    ]
    assert len(live) == 2
    host, treasury, refund, deposit = map(float, re.findall(r"\d+\.\d{6}", lines[-1]))
    assert lines[-2] == "host + treasury + refund = deposit"
    assert round(host + treasury + refund, 6) == deposit == 2.0
    hashes = re.findall(r"^(\S+(?: \w+)?) +\d+ gas  (0x[0-9a-f]{64})$", done.stdout, re.MULTILINE)
    deployed = {f"deploy {name}" for name in ("NodeRegistry", "JobMarketplace", "TestDollar")}
    assert deployed < {what for what, _ in hashes}
    assert len({tx for _, tx in hashes}) == len(hashes) == 11
    for function in ("registerNode", "createJob", "submitCheckpoint", "withdraw", "withdrawTreasury"):
        assert re.search(rf"^{function} +\d+ gas  0x[0-9a-f]{{64}}$", done.stdout, re.MULTILINE)


def books(*, refund: int = 898, host: int = 92, payer: int = 897) -> Books:
    """Books of a deposit of 1 000 of which 102 were owed, or with one figure changed."""
    prices = Prices(1_000_000, 0)
    of = Address("0x" + "11" * 20)
    job = Job(
        id=JobId(1),
        payer=of,
        host=of,
        asset=ETH,
        signer=of,
        deposit=1_000,
        prices=prices,
        max_tokens_per_second=0,
        claim_window=3600,
        created_at=1,
        expires_at=2,
        asked_at=0,
        closes_at=3,
        settled=Totals(0, 102),
        owed=102,
        fee=10,
        status=JobStatus.CLOSED,
    )
    return Books(
        chain_id=31337,
        contracts={},
        asset=Asset("tUSD", 6),
        job=job,
        settlements=(Settlement(job.id, Totals(0, 102), host, 10, bytes(32), "0x01", 1),),
        completion=Completion(job.id, 102, 10, refund, "0x01", 1),
        before={"host": 0, "treasury": 0, "payer": 1_000},
        after={"host": 92, "treasury": 10, "payer": payer + 1},
        withdrawn={"host": 92, "treasury": 10, "payer": 0},
        transactions=(),
    )


def test_books_that_add_up_pass() -> None:
    """Law 2 holds in the events, in the job and in the wallets."""
    books().check()


@pytest.mark.parametrize(
    ("changed", "law"),
    [
        ({"refund": 899}, "host . treasury . refund = deposit"),
        ({"host": 91, "refund": 899}, "owed = host . treasury"),
        ({"payer": 896}, "payer's wallet"),
    ],
)
def test_one_base_unit_too_many_is_an_error(changed: dict[str, int], law: str) -> None:
    """A demonstration whose sums are off by one base unit fails, and says which sum."""
    with pytest.raises(ChainError, match=law):
        books(**changed).check()
