// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";

/// @title Proof
/// @notice Reads the packed bytes that come with a claim, as `IProofSystem` lays them out.
/// @dev Callers check the length. What is read beyond the end is not part of the proof and must not be used.
library Proof {
    uint256 internal constant ATTESTED_LENGTH = 8;
    uint256 internal constant RECEIPT_LENGTH = 121;
    uint256 internal constant COMPACT_RECEIPT_LENGTH = 120;

    bytes32 internal constant RECEIPT_TYPEHASH =
        keccak256("Receipt(uint256 jobId,uint64 promptTokens,uint64 tokens,bytes32 transcript)");

    /// @dev Half the order of secp256k1. For each signature with a lower s there is one with a higher, which is refused.
    uint256 private constant HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0;

    /// @dev Whether `proof` is as long as a proof of a host-attested job.
    function isAttested(bytes calldata proof) internal pure returns (bool) {
        return proof.length == ATTESTED_LENGTH;
    }

    /// @dev Whether `proof` is as long as a proof of a receipted job.
    function isReceipt(bytes calldata proof) internal pure returns (bool) {
        // 120 and 121 differ in their lowest bit alone.
        return (proof.length | 1) == RECEIPT_LENGTH;
    }

    /// @dev The prompt total that is claimed, in both kinds of proof.
    function claimedPromptTokens(bytes calldata proof) internal pure returns (uint256) {
        return _uint64(proof, 0);
    }

    function signedPromptTokens(bytes calldata proof) internal pure returns (uint256) {
        return _uint64(proof, 8);
    }

    function signedTokens(bytes calldata proof) internal pure returns (uint256) {
        return _uint64(proof, 16);
    }

    /// @dev The transcript in the receipt.
    function transcript(bytes calldata proof) internal pure returns (bytes32) {
        return _word(proof, 24);
    }

    /// @dev Who signed the receipt for `jobId`; zero when the signature is none, or s is in its upper half.
    function signer(bytes calldata proof, bytes32 domain, uint256 jobId) internal pure returns (address) {
        bytes32 signed = digest(domain, jobId, signedPromptTokens(proof), signedTokens(proof), transcript(proof));
        uint256 s = uint256(_word(proof, 88));
        uint8 v = uint8(bytes1(_word(proof, 120)));
        if (proof.length == COMPACT_RECEIPT_LENGTH) {
            v = s >> 255 == 0 ? 27 : 28;
            s = s << 1 >> 1;
        }
        return s > HALF_ORDER ? address(0) : ecrecover(signed, v, _word(proof, 56), bytes32(s));
    }

    /// @dev The EIP-712 digest of a receipt. Hashed beyond the free memory pointer, which stays where it is, or a batch
    /// would pay for memory that grows with each row.
    function digest(bytes32 domain, uint256 jobId, uint256 promptTokens, uint256 tokens, bytes32 transcript_)
        internal
        pure
        returns (bytes32)
    {
        bytes32 typehash = RECEIPT_TYPEHASH;
        bytes32 receipt;
        assembly ("memory-safe") {
            let free := mload(0x40)
            mstore(free, typehash)
            mstore(add(free, 0x20), jobId)
            mstore(add(free, 0x40), promptTokens)
            mstore(add(free, 0x60), tokens)
            mstore(add(free, 0x80), transcript_)
            receipt := keccak256(free, 0xa0)
        }
        return MessageHashUtils.toTypedDataHash(domain, receipt);
    }

    function _uint64(bytes calldata proof, uint256 offset) private pure returns (uint256) {
        return uint256(_word(proof, offset)) >> 192;
    }

    function _word(bytes calldata proof, uint256 offset) private pure returns (bytes32 word) {
        assembly ("memory-safe") {
            word := calldataload(add(proof.offset, offset))
        }
    }
}
