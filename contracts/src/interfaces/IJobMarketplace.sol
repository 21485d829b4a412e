// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IProofSystem} from "./IProofSystem.sol";

/// @title IJobMarketplace
/// @notice Escrow for language-model tokens. A payer opens a job with a deposit, a host claims what was counted, the rest
/// goes back. What a job is worth goes nine tenths to the host and one tenth to the treasury.
///
/// Nobody owns the contract: it has no proxy, no pause and no setting that can change.
///
/// A job is *open* until payer or signer asks to complete it, then *completing*, and *closed* once its rest was sent back:
///
///     by the host     completeSession, or a checkpoint marked `complete`, at any time
///     by anybody      reclaim, from `closesAt` on
///
/// `closesAt` is `claimWindow` after the expiry, or after the moment at which payer or signer asked to complete, if that
/// was earlier. Until it is closed the host may claim, whatever the time.
///
/// Assets are ETH (the zero address) or an ERC-20. The contract is solvent for assets whose balances change by transfers
/// alone; a token that charges for transfers is refused when it comes in, one that rebases is at its users' risk, and no
/// token can touch the balances of another.
interface IJobMarketplace is IProofSystem {
    /// @notice What payer and host agree on. Fixed for the job's life.
    /// @param host Who serves and claims. Must be registered.
    /// @param asset What is paid in: an ERC-20, or zero for ETH.
    /// @param deposit What is put in escrow, in base units of the asset; below 2^96.
    /// @param pricePerMillion Base units for a million generated tokens; below 2^80.
    /// @param promptPricePerMillion Base units for a million prompt tokens; below 2^80.
    /// @param signer The key that signs receipts; neither zero nor the host.
    /// @param maxTokensPerSecond Zero for a receipted job. Otherwise the job is host-attested and this is its rate.
    /// @param claimWindow Seconds that the host has for its last claim, 1 hour to 30 days.
    /// @param expiresAt When the job ends by itself; in the future, at most 365 days ahead.
    /// @param checkpointInterval Generated tokens to an interval, above zero. Announced, not read by the contract.
    /// @param modelId Which model is to answer. Announced, not read by the contract.
    struct Terms {
        address host;
        address asset;
        uint256 deposit;
        uint256 pricePerMillion;
        uint256 promptPricePerMillion;
        address signer;
        uint256 maxTokensPerSecond;
        uint256 claimWindow;
        uint256 expiresAt;
        uint256 checkpointInterval;
        bytes32 modelId;
    }

    /// @notice A payer's EIP-3009 authorization, for whoever brings it to the chain.
    /// @param from The payer: whose money it is, and who has signed.
    /// @param validAfter Not before this moment.
    /// @param validBefore Only before this moment.
    /// @param signature The payer's over the token's `ReceiveWithAuthorization`: 65 bytes of a key, or what the payer's
    /// contract takes by ERC-1271, if the token knows of such.
    struct Authorization {
        address from;
        uint256 validAfter;
        uint256 validBefore;
        bytes signature;
    }

    /// @notice Where a job is in its life.
    enum Status {
        None,
        Open,
        Completing,
        Closed
    }

    /// @notice All that the contract knows about a job.
    /// @param payer Who owns the deposit.
    /// @param host Who serves and claims.
    /// @param asset What is paid in; zero is ETH.
    /// @param signer The key that signs receipts.
    /// @param deposit What was put in escrow, top-ups included.
    /// @param pricePerMillion Base units for a million generated tokens.
    /// @param promptPricePerMillion Base units for a million prompt tokens.
    /// @param maxTokensPerSecond Zero for a receipted job.
    /// @param claimWindow Seconds that the host has for its last claim.
    /// @param createdAt When the job was opened.
    /// @param expiresAt When the job ends by itself.
    /// @param askedAt When payer or signer asked to complete it; zero if neither has.
    /// @param closesAt From when on anybody may send the rest back.
    /// @param tokens The settled total of generated tokens.
    /// @param promptTokens The settled total of prompt tokens.
    /// @param owed What the settled totals are worth.
    /// @param fee The treasury's part of `owed`.
    /// @param status Where the job is in its life.
    struct Job {
        address payer;
        address host;
        address asset;
        address signer;
        uint256 deposit;
        uint256 pricePerMillion;
        uint256 promptPricePerMillion;
        uint256 maxTokensPerSecond;
        uint256 claimWindow;
        uint256 createdAt;
        uint256 expiresAt;
        uint256 askedAt;
        uint256 closesAt;
        uint256 tokens;
        uint256 promptTokens;
        uint256 owed;
        uint256 fee;
        Status status;
    }

