"""Several engines serve as one: the least busy is asked, and who fails is set aside until it works again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tallystick.engine import Health
from tallystick.engines.fleet import Fleet
from tallystick.engines.http import HttpEngine
from tallystick.errors import (
    EngineError,
    EngineFalseStart,
    EngineRefused,
    EngineTimeout,
    EngineUnavailable,
    EngineUncounted,
)
from tallystick.testing.engine import Form, Hang, Script, ScriptedEngine, Step, oai_server, say
from tests.asking import BODY, begin, read, text

PROBE = Script(say("x"))


class Breaking(ScriptedEngine):
    """Fails, or not, as its switch says; a script would be used up by being tried again."""

    failure: EngineError | None = None

    def _script(self, asked: object) -> Script:
        return Script((self.failure,)) if self.failure is not None else Script(say("fine"))


@asynccontextmanager
async def together(
    *engines: ScriptedEngine, form: Form = "llama.cpp", pause: float = 0.01, first_token: float = 60
) -> AsyncGenerator[Fleet, None]:
    """A started fleet of them, behind a socket each."""
    async with AsyncExitStack() as parts:
        urls = [await parts.enter_async_context(oai_server(engine, form=form)) for engine in engines]
        fleet = Fleet([HttpEngine(url, first_token=first_token) for url in urls], pause=pause)
        yield await parts.enter_async_context(fleet)


def served(engine: ScriptedEngine) -> int:
    """Replies that it was asked for, but for those of its start."""
    return len([asked for asked in engine.asked if asked.body["messages"] == BODY["messages"]])


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - what it waits for is behind a socket
        await asyncio.sleep(0.001)


async def test_requests_are_shared() -> None:
    """Of engines that are equally busy each is asked in turn, whoever counted the prompt."""
    engines = [ScriptedEngine(PROBE) for _ in range(2)]
    async with together(*engines) as fleet:
        for _ in range(6):
            await fleet.count_prompt(BODY)
            await read(fleet)
    assert [served(engine) for engine in engines] == [3, 3]


async def test_the_least_busy_is_asked() -> None:
    """While one engine works on replies, the other is asked."""
    busy = ScriptedEngine(PROBE, Script((Step("x"), Hang())))
    free = ScriptedEngine(PROBE)
    async with together(busy, free) as fleet, fleet.stream(BODY, 50) as reads:
        await anext(reads)
        assert [each.streams for each in fleet.health()] == [1, 0]
        for _ in range(3):
            await read(fleet)
        assert (served(busy), served(free)) == (1, 3)
    assert busy.asked[-1].cancelled


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (EngineUnavailable("loading"), "engine_unavailable"),
        (EngineFalseStart("crash"), "engine_false_start"),
    ],
)
async def test_a_false_start_goes_to_another(failure: EngineError, code: str) -> None:
    """A request whose engine fails before its first token is made by another, and nobody notices."""
    engines = [Breaking(), Breaking()]
    async with together(*engines, pause=60) as fleet:
        for engine in engines:
            engine.failure = failure
        engines[1].failure = None
        assert [text(await read(fleet)) for _ in range(3)] == ["fine"] * 3
        assert (served(engines[0]), served(engines[1])) == (1, 3)
        assert [each.why for each in fleet.health()] == [code, None]


async def test_a_request_that_fails_keeps_no_engine_from_others() -> None:
    """A failure that a request may have brought about is looked into at once: who works is back."""
    poison = Script((EngineFalseStart("such a grammar"),))
    engines = [ScriptedEngine(PROBE, poison, PROBE) for _ in range(2)]
    async with together(*engines, pause=60) as fleet:
        with pytest.raises(EngineFalseStart):
            await read(fleet)
        await until(lambda: fleet.health() == [Health(0, None)] * 2)


async def test_an_engine_is_tried_again() -> None:
    """Who was set aside is tried by itself, and asked again once it works."""
    engines = [Breaking(), Breaking()]
    async with together(*engines) as fleet:
        engines[0].failure = EngineFalseStart("crash")
        await read(fleet)
        tried = len(engines[0].asked)
        await until(lambda: len(engines[0].asked) > tried + 1)
        assert fleet.health()[0].why is not None
        engines[0].failure = None
        await until(lambda: fleet.health()[0].why is None)
        before = served(engines[0])
        for _ in range(2):
            await read(fleet)
        assert served(engines[0]) == before + 1


async def test_a_single_engine_is_asked_though_it_failed() -> None:
    """Where no other engine is left, one that was set aside is asked, and back as soon as it answers."""
    engine = Breaking()
    async with together(engine, pause=60) as fleet:
        engine.failure = EngineFalseStart("crash")
        with pytest.raises(EngineFalseStart):
            await read(fleet)
        assert fleet.health() == [Health(0, "engine_false_start")]
        engine.failure = None
        assert text(await read(fleet)) == "fine"
        assert fleet.health() == [Health(0, None)]


async def test_a_refusal_is_the_payer_s() -> None:
    """What an engine does not take is refused at once; no other is bothered, and none is set aside."""
    engines = [Breaking(), Breaking()]
    async with together(*engines) as fleet:
        for engine in engines:
            engine.failure = EngineRefused("too odd")
        with pytest.raises(EngineRefused):
            await begin(fleet)
        assert sum(map(served, engines)) == 1
        assert fleet.health() == [Health(0, None)] * 2


async def test_a_late_first_token_is_not_waited_for_twice() -> None:
    """Who has waited for a first token as long as that is told so; the engine is set aside."""
    engines = [ScriptedEngine(PROBE, Script((Hang(),))) for _ in range(2)]
    async with together(*engines, pause=60, first_token=0.3) as fleet:
        with pytest.raises(EngineTimeout):
            await read(fleet)
        assert sorted(each.why or "" for each in fleet.health()) == ["", "engine_timeout"]
    assert sum(map(served, engines)) == 1


async def test_a_reply_that_breaks_is_not_made_again() -> None:
    """What was delivered is delivered: another engine cannot go on with it; the engine is set aside."""
    engines = [ScriptedEngine(PROBE, Script((*say("a", "b"), EngineError("crash")))) for _ in range(2)]
    async with together(*engines, pause=60) as fleet:
        with pytest.raises(EngineError, match="broke") as caught:
            await read(fleet)
        assert caught.type is EngineError
        assert sorted(each.why or "" for each in fleet.health()) == ["", "engine_failed"]


async def test_each_model_has_its_engines() -> None:
    """A request goes to an engine that serves its model; the context is the smallest one."""
    engines = [ScriptedEngine(PROBE, models=["a"], context=100), ScriptedEngine(PROBE, models=["b", "a"])]
    async with together(*engines) as fleet:
        assert (fleet.models, fleet.context) == (["a", "b"], 100)
        for _ in range(3):
            await read(fleet, {**BODY, "model": "b"})
        assert [served(engine) for engine in engines] == [0, 3]
        with pytest.raises(EngineUnavailable, match="No engine serves"):
            await begin(fleet, {**BODY, "model": "c"})


async def test_some_may_be_down_at_the_start() -> None:
    """A fleet starts with the engines that answer; the others join it when they do."""
    late = Breaking()
    late.failure = EngineUnavailable("loading")
    async with together(late, Breaking()) as fleet:
        assert [each.why for each in fleet.health()] == ["engine_unavailable", None]
        late.failure = None
        await until(lambda: fleet.health()[0].why is None)
        for _ in range(2):
            await read(fleet)
    assert served(late) == 1


async def test_none_at_the_start_is_an_error() -> None:
    """Where no engine answers, the first one's failure is raised, and nothing goes on behind it."""
    engines = [Breaking(), Breaking()]
    for engine in engines:
        engine.failure = EngineFalseStart("crash")
    with pytest.raises(EngineUnavailable, match="crash"):
        async with together(*engines):
            pytest.fail("it started")


async def test_who_cannot_count_is_not_asked() -> None:
    """An engine that says nothing of its counts serves nothing, and the fleet says why."""
    async with together(ScriptedEngine(PROBE), form="no usage") as fleet:
        assert fleet.health() == [Health(0, "engine_uncounted")]
        with pytest.raises(EngineUncounted):
            await fleet.count_prompt(BODY)
        assert fleet.health() == [Health(0, "engine_uncounted")]
