// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IProofSystem} from "./interfaces/IProofSystem.sol";
import {JobRecord} from "./libraries/JobRecord.sol";
import {Limits} from "./libraries/Limits.sol";
import {Prices} from "./libraries/Prices.sol";
import {Pricing} from "./libraries/Pricing.sol";
import {Proof} from "./libraries/Proof.sol";
import {Tally, TallyFields} from "./libraries/Tally.sol";
import {Transfers} from "./libraries/Transfers.sol";
import {LowLevelCall} from "@openzeppelin/contracts/utils/LowLevelCall.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";

/// @title ProofSystem
/// @notice Keeps the jobs and what they have earned, pays claims, and closes jobs. The manual is IProofSystem.
abstract contract ProofSystem is IProofSystem, EIP712, ReentrancyGuardTransient {
    using Pricing for Prices;
    using Proof for bytes;

    /// @dev The claims that a sender makes in one transaction.
    /// @param hostId The sender, as a host.
    /// @param domain The EIP-712 domain separator.
    /// @param account What it is earning for: itself in the asset of the last claim; zero before the first.
    /// @param hostAmount What it has earned there and not been credited with.
    /// @param fee The same of the treasury.
    /// @param reason The error that the last claim was refused with.
    /// @param first The error's first value.
    /// @param second The error's second value.
    struct Run {
        uint256 hostId;
        bytes32 domain;
        uint256 account;
        uint256 hostAmount;
        uint256 fee;
        bytes4 reason;
        uint256 first;
        uint256 second;
    }

    string private constant ONLY_HOST = "Only host can submit checkpoints";

    mapping(uint256 jobId => JobRecord) internal _jobs;

    // Hosts and assets are numbered from 1 at first use and never renumbered, so that a job can name them in 32 bits each.
    // An account is a host in an asset: hostId << 32 | assetId.
    mapping(address host => uint256 hostId) internal _hostIds;
    mapping(uint256 hostId => address host) internal _hosts;
    mapping(address asset => uint256 assetId) internal _assetIds;
    mapping(uint256 assetId => address asset) internal _assets;
    mapping(address host => mapping(address asset => uint256 account)) internal _accounts;

    mapping(uint256 account => uint256 amount) internal _earnings;
    mapping(uint256 assetId => uint256 amount) internal _fees;
    mapping(address payer => mapping(uint256 assetId => uint256 amount)) internal _refunds;

    constructor() EIP712("Tallystick", "1") {}

    /// @inheritdoc IProofSystem
    /// @dev Calls nobody, so it need not hold the guard: it only refuses to run while another entry holds it.
    function submitCheckpoint(uint256 jobId, uint256 tokens, bytes calldata proof) external nonReentrantView {
        Run memory run = _run();

        if (!_settle(run, jobId, tokens, proof)) _revert(run, jobId);

        _credit(run);
    }

    /// @inheritdoc IProofSystem
    function submitCheckpoints(Checkpoint[] calldata checkpoints) external nonReentrant {
        Run memory run = _run();
        uint256[] memory closed;
        uint256 closedCount;

        for (uint256 i; i < checkpoints.length; ++i) {
            Checkpoint calldata row = checkpoints[i];
            (uint256 jobId, uint256 tokens, bytes calldata proof) = (row.jobId, row.tokens, row.proof);

            if (!_settle(run, jobId, tokens, proof)) {
                emit CheckpointSkipped(jobId, run.reason, run.first, run.second);
            } else if (row.complete) {
                JobRecord storage job = _jobs[jobId];
                job.tally = job.tally.asClosed();
                if (closedCount == 0) closed = new uint256[](checkpoints.length);
                closed[closedCount++] = jobId;
            }
        }
        _credit(run);

        for (uint256 i; i < closedCount; ++i) {
            _refund(closed[i]);
        }
    }

    /// @inheritdoc IProofSystem
    function receiptDigest(uint256 jobId, uint64 promptTokens, uint64 tokens, bytes32 transcript)
        external
        view
        returns (bytes32)
    {
        return Proof.digest(_domainSeparatorV4(), jobId, promptTokens, tokens, transcript);
    }

    /// @inheritdoc IProofSystem
    // forge-lint: disable-next-line(mixed-case-function)
    function DOMAIN_SEPARATOR() external view returns (bytes32) {
        return _domainSeparatorV4();
    }

    /// @dev Closes a job that is not closed and sends its rest back.
    function _close(uint256 jobId) internal {
        _jobs[jobId].tally = _jobs[jobId].tally.asClosed();
        _refund(jobId);
    }

    /// @dev A job that exists and is not closed, or a revert.
    function _notClosed(uint256 jobId) internal view returns (JobRecord storage job) {
        job = _existing(jobId);
        if (job.tally.closed()) revert JobClosed(jobId);
    }

    function _existing(uint256 jobId) private view returns (JobRecord storage job) {
        job = _jobs[jobId];
        if (job.tally.deposit() == 0) revert NoSuchJob(jobId);
    }

    function _run() private view returns (Run memory run) {
        run.hostId = _hostIds[msg.sender];
        run.domain = _domainSeparatorV4();
    }

    /// @dev Moves the totals of one job and adds what that earns to `run`. Returns false, with the error in `run` and nothing
    /// changed, if something speaks against the claim: one rule for the single claim, which then reverts, and for the
    /// batch, which goes on. The receipt is looked at here, since a call would cost each row a hundred gas more.
    function _settle(Run memory run, uint256 jobId, uint256 tokens, bytes calldata proof) private returns (bool) {
        if (proof.length < Proof.ATTESTED_LENGTH) return _refuseLength(run, proof, Proof.ATTESTED_LENGTH);
        uint256 promptTokens = proof.claimedPromptTokens();

        JobRecord storage job = _jobs[jobId];
        Tally tally = job.tally;
        if (!tally.live()) return _refuse(run, tally.closed() ? JobClosed.selector : NoSuchJob.selector, jobId, 0);
        if (tally.isStale(promptTokens, tokens)) {
            return _refuse(run, StaleCheckpoint.selector, tally.promptTokens(), tally.tokens());
        }
        if ((promptTokens | tokens) >> TallyFields.TOTAL_BITS != 0) {
            uint256 higher = promptTokens > tokens ? promptTokens : tokens;
            return _refuse(run, DoesNotFit.selector, higher, TallyFields.TOTAL_BITS);
        }
        if (tally.isEqual(promptTokens, tokens)) return _isHost(run, job.prices);

        bytes32 transcript;
        Limits limits = job.limits;
        if (limits.maxTokensPerSecond() == 0) {
            if (!proof.isReceipt()) return _refuseLength(run, proof, Proof.RECEIPT_LENGTH);
            if (promptTokens > proof.signedPromptTokens()) {
                return _refuse(run, AboveReceipt.selector, promptTokens, proof.signedPromptTokens());
            }
            if (tokens > proof.signedTokens()) {
                return _refuse(run, AboveReceipt.selector, tokens, proof.signedTokens());
            }
            address recovered = proof.signer(run.domain, jobId);
            if (recovered != limits.signer()) {
                return _refuse(run, WrongSigner.selector, uint160(recovered), uint160(limits.signer()));
            }
            transcript = proof.transcript();
        } else if (!_isWithinRate(run, limits, tally, job.prices, promptTokens + tokens, proof)) {
            return false;
        }

        // Whose job it is comes late, so that a row that is refused before has one cold slot less to pay for. An account is
        // one host's, so rows that follow in the same one need no second look.
        Prices prices = job.prices;
        if (prices.account() != run.account) {
            if (!_isHost(run, prices)) return false;
            _earnFor(run, prices.account());
        }
        uint256 owed = prices.owed(promptTokens, tokens);
        if (owed > tally.deposit()) return _refuse(run, AboveDeposit.selector, owed, tally.deposit());

        _pay(run, jobId, tokens, promptTokens, job, tally, transcript, prices, owed);
        return true;
    }

    /// @dev Whether the sender is the host of a job with these prices.
    function _isHost(Run memory run, Prices prices) private view returns (bool) {
        return prices.hostId() == run.hostId
            || _refuse(run, NotTheHost.selector, uint160(msg.sender), uint160(_hosts[prices.hostId()]));
    }

    /// @dev Whether a host-attested job can have come to `total` tokens by now.
    function _isWithinRate(
        Run memory run,
        Limits limits,
        Tally tally,
        Prices prices,
        uint256 total,
        bytes calldata proof
    ) private view returns (bool) {
        if (!proof.isAttested()) return _refuseLength(run, proof, Proof.ATTESTED_LENGTH);

        uint256 endsAt = limits.endsAt(tally.askedAt());
        uint256 until = block.timestamp < endsAt ? block.timestamp : endsAt;
        uint256 most = limits.maxTokensPerSecond() * (until - prices.createdAt());
        return total <= most || _refuse(run, AboveRate.selector, total, most);
    }

    function _refuseLength(Run memory run, bytes calldata proof, uint256 expected) private pure returns (bool) {
        return _refuse(run, ProofLength.selector, proof.length, expected);
    }

    /// @dev Keeps the reason for which a claim is refused.
    function _refuse(Run memory run, bytes4 reason, uint256 first, uint256 second) private pure returns (bool) {
        (run.reason, run.first, run.second) = (reason, first, second);
        return false;
    }

    /// @dev Reverts a single claim that was refused. First come the reasons that do not lie in the claim.
    function _revert(Run memory run, uint256 jobId) private view {
        require(_existing(jobId).prices.hostId() == run.hostId, ONLY_HOST);
        _notClosed(jobId);
        LowLevelCall.bubbleRevert(abi.encodeWithSelector(run.reason, run.first, run.second));
    }

    /// @dev Goes over to another account; what was earned for the one before is credited.
    function _earnFor(Run memory run, uint256 account) private {
        _credit(run);
        (run.account, run.hostAmount, run.fee) = (account, 0, 0);
    }

    /// @dev Moves a job on to totals for which `owed` is due, and adds what is new of it to the run.
    function _pay(
        Run memory run,
        uint256 jobId,
        uint256 tokens,
        uint256 promptTokens,
        JobRecord storage job,
        Tally tally,
        bytes32 transcript,
        Prices prices,
        uint256 owed
    ) private {
        uint256 owedBefore = prices.owed(tally.promptTokens(), tally.tokens());
        job.tally = tally.withTotals(promptTokens, tokens);
        // Neither `owed` nor what the host and the treasury have of it can shrink while the totals grow: Pricing says why.
        unchecked {
            uint256 fee = Pricing.fee(owed) - Pricing.fee(owedBefore);
            uint256 hostAmount = owed - owedBefore - fee;
            run.hostAmount += hostAmount;
            run.fee += fee;
            emit CheckpointSettled(jobId, tokens, promptTokens, hostAmount, fee, transcript);
        }
    }

    /// @dev No sum can overflow: a deposit has at most 96 bits, and there are fewer than 2^64 jobs.
    function _credit(Run memory run) private {
        if ((run.hostAmount | run.fee) == 0) return;
        unchecked {
            _earnings[run.account] += run.hostAmount;
            _fees[uint32(run.account)] += run.fee;
        }
    }

    /// @dev Sends the rest of a closed job back to its payer, or keeps it for the payer if that fails. The last thing that
    /// a transaction does with a job: whoever is called finds everything settled and every entry guarded.
    function _refund(uint256 jobId) private {
        JobRecord storage job = _jobs[jobId];
        (Tally tally, Prices prices) = (job.tally, job.prices);
        uint256 owed = prices.owed(tally.promptTokens(), tally.tokens());
        uint256 refund = tally.deposit() - owed;

        emit SessionCompleted(jobId, owed, Pricing.fee(owed), refund);

        if (refund == 0) return;
        (address payer, address asset) = (job.payer, _assets[prices.assetId()]);
        if (!Transfers.offer(asset, payer, refund)) {
            _refunds[payer][prices.assetId()] += refund;
            emit RefundCredited(jobId, payer, asset, refund);
        }
    }
}
