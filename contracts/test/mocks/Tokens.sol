// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {TestDollar} from "./TestDollar.sol";
import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

/// @dev A token that says nothing when it has transferred, and knows of no authorization.
contract SilentToken {
    mapping(address => uint256) public balanceOf;

    function mint(address to, uint256 amount) external {
        balanceOf[to] += amount;
    }

    function approve(address, uint256) external {}

    function transfer(address to, uint256 amount) external {
        balanceOf[msg.sender] -= amount;
        balanceOf[to] += amount;
    }

    function transferFrom(address from, address to, uint256 amount) external {
        balanceOf[from] -= amount;
        balanceOf[to] += amount;
    }
}

/// @dev A token that has an answer to every call, and does nothing about those that it does not know: as WETH.
contract CatchAllToken is ERC20("Catch-all", "CATCH") {
    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    fallback() external {}
}

/// @dev A token with a list of addresses that it will not send to, and three ways of not doing so.
contract ListedToken is TestDollar {
    enum Way {
        Revert,
        ReturnFalse,
        BurnGas
    }

    Way public way;
    mapping(address => bool) public listed;

    function list(address account, bool on) external {
        listed[account] = on;
    }

    function setWay(Way way_) external {
        way = way_;
    }

    function transfer(address to, uint256 amount) public override returns (bool) {
        if (!listed[to]) return super.transfer(to, amount);
        if (way == Way.ReturnFalse) return false;
        if (way == Way.BurnGas) {
            while (gasleft() > 0) {}
        }
        revert("listed");
    }
}

/// @dev A token that answers every transfer with what it was told to, and moves only if it was told so.
contract AnsweringToken is TestDollar {
    bytes private _answer;
    bool private _moves;

    function answer(bytes calldata with, bool moves) external {
        (_answer, _moves) = (with, moves);
    }

    function transfer(address to, uint256 amount) public override returns (bool) {
        if (_moves) _transfer(msg.sender, to, amount);
        _say();
    }

    function transferFrom(address from, address to, uint256 amount) public override returns (bool) {
        if (_moves) _transfer(from, to, amount);
        _say();
    }

    function _say() private view {
        bytes memory words = _answer;
        assembly ("memory-safe") {
            return(add(words, 0x20), mload(words))
        }
    }
}

/// @dev A token that declines at once if it is given noticeably less gas than a refund comes with.
contract HungryToken is TestDollar {
    function transfer(address to, uint256 amount) public override returns (bool) {
        require(gasleft() > 99_500, "hungry");
        return super.transfer(to, amount);
    }
}

/// @dev A token that keeps one unit in a hundred of what is transferred.
contract TollToken is TestDollar {
    function _update(address from, address to, uint256 amount) internal override {
        super._update(from, to, amount);
        if (from != address(0) && to != address(0)) super._update(to, address(0), amount / 100);
    }
}

/// @dev A token that brings what was asked for, and takes one unit in a hundred more from who sends it.
contract SurchargeToken is TestDollar {
    function _update(address from, address to, uint256 amount) internal override {
        super._update(from, to, amount);
        if (from != address(0) && to != address(0)) super._update(from, address(0), amount / 100);
    }
}

/// @dev A token that pays more than it was asked to.
contract GiftToken is TestDollar {
    function _update(address from, address to, uint256 amount) internal override {
        super._update(from, to, amount);
        if (from != address(0)) super._update(address(0), to, 1);
    }
}

/// @dev A token that calls somebody back with what it was told to, whenever it moves, and counts the answers.
contract CallbackToken is TestDollar {
    address private _target;
    bytes private _data;

    uint256 public moves;
    mapping(bytes4 answer => uint256) public refusals;

    function callBack(address target, bytes calldata data) external {
        (_target, _data) = (target, data);
    }

    function _update(address from, address to, uint256 amount) internal override {
        super._update(from, to, amount);
        if (_target == address(0)) return;
        (bool success, bytes memory answer) = _target.call(_data);
        ++moves;
        if (!success) ++refusals[bytes4(answer)];
    }
}
