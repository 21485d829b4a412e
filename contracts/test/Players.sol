// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IJobMarketplace} from "../src/interfaces/IJobMarketplace.sol";
import {INodeRegistry} from "../src/interfaces/INodeRegistry.sol";
import {IProofSystem} from "../src/interfaces/IProofSystem.sol";
import {Claims} from "./Claims.sol";
import {vm} from "./Vm.sol";
import {TestDollar} from "./mocks/TestDollar.sol";
import {ListedToken} from "./mocks/Tokens.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";

/// @dev Payers, hosts, the treasury and strangers. Each external function is a move: it chooses somebody to whom it is open
/// now (and is discarded if there is nobody), writes into the books what it is to do, and does it. Trespasses are moves that
/// are open to nobody; they are refused, and the books stay as they are.
abstract contract Players is Claims {
    uint256 private constant MOST_DEPOSIT = type(uint96).max;
    uint256 private constant MOST_PRICE = type(uint80).max;

    uint256 internal moves;

    modifier move() {
        _;
        ++moves;
    }

    // Opening and funding

    function open(uint256 seed, uint96 deposit, uint80 price, uint80 promptPrice) external move {
        IJobMarketplace.Terms memory terms = _anyTerms(seed, deposit, price, promptPrice);
        address who = _payers()[_dice(seed, "payer", 4)];
        terms.asset = _assets()[_dice(seed, "asset", 3)];
        vm.assume(registered[terms.host]);

        _writeOpening(who, terms, 0);
        _do(who, terms.asset == ETH ? terms.deposit : 0, abi.encodeCall(market.createJob, (terms)));
    }

    function openByAuthorization(uint256 seed, uint96 deposit, uint80 price, uint80 promptPrice, uint96 relayFee)
        external
        move
    {
        IJobMarketplace.Terms memory terms = _anyTerms(seed, deposit, price, promptPrice);
        vm.assume(registered[terms.host] && terms.deposit > 1);
        relayFee = uint96(_bound(relayFee, 0, terms.deposit - 1));
        address relayer = _dice(seed, "relayer", 2) == 0 || _isRefused(thirdHost, terms.asset) ? stranger : thirdHost;
        bytes32 nonce = market.openNonce(terms, relayFee, bytes32(moves));
        IJobMarketplace.Authorization memory auth = _authorizeNow(_key(seed), terms.asset, terms.deposit, nonce);

        _writeOpening(auth.from, terms, relayFee);
        wallets[relayer][terms.asset] += relayFee;
        _do(relayer, abi.encodeCall(market.createJobWithAuthorization, (terms, relayFee, bytes32(moves), auth)));
    }

    function topUp(uint256 seed, uint96 amount) external move {
        uint256 jobId = _find(seed, _canGrow);
        IJobMarketplace.Job memory job = jobs[jobId];
        amount = uint96(_bound(amount, 1, MOST_DEPOSIT - job.deposit));

        _writeTopUp(jobId, amount);
        _do(job.payer, job.asset == ETH ? amount : 0, abi.encodeCall(market.topUp, (jobId, amount)));
    }

    function topUpByAuthorization(uint256 seed, uint96 amount) external move {
        uint256 jobId = _find(seed, _canGrowByAuthorization);
        IJobMarketplace.Job memory job = jobs[jobId];
        amount = uint96(_bound(amount, 1, MOST_DEPOSIT - job.deposit));
        bytes32 nonce = market.topUpNonce(jobId, amount, bytes32(moves));
        IJobMarketplace.Authorization memory auth =
            _authorizeNow(job.payer == payer ? PAYER_KEY : LISTED_KEY, job.asset, amount, nonce);

        _writeTopUp(jobId, amount);
        _do(stranger, abi.encodeCall(market.topUpWithAuthorization, (jobId, amount, bytes32(moves), auth)));
    }

    // Claiming

    function claim(uint256 seed, uint48 promptTokens, uint48 tokens) external move {
        uint256 jobId = _find(seed, _isNotClosed);
        Claim memory good = _goodClaim(seed, jobId, promptTokens, tokens);

        _writeClaim(jobId, good.promptTokens, good.tokens);
        (bool done,) = _try(jobs[jobId].host, 0, _submission(good));
        vm.assertTrue(done, "a claim is possible until the refund");
    }

    function claimInVain(uint256 seed, uint48 promptTokens, uint48 tokens) external move {
        uint256 jobId = _find(seed, _isAny);
        Claim memory bad = _badClaim(seed, jobId, promptTokens, tokens);
        vm.assume(!_isGood(bad));

        _try(jobs[jobId].host, 0, _submission(bad));
    }

    function claimMany(uint256[5] calldata seeds, uint48 promptTokens, uint48 tokens) external move {
        vm.assume(jobCount != 0);
        address sender = jobs[1 + seeds[0] % jobCount].host;
        IProofSystem.Checkpoint[] memory rows = new IProofSystem.Checkpoint[](seeds.length);
        for (uint256 i; i < rows.length; ++i) {
            rows[i] = _anyRow(sender, seeds[i], promptTokens >> i, tokens >> i);
        }

        _do(sender, abi.encodeCall(market.submitCheckpoints, (rows)));
        for (uint256 i; i < rows.length; ++i) {
            _assertPaid(rows[i].jobId);
        }
    }

    // Ending

    /// @dev A payer that is the host as well would close the job.
    function askToComplete(uint256 seed) external move {
        uint256 jobId = _find(seed, _isOpen);
        address by = jobs[jobId].payer;
        if (by == jobs[jobId].host || _dice(seed, "by", 2) == 0) by = signer;

        _writeRequest(jobId);
        _do(by, abi.encodeCall(market.completeSession, (jobId)));
    }

    function completeAsHost(uint256 seed) external move {
        uint256 jobId = _find(seed, _isNotClosed);

        _writeClosing(jobId);
        _do(jobs[jobId].host, abi.encodeCall(market.completeSession, (jobId)));
    }

    function reclaim(uint256 seed) external move {
        uint256 jobId = _find(seed, _isDue);

        _writeClosing(jobId);
        _do(_everybody()[_dice(seed, "who", 9)], abi.encodeCall(market.reclaim, (jobId)));
    }

    // Paying out

    function withdraw(uint256 seed) external move {
        for (uint256 i; i < 18; ++i) {
            (address owner, address asset) = _purse(seed, i);
            address to = _dice(seed, "to", 2) == 0 ? cold : owner;
            (uint256 refunds, uint256 earnings) = market.balanceOf(owner, asset);
            if (payouts[owner] != owner) earnings = 0;
            if (refunds + earnings == 0 || _isRefused(to, asset)) continue;

            _writeWithdrawal(owner, asset, to, refunds, earnings);
            return _do(owner, abi.encodeCall(market.withdraw, (asset, to)));
        }
        vm.assume(false);
    }

    function withdrawFor(uint256 seed) external move {
        for (uint256 i; i < 18; ++i) {
            (address owner, address asset) = _purse(seed, i);
            address to = payouts[owner];
            (uint256 refunds, uint256 earnings) = market.balanceOf(owner, asset);
            if (to != owner) refunds = 0;
            if (refunds + earnings == 0 || _isRefused(to, asset)) continue;

            _writeWithdrawal(owner, asset, to, refunds, earnings);
            return _do(stranger, abi.encodeCall(market.withdrawFor, (owner, asset)));
        }
        vm.assume(false);
    }

    function withdrawTreasury(uint256 seed) external move {
        address asset = _assets()[_dice(seed, "asset", 3)];
        address to = _dice(seed, "to", 2) == 0 ? cold : treasury;
        uint256 amount = market.treasuryBalance(asset);
        vm.assume(amount != 0);

        withdrawnFees[asset] += amount;
        wallets[to][asset] += amount;
        _do(treasury, abi.encodeCall(market.withdrawTreasury, (asset, to)));
    }

    // Around the marketplace

    function changePayout(uint256 seed) external move {
        address owner = _hosts()[_dice(seed, "host", 3)];
        (address from, address to) = (payouts[owner], payouts[owner] == cold ? owner : cold);

        payouts[owner] = to;
        vm.prank(from);
        registry.setPayout(owner, to);
    }

    /// @dev One host at a time is away.
    function leaveOrReturn(uint256 seed) external move {
        address owner = _away() == address(0) ? _hosts()[_dice(seed, "host", 3)] : _away();

        registered[owner] = !registered[owner];
        if (registered[owner]) return _register(owner);
        vm.prank(owner);
        registry.unregisterNode();
    }

    /// @dev ETH comes as by force: the marketplace has nothing that takes it.
    function donate(uint256 seed, uint96 amount) external move {
        address asset = _assets()[_dice(seed, "asset", 3)];

        donations[asset] += amount;
        if (asset == ETH) vm.deal(address(market), address(market).balance + amount);
        else TestDollar(asset).mint(address(market), amount);
    }

    function listOrUnlist(uint256 seed) external move {
        choosy.setWay(ListedToken.Way(_dice(seed, "way", 3)));
        address who = _dice(seed, "who", 2) == 0 ? listed : thirdHost;
        choosy.list(who, !choosy.listed(who));
    }

    function pass(uint256 seconds_) external move {
        _passTo(time + _bound(seconds_, 1, 12 hours));
    }

    function passToAnEdge(uint256 seed) external move {
        IJobMarketplace.Job memory job = jobs[_find(seed, _isNotClosed)];
        uint256 edge = _dice(seed, "edge", 2) == 0 ? job.expiresAt : job.closesAt;
        uint256 moment = edge + _dice(seed, "side", 3) - 1;
        vm.assume(moment > time);

        _passTo(moment);
    }

    // Trespasses

    function claimAnothersJob(uint256 seed, uint48 promptTokens, uint48 tokens) external move {
        uint256 jobId = _find(seed, _isAny);
        Claim memory good = _goodClaim(seed, jobId, promptTokens, tokens);

        _isDenied(_anyoneBut(seed, jobs[jobId].host), _submission(good), bytes4(keccak256("Error(string)")));
    }

    function endAnothersJob(uint256 seed) external move {
        uint256 jobId = _find(seed, _isAny);
        IJobMarketplace.Job memory job = jobs[jobId];
        bytes memory data = abi.encodeCall(market.completeSession, (jobId));
        address who = _everybody()[_dice(seed, "who", 9)];

        if (_isClosed(job)) return _isDenied(who, data, IProofSystem.JobClosed.selector);
        if (who != job.host && who != job.payer) return _isDenied(who, data, IJobMarketplace.NotAParty.selector);
        vm.assume(job.askedAt != 0);
        _isDenied(job.payer == job.host ? signer : job.payer, data, IJobMarketplace.AlreadyCompleting.selector);
    }

    function reclaimTooEarly(uint256 seed) external move {
        uint256 jobId = _find(seed, _isNotDue);

        _isDenied(
            stranger,
            abi.encodeCall(market.reclaim, (jobId)),
            _isClosed(jobs[jobId]) ? IProofSystem.JobClosed.selector : IJobMarketplace.NotYetReclaimable.selector
        );
    }

    function topUpInVain(uint256 seed, uint96 amount) external move {
        uint256 jobId = _find(seed, _isAny);
        IJobMarketplace.Job memory job = jobs[jobId];
        address who = _payers()[_dice(seed, "who", 4)];
        bytes memory data = abi.encodeCall(market.topUp, (jobId, amount));

        if (_isClosed(job)) return _isDenied(who, data, IProofSystem.JobClosed.selector);
        if (who != job.payer) return _isDenied(who, data, IJobMarketplace.NotThePayer.selector);
        if (job.askedAt != 0) return _isDenied(who, data, IJobMarketplace.AlreadyCompleting.selector);
        if (time >= job.expiresAt) return _isDenied(who, data, IJobMarketplace.JobExpired.selector);
        vm.assume(amount != 0 && job.deposit + amount <= MOST_DEPOSIT && job.asset == ETH);
        _isDenied(who, data, IJobMarketplace.WrongValue.selector);
    }

    function takeAnothersMoney(uint256 seed) external move {
        (address owner, address asset) = _purse(seed, 0);
        address thief = _anyoneBut(seed, treasury);
        bytes memory data = abi.encodeCall(market.withdrawTreasury, (asset, thief));
        _isDenied(thief, data, IJobMarketplace.NotTheTreasury.selector);
        data = abi.encodeCall(market.withdraw, (asset, stranger));
        _isDenied(stranger, data, IJobMarketplace.NothingToWithdraw.selector);
        data = abi.encodeCall(INodeRegistry.setPayout, (owner, stranger));
        _isDenied(address(registry), _anyoneBut(seed, payouts[owner]), data, INodeRegistry.NotThePayout.selector);

        (uint256 refunds, uint256 earnings) = market.balanceOf(owner, asset);
        if (payouts[owner] == owner || refunds != 0) return;
        data = abi.encodeCall(market.withdraw, (asset, owner));
        _isDenied(
            owner,
            data,
            earnings == 0 ? IJobMarketplace.NothingToWithdraw.selector : IJobMarketplace.PayoutElsewhere.selector
        );
    }

    function alterAnAuthorization(uint256 seed, uint96 deposit, uint80 price, uint80 promptPrice) external move {
        IJobMarketplace.Terms memory terms = _anyTerms(seed, deposit, price, promptPrice);
        vm.assume(registered[terms.host] && terms.deposit > 1);
        bytes32 nonce = market.openNonce(terms, 0, bytes32(moves));
        IJobMarketplace.Authorization memory auth = _authorizeNow(_key(seed), terms.asset, terms.deposit, nonce);
        uint256 relayFee = _dice(seed, "what", 2);
        if (relayFee == 0) ++terms.pricePerMillion;

        _isDenied(
            stranger,
            abi.encodeCall(market.createJobWithAuthorization, (terms, relayFee, bytes32(moves), auth)),
            ERC3009.ERC3009InvalidSignature.selector
        );
    }

    // Who and what

    /// @dev In either token; a thousand tokens and more are affordable, or as many as you like.
    function _anyTerms(uint256 seed, uint256 deposit, uint256 price, uint256 promptPrice)
        private
        view
        returns (IJobMarketplace.Terms memory terms)
    {
        terms = _terms();
        terms.host = _hosts()[_dice(seed, "host", 3)];
        terms.asset = _assets()[1 + _dice(seed, "token", 2)];
        terms.deposit = _bound(deposit, 1, MOST_DEPOSIT);
        terms.pricePerMillion = _bound(price, 0, _least(MOST_PRICE - 1, terms.deposit * 1000));
        terms.promptPricePerMillion = _bound(promptPrice, 0, _least(MOST_PRICE, terms.deposit * 1000));
        terms.maxTokensPerSecond = _dice(seed, "attested", 4) == 0 ? 1 + _dice(seed, "rate", 1000) : 0;
        terms.claimWindow = _dice(seed, "long", 8) == 0 ? 30 days : 1 hours + _dice(seed, "window", 1 days);
        terms.expiresAt = time + (_dice(seed, "year", 8) == 0 ? 365 days : 1 + _dice(seed, "expiry", 7 days));
    }

    function _away() private view returns (address) {
        for (uint256 i; i < 3; ++i) {
            if (!registered[_hosts()[i]]) return _hosts()[i];
        }
        return address(0);
    }

    function _anyoneBut(uint256 seed, address not) private view returns (address who) {
        who = _everybody()[_dice(seed, "anyone", 9)];
        if (who == not) who = stranger;
    }

    function _key(uint256 seed) private pure returns (uint256) {
        return _dice(seed, "key", 2) == 0 ? PAYER_KEY : LISTED_KEY;
    }

    /// @dev The `i`th of all pairs of an owner and an asset, in an order that begins anywhere.
    function _purse(uint256 seed, uint256 i) private view returns (address owner, address asset) {
        uint256 pair = (_dice(seed, "purse", 18) + i) % 18;
        return (_owners()[pair % 6], _assets()[pair / 6]);
    }

    function _find(uint256 seed, function(IJobMarketplace.Job storage) view returns (bool) fits)
        private
        view
        returns (uint256 jobId)
    {
        for (uint256 i; i < jobCount; ++i) {
            jobId = 1 + (seed % jobCount + i) % jobCount;
            if (fits(jobs[jobId])) return jobId;
        }
        vm.assume(false);
    }

    function _isAny(IJobMarketplace.Job storage) private pure returns (bool) {
        return true;
    }

    function _isOpen(IJobMarketplace.Job storage job) private view returns (bool) {
        return job.status == IJobMarketplace.Status.Open;
    }

    function _isNotClosed(IJobMarketplace.Job storage job) private view returns (bool) {
        return job.status != IJobMarketplace.Status.Closed;
    }

    function _isDue(IJobMarketplace.Job storage job) private view returns (bool) {
        return _isNotClosed(job) && time >= job.closesAt;
    }

    function _isNotDue(IJobMarketplace.Job storage job) private view returns (bool) {
        return !_isDue(job);
    }

    function _canGrow(IJobMarketplace.Job storage job) private view returns (bool) {
        return _isOpen(job) && time < job.expiresAt && job.deposit < MOST_DEPOSIT;
    }

    function _canGrowByAuthorization(IJobMarketplace.Job storage job) private view returns (bool) {
        return _canGrow(job) && job.asset != ETH && (job.payer == payer || job.payer == listed);
    }

    // Doing it

    function _assertPaid(uint256 jobId) private view {
        IJobMarketplace.Job memory told = market.getJob(jobId);
        bool paid = told.promptTokens >= jobs[jobId].promptTokens && told.tokens >= jobs[jobId].tokens;
        vm.assertTrue(paid, "a good row is paid, whatever stands beside it");
    }

    function _authorizeNow(uint256 key, address token, uint256 amount, bytes32 nonce)
        private
        view
        returns (IJobMarketplace.Authorization memory auth)
    {
        auth = IJobMarketplace.Authorization(key == PAYER_KEY ? payer : listed, 0, time + 1, "");
        auth.signature = _signAuthorization(key, token, amount, nonce, auth);
    }

    function _passTo(uint256 moment) internal {
        time = moment;
        vm.warp(moment);
    }

    function _do(address who, bytes memory data) internal {
        _do(who, 0, data);
    }

    function _do(address who, uint256 value, bytes memory data) internal {
        (bool done, bytes memory answer) = _try(who, value, data);
        if (!done) {
            assembly ("memory-safe") {
                revert(add(answer, 0x20), mload(answer))
            }
        }
    }

    function _try(address who, uint256 value, bytes memory data) internal returns (bool done, bytes memory answer) {
        vm.prank(who);
        (done, answer) = address(market).call{value: value}(data);
    }

    function _isDenied(address who, bytes memory data, bytes4 reason) private {
        _isDenied(address(market), who, data, reason);
    }

    function _isDenied(address target, address who, bytes memory data, bytes4 reason) private {
        vm.prank(who);
        (bool done, bytes memory answer) = target.call(data);
        vm.assertTrue(!done, "a trespass is refused");
        vm.assertEq(bytes32(bytes4(answer)), bytes32(reason), "a trespass is refused for what it is");
    }
}
