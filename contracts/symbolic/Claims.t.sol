// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IProofSystem} from "../src/interfaces/IProofSystem.sol";
import {vm} from "../test/Vm.sol";
import {Laws} from "./Laws.sol";

/// @dev What no claim can do, alone or as the row of a batch, case by case. All that moves anything is the host's, on an open
/// job, of totals that have 48 bits.
/// @custom:halmos --solver-timeout-branching 100ms
contract ClaimsProof is Laws {
    /// @dev So what is shown of each case is shown of all claims.
    function check_EveryClaimIsOneOfTheCases(address caller, IProofSystem.Checkpoint memory row) external view {
        bool moves = _isOfAToken(row) || _isOfETH(row);
        bool stays = caller != HOST || _isOfNoJob(row) || _isOfAClosedJob(row) || _isTooHigh(row);
        assert(moves || stays);
    }

    function check_submitCheckpoint_OfAToken(IProofSystem.Checkpoint memory row) external {
        _everyLawOfAClaim(_claim(_ofAToken(row)));
    }

    function check_submitCheckpoints_OfAToken(IProofSystem.Checkpoint memory row) external {
        _everyLawOfAClaim(_batch(_ofAToken(row)));
    }

    function check_submitCheckpoint_OfETH(IProofSystem.Checkpoint memory row) external {
        _everyLawOfAClaim(_claim(_ofETH(row)));
    }

    function check_submitCheckpoints_OfETH(IProofSystem.Checkpoint memory row) external {
        _everyLawOfAClaim(_batch(_ofETH(row)));
    }

    function check_submitCheckpoint_OfNoJob(IProofSystem.Checkpoint memory row) external {
        _nothingMoves(HOST, _claim(_ofNoJob(row)));
    }

    function check_submitCheckpoints_OfNoJob(IProofSystem.Checkpoint memory row) external {
        _nothingMoves(HOST, _batch(_ofNoJob(row)));
    }

    function check_submitCheckpoint_OfAClosedJob(IProofSystem.Checkpoint memory row) external {
        _nothingMoves(HOST, _claim(_ofAClosedJob(row)));
    }

    function check_submitCheckpoints_OfAClosedJob(IProofSystem.Checkpoint memory row) external {
        _nothingMoves(HOST, _batch(_ofAClosedJob(row)));
    }

    function check_submitCheckpoint_TooHigh(IProofSystem.Checkpoint memory row) external {
        _nothingMoves(HOST, _claim(_tooHigh(row)));
    }

    function check_submitCheckpoints_TooHigh(IProofSystem.Checkpoint memory row) external {
        _nothingMoves(HOST, _batch(_tooHigh(row)));
    }

    function check_submitCheckpoint_ByAnother(address caller, IProofSystem.Checkpoint memory row) external {
        vm.assume(caller != HOST);
        _nothingMoves(caller, _claim(_ofAnyJob(row)));
    }

    function check_submitCheckpoints_ByAnother(address caller, IProofSystem.Checkpoint memory row) external {
        vm.assume(caller != HOST);
        _nothingMoves(caller, _batch(_ofAnyJob(row)));
    }

    function _isOfAToken(IProofSystem.Checkpoint memory row) private view returns (bool) {
        return row.jobId == 1 && !_isClosed(1) && _fits(row);
    }

    function _isOfETH(IProofSystem.Checkpoint memory row) private view returns (bool) {
        return row.jobId == 2 && !_isClosed(2) && _fits(row);
    }

    function _isOfNoJob(IProofSystem.Checkpoint memory row) private pure returns (bool) {
        return row.jobId != 1 && row.jobId != 2;
    }

    function _isOfAClosedJob(IProofSystem.Checkpoint memory row) private view returns (bool) {
        return !_isOfNoJob(row) && _isClosed(row.jobId);
    }

    function _isTooHigh(IProofSystem.Checkpoint memory row) private pure returns (bool) {
        return !_fits(row);
    }

    /// @dev Whether both totals have 48 bits.
    function _fits(IProofSystem.Checkpoint memory row) private pure returns (bool) {
        return (row.tokens >> 48 | uint16(bytes2(row.proof))) == 0;
    }

    function _claim(IProofSystem.Checkpoint memory row) private pure returns (bytes memory) {
        return abi.encodeCall(IProofSystem.submitCheckpoint, (row.jobId, row.tokens, row.proof));
    }

    function _batch(IProofSystem.Checkpoint memory row) private pure returns (bytes memory) {
        IProofSystem.Checkpoint[] memory rows = new IProofSystem.Checkpoint[](1);
        rows[0] = row;
        return abi.encodeCall(IProofSystem.submitCheckpoints, (rows));
    }

    function _ofAToken(IProofSystem.Checkpoint memory row) private returns (IProofSystem.Checkpoint memory) {
        vm.assume(_isOfAToken(row));
        return _good(1, row);
    }

    function _ofETH(IProofSystem.Checkpoint memory row) private returns (IProofSystem.Checkpoint memory) {
        vm.assume(_isOfETH(row));
        return _good(2, row);
    }

    function _ofNoJob(IProofSystem.Checkpoint memory row) private pure returns (IProofSystem.Checkpoint memory) {
        vm.assume(_isOfNoJob(row));
        return row;
    }

    function _ofAClosedJob(IProofSystem.Checkpoint memory row) private returns (IProofSystem.Checkpoint memory) {
        vm.assume(_isOfAClosedJob(row));
        return _ofAnyJob(row);
    }

    function _tooHigh(IProofSystem.Checkpoint memory row) private returns (IProofSystem.Checkpoint memory) {
        vm.assume(_isTooHigh(row));
        return _ofAnyJob(row);
    }

    /// @dev A claim on a job that is known to be open, of totals that are known to fit.
    function _good(uint256 jobId, IProofSystem.Checkpoint memory row) private returns (IProofSystem.Checkpoint memory) {
        (row.proof[0], row.proof[1]) = (0, 0);
        (row.jobId, row.tokens) = (_open(jobId), uint48(row.tokens));
        return row;
    }

    function _ofAnyJob(IProofSystem.Checkpoint memory row) private returns (IProofSystem.Checkpoint memory) {
        row.jobId = _anyJob(row.jobId);
        return row;
    }
}