    /// @notice A job was opened. Tells what the contract does not keep, and by whose key its opener knows it; `getJob` has
    /// the rest of its terms.
    /// @param jobId The job.
    /// @param payer Who owns the deposit.
    /// @param host Who serves and claims.
    /// @param signer The key that signs receipts.
    /// @param checkpointInterval Generated tokens to an interval.
    /// @param modelId Which model is to answer.
    event JobCreated(
        uint256 indexed jobId,
        address indexed payer,
        address indexed host,
        address signer,
        uint256 checkpointInterval,
        bytes32 modelId
    );

    /// @notice A job was opened by authorization, and who brought that earned `relayFee` of the job's asset. Not logged when
    /// there was no fee.
    event JobRelayed(uint256 indexed jobId, address indexed relayer, uint256 relayFee);

    /// @notice `amount` was added to the deposit, which is now `deposit`.
    event JobToppedUp(uint256 indexed jobId, uint256 amount, uint256 deposit);

    /// @notice Payer or signer asked to complete the job.
    /// @param jobId The job.
    /// @param by Who asked.
    /// @param closesAt From when on anybody may send the rest back.
    event CompletionRequested(uint256 indexed jobId, address by, uint256 closesAt);

    /// @notice `owner` was paid out.
    /// @param owner Whose balance it was.
    /// @param asset What was paid.
    /// @param to Who received it.
    /// @param refunds The part that was refunds kept for `owner` as a payer.
    /// @param earnings The part that `owner` earned as a host.
    event Withdrawn(
        address indexed owner, address indexed asset, address indexed to, uint256 refunds, uint256 earnings
    );

    /// @notice The treasury was paid out.
    event TreasuryWithdrawn(address indexed asset, address indexed to, uint256 amount);

    /// @notice The constructor was given a zero address.
    error ZeroAddress();

    /// @notice `host` is not registered, so it takes no new jobs.
    error HostNotRegistered(address host);

    /// @notice `signer` is zero or the host.
    error InvalidSigner(address signer);

    /// @notice A deposit or top-up is above zero.
    error ZeroAmount();

    /// @notice A checkpoint interval is above zero.
    error ZeroCheckpointInterval();

    /// @notice The claim window is outside of `least` to `most` seconds.
    error ClaimWindowOutOfRange(uint256 claimWindow, uint256 least, uint256 most);

    /// @notice The expiry is not after `present` or is after `latest`.
    error ExpiryOutOfRange(uint256 expiresAt, uint256 present, uint256 latest);

    /// @notice The ETH sent with the call is not what the call needs (none, when the asset is an ERC-20).
    error WrongValue(uint256 expected, uint256 sent);

    /// @notice The token moved another amount than it was asked to.
    error WrongAmountReceived(uint256 expected, uint256 received);

    /// @notice ETH cannot be paid in by authorization.
    error AuthorizationInETH();

    /// @notice The relay fee leaves nothing of the deposit.
    error RelayFeeTakesAll(uint256 relayFee, uint256 deposit);

    /// @notice Only the payer may do this.
    error NotThePayer(address caller, address payer);

    /// @notice Only host, payer and signer may complete a job.
    error NotAParty(uint256 jobId, address caller);

    /// @notice Completion was asked for before; the rest can be reclaimed from `closesAt` on.
    error AlreadyCompleting(uint256 jobId, uint256 closesAt);

    /// @notice The job ended by itself at `expiresAt`.
    error JobExpired(uint256 jobId, uint256 expiresAt);

    /// @notice The host may still claim: the rest can be reclaimed from `closesAt` on.
    error NotYetReclaimable(uint256 jobId, uint256 closesAt);

    /// @notice `owner` has nothing in `asset` that this call could pay out.
    error NothingToWithdraw(address owner, address asset);

    /// @notice The earnings of the sender belong to its payout address; `withdrawFor` sends them there.
    error PayoutElsewhere(address payout);

    /// @notice Neither the zero address nor this contract can receive.
    error InvalidReceiver(address to);

    /// @notice Only the treasury may do this.
    error NotTheTreasury(address caller, address treasury);

    /// @notice Opens a job with the sender as its payer.
    /// @dev For ETH send exactly the deposit along. For an ERC-20 approve this contract first and send no ETH.
    /// Reverts rather than truncate a value that does not fit its storage.
    /// @param terms What payer and host agree on.
    /// @return jobId Counts from 1.
    function createJob(Terms calldata terms) external payable returns (uint256 jobId);

