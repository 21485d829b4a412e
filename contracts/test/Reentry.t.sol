// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IJobMarketplace} from "../src/interfaces/IJobMarketplace.sol";
import {IProofSystem} from "../src/interfaces/IProofSystem.sol";
import {Abi} from "./Abi.sol";
import {Fixture} from "./Fixture.sol";
import {vm} from "./Vm.sol";
import {CallbackReceiver} from "./mocks/Receivers.sol";
import {CallbackToken} from "./mocks/Tokens.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

/// @dev Whoever the marketplace calls finds each of its entries shut.
contract ReentryTest is Fixture {
    bytes4 private constant SHUT = ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector;

    function test_EveryEntryThatChangesAnythingIsTriedFromWithin() public view {
        bytes4[] memory changing = Abi.changing("JobMarketplace");
        bytes[] memory entries = _entries();

        vm.assertEq(entries.length, changing.length);
        for (uint256 i; i < changing.length; ++i) {
            vm.assertTrue(_has(entries, changing[i]), vm.toString(uint32(changing[i])));
        }
    }

    function test_ATokenFindsEveryEntryShutWheneverItMoves() public {
        bytes[] memory entries = _entries();
        for (uint256 i; i < entries.length; ++i) {
            vm.warp(START);
            CallbackToken token = new CallbackToken();
            token.mint(payer, 10_000_000);
            vm.prank(payer);
            token.approve(address(market), type(uint256).max);
            token.callBack(address(market), entries[i]);

            uint256 moves = _moveInEveryWay(address(token));

            vm.assertEq(token.moves(), moves, "moves");
            vm.assertEq(token.refusals(SHUT), moves, "refusals");
        }
    }

    function test_AReceiverOfETHFindsEveryEntryShutWheneverItIsPaid() public {
        bytes[] memory entries = _entries();
        for (uint256 i; i < entries.length; ++i) {
            vm.warp(START);
            CallbackReceiver receiver = new CallbackReceiver();
            receiver.call(address(registry), 0, abi.encodeCall(registry.registerNode, (address(receiver), "x")));
            receiver.callBack(address(market), entries[i]);

            uint256 payments = _payInEveryWay(receiver);

            vm.assertEq(receiver.moves(), payments, "payments");
            vm.assertEq(receiver.refusals(SHUT), payments, "refusals");
        }
    }

    /// @dev Three jobs in a token, from opening to withdrawal, and how often that moves it.
    function _moveInEveryWay(address token) private returns (uint256 moves) {
        IJobMarketplace.Terms memory terms = _terms();
        terms.asset = token;
        uint256 first = _open(terms);
        vm.prank(payer);
        market.topUp(first, 7);
        _claim(first, 0, 47_580);
        _complete(host, first);
        vm.prank(host);
        market.withdraw(token, host);
        moves = 4;

        uint256 second = market.createJobWithAuthorization(terms, 1_000, SALT, _authorizeOpening(terms, 1_000));
        market.topUpWithAuthorization(second, 7, SALT, _authorizeTopUp(second, 7));
        _submit(_row(second, 0, 47_580, true));
        market.withdrawFor(host, token);
        moves += 5;

        uint256 third = _open(terms);
        _complete(payer, third);
        vm.warp(START + 12 hours);
        market.reclaim(third);
        vm.prank(treasury);
        market.withdrawTreasury(token, treasury);
        moves += 3;
    }

    /// @dev Pays somebody ETH as a payer, a host and whom a host and the treasury like, and how often that was.
    function _payInEveryWay(CallbackReceiver receiver) private returns (uint256 payments) {
        _complete(host, _openAs(receiver));
        _submit(_row(_openAs(receiver), 0, 47_580, true));
        uint256 jobId = _openAs(receiver);
        receiver.call(address(market), 0, abi.encodeCall(market.completeSession, (jobId)));
        vm.warp(START + 12 hours);
        market.reclaim(jobId);
        payments = 3;

        IJobMarketplace.Terms memory terms = _ethTerms();
        terms.host = address(receiver);
        jobId = _open(terms);
        bytes memory proof = _proof(jobId, 0, 47_580);
        receiver.call(address(market), 0, abi.encodeCall(market.submitCheckpoint, (jobId, 47_580, proof)));
        market.withdrawFor(address(receiver), ETH);
        vm.prank(host);
        market.withdraw(ETH, address(receiver));
        vm.prank(treasury);
        market.withdrawTreasury(ETH, address(receiver));
        payments += 3;
    }

    /// @dev A call of each entry that changes anything.
    function _entries() private view returns (bytes[] memory entries) {
        IJobMarketplace.Authorization memory auth = _authorizeOpening(_terms(), 0);
        entries = new bytes[](11);
        entries[0] = abi.encodeCall(market.createJob, (_terms()));
        entries[1] = abi.encodeCall(market.createJobWithAuthorization, (_terms(), 0, SALT, auth));
        entries[2] = abi.encodeCall(market.topUp, (1, 1));
        entries[3] = abi.encodeCall(market.topUpWithAuthorization, (1, 1, SALT, auth));
        entries[4] = abi.encodeCall(market.completeSession, (1));
        entries[5] = abi.encodeCall(market.reclaim, (1));
        entries[6] = abi.encodeCall(market.withdraw, (ETH, stranger));
        entries[7] = abi.encodeCall(market.withdrawFor, (host, ETH));
        entries[8] = abi.encodeCall(market.withdrawTreasury, (ETH, stranger));
        entries[9] = abi.encodeCall(market.submitCheckpoint, (1, 0, _attested(0)));
        entries[10] = abi.encodeCall(market.submitCheckpoints, (new IProofSystem.Checkpoint[](0)));
    }

    function _has(bytes[] memory entries, bytes4 selector) private pure returns (bool) {
        for (uint256 i; i < entries.length; ++i) {
            if (bytes4(entries[i]) == selector) return true;
        }
        return false;
    }
}
