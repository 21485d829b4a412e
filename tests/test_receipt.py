"""The host's judgement of a receipt: protocol §5, case by case."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec.structs import replace as knowing

from tallystick import proof
from tallystick.errors import Refusal
from tallystick.receipt import Judgement, Known, check_signer, judge
from tallystick.transcript import Delivery, transcript
from tallystick.types import ZERO_HASH, Address, JobId, Position, Receipt, RequestId, Totals

KEY = (7).to_bytes(32, "big")
DOMAIN = proof.Domain(31337, Address("0x9fE46736679d2D9a65F0992F2272dE9f3c7fa6e0"))
JOB = JobId(121)
FIRST, SECOND, EARLIER = (RequestId(f"{number:032x}") for number in (1, 2, 3))
PROMPT = bytes(31) + b"p"


def delivery(request: RequestId, *chunks: str) -> Delivery:
    """What the host sent: a prompt of 12 tokens, and chunks of one token each."""
    sent = Delivery(request, PROMPT)
    for tokens, text in enumerate(chunks, start=1):
        sent.add(12, tokens, text)
    return sent


def signed(
    totals: Totals, *positions: Position, previous: bytes = ZERO_HASH, key: bytes = KEY, job_id: JobId = JOB
) -> Receipt:
    link = transcript(previous, job_id, totals, positions)
    signature = proof.sign(DOMAIN.receipt(job_id, totals, link), key)
    return Receipt(job_id, totals, previous, link, signature, positions)


SENT = delivery(FIRST, "a", "b", "c")
KNOWN = Known(
    job_id=JOB,
    stored=None,
    acknowledged=Totals(),
    positions={},
    deliveries={FIRST: SENT},
    lost=Totals(),
)
AT_TWO = SENT.position_at(2)
GOOD = signed(Totals(12, 2), AT_TWO)


def after(receipt: Receipt) -> Known:
    """What is known once `receipt` was stored."""
    judgement = judge(receipt, KNOWN)
    assert judgement is not None
    positions = {position.request: position.totals for position in receipt.positions}
    return knowing(KNOWN, stored=receipt, acknowledged=judgement.acknowledged, positions=positions)


def refused(receipt: Receipt, known: Known) -> Refusal:
    with pytest.raises(Refusal) as caught:
        judge(receipt, known)
    return caught.value


def test_good() -> None:
    """A receipt acknowledges what its positions add up to."""
    assert judge(GOOD, KNOWN) == Judgement(Totals(12, 2), lost=Totals())


def test_signed_ahead() -> None:
    """What is signed beyond the positions is credit, and not acknowledged; how far is the payer's risk."""
    assert judge(signed(Totals(512, 100), AT_TWO), KNOWN) == Judgement(Totals(12, 2), lost=Totals())
    assert judge(signed(Totals(512, 0)), KNOWN) == Judgement(Totals(), lost=Totals())
    assert judge(signed(Totals(12, 10**9), AT_TWO), KNOWN) == Judgement(Totals(12, 2), lost=Totals())


def test_only_what_moved_counts() -> None:
    """The next receipt adds the difference to what was acknowledged."""
    known = after(GOOD)
    following = signed(Totals(12, 3), SENT.position(), previous=GOOD.transcript)
    assert judge(following, known) == Judgement(Totals(12, 3), lost=Totals())


@pytest.mark.parametrize("totals", [Totals(12, 2), Totals(12, 1), Totals(13, 1), Totals(11, 3)])
def test_stale_or_equal_changes_nothing(totals: Totals) -> None:
    """Law 1: equal is harmless, stale is stale: neither is an error, and neither is looked at further."""
    receipt = replace(signed(totals, previous=PROMPT), signature=bytes(65))
    assert judge(receipt, after(GOOD)) is None


def test_out_of_order() -> None:
    """A receipt that does not follow the stored one is answered with that one, to go on from."""
    for known, stored in ((KNOWN, False), (after(GOOD), True)):
        refusal = refused(signed(Totals(12, 3), SENT.position(), previous=PROMPT), known)
        assert refusal.code == "receipt_out_of_order"
        assert bool(refusal.extra["stored"]) == stored


@pytest.mark.parametrize(
    "position",
    [
        replace(AT_TWO, tokens=4),
        replace(AT_TWO, prompt_tokens=11),
        replace(AT_TWO, text_hash=PROMPT),
        replace(AT_TWO, prompt_hash=AT_TWO.text_hash),
        replace(AT_TWO, request=SECOND),
    ],
    ids=["more than was sent", "fewer prompt tokens", "other text", "other prompt", "never sent"],
)
def test_mismatch(position: Position) -> None:
    """A position has to be at the end of a chunk that was sent, with its hashes; the request is named."""
    refusal = refused(signed(Totals(12, 4), position), KNOWN)
    assert refusal.code == "receipt_mismatch"
    assert refusal.extra.get("request", SECOND) == position.request


def test_taken_back() -> None:
    """A position is never below an earlier one."""
    refusal = refused(signed(Totals(12, 3), SENT.position_at(1), previous=GOOD.transcript), after(GOOD))
    assert (refusal.code, refusal.extra["request"]) == ("receipt_mismatch", FIRST)


def test_less_than_acknowledged() -> None:
    """The signed totals are at least what the positions add up to."""
    assert refused(signed(Totals(12, 1), AT_TWO), KNOWN).code == "receipt_mismatch"


def test_wrong_transcript() -> None:
    """The transcript is the one that the host computes."""
    assert refused(replace(GOOD, transcript=PROMPT), KNOWN).code == "receipt_mismatch"


def test_forged() -> None:
    """Law 10: only the job's signer signs, in the one form of a signature that the contract takes."""
    stranger = signed(Totals(12, 2), AT_TWO, key=(8).to_bytes(32, "big"))
    for receipt in (stranger, replace(GOOD, signature=GOOD.signature[:-1] + b"\x02")):
        with pytest.raises(Refusal) as caught:
            check_signer(receipt, DOMAIN, proof.address(KEY))
        assert caught.value.code == "receipt_forged"
    check_signer(GOOD, DOMAIN, proof.address(KEY))


def test_of_another_job() -> None:
    """A receipt counts for the job that it names."""
    assert refused(signed(Totals(12, 2), AT_TWO, job_id=JobId(122)), KNOWN).code == "job_mismatch"


def test_before_a_restart() -> None:
    """What was sent before the host restarted is taken at the payer's word, within what was counted."""
    known = knowing(KNOWN, lost=Totals(30, 40))
    old = Position(EARLIER, 30, 35, PROMPT, PROMPT)
    assert judge(signed(Totals(42, 37), old, AT_TWO), known) == Judgement(Totals(42, 37), lost=Totals(0, 5))
    assert refused(signed(Totals(42, 43), replace(old, tokens=41), AT_TWO), known).code == "receipt_mismatch"


def test_forgotten_text_says_nothing_new() -> None:
    """A position without text to compare with has to move: nobody could tell whether its hashes are right."""
    known = knowing(KNOWN, positions={EARLIER: Totals(30, 35)}, acknowledged=Totals(30, 35), deliveries={})
    same = Position(EARLIER, 30, 35, PROMPT, PROMPT)
    assert refused(signed(Totals(30, 36), same), known).code == "receipt_mismatch"