    /// @notice Opens a job of `auth.from`, who need not have any ETH: anybody may send this, and earns `relayFee`.
    /// @dev Takes exactly `terms.deposit` by the token's `receiveWithAuthorization`; `relayFee` of that goes to the sender
    /// and the rest is the job's deposit. The authorization is over that amount, to this contract, with `openNonce` of
    /// everything else as its nonce, so that one signature binds the money and the terms, and whoever sends it can change
    /// neither. The token uses a nonce once, so that opening twice on equal terms takes another `salt`.
    /// @param terms What payer and host agree on. The asset is an ERC-20 with EIP-3009 for signatures of any length.
    /// @param relayFee What the sender earns, in base units of the asset; less than the deposit.
    /// @param salt Anything that makes the payer's nonce one of its own.
    /// @param auth The payer's authorization.
    /// @return jobId As of `createJob`.
    function createJobWithAuthorization(
        Terms calldata terms,
        uint256 relayFee,
        bytes32 salt,
        Authorization calldata auth
    ) external returns (uint256 jobId);

    /// @notice Adds to the deposit of a job that is open and not past its expiry. Only its payer.
    /// @param jobId The job.
    /// @param amount What to add, in base units of the job's asset.
    function topUp(uint256 jobId, uint256 amount) external payable;

    /// @notice Adds to the deposit of a job as `topUp` does. Anybody may send this; only the job's payer can authorize it.
    /// @param jobId The job.
    /// @param amount What to add, in base units of the job's asset.
    /// @param salt Anything that makes the payer's nonce one of its own.
    /// @param auth The payer's authorization over `amount`, to this contract, with `topUpNonce` as its nonce.
    function topUpWithAuthorization(uint256 jobId, uint256 amount, bytes32 salt, Authorization calldata auth) external;

    /// @notice Ends a job.
    /// @dev By the host: closes it now, claims nothing more, and sends the rest back. By payer or signer: the host has
    /// `claimWindow` seconds for its last claim, after which anybody may `reclaim`; this works once.
    function completeSession(uint256 jobId) external;

    /// @notice Closes a job and sends the rest back to its payer, from `closesAt` on. By anybody.
    function reclaim(uint256 jobId) external;

    /// @notice Pays the sender's own balance to `to`: its refunds as a payer and its earnings as a host.
    /// @dev Refunds are always the sender's. Earnings go along only while the sender is its own payout address; they stay
    /// otherwise, and when there is nothing but such earnings it reverts with `PayoutElsewhere`.
    function withdraw(address asset, address to) external;

    /// @notice Sends what is kept for `owner` to where it belongs. By anybody.
    /// @dev Earnings go to the owner's payout address. Refunds go along only while that is the owner itself: they were
    /// the owner's money as a payer, and a payout address has no part in them. So neither of two different addresses can
    /// take, or by refusing a transfer hold up, what is the other's.
    function withdrawFor(address owner, address asset) external;

    /// @notice Pays the treasury's balance to `to`. Only the treasury.
    function withdrawTreasury(address asset, address to) external;

    /// @notice The EIP-3009 nonce that lets a job be opened on `terms`:
    /// `keccak256(abi.encode(OPEN_TYPEHASH, this contract, chain id, terms, relayFee, salt))`.
    function openNonce(Terms calldata terms, uint256 relayFee, bytes32 salt) external view returns (bytes32);

    /// @notice The EIP-3009 nonce that lets a deposit be added to:
    /// `keccak256(abi.encode(TOP_UP_TYPEHASH, this contract, chain id, jobId, amount, salt))`.
    function topUpNonce(uint256 jobId, uint256 amount, bytes32 salt) external view returns (bytes32);

    /// @notice A job, with what follows from it. All zero, with status `None`, when there is none.
    function getJob(uint256 jobId) external view returns (Job memory);

    /// @notice How many jobs there have been; the last one's id.
    function jobCount() external view returns (uint256);

    /// @notice What is kept for `owner`.
    /// @return refunds Refunds that could not be sent to it as a payer.
    /// @return earnings What it earned as a host; it goes to its payout address.
    function balanceOf(address owner, address asset) external view returns (uint256 refunds, uint256 earnings);

    /// @notice What the treasury can withdraw.
    function treasuryBalance(address asset) external view returns (uint256);

    /// @notice Where hosts register and name their payout addresses.
    function registry() external view returns (address);

    /// @notice Who receives a tenth of what jobs are worth.
    function treasury() external view returns (address);
}
