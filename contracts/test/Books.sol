// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IJobMarketplace} from "../src/interfaces/IJobMarketplace.sol";
import {Fixture} from "./Fixture.sol";
import {vm} from "./Vm.sol";
import {RevertingReceiver} from "./mocks/Receivers.sol";
import {TestDollar} from "./mocks/TestDollar.sol";
import {ListedToken} from "./mocks/Tokens.sol";

/// @dev What those who use a marketplace know by themselves: written down from what they sent and signed, never copied
/// from the marketplace, so that its own figures can be held against it.
abstract contract Books is Fixture {
    struct Totals {
        uint256 promptTokens;
        uint256 tokens;
    }

    /// @dev What everybody has of each asset at first: more than all jobs together can use up.
    uint256 internal constant WEALTH = type(uint128).max;
    uint256 internal constant LISTED_KEY = 0x115ed;
    uint256 internal constant MAX_TOTAL = 2 ** 48 - 1;
    uint256 private constant TOKENS_PER_PRICE = 1_000_000;
    uint256 private constant FEE_DIVISOR = 10;

    address internal immutable thirdHost = vm.addr(0x3057);
    address internal immutable cold = vm.addr(0xc01d);
    address internal immutable listed = vm.addr(LISTED_KEY);
    address internal immutable unwilling = address(new RevertingReceiver());
    ListedToken internal immutable choosy = new ListedToken();

    uint256 internal time = START;
    uint256 internal jobCount;

    /// @dev A job as it should be told.
    mapping(uint256 jobId => IJobMarketplace.Job) internal jobs;
    /// @dev The latest receipt of a job, which covers those before it.
    mapping(uint256 jobId => Totals) internal signed;

    mapping(address who => mapping(address asset => uint256)) internal wallets;
    mapping(address payer => mapping(address asset => uint256)) internal keptRefunds;
    mapping(address host => mapping(address asset => uint256)) internal withdrawnEarnings;
    mapping(address asset => uint256) internal withdrawnFees;
    mapping(address asset => uint256) internal donations;
    mapping(address host => address) internal payouts;
    mapping(address host => bool) internal registered;

    constructor() {
        setUp();
        _register(thirdHost);
        for (uint256 i; i < 6; ++i) {
            address owner = _owners()[i];
            (payouts[owner], registered[owner]) = (owner, registry.isRegistered(owner));
        }
        for (uint256 i; i < 9; ++i) {
            _makeRich(_everybody()[i]);
        }
    }

    function _assets() internal view returns (address[3] memory) {
        return [ETH, address(dollar), address(choosy)];
    }

    function _hosts() internal view returns (address[3] memory) {
        return [host, otherHost, thirdHost];
    }

    /// @dev One that takes everything, a contract that takes no ETH, and two that a token will not send to for a while, of
    /// which one is a host.
    function _payers() internal view returns (address[4] memory) {
        return [payer, unwilling, listed, thirdHost];
    }

    /// @dev All for whom the marketplace can keep anything.
    function _owners() internal view returns (address[6] memory) {
        return [payer, unwilling, listed, host, otherHost, thirdHost];
    }

    function _everybody() internal view returns (address[9] memory) {
        return [payer, unwilling, listed, host, otherHost, thirdHost, cold, treasury, stranger];
    }

    function _walletOf(address who, address asset) internal view returns (uint256) {
        return asset == ETH ? who.balance : TestDollar(asset).balanceOf(who);
    }

    /// @dev Whether `who` cannot be sent `asset` now.
    function _isRefused(address who, address asset) internal view returns (bool) {
        return asset == ETH ? who == unwilling : asset == address(choosy) && choosy.listed(who);
    }

    // What a job comes to

    function _owed(IJobMarketplace.Job memory job) internal pure returns (uint256) {
        return (job.tokens * job.pricePerMillion + job.promptTokens * job.promptPricePerMillion) / TOKENS_PER_PRICE;
    }

    function _fee(IJobMarketplace.Job memory job) internal pure returns (uint256) {
        return _owed(job) / FEE_DIVISOR;
    }

    /// @dev The most tokens at `price` that a deposit pays for beside what costs `spent` for a million.
    function _affordable(uint256 deposit, uint256 price, uint256 spent) internal pure returns (uint256) {
        if (price == 0) return MAX_TOTAL;
        return _least(MAX_TOTAL, ((deposit + 1) * TOKENS_PER_PRICE - 1 - spent) / price);
    }

    /// @dev The most tokens of both kinds that the time allows: in an attested job what its rate makes of it.
    function _possible(IJobMarketplace.Job memory job) internal view returns (uint256) {
        if (job.maxTokensPerSecond == 0) return 2 * MAX_TOTAL;
        return job.maxTokensPerSecond * (_least(time, job.closesAt - job.claimWindow) - job.createdAt);
    }

    /// @dev The highest total that deposit and time allow a job, beside the tokens that it has.
    function _mostPromptTokens(IJobMarketplace.Job memory job) internal view returns (uint256) {
        uint256 most = _affordable(job.deposit, job.promptPricePerMillion, job.tokens * job.pricePerMillion);
        return _least(most, _possible(job) - job.tokens);
    }

    function _mostTokens(IJobMarketplace.Job memory job, uint256 promptTokens) internal view returns (uint256) {
        uint256 most = _affordable(job.deposit, job.pricePerMillion, promptTokens * job.promptPricePerMillion);
        return _least(most, _possible(job) - promptTokens);
    }

    function _isClosed(IJobMarketplace.Job memory job) internal pure returns (bool) {
        return job.status == IJobMarketplace.Status.Closed;
    }

    function _least(uint256 a, uint256 b) internal pure returns (uint256) {
        return a < b ? a : b;
    }

    /// @dev One seed answers every question of a move.
    function _dice(uint256 seed, string memory what, uint256 sides) internal pure returns (uint256) {
        return uint256(keccak256(abi.encode(seed, what))) % sides;
    }

    // What happens

    function _writeOpening(address who, IJobMarketplace.Terms memory terms, uint256 relayFee) internal {
        wallets[who][terms.asset] -= terms.deposit;
        jobs[++jobCount] = IJobMarketplace.Job({
            payer: who,
            host: terms.host,
            asset: terms.asset,
            signer: terms.signer,
            deposit: terms.deposit - relayFee,
            pricePerMillion: terms.pricePerMillion,
            promptPricePerMillion: terms.promptPricePerMillion,
            maxTokensPerSecond: terms.maxTokensPerSecond,
            claimWindow: terms.claimWindow,
            createdAt: time,
            expiresAt: terms.expiresAt,
            askedAt: 0,
            closesAt: terms.expiresAt + terms.claimWindow,
            tokens: 0,
            promptTokens: 0,
            owed: 0,
            fee: 0,
            status: IJobMarketplace.Status.Open
        });
    }

    function _writeTopUp(uint256 jobId, uint256 amount) internal {
        IJobMarketplace.Job storage job = jobs[jobId];
        wallets[job.payer][job.asset] -= amount;
        job.deposit += amount;
    }

    function _writeReceipt(uint256 jobId, uint256 promptTokens, uint256 tokens) internal {
        Totals storage totals = signed[jobId];
        if (promptTokens > totals.promptTokens) totals.promptTokens = promptTokens;
        if (tokens > totals.tokens) totals.tokens = tokens;
    }

    function _writeClaim(uint256 jobId, uint256 promptTokens, uint256 tokens) internal {
        IJobMarketplace.Job storage job = jobs[jobId];
        (job.promptTokens, job.tokens) = (promptTokens, tokens);
        (job.owed, job.fee) = (_owed(job), _fee(job));
    }

    function _writeRequest(uint256 jobId) internal {
        IJobMarketplace.Job storage job = jobs[jobId];
        (job.askedAt, job.status) = (time, IJobMarketplace.Status.Completing);
        job.closesAt = _least(time, job.expiresAt) + job.claimWindow;
    }

    function _writeClosing(uint256 jobId) internal {
        IJobMarketplace.Job storage job = jobs[jobId];
        job.status = IJobMarketplace.Status.Closed;
        uint256 rest = job.deposit - _owed(job);
        if (_isRefused(job.payer, job.asset)) keptRefunds[job.payer][job.asset] += rest;
        else wallets[job.payer][job.asset] += rest;
    }

    function _writeWithdrawal(address owner, address asset, address to, uint256 refunds, uint256 earnings) internal {
        keptRefunds[owner][asset] -= refunds;
        withdrawnEarnings[owner][asset] += earnings;
        wallets[to][asset] += refunds + earnings;
    }

    function _makeRich(address who) private {
        vm.deal(who, WEALTH);
        wallets[who][ETH] = WEALTH;
        for (uint256 i = 1; i < 3; ++i) {
            TestDollar token = TestDollar(_assets()[i]);
            token.mint(who, WEALTH - token.balanceOf(who));
            vm.prank(who);
            token.approve(address(market), type(uint256).max);
            wallets[who][address(token)] = WEALTH;
        }
    }
}
