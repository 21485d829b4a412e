// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IJobMarketplace} from "../src/interfaces/IJobMarketplace.sol";
import {IProofSystem} from "../src/interfaces/IProofSystem.sol";
import {Prices} from "../src/libraries/Prices.sol";
import {Fixture} from "./Fixture.sol";
import {vm} from "./Vm.sol";
import {RevertingReceiver} from "./mocks/Receivers.sol";

/// @dev Claims, one by one.
contract ProofSystemTest is Fixture {
    bytes private constant ONLY_HOST = "Only host can submit checkpoints";

    // A single claim

    function test_AClaimPaysHostAndTreasury() public {
        uint256 jobId = _open();
        bytes memory proof = _proof(jobId, 0, 47_580);

        vm.expectEmit(address(market));
        emit IProofSystem.CheckpointSettled(jobId, 47_580, 0, 38_711, 4_301, TRANSCRIPT);
        vm.prank(host);
        market.submitCheckpoint(jobId, 47_580, proof);

        _assertTotals(jobId, 0, 47_580);
        vm.assertEq(_earned(host, address(dollar)), 38_711);
        vm.assertEq(market.treasuryBalance(address(dollar)), 4_301);
    }

    /// @dev Its number, 65 537, has the same lower half as that of the first one.
    function test_FeesOfTheManythAssetAreItsOwn() public {
        _open();
        vm.store(address(market), bytes32(COUNTS_SLOT), bytes32(uint256(1 | 1 << 64 | 65_536 << 96)));
        uint256 jobId = _open(_ethTerms());
        Prices prices = Prices.wrap(uint256(vm.load(address(market), bytes32(_jobSlot(jobId) + 1))));
        vm.assertEq(prices.assetId(), 65_537, "number of the asset");

        _claim(jobId, 0, 47_580);

        vm.assertEq(market.treasuryBalance(ETH), 4_301);
        vm.assertEq(market.treasuryBalance(address(dollar)), 0);
    }

    function test_NotBeingTheHostGoesBeforeEveryOtherReason() public {
        uint256 jobId = _open();
        _claim(jobId, 5, 100);

        vm.expectRevert(ONLY_HOST);
        vm.prank(stranger);
        market.submitCheckpoint(jobId, 99, _attested(5));
        vm.expectRevert(ONLY_HOST);
        vm.prank(stranger);
        market.submitCheckpoint(jobId, 100, "");
        vm.expectRevert(ONLY_HOST);
        vm.prank(stranger);
        market.submitCheckpoint(jobId, 100, _attested(5));

        _complete(host, jobId);
        vm.expectRevert(ONLY_HOST);
        vm.prank(stranger);
        market.submitCheckpoint(jobId, 200, _attested(5));
    }

    function test_AJobThatIsNotThereIsNotClaimed() public {
        _refuses(IProofSystem.NoSuchJob.selector, 7);
        vm.prank(host);
        market.submitCheckpoint(7, 100, _attested(5));
        _refuses(IProofSystem.NoSuchJob.selector, 7);
        vm.prank(stranger);
        market.submitCheckpoint(7, 100, _attested(5));
    }

    function test_TotalsNotDeltas() public {
        uint256 jobId = _open();
        _claim(jobId, 10, 100);
        _claim(jobId, 20, 250);

        _assertTotals(jobId, 20, 250);
        vm.assertEq(_earned(host, address(dollar)) + market.treasuryBalance(address(dollar)), 229);
    }

    function test_AnEqualClaimPaysNothingAndIsNoError() public {
        uint256 jobId = _open();
        _claim(jobId, 10, 100);
        uint256 earned = _earned(host, address(dollar));

        vm.recordLogs();
        _claim(jobId, 10, 100);

        vm.assertEq(vm.getRecordedLogs().length, 0);
        vm.assertEq(_earned(host, address(dollar)), earned);
    }

    function test_NothingClaimedOfANewJobIsEqual() public {
        uint256 jobId = _open();

        vm.prank(host);
        market.submitCheckpoint(jobId, 0, _attested(0));

        _assertTotals(jobId, 0, 0);
    }

    function test_AStaleClaimRevertsWithTheSettledTotals() public {
        uint256 jobId = _open();
        _claim(jobId, 10, 100);

        _refuses(IProofSystem.StaleCheckpoint.selector, 10, 100);
        _claim(jobId, 9, 100);
        _refuses(IProofSystem.StaleCheckpoint.selector, 10, 100);
        _claim(jobId, 10, 99);
        _refuses(IProofSystem.StaleCheckpoint.selector, 10, 100);
        _claim(jobId, 9, 1_000);
        _refuses(IProofSystem.StaleCheckpoint.selector, 10, 100);
        _claim(jobId, 1_000, 99);
    }

    function test_AClosedJobIsNotClaimed() public {
        uint256 jobId = _open();
        bytes memory proof = _proof(jobId, 5, 100);
        _complete(host, jobId);

        _refuses(IProofSystem.JobClosed.selector, jobId);
        vm.prank(host);
        market.submitCheckpoint(jobId, 100, proof);
        _refuses(IProofSystem.JobClosed.selector, jobId);
        vm.prank(host);
        market.submitCheckpoint(jobId, 0, _attested(0));
    }

    function test_TimeNeverClosesAClaim() public {
        uint256 jobId = _open();
        _complete(payer, jobId);
        vm.warp(START + 360 days);

        _claim(jobId, 5, 100);

        _assertTotals(jobId, 5, 100);
    }

    function test_AClaimIsNeverWorthMoreThanTheDeposit() public {
        uint256 jobId = _open();
        uint256 affordable = 553_097;
        _claim(jobId, 0, affordable);
        vm.assertEq(market.getJob(jobId).owed, 499_999);

        _refuses(IProofSystem.AboveDeposit.selector, 500_001, 500_000);
        _claim(jobId, 0, affordable + 2);

        _claim(jobId, 0, affordable + 1);
        vm.assertEq(market.getJob(jobId).owed, 500_000);
    }

    function test_TotalsThatDoNotFitRevertWithTheirValue() public {
        IJobMarketplace.Terms memory terms = _terms();
        (terms.pricePerMillion, terms.promptPricePerMillion) = (0, 0);
        uint256 jobId = _open(terms);

        _refuses(IProofSystem.DoesNotFit.selector, 2 ** 48, 48);
        _claim(jobId, 0, 2 ** 48);
        _refuses(IProofSystem.DoesNotFit.selector, 2 ** 48, 48);
        _claim(jobId, 2 ** 48, 0);
        _refuses(IProofSystem.DoesNotFit.selector, 2 ** 48, 48);
        _claim(jobId, 2 ** 48, 2 ** 48);
        _refuses(IProofSystem.DoesNotFit.selector, type(uint256).max, 48);
        vm.prank(host);
        market.submitCheckpoint(jobId, type(uint256).max, _attested(0));

        _claim(jobId, 2 ** 48 - 1, 2 ** 48 - 1);
        _assertTotals(jobId, 2 ** 48 - 1, 2 ** 48 - 1);
        vm.assertEq(market.getJob(jobId).deposit, 500_000);
    }

    /// @dev A job may be as old as its chain: a time since the opening is no remainder of anything.
    function test_TheRateIsOfTheTimeSinceTheOpening() public {
        vm.warp(1 hours);
        IJobMarketplace.Terms memory terms = _attestedTerms();
        terms.expiresAt = 1 weeks;
        uint256 jobId = _open(terms);
        vm.warp(3 hours);

        _claimAttested(jobId, 0, 2 hours * 10);
        _refuses(IProofSystem.AboveRate.selector, 2 hours * 10 + 1, 2 hours * 10);
        _claimAttested(jobId, 1, 2 hours * 10);
    }

    function test_AJobThatIsSpentSendsNothing() public {
        IJobMarketplace.Terms memory terms = _ethTerms();
        terms.pricePerMillion = 1_000_000;
        uint256 jobId = _openAs(new RevertingReceiver(), terms);
        _claim(jobId, 0, terms.deposit);

        vm.recordLogs();
        _complete(host, jobId);

        vm.assertEq(vm.getRecordedLogs().length, 1, "no more is told than the end");
    }

    function test_ACheckpointLeavesTermsDepositAndTimesAlone() public {
        uint256 jobId = _open();
        _complete(payer, jobId);
        IJobMarketplace.Job memory before = market.getJob(jobId);

        _claim(jobId, 10, 100);

        (before.promptTokens, before.tokens, before.owed, before.fee) = (10, 100, 91, 9);
        vm.assertEq(keccak256(abi.encode(market.getJob(jobId))), keccak256(abi.encode(before)));
    }

    // Receipts

    function test_AReceiptIsACeiling() public {
        uint256 jobId = _open();
        bytes memory proof = _proof(jobId, 10, 20, 300);

        vm.prank(host);
        market.submitCheckpoint(jobId, 200, proof);

        _assertTotals(jobId, 10, 200);
    }

    function test_OneReceiptServesAgainForTheRest() public {
        IJobMarketplace.Terms memory terms = _terms();
        terms.deposit = 100;
        uint256 jobId = _open(terms);
        bytes memory proof = _proof(jobId, 0, 200);
        _refuses(IProofSystem.AboveDeposit.selector, 180, 100);
        vm.prank(host);
        market.submitCheckpoint(jobId, 200, proof);
        vm.prank(host);
        market.submitCheckpoint(jobId, 100, proof);

        vm.prank(payer);
        market.topUp(jobId, 100);
        vm.prank(host);
        market.submitCheckpoint(jobId, 200, proof);

        _assertTotals(jobId, 0, 200);
    }

    function test_NoClaimIsAboveItsReceipt() public {
        uint256 jobId = _open();

        bytes memory proof = _proof(jobId, 10, 10, 100);
        _refuses(IProofSystem.AboveReceipt.selector, 101, 100);
        vm.prank(host);
        market.submitCheckpoint(jobId, 101, proof);

        proof = _proof(jobId, 11, 10, 100);
        _refuses(IProofSystem.AboveReceipt.selector, 11, 10);
        vm.prank(host);
        market.submitCheckpoint(jobId, 100, proof);
    }

    // Host-attested jobs

    function test_AHostAttestedJobIsPaidOnTheHostsWord() public {
        uint256 jobId = _open(_attestedTerms());
        vm.warp(START + 100);

        vm.expectEmit(address(market));
        emit IProofSystem.CheckpointSettled(jobId, 900, 100, 746, 82, bytes32(0));
        _claimAttested(jobId, 100, 900);
    }

    function test_AHostAttestedJobIsBoundByRateAndTime() public {
        uint256 jobId = _open(_attestedTerms());
        _refuses(IProofSystem.AboveRate.selector, 1, 0);
        _claimAttested(jobId, 0, 1);

        vm.warp(START + 100);
        _refuses(IProofSystem.AboveRate.selector, 1_001, 1_000);
        _claimAttested(jobId, 100, 901);
        _claimAttested(jobId, 100, 900);
    }

    function test_TheRateStopsWhenPayerOrSignerAsk() public {
        uint256 jobId = _open(_attestedTerms());
        vm.warp(START + 60);
        _complete(signer, jobId);
        vm.warp(START + 1 days);

        _refuses(IProofSystem.AboveRate.selector, 601, 600);
        _claimAttested(jobId, 0, 601);
        _claimAttested(jobId, 0, 600);
    }

    function test_AskingAfterTheExpiryGainsTheHostNothing() public {
        IJobMarketplace.Terms memory terms = _attestedTerms();
        terms.expiresAt = START + 1 hours;
        uint256 jobId = _open(terms);
        vm.warp(START + 2 hours);
        _complete(payer, jobId);

        _refuses(IProofSystem.AboveRate.selector, 36_001, 36_000);
        _claimAttested(jobId, 0, 36_001);
    }

    function testFuzz_AHostAttestedProofHas8Bytes(uint256 length) public {
        length = _bound(length, 0, 299);
        if (length >= 8) ++length;
        uint256 jobId = _open(_attestedTerms());
        vm.warp(START + 100);

        _refuses(IProofSystem.ProofLength.selector, length, 8);
        vm.prank(host);
        market.submitCheckpoint(jobId, 100, new bytes(length));
    }

    function test_EachKindOfJobTakesItsOwnKindOfProof() public {
        uint256 receipted = _open();
        uint256 attested = _open(_attestedTerms());
        bytes memory receipt = _proof(attested, 5, 100);
        vm.warp(START + 100);

        _refuses(IProofSystem.ProofLength.selector, 8, 121);
        _claimAttested(receipted, 5, 100);
        _refuses(IProofSystem.ProofLength.selector, 121, 8);
        vm.prank(host);
        market.submitCheckpoint(attested, 100, receipt);
    }
}
