// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {Fit} from "./Fit.sol";

/// @dev The third word of a job: what a claim has to satisfy, and until when. From the lowest bit:
///
///     signer 160 | maxTokensPerSecond 32 | claimWindow 32 | expiresAt 32
type Limits is uint256;

using LimitsFields for Limits global;

/// @title LimitsFields
/// @notice Packs and reads a job's limits, and says when they end. What does not fit reverts.
library LimitsFields {
    using Fit for uint256;

    function pack(address signer_, uint256 maxTokensPerSecond_, uint256 claimWindow_, uint256 expiresAt_)
        internal
        pure
        returns (Limits)
    {
        return Limits.wrap(
            uint160(signer_) | maxTokensPerSecond_.fit(32) << 160 | claimWindow_.fit(32) << 192 | expiresAt_.fit(32)
                << 224
        );
    }

    function signer(Limits limits) internal pure returns (address) {
        return address(uint160(Limits.unwrap(limits)));
    }

    function maxTokensPerSecond(Limits limits) internal pure returns (uint256) {
        return uint32(Limits.unwrap(limits) >> 160);
    }

    function claimWindow(Limits limits) internal pure returns (uint256) {
        return uint32(Limits.unwrap(limits) >> 192);
    }

    function expiresAt(Limits limits) internal pure returns (uint256) {
        return Limits.unwrap(limits) >> 224;
    }

    /// @dev When tokens cease to count: at the expiry, or when payer or signer asked to complete, if that was earlier.
    function endsAt(Limits limits, uint256 askedAt) internal pure returns (uint256) {
        uint256 expiry = expiresAt(limits);
        return askedAt == 0 || askedAt > expiry ? expiry : askedAt;
    }

    /// @dev From when on anybody may send the rest back.
    function closesAt(Limits limits, uint256 askedAt) internal pure returns (uint256) {
        return endsAt(limits, askedAt) + claimWindow(limits);
    }
}
