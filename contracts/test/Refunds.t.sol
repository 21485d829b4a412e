// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IJobMarketplace} from "../src/interfaces/IJobMarketplace.sol";
import {IProofSystem} from "../src/interfaces/IProofSystem.sol";
import {Fixture} from "./Fixture.sol";
import {vm} from "./Vm.sol";
import {
    BombReceiver,
    GasBurningReceiver,
    GasMeteringReceiver,
    HungryReceiver,
    Receiver,
    RevertingReceiver,
    WillingReceiver
} from "./mocks/Receivers.sol";
import {TestDollar} from "./mocks/TestDollar.sol";
import {
    AnsweringToken,
    GiftToken,
    HungryToken,
    ListedToken,
    SilentToken,
    SurchargeToken,
    TollToken
} from "./mocks/Tokens.sol";
import {IERC20Errors} from "@openzeppelin/contracts/interfaces/draft-IERC6093.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

/// @dev Exits cannot be blocked, and no receiver or token can do more harm than to itself.
contract RefundsTest is Fixture {
    uint256 private constant DEPOSIT = 500_000;

    function test_AReceiverThatRevertsIsCreditedAndBlocksNobody() public {
        Receiver receiver = new RevertingReceiver();
        uint256 jobId = _openAs(receiver);
        _claim(jobId, 0, 47_580);

        vm.expectEmit(address(market));
        emit IProofSystem.RefundCredited(jobId, address(receiver), ETH, 456_988);
        _complete(host, jobId);

        _assertStatus(jobId, IJobMarketplace.Status.Closed);
        vm.assertEq(_refunds(address(receiver), ETH), 456_988);
        vm.prank(host);
        market.withdraw(ETH, host);
        vm.assertEq(host.balance, 38_711);
    }

    function test_ACreditedRefundIsPulledToWhomThePayerLikes() public {
        Receiver receiver = new RevertingReceiver();
        _complete(host, _openAs(receiver));

        vm.expectEmit(address(market));
        emit IJobMarketplace.Withdrawn(address(receiver), ETH, stranger, DEPOSIT, 0);
        receiver.call(address(market), 0, abi.encodeCall(market.withdraw, (ETH, stranger)));

        vm.assertEq(stranger.balance, DEPOSIT);
        vm.assertEq(_refunds(address(receiver), ETH), 0);
    }

    function test_CreditedRefundsOfSeveralJobsAddUp() public {
        Receiver receiver = new RevertingReceiver();
        (uint256 first, uint256 second) = (_openAs(receiver), _openAs(receiver));

        _complete(host, first);
        _complete(host, second);

        vm.assertEq(_refunds(address(receiver), ETH), 2 * DEPOSIT);
    }

    function test_APullThatFailsReverts() public {
        Receiver receiver = new RevertingReceiver();
        _complete(host, _openAs(receiver));

        vm.expectRevert("no, thank you");
        market.withdrawFor(address(receiver), ETH);

        vm.assertEq(_refunds(address(receiver), ETH), DEPOSIT);
    }

    function test_AReceiverIsGivenAHundredThousandGas() public {
        GasMeteringReceiver receiver = new GasMeteringReceiver();
        _complete(host, _openAs(receiver));

        // With the 2 300 that come with value, less what it took to get there.
        vm.assertLe(100_000, receiver.gasGiven());
        vm.assertLe(receiver.gasGiven(), 102_300);
        vm.assertEq(address(receiver).balance, DEPOSIT);
    }

    function test_AReceiverThatBurnsItsGasIsCredited() public {
        Receiver receiver = new GasBurningReceiver();
        uint256 jobId = _openAs(receiver);

        vm.prank(host);
        market.completeSession{gas: 300_000}(jobId);

        vm.assertEq(_refunds(address(receiver), ETH), DEPOSIT);
    }

    function test_AReturnBombCostsNobodyButItself() public {
        Receiver receiver = new BombReceiver();
        uint256 jobId = _openAs(receiver);

        vm.prank(host);
        market.completeSession{gas: 300_000}(jobId);

        vm.assertEq(_refunds(address(receiver), ETH), DEPOSIT);
    }

    function test_ReceiversThatBurnTheirGasCostTheHostUnder160000Each() public {
        IProofSystem.Checkpoint[] memory rows = new IProofSystem.Checkpoint[](10);
        for (uint256 i; i < rows.length; ++i) {
            rows[i] = _row(_openAs(new GasBurningReceiver()), 0, 0, true);
        }
        bytes memory data = abi.encodeCall(market.submitCheckpoints, (rows));

        uint256 before = gasleft();
        vm.prank(host);
        (bool closed,) = address(market).call(data);
        uint256 spent = before - gasleft();

        vm.assertTrue(closed);
        vm.assertLe(rows.length * 100_000, spent);
        vm.assertLe(spent, rows.length * 160_000);
        vm.assertEq(market.getJob(rows.length).owed, 0);
    }

    /// @dev Either every receiver has its money, or nothing has happened. In a transaction of its own, with all of it cold.
    /// forge-config: default.isolate = true
    /// forge-config: deep.isolate = true
    function testFuzz_NoChoiceOfGasStarvesARefund(uint256 gas, uint256 way) public {
        way = _bound(way, 0, 4);
        bytes memory data = _closings(way);
        gas = way < 3 ? _bound(gas, 50_000, 300_000) : _bound(gas, 100_000, 1_000_000);

        vm.prank(host);
        (bool closed, bytes memory reason) = address(market).call{gas: gas}(data);

        if (closed) {
            _assertDelivered();
        } else {
            vm.assertTrue(reason.length == 0 || bytes4(reason) == IProofSystem.RefundNeedsGas.selector);
            for (uint256 jobId = 1; jobId <= market.jobCount(); ++jobId) {
                _assertStatus(jobId, IJobMarketplace.Status.Open);
            }
        }
    }

    /// @dev The least gas with which a call succeeds, to which `eth_estimateGas` halves its way.
    /// forge-config: default.isolate = true
    /// forge-config: deep.isolate = true
    function test_TheGasThatIsEstimatedStarvesNoRefund() public {
        for (uint256 way; way < 5; ++way) {
            uint256 clean = vm.snapshotState();
            bytes memory data = _closings(way);
            uint256 gas = _estimate(data);

            vm.prank(host);
            (bool closed,) = address(market).call{gas: gas - 1}(data);
            vm.assertTrue(!closed);
            vm.prank(host);
            (closed,) = address(market).call{gas: gas}(data);
            vm.assertTrue(closed);
            _assertDelivered();
            vm.revertToStateAndDelete(clean);
        }
    }

    function test_TooLittleGasRevertsWithBothFigures() public {
        Receiver receiver = new WillingReceiver();
        uint256 jobId = _openAs(receiver);

        vm.prank(host);
        (bool closed, bytes memory reason) =
            address(market).call{gas: 150_000}(abi.encodeCall(market.completeSession, (jobId)));

        vm.assertTrue(!closed);
        vm.assertEq(bytes32(bytes4(reason)), bytes32(IProofSystem.RefundNeedsGas.selector));
        vm.assertEq(reason.length, 68);
        (uint256 left, uint256 needed) = _two(reason);
        vm.assertTrue(left < needed);
        vm.assertEq(needed, 180_000);
    }

    function test_ExactlyTheGasThatIsNeededIsEnough() public {
        bytes memory data = abi.encodeCall(market.completeSession, (_openAs(new WillingReceiver())));
        (uint256 left, uint256 needed) = _two(_endWith(data, 150_000));
        uint256 enough = 150_000 + needed - left;

        (left,) = _two(_endWith(data, enough - 1));
        vm.assertEq(left, needed - 1);
        vm.assertEq(_endWith(data, enough).length, 0);
        _assertDelivered();
    }

    function test_ARefundThatFailsInABatchIsCreditedAndTheOthersAreSent() public {
        uint256 first = _openAs(new RevertingReceiver());
        uint256 second = _open(_ethTerms());
        uint256 third = _openAs(new BombReceiver());
        uint256 fourth = _open();
        (uint256 wei_, uint256 dollars) = (payer.balance, dollar.balanceOf(payer));
        IProofSystem.Checkpoint[] memory rows = new IProofSystem.Checkpoint[](4);
        rows[0] = _row(first, 0, 47_580, true);
        rows[1] = _row(second, 0, 47_580, true);
        rows[2] = _row(third, 0, 47_580, true);
        rows[3] = _row(fourth, 0, 47_580, true);

        _submit(rows);

        vm.assertEq(payer.balance - wei_, 456_988);
        vm.assertEq(dollar.balanceOf(payer) - dollars, 456_988);
        vm.assertEq(_refunds(market.getJob(first).payer, ETH), 456_988);
        vm.assertEq(_refunds(market.getJob(third).payer, ETH), 456_988);
        vm.assertEq(_earned(host, ETH), 3 * 38_711);
        vm.assertEq(_earned(host, address(dollar)), 38_711);
    }

    function test_NothingIsSentWhenNothingIsLeft() public {
        IJobMarketplace.Terms memory terms = _ethTerms();
        terms.deposit = 90;
        terms.pricePerMillion = 900_000;
        uint256 jobId = _openAs(new RevertingReceiver(), terms);
        _claim(jobId, 0, 100);

        vm.expectEmit(address(market));
        emit IProofSystem.SessionCompleted(jobId, 90, 9, 0);
        _complete(host, jobId);

        vm.assertEq(_refunds(market.getJob(jobId).payer, ETH), 0);
    }

    // Tokens

    function test_ATokenThatReturnsNothingIsAsGood() public {
        SilentToken token = new SilentToken();
        token.mint(payer, DEPOSIT);
        uint256 jobId = _open(_termsIn(address(token)));
        _claim(jobId, 0, 47_580);
        _complete(host, jobId);
        vm.prank(host);
        market.withdraw(address(token), host);

        vm.assertEq(token.balanceOf(payer), 456_988);
        vm.assertEq(token.balanceOf(host), 38_711);
    }

    function test_ATokenThatRefusesThePayerHasItsRefundCredited() public {
        for (uint256 way; way < 3; ++way) {
            ListedToken token = new ListedToken();
            token.mint(payer, DEPOSIT);
            vm.prank(payer);
            token.approve(address(market), DEPOSIT);
            uint256 jobId = _open(_termsIn(address(token)));
            _claim(jobId, 0, 47_580);
            token.list(payer, true);
            token.setWay(ListedToken.Way(way));

            vm.prank(host);
            market.completeSession{gas: 400_000}(jobId);
            vm.assertEq(_refunds(payer, address(token)), 456_988);
            vm.prank(host);
            market.withdraw(address(token), host);
            vm.assertEq(token.balanceOf(host), 38_711);

            vm.prank(payer);
            market.withdraw(address(token), stranger);
            vm.assertEq(token.balanceOf(stranger), 456_988);
        }
    }

    /// @dev A word of one is a yes, and so is no word at all; whatever else it says, the refund is kept.
    function test_ATokenThatDoesNotSayYesHasTheRefundCredited() public {
        AnsweringToken token = new AnsweringToken();
        token.mint(payer, 7 * DEPOSIT);
        bytes memory oneAndMore = abi.encode((1 << 128) + 1);
        bytes[5] memory noes = [abi.encode(0), abi.encode(2), oneAndMore, new bytes(31), new bytes(20_000)];
        for (uint256 i; i < noes.length; ++i) {
            token.answer("", true);
            uint256 jobId = _open(_termsIn(address(token)));
            token.answer(noes[i], false);

            _complete(host, jobId);
            vm.assertEq(_refunds(payer, address(token)), (i + 1) * DEPOSIT);
        }

        bytes[2] memory yeses = [bytes(""), abi.encode(1, 0)];
        for (uint256 i; i < yeses.length; ++i) {
            token.answer(yeses[i], true);
            _complete(host, _open(_termsIn(address(token))));
            vm.assertEq(_refunds(payer, address(token)), noes.length * DEPOSIT);
        }
    }

    function test_ATokenThatRefusesHostAndTreasuryHoldsUpNobodyElse() public {
        ListedToken token = new ListedToken();
        token.mint(payer, DEPOSIT);
        vm.prank(payer);
        token.approve(address(market), DEPOSIT);
        token.list(host, true);
        token.list(treasury, true);
        _submit(_row(_open(_termsIn(address(token))), 0, 47_580, true));
        vm.assertEq(token.balanceOf(payer), 456_988);

        vm.expectRevert("listed");
        vm.prank(host);
        market.withdraw(address(token), host);
        vm.expectRevert("listed");
        market.withdrawFor(host, address(token));
        vm.expectRevert("listed");
        vm.prank(treasury);
        market.withdrawTreasury(address(token), treasury);

        vm.prank(host);
        registry.setPayout(host, stranger);
        market.withdrawFor(host, address(token));
        vm.prank(treasury);
        market.withdrawTreasury(address(token), stranger);
        vm.assertEq(token.balanceOf(stranger), 38_711 + 4_301);
    }

    function test_ATokenWithoutCodeHasNothingToGiveBack() public {
        ListedToken token = new ListedToken();
        token.mint(payer, DEPOSIT);
        vm.prank(payer);
        token.approve(address(market), DEPOSIT);
        uint256 jobId = _open(_termsIn(address(token)));
        vm.etch(address(token), "");

        _complete(host, jobId);

        vm.assertEq(_refunds(payer, address(token)), DEPOSIT);
    }

    function test_ATokenThatTakesATollIsRefused() public {
        TollToken token = new TollToken();
        token.mint(payer, DEPOSIT);
        vm.prank(payer);
        token.approve(address(market), DEPOSIT);

        _refuses(IJobMarketplace.WrongAmountReceived.selector, DEPOSIT, DEPOSIT - DEPOSIT / 100);
        _open(_termsIn(address(token)));
    }

    function test_ATokenThatGivesMoreIsRefused() public {
        GiftToken token = new GiftToken();
        token.mint(payer, DEPOSIT);
        vm.prank(payer);
        token.approve(address(market), DEPOSIT);

        _refuses(IJobMarketplace.WrongAmountReceived.selector, DEPOSIT, DEPOSIT + 1);
        _open(_termsIn(address(token)));
    }

    function test_ATokenThatMovesNothingIsRefused() public {
        AnsweringToken token = new AnsweringToken();
        token.mint(payer, DEPOSIT);

        token.answer(abi.encode(1), false);
        _refuses(IJobMarketplace.WrongAmountReceived.selector, DEPOSIT, 0);
        _open(_termsIn(address(token)));
        token.answer(abi.encode(0), false);
        _refuses(SafeERC20.SafeERC20FailedOperation.selector, address(token));
        _open(_termsIn(address(token)));
    }

    function test_WithoutAllowanceThereIsNoJob() public {
        ListedToken token = new ListedToken();
        token.mint(payer, DEPOSIT);

        _refuses(IERC20Errors.ERC20InsufficientAllowance.selector, uint160(address(market)), 0, DEPOSIT);
        _open(_termsIn(address(token)));
    }

    function test_WithoutATokenThereIsNoJob() public {
        vm.expectRevert(bytes(""));
        _open(_termsIn(stranger));
    }

    function test_OneTokenCannotTouchAnothersBalance() public {
        ListedToken token = new ListedToken();
        token.mint(payer, DEPOSIT);
        vm.prank(payer);
        token.approve(address(market), DEPOSIT);
        uint256 bad = _open(_termsIn(address(token)));
        uint256 good = _open();
        vm.etch(address(token), "");

        _complete(host, bad);
        uint256 before = dollar.balanceOf(payer);
        _complete(host, good);

        vm.assertEq(dollar.balanceOf(payer) - before, DEPOSIT);
    }

    /// @dev What nothing that comes in can show: the token takes more from the escrow than it delivers.
    function test_ATokenThatChargesItsSenderIsPaidForByOtherJobsInIt() public {
        SurchargeToken token = new SurchargeToken();
        uint256 dollars = _open();
        (uint256 first, uint256 second) = (_openIn(token), _openIn(token));
        vm.assertEq(token.balanceOf(address(market)), 2 * DEPOSIT);

        _complete(host, first);
        vm.assertEq(token.balanceOf(address(market)), DEPOSIT - DEPOSIT / 100);

        _complete(host, second);
        vm.assertEq(_refunds(payer, address(token)), DEPOSIT);
        vm.expectPartialRevert(IERC20Errors.ERC20InsufficientBalance.selector);
        market.withdrawFor(payer, address(token));

        vm.assertEq(dollar.balanceOf(address(market)), DEPOSIT);
        uint256 before = dollar.balanceOf(payer);
        _complete(host, dollars);
        vm.assertEq(dollar.balanceOf(payer) - before, DEPOSIT);
    }

    /// @dev Whoever brings the missing units gives the others theirs: nothing is lost but what the token took.
    function test_WhatATokenChargedItsSenderCanBeBroughtByAnybody() public {
        SurchargeToken token = new SurchargeToken();
        (uint256 first, uint256 second) = (_openIn(token), _openIn(token));
        _complete(host, first);
        _complete(host, second);

        token.mint(address(market), 2 * DEPOSIT / 100);
        market.withdrawFor(payer, address(token));

        vm.assertEq(_refunds(payer, address(token)), 0);
        vm.assertEq(token.balanceOf(address(market)), 0);
    }

    // Refunds and payout addresses

    function test_ThePayoutAddressHasNoPartInRefunds() public {
        Receiver receiver = _hostThatPays();

        vm.prank(stranger);
        market.withdrawFor(address(receiver), ETH);

        vm.assertEq(stranger.balance, 38_711);
        vm.assertEq(_refunds(address(receiver), ETH), 456_988);
        _refuses(IJobMarketplace.NothingToWithdraw.selector, address(receiver), ETH);
        vm.prank(stranger);
        market.withdrawFor(address(receiver), ETH);
    }

    function test_APayoutAddressKeepsNobodyFromItsRefund() public {
        Receiver receiver = _hostThatPays();

        receiver.call(address(market), 0, abi.encodeCall(market.withdraw, (ETH, payer)));

        vm.assertEq(_refunds(address(receiver), ETH), 0);
        vm.assertEq(_earned(address(receiver), ETH), 38_711);
    }

    function test_AHostThatRefusesMoneyKeepsNobodyFromItsEarnings() public {
        Receiver receiver = _hostThatPays();

        market.withdrawFor(address(receiver), ETH);

        vm.assertEq(stranger.balance, 38_711);
    }

    function test_RefundAndEarningsOfOneOwnerAreSentTogether() public {
        Receiver receiver = _hostThatPays();
        vm.prank(stranger);
        registry.setPayout(address(receiver), address(receiver));

        receiver.call(address(market), 0, abi.encodeCall(market.withdraw, (ETH, payer)));

        vm.assertEq(_refunds(address(receiver), ETH) + _earned(address(receiver), ETH), 0);
    }

    /// @dev A host that refuses ETH, is paid at `stranger`, has earned 38 711 and is credited a refund of 456 988.
    function _hostThatPays() private returns (Receiver receiver) {
        receiver = new RevertingReceiver();
        receiver.call(address(registry), 0, abi.encodeCall(registry.registerNode, (address(receiver), "x")));
        receiver.call(address(registry), 0, abi.encodeCall(registry.setPayout, (address(receiver), stranger)));

        IJobMarketplace.Terms memory terms = _ethTerms();
        terms.host = address(receiver);
        uint256 jobId = _openAs(receiver, terms);
        bytes memory proof = _proof(jobId, 0, 47_580);
        receiver.call(address(market), 0, abi.encodeCall(market.submitCheckpoint, (jobId, 47_580, proof)));
        receiver.call(address(market), 0, abi.encodeCall(market.completeSession, (jobId)));
    }

    /// @dev Jobs of payers who want all of their gas, and a call that closes them: one alone, in ETH or in a token, by its host
    /// or by a reclaim, or four in one batch, with a last claim or without.
    function _closings(uint256 way) private returns (bytes memory) {
        HungryToken token = new HungryToken();
        token.mint(payer, 2 * DEPOSIT);
        vm.prank(payer);
        token.approve(address(market), 2 * DEPOSIT);
        if (way < 3) {
            uint256 jobId = way == 0 ? _openAs(new HungryReceiver()) : _open(_termsIn(address(token)));
            vm.warp(START + 7 days + 12 hours);
            return way < 2 ? abi.encodeCall(market.completeSession, (jobId)) : abi.encodeCall(market.reclaim, (jobId));
        }

        IProofSystem.Checkpoint[] memory rows = new IProofSystem.Checkpoint[](4);
        for (uint256 i; i < rows.length; ++i) {
            uint256 jobId = i % 2 == 0 ? _openAs(new HungryReceiver()) : _open(_termsIn(address(token)));
            rows[i] = _row(jobId, 0, way == 3 ? 0 : 47_580, true);
        }
        return abi.encodeCall(market.submitCheckpoints, (rows));
    }

    /// @dev Every job is closed, and no refund had to be kept.
    function _assertDelivered() private view {
        for (uint256 jobId = 1; jobId <= market.jobCount(); ++jobId) {
            IJobMarketplace.Job memory job = market.getJob(jobId);
            _assertStatus(jobId, IJobMarketplace.Status.Closed);
            vm.assertEq(_refunds(job.payer, job.asset), 0);
        }
    }

    /// @dev What the host is told that makes this call with so much gas.
    function _endWith(bytes memory data, uint256 gas) private returns (bytes memory answer) {
        vm.prank(host);
        (, answer) = address(market).call{gas: gas}(data);
    }

    function _estimate(bytes memory data) private returns (uint256 enough) {
        uint256 tooLittle = 21_000;
        enough = 3_000_000;
        while (enough - tooLittle > 1) {
            uint256 gas = (tooLittle + enough) / 2;
            uint256 clean = vm.snapshotState();
            vm.prank(host);
            (bool closed,) = address(market).call{gas: gas}(data);
            vm.revertToStateAndDelete(clean);
            if (closed) enough = gas;
            else tooLittle = gas;
        }
    }

    function _openIn(TestDollar token) private returns (uint256) {
        token.mint(payer, 2 * DEPOSIT);
        vm.prank(payer);
        token.approve(address(market), type(uint256).max);
        return _open(_termsIn(address(token)));
    }

    function _termsIn(address asset) private view returns (IJobMarketplace.Terms memory terms) {
        terms = _terms();
        terms.asset = asset;
    }

    function _two(bytes memory reason) private pure returns (uint256 first, uint256 second) {
        assembly ("memory-safe") {
            first := mload(add(reason, 0x24))
            second := mload(add(reason, 0x44))
        }
    }
}
