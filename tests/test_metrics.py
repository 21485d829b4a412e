"""The metrics of a node say what it did and how it does, and say it to its own machine alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tallystick.engine import Health
from tallystick.errors import EngineError
from tallystick.peer import from_here
from tallystick.policy import Policy
from tallystick.testing.engine import Script, ScriptedEngine, say
from tests.hosting import Host, Hosting
from tests.paying import PROMPT

DOCS = Path(__file__).parent.parent / "docs" / "metrics.md"
Samples = dict[tuple[str, ...], float]


async def scraped(host: Host) -> Samples:
    """What the page says: by name, and what its labels say."""
    async with host.http.get("/metrics") as answer:
        assert answer.status == 200
        families = text_string_to_metric_families(await answer.text())
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in families
            for sample in family.samples
        }


class Limping(ScriptedEngine):
    """One engine that works, and one that is set aside."""

    def health(self) -> list[Health]:
        return [Health(2, None), Health(0, "engine_timeout")]


async def test_a_reply_and_a_refusal_are_counted(hosting: Hosting) -> None:
    """Tokens, replies by reason, refusals by code and receipts move with what the node does."""
    host = await hosting.serve(ScriptedEngine(Script(say(*"x" * 20)), Script((*say("a"), EngineError("x")))))
    assert (await scraped(host))["tally_tokens_total", "generated"] == 0
    signer = await hosting.signer()
    await host.ask(signer)
    await host.ask(signer, 2)
    status, _ = await host.error(signer, model="another")
    assert status == 404
    found = await scraped(host)
    assert found["tally_tokens_total", "generated"] == 21
    assert found["tally_tokens_total", "prompt"] == 2 * PROMPT
    assert found["tally_replies_total", "stop"] == found["tally_replies_total", "engine_failed"] == 1
    assert found["tally_refused_total", "model_unknown"] == 1
    assert (found["tally_jobs",], found["tally_replies_under_way",]) == (1, 0)


async def test_engines_and_the_sender_are_told(hosting: Hosting) -> None:
    """Each engine has its place and state; the sender has its own, where there is one."""
    host = await hosting.serve(Limping())
    found = await scraped(host)
    assert [found["tally_engine_up", number] for number in "12"] == [1, 0]
    assert [found["tally_engine_replies", number] for number in "12"] == [2, 0]
    assert found["tally_sender_starving",] == found["tally_sender_in_flight",] == 0
    unpaid = hosting.devnet.accounts.host.address
    hosting.data_dir = hosting.data_dir / "unpaid"
    host = await hosting.serve(host_private_key=None, host_address=unpaid)
    assert ("tally_sender_leading",) not in await scraped(host)


async def test_what_is_unsettled_is_told(hosting: Hosting) -> None:
    """What was signed for and not settled shows in the asset's base units, the host's part of it."""
    host = await hosting.serve(policy=Policy.ECONOMIC)
    signer = await hosting.signer()
    await host.ask(signer)
    await host.sign(signer)
    found = await scraped(host)
    assert found["tally_receipts_total",] >= 1
    assert found["tally_unsettled", signer.job.asset] > 0


async def test_a_stranger_gets_nothing(hosting: Hosting) -> None:
    """What a proxy passes on is a stranger's, though the proxy is on this machine."""
    host = await hosting.serve()
    async with host.http.get("/metrics", headers={"X-Forwarded-For": "203.0.113.7"}) as answer:
        assert answer.status == 404


@pytest.mark.parametrize(
    ("peer", "headers", "here"),
    [
        ("127.0.0.1", [], True),
        ("::ffff:127.0.0.1", [], True),
        ("::1", [], True),
        (None, [], True),
        ("10.0.0.7", [], False),
        ("::ffff:10.0.0.7", [], False),
        ("127.0.0.1", [(b"x-real-ip", b"127.0.0.1")], False),
        ("127.0.0.1", [(b"forwarded", b"for=127.0.0.1")], False),
    ],
)
def test_who_is_of_this_machine(peer: str | None, headers: list[tuple[bytes, bytes]], here: bool) -> None:
    """A connection of loopback, or of a local socket, that no proxy has made for somebody else."""
    client = (peer, 50_000) if peer is not None else None
    assert from_here({"type": "http", "client": client, "headers": headers}) == here


async def test_the_page_of_the_docs_has_them_all(hosting: Hosting) -> None:
    """docs/metrics.md lists each metric that a node has, and no other."""
    host = await hosting.serve()
    async with host.http.get("/metrics") as answer:
        families = re.findall(r"^# TYPE (\w+)", await answer.text(), re.MULTILINE)
    assert set(re.findall(r"^\| `(tally_\w+)`", DOCS.read_text(), re.MULTILINE)) == set(families)
