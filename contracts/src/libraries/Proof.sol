// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

/// @title Proof
/// @notice Reads the packed bytes that come with a claim, as `IProofSystem` lays them out.
/// @dev Each reader expects a length that was checked before.
library Proof {
    uint256 internal constant ATTESTED_LENGTH = 8;
    uint256 internal constant RECEIPT_LENGTH = 121;
    uint256 internal constant COMPACT_RECEIPT_LENGTH = 120;

    /// @dev keccak256("Receipt(uint256 jobId,uint64 promptTokens,uint64 tokens,bytes32 transcript)")
    bytes32 internal constant RECEIPT_TYPEHASH =
        keccak256("Receipt(uint256 jobId,uint64 promptTokens,uint64 tokens,bytes32 transcript)");

    /// @dev Whether `proof` is as long as a proof of a host-attested job.
    function isAttested(bytes calldata proof) internal pure returns (bool) {
        return proof.length == ATTESTED_LENGTH;
    }

    /// @dev Whether `proof` is as long as a proof of a receipted job.
    function isReceipt(bytes calldata proof) internal pure returns (bool) {
        return proof.length == RECEIPT_LENGTH || proof.length == COMPACT_RECEIPT_LENGTH;
    }

    /// @dev The prompt total that is claimed, in both kinds of proof.
    function claimedPromptTokens(bytes calldata proof) internal pure returns (uint64) {
        return uint64(bytes8(proof[0:8]));
    }

    /// @dev The receipt's two totals and its transcript.
    function receipt(bytes calldata proof)
        internal
        pure
        returns (uint64 promptTokens, uint64 tokens, bytes32 transcript)
    {
        return (uint64(bytes8(proof[8:16])), uint64(bytes8(proof[16:24])), bytes32(proof[24:56]));
    }

    /// @dev Who signed `digest` in a receipt's proof; zero when the signature is none, or not in its lower half.
    function recover(bytes calldata proof, bytes32 digest) internal pure returns (address signer) {
        (uint8 v, bytes32 r, bytes32 s) = ECDSA.parseCalldata(proof[56:]);
        (signer,,) = ECDSA.tryRecover(digest, v, r, s);
    }

    /// @dev The EIP-712 struct hash of a receipt.
    function structHash(uint256 jobId, uint64 promptTokens, uint64 tokens, bytes32 transcript)
        internal
        pure
        returns (bytes32)
    {
        return keccak256(abi.encode(RECEIPT_TYPEHASH, jobId, promptTokens, tokens, transcript));
    }
}
