// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

/// @title IERC3009
/// @notice What is asked of a token that is paid in by authorization: EIP-3009, in the form that leaves the signature's
/// kind to the token, so that the payer can be a contract. Circle's USDC has it since its version 2.2.
interface IERC3009 {
    /// @notice Moves `value` from `from` to the sender, who has to be `to`, if `from` signed that and the nonce is unused.
    /// @param from Whose money it is, and who has signed.
    /// @param to Who receives it: the sender.
    /// @param value How much, in base units of the token.
    /// @param validAfter Good later than this moment, in Unix seconds.
    /// @param validBefore Good earlier than this moment, in Unix seconds.
    /// @param nonce Any 32 bytes that `from` has not authorized with before.
    /// @param signature Of `from`, over the token's EIP-712 message `ReceiveWithAuthorization` of all the others: 65
    /// bytes of a key, or what a contract takes by ERC-1271.
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
