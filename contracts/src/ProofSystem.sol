// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IProofSystem} from "./interfaces/IProofSystem.sol";
import {JobRecord, Limits, Prices, Tally} from "./libraries/JobRecord.sol";
import {Pricing} from "./libraries/Pricing.sol";
import {Proof} from "./libraries/Proof.sol";
import {Standing, Totals} from "./libraries/Totals.sol";
import {Transfers} from "./libraries/Transfers.sol";
import {LowLevelCall} from "@openzeppelin/contracts/utils/LowLevelCall.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";

/// @title ProofSystem
/// @notice Keeps the jobs and what they have earned, pays claims, and closes jobs. The manual is IProofSystem.
abstract contract ProofSystem is IProofSystem, EIP712, ReentrancyGuardTransient {
    using Pricing for Prices;
    using Proof for bytes;

    /// @dev What claims add up to, in one asset.
    struct Earned {
        uint32 assetId;
        uint256 hostAmount;
        uint256 fee;
    }

    string private constant ONLY_HOST = "Only host can submit checkpoints";
    uint256 private constant TOTAL_BITS = 48;

    mapping(uint256 jobId => JobRecord) internal _jobs;

    // Hosts and assets are numbered from 1 at first use and never renumbered, so that a job can name them in 32 bits.
    mapping(address host => uint32) internal _hostIds;
    mapping(uint32 hostId => address) internal _hosts;
    mapping(address asset => uint32) internal _assetIds;
    mapping(uint32 assetId => address) internal _assets;

    mapping(uint32 hostId => mapping(uint32 assetId => uint256)) internal _earnings;
    mapping(uint32 assetId => uint256) internal _fees;
    mapping(address payer => mapping(uint32 assetId => uint256)) internal _refunds;

    constructor() EIP712("Tallystick", "1") {}

    /// @inheritdoc IProofSystem
    function submitCheckpoint(uint256 jobId, uint256 tokens, bytes calldata proof) external nonReentrant {
        uint32 hostId = _existing(jobId).prices.hostId;
        require(_hostIds[msg.sender] == hostId, ONLY_HOST);

        (Earned memory earned, bytes memory refusal) = _settle(hostId, jobId, tokens, proof);
        if (refusal.length != 0) LowLevelCall.bubbleRevert(refusal);

        _credit(hostId, earned);
    }

    /// @inheritdoc IProofSystem
    function submitCheckpoints(Checkpoint[] calldata checkpoints) external nonReentrant {
        uint32 hostId = _hostIds[msg.sender];
        uint256[] memory closed = new uint256[](checkpoints.length);
        uint256 closedCount;
        Earned memory sum;

        for (uint256 i; i < checkpoints.length; ++i) {
            Checkpoint calldata row = checkpoints[i];

            (Earned memory earned, bytes memory refusal) = _settle(hostId, row.jobId, row.tokens, row.proof);
            if (refusal.length != 0) {
                emit CheckpointSkipped(row.jobId, refusal);
                continue;
            }

            sum = _add(hostId, sum, earned);
            if (row.complete) {
                _jobs[row.jobId].tally.closed = true;
                closed[closedCount++] = row.jobId;
            }
        }
        _credit(hostId, sum);

        for (uint256 i; i < closedCount; ++i) {
            _refund(closed[i]);
        }
    }

    /// @inheritdoc IProofSystem
    function receiptDigest(uint256 jobId, uint64 promptTokens, uint64 tokens, bytes32 transcript)
        public
        view
        returns (bytes32)
    {
        return _hashTypedDataV4(Proof.structHash(jobId, promptTokens, tokens, transcript));
    }

    /// @inheritdoc IProofSystem
    // forge-lint: disable-next-line(mixed-case-function)
    function DOMAIN_SEPARATOR() external view returns (bytes32) {
        return _domainSeparatorV4();
    }

    /// @dev Closes a job that is not closed and sends its rest back.
    function _close(uint256 jobId) internal {
        _jobs[jobId].tally.closed = true;
        _refund(jobId);
    }

    /// @dev A job that exists, or a revert.
    function _existing(uint256 jobId) internal view returns (JobRecord storage job) {
        job = _jobs[jobId];
        if (job.tally.deposit == 0) revert NoSuchJob(jobId);
    }

    /// @dev Moves the totals of one job, unless something speaks against it: then nothing is changed and `refusal` is the
    /// error. The caller credits what was earned. One rule for the single claim, which reverts with the refusal, and for
    /// the batch, which reports it.
    function _settle(uint32 hostId, uint256 jobId, uint256 tokens, bytes calldata proof)
        private
        returns (Earned memory earned, bytes memory refusal)
    {
        Tally memory tally = _jobs[jobId].tally;
        Standing standing;
        (standing, refusal) = _stand(jobId, tally, tokens, proof);
        if (refusal.length != 0) return (earned, refusal);

        // The host comes second: a stale row of a batch is to cost one cold slot, not two.
        Prices memory prices = _jobs[jobId].prices;
        if (prices.hostId != hostId) return (earned, abi.encodeWithSignature("Error(string)", ONLY_HOST));

        earned.assetId = prices.assetId;
        if (standing == Standing.Equal) return (earned, refusal);

        bytes32 transcript;
        (transcript, refusal) = _verify(jobId, tally.askedAt, prices.createdAt, tokens, proof);
        if (refusal.length != 0) return (earned, refusal);

        uint256 promptTokens = proof.claimedPromptTokens();
        uint256 owed = prices.owed(promptTokens, tokens);
        if (owed > tally.deposit) return (earned, _error(AboveDeposit.selector, owed, tally.deposit));

        uint256 owedBefore = prices.owed(tally.promptTokens, tally.tokens);
        earned.fee = Pricing.fee(owed) - Pricing.fee(owedBefore);
        earned.hostAmount = owed - owedBefore - earned.fee;
        // `_stand` has refused totals of more than 48 bits.
        // forge-lint: disable-next-line(unsafe-typecast)
        (tally.tokens, tally.promptTokens) = (uint48(tokens), uint48(promptTokens));
        _jobs[jobId].tally = tally;

        emit CheckpointSettled(jobId, msg.sender, tokens, promptTokens, earned.hostAmount, earned.fee, transcript);
    }

    /// @dev Where a claim stands, by what the job's first slot tells.
    function _stand(uint256 jobId, Tally memory tally, uint256 tokens, bytes calldata proof)
        private
        pure
        returns (Standing standing, bytes memory refusal)
    {
        if (!proof.isReceipt() && !proof.isAttested()) {
            return (standing, _error(ProofLength.selector, proof.length));
        }
        if (tally.deposit == 0) return (standing, _error(NoSuchJob.selector, jobId));
        if (tally.closed) return (standing, _error(JobClosed.selector, jobId));

        uint256 promptTokens = proof.claimedPromptTokens();
        standing = Totals.standing(tally.promptTokens, tally.tokens, promptTokens, tokens);
        if (standing == Standing.Stale) {
            refusal = _error(StaleCheckpoint.selector, tally.promptTokens, tally.tokens, promptTokens, tokens);
        } else if (tokens >> TOTAL_BITS != 0) {
            refusal = _error(DoesNotFit.selector, tokens, TOTAL_BITS);
        } else if (promptTokens >> TOTAL_BITS != 0) {
            refusal = _error(DoesNotFit.selector, promptTokens, TOTAL_BITS);
        }
    }

    /// @dev Whether the claim is signed for or, in a host-attested job, within its rate.
    function _verify(uint256 jobId, uint256 askedAt, uint256 createdAt, uint256 tokens, bytes calldata proof)
        private
        view
        returns (bytes32 transcript, bytes memory refusal)
    {
        Limits memory limits = _jobs[jobId].limits;
        if (limits.maxTokensPerSecond == 0) return _verifyReceipt(jobId, limits.signer, tokens, proof);
        refusal = _verifyRate(limits, askedAt, createdAt, tokens, proof);
    }

    function _verifyReceipt(uint256 jobId, address signer, uint256 tokens, bytes calldata proof)
        private
        view
        returns (bytes32 transcript, bytes memory refusal)
    {
        if (!proof.isReceipt()) return (transcript, _error(ProofLength.selector, proof.length));

        uint64 signedPromptTokens;
        uint64 signedTokens;
        (signedPromptTokens, signedTokens, transcript) = proof.receipt();
        uint256 promptTokens = proof.claimedPromptTokens();
        if (promptTokens > signedPromptTokens || tokens > signedTokens) {
            refusal = _error(AboveReceipt.selector, signedPromptTokens, signedTokens, promptTokens, tokens);
            return (transcript, refusal);
        }

        address recovered = proof.recover(receiptDigest(jobId, signedPromptTokens, signedTokens, transcript));
        if (recovered != signer) {
            refusal = _error(WrongSigner.selector, uint256(uint160(recovered)), uint256(uint160(signer)));
        }
    }

    function _verifyRate(Limits memory limits, uint256 askedAt, uint256 createdAt, uint256 tokens, bytes calldata proof)
        private
        view
        returns (bytes memory refusal)
    {
        if (!proof.isAttested()) return _error(ProofLength.selector, proof.length);

        uint256 endsAt = limits.endsAt(askedAt);
        uint256 until = block.timestamp < endsAt ? block.timestamp : endsAt;
        uint256 most = limits.maxTokensPerSecond * (until - createdAt);
        uint256 total = tokens + proof.claimedPromptTokens();
        if (total > most) refusal = _error(AboveRate.selector, total, most);
    }

    /// @dev Adds one row to the sum of a batch; what was summed in another asset is credited first.
    function _add(uint32 hostId, Earned memory sum, Earned memory earned) private returns (Earned memory) {
        if (sum.assetId != earned.assetId) {
            _credit(hostId, sum);
            return earned;
        }
        sum.hostAmount += earned.hostAmount;
        sum.fee += earned.fee;
        return sum;
    }

    function _credit(uint32 hostId, Earned memory earned) private {
        if (earned.hostAmount != 0) _earnings[hostId][earned.assetId] += earned.hostAmount;
        if (earned.fee != 0) _fees[earned.assetId] += earned.fee;
    }

    /// @dev Sends the rest of a closed job back to its payer, or keeps it for the payer if that fails. The last thing that
    /// a transaction does with a job: the receiver finds everything settled, and every entry guarded.
    function _refund(uint256 jobId) private {
        JobRecord storage job = _jobs[jobId];
        Tally memory tally = job.tally;
        Prices memory prices = job.prices;
        uint256 owed = prices.owed(tally.promptTokens, tally.tokens);
        uint256 refund = tally.deposit - owed;

        emit SessionCompleted(jobId, owed, Pricing.fee(owed), refund);

        if (refund == 0) return;
        address asset = _assets[prices.assetId];
        if (!Transfers.offer(asset, job.payer, refund)) {
            _refunds[job.payer][prices.assetId] += refund;
            emit RefundCredited(jobId, job.payer, asset, refund);
        }
    }

    function _error(bytes4 selector, uint256 value) private pure returns (bytes memory) {
        return abi.encodeWithSelector(selector, value);
    }

    function _error(bytes4 selector, uint256 first, uint256 second) private pure returns (bytes memory) {
        return abi.encodeWithSelector(selector, first, second);
    }

    function _error(bytes4 selector, uint256 settledPrompt, uint256 settled, uint256 prompt, uint256 tokens)
        private
        pure
        returns (bytes memory)
    {
        return abi.encodeWithSelector(selector, settledPrompt, settled, prompt, tokens);
    }
}
