"""How a statement and what differs look: plain values for programs, 80 columns for people.

Amounts are exact. Where they are too long for a table, as ETH's are, a job's figures stand below each other.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tallystick import prospects, statement
from tallystick.mends import when
from tallystick.pricing import from_units
from tallystick.reconciliation import Balance, Difference, Report
from tallystick.statement import Figure, Life, Line, Sums
from tallystick.survey import ChainFacts, Survey
from tallystick.tables import Transaction
from tallystick.types import Totals

WIDTH = 80
"""Columns that a terminal has."""
GWEI = 10**9
"""Wei: nobody needs to know what there is for gas more exactly."""
INDENT = " " * 7
"""Under a job's number."""
STATE = 11
"""Columns for a job's state, or a figure's name."""


# tally host jobs


def jobs(survey: Survey, sums: Sequence[Sums], *, ended: bool) -> Iterator[str]:
    """Every open job, or every one; with the sums of all of them."""
    yield from _head(survey)
    for each in sums:
        yield ""
        yield from _of_asset(survey, each, ended=ended)
    if not any(each.lines for each in sums):
        yield "\nno job was asked for anything here yet"


def _head(survey: Survey) -> Iterator[str]:
    chain = survey.chain
    if isinstance(chain, ChainFacts):
        yield f"{survey.host} on {survey.deployment.name}, block {chain.head.number}"
        gas = f"{from_units(chain.balance // GWEI, 9)} ETH for gas"
    else:
        yield f"{survey.host} on {survey.deployment.name}"
        yield from _wrapped(f"The chain is away ({chain}): this is what the ledger knows.", "")
        gas = "how much gas it has is not known"
    node = "a node runs" if survey.ledger.running else "no node runs (tally host run)"
    key = "" if survey.has_key else ", without HOST_PRIVATE_KEY: nothing is settled"
    yield from _wrapped(f"{node}{key}; {gas}", "")


def _of_asset(survey: Survey, sums: Sums, *, ended: bool) -> Iterator[str]:
    shown = [line for line in sums.lines if ended or not line.life.over]
    yield f"{sums.asset.symbol}: money is the host's nine tenths, tokens are generated+prompt"
    if sums.lines:
        yield ""
        table = _Table(sums)
        yield from table.head()
        for line in shown:
            yield from table.row(str(line.job.id), line.life.value, line.figures())
            yield from _below(survey, line)
        if len(sums.lines) > 1:
            yield from table.row("all", _count(len(sums.lines), "job"), sums.figures())
        hidden = len(sums.lines) - len(shown)
        if hidden:
            yield f"{INDENT}{_count(hidden, 'job')} over and not shown: tally host jobs --all"
        yield ""
    yield from _money_of(survey, sums)


def _below(survey: Survey, line: Line) -> Iterator[str]:
    yield from _wrapped(prospects.prospect(survey, line), INDENT)
    if not line.life.over:
        until = f"expires {when(line.job.expires_at)}" if line.life is Life.OPEN else _claim_until(line)
        yield f"{INDENT}{until}"


def _claim_until(line: Line) -> str:
    return f"the payer can take the rest back from {when(line.job.closes_at)} on"


def _money_of(survey: Survey, sums: Sums) -> Iterator[str]:
    def told(units: int) -> str:
        return prospects.amount(survey, sums.address, units)

    owed = sum(line.owed for line in sums.lines)
    lost = sum(line.lost for line in sums.lines)
    if owed:
        yield f"{told(owed)} owed and not confirmed yet: tally host pending"
    if lost:
        yield f"{told(lost)} delivered and never to be paid"
    if sums.earnings:
        yield f"{told(sums.earnings)} to withdraw: {_withdraw(sums)}"
    elif sums.earnings == 0:
        yield "nothing to withdraw"


def _withdraw(sums: Sums) -> str:
    return f"tally withdraw --asset {sums.asset.symbol}"


