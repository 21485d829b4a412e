// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {Prices} from "./Prices.sol";

/// @title Pricing
/// @notice All arithmetic with money: what totals are worth, and how that is divided.
library Pricing {
    uint256 private constant TOKENS_PER_PRICE = 1_000_000;
    uint256 private constant FEE_DIVISOR = 10;

    /// @dev What the totals are worth. Totals have at most 48 bits and prices 80, so nothing here can overflow.
    ///
    /// It never shrinks while the totals grow. Prices are the same for a job's life and never negative, so each product
    /// grows with its total, and their sum with both; and a division that drops the remainder keeps the order: x <= y
    /// gives x / d <= y / d.
    function owed(Prices prices, uint256 promptTokens, uint256 tokens) internal pure returns (uint256) {
        unchecked {
            return
                (tokens * prices.pricePerMillion() + promptTokens * prices.promptPricePerMillion()) / TOKENS_PER_PRICE;
        }
    }

    /// @dev The treasury's part of what a job's totals are worth; the host has the rest.
    ///
    /// Neither part shrinks while what is owed grows. The fee does not, since its division keeps the order. The host's
    /// part does not, since with each unit by which `owed_` grows the fee grows by one or by nothing: for x <= y,
    /// fee(y) - fee(x) is at most y - x.
    ///
    /// Money is conserved however a job is split into checkpoints. One from totals worth x to totals worth y pays
    /// y - x, of which the treasury has fee(y) - fee(x). Added up from the opening, where nothing is owed, all but the
    /// last cancel: of z, which the last totals are worth, the treasury has fee(z) and the host z - fee(z), whatever
    /// came in between. No claim is paid for which z is above the deposit, and a deposit only grows, so what is sent
    /// back, the deposit less z, is never negative; and the three together are the deposit.
    function fee(uint256 owed_) internal pure returns (uint256) {
        return owed_ / FEE_DIVISOR;
    }
}
