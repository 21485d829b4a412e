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
/// Amounts are in base units of an asset (wei, for ETH), moments in Unix seconds, totals in tokens of the model.
///
/// Assets are ETH (the zero address) or an ERC-20. The contract is solvent for a token whose `transfer` of an amount
/// takes exactly that from the sender and gives exactly that to the receiver, and whose balances change in no other
/// way. A token that brings in less or more than it was asked for is refused. One that takes more from its sender than
/// it delivers, one that rebases, and one whose owner can move balances cannot be told from outside: such a token gets
/// in, and what is missing is missing to other jobs in the same token, which are paid first come, first served. No
/// token can touch the balances of another asset. So before they agree on an asset, payer and host look at the token's
/// code, at who can replace it, and at whether its transfers cost anybody anything; this contract has no list.
interface IJobMarketplace is IProofSystem {
    /// @notice What payer and host agree on. Fixed for the job's life.
    /// @param host Who serves and claims. Must be registered.
    /// @param asset What is paid in: an ERC-20, or zero for ETH.
    /// @param deposit What the payer puts in, in base units of the asset. Put in escrow is all of it, less the relay
    /// fee if there is one: above zero and below 2^96.
    /// @param pricePerMillion Base units for a million generated tokens; below 2^80.
    /// @param promptPricePerMillion Base units for a million prompt tokens; below 2^80.
    /// @param signer The key that signs receipts; neither zero nor the host.
    /// @param maxTokensPerSecond Zero for a receipted job. Otherwise the job is host-attested and this is its rate, in
    /// prompt and generated tokens a second, together; below 2^32.
    /// @param claimWindow Seconds that the host has for its last claim, 1 hour to 30 days.
    /// @param expiresAt When the job ends by itself, in Unix seconds; later than now, at most 365 days ahead, below
    /// 2^32.
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
    /// @param validAfter Good later than this moment, in Unix seconds; at this very second the token still refuses it.
    /// @param validBefore Good earlier than this moment, in Unix seconds; at this very second the token refuses it.
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
        /// There is no such job.
        None,
        /// Nobody has asked to complete it. It stays so past its expiry, and past `closesAt`, until somebody closes it.
        Open,
        /// Payer or signer has asked to complete it, and it is not closed. The host may still claim.
        Completing,
        /// The rest has gone back, or is kept for the payer to withdraw. Nothing changes any more.
        Closed
    }

    /// @notice All that the contract knows about a job.
    /// @param payer Who owns the deposit.
    /// @param host Who serves and claims.
    /// @param asset What is paid in; zero is ETH.
    /// @param signer The key that signs receipts.
    /// @param deposit What was put in escrow, top-ups included, in base units of the asset; below 2^96.
    /// @param pricePerMillion Base units for a million generated tokens; below 2^80.
    /// @param promptPricePerMillion Base units for a million prompt tokens; below 2^80.
    /// @param maxTokensPerSecond Zero for a receipted job; otherwise tokens a second, below 2^32.
    /// @param claimWindow Seconds that the host has for its last claim, 1 hour to 30 days.
    /// @param createdAt When the job was opened, in Unix seconds.
    /// @param expiresAt When the job ends by itself, in Unix seconds.
    /// @param askedAt When payer or signer asked to complete it, in Unix seconds; zero if neither has.
    /// @param closesAt From when on anybody may send the rest back, in Unix seconds.
    /// @param tokens The settled total of generated tokens, below 2^48.
    /// @param promptTokens The settled total of prompt tokens, below 2^48.
    /// @param owed What the settled totals are worth, in base units of the asset; at most the deposit.
    /// @param fee The treasury's part of `owed`, in base units of the asset.
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
    /// @param checkpointInterval Generated tokens to an interval, above zero.
    /// @param modelId Which model is to answer.
    event JobCreated(
        uint256 indexed jobId,
        address indexed payer,
        address indexed host,
        address signer,
        uint256 checkpointInterval,
        bytes32 modelId
    );

    /// @notice A job was opened by authorization, and who brought that earned something. Not logged when there was no
    /// fee.
    /// @param jobId The job.
    /// @param relayer Who sent the transaction.
    /// @param relayFee What it earned, in base units of the job's asset; no part of the job's deposit.
    event JobRelayed(uint256 indexed jobId, address indexed relayer, uint256 relayFee);

    /// @notice A deposit was added to.
    /// @param jobId The job.
    /// @param amount What was added, in base units of the job's asset.
    /// @param deposit What the deposit is now, in base units of the job's asset.
    event JobToppedUp(uint256 indexed jobId, uint256 amount, uint256 deposit);

    /// @notice Payer or signer asked to complete the job.
    /// @param jobId The job.
    /// @param by Who asked.
    /// @param closesAt From when on anybody may send the rest back, in Unix seconds.
    event CompletionRequested(uint256 indexed jobId, address by, uint256 closesAt);

    /// @notice `owner` was paid out.
    /// @param owner Whose balance it was.
    /// @param asset What was paid; zero is ETH.
    /// @param to Who received it.
    /// @param refunds The part that was refunds kept for `owner` as a payer, in base units of the asset.
    /// @param earnings The part that `owner` earned as a host, in base units of the asset.
    event Withdrawn(
        address indexed owner, address indexed asset, address indexed to, uint256 refunds, uint256 earnings
    );

    /// @notice The treasury was paid out.
    /// @param asset What was paid; zero is ETH.
    /// @param to Who received it.
    /// @param amount How much, in base units of the asset.
    event TreasuryWithdrawn(address indexed asset, address indexed to, uint256 amount);

    /// @notice The constructor was given a zero address.
    error ZeroAddress();

    /// @notice `host` is not registered, so it takes no new jobs.
    /// @param host The host in the terms.
    error HostNotRegistered(address host);

    /// @notice `signer` is zero or the host.
    /// @param signer The signer in the terms.
    error InvalidSigner(address signer);

    /// @notice A deposit or top-up is above zero.
    error ZeroAmount();

    /// @notice A checkpoint interval is above zero.
    error ZeroCheckpointInterval();

    /// @notice The claim window is outside of `least` to `most` seconds.
    /// @param claimWindow The claim window in the terms, in seconds.
    /// @param least The shortest, in seconds.
    /// @param most The longest, in seconds.
    error ClaimWindowOutOfRange(uint256 claimWindow, uint256 least, uint256 most);

    /// @notice The expiry is not after `present` or is after `latest`.
    /// @param expiresAt The expiry in the terms, in Unix seconds.
    /// @param present The time of the block, in Unix seconds.
    /// @param latest The latest expiry that a job opened now can have, in Unix seconds.
    error ExpiryOutOfRange(uint256 expiresAt, uint256 present, uint256 latest);

    /// @notice The ETH sent with the call is not what the call needs (none, when the asset is an ERC-20).
    /// @param expected What the call needs, in wei.
    /// @param sent What came with it, in wei.
    error WrongValue(uint256 expected, uint256 sent);

    /// @notice The token moved another amount than it was asked to.
    /// @param expected What was to come in, in base units of the asset.
    /// @param received What came in, in base units of the asset.
    error WrongAmountReceived(uint256 expected, uint256 received);

    /// @notice ETH cannot be paid in by authorization.
    error AuthorizationInETH();

    /// @notice The relay fee leaves nothing of the deposit.
    /// @param relayFee The relay fee, in base units of the asset.
    /// @param deposit What the payer puts in, in base units of the asset.
    error RelayFeeTakesAll(uint256 relayFee, uint256 deposit);

    /// @notice Only the payer may do this.
    /// @param caller Who tried: the sender, or who has authorized.
    /// @param payer The job's payer.
    error NotThePayer(address caller, address payer);

    /// @notice Only host, payer and signer may complete a job.
    /// @param jobId The job.
    /// @param caller Who sent the transaction.
    error NotAParty(uint256 jobId, address caller);

    /// @notice Completion was asked for before; the rest can be reclaimed from `closesAt` on.
    /// @param jobId The job.
    /// @param closesAt From when on anybody may send the rest back, in Unix seconds.
    error AlreadyCompleting(uint256 jobId, uint256 closesAt);

    /// @notice The job ended by itself at `expiresAt`.
    /// @param jobId The job.
    /// @param expiresAt When it ended, in Unix seconds.
    error JobExpired(uint256 jobId, uint256 expiresAt);

    /// @notice The host may still claim: the rest can be reclaimed from `closesAt` on.
    /// @param jobId The job.
    /// @param closesAt From when on anybody may send the rest back, in Unix seconds.
    error NotYetReclaimable(uint256 jobId, uint256 closesAt);

    /// @notice `owner` has nothing in `asset` that this call could pay out.
    /// @param owner Whose balance was asked for.
    /// @param asset In which asset; zero is ETH.
    error NothingToWithdraw(address owner, address asset);

    /// @notice The earnings of the sender belong to its payout address; `withdrawFor` sends them there.
    /// @param payout The sender's payout address.
    error PayoutElsewhere(address payout);

    /// @notice Neither the zero address nor this contract can receive.
    /// @param to Who was to receive.
    error InvalidReceiver(address to);

    /// @notice Only the treasury may do this.
    /// @param caller Who sent the transaction.
    /// @param treasury The treasury.
    error NotTheTreasury(address caller, address treasury);

    /// @notice Opens a job with the sender as its payer, and its money.
    /// @dev For ETH send exactly the deposit along. For an ERC-20 approve this contract first and send no ETH.
    /// Reverts rather than truncate a value that does not fit its storage.
    /// @param terms What payer and host agree on.
    /// @return jobId The job; they count from 1.
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
    /// @return jobId The job; they count from 1.
    function createJobWithAuthorization(
        Terms calldata terms,
        uint256 relayFee,
        bytes32 salt,
        Authorization calldata auth
    ) external returns (uint256 jobId);

    /// @notice Adds to the deposit of a job that is open and not past its expiry. Only its payer.
    /// @param jobId The job.
    /// @param amount What to add, in base units of the job's asset; above zero, and with the deposit below 2^96.
    function topUp(uint256 jobId, uint256 amount) external payable;

    /// @notice Adds to the deposit of a job as `topUp` does. Anybody may send this; only the job's payer can authorize it.
    /// @param jobId The job.
    /// @param amount What to add, in base units of the job's asset; above zero, and with the deposit below 2^96.
    /// @param salt Anything that makes the payer's nonce one of its own.
    /// @param auth The payer's authorization over `amount`, to this contract, with `topUpNonce` as its nonce.
    function topUpWithAuthorization(uint256 jobId, uint256 amount, bytes32 salt, Authorization calldata auth) external;

    /// @notice Ends a job.
    /// @dev By the host: closes it now, claims nothing more, and sends the rest back. By payer or signer: the host has
    /// `claimWindow` seconds for its last claim, after which anybody may `reclaim`; this works once.
    /// @param jobId The job.
    function completeSession(uint256 jobId) external;

    /// @notice Closes a job and sends the rest back to its payer, from `closesAt` on. By anybody.
    /// @param jobId The job.
    function reclaim(uint256 jobId) external;

    /// @notice Pays the sender's own balance to `to`: its refunds as a payer and its earnings as a host.
    /// @dev Refunds are always the sender's. Earnings go along only while the sender is its own payout address; they stay
    /// otherwise, and when there is nothing but such earnings it reverts with `PayoutElsewhere`.
    /// @param asset What is paid; zero for ETH.
    /// @param to Who receives it; neither zero nor this contract.
    function withdraw(address asset, address to) external;

    /// @notice Sends what is kept for `owner` to where it belongs. By anybody.
    /// @dev Earnings go to the owner's payout address. Refunds go along only while that is the owner itself: they were
    /// the owner's money as a payer, and a payout address has no part in them. So neither of two different addresses can
    /// take, or by refusing a transfer hold up, what is the other's.
    /// @param owner Whose balance it is.
    /// @param asset What is paid; zero for ETH.
    function withdrawFor(address owner, address asset) external;

    /// @notice Pays the treasury's balance to `to`. Only the treasury.
    /// @param asset What is paid; zero for ETH.
    /// @param to Who receives it; neither zero nor this contract.
    function withdrawTreasury(address asset, address to) external;

    /// @notice The EIP-3009 nonce that lets a job be opened on `terms`:
    /// `keccak256(abi.encode(keccak256("Tallystick open"), this contract, chain id, terms, relayFee, salt))`.
    /// @param terms What payer and host agree on.
    /// @param relayFee What the sender is to earn, in base units of the asset.
    /// @param salt Anything that makes the nonce one of its own.
    /// @return The nonce.
    function openNonce(Terms calldata terms, uint256 relayFee, bytes32 salt) external view returns (bytes32);

    /// @notice The EIP-3009 nonce that lets a deposit be added to:
    /// `keccak256(abi.encode(keccak256("Tallystick top-up"), this contract, chain id, jobId, amount, salt))`.
    /// @param jobId The job.
    /// @param amount What is to be added, in base units of the job's asset.
    /// @param salt Anything that makes the nonce one of its own.
    /// @return The nonce.
    function topUpNonce(uint256 jobId, uint256 amount, bytes32 salt) external view returns (bytes32);

    /// @notice A job, with what follows from it. All zero, with status `None`, when there is none.
    /// @param jobId The job.
    /// @return The job.
    function getJob(uint256 jobId) external view returns (Job memory);

    /// @notice How many jobs there have been; the last one's id.
    /// @return The number; below 2^64.
    function jobCount() external view returns (uint256);

    /// @notice What is kept for `owner`.
    /// @param owner A payer or a host.
    /// @param asset In which asset; zero is ETH.
    /// @return refunds Refunds that could not be sent to it as a payer, in base units of the asset.
    /// @return earnings What it earned as a host, in base units of the asset; it goes to its payout address.
    function balanceOf(address owner, address asset) external view returns (uint256 refunds, uint256 earnings);

    /// @notice What the treasury can withdraw.
    /// @param asset In which asset; zero is ETH.
    /// @return How much, in base units of the asset.
    function treasuryBalance(address asset) external view returns (uint256);

    /// @notice Where hosts register and name their payout addresses.
    /// @return The address of the NodeRegistry. It never changes.
    function registry() external view returns (address);

    /// @notice Who receives a tenth of what jobs are worth.
    /// @return The treasury's address. It never changes.
    function treasury() external view returns (address);
}
