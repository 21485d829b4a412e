"""The contracts against the model of them: the same random steps on both, compared to the unit after each."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from eth_utils.abi import filter_abi_by_type

from tallystick.artifacts import artifact
from tallystick.devnet import Anvil
from tests.differential.anvil import AnvilChain
from tests.differential.campaign import Diary, Differs, campaign, replay
from tests.differential.mistakes import MISTAKES
from tests.differential.model import Model

SEQUENCES = 500
ON_ANVIL = 10

NOT_TRIED = {
    "InsufficientBalance": "the contract has what it owes",
    "InvalidShortString": "of a constructor",
    "ReentrancyGuardReentrantCall": "nobody here calls back",
    "RefundNeedsGas": "there is always gas here",
    "SafeERC20FailedOperation": "no token here answers false",
    "StringTooLong": "of a constructor",
    "WrongAmountReceived": "no token here takes a toll",
    "ZeroAddress": "of a constructor",
}
"""The errors of the contracts that no sequence can come to, and why; their own tests come to them."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def anvil() -> AsyncIterator[Anvil]:
    """A chain for this module alone: it ends decades from now."""
    async with Anvil() as anvil:
        yield anvil


@pytest.mark.timeout(600)
def test_the_contracts_do_what_the_model_does() -> None:
    """Law 2: after every step all balances, all jobs, what was said and what was refused are the model's.

    No kind of step and no error is dead: each comes to something, and most claims are paid.
    """
    diary = Diary()
    campaign(SEQUENCES, diary)

    kinds = {kind for kind, _ in diary.steps}
    assert {kind for kind, outcome in diary.steps if outcome == "done"} == kinds
    assert _errors() - _met(diary) == set()
    checkpoints = sum(count for (kind, _), count in diary.steps.items() if kind == "SubmitCheckpoint")
    assert diary.steps["SubmitCheckpoint", "done"] > checkpoints / 2


@pytest.mark.timeout(600)
def test_anvil_does_what_the_model_does(anvil: Anvil) -> None:
    """Law 2: another EVM, with blocks and transactions, comes to the same."""
    diary = Diary()
    campaign(ON_ANVIL, diary)
    chain = AnvilChain(anvil.rpc_url)

    for steps in diary.sequences:
        replay(steps, chain.renewed(), Model())


@pytest.mark.parametrize("mistaken", MISTAKES, ids=lambda mistaken: mistaken.__name__)
def test_a_mistake_in_the_model_is_found_within_50_sequences(mistaken: type[Model]) -> None:
    """The comparison is sharp: a model that is wrong in one place differs from the contracts."""
    with pytest.raises(Differs):
        campaign(50, Diary(), mistaken)


def _errors() -> set[str]:
    abi = [*artifact("JobMarketplace").abi, *artifact("NodeRegistry").abi]
    return {error["name"] for error in filter_abi_by_type("error", abi)} - NOT_TRIED.keys()


def _met(diary: Diary) -> set[str]:
    return {outcome for _, outcome in diary.steps} | diary.rows.keys()