class _Table:
    """Figures of jobs in one asset, side by side if they fit, below each other if not."""

    def __init__(self, sums: Sums) -> None:
        self._asset = sums.asset
        everything = [line.figures() for line in sums.lines] + [sums.figures()]
        self._names = list(everything[-1])
        self._widths = [max(map(len, self._column(name, everything))) for name in self._names]
        self._flat = len(INDENT) + STATE + sum(width + 2 for width in self._widths) <= WIDTH

    def _column(self, name: str, everything: Sequence[Mapping[str, Figure]]) -> Iterator[str]:
        yield name
        for figures in everything:
            yield from self._pair(figures[name])

    def _pair(self, figure: Figure) -> tuple[str, str]:
        """A figure in tokens and in money."""
        return tokens(figure.totals), from_units(figure.money, self._asset.decimals)

    def head(self) -> Iterator[str]:
        """The columns' names."""
        if self._flat:
            yield f"{'job':>5}  {'':<{STATE}}{self._across(self._names)}"

    def row(self, number: str, told: str, figures: Mapping[str, Figure]) -> Iterator[str]:
        """A job, or all of them."""
        if self._flat:
            totals, money = zip(*(self._pair(figures[name]) for name in self._names), strict=True)
            yield f"{number:>5}  {told:<{STATE}}{self._across(totals)}"
            yield f"{INDENT}{'':<{STATE}}{self._across(money)}"
        else:
            yield f"{number:>5}  {told}"
            yield from (self._below(name, *self._pair(figures[name])) for name in self._names)

    def _across(self, cells: Iterable[str]) -> str:
        return "".join(f"  {cell:>{width}}" for cell, width in zip(cells, self._widths, strict=True))

    def _below(self, name: str, totals: str, money: str) -> str:
        width = max(self._widths)
        return f"{INDENT}{name:<{STATE}}{totals:>{width}}  {money:>{width}} {self._asset.symbol}"


def tokens(totals: Totals) -> str:
    """Generated tokens, and prompt tokens behind a plus where there are any."""
    generated = _grouped(totals.tokens)
    return f"{generated}+{_grouped(totals.prompt_tokens)}" if totals.prompt_tokens else generated


