// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {Fit} from "./Fit.sol";

/// @dev The second word of a job: what its tokens are worth, and to whom. From the lowest bit:
///
///     pricePerMillion 80 | promptPricePerMillion 80 | assetId 32 | hostId 32 | createdAt 32
///
/// The two ids together are the account that the job earns for.
type Prices is uint256;

using PricesFields for Prices global;

/// @title PricesFields
/// @notice Packs and reads a job's prices. What does not fit reverts.
library PricesFields {
    using Fit for uint256;

    function pack(uint256 pricePerMillion_, uint256 promptPricePerMillion_, uint256 account_, uint256 createdAt_)
        internal
        pure
        returns (Prices)
    {
        return Prices.wrap(
            pricePerMillion_.fit(80) | promptPricePerMillion_.fit(80) << 80 | account_.fit(64) << 160
                | createdAt_.fit(32) << 224
        );
    }

    function pricePerMillion(Prices prices) internal pure returns (uint256) {
        return uint80(Prices.unwrap(prices));
    }

    function promptPricePerMillion(Prices prices) internal pure returns (uint256) {
        return uint80(Prices.unwrap(prices) >> 80);
    }

    function assetId(Prices prices) internal pure returns (uint256) {
        return uint32(Prices.unwrap(prices) >> 160);
    }

    function hostId(Prices prices) internal pure returns (uint256) {
        return uint32(Prices.unwrap(prices) >> 192);
    }

    function account(Prices prices) internal pure returns (uint256) {
        return uint64(Prices.unwrap(prices) >> 160);
    }

    function createdAt(Prices prices) internal pure returns (uint256) {
        return Prices.unwrap(prices) >> 224;
    }
}
