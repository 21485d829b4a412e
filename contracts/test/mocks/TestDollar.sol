// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

/// @title TestDollar
/// @notice A dollar for devnets and tests, with 6 decimals. Anybody may make as many as they like.
contract TestDollar is ERC20("Test Dollar", "tUSD") {
    /// @notice Makes `amount` base units for `to`.
    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    /// @notice 1 tUSD is 1 000 000 base units.
    function decimals() public pure override returns (uint8) {
        return 6;
    }
}
