// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {JobMarketplace} from "../src/JobMarketplace.sol";
import {NodeRegistry} from "../src/NodeRegistry.sol";
import {IJobMarketplace} from "../src/interfaces/IJobMarketplace.sol";
import {JobRecord} from "../src/libraries/JobRecord.sol";
import {Limits} from "../src/libraries/Limits.sol";
import {Prices} from "../src/libraries/Prices.sol";
import {Pricing} from "../src/libraries/Pricing.sol";
import {Tally} from "../src/libraries/Tally.sol";
import {vm} from "../test/Vm.sol";
import {svm} from "./Svm.sol";

/// @dev A token that moves what it is told to. An authorization is good if anything says so.
contract Coin {
    mapping(address => uint256) public balanceOf;
    bool public authorized;

    function set(address who, uint256 balance) external {
        balanceOf[who] = balance;
    }

    function transfer(address to, uint256 amount) public returns (bool) {
        _move(msg.sender, to, amount);
        return true;
    }

    function transferFrom(address from, address to, uint256 amount) external returns (bool) {
        _move(from, to, amount);
        return true;
    }

    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256,
        uint256,
        bytes32,
        bytes calldata
    ) external {
        authorized = true;
        _move(from, to, value);
    }

    function _move(address from, address to, uint256 amount) private {
        balanceOf[from] -= amount;
        balanceOf[to] += amount;
    }
}

/// @dev A payer that may or may not take what it is sent.
contract Payer {
    bool private _willing;

    function set(bool willing) external {
        _willing = willing;
    }

    receive() external payable {
        require(_willing);
    }
}

