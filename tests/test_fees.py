"""Fees and the fate of a transaction: every answer of the chain has one next move."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick.fees import (
    GWEI,
    Answer,
    Decision,
    Fees,
    Flight,
    Market,
    Move,
    Pace,
    Sighting,
    View,
    bumped,
    decide,
    opening,
    read_answer,
    replaces,
)

NOW = 1_000.0
MARKET = Market(base_fee=GWEI, tip=GWEI // 10)
PACE = Pace(ceiling=100 * GWEI, bump_after=30, resend_after=10)
FEES = opening(MARKET, PACE.ceiling)
SENT = Flight(nonce=7, fees=FEES, answer=Answer.ACCEPTED, sent_at=NOW, taken_at=NOW)
VIEW = View(head=100, nonce=7, market=MARKET, confirmations=10)
RECEIPT = Sighting("0xaa", block=100, succeeded=True)
WAIT, SEND = Decision(Move.WAIT), Decision(Move.SEND)

wei = st.integers(0, 10**14)


# Fees


@given(wei, wei, wei, wei)
def test_a_bump_replaces_and_stays_below_the_ceiling(base: int, tip: int, fee: int, ceiling: int) -> None:
    """Every pool takes a replacement; it offers what is asked and costs no more than the ceiling."""
    before = Fees(fee + tip, tip)
    after = bumped(before, Market(base, tip), ceiling)
    if after is None:
        assert max(before.max_fee + 1, before.max_fee * 9 / 8) > ceiling
        return
    assert replaces(after, before)
    assert after.tip <= after.max_fee <= ceiling
    assert after.max_fee >= min(2 * base + tip, ceiling)


def test_a_bump_is_an_eighth_rounded_up() -> None:
    """12.5 % of both fees, and a wei at least."""
    quiet = Market(0, 0)
    assert bumped(Fees(1_001, 9), quiet, 10**9) == Fees(1_127, 11)
    assert bumped(Fees(8, 0), quiet, 10**9) == Fees(9, 1)


def test_a_bump_follows_the_market() -> None:
    """After a spike one replacement is enough."""
    spike = Market(base_fee=10 * GWEI, tip=GWEI)
    assert bumped(FEES, spike, 100 * GWEI) == Fees(21 * GWEI, GWEI)


def test_no_bump_beyond_the_ceiling() -> None:
    """Fees end at the ceiling, also the first ones."""
    assert bumped(Fees(90 * GWEI, GWEI), MARKET, 100 * GWEI) is None
    assert opening(Market(80 * GWEI, 2 * GWEI), 100 * GWEI) == Fees(100 * GWEI, 2 * GWEI)
    assert opening(Market(GWEI, 2 * GWEI), GWEI) == Fees(GWEI, GWEI)


# Answers


# What nodes say to `eth_sendRawTransaction`, as their sources have it. No standard names these errors.
NODES = {
    # core/txpool/errors.go, core/txpool/validation.go, core/error.go, internal/ethapi/api.go
    "geth": {
        "already known": Answer.KNOWN,
        "nonce too low: next nonce 8, tx nonce 7": Answer.NONCE_TOO_LOW,
        "insufficient funds for gas * price + value: balance 0, tx cost 1, overshot 1": Answer.NO_FUNDS,
        "transaction underpriced: gas tip cap 0, minimum needed 1": Answer.UNDERPRICED,
        "transaction gas price below minimum: gas tip cap 0, minimum needed 1": Answer.UNDERPRICED,
        "replacement transaction underpriced": Answer.UNDERPRICED,
        "max fee per gas less than block base fee: address 0x1, maxFeePerGas: 1": Answer.UNDERPRICED,
        "exceeds block gas limit": Answer.REFUSED,
        "transaction gas limit too high (cap: 16777216, tx: 30000000)": Answer.REFUSED,
        "intrinsic gas too low: gas 21000, minimum needed 30000": Answer.REFUSED,
        "insufficient gas for floor data gas cost: gas 21000, minimum needed 30000": Answer.REFUSED,
        "oversized data: transaction size 200000, limit 131072": Answer.REFUSED,
        "tx fee (1.20 ether) exceeds the configured cap (1.00 ether)": Answer.REFUSED,
        "max priority fee per gas higher than max fee per gas": Answer.REFUSED,
        "execution reverted: 0x12345678": Answer.REFUSED,
        "invalid sender: invalid chain id for signer: have 31337 want 1": Answer.SILENCE,
        "invalid sender": Answer.SILENCE,
        "nonce too high: tx nonce 9, gapped nonce 7": Answer.SILENCE,
        "txpool is full": Answer.SILENCE,
        "account limit exceeded: pooled 16 txs": Answer.SILENCE,
        "future transaction tries to replace pending": Answer.SILENCE,
        "address already reserved": Answer.SILENCE,
        "in-flight transaction limit reached for delegated accounts": Answer.SILENCE,
    },
    # crates/rpc/rpc-eth-types/src/error/mod.rs, crates/transaction-pool/src/error.rs
    "reth": {
        "already known": Answer.KNOWN,
        "already imported": Answer.KNOWN,
        "nonce too low: next nonce 8, tx nonce 7": Answer.NONCE_TOO_LOW,
        "insufficient funds for gas * price + value: have 0 want 1": Answer.NO_FUNDS,
        "replacement transaction underpriced": Answer.UNDERPRICED,
        "insufficient gas price to replace existing transaction": Answer.UNDERPRICED,
        "transaction feeCap 6 below chain minimum": Answer.UNDERPRICED,
        "transaction priority fee below minimum required priority fee 1": Answer.UNDERPRICED,
        "max fee per gas less than block base fee": Answer.UNDERPRICED,
        "exceeds max transaction gas limit": Answer.REFUSED,
        "intrinsic gas too high": Answer.REFUSED,
        "tx fee (2 wei) exceeds the configured cap (1 wei)": Answer.REFUSED,
        "invalid chain ID": Answer.SILENCE,
        "invalid transaction signature": Answer.SILENCE,
        "failed to decode signed transaction": Answer.SILENCE,
        "nonce too high": Answer.SILENCE,
    },
    # Nethermind.TxPool/AcceptTxResult.cs, which said its names first, and what they name since;
    # Nethermind.Core/Messages/TxErrorMessages.cs
    "nethermind": {
        "AlreadyKnown": Answer.KNOWN,
        "OldNonce, Current nonce: 8, nonce of rejected tx: 7": Answer.NONCE_TOO_LOW,
        "InsufficientFunds, Balance is 0 less than sending value + gas 1": Answer.NO_FUNDS,
        "FeeTooLow, MaxFeePerGas too low. MaxFeePerGas: 1, BaseFee: 2": Answer.UNDERPRICED,
        "FeeTooLowToCompete": Answer.UNDERPRICED,
        "ReplacementNotAllowed": Answer.UNDERPRICED,
        "replacement transaction underpriced": Answer.UNDERPRICED,
        "GasLimitExceeded, Gas limit: 1, gas limit of rejected tx: 2": Answer.REFUSED,
        "gas limit reached": Answer.REFUSED,
        "MaxTxSizeExceeded": Answer.REFUSED,
        "transaction too large": Answer.REFUSED,
        "Invalid": Answer.REFUSED,
        "transaction invalid, TxGasLimitCapExceeded: Gas limit 2 exceeded cap of 1.": Answer.REFUSED,
        "Invalid, InvalidTxChainId: Expected 1, got 31337.": Answer.SILENCE,
        "NonceGap, Future nonce. Expected nonce: 7": Answer.SILENCE,
        "nonce too far in future": Answer.SILENCE,
        "node is syncing": Answer.SILENCE,
    },
    # ethereum/api/…/jsonrpc/internal/response/RpcErrorType.java
    "besu": {
        "Known transaction": Answer.KNOWN,
        "Nonce too low": Answer.NONCE_TOO_LOW,
        "Transaction nonce is below sender account nonce": Answer.NONCE_TOO_LOW,
        "Upfront cost exceeds account balance": Answer.NO_FUNDS,
        "Replacement transaction underpriced": Answer.UNDERPRICED,
        "Gas price below configured minimum gas price": Answer.UNDERPRICED,
        "Gas price below current base fee": Answer.UNDERPRICED,
        "Transaction gas limit exceeds block gas limit": Answer.REFUSED,
        "Intrinsic gas exceeds gas limit": Answer.REFUSED,
        "Transaction fee cap exceeded": Answer.REFUSED,
        "Max priority fee per gas exceeds max fee per gas": Answer.REFUSED,
        "Execution reverted": Answer.REFUSED,
        "Wrong chainId": Answer.SILENCE,
        "Invalid signature": Answer.SILENCE,
        "An invalid transaction with a lower nonce exists": Answer.SILENCE,
        "Transaction nonce is too distant from current sender nonce": Answer.SILENCE,
        "Initial sync is still in progress": Answer.SILENCE,
    },
    # txnprovider/txpool/txpoolcfg/txpoolcfg.go
    "erigon": {
        "already known": Answer.KNOWN,
        "existing txn with same hash": Answer.KNOWN,
        "nonce too low": Answer.NONCE_TOO_LOW,
        "insufficient funds": Answer.NO_FUNDS,
        "underpriced": Answer.UNDERPRICED,
        "fee too low": Answer.UNDERPRICED,
        "replacement transaction underpriced": Answer.UNDERPRICED,
        "INTERNAL_ERROR: could not replace existing tx": Answer.UNDERPRICED,
        "gas limit is too high": Answer.REFUSED,
        "IntrinsicGas": Answer.REFUSED,
        "RLPTooLong": Answer.REFUSED,
        "invalid sender": Answer.SILENCE,
        "pending sub-pool is full": Answer.SILENCE,
        "spammer": Answer.SILENCE,
    },
    # anvil: crates/anvil/src/eth/error.rs; hardhat: edr_provider/src/error.rs
    "of developers": {
        "transaction already imported": Answer.KNOWN,
        "Insufficient funds for gas * price + value": Answer.NO_FUNDS,
        "Sender doesn't have enough funds to send tx. The max upfront cost is: 1": Answer.NO_FUNDS,
        "Transaction maxFeePerGas (1) is too low for the next block": Answer.UNDERPRICED,
    },
    # Arbitrum, and others that were heard of: no source was read.
    "others": {
        "max fee per gas 1 lower than base fee 2": Answer.UNDERPRICED,
        "gas price lower than base fee: 1 vs 2": Answer.UNDERPRICED,
        "max fee per gas is lower than base fee": Answer.UNDERPRICED,
        "gas price too low: 1 wei, use at least tx.gasPrice = 2 wei": Answer.UNDERPRICED,
        "transaction would cause overdraft": Answer.NO_FUNDS,
        "invalid transaction: too big": Answer.REFUSED,
    },
}

# What stands between a program and a node says this of its caller, or of itself.
GATEWAYS = (
    "Invalid API key",
    "invalid project id",
    "invalid json request",
    "invalid character '<' looking for beginning of value",
    "Invalid response from upstream",
    "rate limit: invalid token",
    "Invalid params",
    "the method eth_sendRawTransaction is not supported",
    "rejected due to project ID settings",
    "Must be authenticated!",
    "Too many requests",
    "",
)


@pytest.mark.parametrize(("message", "answer"), [each for words in NODES.values() for each in words.items()])
def test_every_nodes_words_are_understood(message: str, answer: Answer) -> None:
    """Words of geth, reth, nethermind, besu and erigon mean what their sources say they do."""
    assert read_answer(message) is answer


@pytest.mark.parametrize("message", GATEWAYS)
def test_what_is_said_of_the_caller_is_no_verdict_on_a_transaction(message: str) -> None:
    """What is not understood is taken for silence, which loses nothing: the same bytes are sent again."""
    assert read_answer(message) is Answer.SILENCE


# Moves


def test_what_was_never_sent_is_sent() -> None:
    """After a restart the bytes on disk go out again, whatever became of them before."""
    assert decide(Flight(7, FEES), VIEW, NOW, PACE) == SEND
    assert decide(Flight(7, FEES, taken_at=NOW - 999), VIEW, NOW, PACE) == SEND


@pytest.mark.parametrize("answer", [Answer.ACCEPTED, Answer.KNOWN, Answer.SILENCE, Answer.NO_FUNDS])
def test_what_was_sent_is_sent_again_after_a_while(answer: Answer) -> None:
    """A dropped transaction comes back, one without funds goes out once there are some."""
    sent = replace(SENT, answer=answer)
    assert decide(sent, VIEW, NOW + 9, PACE) == WAIT
    assert decide(sent, VIEW, NOW + 10, PACE) == SEND


def test_what_is_stuck_is_replaced() -> None:
    """Half a minute in the pool, and nobody minds: an eighth more."""
    assert decide(SENT, VIEW, NOW + 30, PACE) == Decision(Move.BUMP, bumped(FEES, MARKET, PACE.ceiling))


def test_a_clock_that_was_set_back_holds_nothing_up() -> None:
    """What was sent at a time that is yet to come is sent again now, and replaced if that is no help."""
    sent = replace(SENT, taken_at=None)
    assert decide(sent, VIEW, NOW - 1, PACE) == SEND
    assert decide(SENT, VIEW, NOW - 86_400, PACE).move is Move.BUMP


def test_what_waits_behind_another_one_is_not_replaced() -> None:
    """Raising fees behind a lower nonce buys nothing, unless its own are below the base fee."""
    behind = replace(SENT, first=False)
    assert decide(behind, VIEW, NOW + 30, PACE) == SEND
    spike = replace(VIEW, market=Market(50 * GWEI, GWEI))
    assert decide(behind, spike, NOW + 30, PACE).move is Move.BUMP


def test_what_cannot_be_paid_is_not_replaced_by_something_dearer() -> None:
    """Without funds the bytes are kept."""
    assert decide(replace(SENT, answer=Answer.NO_FUNDS), VIEW, NOW + 30, PACE) == SEND


def test_at_the_ceiling_the_same_bytes_are_sent_again() -> None:
    """The ceiling ends the bumps, not the transaction."""
    dear = replace(SENT, fees=Fees(PACE.ceiling, GWEI))
    assert decide(dear, VIEW, NOW + 30, PACE) == SEND
    assert decide(replace(dear, answer=Answer.UNDERPRICED), VIEW, NOW + 1, PACE) == WAIT


def test_underpriced_is_replaced_at_once() -> None:
    """No pool took it, so there is nothing to wait for."""
    assert decide(replace(SENT, answer=Answer.UNDERPRICED), VIEW, NOW, PACE).move is Move.BUMP


def test_what_is_refused_for_good_gives_its_nonce_away() -> None:
    """A nonce that is never used would hold up all later ones, so a transfer of nothing takes its place."""
    refused = replace(SENT, answer=Answer.REFUSED)
    assert decide(refused, VIEW, NOW, PACE) == Decision(Move.CANCEL, bumped(FEES, MARKET, PACE.ceiling))
    dear = replace(refused, fees=Fees(PACE.ceiling, GWEI))
    assert decide(dear, VIEW, NOW, PACE) == Decision(Move.CANCEL, dear.fees)
    assert decide(replace(refused, cancelling=True), VIEW, NOW, PACE) == WAIT


@pytest.mark.parametrize(("head", "move"), [(100, Move.MINED), (108, Move.MINED), (109, Move.FINISH)])
def test_a_receipt_counts_n_blocks_deep(head: int, move: Move) -> None:
    """Law 9: ten confirmations are the block that holds it and nine more."""
    view = replace(VIEW, head=head, nonce=8, sighting=RECEIPT)
    assert decide(SENT, view, NOW, PACE) == Decision(move)


def test_a_receipt_is_told_once() -> None:
    """The same receipt in the same block is no news; in another block it is."""
    view = replace(VIEW, head=105, nonce=8, sighting=RECEIPT)
    assert decide(replace(SENT, mined=RECEIPT), view, NOW, PACE) == WAIT
    moved = replace(RECEIPT, block=101)
    assert decide(replace(SENT, mined=moved), view, NOW, PACE) == Decision(Move.MINED)


def test_a_receipt_that_is_gone_takes_everything_back() -> None:
    """Law 9: a reorganisation, whatever the nonce says by now."""
    mined = replace(SENT, mined=RECEIPT)
    assert decide(mined, VIEW, NOW, PACE) == Decision(Move.TAKE_BACK)
    assert decide(mined, replace(VIEW, nonce=8), NOW, PACE) == Decision(Move.TAKE_BACK)


def test_a_receipt_is_not_gone_for_an_endpoint_that_is_behind_it() -> None:
    """Law 9: it has to have come to the receipt's block to know that it is not there."""
    mined = replace(SENT, mined=RECEIPT)
    assert decide(mined, replace(VIEW, head=RECEIPT.block - 1), NOW, PACE) == WAIT
    assert decide(mined, replace(VIEW, head=RECEIPT.block), NOW, PACE) == Decision(Move.TAKE_BACK)


def test_a_used_nonce_without_a_receipt_waits_n_blocks() -> None:
    """`nonce too low` by one of our own hashes shows its receipt in time; a stranger's never does."""
    too_low = replace(SENT, answer=Answer.NONCE_TOO_LOW)
    view = replace(VIEW, nonce=8)
    assert decide(too_low, view, NOW + 999, PACE) == Decision(Move.PASSED)
    passed = replace(too_low, passed_at=100)
    assert decide(passed, replace(view, head=109), NOW, PACE) == WAIT
    assert decide(passed, replace(view, head=110), NOW, PACE) == Decision(Move.DISPLACED)
    assert decide(passed, replace(view, head=110, sighting=RECEIPT), NOW, PACE).move is Move.FINISH
