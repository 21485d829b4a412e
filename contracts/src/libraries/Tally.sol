// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {Fit} from "./Fit.sol";

/// @dev The first word of a job, the only one that changes once the job was opened. From the lowest bit:
///
///     deposit 96 | tokens 48 | promptTokens 48 | askedAt 40 | closed 1
///
/// A word rather than a struct, so that a checkpoint reads it once and writes it once.
type Tally is uint256;

using TallyFields for Tally global;

/// @title TallyFields
/// @notice Reads a tally, holds claims against it, and makes the next one out of it.
library TallyFields {
    using Fit for uint256;

    uint256 internal constant DEPOSIT_BITS = 96;
    uint256 internal constant TOTAL_BITS = 48;

    uint256 private constant TOTALS_MASK = uint256(type(uint96).max) << 96;

    function deposit(Tally tally) internal pure returns (uint256) {
        return uint96(Tally.unwrap(tally));
    }

    function tokens(Tally tally) internal pure returns (uint256) {
        return uint48(Tally.unwrap(tally) >> 96);
    }

    function promptTokens(Tally tally) internal pure returns (uint256) {
        return uint48(Tally.unwrap(tally) >> 144);
    }

    function askedAt(Tally tally) internal pure returns (uint256) {
        return uint40(Tally.unwrap(tally) >> 192);
    }

    function closed(Tally tally) internal pure returns (bool) {
        return Tally.unwrap(tally) >> 232 != 0;
    }

    /// @dev Whether there is such a job and it is not closed: a word above zero in which the highest flag is not set.
    function live(Tally tally) internal pure returns (bool) {
        unchecked {
            return Tally.unwrap(tally) - 1 < (1 << 232) - 1;
        }
    }

    /// @dev Whether claimed totals are stale: lower than the settled ones in either of the two.
    function isStale(Tally tally, uint256 promptTokens_, uint256 tokens_) internal pure returns (bool) {
        return promptTokens_ < promptTokens(tally) || tokens_ < tokens(tally);
    }

    /// @dev Whether claimed totals are equal to the settled ones. What is neither stale nor equal is ahead.
    function isEqual(Tally tally, uint256 promptTokens_, uint256 tokens_) internal pure returns (bool) {
        return promptTokens_ == promptTokens(tally) && tokens_ == tokens(tally);
    }

    function withDeposit(Tally tally, uint256 deposit_) internal pure returns (Tally) {
        return Tally.wrap(Tally.unwrap(tally) >> 96 << 96 | deposit_.fit(DEPOSIT_BITS));
    }

    /// @dev The totals are not checked again: a claim of more than 48 bits was refused before.
    function withTotals(Tally tally, uint256 promptTokens_, uint256 tokens_) internal pure returns (Tally) {
        return Tally.wrap((Tally.unwrap(tally) & ~TOTALS_MASK) | tokens_ << 96 | promptTokens_ << 144);
    }

    /// @dev For a tally in which nobody has asked.
    function withAskedAt(Tally tally, uint256 askedAt_) internal pure returns (Tally) {
        return Tally.wrap(Tally.unwrap(tally) | askedAt_.fit(40) << 192);
    }

    function asClosed(Tally tally) internal pure returns (Tally) {
        return Tally.wrap(Tally.unwrap(tally) | 1 << 232);
    }
}
