// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

/// @dev First slot, the only one that changes after a job was opened.
struct Tally {
    uint96 deposit;
    uint48 tokens;
    uint48 promptTokens;
    uint40 askedAt;
    bool closed;
}

/// @dev Second slot: what a claim is worth, and to whom.
struct Prices {
    uint80 pricePerMillion;
    uint80 promptPricePerMillion;
    uint32 hostId;
    uint32 assetId;
    uint32 createdAt;
}

/// @dev Third slot: what a claim has to satisfy, and until when.
struct Limits {
    address signer;
    uint32 maxTokensPerSecond;
    uint32 claimWindow;
    uint32 expiresAt;
}

/// @dev A job as it is stored: four slots, read one at a time. A job that exists has a deposit.
struct JobRecord {
    Tally tally;
    Prices prices;
    Limits limits;
    address payer;
}

using {endsAt, closesAt} for Limits global;

/// @dev When tokens stop to count: at the expiry, or when payer or signer asked to complete, if that was earlier.
function endsAt(Limits memory limits, uint256 askedAt) pure returns (uint256) {
    return askedAt == 0 || askedAt > limits.expiresAt ? limits.expiresAt : askedAt;
}

/// @dev From when on anybody may send the rest back.
function closesAt(Limits memory limits, uint256 askedAt) pure returns (uint256) {
    return endsAt(limits, askedAt) + limits.claimWindow;
}