def _grouped(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


# tally host pending


def pending(survey: Survey, lines: Sequence[Line]) -> Iterator[str]:
    """What is owed and not confirmed, and why; what only the operator can mend comes first."""
    yield from _head(survey)
    yield ""
    waiting = sorted(owing(lines), key=lambda line: (not _is_stuck(line), line.job.id))
    if not waiting:
        yield "nothing is owed that is not confirmed"
        return
    for line in waiting:
        owed = prospects.amount(survey, line.job.asset, line.owed) if line.owed else "to be completed"
        rest = line.claimable - line.claimable.lower(line.confirmed)
        told = f"{tokens(rest)} tokens" if line.owed else ""
        yield f"{line.job.id:>5}  {owed}  {told}".rstrip()
        yield from _wrapped(prospects.why(survey, line), INDENT)
    yield ""
    by_asset = statement.by_asset(survey, waiting)
    total = " and ".join(
        prospects.amount(survey, each.address, sum(line.owed for line in each.lines))
        for each in by_asset
        if each.lines
    )
    yield f"{total} owed by {_count(len(waiting), 'job')}; {_moves(sum(map(_is_stuck, waiting)))}"


def _moves(stuck: int) -> str:
    if not stuck:
        return "all of it goes by itself"
    return "1 job needs somebody" if stuck == 1 else f"{stuck} jobs need somebody"


def owing(lines: Iterable[Line]) -> list[Line]:
    """The jobs of which something is to be confirmed."""
    return [line for line in lines if line.wait is not None]


def _is_stuck(line: Line) -> bool:
    return line.wait is not None and line.wait.stuck


# For programs: amounts in base units


def survey_out(survey: Survey, sums: Sequence[Sums], lines: Iterable[Line]) -> dict[str, Any]:
    """A statement, with these of its jobs."""
    chain = survey.chain
    there = isinstance(chain, ChainFacts)
    return {
        "host": survey.host,
        "chain": survey.deployment.name,
        "chain_id": survey.deployment.chain_id,
        "block": chain.head.number if isinstance(chain, ChainFacts) else None,
        "chain_away": None if there else str(chain),
        "node_runs": survey.ledger.running,
        "gas_wei": chain.balance if isinstance(chain, ChainFacts) else None,
        "jobs": [_job_out(survey, line) for line in lines],
        "assets": [_sums_out(each) for each in sums],
    }


def _job_out(survey: Survey, line: Line) -> dict[str, Any]:
    counts = line.entry.row.counts
    return {
        "job_id": line.job.id,
        "state": line.life.value,
        "payer": line.job.payer,
        "asset": line.job.asset,
        "attested": counts.attested,
        "early": line.early,
        **_figures_out(line.figures()),
        "receipted": _totals_out(counts.receipted),
        "written_off": _totals_out(counts.written_off),
        "owed": line.owed,
        "lost": line.lost,
        "expires_at": line.job.expires_at,
        "closes_at": line.job.closes_at,
        "waits_for": line.wait and line.wait.value,
        "stuck": _is_stuck(line),
        "next": prospects.prospect(survey, line),
        "transaction": line.entry.flight and _flight_out(line.entry.flight, line.depth),
    }


def _flight_out(flight: Transaction, depth: int | None) -> dict[str, Any]:
    taken = [each.taken_at for each in flight.attempts if each.taken_at is not None]
    return {
        "nonce": flight.nonce,
        "hash": flight.mined_hash or flight.newest.hash,
        "state": flight.state.value,
        "block": flight.mined_block,
        "depth": depth,
        "sent_at": min(taken, default=None),
        "attempts": len(flight.attempts),
    }


def _sums_out(sums: Sums) -> dict[str, Any]:
    return {
        "asset": sums.address,
        "symbol": sums.asset.symbol,
        "decimals": sums.asset.decimals,
        "jobs": len(sums.lines),
        **_figures_out(sums.figures()),
        "owed": sum(line.owed for line in sums.lines),
        "lost": sum(line.lost for line in sums.lines),
        "to_withdraw": sums.earnings,
        "withdraw": _withdraw(sums) if sums.earnings else None,
    }


def _figures_out(figures: Mapping[str, Figure]) -> dict[str, Any]:
    return {
        name.replace(" ", "_"): {**_totals_out(figure.totals), "amount": figure.money}
        for name, figure in figures.items()
    }


def _totals_out(totals: Totals) -> dict[str, int]:
    return {"prompt_tokens": totals.prompt_tokens, "tokens": totals.tokens}


# tally reconcile


def report(found: Report) -> Iterator[str]:
    """What differs, first what counts; then the balances; then the verdict."""
    survey = found.survey
    yield from _head(survey)
    yield f"chain: {_count(found.jobs, 'job')} of this host; ledger: {len(survey.ledger.entries)}"
    for heading, under_way in (("differs", False), ("under way: goes by itself", True)):
        these = [each for each in found.differences if each.under_way is under_way]
        if these:
            yield f"\n{heading}"
        for each in these:
            yield from _difference(each)
    if found.balances:
        yield ""
    for balance in found.balances:
        yield from _balance(survey, balance)
    yield ""
    yield _verdict(found)


def _difference(each: Difference) -> Iterator[str]:
    number = "" if each.job_id is None else str(each.job_id)
    yield f"{number:>5}  {each.kind.value}"
    yield from _wrapped(each.seen, INDENT)
    move = "" if each.move == "nobody" else "your move: "
    yield from _wrapped(f"{move}{each.mend}", INDENT)


def _balance(survey: Survey, balance: Balance) -> Iterator[str]:
    amounts = (balance.paid, balance.withdrawn, balance.held)
    told = [prospects.amount(survey, balance.asset, units) for units in amounts]
    width = max(map(len, told))
    signs = ("", "-", "=" if balance.paid - balance.withdrawn == balance.held else "!=")
    meanings = ("paid by jobs", "withdrawn", "in the contract")
    for sign, amount, meaning in zip(signs, told, meanings, strict=True):
        yield f"{sign:>5}  {amount:>{width}}  {meaning}"


def _verdict(found: Report) -> str:
    wrong = sum(not each.under_way for each in found.differences)
    if wrong:
        return f"{_count(wrong, 'difference')}"
    coming = len(found.differences)
    return "chain, ledger and meter agree" + (f", but for {coming} under way" if coming else ", to the unit")


def report_out(found: Report) -> dict[str, Any]:
    """The same for programs."""
    chain = found.survey.chain
    return {
        "host": found.survey.host,
        "chain": found.survey.deployment.name,
        "block": chain.head.number if isinstance(chain, ChainFacts) else None,
        "agrees": found.agrees,
        "jobs": found.jobs,
        "differences": [_difference_out(each) for each in found.differences],
        "balances": [
            {"asset": each.asset, "paid": each.paid, "withdrawn": each.withdrawn, "held": each.held}
            for each in found.balances
        ],
    }


def _difference_out(each: Difference) -> dict[str, Any]:
    return {
        "kind": each.kind.value,
        "job_id": each.job_id,
        "asset": each.asset,
        "seen": each.seen,
        "move": each.move,
        "mend": each.mend,
        "under_way": each.under_way,
    }
