"""The payer's half of the tally."""

import pytest

from tallystick import proof
from tallystick.countersign import PROMPT_MARGIN, STILL_CHUNKS, Countersigner
from tallystick.errors import ReceiptError
from tallystick.keccak import keccak
from tallystick.transcript import Delivery, prompt_form, prompt_hash, transcript
from tallystick.types import (
    ZERO_HASH,
    Ack,
    Address,
    JobId,
    Position,
    Prices,
    Receipt,
    RequestId,
    Totals,
)

KEY = keccak(b"a session key of these tests")
HOST_KEY = keccak(b"a host's key of these tests")
HOST = proof.address(HOST_KEY)
JOB = JobId(121)
PRICES = Prices(10_000_000, 2_000_000)
DOMAIN = proof.Domain(31337, Address("0x" + "22" * 20))
FIRST = RequestId("00" * 15 + "01")
SECOND = RequestId("00" * 15 + "02")
BODY = {"messages": [{"role": "user", "content": "How high is the tide?"}], "max_tokens": 500}


def countersigner(**options: object) -> Countersigner:
    signs = Countersigner(JOB, PRICES, 100, DOMAIN, KEY, **options)  # type: ignore[arg-type]
    signs.begin(FIRST, BODY, 500)
    return signs


def receive(signs: Countersigner, request: RequestId, tokens: range, text: str = "word ") -> list[int]:
    """Feeds one chunk a token; the running counts at which a checkpoint was due."""
    return [n for n in tokens if signs.receive(request, Totals(12, n), text)]


def ack(receipt: Receipt, key: bytes = HOST_KEY) -> Ack:
    digest = DOMAIN.receipt(JOB, receipt.totals, receipt.transcript)
    return Ack(JOB, receipt.totals, receipt.transcript, proof.sign(digest, key))


def sign(signs: Countersigner) -> Receipt:
    receipt = signs.next()
    assert receipt is not None
    signs.acked(ack(receipt), HOST)
    return receipt


def test_signs_exactly_what_was_received() -> None:
    """A receipt is the sum of its positions, and the host computes the same transcript from what it sent."""
    signs = countersigner()
    receive(signs, FIRST, range(1, 31))
    receipt = signs.next()
    assert receipt is not None
    sent = Delivery(FIRST, prompt_hash(BODY))
    for n in range(1, 31):
        sent.add(12, n, "word ")
    assert receipt.positions == (sent.position(),)
    assert receipt.totals == Totals(12, 30)
    assert receipt.transcript == transcript(ZERO_HASH, JOB, receipt.totals, [sent.position()])
    assert proof.recover(DOMAIN.receipt(JOB, receipt.totals, receipt.transcript), receipt.signature) == (
        signs.signer
    )


def test_a_checkpoint_is_due_at_every_quarter_interval() -> None:
    """Checkpoints of an interval of 100 are due at 25, 50, 75, 100, …"""
    assert receive(countersigner(), FIRST, range(1, 211)) == [25, 50, 75, 100, 125, 150, 175, 200]


def test_receipts_form_a_chain_one_at_a_time() -> None:
    """No receipt is made while another is under way, and each names the one before."""
    signs = countersigner()
    receive(signs, FIRST, range(1, 26))
    first = signs.next()
    receive(signs, FIRST, range(26, 51))
    assert first is not None
    assert signs.next() is None
    signs.acked(ack(first), HOST)
    second = sign(signs)
    assert (first.previous, second.previous) == (ZERO_HASH, first.transcript)
    assert second.totals == Totals(12, 50)


def test_whole_intervals_are_signed_by_themselves() -> None:
    """Whatever arrives meanwhile, the first position at or past each whole interval has its own receipt."""
    signs = countersigner()
    receive(signs, FIRST, range(1, 251))
    assert [sign(signs).totals.tokens for _ in range(3)] == [100, 200, 250]
    assert signs.next() is None


def test_streams_share_one_total() -> None:
    """Two streams of a job are two positions of one receipt, whose totals are their sum."""
    signs = countersigner()
    signs.begin(SECOND, BODY, 500)
    receive(signs, FIRST, range(1, 21))
    receive(signs, SECOND, range(1, 11))
    receipt = sign(signs)
    assert receipt.totals == Totals(24, 30)
    assert {p.request: p.tokens for p in receipt.positions} == {FIRST: 20, SECOND: 10}


