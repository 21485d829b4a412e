// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {Limits, LimitsFields} from "../src/libraries/Limits.sol";
import {Prices, PricesFields} from "../src/libraries/Prices.sol";
import {Tally} from "../src/libraries/Tally.sol";

/// @dev The packed words of a job, for every value that they can have.
contract WordsProof {
    uint256 private constant TOTALS = ((1 << 48) - 1) << 96 | ((1 << 48) - 1) << 144;

    /// @dev The fields of a tally lie beside each other and leave no bit between them.
    function check_TheFieldsOfATallyAreTheWord(uint256 word) external pure {
        Tally tally = Tally.wrap(word);
        uint256 above = word >> 232;

        assert(tally.closed() == (above != 0));
        assert(
            tally.deposit() | tally.tokens() << 96 | tally.promptTokens() << 144 | tally.askedAt() << 192 | above << 232
                == word
        );
    }

    function check_AJobIsLiveIfItExistsAndIsNotClosed(uint256 word) external pure {
        Tally tally = Tally.wrap(word);

        assert(tally.live() == (word != 0 && !tally.closed()));
    }

    function check_ADepositTouchesNothingElse(uint256 word, uint256 deposit) external pure {
        Tally next = Tally.wrap(word).withDeposit(deposit);

        assert(next.deposit() == deposit);
        assert((Tally.unwrap(next) ^ word) >> 96 == 0);
    }

    function check_TotalsTouchNothingElse(uint256 word, uint48 promptTokens, uint48 tokens) external pure {
        Tally next = Tally.wrap(word).withTotals(promptTokens, tokens);

        assert(next.promptTokens() == promptTokens && next.tokens() == tokens);
        assert((Tally.unwrap(next) ^ word) & ~TOTALS == 0);
    }

    function check_AskingTouchesNothingElse(uint256 word, uint256 askedAt) external pure {
        Tally tally = Tally.wrap(word);
        if (tally.askedAt() != 0) return;
        Tally next = tally.withAskedAt(askedAt);

        assert(next.askedAt() == askedAt);
        assert((Tally.unwrap(next) ^ word) & ~(uint256(type(uint40).max) << 192) == 0);
    }

    function check_ClosingTouchesNothingElse(uint256 word) external pure {
        Tally next = Tally.wrap(word).asClosed();

        assert(next.closed());
        assert(Tally.unwrap(next) == (word | 1 << 232));
    }

    /// @dev What is packed is read again. So what does not fit is not packed: it reverts.
    function check_PricesAreReadAsPacked(uint256 price, uint256 promptPrice, uint256 account, uint256 createdAt)
        external
        pure
    {
        Prices prices = PricesFields.pack(price, promptPrice, account, createdAt);

        assert(prices.pricePerMillion() == price);
        assert(prices.promptPricePerMillion() == promptPrice);
        assert(prices.account() == account);
        assert(prices.account() == (prices.hostId() << 32 | prices.assetId()));
        assert(prices.createdAt() == createdAt);
    }

    function check_LimitsAreReadAsPacked(address signer, uint256 rate, uint256 claimWindow, uint256 expiresAt)
        external
        pure
    {
        Limits limits = LimitsFields.pack(signer, rate, claimWindow, expiresAt);

        assert(limits.signer() == signer);
        assert(limits.maxTokensPerSecond() == rate);
        assert(limits.claimWindow() == claimWindow);
        assert(limits.expiresAt() == expiresAt);
    }

    /// @dev A job ends at its expiry or when it was asked to, whichever is first, and closes a claim window later.
    function check_AskingOnlyEverBringsTheEndNearer(uint256 word, uint40 askedAt) external pure {
        Limits limits = Limits.wrap(word);
        uint256 endsAt = limits.endsAt(askedAt);

        assert(endsAt <= limits.expiresAt());
        assert(endsAt == limits.expiresAt() || endsAt == askedAt);
        assert(askedAt == 0 || endsAt <= askedAt);
        assert(limits.closesAt(askedAt) == endsAt + limits.claimWindow());
    }

    /// @dev Law 1: whatever is claimed is stale, equal or ahead, and only one of these.
    function check_StaleEqualOrAhead(uint256 word, uint256 promptTokens, uint256 tokens) external pure {
        Tally tally = Tally.wrap(word);
        bool ahead = promptTokens >= tally.promptTokens() && tokens >= tally.tokens()
            && (promptTokens > tally.promptTokens() || tokens > tally.tokens());
        bool stale = tally.isStale(promptTokens, tokens);
        bool equal = tally.isEqual(promptTokens, tokens);

        assert(stale || equal || ahead);
        assert(!(stale && equal) && !(stale && ahead) && !(equal && ahead));
    }
}
