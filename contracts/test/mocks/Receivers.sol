// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

/// @dev Somebody with code: sends the calls that it is told to, and meets ETH as its kind does.
abstract contract Receiver {
    function call(address target, uint256 value, bytes calldata data) external returns (bytes memory answer) {
        bool success;
        (success, answer) = target.call{value: value}(data);
        if (!success) {
            assembly ("memory-safe") {
                revert(add(answer, 0x20), mload(answer))
            }
        }
    }

    receive() external payable virtual;
}

contract WillingReceiver is Receiver {
    receive() external payable override {}
}

/// @dev Declines at once if it is given noticeably less gas than a refund comes with: 100 000, and 2 300 with value.
contract HungryReceiver is Receiver {
    receive() external payable override {
        require(gasleft() > 102_000, "hungry");
    }
}

contract RevertingReceiver is Receiver {
    receive() external payable override {
        revert("no, thank you");
    }
}

contract GasBurningReceiver is Receiver {
    receive() external payable override {
        while (gasleft() > 0) {}
    }
}

/// @dev Reverts with as much data as its gas allows, for whoever copies it to pay for.
contract BombReceiver is Receiver {
    receive() external payable override {
        assembly ("memory-safe") {
            revert(0, 190000)
        }
    }
}

/// @dev Remembers how much gas it was given.
contract GasMeteringReceiver is Receiver {
    uint256 public gasGiven = 1;

    receive() external payable override {
        gasGiven = gasleft();
    }
}

/// @dev Calls back with what it was told to, when it receives ETH, and counts the answers.
contract CallbackReceiver is Receiver {
    address private _target;
    bytes private _data;

    uint256 public moves;
    mapping(bytes4 answer => uint256) public refusals;

    function callBack(address target, bytes calldata data) external {
        (_target, _data) = (target, data);
    }

    receive() external payable override {
        (bool success, bytes memory answer) = _target.call(_data);
        ++moves;
        if (!success) ++refusals[bytes4(answer)];
    }
}

/// @dev A contract wallet: takes for its signature (ERC-1271) what its owner has signed, with a note of any length behind.
contract Wallet is Receiver, IERC1271 {
    address private immutable owner;

    constructor(address owner_) {
        owner = owner_;
    }

    function isValidSignature(bytes32 hash, bytes calldata signature) external view returns (bytes4) {
        return ECDSA.recover(hash, signature[:65]) == owner ? IERC1271.isValidSignature.selector : bytes4(0xffffffff);
    }

    receive() external payable override {}
}