/// @dev The marketplace with two jobs, one in a token and one in ETH, in whatever state words of storage can say; and a call
/// of anybody with anything. What holds for every such call, whatever the state before it, holds for every history.
abstract contract AnyJobs {
    using Pricing for Prices;

    /// @dev What the marketplace has written down, and what it holds.
    struct Books {
        JobRecord[2] jobs;
        uint256[2] rests;
        uint256[2] newRests;
        uint256[2] earnings;
        uint256[2] refunds;
        uint256[2] fees;
        uint256[2] held;
    }

    address internal constant HOST = address(0x1057);
    address internal constant TREASURY = address(0x72ea);
    address internal constant ETH = address(0);

    // Where `forge inspect JobMarketplace storage-layout` has them, and NodeRegistry's.
    uint256 private constant JOBS = 2;
    uint256 private constant EARNINGS = 8;
    uint256 private constant FEES = 9;
    uint256 private constant REFUNDS = 10;
    uint256 private constant NODES = 0;

    /// @dev Deposits of 96 bits, of fewer than 2^64 jobs.
    uint256 private constant SUM_BITS = 160;

    NodeRegistry internal registry = new NodeRegistry();
    JobMarketplace internal market = new JobMarketplace(address(registry), TREASURY);
    Coin internal coin = new Coin();
    address internal payer = address(new Payer());
    address internal payout;

    function setUp() public {
        vm.prank(HOST);
        registry.registerNode(HOST, "x");
        coin.set(payer, 1);
        vm.deal(payer, 1);
        _create(address(coin));
        _create(ETH);
        _anything();
    }

    function _create(address asset) private {
        vm.prank(payer);
        market.createJob{value: asset == ETH ? 1 : 0}(
            IJobMarketplace.Terms(HOST, asset, 1, 0, 0, address(1), 0, 1 days, block.timestamp + 1 days, 1, 0)
        );
    }

    /// @dev The assets of job 1 and job 2, in this order.
    function _assets() private view returns (address[2] memory) {
        return [address(coin), ETH];
    }

    /// @dev Any words for both jobs, any balances, any time, a payer that takes its refund or does not.
    function _anything() private {
        for (uint256 i; i < 2; ++i) {
            _store(_slot(i + 1, JOBS), _anyTally());
            _store(_slot(i + 1, JOBS) + 1, _anyPrices(i));
            _store(_slot(i + 1, JOBS) + 2, svm.createUint256("limits"));
            _store(_slot(1 << 32 | i + 1, EARNINGS), svm.createUint(SUM_BITS, "earnings"));
            _store(_slot(i + 1, FEES), svm.createUint(SUM_BITS, "fees"));
            _store(_slot(i + 1, _slot(uint160(payer), REFUNDS)), svm.createUint(SUM_BITS, "refunds"));
        }
        _anyPayout();
        coin.set(address(market), svm.createUint256("coins"));
        vm.deal(address(market), svm.createUint256("ether"));
        vm.warp(svm.createUint256("now"));
        Payer(payable(payer)).set(svm.createBool("willing"));
    }

    /// @dev A job that exists; nothing above its `closed` bit is ever written.
    function _anyTally() private pure returns (uint256 word) {
        word = svm.createUint256("tally") & ((1 << 233) - 1);
        vm.assume(Tally.wrap(word).deposit() != 0);
    }

    function _anyPrices(uint256 i) private pure returns (uint256) {
        return svm.createUint256("prices") & ~(uint256(type(uint64).max) << 160) | (1 << 32 | i + 1) << 160;
    }

    /// @dev A registered host that has named a payout address, itself or another. Until it has, it is its own.
    function _anyPayout() private {
        payout = svm.createAddress("payout");
        vm.assume(payout != address(0));
        vm.store(address(registry), bytes32(_slot(uint160(HOST), NODES)), bytes32(1 << 160 | uint256(uint160(payout))));
    }

    function _books() internal view returns (Books memory books) {
        for (uint256 i; i < 2; ++i) {
            address asset = _assets()[i];
            books.jobs[i] = _job(i + 1);
            books.rests[i] = _rest(books.jobs[i]);
            books.newRests[i] = _newRest(i);
            (, books.earnings[i]) = market.balanceOf(HOST, asset);
            (books.refunds[i],) = market.balanceOf(payer, asset);
            books.fees[i] = market.treasuryBalance(asset);
        }
        books.held = [coin.balanceOf(address(market)), address(market).balance];
    }

    /// @dev The rest of a job that the call has opened, if it is in this asset.
    function _newRest(uint256 i) private view returns (uint256) {
        JobRecord memory job = _job(3);
        return job.prices.assetId() == i + 1 ? _rest(job) : 0;
    }

    function _job(uint256 jobId) private view returns (JobRecord memory) {
        uint256 slot = _slot(jobId, JOBS);
        return JobRecord({
            tally: Tally.wrap(_load(slot)),
            prices: Prices.wrap(_load(slot + 1)),
            limits: Limits.wrap(_load(slot + 2)),
            payer: address(uint160(_load(slot + 3)))
        });
    }

    /// @dev What is not yet earned of a job that is not closed.
    function _rest(JobRecord memory job) private pure returns (uint256) {
        unchecked {
            return (job.tally.deposit() - _owed(job.prices, job.tally)) & ((Tally.unwrap(job.tally) >> 232) - 1);
        }
    }

    function _owed(Prices prices, Tally tally) internal pure returns (uint256) {
        return prices.owed(tally.promptTokens(), tally.tokens());
    }

    /// @dev A call of `caller` with `data` and `value` that succeeds.
    function _call(address caller, uint256 value, bytes memory data) internal {
        vm.assume(_succeeds(caller, value, data));
    }

    /// @dev Whether such a call does. The marketplace never calls itself.
    function _succeeds(address caller, uint256 value, bytes memory data) internal returns (bool done) {
        vm.assume(caller != address(market));
        if (value != 0) vm.deal(caller, value);
        vm.prank(caller);
        (done,) = address(market).call{value: value}(data);
    }

    // What is known by its cases is computed with; what is known by equations alone has to be solved.

    function _anyValue() internal pure returns (uint256 value) {
        value = svm.createUint256("value");
        if (value == 0) return 0;
    }

    function _anyJob(uint256 jobId) internal returns (uint256) {
        if (jobId == 1) return _closedOrNot(1);
        if (jobId == 2) return _closedOrNot(2);
        return jobId;
    }

    function _closedOrNot(uint256 jobId) private returns (uint256) {
        return _isClosed(jobId) ? _known(jobId, 1) : _known(jobId, 0);
    }

    /// @dev A job that is known to be open.
    function _open(uint256 jobId) internal returns (uint256) {
        return _known(jobId, 0);
    }

    /// @dev The job's word as it is, its highest bit written as it is known to be.
    function _known(uint256 jobId, uint256 closed) private returns (uint256) {
        uint256 slot = _slot(jobId, JOBS);
        _store(slot, closed << 232 | _load(slot) << 24 >> 24);
        return jobId;
    }

    function _isClosed(uint256 jobId) internal view returns (bool) {
        return _load(_slot(jobId, JOBS)) >> 232 != 0;
    }

    function _anyHost(address who) internal pure returns (address) {
        return who == HOST ? HOST : who;
    }

    function _anyAsset(address asset) internal view returns (address) {
        if (asset == address(coin)) return address(coin);
        if (asset == ETH) return ETH;
        return asset;
    }

    function _anyParty(address who) internal view returns (address) {
        if (who == HOST) return HOST;
        if (who == payer) return payer;
        return who;
    }

    /// @dev A party that has any amount of the token.
    function _anyFunder(address who) internal returns (address funder) {
        funder = _anyParty(who);
        if (funder != address(market)) coin.set(funder, svm.createUint256("purse"));
    }

    function _slot(uint256 key, uint256 mapping_) private pure returns (uint256) {
        return uint256(keccak256(abi.encode(key, mapping_)));
    }

    function _store(uint256 slot, uint256 word) private {
        vm.store(address(market), bytes32(slot), bytes32(word));
    }

    function _load(uint256 slot) private view returns (uint256) {
        return uint256(vm.load(address(market), bytes32(slot)));
    }
}
