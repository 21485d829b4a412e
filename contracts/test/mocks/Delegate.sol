// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

/// @dev Runs another's code in its own place: what no contract of ours does.
contract Delegate {
    function run(address target, bytes calldata data) external returns (bool success) {
        (success,) = target.delegatecall(data);
    }
}
