"""Sequences of steps, each step on a chain and in the model, until the two differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.differential import codec, draws
from tests.differential.chain import Chain, Market
from tests.differential.model import Books, Event, Model, Refused
from tests.differential.revm import Revm
from tests.differential.steps import CreateJobWithAuthorization, Step, TopUpWithAuthorization

STEPS = 30
"""The most that a sequence has."""
SEED = 1


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
        if found.get(name) != expected.get(name):
            told = " ".join(part if type(part) is str else repr(part) for part in name)
            yield f"{told}: chain {_told(found.get(name))}, model {_told(expected.get(name))}"


def _told(value: Any) -> str:
    members = codec.job_members()
    is_job = isinstance(value, tuple) and len(value) == len(members)
    return str(dict(zip(members, value, strict=True)) if is_job else value)


def replay(steps: Iterable[Step], chain: Chain) -> None:
    """Takes steps one after the other on a fresh chain. Differs if chain and model do."""
    pair = Pair(chain, Model())
    for step in steps:
        pair.take(step)


@dataclass(slots=True)
class Diary:
    """What was done in a campaign."""

    keep_one_in: int = 1
    """How many of its sequences are kept."""
    tried: int = 0
    sequences: list[list[Step]] = field(default_factory=list)
    steps: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often each kind of step came to what: an error's name, or "done"."""
    events: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    """For which errors rows of batches were left out."""

    def begin(self) -> list[Step]:
        """A page for one more sequence."""
        page: list[Step] = []
        if self.tried % self.keep_one_in == 0:
            self.sequences.append(page)
        self.tried += 1
        return page

    def note(self, step: Step, outcome: list[Event] | Refused) -> None:
        if isinstance(outcome, Refused):
            self.steps[type(step).__name__, outcome.error] += 1
            return
        self.steps[type(step).__name__, "done"] += 1
        self.events.update(event.name for event in outcome)
        self.rows.update(
            codec.error_name(event.words[1]) for event in outcome if event.name == "CheckpointSkipped"
        )


class Sequence(RuleBasedStateMachine):
    """One sequence: each step is drawn for the model as it then stands."""

    def __init__(self, chain: Chain, model: Model, diary: Diary) -> None:
        super().__init__()
        self.pair = Pair(chain, model)
        self.used: list[Step] = []
        """The authorizations that came to something."""
        self._diary = diary
        self._page = diary.begin()

    @initialize(step=st.runner().flatmap(lambda sequence: draws.first_job(sequence.pair.model)))
    def begin(self, step: Step) -> None:
        self._take(step)

    @rule(step=st.runner().flatmap(lambda sequence: draws.next_step(sequence.pair.model, sequence.used)))
    def take(self, step: Step) -> None:
        self._take(step)

    def _take(self, step: Step) -> None:
        self._page.append(step)
        outcome = self.pair.take(step)
        self._diary.note(step, outcome)
        authorized = isinstance(step, CreateJobWithAuthorization | TopUpWithAuthorization)
        if authorized and not isinstance(outcome, Refused):
            self.used.append(step)


def campaign(
    sequences: int,
    diary: Diary,
    model: Callable[[], Model] = Model,
    *,
    seed: int = SEED,
    phases: tuple[Phase, ...] = (Phase.generate, Phase.shrink),
) -> None:
    """Tries so many sequences on revm, the same ones for the same seed.

    Differs if one does: with the shortest such sequence that was found, printed.
    """

    @hypothesis.seed(seed)
    class Tried(Sequence):
        def __init__(self) -> None:
            super().__init__(Revm(), model(), diary)

    run_state_machine_as_test(
        Tried,
        settings=settings(
            max_examples=sequences,
            stateful_step_count=STEPS,
            phases=phases,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
