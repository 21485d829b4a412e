// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

/// @dev How claimed totals stand to the settled ones.
enum Standing {
    Equal,
    Ahead,
    Stale
}

/// @title Totals
/// @notice The one rule by which a job's two totals move.
library Totals {
    /// @dev Ahead: neither total lower, one higher. Equal: the same. Stale: anything else.
    function standing(uint256 settledPromptTokens, uint256 settledTokens, uint256 promptTokens, uint256 tokens)
        internal
        pure
        returns (Standing)
    {
        if (promptTokens < settledPromptTokens || tokens < settledTokens) return Standing.Stale;
        if (promptTokens == settledPromptTokens && tokens == settledTokens) return Standing.Equal;
        return Standing.Ahead;
    }
}
