// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IJobMarketplace} from "../src/interfaces/IJobMarketplace.sol";
import {IProofSystem} from "../src/interfaces/IProofSystem.sol";
import {Fixture} from "./Fixture.sol";
import {Vm, vm} from "./Vm.sol";

/// @dev Claims, many in one transaction.
contract BatchesTest is Fixture {
    /// @dev A row that is left out, and the error for which.
    struct Bad {
        IProofSystem.Checkpoint row;
        bytes4 reason;
        uint256 first;
        uint256 second;
    }

    Bad[] private bad;

    // Rows that are left out

    /// @dev Each is marked to complete its job, which it does not; the good rows before and behind it are paid.
    function test_EachKindOfBadRowIsLeftOutWithItsReasonAndTheGoodOnesArePaid() public {
        _collect();
        IProofSystem.Checkpoint[] memory rows = new IProofSystem.Checkpoint[](2 * bad.length + 1);
        bytes32[] memory before = new bytes32[](bad.length);
        for (uint256 i; i < rows.length; ++i) {
            rows[i] = i % 2 == 0 ? _row(_open(), 0, 19, i % 4 == 0) : bad[i / 2].row;
            if (i % 2 == 1) before[i / 2] = _read(rows[i].jobId);
        }
        uint256 fees = market.treasuryBalance(address(dollar));
        uint256 earned = _earned(host, address(dollar));

        vm.recordLogs();
        _submit(rows);
        _assertToldInTheirOrder(vm.getRecordedLogs());

        // 19 tokens are worth 17.
        vm.assertEq(_earned(host, address(dollar)) - earned, 16 * (bad.length + 1));
        vm.assertEq(market.treasuryBalance(address(dollar)) - fees, bad.length + 1);
        for (uint256 i; i < rows.length; ++i) {
            if (i % 2 == 1) {
                vm.assertEq(_read(rows[i].jobId), before[i / 2]);
            } else {
                _assertStatus(rows[i].jobId, i % 4 == 0 ? IJobMarketplace.Status.Closed : IJobMarketplace.Status.Open);
            }
        }
    }

    function test_ARowIsLeftOutForWhatTheSingleClaimRevertsWith() public {
        _collect();
        for (uint256 i; i < bad.length; ++i) {
            IProofSystem.Checkpoint memory row = bad[i].row;
            vm.prank(host);
            (bool paid, bytes memory reason) =
                address(market).call(abi.encodeCall(market.submitCheckpoint, (row.jobId, row.tokens, row.proof)));
            vm.assertTrue(!paid);
            vm.assertEq(reason, _revertOf(bad[i]), vm.toString(i));
        }
    }

    // Rows that are paid

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

    function test_AnEmptyBatchIsNothing() public {
        vm.recordLogs();
        _submit(new IProofSystem.Checkpoint[](0));
        vm.assertEq(vm.getRecordedLogs().length, 0);
    }

    function test_AnEqualRowPaysNothingAndIsNoError() public {
        uint256 jobId = _open();
        _claim(jobId, 10, 100);
        uint256 earned = _earned(host, address(dollar));

        vm.recordLogs();
        _submit(IProofSystem.Checkpoint(jobId, 100, false, _attested(10)));

        vm.assertEq(vm.getRecordedLogs().length, 0);
        vm.assertEq(_earned(host, address(dollar)), earned);
        _assertStatus(jobId, IJobMarketplace.Status.Open);
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

        vm.expectEmit(address(market));
        emit IProofSystem.CheckpointSkipped(jobId, IProofSystem.JobClosed.selector, jobId, 0);
        _submit(rows);

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

    function test_EarningsAndFeeAreWrittenOnceForARunOfRowsInOneAsset() public {
        IJobMarketplace.Terms[6] memory terms =
            [_terms(), _terms(), _terms(), _ethTerms(), _ethTerms(), _attestedTerms()];
        IProofSystem.Checkpoint[] memory rows = new IProofSystem.Checkpoint[](6);
        for (uint256 i; i < rows.length; ++i) {
            rows[i] = _row(_open(terms[i]), 0, 1_000, false);
        }
        rows[5].proof = _attested(0);
        vm.warp(START + 100);

        vm.record();
        _submit(rows);
        (, bytes32[] memory writes) = vm.accesses(address(market));

        // Host 1 in asset 1, dollars, for two runs; in asset 2, ETH, for one.
        vm.assertEq(_count(writes, keccak256(abi.encode(1 << 32 | 1, EARNINGS_SLOT))), 2);
        vm.assertEq(_count(writes, keccak256(abi.encode(1, FEES_SLOT))), 2);
        vm.assertEq(_count(writes, keccak256(abi.encode(1 << 32 | 2, EARNINGS_SLOT))), 1);
        vm.assertEq(_count(writes, keccak256(abi.encode(2, FEES_SLOT))), 1);
    }

    function test_ABatchThatPaysNothingWritesNothing() public {
        uint256 jobId = _open();
        _claim(jobId, 10, 100);
        IProofSystem.Checkpoint[] memory equal = new IProofSystem.Checkpoint[](1);
        equal[0] = IProofSystem.Checkpoint(jobId, 100, false, _attested(10));

        vm.record();
        _submit(new IProofSystem.Checkpoint[](0));
        _submit(equal);
        (, bytes32[] memory writes) = vm.accesses(address(market));

        vm.assertEq(writes.length, 0);
    }

    function test_RefundsAreSentWhenEveryRowIsPaid() public {
        IProofSystem.Checkpoint[] memory rows = new IProofSystem.Checkpoint[](3);
        for (uint256 i; i < rows.length; ++i) {
            rows[i] = _row(_open(), 0, 47_580, true);
        }

        vm.recordLogs();
        _submit(rows);
        Vm.Log[] memory logs = vm.getRecordedLogs();

        for (uint256 i; i < logs.length; ++i) {
            bool settles = logs[i].topics[0] == IProofSystem.CheckpointSettled.selector;
            vm.assertEq(settles, i < rows.length);
        }
    }

    /// @dev One of each kind of bad row, each of a job that it would be good for otherwise.
    function _collect() private {
        vm.warp(START + 100);
        _collectLengths();
        _collectJobs();
        _collectTotals();
        _collectSignatures();
    }

    function _collectLengths() private {
        _add(_open(), 0, "", IProofSystem.ProofLength.selector, 0, 8);
        _add(_open(), 0, new bytes(7), IProofSystem.ProofLength.selector, 7, 8);
        _add(_open(), 100, _attested(5), IProofSystem.ProofLength.selector, 8, 121);
        _add(_open(), 100, new bytes(119), IProofSystem.ProofLength.selector, 119, 121);
        _add(_open(), 100, new bytes(122), IProofSystem.ProofLength.selector, 122, 121);
        uint256 attested = _open(_attestedTerms());
        _add(attested, 100, _proof(attested, 5, 100), IProofSystem.ProofLength.selector, 121, 8);
    }

    function _collectJobs() private {
        _add(0, 0, _attested(0), IProofSystem.NoSuchJob.selector, 0, 0);
        _add(10_000, 100, _proof(10_000, 5, 100), IProofSystem.NoSuchJob.selector, 10_000, 0);

        uint256 closed = _open();
        _complete(host, closed);
        _add(closed, 100, _proof(closed, 5, 100), IProofSystem.JobClosed.selector, closed, 0);

        IJobMarketplace.Terms memory terms = _terms();
        terms.host = otherHost;
        uint256 foreign = _open(terms);
        (uint256 caller, uint256 owner) = (uint160(host), uint160(otherHost));
        _add(foreign, 100, _proof(foreign, 5, 100), IProofSystem.NotTheHost.selector, caller, owner);
        _add(foreign, 0, _attested(0), IProofSystem.NotTheHost.selector, caller, owner);
    }

    function _collectTotals() private {
        uint256 settled = _open();
        _claim(settled, 10, 100);
        _add(settled, 200, _proof(settled, 9, 200), IProofSystem.StaleCheckpoint.selector, 10, 100);
        _add(settled, 99, _proof(settled, 20, 99), IProofSystem.StaleCheckpoint.selector, 10, 100);

        uint256 jobId = _open();
        _add(jobId, 2 ** 48, _proof(jobId, 0, 2 ** 48), IProofSystem.DoesNotFit.selector, 2 ** 48, 48);
        _add(jobId, 1, _proof(jobId, 2 ** 64 - 1, 1), IProofSystem.DoesNotFit.selector, 2 ** 64 - 1, 48);
        uint256 most = type(uint256).max;
        _add(jobId, most, _proof(jobId, 0, 100), IProofSystem.DoesNotFit.selector, most, 48);
        _add(jobId, 1e6, _proof(jobId, 0, 1e6), IProofSystem.AboveDeposit.selector, 904_000, 500_000);
        _add(jobId, 101, _proof(jobId, 5, 100), IProofSystem.AboveReceipt.selector, 101, 100);
        _add(jobId, 100, _proof(jobId, 6, 5, 100), IProofSystem.AboveReceipt.selector, 6, 5);
        _add(_open(_attestedTerms()), 1, _attested(0), IProofSystem.AboveRate.selector, 1, 0);
    }

    function _collectSignatures() private {
        uint256 jobId = _open();
        bytes4 wrong = IProofSystem.WrongSigner.selector;
        _add(jobId, 100, _signed(_sign(PAYER_KEY, jobId, 5, 100)), wrong, uint160(payer), uint160(signer));
        _add(jobId, 100, _signed(new bytes(65)), wrong, 0, uint160(signer));
        _add(jobId, 100, _signed(new bytes(64)), wrong, 0, uint160(signer));

        (uint8 v, bytes32 r, bytes32 s) = vm.sign(SIGNER_KEY, _digest(jobId + 1, 5, 100));
        address recovered = ecrecover(_digest(jobId, 5, 100), v, r, s);
        _add(jobId, 100, _signed(abi.encodePacked(r, s, v)), wrong, uint160(recovered), uint160(signer));
    }

    function _add(uint256 jobId, uint256 tokens, bytes memory proof, bytes4 reason, uint256 first, uint256 second)
        private
    {
        bad.push(Bad(IProofSystem.Checkpoint(jobId, tokens, true, proof), reason, first, second));
    }

    /// @dev A claim of 5 and 100 tokens with a signature over just that.
    function _signed(bytes memory signature) private pure returns (bytes memory) {
        return abi.encodePacked(uint64(5), uint64(5), uint64(100), TRANSCRIPT, signature);
    }

    function _assertToldInTheirOrder(Vm.Log[] memory logs) private view {
        uint256 told;
        for (uint256 i; i < logs.length; ++i) {
            if (logs[i].topics[0] != IProofSystem.CheckpointSkipped.selector) continue;

            Bad memory expected = bad[told++];
            vm.assertEq(uint256(logs[i].topics[1]), expected.row.jobId);
            bytes memory error_ = abi.encode(expected.reason, expected.first, expected.second);
            vm.assertEq(logs[i].data, error_, vm.toString(told - 1));
        }
        vm.assertEq(told, bad.length);
    }

    /// @dev What a single claim reverts with. The one error that a revert says in words is that of another host's job.
    function _revertOf(Bad memory row) private pure returns (bytes memory) {
        if (row.reason == IProofSystem.NotTheHost.selector) {
            return abi.encodeWithSignature("Error(string)", "Only host can submit checkpoints");
        }
        bool single = row.reason == IProofSystem.NoSuchJob.selector || row.reason == IProofSystem.JobClosed.selector;
        return single ? abi.encodePacked(row.reason, row.first) : abi.encodePacked(row.reason, row.first, row.second);
    }

    function _read(uint256 jobId) private view returns (bytes32) {
        return keccak256(abi.encode(market.getJob(jobId)));
    }

    function _count(bytes32[] memory writes, bytes32 slot) private pure returns (uint256 count) {
        for (uint256 i; i < writes.length; ++i) {
            if (writes[i] == slot) ++count;
        }
    }
}