def test_a_mark_overtaken_by_the_end_of_its_request() -> None:
    """A whole-interval mark whose request was signed to its end meanwhile does not stop the next receipt."""
    signs = countersigner()
    receive(signs, FIRST, range(1, 61))
    signs.end(FIRST, Totals(12, 60))
    under_way = signs.next()
    assert under_way is not None
    signs.begin(SECOND, BODY, 500)
    receive(signs, SECOND, range(1, 51))
    signs.acked(ack(under_way), HOST)
    assert sign(signs).totals == Totals(24, 100)
    assert sign(signs).totals == Totals(24, 110)


def test_never_signs_above_the_bytes_received() -> None:
    """Without a tokenizer a token is at least a byte: what is counted beyond is not signed, and is said."""
    signs = countersigner()
    signs.receive(FIRST, Totals(12, 5), "seven b")
    signs.receive(FIRST, Totals(12, 50), "x")
    over = signs.end(FIRST, Totals(12, 50))
    assert sign(signs).totals == Totals(12, 5)
    assert over is not None
    assert (over.what, over.counted, over.bound) == ("tokens", 50, 5)
    assert signs.disputes == [over]


def test_never_signs_above_what_was_asked_for() -> None:
    """max_tokens is a bound, whatever was delivered."""
    signs = Countersigner(JOB, PRICES, 100, DOMAIN, KEY)
    signs.begin(FIRST, BODY, 10)
    receive(signs, FIRST, range(1, 16))
    assert sign(signs).totals == Totals(12, 10)


def test_never_signs_a_prompt_longer_than_its_bytes() -> None:
    """A prompt has at most a token a byte, and what a template adds."""
    signs = countersigner()
    most = len(prompt_form(BODY)) + PROMPT_MARGIN
    signs.receive(FIRST, Totals(most + 1, 1), "word ")
    over = signs.end(FIRST, Totals(most + 1, 1))
    assert signs.next() is None
    assert over is not None
    assert (over.what, over.counted, over.bound) == ("prompt_tokens", most + 1, most)


def test_cut_characters_are_signed_for_once_they_are_whole() -> None:
    """Tokens without text are within the bound again when the character that they cut has arrived."""
    signs = countersigner()
    signs.receive(FIRST, Totals(12, 1), "a")
    signs.receive(FIRST, Totals(12, 3), "")
    assert sign(signs).totals.tokens == 1
    signs.receive(FIRST, Totals(12, 4), "\N{GRINNING FACE}")
    assert sign(signs).totals.tokens == 4


def test_the_unseen_end_token_is_paid() -> None:
    """A reply that ended with `stop` has a token that nobody sees: it is within the bound."""
    signs = countersigner()
    signs.receive(FIRST, Totals(12, 1), "a")
    signs.receive(FIRST, Totals(12, 2), "", "stop")
    assert signs.end(FIRST, Totals(12, 2)) is None
    assert sign(signs).totals.tokens == 2


def test_counts_never_go_down() -> None:
    """A running count below an earlier one is a lie of the host, and is refused."""
    signs = countersigner()
    receive(signs, FIRST, range(1, 6))
    with pytest.raises(ReceiptError, match="down"):
        signs.receive(FIRST, Totals(12, 4), "word ")


def test_ahead_is_signed_beyond_what_was_received() -> None:
    """`ahead` tokens are added to every receipt, one interval at most."""
    signs = countersigner(ahead=50)
    receive(signs, FIRST, range(1, 26))
    assert sign(signs).totals == Totals(12, 75)
    assert signs.acknowledged == Totals(12, 25)
    with pytest.raises(ValueError, match="one interval"):
        countersigner(ahead=101)


def test_a_prompt_beyond_the_credit_is_signed_ahead_once() -> None:
    """Law 5: its own receipt, without a position; asked for twice it is refused."""
    signs = countersigner()
    signs.sign_prompt_ahead(FIRST, 90)
    receipt = sign(signs)
    assert (receipt.totals, receipt.positions) == (Totals(90, 0), ())
    with pytest.raises(ReceiptError, match="90 prompt tokens"):
        signs.sign_prompt_ahead(FIRST, 90)
    signs.receive(FIRST, Totals(90, 1), "word ")
    assert sign(signs).totals == Totals(90, 1)


def test_a_payer_that_lost_its_memory_adopts_the_stored_receipt() -> None:
    """The host's stored receipt, signed by this signer, is where a payer without memory goes on."""
    before = countersigner()
    receive(before, FIRST, range(1, 41))
    stored = sign(before)
    after = Countersigner(JOB, PRICES, 100, DOMAIN, KEY)
    after.adopt(stored)
    after.begin(SECOND, BODY, 500)
    receive(after, SECOND, range(1, 11))
    receipt = sign(after)
    assert receipt.totals == Totals(24, 50)
    assert receipt.previous == stored.transcript


