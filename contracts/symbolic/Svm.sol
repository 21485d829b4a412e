// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

/// @dev Those of the cheat codes that only a symbolic run has: values that stand for every value.
interface Svm {
    function enableSymbolicStorage(address account) external;
    function createUint(uint256 bits, string calldata name) external pure returns (uint256);
    function createUint256(string calldata name) external pure returns (uint256);
    function createAddress(string calldata name) external pure returns (address);
    function createBool(string calldata name) external pure returns (bool);
    function createCalldata(string calldata contractName) external pure returns (bytes memory);
}

Svm constant svm = Svm(address(uint160(uint256(keccak256("svm cheat code")))));

