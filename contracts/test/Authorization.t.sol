// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IJobMarketplace} from "../src/interfaces/IJobMarketplace.sol";
import {Fixture} from "./Fixture.sol";
import {vm} from "./Vm.sol";

/// @notice Jobs that are opened and funded by a payer's EIP-3009 authorization, whoever sends it.
contract AuthorizationTest is Fixture {
    bytes32 private constant RECEIVE_TYPEHASH = keccak256(
        "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
    );
    uint256 private constant PAYER_KEY = 0xA11CE;
    uint256 private constant RELAY_FEE = 1_000;
    bytes32 private constant SALT = "salt";

    address private owner;
    address private relayer;

    function setUp() public override {
        super.setUp();
        (owner, relayer) = (vm.addr(PAYER_KEY), vm.addr(0x5E1A7));
        dollar.mint(owner, 1_000_000);
    }

    /// @dev The signed amount is divided into the job's deposit and the relayer's fee, and the signer is the payer.
    function test_APayerWithoutETHOpensAJob() public {
        IJobMarketplace.Terms memory terms = _terms();
        IJobMarketplace.Authorization memory auth = _authorize(terms.deposit, market.openNonce(terms, RELAY_FEE, SALT));

        vm.prank(relayer);
        uint256 jobId = market.createJobWithAuthorization(terms, RELAY_FEE, SALT, auth);

        IJobMarketplace.Job memory job = market.getJob(jobId);
        vm.assertEq(job.payer, owner);
        vm.assertEq(job.deposit, terms.deposit - RELAY_FEE);
        vm.assertEq(dollar.balanceOf(relayer), RELAY_FEE);
        vm.assertEq(dollar.balanceOf(address(market)), job.deposit);
        vm.assertEq(dollar.balanceOf(owner), 1_000_000 - terms.deposit);
    }

    /// @dev Whoever sends it, the whole amount that was signed for goes into the payer's job.
    function test_APayerWithoutETHTopsUp() public {
        IJobMarketplace.Terms memory terms = _terms();
        IJobMarketplace.Authorization memory auth = _authorize(terms.deposit, market.openNonce(terms, 0, SALT));
        uint256 jobId = market.createJobWithAuthorization(terms, 0, SALT, auth);

        auth = _authorize(7, market.topUpNonce(jobId, 7, SALT));
        vm.prank(relayer);
        market.topUpWithAuthorization(jobId, 7, SALT, auth);

        vm.assertEq(market.getJob(jobId).deposit, terms.deposit + 7);
        vm.assertEq(dollar.balanceOf(address(market)), terms.deposit + 7);
    }

    function _authorize(uint256 amount, bytes32 nonce) private view returns (IJobMarketplace.Authorization memory) {
        uint256 validBefore = block.timestamp + 1 hours;
        bytes32 message = keccak256(abi.encode(RECEIVE_TYPEHASH, owner, address(market), amount, 0, validBefore, nonce));
        (uint8 v, bytes32 r, bytes32 s) =
            vm.sign(PAYER_KEY, keccak256(abi.encodePacked(hex"1901", dollar.DOMAIN_SEPARATOR(), message)));
        return IJobMarketplace.Authorization(owner, 0, validBefore, abi.encodePacked(r, s, v));
    }
}