def test_a_receipt_of_somebody_else_is_not_adopted() -> None:
    """What this signer did not sign is not taken for its own."""
    stranger = Countersigner(JOB, PRICES, 100, DOMAIN, keccak(b"stranger"))
    stranger.begin(FIRST, BODY, 500)
    receive(stranger, FIRST, range(1, 41))
    with pytest.raises(ReceiptError, match="did not sign"):
        countersigner().adopt(sign(stranger))


def test_a_receipt_that_the_host_never_took_is_signed_over() -> None:
    """The payer goes on from what the host holds, where the host does not hold its last one."""
    signs = countersigner()
    receive(signs, FIRST, range(1, 26))
    held = sign(signs)
    receive(signs, FIRST, range(26, 51))
    lost = sign(signs)
    after = Countersigner(JOB, PRICES, 100, DOMAIN, KEY, last=lost, acknowledged=lost.totals)
    after.rebase(held)
    after.begin(SECOND, BODY, 500)
    receive(after, SECOND, range(1, 6))
    receipt = sign(after)
    assert (receipt.totals, receipt.previous) == (Totals(24, 30), held.transcript)


def test_an_acknowledgement_has_to_be_the_hosts() -> None:
    """An acknowledgement that another key signed, or of another receipt, is refused and changes nothing."""
    signs = countersigner()
    receive(signs, FIRST, range(1, 26))
    receipt = signs.next()
    assert receipt is not None
    with pytest.raises(ReceiptError, match="not signed by its host"):
        signs.acked(ack(receipt, KEY), HOST)
    with pytest.raises(ReceiptError, match="not under way"):
        signs.acked(Ack(JOB, Totals(12, 26), receipt.transcript, None), HOST)
    assert signs.pending == receipt
    signs.acked(ack(receipt), HOST)
    assert signs.receipted == Totals(12, 25)


def test_a_request_without_a_token_leaves_nothing() -> None:
    """A request that failed before its first token is not part of any receipt."""
    signs = countersigner()
    assert signs.end(FIRST, Totals()) is None
    assert signs.next() is None


def test_positions_are_of_requests_that_moved() -> None:
    """A request that has not moved since the last receipt is not named again."""
    signs = countersigner()
    receive(signs, FIRST, range(1, 6))
    sign(signs)
    signs.begin(SECOND, BODY, 500)
    receive(signs, SECOND, range(1, 6))
    positions: tuple[Position, ...] = sign(signs).positions
    assert [p.request for p in positions] == [SECOND]


def test_prompts_under_way_are_signed_for_together() -> None:
    """What is signed for a prompt includes the prompts before it, and never more than was sent."""
    signs = countersigner()
    signs.begin(SECOND, BODY, 500)
    signs.sign_prompt_ahead(FIRST, 90, 90)
    signs.sign_prompt_ahead(SECOND, 90, 180)
    assert sign(signs).totals == Totals(180, 0)
    third = RequestId("00" * 15 + "03")
    signs.begin(third, BODY, 500)
    with pytest.raises(ReceiptError, match="more than it was sent"):
        signs.sign_prompt_ahead(third, 90, 10_000)


def test_a_prompt_is_under_way_until_it_is_counted() -> None:
    """A host opens a reply before its first token: the prompt is still to come, beside those of others."""
    signs = countersigner()
    signs.begin(SECOND, BODY, 500)
    signs.receive(FIRST, Totals(), "")
    signs.sign_prompt_ahead(SECOND, 90, 180)
    assert sign(signs).totals == Totals(180, 0)


def test_a_prompt_that_was_counted_is_not_to_come() -> None:
    """Of a prompt of 12 tokens no more is signed for, however long it might have been."""
    signs = countersigner()
    receive(signs, FIRST, range(1, 6))
    signs.begin(SECOND, BODY, 500)
    with pytest.raises(ReceiptError, match="more than it was sent"):
        signs.sign_prompt_ahead(SECOND, 90, 90 + 12 + len(prompt_form(BODY)) + PROMPT_MARGIN)
    signs.sign_prompt_ahead(SECOND, 90, 12 + 90)
    assert sign(signs).totals == Totals(12 + 90, 5)


def test_prompts_that_are_asked_for_at_once_are_all_signed_for() -> None:
    """Law 3: a host names the same total for each; what is signed for is their sum, and those that came."""
    signs = countersigner()
    others = [RequestId(f"{number:032x}") for number in (2, 3, 4)]
    for request in others:
        signs.begin(request, BODY, 500)
        signs.sign_prompt_ahead(request, 90, 90)
    assert sign(signs).totals == Totals(3 * 90, 0)
    receive(signs, FIRST, range(1, 6))
    assert sign(signs).totals == Totals(12 + 3 * 90, 5)
    for request in others:
        signs.receive(request, Totals(90, 1), "word ")
    assert sign(signs).totals == Totals(12 + 3 * 90, 8)


