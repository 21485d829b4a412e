"""What happens next with a job of a host, in a sentence for whoever asks: `tally host jobs`, `host pending`.

Whose move it is follows from the reason (statement.py); here are the words, with the command that mends it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tallystick import claims
from tallystick.pricing import from_units
from tallystick.statement import NOTHING, Life, Line, Wait, needed
from tallystick.survey import ChainFacts, Survey
from tallystick.tables import State, Transaction
from tallystick.types import Address


def why(survey: Survey, line: Line) -> str:
    """What a job that waits is waiting for, and what mends it where somebody has to. Its `wait` is given."""
    assert line.wait is not None
    return _WORDS[line.wait](survey, line)


def amount(survey: Survey, asset: Address, units: int) -> str:
    """An amount for people."""
    return survey.deployment.amount(asset, units)


def _sent(survey: Survey, line: Line) -> str:
    flight = _flight(line)
    taken = min(each.taken_at for each in flight.attempts if each.taken_at is not None)
    tries = "" if len(flight.attempts) == 1 else f", fees raised {len(flight.attempts) - 1} times"
    age = max(0, round(survey.clock - taken))
    return f"in no block yet, sent {age} s ago: nonce {flight.nonce}, {flight.newest.hash}{tries}"


def _mined(survey: Survey, line: Line) -> str:
    flight = _flight(line)
    deep = "in a block" if line.depth is None else f"{line.depth} of {_blocks(survey)} deep"
    return f"{deep}: nonce {flight.nonce}, {flight.mined_hash}"


def _poor(survey: Survey, line: Line) -> str:
    assert isinstance(survey.chain, ChainFacts)
    has, needs = (
        from_units(wei, 18) for wei in (survey.chain.balance, needed(survey.chain, line.entry.flight))
    )
    told = f"out of gas: {survey.host} has {has} ETH and needs {needs}"
    return f"{told}: send it ETH, and it goes on by itself"


def _without_node(survey: Survey, line: Line) -> str:
    signed = "" if line.entry.flight is None else f", signed as nonce {line.entry.flight.nonce}"
    return f"no node runs{signed}: tally host run"


_ENDED = {
    State.REVERTED: "reverted",
    State.CANCELLED: "was taken by no endpoint, and cancelled",
    State.DISPLACED: "lost its nonce to one that is not this node's",
    State.CONFIRMED: "left it out (CheckpointSkipped says why)",
}


def _failed(survey: Survey, line: Line) -> str:
    assert line.entry.failed is not None
    ended = _ENDED.get(line.entry.failed, line.entry.failed.value)
    return f"its last transaction {ended}: the node tries again, and its log says why"


def _waits_for_worth(survey: Survey, line: Line) -> str:
    share, most = survey.config.gas_share, survey.config.unsettled_max.of(line.job.asset)
    limit = "" if most is None else f"more than {most} is unsettled, or "
    if survey.thrift is None or line.job.asset in survey.thrift.rates:
        return f"waits until gas is at most {share} % of what goes, or {limit}the job ends"
    return f"waits until {limit}the job ends: what gas is worth of it nobody knows, set HOST_ETH_PRICE"


def _by_rate(survey: Survey, line: Line) -> str:
    earned = claims.earned(line.job, survey.now)
    return f"at {line.job.max_tokens_per_second} tokens a second its time has earned {earned} tokens by now"


def _blocks(survey: Survey) -> str:
    asked = survey.deployment.confirmations
    return "1 block" if asked == 1 else f"{asked} blocks"


def _flight(line: Line) -> Transaction:
    assert line.entry.flight is not None
    return line.entry.flight


_WORDS: Mapping[Wait, Callable[[Survey, Line], str]] = {
    Wait.OTHER_KEY: lambda survey, line: (
        f"its host is {line.job.host}, not {survey.host}: only that one's key settles it"
    ),
    Wait.NO_KEY: lambda *_: "nothing is settled without HOST_PRIVATE_KEY: set it, and restart the node",
    Wait.NO_NODE: _without_node,
    Wait.NO_GAS: _poor,
    Wait.FAILED: _failed,
    Wait.UNSENT: lambda _, line: f"signed as nonce {_flight(line).nonce}; no endpoint has taken it yet",
    Wait.SENT: _sent,
    Wait.MINED: _mined,
    Wait.SEEN: lambda survey, _: f"settled on the chain; confirmed once it is seen {_blocks(survey)} deep",
    Wait.RATE: _by_rate,
    Wait.INTERVAL: lambda _, line: (
        f"goes with the next whole interval of {line.job.interval} tokens, or when the job ends"
    ),
    Wait.WORTH: _waits_for_worth,
    Wait.NEXT: lambda *_: "goes to the chain within seconds",
}


def prospect(survey: Survey, line: Line) -> str:
    """What happens next with a job."""
    if line.wait is not None:
        return why(survey, line)
    if line.life is Life.GONE:
        return "not on the chain: a reorganisation took it back, or another job has its number"
    if line.life is Life.CLOSED:
        lost = amount(survey, line.job.asset, line.lost)
        return f"{lost} of what was delivered was not paid" if line.lost else "paid in full"
    if line.early:
        return f"not {_blocks(survey)} deep yet: a reorganisation could take it back"
    if line.at_risk != NOTHING:
        return "the payer signs for what is at risk next, or it is written off"
    return "waits for requests"
