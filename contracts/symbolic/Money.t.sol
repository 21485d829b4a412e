// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {Pricing} from "../src/libraries/Pricing.sol";

/// @dev How what is owed is divided. Where it takes division to say so, the solver is one that can divide.
contract MoneyProof {
    /// @custom:halmos --solver-command "../.venv-proof/bin/python ../scripts/solve.py"
    function check_TheFeeIsATenthRoundedDown(uint96 owed) external pure {
        uint256 fee = Pricing.fee(owed);
        unchecked {
            assert(fee * 10 <= owed && owed - fee * 10 < 10);
        }
    }

    /// @dev So what a checkpoint adds for the treasury, and what it adds for the host, is never negative.
    /// @custom:halmos --solver-command "../.venv-proof/bin/python ../scripts/solve.py"
    function check_NeitherPartShrinks(uint96 owedBefore, uint96 owed) external pure {
        if (owedBefore > owed) return;
        (uint256 feeBefore, uint256 fee) = (Pricing.fee(owedBefore), Pricing.fee(owed));
        unchecked {
            assert(feeBefore <= fee && fee - feeBefore <= owed - owedBefore);
        }
    }

    /// @dev What two checkpoints pay is what one to the same totals pays; so however many do.
    function check_CheckpointsAddUp(uint96 first, uint96 second, uint96 third) external pure {
        (uint256 host, uint256 fee) = _parts(first, second);
        (uint256 moreHost, uint256 moreFee) = _parts(second, third);
        (uint256 allHost, uint256 allFee) = _parts(first, third);
        unchecked {
            assert(host + moreHost == allHost && fee + moreFee == allFee);
        }
    }

    function _parts(uint256 owedBefore, uint256 owed) private pure returns (uint256 host, uint256 fee) {
        unchecked {
            fee = Pricing.fee(owed) - Pricing.fee(owedBefore);
            host = owed - owedBefore - fee;
        }
    }
}