def test_what_was_signed_ahead_for_a_request_that_failed_is_there_for_the_next() -> None:
    """Law 5: it counts no more, so the next prompt is signed for as far as it is longer."""
    signs = countersigner()
    signs.sign_prompt_ahead(FIRST, 90, 90)
    assert sign(signs).totals == Totals(90, 0)
    signs.end(FIRST)
    signs.begin(SECOND, BODY, 500)
    signs.sign_prompt_ahead(SECOND, 100, 100)
    assert sign(signs).totals == Totals(100, 0)


def test_what_was_not_signed_yet_is_not_for_a_request_that_is_over() -> None:
    """A request that is left before its prompt was signed for has nothing signed."""
    signs = countersigner()
    signs.sign_prompt_ahead(FIRST, 90, 90)
    assert signs.prompts_outstanding
    signs.end(FIRST)
    assert signs.next() is None


def test_a_prompt_is_asked_for_again_once_for_each_other_request() -> None:
    """Each of them may have been let in on what was signed for it; a host that wants more is refused."""
    signs = countersigner()
    signs.end(FIRST)
    signs.begin(SECOND, BODY, 500)
    signs.begin(FIRST, BODY, 500)
    signs.sign_prompt_ahead(SECOND, 90, 90)
    signs.end(FIRST)
    signs.sign_prompt_ahead(SECOND, 90, 102)
    assert sign(signs).totals == Totals(102, 0)
    assert not signs.may_sign_ahead(SECOND)
    with pytest.raises(ReceiptError, match="asks again"):
        signs.sign_prompt_ahead(SECOND, 90, 103)


def test_adopting_does_not_sign_ahead_twice() -> None:
    """Law 3: two sessions of one job that adopt each other's receipts sign one `ahead` between them."""
    here, there = (Countersigner(JOB, PRICES, 100, DOMAIN, KEY, ahead=100) for _ in range(2))
    here.begin(FIRST, BODY, 500)
    there.begin(SECOND, BODY, 500)
    acknowledged: dict[bytes, Totals] = {}
    for last in range(10, 60, 10):
        for signs, other, request in ((here, there, FIRST), (there, here, SECOND)):
            receive(signs, request, range(last - 9, last + 1))
            receipt = sign(signs)
            acknowledged[receipt.transcript] = signs.acknowledged
            other.adopt(receipt, acknowledged[receipt.transcript])
    assert here.receipted == there.receipted == Totals(24, 100 + 100)


def test_without_its_store_a_payer_signs_nothing_ahead_of_what_it_adopts() -> None:
    """Law 3: where nobody knows what an adopted receipt acknowledged, no `ahead` is added to it again."""
    signs = countersigner(ahead=100)
    receive(signs, FIRST, range(1, 11))
    stored = sign(signs)
    after = Countersigner(JOB, PRICES, 100, DOMAIN, KEY, ahead=100)
    after.adopt(stored)
    after.begin(SECOND, BODY, 500)
    receive(after, SECOND, range(1, 11))
    assert sign(after).totals == Totals(24, 120)


def test_a_host_that_answers_with_an_older_receipt_gets_no_more() -> None:
    """Law 3: a receipt that is ahead has to be taken; the one before it is no answer, and adds nothing."""
    signs = countersigner(ahead=100)
    receive(signs, FIRST, range(1, 11))
    older = sign(signs)
    receive(signs, FIRST, range(11, 21))
    assert signs.next() is not None
    with pytest.raises(ReceiptError, match="not ahead"):
        signs.adopt(older)
    assert signs.receipted == older.totals


def test_a_pending_receipt_that_the_host_holds_is_acknowledged() -> None:
    """A receipt whose answer was lost is found at the host again; its positions are not signed for twice."""
    signs = countersigner()
    receive(signs, FIRST, range(1, 11))
    pending = signs.next()
    assert pending is not None
    signs.adopt(pending)
    receive(signs, FIRST, range(11, 16))
    assert sign(signs).totals == Totals(12, 15)


def test_a_host_that_sends_without_counting_is_stopped() -> None:
    """Chunks without a token do not fill the payer's memory for ever."""
    signs = countersigner()
    receive(signs, FIRST, range(1, 2))
    for _ in range(STILL_CHUNKS):
        signs.receive(FIRST, Totals(12, 1), "word ")
    with pytest.raises(ReceiptError, match="without counting"):
        signs.receive(FIRST, Totals(12, 1), "word ")
