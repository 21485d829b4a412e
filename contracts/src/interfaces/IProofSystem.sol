// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

/// @title IProofSystem
/// @notice How a host claims tokens, and what it is paid for them.
///
/// A job has two totals, `promptTokens` and `tokens`, which only ever grow. A claim names new totals, never an increment.
/// What the host has been owed is always
///
///     owed = (tokens * pricePerMillion + promptTokens * promptPricePerMillion) / 1_000_000      rounded down, once
///     fee  = owed / 10                                                                          rounded down, once
///
/// on the totals, so a claim pays what the new totals are worth minus what the old ones were, and neither the number of
/// claims nor their order changes what anybody gets. Rounding favours the payer over the host, and the host over the
/// treasury, by less than one base unit of the asset a job.
///
/// A claim is *ahead* when neither total is lower than the settled one and one is higher; *equal* when both are the same,
/// which is no error and pays nothing; anything else is *stale*.
///
/// `proof` is packed, big-endian. For a receipted job (`maxTokensPerSecond == 0`) it is 121 or 120 bytes:
///
///     offset  bytes
///          0      8  promptTokens claimed
///          8      8  promptTokens signed
///         16      8  tokens signed
///         24     32  transcript
///         56     65  signature r, s, v (v is 27 or 28, s in the lower half), or 64 bytes in the EIP-2098 form
///
/// The signature is the signer's over the EIP-712 message
/// `Receipt(uint256 jobId,uint64 promptTokens,uint64 tokens,bytes32 transcript)` in the domain
/// `{name: "Tallystick", version: "1", chainId, verifyingContract}`. A receipt is a ceiling: each claimed total is at
/// most the signed one, and one receipt serves for any number of claims below it.
///
/// For a host-attested job (`maxTokensPerSecond > 0`) `proof` is the 8 bytes of the claimed `promptTokens`, and the two
/// totals together are at most `maxTokensPerSecond` times the seconds from the job's creation to now, its expiry, or the
/// moment at which payer or signer asked to complete it, whichever came first.
interface IProofSystem {
    /// @notice One claim of many.
    /// @param jobId The job.
    /// @param tokens The total of generated tokens claimed, below 2^48.
    /// @param complete Whether to close the job and send the rest back once the claim is paid.
    /// @param proof As for `submitCheckpoint`.
    struct Checkpoint {
        uint256 jobId;
        uint256 tokens;
        bool complete;
        bytes proof;
    }

    /// @notice A claim was ahead and has been paid.
    /// @param jobId The job.
    /// @param tokens The job's new total of generated tokens.
    /// @param promptTokens The job's new total of prompt tokens.
    /// @param hostAmount What this claim added to the host's earnings, in base units of the job's asset.
    /// @param fee What this claim added to the treasury, in base units of the job's asset.
    /// @param transcript The transcript hash in the receipt; zero in a host-attested job.
    event CheckpointSettled(
        uint256 indexed jobId, uint256 tokens, uint256 promptTokens, uint256 hostAmount, uint256 fee, bytes32 transcript
    );

    /// @notice A row of a batch was refused and left out; the other rows are not affected.
    /// @dev `reason`, `first` and `second` one after the other are the error as a revert would carry it, but for a zero
    /// word at the end of an error that has one value only.
    /// @param jobId The job that the row named.
    /// @param reason The selector of one of the errors below.
    /// @param first The error's first value.
    /// @param second The error's second value, or zero.
    event CheckpointSkipped(uint256 indexed jobId, bytes4 reason, uint256 first, uint256 second);

    /// @notice A job was closed. `owed + refund` is its deposit.
    /// @param jobId The job.
    /// @param owed What its totals were worth, in base units of its asset: earned by host and treasury together.
    /// @param fee The treasury's part of `owed`, in base units.
    /// @param refund What went back to the payer, or is kept for it, in base units.
    event SessionCompleted(uint256 indexed jobId, uint256 owed, uint256 fee, uint256 refund);

    /// @notice The payer could not be sent its refund, which is kept for it to withdraw.
    /// @param jobId The job.
    /// @param payer Whose refund it is.
    /// @param asset What it is paid in; zero is ETH.
    /// @param amount How much, in base units of the asset.
    event RefundCredited(uint256 indexed jobId, address indexed payer, address indexed asset, uint256 amount);

    /// @notice There is no job `jobId`.
    /// @param jobId What was asked for.
    error NoSuchJob(uint256 jobId);

