// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IJobMarketplace} from "../src/interfaces/IJobMarketplace.sol";
import {IProofSystem} from "../src/interfaces/IProofSystem.sol";
import {JobRecord} from "../src/libraries/JobRecord.sol";
import {Limits} from "../src/libraries/Limits.sol";
import {Prices} from "../src/libraries/Prices.sol";
import {Tally} from "../src/libraries/Tally.sol";
import {AnyJobs} from "./AnyJobs.sol";

/// @dev What no call can do, each function on its own: conservation of money, and the table of rights. The solver is one that
/// settles in seconds what takes Halmos's own minutes: who is who among symbolic addresses with balances.
/// @custom:halmos --solver-command "../.venv-proof/bin/python ../scripts/solve.py"
contract CallsProof is AnyJobs {
    function check_submitCheckpoint(address caller) external {
        _everyLaw(caller, IProofSystem.submitCheckpoint.selector);
    }

    function check_submitCheckpoints(address caller) external {
        _everyLaw(caller, IProofSystem.submitCheckpoints.selector);
    }

    function check_createJob(address caller) external {
        _everyLaw(caller, IJobMarketplace.createJob.selector);
    }

    function check_createJobWithAuthorization(address caller) external {
        _everyLaw(caller, IJobMarketplace.createJobWithAuthorization.selector);
    }

    function check_topUp(address caller) external {
        _everyLaw(caller, IJobMarketplace.topUp.selector);
    }

    function check_topUpWithAuthorization(address caller) external {
        _everyLaw(caller, IJobMarketplace.topUpWithAuthorization.selector);
    }

    function check_completeSession(address caller) external {
        _everyLaw(caller, IJobMarketplace.completeSession.selector);
    }

    function check_reclaim(address caller) external {
        _everyLaw(caller, IJobMarketplace.reclaim.selector);
    }

    function check_withdraw(address caller) external {
        _everyLaw(caller, IJobMarketplace.withdraw.selector);
    }

    function check_withdrawFor(address caller) external {
        _everyLaw(caller, IJobMarketplace.withdrawFor.selector);
    }

    function check_withdrawTreasury(address caller) external {
        _everyLaw(caller, IJobMarketplace.withdrawTreasury.selector);
    }

    function _everyLaw(address caller, bytes4 function_) private {
        _anything();
        Books memory before = _books();
        _call(caller, function_);
        Books memory next = _books();

        for (uint256 i; i < 2; ++i) {
            (JobRecord memory job, JobRecord memory after_) = (before.jobs[i], next.jobs[i]);
            assert(_heldAndOwedMoveAlike(before, next, i));
            assert(_theTermsStay(job, after_));
            assert(_onlyTheHostMovesTotals(job.tally, after_.tally, caller));
            assert(_onlyThePayerAddsToTheDeposit(job, after_.tally, caller));
            assert(_onlyPayerAndSignerAsk(job, after_.tally, caller));
            assert(_onlyTheHostClosesBeforeItsTime(job, after_.tally, caller));
            assert(_balancesGoToTheirOwners(before, next, i, caller));
        }
    }

    /// @dev Conservation: what the marketplace holds of an asset changes by exactly what it owes in it.
    function _heldAndOwedMoveAlike(Books memory before, Books memory next, uint256 i) private pure returns (bool) {
        unchecked {
            uint256 owedBefore = before.rests[i] + before.earnings[i] + before.refunds[i] + before.fees[i];
            uint256 owedNext = next.rests[i] + next.earnings[i] + next.refunds[i] + next.fees[i];
            return next.held[i] - before.held[i] == owedNext - owedBefore;
        }
    }

    function _theTermsStay(JobRecord memory before, JobRecord memory next) private pure returns (bool) {
        uint256 moved = (Prices.unwrap(before.prices) ^ Prices.unwrap(next.prices))
            | (Limits.unwrap(before.limits) ^ Limits.unwrap(next.limits))
            | (uint160(before.payer) ^ uint160(next.payer));
        return moved == 0;
    }

    /// @dev And they grow.
    function _onlyTheHostMovesTotals(Tally before, Tally next, address caller) private pure returns (bool) {
        bool moved = _any(next.tokens() != before.tokens(), next.promptTokens() != before.promptTokens());
        bool grown = _all(next.tokens() >= before.tokens(), next.promptTokens() >= before.promptTokens());
        return _all(grown, _if(moved, _all(caller == HOST, !before.closed())));
    }

    /// @dev Itself or by its authorization, to a job that is open and not past its expiry.
    function _onlyThePayerAddsToTheDeposit(JobRecord memory before, Tally next, address caller)
        private
        view
        returns (bool)
    {
        bool moved = next.deposit() != before.tally.deposit();
        bool grown = next.deposit() >= before.tally.deposit();
        bool open = _all(before.tally.askedAt() == 0, !before.tally.closed());
        bool inTime = block.timestamp < before.limits.expiresAt();
        bool allowed = _any(caller == payer, coin.authorized());
        return _all(grown, _if(moved, _all(_all(open, inTime), allowed)));
    }

    function _onlyPayerAndSignerAsk(JobRecord memory before, Tally next, address caller) private view returns (bool) {
        bool moved = next.askedAt() != before.tally.askedAt();
        bool first = _all(before.tally.askedAt() == 0, next.askedAt() == block.timestamp);
        return _if(moved, _all(first, _any(caller == payer, caller == before.limits.signer())));
    }

    /// @dev And nobody opens a job again.
    function _onlyTheHostClosesBeforeItsTime(JobRecord memory before, Tally next, address caller)
        private
        view
        returns (bool)
    {
        bool closes = _all(next.closed(), !before.tally.closed());
        bool due = block.timestamp >= before.limits.closesAt(before.tally.askedAt());
        return _all(_if(before.tally.closed(), next.closed()), _if(closes, _any(caller == HOST, due)));
    }

    /// @dev What a balance loses, its owner takes or is sent; of a host's earnings the owner is its payout address.
    function _balancesGoToTheirOwners(Books memory before, Books memory next, uint256 i, address caller)
        private
        view
        returns (bool)
    {
        bool earnings = _any(_all(caller == HOST, payout == HOST), _has(payout, i) >= before.earnings[i]);
        bool refunds = _any(caller == payer, _has(payer, i) >= before.refunds[i]);
        bool kept = _all(
            _any(next.earnings[i] >= before.earnings[i], earnings), _any(next.refunds[i] >= before.refunds[i], refunds)
        );
        return _all(kept, _any(next.fees[i] >= before.fees[i], caller == TREASURY));
    }

    function _has(address who, uint256 i) private view returns (uint256) {
        return i == 0 ? coin.balanceOf(who) : who.balance;
    }

    // A condition that the machine branches on doubles the paths; these do not branch.

    function _if(bool condition, bool holds) private pure returns (bool result) {
        return _any(!condition, holds);
    }

    function _all(bool left, bool right) private pure returns (bool result) {
        assembly {
            result := and(left, right)
        }
    }

    function _any(bool left, bool right) private pure returns (bool result) {
        assembly {
            result := or(left, right)
        }
    }
}
