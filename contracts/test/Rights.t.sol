// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IJobMarketplace} from "../src/interfaces/IJobMarketplace.sol";
import {INodeRegistry} from "../src/interfaces/INodeRegistry.sol";
import {IProofSystem} from "../src/interfaces/IProofSystem.sol";
import {Abi} from "./Abi.sol";
import {Fixture} from "./Fixture.sol";
import {Vm, vm} from "./Vm.sol";
import {Delegate} from "./mocks/Delegate.sol";
import {Receiver, RevertingReceiver} from "./mocks/Receivers.sol";
import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";

/// @dev Who may do what: for each right somebody who has it not tries to use it.
contract RightsTest is Fixture {
    bytes private constant ONLY_HOST = "Only host can submit checkpoints";
    uint256 private constant DEPOSIT = 500_000;
    uint256 private constant STRANGER_KEY = 0x57a6;

    address private immutable cold = vm.addr(0xc01d);

    // The registry

    function test_NobodyRegistersAnother() public {
        address newcomer = vm.addr(0x3057);
        address[4] memory others = [host, payer, treasury, stranger];

        for (uint256 i; i < others.length; ++i) {
            _refuses(INodeRegistry.NotTheHost.selector, others[i], newcomer);
            vm.prank(others[i]);
            registry.registerNode(newcomer, "mine");
        }

        vm.assertTrue(!registry.isRegistered(newcomer));
    }

    function test_NobodyKeepsANewcomersAddressFromIt() public {
        address newcomer = vm.addr(0x3057);
        _refuses(INodeRegistry.NotThePayout.selector, stranger, newcomer);
        vm.prank(stranger);
        registry.setPayout(newcomer, stranger);

        _register(newcomer);

        vm.assertTrue(registry.isRegistered(newcomer));
        vm.assertEq(registry.payoutOf(newcomer), newcomer);
    }

    function test_NobodyUpdatesAnother() public {
        _refuses(INodeRegistry.NotRegistered.selector, stranger);
        vm.prank(stranger);
        registry.updateNode("ipfs://mine");

        vm.expectEmit(address(registry));
        emit INodeRegistry.NodeUpdated(otherHost, "ipfs://mine");
        vm.prank(otherHost);
        registry.updateNode("ipfs://mine");
    }

    function test_NobodyUnregistersAnother() public {
        _refuses(INodeRegistry.NotRegistered.selector, stranger);
        vm.prank(stranger);
        registry.unregisterNode();
        vm.prank(otherHost);
        registry.unregisterNode();

        vm.assertTrue(registry.isRegistered(host));
    }

    function test_NobodyRedirectsAnothersEarnings() public {
        address[4] memory others = [otherHost, payer, treasury, stranger];

        for (uint256 i; i < others.length; ++i) {
            _refuses(INodeRegistry.NotThePayout.selector, others[i], host);
            vm.prank(others[i]);
            registry.setPayout(host, others[i]);
        }
    }

    /// @dev Not what was earned before the host named a payout address, nor what it earns after the theft.
    function test_AThiefOfTheHotKeyRedirectsNothing() public {
        _claim(_open(), 0, 47_580);
        vm.prank(host);
        registry.setPayout(host, cold);
        _claim(_open(), 0, 47_580);

        _refuses(INodeRegistry.NotThePayout.selector, host, cold);
        vm.prank(host);
        registry.setPayout(host, stranger);
        _refuses(IJobMarketplace.PayoutElsewhere.selector, cold);
        vm.prank(host);
        market.withdraw(address(dollar), stranger);
        vm.prank(host);
        registry.unregisterNode();
        _register(host);
        _refuses(INodeRegistry.NotThePayout.selector, host, cold);
        vm.prank(host);
        registry.setPayout(host, stranger);

        vm.prank(host);
        market.withdrawFor(host, address(dollar));
        vm.assertEq(dollar.balanceOf(cold), 2 * 38_711);
    }

    function test_AFormerPayoutAddressRedirectsNothing() public {
        vm.prank(host);
        registry.setPayout(host, stranger);
        vm.prank(stranger);
        registry.setPayout(host, cold);

        _refuses(INodeRegistry.NotThePayout.selector, stranger, cold);
        vm.prank(stranger);
        registry.setPayout(host, stranger);
    }

    // Opening and topping up

    function test_NobodyOpensAJobWithAnothersAllowance() public {
        _refuses(IERC20Errors.ERC20InsufficientAllowance.selector, uint160(address(market)), 0, DEPOSIT);
        vm.prank(stranger);
        market.createJob(_terms());
    }

    function test_NobodyOpensAJobInAnothersName() public {
        IJobMarketplace.Terms memory terms = _terms();
        bytes32 nonce = market.openNonce(terms, 0, SALT);
        IJobMarketplace.Authorization memory auth = _authorize(STRANGER_KEY, terms.asset, DEPOSIT, nonce);
        dollar.mint(stranger, DEPOSIT);

        // Neither with a stranger's signature, nor with one that the stranger gave in the payer's name.
        auth.from = payer;
        _refuses(ERC3009.ERC3009InvalidSignature.selector);
        market.createJobWithAuthorization(terms, 0, SALT, auth);
        auth.signature = _signAuthorization(STRANGER_KEY, terms.asset, DEPOSIT, nonce, auth);
        _refuses(ERC3009.ERC3009InvalidSignature.selector);
        market.createJobWithAuthorization(terms, 0, SALT, auth);

        vm.assertEq(market.jobCount(), 0);
    }

    function test_NobodyTopsUpAStrangersJob() public {
        uint256 jobId = _open();
        address[4] memory others = [host, signer, treasury, stranger];

        for (uint256 i; i < others.length; ++i) {
            _refuses(IJobMarketplace.NotThePayer.selector, others[i], payer);
            vm.prank(others[i]);
            market.topUp(jobId, 7);
        }
    }

    /// @dev Not even with money of its own, rightly authorized.
    function test_NobodyTopsUpAStrangersJobByAuthorization() public {
        uint256 jobId = _open();
        dollar.mint(stranger, 7);
        IJobMarketplace.Authorization memory auth =
            _authorize(STRANGER_KEY, address(dollar), 7, market.topUpNonce(jobId, 7, SALT));

        _refuses(IJobMarketplace.NotThePayer.selector, stranger, payer);
        market.topUpWithAuthorization(jobId, 7, SALT, auth);
        auth.from = payer;
        _refuses(ERC3009.ERC3009InvalidSignature.selector);
        market.topUpWithAuthorization(jobId, 7, SALT, auth);
    }

    // Completing and reclaiming

    function test_NobodyButHostPayerAndSignerCompletes() public {
        vm.prank(host);
        registry.setPayout(host, cold);
        uint256 jobId = _open();
        address[4] memory others = [otherHost, cold, treasury, stranger];

        for (uint256 i; i < others.length; ++i) {
            vm.expectRevert(abi.encodeWithSelector(IJobMarketplace.NotAParty.selector, jobId, others[i]));
            _complete(others[i], jobId);
        }

        _assertStatus(jobId, IJobMarketplace.Status.Open);
    }

    /// @dev The signer of one job, and the payer of it, are nobody to another.
    function test_NobodyCompletesAnotherJobThanItsOwn() public {
        IJobMarketplace.Terms memory terms = _terms();
        terms.signer = vm.addr(0x516e2);
        dollar.mint(stranger, DEPOSIT);
        vm.prank(stranger);
        dollar.approve(address(market), DEPOSIT);
        vm.prank(stranger);
        uint256 jobId = market.createJob(terms);
        uint256 other = _open();

        vm.expectRevert(abi.encodeWithSelector(IJobMarketplace.NotAParty.selector, jobId, signer));
        _complete(signer, jobId);
        vm.expectRevert(abi.encodeWithSelector(IJobMarketplace.NotAParty.selector, jobId, payer));
        _complete(payer, jobId);
        vm.expectRevert(abi.encodeWithSelector(IJobMarketplace.NotAParty.selector, other, stranger));
        _complete(stranger, other);
    }

    function test_NobodyReclaimsEarly() public {
        uint256 jobId = _open();
        _complete(signer, jobId);
        vm.warp(START + 12 hours - 1);
        address[5] memory all = [payer, signer, host, treasury, stranger];

        for (uint256 i; i < all.length; ++i) {
            _refuses(IJobMarketplace.NotYetReclaimable.selector, jobId, START + 12 hours);
            vm.prank(all[i]);
            market.reclaim(jobId);
        }
    }

    function test_NobodyReclaimsForItself() public {
        uint256 jobId = _open();
        uint256 before = dollar.balanceOf(payer);
        vm.warp(START + 7 days + 12 hours);

        vm.prank(stranger);
        market.reclaim(jobId);

        vm.assertEq(dollar.balanceOf(payer) - before, DEPOSIT);
        vm.assertEq(dollar.balanceOf(stranger), 0);
    }

    // Claiming

    function test_NobodyButTheHostClaims() public {
        vm.prank(host);
        registry.setPayout(host, cold);
        uint256 jobId = _open();
        bytes memory proof = _proof(jobId, 5, 100);
        address[6] memory others = [payer, signer, otherHost, cold, treasury, stranger];

        for (uint256 i; i < others.length; ++i) {
            vm.expectRevert(ONLY_HOST);
            vm.prank(others[i]);
            market.submitCheckpoint(jobId, 100, proof);
        }

        _assertTotals(jobId, 0, 0);
    }

    function test_NobodyButTheHostClaimsOrClosesInABatch() public {
        vm.prank(host);
        registry.setPayout(host, cold);
        uint256 jobId = _open();
        IProofSystem.Checkpoint[] memory rows = new IProofSystem.Checkpoint[](2);
        (rows[0], rows[1]) = (_row(jobId, 5, 100, true), _row(jobId, 0, 0, true));
        address[6] memory others = [payer, signer, otherHost, cold, treasury, stranger];

        for (uint256 i; i < others.length; ++i) {
            vm.recordLogs();
            vm.prank(others[i]);
            market.submitCheckpoints(rows);
            Vm.Log[] memory logs = vm.getRecordedLogs();

            vm.assertEq(logs.length, 2);
            bytes memory reason = abi.encode(IProofSystem.NotTheHost.selector, others[i], host);
            vm.assertEq(logs[0].data, reason);
            vm.assertEq(logs[1].data, reason);
            vm.assertEq(_earned(others[i], address(dollar)), 0);
        }

        _assertTotals(jobId, 0, 0);
        _assertStatus(jobId, IJobMarketplace.Status.Open);
    }

    // Withdrawing

    function test_NobodyWithdrawsAnothersBalance() public {
        address creditor = _someBalances();
        address[4] memory others = [payer, otherHost, treasury, stranger];

        for (uint256 i; i < others.length; ++i) {
            _refuses(IJobMarketplace.NothingToWithdraw.selector, others[i], ETH);
            vm.prank(others[i]);
            market.withdraw(ETH, others[i]);
        }
        _refuses(IJobMarketplace.NothingToWithdraw.selector, others[0], ETH);
        market.withdrawFor(others[0], ETH);

        vm.assertEq(_refunds(creditor, ETH), 456_988);
        vm.assertEq(_earned(host, ETH), 38_711);
        vm.assertEq(market.treasuryBalance(ETH), 4_301);
    }

    /// @dev The host has earned, and somebody else is credited a refund: each is paid its own and no more.
    function test_NobodyIsPaidMoreThanItsOwn() public {
        address creditor = _someBalances();
        vm.prank(host);
        market.withdraw(ETH, cold);
        Receiver(payable(creditor)).call(address(market), 0, abi.encodeCall(market.withdraw, (ETH, stranger)));
        vm.prank(treasury);
        market.withdrawTreasury(ETH, treasury);

        vm.assertEq(cold.balance, 38_711);
        vm.assertEq(stranger.balance, 456_988);
        vm.assertEq(treasury.balance, 4_301);
        vm.assertEq(address(market).balance, 0);
    }

    function test_NobodySendsAnothersBalanceElsewhere() public {
        _claim(_open(), 0, 47_580);

        vm.prank(stranger);
        market.withdrawFor(host, address(dollar));

        vm.assertEq(dollar.balanceOf(host), 38_711);
        vm.assertEq(dollar.balanceOf(stranger), 0);
    }

    function test_NobodyButTheTreasuryWithdrawsItsTenth() public {
        _claim(_open(), 0, 47_580);
        // The last one has deployed the contract.
        address[6] memory others = [host, payer, signer, otherHost, stranger, address(this)];

        for (uint256 i; i < others.length; ++i) {
            _refuses(IJobMarketplace.NotTheTreasury.selector, others[i], treasury);
            vm.prank(others[i]);
            market.withdrawTreasury(address(dollar), others[i]);
        }
    }

    // No owner, no pause, no upgrade

    /// @dev Each of these has its tests above; there is no other entry, and so none for an owner.
    function test_NothingElseChangesTheMarketplace() public view {
        bytes4[11] memory entries = [
            market.createJob.selector,
            market.createJobWithAuthorization.selector,
            market.topUp.selector,
            market.topUpWithAuthorization.selector,
            market.completeSession.selector,
            market.reclaim.selector,
            market.withdraw.selector,
            market.withdrawFor.selector,
            market.withdrawTreasury.selector,
            market.submitCheckpoint.selector,
            market.submitCheckpoints.selector
        ];
        bytes4[] memory changing = Abi.changing("JobMarketplace");

        vm.assertEq(changing.length, entries.length);
        for (uint256 i; i < entries.length; ++i) {
            vm.assertTrue(_has(changing, entries[i]), vm.toString(i));
        }
    }

    function test_NothingElseChangesTheRegistry() public view {
        bytes4[4] memory entries = [
            registry.registerNode.selector,
            registry.updateNode.selector,
            registry.unregisterNode.selector,
            registry.setPayout.selector
        ];
        bytes4[] memory changing = Abi.changing("NodeRegistry");

        vm.assertEq(changing.length, entries.length);
        for (uint256 i; i < entries.length; ++i) {
            vm.assertTrue(_has(changing, entries[i]), vm.toString(i));
        }
    }

    function test_NoneOfTheCodeCanBecomeOrRunAnother() public view {
        vm.assertEq(_foreign(address(market).code), 0);
        vm.assertEq(_foreign(address(registry).code), 0);
    }

    function test_TheWalkOverTheCodeFindsWhatItLooksFor() public {
        vm.assertEq(_foreign(address(new Delegate()).code), 0xf4);
        bytes1[5] memory foreign = [bytes1(0xf0), 0xf2, 0xf4, 0xf5, 0xff];
        for (uint256 i; i < foreign.length; ++i) {
            vm.assertEq(_foreign(abi.encodePacked(hex"6000", foreign[i])), uint8(foreign[i]));
            vm.assertEq(_foreign(abi.encodePacked(hex"61", foreign[i], foreign[i])), 0);
        }
    }

    /// @dev The first opcode that would run another's code in the contract's place, make a contract, or end this one; zero
    /// if there is none. What PUSH carries is no opcode.
    function _foreign(bytes memory code) private pure returns (uint256) {
        for (uint256 i; i < code.length; ++i) {
            uint256 opcode = uint8(code[i]);
            if (opcode == 0xf0 || opcode == 0xf2 || opcode == 0xf4 || opcode == 0xf5 || opcode == 0xff) return opcode;
            if (opcode >= 0x60 && opcode <= 0x7f) i += opcode - 0x5f;
        }
        return 0;
    }

    /// @dev In ETH: the host has earned 38 711, the treasury 4 301, and a payer is credited 456 988.
    function _someBalances() private returns (address creditor) {
        creditor = address(new RevertingReceiver());
        _submit(_row(_openAs(Receiver(payable(creditor))), 0, 47_580, true));
    }

    function _has(bytes4[] memory list, bytes4 selector) private pure returns (bool) {
        for (uint256 i; i < list.length; ++i) {
            if (list[i] == selector) return true;
        }
        return false;
    }
}
