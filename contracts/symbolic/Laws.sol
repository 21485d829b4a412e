// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {JobRecord} from "../src/libraries/JobRecord.sol";
import {Limits} from "../src/libraries/Limits.sol";
import {Prices} from "../src/libraries/Prices.sol";
import {Pricing} from "../src/libraries/Pricing.sol";
import {Tally, TallyFields} from "../src/libraries/Tally.sol";
import {vm} from "../test/Vm.sol";
import {AnyJobs} from "./AnyJobs.sol";

/// @dev What holds after any call: conservation of money, and the table of rights.
abstract contract Laws is AnyJobs {
    /// @dev If the call succeeds.
    function _everyLaw(address caller, bytes memory data) internal {
        _everyLaw(caller, 0, data);
    }

    function _everyLaw(address caller, uint256 value, bytes memory data) internal {
        (Books memory before, Books memory next) = _called(caller, value, data);

        for (uint256 i; i < 2; ++i) {
            _everyLawOfAJob(before, next, i, caller);
            assert(_balancesGoToTheirOwners(before, next, i, caller));
        }
    }

    /// @dev And one more: no balance shrinks, not even its owner's.
    function _everyLawOfAClaim(bytes memory data) internal {
        (Books memory before, Books memory next) = _called(HOST, 0, data);

        for (uint256 i; i < 2; ++i) {
            _everyLawOfAJob(before, next, i, HOST);
            assert(_noBalanceShrinks(before, next, i));
        }
    }

    /// @dev Whether the call succeeds or not.
    function _nothingMoves(address caller, bytes memory data) internal {
        Books memory before = _books();
        _succeeds(caller, 0, data);
        Books memory next = _books();

        for (uint256 i; i < 2; ++i) {
            assert(_stays(before, next, i));
        }
    }

    function _called(address caller, uint256 value, bytes memory data)
        private
        returns (Books memory before, Books memory next)
    {
        before = _books();
        _call(caller, value, data);
        next = _books();
    }

    /// @dev And of the asset that it is in.
    function _everyLawOfAJob(Books memory before, Books memory next, uint256 i, address caller) private view {
        (JobRecord memory job, JobRecord memory after_) = (before.jobs[i], next.jobs[i]);
        _assumeThatBothPartsGrow(job, after_);
        assert(_heldAndOwedMoveAlike(before, next, i));
        assert(_theTermsStay(job, after_));
        assert(_onlyTheHostMovesTotals(job.tally, after_.tally, caller));
        assert(_onlyThePayerAddsToTheDeposit(job, after_.tally, caller));
        assert(_onlyPayerAndSignerAsk(job, after_.tally, caller));
        assert(_onlyTheHostClosesBeforeItsTime(job, after_.tally, caller));
    }

    /// @dev Products and quotients are functions to the solver of which it knows nothing. This is what it needs to know: while
    /// the totals grow, what is owed does, as the NatSpec of Pricing argues; and then neither the host's part nor the
    /// treasury's shrinks, which `Money.t.sol` proves of every sum that fits a deposit.
    function _assumeThatBothPartsGrow(JobRecord memory before, JobRecord memory next) private pure {
        uint256 owedBefore = _owed(before.prices, before.tally);
        uint256 owed = _owed(before.prices, next.tally);
        bool grown = _all(_totalsGrow(before.tally, next.tally), owed >> TallyFields.DEPOSIT_BITS == 0);
        unchecked {
            uint256 fee = Pricing.fee(owed) - Pricing.fee(owedBefore);
            uint256 hostAmount = owed - owedBefore - fee;
            vm.assume(_if(grown, (hostAmount | fee) >> TallyFields.DEPOSIT_BITS == 0));
        }
    }

    function _totalsGrow(Tally before, Tally next) private pure returns (bool) {
        return _all(next.tokens() >= before.tokens(), next.promptTokens() >= before.promptTokens());
    }

    /// @dev Conservation: what the marketplace holds of an asset changes by exactly what it owes in it.
    function _heldAndOwedMoveAlike(Books memory before, Books memory next, uint256 i) private pure returns (bool) {
        unchecked {
            uint256 jobs = next.rests[i] - before.rests[i] + next.newRests[i] - before.newRests[i];
            uint256 balances = next.earnings[i] - before.earnings[i] + next.refunds[i] - before.refunds[i];
            uint256 fees = next.fees[i] - before.fees[i];
            return next.held[i] - before.held[i] == jobs + balances + fees;
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
        return _all(_totalsGrow(before, next), _if(moved, _all(caller == HOST, !before.closed())));
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
        return (_keeps(before.earnings[i], next.earnings[i]) || _goToPayout(before, i, caller))
            && (_keeps(before.refunds[i], next.refunds[i])
                || _any(caller == payer, _has(payer, i) >= before.refunds[i]))
            && (_keeps(before.fees[i], next.fees[i]) || caller == TREASURY);
    }

    function _noBalanceShrinks(Books memory before, Books memory next, uint256 i) private pure returns (bool) {
        bool own = _all(_keeps(before.earnings[i], next.earnings[i]), _keeps(before.refunds[i], next.refunds[i]));
        return _all(own, _keeps(before.fees[i], next.fees[i]));
    }

    function _stays(Books memory before, Books memory next, uint256 i) private pure returns (bool) {
        uint256 moved = (Tally.unwrap(before.jobs[i].tally) ^ Tally.unwrap(next.jobs[i].tally))
            | (before.newRests[i] ^ next.newRests[i]) | (before.earnings[i] ^ next.earnings[i])
            | (before.refunds[i] ^ next.refunds[i]) | (before.fees[i] ^ next.fees[i]) | (before.held[i] ^ next.held[i]);
        return _all(moved == 0, _theTermsStay(before.jobs[i], next.jobs[i]));
    }

    /// @dev Balances have 160 bits, so a difference without a sign is one that has not shrunk.
    function _keeps(uint256 before, uint256 next) private pure returns (bool) {
        unchecked {
            return (next - before) >> 255 == 0;
        }
    }

    function _goToPayout(Books memory before, uint256 i, address caller) private view returns (bool) {
        return _any(_all(caller == HOST, payout == HOST), _has(payout, i) >= before.earnings[i]);
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