    /// @notice Job `jobId` is closed: its rest has gone back to the payer.
    /// @param jobId The job.
    error JobClosed(uint256 jobId);

    /// @notice The claim is behind the settled totals in at least one of the two.
    /// @param settledPromptTokens The settled total of prompt tokens.
    /// @param settledTokens The settled total of generated tokens.
    error StaleCheckpoint(uint256 settledPromptTokens, uint256 settledTokens);

    /// @notice The job is another host's. In a batch only: `submitCheckpoint` says it in words.
    /// @param caller Who sent the batch.
    /// @param host The job's host.
    error NotTheHost(address caller, address host);

    /// @notice The proof is not as long as the job's kind of proof.
    /// @param length Its length, in bytes.
    /// @param expected In bytes: 8 in a host-attested job and for a proof too short for any; 121, or one less, in a
    /// receipted job.
    error ProofLength(uint256 length, uint256 expected);

    /// @notice One of the two claimed totals is above the signed one.
    /// @param claimed The claimed total: of prompt tokens if that is too high, otherwise of generated ones.
    /// @param signed The same total in the receipt.
    error AboveReceipt(uint256 claimed, uint256 signed);

    /// @notice The receipt was not signed by the job's signer, or for another job, or on another chain.
    /// @param recovered Who the signature says has signed; zero when it is no valid signature at all.
    /// @param signer The job's signer.
    error WrongSigner(address recovered, address signer);

    /// @notice The totals of a host-attested job are above what its rate allows by now.
    /// @param total Prompt and generated tokens claimed, together.
    /// @param most The most that can be claimed at this moment, in tokens.
    error AboveRate(uint256 total, uint256 most);

    /// @notice The claimed totals are worth more than the deposit.
    /// @param owed What they are worth, in base units of the job's asset.
    /// @param deposit What is in escrow, top-ups included, in base units.
    error AboveDeposit(uint256 owed, uint256 deposit);

    /// @notice `value` needs more than `bits` bits.
    /// @param value What does not fit.
    /// @param bits How many bits there are for it.
    error DoesNotFit(uint256 value, uint256 bits);

    /// @notice The transaction has too little gas left to give the refund its 100 000 and still finish.
    /// @param left Gas left.
    /// @param needed Gas needed at that point: 180 000.
    error RefundNeedsGas(uint256 left, uint256 needed);

    /// @notice Claims new totals for a job and is paid the difference: nine tenths to the host, one to the treasury.
    /// @dev Only the job's host, or it reverts with the string "Only host can submit checkpoints". An equal claim changes
    /// nothing, and its proof may be anything that begins with the 8 bytes of `promptTokens`. Time does not end the right
    /// to claim; only closing the job does.
    /// @param jobId The job.
    /// @param tokens The total of generated tokens claimed, below 2^48.
    /// @param proof The rest of the claim and what supports it, as described above.
    function submitCheckpoint(uint256 jobId, uint256 tokens, bytes calldata proof) external;

    /// @notice Claims totals for many jobs of the sender, and closes those marked `complete`.
    /// @dev A row that `submitCheckpoint` would refuse is left out, with `CheckpointSkipped`. A row that is equal pays
    /// nothing and, if marked, still closes its job. Refunds are sent after every row has been paid, and each can cost
    /// the sender as much gas as its receiver likes to burn, up to 100 000: see `RefundNeedsGas`.
    /// Earnings are written once for each run of rows in one asset, so put rows of the same asset next to each other.
    /// @param checkpoints The rows, claimed in this order.
    function submitCheckpoints(Checkpoint[] calldata checkpoints) external;

    /// @notice The EIP-712 digest that a signer signs to acknowledge the given totals.
    /// @param jobId The job.
    /// @param promptTokens The total of prompt tokens. More than 48 bits can be signed, and never be claimed.
    /// @param tokens The total of generated tokens. More than 48 bits can be signed, and never be claimed.
    /// @param transcript The transcript hash.
    /// @return What is signed.
    function receiptDigest(uint256 jobId, uint64 promptTokens, uint64 tokens, bytes32 transcript)
        external
        view
        returns (bytes32);

    /// @notice The EIP-712 domain separator on this chain.
    /// @return What `receiptDigest` is made with; it changes if the chain's id does.
    // forge-lint: disable-next-line(mixed-case-function)
    function DOMAIN_SEPARATOR() external view returns (bytes32);
}
