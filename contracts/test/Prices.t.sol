// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {Prices, PricesFields} from "../src/libraries/Prices.sol";
import {vm} from "./Vm.sol";

/// @dev A job's second word at sizes that no test reaches through the contracts: so many hosts and assets.
contract PricesTest {
    function testFuzz_IsReadAsItWasPacked(
        uint80 price,
        uint80 promptPrice,
        uint32 assetId,
        uint32 hostId,
        uint32 createdAt
    ) public pure {
        uint256 account = uint256(hostId) << 32 | assetId;

        Prices prices = PricesFields.pack(price, promptPrice, account, createdAt);

        vm.assertEq(prices.pricePerMillion(), price, "price");
        vm.assertEq(prices.promptPricePerMillion(), promptPrice, "prompt price");
        vm.assertEq(prices.assetId(), assetId, "asset");
        vm.assertEq(prices.hostId(), hostId, "host");
        vm.assertEq(prices.account(), account, "account");
        vm.assertEq(prices.createdAt(), createdAt, "created");
    }
}
