// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {JobMarketplace} from "../src/JobMarketplace.sol";
import {NodeRegistry} from "../src/NodeRegistry.sol";
import {IJobMarketplace} from "../src/interfaces/IJobMarketplace.sol";
import {Tally} from "../src/libraries/Tally.sol";
import {vm} from "../test/Vm.sol";
import {svm} from "./Svm.sol";

/// @dev A token of which everybody has any amount and has allowed the marketplace to take it. It keeps what it was told when
/// it was drawn on.
contract Purse {
    mapping(address => uint256) public balanceOf;
    uint256 public draws;
    address public drawnFrom;
    uint256 public drawn;
    bytes32 public authorizedWith;

    function transfer(address to, uint256 amount) external returns (bool) {
        balanceOf[msg.sender] -= amount;
        balanceOf[to] += amount;
        return true;
    }

    function transferFrom(address from, address to, uint256 amount) external returns (bool) {
        _draw(from, to, amount);
        return true;
    }

    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256,
        uint256,
        bytes32 nonce,
        bytes calldata
    ) external {
        authorizedWith = nonce;
        _draw(from, to, value);
    }

    function _draw(address from, address to, uint256 amount) private {
        (draws, drawnFrom, drawn) = (draws + 1, from, amount);
        balanceOf[to] += amount;
    }
}

/// @dev Whose a newly opened job is, and whose money pays for it: on any terms, at any time, opened by anybody.
/// @custom:halmos --solver-command "../.venv-proof/bin/python ../scripts/solve.py"
contract OpeningsProof {
    address private constant HOST = address(0x1057);
    // Where `forge inspect JobMarketplace storage-layout` has the jobs.
    uint256 private constant JOBS = 2;

    NodeRegistry private registry = new NodeRegistry();
    JobMarketplace private market = new JobMarketplace(address(registry), address(0x72ea));
    Purse private purse = new Purse();

    function setUp() public {
        vm.prank(HOST);
        registry.registerNode(HOST, "x");
    }

    function check_AJobInATokenIsItsSendersAndPaidByIt(address caller) external {
        IJobMarketplace.Terms memory terms = _anyTerms(address(purse));
        vm.assume(caller != address(market));

        vm.prank(caller);
        _succeeds(0, abi.encodeCall(market.createJob, (terms)));

        assert(_payer() == caller && _deposit() == terms.deposit);
        assert(purse.draws() == 1 && purse.drawnFrom() == caller && purse.drawn() == terms.deposit);
    }

    /// @dev A call can move no ETH but its sender's.
    function check_AJobInETHIsItsSendersAndPaidByIt(address caller, uint256 value) external {
        IJobMarketplace.Terms memory terms = _anyTerms(address(0));
        vm.assume(caller != address(market));

        vm.deal(caller, value);
        vm.prank(caller);
        _succeeds(value, abi.encodeCall(market.createJob, (terms)));

        assert(_payer() == caller && _deposit() == terms.deposit && value == terms.deposit);
        assert(purse.draws() == 0);
    }

    /// @dev And what was authorized is this opening: its terms, its relay fee, its salt.
    function check_AnAuthorizedJobIsTheAuthorizersAndPaidByIt(address caller, uint256 relayFee, bytes32 salt) external {
        IJobMarketplace.Terms memory terms = _anyTerms(address(purse));
        address from = svm.createAddress("from");
        vm.assume(caller != address(market) && from != address(market));

        IJobMarketplace.Authorization memory auth = IJobMarketplace.Authorization(from, 0, 0, "");
        vm.prank(caller);
        _succeeds(0, abi.encodeCall(market.createJobWithAuthorization, (terms, relayFee, salt, auth)));

        assert(_payer() == from && _deposit() == terms.deposit - relayFee);
        assert(purse.draws() == 1 && purse.drawnFrom() == from && purse.drawn() == terms.deposit);
        assert(purse.authorizedWith() == market.openNonce(terms, relayFee, salt));
    }

    function _anyTerms(address asset) private returns (IJobMarketplace.Terms memory) {
        vm.warp(svm.createUint256("now"));
        return IJobMarketplace.Terms({
            host: HOST,
            asset: asset,
            deposit: svm.createUint256("deposit"),
            pricePerMillion: svm.createUint256("price"),
            promptPricePerMillion: svm.createUint256("promptPrice"),
            signer: svm.createAddress("signer"),
            maxTokensPerSecond: svm.createUint256("rate"),
            claimWindow: svm.createUint256("claimWindow"),
            expiresAt: svm.createUint256("expiresAt"),
            checkpointInterval: svm.createUint256("interval"),
            modelId: bytes32(svm.createUint256("modelId"))
        });
    }

    function _succeeds(uint256 value, bytes memory data) private {
        (bool done,) = address(market).call{value: value}(data);
        vm.assume(done);
    }

    function _payer() private view returns (address) {
        return address(uint160(_word(3)));
    }

    function _deposit() private view returns (uint256) {
        return Tally.wrap(_word(0)).deposit();
    }

    /// @dev A word of the first job.
    function _word(uint256 offset) private view returns (uint256) {
        return uint256(vm.load(address(market), bytes32(uint256(keccak256(abi.encode(1, JOBS))) + offset)));
    }
}
