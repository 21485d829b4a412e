// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {vm} from "./Vm.sol";

/// @dev What a contract's ABI says, read from the package's copy, which lint holds to the build.
library Abi {
    /// @dev The selectors of all functions that may change anything.
    function changing(string memory name) internal view returns (bytes4[] memory selectors) {
        string memory json = vm.readFile(string.concat("../src/tallystick/abi/", name, ".json"));
        selectors = new bytes4[](_length(json, ".abi"));
        uint256 count;
        for (uint256 i; i < selectors.length; ++i) {
            string memory key = _at(".abi", i);
            if (_mayChange(json, key)) selectors[count++] = _selector(json, key);
        }
        assembly ("memory-safe") {
            mstore(selectors, count)
        }
    }

    /// @dev Of functions, and of a `receive` or `fallback`, which would have no name to make a selector of.
    function _mayChange(string memory json, string memory key) private view returns (bool) {
        string memory mutabilityKey = string.concat(key, ".stateMutability");
        if (!vm.keyExistsJson(json, mutabilityKey)) return false;
        bytes32 mutability = keccak256(bytes(vm.parseJsonString(json, mutabilityKey)));
        return mutability != keccak256("view") && mutability != keccak256("pure")
            && keccak256(bytes(vm.parseJsonString(json, string.concat(key, ".type")))) != keccak256("constructor");
    }

    function _selector(string memory json, string memory key) private view returns (bytes4) {
        string memory name = vm.parseJsonString(json, string.concat(key, ".name"));
        return bytes4(keccak256(bytes(string.concat(name, _types(json, string.concat(key, ".inputs"))))));
    }

    function _types(string memory json, string memory list) private view returns (string memory types) {
        uint256 length = _length(json, list);
        for (uint256 i; i < length; ++i) {
            types = string.concat(types, i == 0 ? "" : ",", _type(json, _at(list, i)));
        }
        types = string.concat("(", types, ")");
    }

    function _type(string memory json, string memory key) private view returns (string memory) {
        string memory kind = vm.parseJsonString(json, string.concat(key, ".type"));
        string memory suffix = vm.replace(kind, "tuple", "");
        if (bytes(suffix).length == bytes(kind).length) return kind;
        return string.concat(_types(json, string.concat(key, ".components")), suffix);
    }

    function _length(string memory json, string memory list) private view returns (uint256 length) {
        while (vm.keyExistsJson(json, _at(list, length))) ++length;
    }

    function _at(string memory list, uint256 i) private pure returns (string memory) {
        return string.concat(list, "[", vm.toString(i), "]");
    }
}
