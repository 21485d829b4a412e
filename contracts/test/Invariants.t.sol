// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IJobMarketplace} from "../src/interfaces/IJobMarketplace.sol";
import {IProofSystem} from "../src/interfaces/IProofSystem.sol";
import {Fixture} from "./Fixture.sol";
import {vm} from "./Vm.sol";
import {Receiver, RevertingReceiver} from "./mocks/Receivers.sol";

/// @dev Plays payers, hosts, treasury and strangers, as they come.
contract Players is Fixture {
    uint256 private constant STEP = 5_000;

    Receiver public unwilling;
    uint256 public time = START;

    mapping(uint256 jobId => uint256) public highestOwed;
    bool public shrank;

    constructor() {
        setUp();
        unwilling = new RevertingReceiver();
        vm.deal(address(unwilling), type(uint128).max);
    }

    function assets() public view returns (address[2] memory) {
        return [ETH, address(dollar)];
    }

    function owners() public view returns (address[4] memory) {
        return [payer, address(unwilling), host, otherHost];
    }

    function open(uint256 seed, uint96 deposit, uint80 price, uint80 promptPrice) external {
        IJobMarketplace.Terms memory terms = seed % 2 == 0 ? _terms() : _ethTerms();
        if (seed % 3 == 0) terms.host = otherHost;
        terms.deposit = _bound(deposit, 1, 1e24);
        terms.pricePerMillion = _bound(price, 0, 1e25);
        terms.promptPricePerMillion = _bound(promptPrice, 0, 1e25);
        terms.maxTokensPerSecond = seed % 5 == 0 ? 50 : 0;
        terms.claimWindow = 1 hours;
        terms.expiresAt = time + 2 days;
        if (seed % 4 == 1) {
            unwilling.call(address(market), terms.deposit, abi.encodeCall(market.createJob, (terms)));
        } else {
            _open(terms);
        }
    }

    function topUp(uint256 seed, uint96 amount) external {
        IJobMarketplace.Job memory job = _pick(seed);
        amount = uint96(_bound(amount, 1, 1e24));
        bytes memory data = abi.encodeCall(market.topUp, (_id(seed), amount));
        vm.prank(job.payer);
        _try(data, job.asset == ETH ? amount : 0);
    }

    function claim(uint256 seed, uint256 promptTokens, uint256 tokens) external {
        IProofSystem.Checkpoint memory row = _any(seed, promptTokens, tokens, false);
        IJobMarketplace.Job memory job = _pick(seed);
        vm.prank(job.host);
        _try(abi.encodeCall(market.submitCheckpoint, (row.jobId, row.tokens, row.proof)));
    }

    function claimMany(uint256[4] memory seeds, uint256 promptTokens, uint256 tokens) external {
        IProofSystem.Checkpoint[] memory rows = new IProofSystem.Checkpoint[](4);
        for (uint256 i; i < 4; ++i) {
            rows[i] = _any(seeds[i], promptTokens >> i, tokens >> i, seeds[i] % 7 == 0);
        }
        vm.prank(seeds[0] % 3 == 0 ? otherHost : host);
        market.submitCheckpoints(rows);
        _watch();
    }

    function complete(uint256 seed, uint256 who) external {
        IJobMarketplace.Job memory job = _pick(seed);
        address[4] memory parties = [job.payer, job.signer, job.host, stranger];
        bytes memory data = abi.encodeCall(market.completeSession, (_id(seed)));
        vm.prank(parties[who % 4]);
        _try(data);
    }

    function reclaim(uint256 seed) external {
        _try(abi.encodeCall(market.reclaim, (_id(seed))));
    }

    function withdraw(uint256 seed, uint256 asset) external {
        vm.prank(owners()[seed % 4]);
        _try(abi.encodeCall(market.withdraw, (assets()[asset % 2], stranger)));
    }

    function withdrawFor(uint256 seed, uint256 asset) external {
        _try(abi.encodeCall(market.withdrawFor, (owners()[seed % 4], assets()[asset % 2])));
    }

    function withdrawTreasury(uint256 asset) external {
        vm.prank(treasury);
        _try(abi.encodeCall(market.withdrawTreasury, (assets()[asset % 2], treasury)));
    }

    function pass(uint256 seconds_) external {
        time += _bound(seconds_, 1, 12 hours);
        vm.warp(time);
    }

    /// @dev What the marketplace holds of an asset.
    function held(address asset) external view returns (uint256) {
        return asset == ETH ? address(market).balance : dollar.balanceOf(address(market));
    }

    /// @dev What the marketplace owes in an asset: the rests of jobs that are not closed, and all balances.
    function due(address asset) external view returns (uint256 sum) {
        for (uint256 jobId = 1; jobId <= market.jobCount(); ++jobId) {
            IJobMarketplace.Job memory job = market.getJob(jobId);
            if (job.asset == asset && job.status != IJobMarketplace.Status.Closed) sum += job.deposit - job.owed;
        }
        for (uint256 i; i < 4; ++i) {
            (uint256 refunds, uint256 earnings) = market.balanceOf(owners()[i], asset);
            sum += refunds + earnings;
        }
        sum += market.treasuryBalance(asset);
    }

    /// @dev Whether every job is owed at most its deposit, and a tenth of that is the fee.
    function consistent() external view returns (bool) {
        for (uint256 jobId = 1; jobId <= market.jobCount(); ++jobId) {
            IJobMarketplace.Job memory job = market.getJob(jobId);
            if (job.owed > job.deposit || job.fee != job.owed / 10) return false;
        }
        return true;
    }

    /// @dev Closes every job and pays every balance out.
    function settleAll() external {
        vm.warp(time + 400 days);
        for (uint256 jobId = 1; jobId <= market.jobCount(); ++jobId) {
            _try(abi.encodeCall(market.reclaim, (jobId)));
        }
        for (uint256 asset; asset < 2; ++asset) {
            for (uint256 i; i < 4; ++i) {
                vm.prank(owners()[i]);
                _try(abi.encodeCall(market.withdraw, (assets()[asset], stranger)));
            }
            vm.prank(treasury);
            _try(abi.encodeCall(market.withdrawTreasury, (assets()[asset], treasury)));
        }
    }

    function _try(bytes memory data) private {
        _try(data, 0);
    }

    /// @dev A call that may be refused: what it must not do is what the invariants say.
    function _try(bytes memory data, uint256 value) private {
        (bool done,) = address(market).call{value: value}(data);
        if (done) _watch();
    }

    /// @dev What a job is owed never shrinks.
    function _watch() private {
        for (uint256 jobId = 1; jobId <= market.jobCount(); ++jobId) {
            uint256 owed = market.getJob(jobId).owed;
            if (owed < highestOwed[jobId]) shrank = true;
            highestOwed[jobId] = owed;
        }
    }

    function _id(uint256 seed) private view returns (uint256) {
        return seed % (market.jobCount() + 1);
    }

    function _pick(uint256 seed) private view returns (IJobMarketplace.Job memory) {
        return market.getJob(_id(seed));
    }

    /// @dev A row for any job: mostly a step ahead, sometimes anything.
    function _any(uint256 seed, uint256 promptTokens, uint256 tokens, bool complete_)
        private
        view
        returns (IProofSystem.Checkpoint memory row)
    {
        IJobMarketplace.Job memory job = _pick(seed);
        (promptTokens, tokens) = (promptTokens % STEP, tokens % STEP);
        if (seed % 4 != 0) (promptTokens, tokens) = (job.promptTokens + promptTokens, job.tokens + tokens);
        row = _row(_id(seed), promptTokens, tokens, complete_);
        if (job.maxTokensPerSecond > 0) row.proof = _attested(promptTokens);
        if (seed % 11 == 0) row.tokens += 1;
    }
}

/// @dev What holds after whatever anybody does.
contract InvariantsTest {
    Players private players;

    function setUp() public {
        players = new Players();
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(players);
    }

    function excludeSelectors() public view returns (FuzzSelector[] memory excluded) {
        excluded = new FuzzSelector[](1);
        excluded[0].addr = address(players);
        excluded[0].selectors = new bytes4[](2);
        excluded[0].selectors[0] = Players.settleAll.selector;
        excluded[0].selectors[1] = Fixture.setUp.selector;
    }

    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    function invariant_TheMarketplaceHoldsExactlyWhatItOwes() public view {
        for (uint256 i; i < 2; ++i) {
            address asset = players.assets()[i];
            vm.assertEq(players.held(asset), players.due(asset));
        }
    }

    function invariant_NoJobIsOwedMoreThanItsDepositOrEverLess() public view {
        vm.assertTrue(players.consistent());
        vm.assertTrue(!players.shrank());
    }

    function afterInvariant() public {
        players.settleAll();
        for (uint256 i; i < 2; ++i) {
            vm.assertEq(players.held(players.assets()[i]), 0);
        }
    }
}
