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
        _open(address(coin));
        _open(ETH);
    }

    function _open(address asset) private {
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
    function _anything() internal {
        for (uint256 i; i < 2; ++i) {
            _store(_slot(i + 1, JOBS), _anyTally());
            _store(_slot(i + 1, JOBS) + 1, _anyPrices(i));
            _store(_slot(i + 1, JOBS) + 2, svm.createUint256("limits"));
            _store(_slot(1 << 32 | i + 1, EARNINGS), svm.createUint256("earnings"));
            _store(_slot(i + 1, FEES), svm.createUint256("fees"));
            _store(_slot(i + 1, _slot(uint160(payer), REFUNDS)), svm.createUint256("refunds"));
        }
        _anyPayout();
        coin.set(address(market), svm.createUint256("coins"));
        vm.deal(address(market), svm.createUint256("ether"));
        vm.warp(svm.createUint256("now"));
        Payer(payable(payer)).set(svm.createBool("willing"));
    }

    /// @dev A job that exists; nothing above its `closed` bit is ever written.
    function _anyTally() private pure returns (uint256 word) {
        word = svm.createUint256("tally");
        vm.assume(Tally.wrap(word).deposit() != 0 && word >> 233 == 0);
    }

    function _anyPrices(uint256 i) private pure returns (uint256 word) {
        word = svm.createUint256("prices");
        vm.assume(Prices.wrap(word).account() == (1 << 32 | i + 1));
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
            books.rests[i] = _rest(books.jobs[i]) + _newRest(i);
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
            uint256 owed = job.prices.owed(job.tally.promptTokens(), job.tally.tokens());
            return (job.tally.deposit() - owed) & ((Tally.unwrap(job.tally) >> 232) - 1);
        }
    }

    /// @dev A call of `function_` by `caller`, with any arguments and any value, that succeeds. The marketplace never calls
    /// itself.
    function _call(address caller, bytes4 function_) internal {
        vm.assume(caller != address(market));
        uint256 value = svm.createUint256("value");
        bytes memory data = svm.createCalldata("JobMarketplace");
        vm.assume(bytes4(data) == function_);

        vm.deal(caller, value);
        vm.prank(caller);
        (bool done,) = address(market).call{value: value}(data);
        vm.assume(done);
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
