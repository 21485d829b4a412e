// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

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

/// @dev Declines at once if it is given noticeably less gas than a refund comes with.
contract HungryReceiver is Receiver {
    receive() external payable override {
        require(gasleft() > 100_000, "hungry");
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

/// @dev Calls back with what it was told to, when it receives ETH.
contract CallbackReceiver is Receiver {
    address private _target;
    bytes private _data;

    bool public refused;
    bytes4 public answer = 0xffffffff;

    function callBack(address target, bytes calldata data) external {
        (_target, _data) = (target, data);
    }

    receive() external payable override {
        (bool success, bytes memory told) = _target.call(_data);
        refused = !success;
        answer = bytes4(told);
    }
}
