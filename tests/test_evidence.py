"""Evidence: what a real job left behind holds, and a changed byte anywhere is found."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest

from tallystick import evidence, proof
from tallystick.chain import Chain
from tallystick.devnet import Devnet
from tallystick.errors import ReceiptError
from tallystick.evidence import Evidence
from tallystick.exchange import Exchange
from tallystick.opening import Wishes
from tallystick.session import Session
from tallystick.testing.engine import Script, say
from tests.buying import MESSAGES, Bench
from tests.paying import register


@pytest.fixture
async def left(devnet: Devnet, chain: Chain, tmp_path: Path) -> AsyncIterator[tuple[bytes, bytes]]:
    """The evidence of a job of two requests, and its session key."""
    await register(devnet, chain)
    async with AsyncExitStack() as parts:
        bench = Bench(devnet, chain, tmp_path, parts)
        wallet = bench.wallet()
        url = await bench.serve(Script(say(*["word "] * 130)))
        wishes = Wishes(deposit=500_000, model="scripted")
        async with await Session.open(chain, wallet.store, wallet.key(), url, wishes) as session:
            for _ in range(2):
                body = {"messages": MESSAGES, "max_tokens": 200}
                async with Exchange(session, "/v1/chat/completions", body, max_tokens=200) as exchange:
                    async for _ in exchange:
                        pass
            await session.complete()
        [file] = (tmp_path / "payer" / "evidence").iterdir()
        stored = wallet.stored(session.job.id)
        assert stored is not None
        yield file.read_bytes(), stored.key


def failing(raw: bytes) -> list[str]:
    """The checks that fail."""
    return [check.name for check in Evidence(raw).checks() if not check.passed]


def forged(raw: bytes, key: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """Changed, and sealed again by whoever has the session key."""
    body = copy.deepcopy(orjson.loads(raw))
    change(body)
    body["seal"] = "0x" + proof.sign(evidence._seal(body), key).hex()
    return evidence._form(body)


async def test_what_a_session_left_behind_holds(left: tuple[bytes, bytes]) -> None:
    """Every check passes, and says what it saw."""
    raw, _ = left
    read = Evidence(raw)
    assert [check for check in read.checks() if not check.passed] == []
    assert read.signed.tokens == 260
    assert "260 generated tokens" in read.proves()
    assert len(read.form.settlements) >= 2


async def test_a_changed_byte_is_found(left: tuple[bytes, bytes]) -> None:
    """Whichever byte is another one, the file is refused or its seal is broken."""
    raw, _ = left
    unnoticed = []
    for place in range(0, len(raw), 7):
        changed = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
        try:
            if "seal" not in failing(changed):
                unnoticed.append(place)
        except ReceiptError:
            continue
    assert unnoticed == []


def compact(seal: str) -> str:
    """The same signature in 64 bytes."""
    return "0x" + proof.compact(bytes.fromhex(seal[2:])).hex()


async def test_the_seal_has_one_form(left: tuple[bytes, bytes]) -> None:
    """Bytes that say the same otherwise are other bytes: the file is refused."""
    body = orjson.loads(left[0])
    seal = body["seal"]
    same = [
        seal.upper(),
        f"0x{seal[2:].upper()}",
        seal[2:],
        f"{seal[:4]} {seal[4:]}",
        f"{seal}\n",
        compact(seal),
    ]
    for written in same:
        with pytest.raises(ReceiptError, match="seal"):
            Evidence(evidence._form({**body, "seal": written}))


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("terms", lambda body: body.update(model="another")),
        ("signatures", lambda body: body["receipts"][1]["receipt"].update(tokens=1)),
        ("links", lambda body: body["receipts"].pop(0)),
        ("links", lambda body: body["receipts"][0]["receipt"]["positions"][0].update(tokens=1)),
        ("host", lambda body: body["receipts"][0].update(ack=body["receipts"][1]["ack"])),
        ("settlements", lambda body: body["settlements"][0].update(tokens=10_000)),
        ("settlements", lambda body: body["settlements"][0].update(transcript="0x" + "11" * 32)),
        ("amounts", lambda body: body["settlements"][0].update(host="1")),
        ("amounts", lambda body: body["completion"].update(refund="1")),
        ("amounts", lambda body: body["completion"].update(treasury="0")),
        ("amounts", lambda body: body["job"].update(deposit="1000000")),
    ],
)
async def test_its_author_cannot_make_it_say_something_else(
    left: tuple[bytes, bytes], check: str, change: Callable[[dict[str, Any]], None]
) -> None:
    """What does not add up is found though the seal is good: the payer has the key, and is not trusted."""
    raw, key = left
    assert check in failing(forged(raw, key, change))


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"format": 1}', b"\xff"])
def test_what_is_no_evidence_is_refused(raw: bytes) -> None:
    """One error, whatever it is."""
    with pytest.raises(ReceiptError):
        Evidence(raw)


async def test_the_chain_is_asked_by_whoever_wants_to_know(left: tuple[bytes, bytes], chain: Chain) -> None:
    """Terms, settlements and end are the chain's, or it is told what the chain has."""
    raw, key = left
    read = Evidence(raw)
    job, rows = await chain.job(read.job_id), await chain.settlements(read.job_id)
    completion = await chain.completion(read.job_id)
    assert all(check.passed for check in evidence.against(read, job, rows, completion))
    other = Evidence(forged(raw, key, lambda body: body["completion"].update(tx="0x" + "11" * 32)))
    told = evidence.against(other, job, rows, completion)
    assert [check.name for check in told if not check.passed] == ["end on chain"]
    assert not evidence.against(read, None, [], None)[0].passed
