// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

/// @dev A token that says nothing when it has transferred.
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

/// @dev A token with a list of addresses that it will not send to, and three ways of not doing so.
contract ListedToken is ERC20("Listed", "LIST") {
    enum Way {
        Revert,
        ReturnFalse,
        BurnGas
    }

    Way public way;
    mapping(address => bool) public listed;

    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

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

/// @dev A token that keeps one unit in a hundred of what is transferred.
contract TollToken is ERC20("Toll", "TOLL") {
    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    function _update(address from, address to, uint256 amount) internal override {
        super._update(from, to, amount);
        if (from != address(0) && to != address(0)) super._update(to, address(0), amount / 100);
    }
}

/// @dev A token that pays more than it was asked to.
contract GiftToken is ERC20("Gift", "GIFT") {
    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    function transferFrom(address from, address to, uint256 amount) public override returns (bool) {
        _mint(to, 1);
        return super.transferFrom(from, to, amount);
    }
}

/// @dev A token that calls somebody back with what it was told to, whenever it moves.
contract CallbackToken is ERC20("Callback", "CALL") {
    address private _target;
    bytes private _data;

    bool public refused;
    bytes public answer;

    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    function callBack(address target, bytes calldata data) external {
        (_target, _data) = (target, data);
    }

    function _update(address from, address to, uint256 amount) internal override {
        super._update(from, to, amount);
        if (_target == address(0)) return;
        bool success;
        (success, answer) = _target.call(_data);
        refused = !success;
    }
}
