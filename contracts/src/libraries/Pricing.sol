// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {Prices} from "./Prices.sol";

/// @title Pricing
/// @notice All arithmetic with money: what totals are worth, and how that is divided.
library Pricing {
    uint256 private constant TOKENS_PER_PRICE = 1_000_000;
    uint256 private constant FEE_DIVISOR = 10;

    /// @dev What the totals are worth. Totals have at most 48 bits and prices 80, so nothing here can overflow.
    function owed(Prices prices, uint256 promptTokens, uint256 tokens) internal pure returns (uint256) {
        unchecked {
            return
                (tokens * prices.pricePerMillion() + promptTokens * prices.promptPricePerMillion()) / TOKENS_PER_PRICE;
        }
    }

    /// @dev The treasury's part of what a job's totals are worth; the host has the rest.
    function fee(uint256 owed_) internal pure returns (uint256) {
        return owed_ / FEE_DIVISOR;
    }
}
