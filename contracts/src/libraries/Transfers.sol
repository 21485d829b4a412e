// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IERC3009} from "../interfaces/IERC3009.sol";
import {IJobMarketplace} from "../interfaces/IJobMarketplace.sol";
import {IProofSystem} from "../interfaces/IProofSystem.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {Address} from "@openzeppelin/contracts/utils/Address.sol";

/// @title Transfers
/// @notice The four ways in which assets move: pulled in exactly by allowance or by
/// authorization, paid out, and offered back without trust.
library Transfers {
    using SafeERC20 for IERC20;

    address internal constant ETH = address(0);

    /// @dev What a receiver or token is given to take a refund.
    uint256 private constant REFUND_GAS = 100_000;

    /// @dev To be left before a refund: 64/63 of REFUND_GAS, 36 600 for value to a new account, enough to credit it.
    uint256 private constant GAS_BEFORE_REFUND = 180_000;

    /// @dev Takes exactly `amount` from `from`, or reverts. `from` is always the sender, and both callers are payable.
    // slither-disable-next-line arbitrary-send-erc20,msg-value-in-nonpayable
    function pull(address asset, address from, uint256 amount) internal {
        uint256 value = asset == ETH ? amount : 0;
        if (msg.value != value) revert IJobMarketplace.WrongValue(value, msg.value);
        if (asset == ETH) return;

        uint256 before = IERC20(asset).balanceOf(address(this));
        IERC20(asset).safeTransferFrom(from, address(this), amount);
        _checkReceived(asset, before, amount);
    }

    /// @dev Takes exactly `amount` as its owner authorized, or reverts.
    function pullAuthorized(address asset, uint256 amount, bytes32 nonce, IJobMarketplace.Authorization calldata auth)
        internal
    {
        if (asset == ETH) revert IJobMarketplace.AuthorizationInETH();

        uint256 before = IERC20(asset).balanceOf(address(this));
        IERC3009(asset)
            .receiveWithAuthorization(
                auth.from, address(this), amount, auth.validAfter, auth.validBefore, nonce, auth.signature
            );
        _checkReceived(asset, before, amount);
    }

    /// @dev Pays `amount` to `to`, or reverts with the receiver's or the token's own reason.
    function pay(address asset, address to, uint256 amount) internal {
        if (asset == ETH) Address.sendValue(payable(to), amount);
        else IERC20(asset).safeTransfer(to, amount);
    }

    /// @dev Offers `amount` to `to` with bounded gas and takes at most one word of an answer. Never reverts for what the
    /// other side does; reverts when the caller left too little gas to ask it fairly and credit it if that is in vain.
    function offer(address asset, address to, uint256 amount) internal returns (bool taken) {
        uint256 left = gasleft();
        if (left < GAS_BEFORE_REFUND) revert IProofSystem.RefundNeedsGas(left, GAS_BEFORE_REFUND);

        if (asset == ETH) {
            (taken,,) = _call(to, amount, "");
        } else {
            (bool success, uint256 length, uint256 answer) =
                _call(asset, 0, abi.encodeCall(IERC20.transfer, (to, amount)));
            taken = success && (length == 0 ? asset.code.length != 0 : length >= 32 && answer == 1);
        }
    }

    function _checkReceived(address asset, uint256 before, uint256 amount) private view {
        uint256 received = IERC20(asset).balanceOf(address(this)) - before;
        if (received != amount) revert IJobMarketplace.WrongAmountReceived(amount, received);
    }

    function _call(address target, uint256 value, bytes memory data)
        private
        returns (bool success, uint256 length, uint256 answer)
    {
        assembly ("memory-safe") {
            success := call(REFUND_GAS, target, value, add(data, 0x20), mload(data), 0x00, 0x20)
            length := returndatasize()
            answer := mload(0x00)
        }
    }
}
