// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IProofSystem} from "../interfaces/IProofSystem.sol";

/// @title Fit
/// @notice Lets a value pass on to narrower storage only if none of it would be lost.
library Fit {
    function fit(uint256 value, uint256 bits) internal pure returns (uint256) {
        if (value >> bits != 0) revert IProofSystem.DoesNotFit(value, bits);
        return value;
    }
}
