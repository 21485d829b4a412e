// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {ProofSystem} from "./ProofSystem.sol";
import {IJobMarketplace} from "./interfaces/IJobMarketplace.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {Fit} from "./libraries/Fit.sol";
import {JobRecord} from "./libraries/JobRecord.sol";
import {Limits, LimitsFields} from "./libraries/Limits.sol";
import {Prices, PricesFields} from "./libraries/Prices.sol";
import {Pricing} from "./libraries/Pricing.sol";
import {Tally, TallyFields} from "./libraries/Tally.sol";
import {Transfers} from "./libraries/Transfers.sol";

/// @title JobMarketplace
/// @notice Opens, funds and ends jobs, and pays balances out. The manual is IJobMarketplace.
contract JobMarketplace is IJobMarketplace, ProofSystem {
    using Fit for uint256;
    using Pricing for Prices;

    uint256 private constant MIN_CLAIM_WINDOW = 1 hours;
    uint256 private constant MAX_CLAIM_WINDOW = 30 days;
    uint256 private constant MAX_LIFETIME = 365 days;

    // What kind of nonce it is, so that none of one kind is ever one of the other.
    bytes32 private constant OPEN_TYPEHASH = keccak256("Tallystick open");
    bytes32 private constant TOP_UP_TYPEHASH = keccak256("Tallystick top-up");

    /// @inheritdoc IJobMarketplace
    address public immutable registry;
    /// @inheritdoc IJobMarketplace
    address public immutable treasury;

    // One slot.
    uint64 private _jobCount;
    uint32 private _hostCount;
    uint32 private _assetCount;

    constructor(address registry_, address treasury_) {
        if (registry_ == address(0) || treasury_ == address(0)) revert ZeroAddress();
        registry = registry_;
        treasury = treasury_;
    }

    /// @inheritdoc IJobMarketplace
    function createJob(Terms calldata terms) external payable nonReentrant returns (uint256 jobId) {
        jobId = _open(msg.sender, terms, terms.deposit);
        Transfers.pull(terms.asset, msg.sender, terms.deposit);
    }

    /// @inheritdoc IJobMarketplace
    function createJobWithAuthorization(
        Terms calldata terms,
        uint256 relayFee,
        bytes32 salt,
        Authorization calldata auth
    ) external nonReentrant returns (uint256 jobId) {
        if (relayFee >= terms.deposit) revert RelayFeeTakesAll(relayFee, terms.deposit);

        jobId = _open(auth.from, terms, terms.deposit - relayFee);

        if (relayFee != 0) emit JobRelayed(jobId, msg.sender, relayFee);

        Transfers.pullAuthorized(terms.asset, terms.deposit, openNonce(terms, relayFee, salt), auth);
        if (relayFee != 0) Transfers.pay(terms.asset, msg.sender, relayFee);
    }

    /// @inheritdoc IJobMarketplace
    function topUp(uint256 jobId, uint256 amount) external payable nonReentrant {
        address asset = _topUp(jobId, msg.sender, amount);
        Transfers.pull(asset, msg.sender, amount);
    }

    /// @inheritdoc IJobMarketplace
    function topUpWithAuthorization(uint256 jobId, uint256 amount, bytes32 salt, Authorization calldata auth)
        external
        nonReentrant
    {
        address asset = _topUp(jobId, auth.from, amount);
        Transfers.pullAuthorized(asset, amount, topUpNonce(jobId, amount, salt), auth);
    }

    /// @inheritdoc IJobMarketplace
    function completeSession(uint256 jobId) external nonReentrant {
        JobRecord storage job = _notClosed(jobId);
        if (msg.sender == _hosts[job.prices.hostId()]) {
            _close(jobId);
        } else if (msg.sender == job.payer || msg.sender == job.limits.signer()) {
            _askToComplete(jobId, job);
        } else {
            revert NotAParty(jobId, msg.sender);
        }
    }

    /// @inheritdoc IJobMarketplace
    function reclaim(uint256 jobId) external nonReentrant {
        JobRecord storage job = _notClosed(jobId);
        uint256 closesAt = job.limits.closesAt(job.tally.askedAt());
        if (block.timestamp < closesAt) revert NotYetReclaimable(jobId, closesAt);

        _close(jobId);
    }

    /// @inheritdoc IJobMarketplace
    function withdraw(address asset, address to) external nonReentrant {
        address payout = INodeRegistry(registry).payoutOf(msg.sender);
        bool own = payout == msg.sender;

        (uint256 refunds, uint256 earnings) = balanceOf(msg.sender, asset);
        if (!own && refunds == 0 && earnings != 0) revert PayoutElsewhere(payout);

        _payOut(msg.sender, asset, to, refunds, own ? earnings : 0);
    }

    /// @inheritdoc IJobMarketplace
    function withdrawFor(address owner, address asset) external nonReentrant {
        address payout = INodeRegistry(registry).payoutOf(owner);
        (uint256 refunds, uint256 earnings) = balanceOf(owner, asset);

        _payOut(owner, asset, payout, payout == owner ? refunds : 0, earnings);
    }

    /// @inheritdoc IJobMarketplace
    function withdrawTreasury(address asset, address to) external nonReentrant {
        if (msg.sender != treasury) revert NotTheTreasury(msg.sender, treasury);
        uint256 amount = treasuryBalance(asset);
        _checkReceiver(to);
        if (amount == 0) revert NothingToWithdraw(msg.sender, asset);

        _fees[_assetIds[asset]] = 0;

        emit TreasuryWithdrawn(asset, to, amount);

        Transfers.pay(asset, to, amount);
    }

    /// @inheritdoc IJobMarketplace
    function getJob(uint256 jobId) external view returns (Job memory found) {
        JobRecord memory job = _jobs[jobId];
        if (job.tally.deposit() == 0) return found;

        uint256 owed = job.prices.owed(job.tally.promptTokens(), job.tally.tokens());
        found = Job({
            payer: job.payer,
            host: _hosts[job.prices.hostId()],
            asset: _assets[job.prices.assetId()],
            signer: job.limits.signer(),
            deposit: job.tally.deposit(),
            pricePerMillion: job.prices.pricePerMillion(),
            promptPricePerMillion: job.prices.promptPricePerMillion(),
            maxTokensPerSecond: job.limits.maxTokensPerSecond(),
            claimWindow: job.limits.claimWindow(),
            createdAt: job.prices.createdAt(),
            expiresAt: job.limits.expiresAt(),
            askedAt: job.tally.askedAt(),
            closesAt: job.limits.closesAt(job.tally.askedAt()),
            tokens: job.tally.tokens(),
            promptTokens: job.tally.promptTokens(),
            owed: owed,
            fee: Pricing.fee(owed),
            status: _status(job.tally)
        });
    }

    /// @inheritdoc IJobMarketplace
    function jobCount() external view returns (uint256) {
        return _jobCount;
    }

    /// @inheritdoc IJobMarketplace
    function openNonce(Terms calldata terms, uint256 relayFee, bytes32 salt) public view returns (bytes32) {
        return keccak256(abi.encode(OPEN_TYPEHASH, address(this), block.chainid, terms, relayFee, salt));
    }

    /// @inheritdoc IJobMarketplace
    function topUpNonce(uint256 jobId, uint256 amount, bytes32 salt) public view returns (bytes32) {
        return keccak256(abi.encode(TOP_UP_TYPEHASH, address(this), block.chainid, jobId, amount, salt));
    }

    /// @inheritdoc IJobMarketplace
    function balanceOf(address owner, address asset) public view returns (uint256 refunds, uint256 earnings) {
        return (_refunds[owner][_assetIds[asset]], _earnings[_accounts[owner][asset]]);
    }

    /// @inheritdoc IJobMarketplace
    function treasuryBalance(address asset) public view returns (uint256) {
        return _fees[_assetIds[asset]];
    }

    /// @dev Writes a job of `payer` with `deposit` in escrow. The caller brings the money in.
    function _open(address payer, Terms calldata terms, uint256 deposit) private returns (uint256 jobId) {
        _checkTerms(terms);
        if (deposit == 0) revert ZeroAmount();

        jobId = ++_jobCount;
        _jobs[jobId] = JobRecord({
            tally: Tally.wrap(0).withDeposit(deposit),
            prices: PricesFields.pack(
                terms.pricePerMillion, terms.promptPricePerMillion, _account(terms.host, terms.asset), block.timestamp
            ),
            limits: LimitsFields.pack(terms.signer, terms.maxTokensPerSecond, terms.claimWindow, terms.expiresAt),
            payer: payer
        });

        emit JobCreated(jobId, payer, terms.host, terms.signer, terms.checkpointInterval, terms.modelId);
    }

    /// @dev Adds `amount` of `payer` to a job's deposit, and says in which asset. The caller brings the money in.
    function _topUp(uint256 jobId, address payer, uint256 amount) private returns (address asset) {
        JobRecord storage job = _notClosed(jobId);
        if (payer != job.payer) revert NotThePayer(payer, job.payer);
        _checkRunning(jobId, job);
        if (amount == 0) revert ZeroAmount();

        uint256 deposit = job.tally.deposit() + amount.fit(TallyFields.DEPOSIT_BITS);
        job.tally = job.tally.withDeposit(deposit);

        emit JobToppedUp(jobId, amount, deposit);

        asset = _assets[job.prices.assetId()];
    }

    function _checkTerms(Terms calldata terms) private view {
        if (!INodeRegistry(registry).isRegistered(terms.host)) revert HostNotRegistered(terms.host);
        if (terms.signer == address(0) || terms.signer == terms.host) revert InvalidSigner(terms.signer);
        if (terms.claimWindow < MIN_CLAIM_WINDOW || terms.claimWindow > MAX_CLAIM_WINDOW) {
            revert ClaimWindowOutOfRange(terms.claimWindow, MIN_CLAIM_WINDOW, MAX_CLAIM_WINDOW);
        }
        uint256 latest = block.timestamp + MAX_LIFETIME;
        if (terms.expiresAt <= block.timestamp || terms.expiresAt > latest) {
            revert ExpiryOutOfRange(terms.expiresAt, block.timestamp, latest);
        }
        if (terms.checkpointInterval == 0) revert ZeroCheckpointInterval();
    }

    /// @dev The account of a host in an asset, numbered at first use.
    function _account(address host, address asset) private returns (uint256 account) {
        account = _accounts[host][asset];
        if (account == 0) {
            account = _hostId(host) << 32 | _assetId(asset);
            _accounts[host][asset] = account;
        }
    }

    function _hostId(address host) private returns (uint256 id) {
        id = _hostIds[host];
        if (id == 0) {
            id = ++_hostCount;
            _hostIds[host] = id;
            _hosts[id] = host;
        }
    }

    function _assetId(address asset) private returns (uint256 id) {
        id = _assetIds[asset];
        if (id == 0) {
            id = ++_assetCount;
            _assetIds[asset] = id;
            _assets[id] = asset;
        }
    }

    function _askToComplete(uint256 jobId, JobRecord storage job) private {
        uint256 askedAt = job.tally.askedAt();
        if (askedAt != 0) revert AlreadyCompleting(jobId, job.limits.closesAt(askedAt));

        job.tally = job.tally.withAskedAt(block.timestamp);

        emit CompletionRequested(jobId, msg.sender, job.limits.closesAt(block.timestamp));
    }

    /// @dev Empties the given balances of `owner` and pays them to `to`.
    function _payOut(address owner, address asset, address to, uint256 refunds, uint256 earnings) private {
        _checkReceiver(to);
        if (refunds == 0 && earnings == 0) revert NothingToWithdraw(owner, asset);

        _refunds[owner][_assetIds[asset]] -= refunds;
        _earnings[_accounts[owner][asset]] -= earnings;

        emit Withdrawn(owner, asset, to, refunds, earnings);

        Transfers.pay(asset, to, refunds + earnings);
    }

    function _checkReceiver(address to) private view {
        if (to == address(0) || to == address(this)) revert InvalidReceiver(to);
    }

    function _checkRunning(uint256 jobId, JobRecord storage job) private view {
        Tally tally = job.tally;
        Limits limits = job.limits;
        if (tally.askedAt() != 0) revert AlreadyCompleting(jobId, limits.closesAt(tally.askedAt()));
        if (block.timestamp >= limits.expiresAt()) revert JobExpired(jobId, limits.expiresAt());
    }

    function _status(Tally tally) private pure returns (Status) {
        if (tally.closed()) return Status.Closed;
        return tally.askedAt() == 0 ? Status.Open : Status.Completing;
    }
}
