// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

/// @title IERC3009
/// @notice What is asked of a token that is paid in by authorization: EIP-3009, in the form that leaves the signature's
/// kind to the token, so that the payer can be a contract. Circle's USDC has it since its version 2.2.
interface IERC3009 {
    /// @notice Moves `value` from `from` to the sender, who has to be `to`, if `from` signed that and the nonce is unused.
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external;
}
