"""Sequences of steps, each step on a chain and in the model, until the two differ.

What was drawn is told as steps that `replay` takes, so that a sequence that was found can become a test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from tests.differential import codec, draws
from tests.differential.chain import Chain, Market
from tests.differential.model import Books, Event, Model, Refused
from tests.differential.revm import Revm
from tests.differential.steps import CreateJobWithAuthorization, Step, TopUpWithAuthorization

STEPS = 30
"""How many a sequence has."""
FRESH = 10
"""How many Hypothesis makes before it goes over to repeating parts of earlier ones."""
SEED = 1
AUTHORIZED = (CreateJobWithAuthorization, TopUpWithAuthorization)


class Differs(AssertionError):
    """Chain and model made something else of the same steps. The message tells of the last one."""


class Pair:
    """A chain with the contracts, and the model of it, told the same."""

    def __init__(self, chain: Chain, model: Model) -> None:
        self.model = model
        self._market = Market(chain)
        _compare("at first", self._market.books(), model.books())

    def take(self, step: Step) -> list[Event] | Refused:
        """Takes a step on both; what came of it. Differs unless that, and all books, are the same."""
        found, expected = _outcome(lambda: self._market.do(step)), _outcome(lambda: self._play(step))
        if found != expected:
            raise Differs(f"{step}\n  chain: {found!r}\n  model: {expected!r}")
        _compare(step, self._market.books(), self.model.books())
        return found

    def _play(self, step: Step) -> list[Event]:
        self.model.said.clear()
        step.expect(self.model)
        return list(self.model.said)


def _outcome(act: Callable[[], list[Event]]) -> list[Event] | Refused:
    try:
        return act()
    except Refused as refusal:
        return refusal


def _compare(after: object, found: Books, expected: Books) -> None:
    if found != expected:
        raise Differs("\n  ".join([str(after), *_differences(found, expected)]))


def _differences(found: Books, expected: Books) -> Iterator[str]:
    for name in [*found, *(name for name in expected if name not in found)]:
        chain, model = found.get(name), expected.get(name)
        if chain != model:
            told = " ".join(part if type(part) is str else repr(part) for part in name)
            yield f"{told}: chain {chain}, model {model}"


def replay(steps: Iterable[Step], chain: Chain, model: Model) -> None:
    """Takes steps one after the other, on a fresh chain. Differs if chain and model do."""
    pair = Pair(chain, model)
    for step in steps:
        pair.take(step)


@dataclass(slots=True)
class Diary:
    """What was done in a campaign."""

    keep_one_in: int = 1
    """Of so many sequences the last is kept: of each FRESH, the first is the simplest there is."""
    tried: int = 0
    last: list[Step] = field(default_factory=list)
    sequences: list[list[Step]] = field(default_factory=list)
    steps: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often each kind of step came to what: an error's name, or "done"."""
    events: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    """For which errors rows of batches were left out."""

    def begin(self) -> list[Step]:
        """Where the steps of one more sequence are to be put down."""
        self.last = []
        self.tried += 1
        if self.tried % self.keep_one_in == 0:
            self.sequences.append(self.last)
        return self.last

    def note(self, step: Step, outcome: list[Event] | Refused) -> None:
        if isinstance(outcome, Refused):
            self.steps[type(step).__name__, outcome.error] += 1
            return
        self.steps[type(step).__name__, "done"] += 1
        self.events.update(event.name for event in outcome)
        self.rows.update(
            codec.error_name(event.words[1]) or "?" for event in outcome if event.name == "CheckpointSkipped"
        )


def campaign(sequences: int, diary: Diary, model: Callable[[], Model] = Model, *, seed: int = SEED) -> None:
    """Tries so many sequences on revm, the same ones for the same seed.

    Differs if one does, with the steps of it that the difference takes.
    """
    try:
        for first in range(0, sequences, FRESH):
            _run(model, diary, min(FRESH, sequences - first), f"{seed}, {first}")
    except Differs:
        raise _shortest(diary.last, model) from None


def _run(model: Callable[[], Model], diary: Diary, sequences: int, seed: Hashable) -> None:
    @hypothesis.seed(seed)
    @settings(
        max_examples=sequences,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def sequence(data: st.DataObject) -> None:
        _try(data.draw, Pair(Revm(), model()), diary)

    sequence()


def _try(draw: Callable[[SearchStrategy[Step]], Step], pair: Pair, diary: Diary) -> None:
    """One sequence: each step is drawn for the model as it then stands."""
    steps = diary.begin()
    used: list[Step] = []
    for _ in range(STEPS):
        step = draw(draws.next_step(pair.model, used) if steps else draws.first_job(pair.model))
        steps.append(step)
        outcome = pair.take(step)
        diary.note(step, outcome)
        if isinstance(step, AUTHORIZED) and not isinstance(outcome, Refused):
            used.append(step)


def _shortest(steps: list[Step], model: Callable[[], Model]) -> Differs:
    """The difference that steps end with, and those of them that it takes.

    Hypothesis would leave out draws, and what is drawn after them then becomes something else.
    """
    found = _difference(steps, model)
    shorter = _shorter(steps)
    while (fewer := next(shorter, None)) is not None:
        difference = _difference(fewer, model)
        if difference is not None:
            steps, found, shorter = fewer, difference, _shorter(fewer)
    told = "".join(f"    {step},\n" for step in steps[:-1])
    return Differs(f"{len(steps)} steps\n{told}    {found}")


def _shorter(steps: list[Step]) -> Iterator[list[Step]]:
    """Without one step, or with less of one."""
    for at in reversed(range(len(steps) - 1)):
        yield steps[:at] + steps[at + 1 :]
    for at, step in enumerate(steps):
        for simpler in step.simpler():
            yield [*steps[:at], simpler, *steps[at + 1 :]]


def _difference(steps: Iterable[Step], model: Callable[[], Model]) -> Differs | None:
    try:
        replay(steps, Revm(), model())
    except Differs as difference:
        return difference
    return None
