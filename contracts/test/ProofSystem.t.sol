// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IJobMarketplace} from "../src/interfaces/IJobMarketplace.sol";
import {IProofSystem} from "../src/interfaces/IProofSystem.sol";
import {Fixture} from "./Fixture.sol";
import {Vm, vm} from "./Vm.sol";

/// @dev Claims, one by one and in batches.
contract ProofSystemTest is Fixture {
    bytes private constant ONLY_HOST = "Only host can submit checkpoints";
    uint256 private constant ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;

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

    function test_OnlyTheHostSubmits() public {
        uint256 jobId = _open();
        bytes memory proof = _proof(jobId, 5, 100);
        address[4] memory others = [payer, signer, otherHost, stranger];

        for (uint256 i; i < others.length; ++i) {
            vm.expectRevert(ONLY_HOST);
            vm.prank(others[i]);
            market.submitCheckpoint(jobId, 100, proof);
        }
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
        _refuses(IProofSystem.DoesNotFit.selector, type(uint256).max, 48);
        vm.prank(host);
        market.submitCheckpoint(jobId, type(uint256).max, _attested(0));

        _claim(jobId, 2 ** 48 - 1, 2 ** 48 - 1);
        _assertTotals(jobId, 2 ** 48 - 1, 2 ** 48 - 1);
        vm.assertEq(market.getJob(jobId).deposit, 500_000);
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

    function test_OnlyTheJobsSignerSigns() public {
        uint256 jobId = _open();
        bytes memory proof =
            abi.encodePacked(uint64(5), uint64(5), uint64(100), TRANSCRIPT, _sign(0x9a1e, jobId, 5, 100));

        _refuses(IProofSystem.WrongSigner.selector, payer, signer);
        vm.prank(host);
        market.submitCheckpoint(jobId, 100, proof);
    }

    function test_AReceiptIsForOneJob() public {
        uint256 jobId = _open();
        uint256 other = _open();
        bytes memory proof = _proof(other, 5, 100);

        _expectRevertSelector(IProofSystem.WrongSigner.selector, jobId, 100, proof);
    }

    function test_AReceiptIsForOneChain() public {
        uint256 jobId = _open();
        bytes memory proof = _proof(jobId, 5, 100);

        vm.chainId(10);
        _expectRevertSelector(IProofSystem.WrongSigner.selector, jobId, 100, proof);
    }

    function testFuzz_WhatIsChangedInASignedReceiptIsRefused(uint256 index, uint8 change) public {
        uint256 jobId = _open();
        bytes memory proof = _proof(jobId, 5, 10, 100);
        // Beyond the claimed total, which is the host's to choose.
        index = _bound(index, 8, proof.length - 1);
        proof[index] ^= bytes1(uint8(_bound(change, 1, 255)));

        vm.prank(host);
        (bool paid,) = address(market).call(abi.encodeCall(market.submitCheckpoint, (jobId, 50, proof)));

        vm.assertTrue(!paid);
        _assertTotals(jobId, 0, 0);
    }

    function testFuzz_ACompactSignatureIsAsGood(uint256 key, uint256 tokens) public {
        key = _bound(key, 1, ORDER - 1);
        tokens = _bound(tokens, 1, 500_000);
        vm.assume(vm.addr(key) != host);
        IJobMarketplace.Terms memory terms = _terms();
        terms.signer = vm.addr(key);
        uint256 jobId = _open(terms);
        (bytes32 r, bytes32 vs) = vm.signCompact(key, _digest(jobId, 0, tokens));

        vm.prank(host);
        market.submitCheckpoint(
            jobId, tokens, abi.encodePacked(uint64(0), uint64(0), uint64(tokens), TRANSCRIPT, r, vs)
        );

        _assertTotals(jobId, 0, tokens);
    }

    function test_ASignatureWithAHighSIsRefused() public {
        uint256 jobId = _open();
        bytes32 digest = _digest(jobId, 5, 100);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(SIGNER_KEY, digest);
        bytes32 highS = bytes32(ORDER - uint256(s));
        uint8 otherV = v == 27 ? 28 : 27;
        // It would recover to the signer, were it not for the rule.
        vm.assertEq(ecrecover(digest, otherV, r, highS), signer);

        _refuses(IProofSystem.WrongSigner.selector, address(0), signer);
        vm.prank(host);
        market.submitCheckpoint(
            jobId, 100, abi.encodePacked(uint64(5), uint64(5), uint64(100), TRANSCRIPT, r, highS, otherV)
        );
    }

    function test_NoSignatureAtAllIsRefused() public {
        uint256 jobId = _open();

        _refuses(IProofSystem.WrongSigner.selector, address(0), signer);
        vm.prank(host);
        market.submitCheckpoint(
            jobId, 100, abi.encodePacked(uint64(5), uint64(5), uint64(100), TRANSCRIPT, new bytes(65))
        );
        _refuses(IProofSystem.WrongSigner.selector, address(0), signer);
        vm.prank(host);
        market.submitCheckpoint(
            jobId, 100, abi.encodePacked(uint64(5), uint64(5), uint64(100), TRANSCRIPT, new bytes(64))
        );
    }

    function testFuzz_AReceiptedProofHas121Or120Bytes(uint256 length) public {
        length = _bound(length, 0, 300);
        vm.assume(length != 120 && length != 121);
        uint256 jobId = _open();

        _refuses(IProofSystem.ProofLength.selector, length, length < 8 ? 8 : 121);
        vm.prank(host);
        market.submitCheckpoint(jobId, 100, new bytes(length));
    }

    function test_TheDomainIsTallystick1() public view {
        bytes32 separator = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("Tallystick"),
                keccak256("1"),
                block.chainid,
                address(market)
            )
        );
        vm.assertEq(market.DOMAIN_SEPARATOR(), separator);

        bytes32 receipt = keccak256(
            abi.encode(
                keccak256("Receipt(uint256 jobId,uint64 promptTokens,uint64 tokens,bytes32 transcript)"),
                uint256(121),
                uint64(12),
                uint64(100),
                TRANSCRIPT
            )
        );
        bytes32 digest = keccak256(abi.encodePacked(hex"1901", separator, receipt));
        vm.assertEq(market.receiptDigest(121, 12, 100, TRANSCRIPT), digest);
        vm.assertEq(_digest(121, 12, 100), digest);

        (, string memory name, string memory version,, address verifier,,) = market.eip712Domain();
        vm.assertEq(name, "Tallystick", "name");
        vm.assertEq(version, "1", "version");
        vm.assertEq(verifier, address(market));
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

    function test_TheRateStopsAtTheExpiry() public {
        IJobMarketplace.Terms memory terms = _attestedTerms();
        terms.expiresAt = START + 1 hours;
        uint256 jobId = _open(terms);
        vm.warp(START + 300 days);

        _refuses(IProofSystem.AboveRate.selector, 36_001, 36_000);
        _claimAttested(jobId, 0, 36_001);
        _claimAttested(jobId, 0, 36_000);
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
        length = _bound(length, 0, 300);
        vm.assume(length != 8);
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

    // Batches

    function test_ABatchPaysEachRowAsIfItWereAlone() public {
        IProofSystem.Checkpoint[] memory rows = new IProofSystem.Checkpoint[](3);
        for (uint256 i; i < 3; ++i) {
            rows[i] = _row(_open(), 0, 19, false);
        }

        _submit(rows);

        // 19 tokens are worth 17: a fee of 1 each. A tenth of the sum, 51, would be 5.
        vm.assertEq(market.treasuryBalance(address(dollar)), 3);
        vm.assertEq(_earned(host, address(dollar)), 48);
    }

    function test_BadRowsAreSkippedWithTheirReasonAndGoodOnesPaid() public {
        uint256[6] memory jobs = [_open(), _open(), _open(), _open(), _open(), _open()];
        _claim(jobs[1], 10, 100);
        _complete(host, jobs[2]);
        IProofSystem.Checkpoint[] memory rows = new IProofSystem.Checkpoint[](8);
        rows[0] = _row(jobs[0], 5, 100, false);
        rows[1] = _row(jobs[1], 9, 200, true);
        rows[2] = _row(jobs[2], 5, 100, true);
        rows[3] = IProofSystem.Checkpoint(jobs[3], 101, true, _proof(jobs[3], 5, 100));
        rows[4] = IProofSystem.Checkpoint(jobs[4], 100, true, _proof(jobs[0], 5, 100));
        rows[5] = IProofSystem.Checkpoint(jobs[4], 100, true, new bytes(119));
        rows[6] = _row(99, 5, 100, true);
        rows[7] = _row(jobs[5], 0, 47_580, true);

        vm.recordLogs();
        _submit(rows);
        Vm.Log[] memory logs = vm.getRecordedLogs();

        _assertSkipped(logs[1], jobs[1], IProofSystem.StaleCheckpoint.selector, 10, 100);
        _assertSkipped(logs[2], jobs[2], IProofSystem.JobClosed.selector, jobs[2], 0);
        _assertSkipped(logs[3], jobs[3], IProofSystem.AboveReceipt.selector, 101, 100);
        vm.assertEq(bytes32(bytes4(logs[4].data)), bytes32(IProofSystem.WrongSigner.selector));
        _assertSkipped(logs[5], jobs[4], IProofSystem.ProofLength.selector, 119, 121);
        _assertSkipped(logs[6], 99, IProofSystem.NoSuchJob.selector, 99, 0);

        _assertTotals(jobs[0], 5, 100);
        _assertTotals(jobs[5], 0, 47_580);
        _assertStatus(jobs[5], IJobMarketplace.Status.Closed);
        for (uint256 i = 1; i < 5; ++i) {
            if (i != 2) _assertStatus(jobs[i], IJobMarketplace.Status.Open);
        }
        vm.assertEq(market.getJob(jobs[0]).owed, 91);
        vm.assertEq(_earned(host, address(dollar)), 82 + 82 + 38_711);
        vm.assertEq(market.treasuryBalance(address(dollar)), 9 + 9 + 4_301);
    }

    function test_ARowAboveRateDepositOrWidthIsSkippedWithItsValues() public {
        uint256 attested = _open(_attestedTerms());
        uint256 receipted = _open();
        IProofSystem.Checkpoint[] memory rows = new IProofSystem.Checkpoint[](3);
        rows[0] = IProofSystem.Checkpoint(attested, 1, false, _attested(0));
        rows[1] = _row(receipted, 0, 1_000_000, false);
        rows[2] = _row(receipted, 0, 2 ** 48, false);

        vm.recordLogs();
        _submit(rows);
        Vm.Log[] memory logs = vm.getRecordedLogs();

        _assertSkipped(logs[0], attested, IProofSystem.AboveRate.selector, 1, 0);
        _assertSkipped(logs[1], receipted, IProofSystem.AboveDeposit.selector, 904_000, 500_000);
        _assertSkipped(logs[2], receipted, IProofSystem.DoesNotFit.selector, 2 ** 48, 48);
    }

    function test_ARowOfAnotherHostsJobIsSkipped() public {
        IJobMarketplace.Terms memory terms = _terms();
        terms.host = otherHost;
        uint256 foreign = _open(terms);
        uint256 own = _open();
        IProofSystem.Checkpoint[] memory rows = new IProofSystem.Checkpoint[](3);
        rows[0] = _row(foreign, 5, 100, true);
        rows[1] = _row(foreign, 0, 0, true);
        rows[2] = _row(own, 5, 100, false);

        vm.recordLogs();
        _submit(rows);
        Vm.Log[] memory logs = vm.getRecordedLogs();

        for (uint256 i; i < 2; ++i) {
            _assertSkipped(logs[i], foreign, IProofSystem.NotTheHost.selector, uint160(host), uint160(otherHost));
        }
        _assertStatus(foreign, IJobMarketplace.Status.Open);
        _assertTotals(foreign, 0, 0);
        _assertTotals(own, 5, 100);
        vm.assertEq(_earned(otherHost, address(dollar)), 0);
    }

    function test_ABatchOfAStrangerChangesNothing() public {
        uint256 jobId = _open();
        IProofSystem.Checkpoint[] memory rows = new IProofSystem.Checkpoint[](2);
        rows[0] = _row(jobId, 5, 100, true);
        rows[1] = _row(99, 0, 0, true);

        vm.recordLogs();
        vm.prank(stranger);
        market.submitCheckpoints(rows);
        Vm.Log[] memory logs = vm.getRecordedLogs();

        _assertSkipped(logs[0], jobId, IProofSystem.NotTheHost.selector, uint160(stranger), uint160(host));
        _assertSkipped(logs[1], 99, IProofSystem.NoSuchJob.selector, 99, 0);
        _assertStatus(jobId, IJobMarketplace.Status.Open);
        _assertStatus(99, IJobMarketplace.Status.None);
    }

    function test_AnEmptyBatchIsNothing() public {
        vm.recordLogs();
        _submit(new IProofSystem.Checkpoint[](0));
        vm.assertEq(vm.getRecordedLogs().length, 0);
    }

    function test_CompleteOnAheadPaysThenClosesAndRefunds() public {
        uint256 jobId = _open();
        uint256 before = dollar.balanceOf(payer);

        _submit(_row(jobId, 0, 47_580, true));

        vm.assertEq(dollar.balanceOf(payer) - before, 456_988);
        vm.assertEq(_earned(host, address(dollar)), 38_711);
        _assertStatus(jobId, IJobMarketplace.Status.Closed);
    }

    function test_CompleteOnEqualClosesAndRefunds() public {
        uint256 jobId = _open();
        _claim(jobId, 0, 47_580);
        uint256 before = dollar.balanceOf(payer);

        _submit(_row(jobId, 0, 47_580, true));

        vm.assertEq(dollar.balanceOf(payer) - before, 456_988);
        vm.assertEq(_earned(host, address(dollar)), 38_711);
    }

    function test_AnUnusedJobIsCompletedByItsZeroTotals() public {
        uint256 jobId = _open();

        _submit(IProofSystem.Checkpoint(jobId, 0, true, _attested(0)));

        _assertStatus(jobId, IJobMarketplace.Status.Closed);
        vm.assertEq(dollar.balanceOf(address(market)), 0);
    }

    function test_AJobTwiceInABatchIsPaidOnceAndClosedOnce() public {
        uint256 jobId = _open();
        uint256 before = dollar.balanceOf(payer);
        IProofSystem.Checkpoint[] memory rows = new IProofSystem.Checkpoint[](4);
        rows[0] = _row(jobId, 0, 10_000, false);
        rows[1] = _row(jobId, 0, 10_000, false);
        rows[2] = _row(jobId, 0, 47_580, true);
        rows[3] = _row(jobId, 0, 47_580, true);

        vm.recordLogs();
        _submit(rows);
        Vm.Log[] memory logs = vm.getRecordedLogs();

        _assertSkipped(logs[2], jobId, IProofSystem.JobClosed.selector, jobId, 0);
        vm.assertEq(_earned(host, address(dollar)), 38_711);
        vm.assertEq(dollar.balanceOf(payer) - before, 456_988);
    }

    function test_RowsOfSeveralAssetsAreCreditedToEach() public {
        uint256[4] memory jobs = [_open(), _open(_ethTerms()), _open(), _open(_ethTerms())];
        IProofSystem.Checkpoint[] memory rows = new IProofSystem.Checkpoint[](4);
        for (uint256 i; i < 4; ++i) {
            rows[i] = _row(jobs[i], 0, 47_580, i > 1);
        }

        _submit(rows);

        vm.assertEq(_earned(host, address(dollar)), 2 * 38_711);
        vm.assertEq(_earned(host, ETH), 2 * 38_711);
        vm.assertEq(market.treasuryBalance(address(dollar)), 2 * 4_301);
        vm.assertEq(market.treasuryBalance(ETH), 2 * 4_301);
    }

    function _expectRevertSelector(bytes4 selector, uint256 jobId, uint256 tokens, bytes memory proof) private {
        vm.prank(host);
        (bool paid, bytes memory reason) =
            address(market).call(abi.encodeCall(market.submitCheckpoint, (jobId, tokens, proof)));
        vm.assertTrue(!paid);
        vm.assertEq(bytes32(bytes4(reason)), bytes32(selector));
    }

    function _assertSkipped(Vm.Log memory log, uint256 jobId, bytes4 reason, uint256 first, uint256 second)
        private
        pure
    {
        _assertLog(log, IProofSystem.CheckpointSkipped.selector, jobId, abi.encode(reason, first, second));
    }

    function _assertLog(Vm.Log memory log, bytes32 event_, uint256 jobId, bytes memory data) private pure {
        vm.assertEq(log.topics[0], event_);
        vm.assertEq(uint256(log.topics[1]), jobId);
        vm.assertEq(log.data, data);
    }
}
