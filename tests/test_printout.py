"""How a statement looks: within 80 columns whatever the amounts, and the same figures for programs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tallystick import printout, statement
from tallystick.chain import Block
from tallystick.config import HostConfig
from tallystick.devnet import account
from tallystick.errors import ChainError
from tallystick.networks import DEVNET, deployment
from tallystick.policy import Gas
from tallystick.pricing import from_units
from tallystick.reconciliation import Balance, Difference, Kind, Report
from tallystick.survey import ChainFacts, Entry, LedgerFacts, Survey
from tallystick.tables import Counts, JobRow
from tallystick.types import ETH, Address, Job, JobId, JobStatus, Prices, Totals

HOST, PAYER = account(1).address, account(2).address
DEPLOYMENT = deployment(DEVNET)
DOLLAR = next(address for address in DEPLOYMENT.assets if address != ETH)
NOW = 1_800_000_000


def entry(number: int, asset: Address = DOLLAR, tokens: int = 130, *, closed: bool = False) -> Entry:
    """A job with so many tokens served and signed for, of which 100 are settled."""
    prices = Prices(900_000, 200_000) if asset != ETH else Prices(123_456_789_012_345_678, 10**15)
    job = Job(
        id=JobId(number),
        payer=PAYER,
        host=HOST,
        asset=asset,
        signer=PAYER,
        deposit=2**90,
        prices=prices,
        max_tokens_per_second=0,
        claim_window=3600,
        created_at=NOW,
        expires_at=NOW + 86_400,
        asked_at=0,
        closes_at=NOW + 90_000,
        settled=Totals(0, 100),
        owed=90,
        fee=9,
        status=JobStatus.CLOSED if closed else JobStatus.OPEN,
        interval=100,
    )
    served, settled = Totals(12, tokens), Totals(0, 100)
    counts = Counts(False, served, Totals(), served, served)
    return Entry(JobRow(job, 1, counts, None, settled, None, settled, settled, False, closed))


def looked(*entries: Entry) -> Survey:
    head = Block(120, NOW, 10**9, "0x" + "ab" * 32, 30_000_000)
    earnings = {DOLLAR: 81, ETH: 0}
    jobs = {each.row.job.id: each.row.job for each in entries}
    chain = ChainFacts(
        "127.0.0.1:1", head, jobs, frozenset(), 10**18 + 1, earnings, HOST, Gas(10**12, 10**11)
    )
    ledger = LedgerFacts("ledger.db", "", entries, running=True)
    return Survey(HostConfig(host_address=HOST), HOST, DEPLOYMENT, ledger, chain, NOW, 0.0, None)


def told(survey: Survey, *, ended: bool = False) -> str:
    sums = statement.by_asset(survey, statement.lines(survey))
    return "\n".join(printout.jobs(survey, sums, ended=ended))


def fits(text: str) -> bool:
    return all(len(line) <= printout.WIDTH for line in text.splitlines())


def test_dollars_stand_in_a_table() -> None:
    """Five figures side by side, money under tokens, and the sum of all jobs; prompts behind a plus."""
    text = told(looked(entry(1), entry(2, tokens=1_234_567)))
    assert fits(text)
    assert "  job                     served        signed   settled" in text
    assert "    2  open         1 234 567+12  1 234 567+12       100" in text
    assert "  all  2 jobs       1 234 697+24" in text
    assert "0.000081 tUSD to withdraw: tally withdraw --asset tUSD" in text


@pytest.mark.parametrize("tokens", [130, 10**12])
def test_amounts_are_exact_and_lines_fit(tokens: int) -> None:
    """ETH has 18 decimals: where a table would be too wide, figures stand below each other."""
    text = told(looked(entry(1, ETH, tokens)))
    assert fits(text)
    line = statement.lines(looked(entry(1, ETH, tokens)))[0]
    exact = from_units(line.worth(line.served), 18)
    assert f" {exact} ETH" in text
    assert exact in text.split("signed")[0]


def test_jobs_that_are_over_are_shown_when_asked_for() -> None:
    """They count in the sums all the same."""
    survey = looked(entry(1), entry(2, closed=True))
    assert "    2  closed" not in told(survey)
    assert "1 job over and not shown: tally host jobs --all" in told(survey)
    assert "    2  closed" in told(survey, ended=True)
    assert "  all  2 jobs" in told(survey)


def test_what_has_to_be_mended_comes_first() -> None:
    """Then what goes by itself; at the end what it comes to."""
    survey = looked(entry(1), entry(2))
    [first, second] = statement.lines(survey)
    waiting = [replace(first, wait=statement.Wait.INTERVAL), replace(second, wait=statement.Wait.NO_KEY)]
    text = "\n".join(printout.pending(survey, waiting))
    assert fits(text)
    assert text.index("    2  0.000027 tUSD") < text.index("    1  0.000027 tUSD")
    assert "0.000054 tUSD owed by 2 jobs; 1 job needs somebody" in text
    assert "nothing is owed" in "\n".join(printout.pending(survey, []))


def test_a_chain_that_is_away_is_said_first() -> None:
    """What the ledger knows stands, and what only the chain knows is left out."""
    survey = replace(looked(entry(1)), chain=ChainError("127.0.0.1:9 did not answer within 10 seconds"))
    text = told(survey)
    assert fits(text)
    assert "The chain is away" in text.splitlines()[1]
    assert "to withdraw" not in text
    sums = statement.by_asset(survey, statement.lines(survey))
    out = printout.survey_out(survey, sums, statement.lines(survey))
    assert (out["block"], out["gas_wei"], out["assets"][0]["to_withdraw"]) == (None, None, None)
    assert "did not answer" in out["chain_away"]


def test_programs_get_base_units() -> None:
    """The same figures, as integers."""
    survey = looked(entry(1))
    lines = statement.lines(survey)
    out = json.loads(json.dumps(printout.survey_out(survey, statement.by_asset(survey, lines), lines)))
    [job] = out["jobs"]
    assert job["served"] == {"prompt_tokens": 12, "tokens": 130, "amount": 108}
    assert job["confirmed"] == {"prompt_tokens": 0, "tokens": 100, "amount": 81}
    assert (job["owed"], job["waits_for"], job["stuck"]) == (27, "no_key", True)
    [asset] = out["assets"]
    assert (asset["symbol"], asset["decimals"], asset["to_withdraw"]) == ("tUSD", 6, 81)


def test_a_report_says_what_differs_and_whose_move_it_is() -> None:
    """First what counts, then what is under way; then each balance with its sum; then the verdict."""
    survey = looked(entry(1))
    differences = (
        Difference(Kind.CLAIMABLE, JobId(1), "30 tokens", "nobody", "goes by itself", under_way=True),
        Difference(Kind.RECEIPT, JobId(1), "is not there", "host", "look for it"),
        Difference(Kind.EARNINGS, None, "80, not 81", "host", "ask another endpoint", asset=DOLLAR),
    )
    report = Report(survey, 1, (Balance(DOLLAR, 90, 9, 80),), differences)
    text = "\n".join(printout.report(report))
    assert fits(text)
    assert text.index("receipt_unusable") < text.index("under way") < text.index("claimable")
    assert "your move: look for it" in text
    assert "   !=   0.00008 tUSD  in the contract" in text
    assert text.endswith("2 differences")
    agreeing = replace(report, differences=differences[:1], balances=(Balance(DOLLAR, 90, 9, 81),))
    text = "\n".join(printout.report(agreeing))
    assert text.endswith("chain, ledger and meter agree, but for 1 under way")
    assert "    =  0.000081 tUSD  in the contract" in text
    out = json.loads(json.dumps(printout.report_out(report)))
    assert (out["agrees"], [each["kind"] for each in out["differences"]]) == (
        False,
        ["claimable", "receipt_unusable", "earnings_differ"],
    )
