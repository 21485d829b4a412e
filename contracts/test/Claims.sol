// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IJobMarketplace} from "../src/interfaces/IJobMarketplace.sol";
import {IProofSystem} from "../src/interfaces/IProofSystem.sol";
import {Books} from "./Books.sol";

/// @dev Claims of every kind, and which of them are to be paid.
abstract contract Claims is Books {
    /// @dev Totals and what supports them.
    /// @param genuine Whether the proof is of the job's kind and its receipt, if any, by the job's signer.
    struct Claim {
        uint256 jobId;
        uint256 promptTokens;
        uint256 tokens;
        bytes proof;
        bool genuine;
    }

    uint256 private constant STRANGER_KEY = 0x57a6;

    /// @dev One that is to be paid while its job is not closed. The signer may have signed for more.
    function _goodClaim(uint256 seed, uint256 jobId, uint256 x, uint256 y) internal returns (Claim memory good) {
        IJobMarketplace.Job memory job = jobs[jobId];
        (good.jobId, good.genuine) = (jobId, true);
        good.promptTokens = job.promptTokens + _step(seed, x, _mostPromptTokens(job) - job.promptTokens);
        good.tokens = job.tokens + _step(seed >> 8, y, _mostTokens(job, good.promptTokens) - job.tokens);

        _writeReceipt(jobId, good.promptTokens + x % 1000, good.tokens + y % 1000);
        good.proof = _proofOf(good);
    }

    /// @dev All that the latest receipt is good for.
    function _wholeClaim(uint256 jobId) internal view returns (Claim memory whole) {
        IJobMarketplace.Job memory job = jobs[jobId];
        (whole.jobId, whole.genuine) = (jobId, true);
        whole.promptTokens = _least(signed[jobId].promptTokens, _mostPromptTokens(job));
        whole.tokens = _least(signed[jobId].tokens, _mostTokens(job, whole.promptTokens));
        whole.proof = _proofOf(whole);
    }

    /// @dev Nothing, everything, or a part of what is left.
    function _step(uint256 seed, uint256 x, uint256 left) private pure returns (uint256) {
        uint256 kind = _dice(seed, "step", 8);
        if (kind == 0) return 0;
        return kind == 1 ? left : x % (left / 8 + 1);
    }

    /// @dev One that is to be refused, unless its job has nothing to go wrong with.
    function _badClaim(uint256 seed, uint256 jobId, uint256 x, uint256 y) internal returns (Claim memory bad) {
        bad = _goodClaim(seed, jobId, x, y);
        uint256 kind = _dice(seed, "bad", 5);
        if (kind == 0) _makeStale(bad, x);
        if (kind == 1 || kind == 3) _goAboveReceiptOrRate(bad, x % 2 == 0);
        if (kind == 2) _goAboveDeposit(bad);
        bad.proof = _proofOf(bad);
        if (kind == 3) _forge(bad, y % 4);
        if (kind == 4) _cut(bad, x);
    }

    function _makeStale(Claim memory bad, uint256 x) private view {
        Totals memory settled = Totals(jobs[bad.jobId].promptTokens, jobs[bad.jobId].tokens);
        if (settled.tokens != 0 && (settled.promptTokens == 0 || x % 2 == 0)) bad.tokens = x % settled.tokens;
        else if (settled.promptTokens != 0) bad.promptTokens = x % settled.promptTokens;
    }

    function _goAboveReceiptOrRate(Claim memory bad, bool inPrompts) private view {
        IJobMarketplace.Job memory job = jobs[bad.jobId];
        Totals memory most = signed[bad.jobId];
        if (job.maxTokensPerSecond != 0) {
            most = Totals(_possible(job) - bad.tokens, _possible(job) - bad.promptTokens);
        }
        if (inPrompts) bad.promptTokens = most.promptTokens + 1;
        else bad.tokens = most.tokens + 1;
    }

    function _goAboveDeposit(Claim memory bad) private {
        IJobMarketplace.Job memory job = jobs[bad.jobId];
        bad.tokens = 1 + _affordable(job.deposit, job.pricePerMillion, bad.promptTokens * job.promptPricePerMillion);
        _writeReceipt(bad.jobId, bad.promptTokens, bad.tokens);
    }

    /// @dev A receipt for more than was signed: by a stranger, for another job, or over other totals than it says. For an
    /// attested job any at all.
    function _forge(Claim memory bad, uint256 kind) private view {
        (uint256 promptTokens, uint256 tokens) = (bad.promptTokens, bad.tokens);
        bytes memory signature = _sign(
            kind == 0 ? STRANGER_KEY : SIGNER_KEY,
            kind == 1 ? bad.jobId + 1 : bad.jobId,
            kind == 2 ? promptTokens + 1 : promptTokens,
            kind == 3 ? tokens + 1 : tokens
        );
        bad.proof = abi.encodePacked(uint64(promptTokens), uint64(promptTokens), uint64(tokens), TRANSCRIPT, signature);
        bad.genuine = false;
    }

    /// @dev A proof that has lost its end, and more of it than would leave a compact one.
    function _cut(Claim memory bad, uint256 x) private pure {
        bytes memory proof = bad.proof;
        uint256 length = x % (proof.length - 1);
        assembly ("memory-safe") {
            mstore(proof, length)
        }
        bad.genuine = false;
    }

    function _proofOf(Claim memory claimed) private view returns (bytes memory) {
        if (jobs[claimed.jobId].maxTokensPerSecond != 0) return _attested(claimed.promptTokens);
        Totals memory most = signed[claimed.jobId];
        return _proof(claimed.jobId, claimed.promptTokens, most.promptTokens, most.tokens);
    }

    /// @dev Whether a claim by the job's host is to be paid.
    function _isGood(Claim memory claimed) internal view returns (bool) {
        IJobMarketplace.Job memory job = jobs[claimed.jobId];
        if (job.deposit == 0 || _isClosed(job) || claimed.proof.length < 8) return false;
        if (claimed.promptTokens < job.promptTokens || claimed.tokens < job.tokens) return false;
        if (claimed.promptTokens == job.promptTokens && claimed.tokens == job.tokens) return true;
        return claimed.genuine && _isCovered(claimed, job);
    }

    function _isCovered(Claim memory claimed, IJobMarketplace.Job memory job) private view returns (bool) {
        Totals memory most = signed[claimed.jobId];
        (job.promptTokens, job.tokens) = (claimed.promptTokens, claimed.tokens);
        return job.promptTokens <= _least(MAX_TOTAL, most.promptTokens) && job.tokens <= _least(MAX_TOTAL, most.tokens)
            && job.promptTokens + job.tokens <= _possible(job) && _owed(job) <= job.deposit;
    }

    /// @dev A row of any kind for any job, also one that is not there.
    function _anyRow(address sender, uint256 seed, uint256 x, uint256 y)
        internal
        returns (IProofSystem.Checkpoint memory row)
    {
        uint256 jobId = 1 + seed % (jobCount + 1);
        Claim memory any = _dice(seed, "good", 4) == 0 ? _badClaim(seed, jobId, x, y) : _goodClaim(seed, jobId, x, y);
        row = IProofSystem.Checkpoint(jobId, any.tokens, _dice(seed, "complete", 6) == 0, any.proof);
        if (jobs[jobId].host != sender || !_isGood(any)) return row;

        _writeClaim(jobId, any.promptTokens, any.tokens);
        if (row.complete) _writeClosing(jobId);
    }

    function _submission(Claim memory claimed) internal pure returns (bytes memory) {
        return abi.encodeCall(IProofSystem.submitCheckpoint, (claimed.jobId, claimed.tokens, claimed.proof));
    }
}
