// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IJobMarketplace} from "../src/interfaces/IJobMarketplace.sol";
import {IProofSystem} from "../src/interfaces/IProofSystem.sol";
import {Deployed} from "./Deployed.sol";
import {Fixture} from "./Fixture.sol";
import {vm} from "./Vm.sol";
import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

/// @dev Opening, funding and ending jobs, and paying balances out.
contract JobMarketplaceTest is Fixture {
    // Deployment

    function test_RegistryAndTreasuryAreFixedAndNeverZero() public {
        vm.assertEq(market.registry(), address(registry));
        vm.assertEq(market.treasury(), treasury);

        _refuses(IJobMarketplace.ZeroAddress.selector);
        Deployed.market(address(0), treasury);
        _refuses(IJobMarketplace.ZeroAddress.selector);
        Deployed.market(address(registry), address(0));
    }

    function test_WhatIsTestedIsWhatIsDeployed() public view {
        string[2] memory names = ["JobMarketplace", "NodeRegistry"];
        for (uint256 i; i < names.length; ++i) {
            bytes memory tested = vm.getCode(string.concat(names[i], ".sol:", names[i]));
            string memory json = vm.readFile(string.concat("../src/tallystick/abi/", names[i], ".json"));
            vm.assertEq(keccak256(tested), keccak256(vm.parseJsonBytes(json, ".bytecode")), "run `make abi`");
        }
    }

    function test_NobodySendsEthThatIsNoDeposit() public {
        vm.prank(payer);
        (bool taken,) = address(market).call{value: 1}("");
        vm.assertTrue(!taken);
    }

    // createJob

    function test_APayerOpensAJobWithAnErc20() public {
        IJobMarketplace.Terms memory terms = _terms();
        uint256 before = dollar.balanceOf(payer);

        vm.expectEmit(address(market));
        emit IJobMarketplace.JobCreated(1, payer, host, terms.signer, terms.checkpointInterval, terms.modelId);
        uint256 jobId = _open(terms);

        vm.assertEq(jobId, 1);
        vm.assertEq(dollar.balanceOf(payer), before - terms.deposit);
        vm.assertEq(dollar.balanceOf(address(market)), terms.deposit);
    }

    function test_APayerOpensAJobWithEth() public {
        _open(_ethTerms());

        vm.assertEq(address(market).balance, _terms().deposit);
        vm.assertEq(market.getJob(1).asset, ETH);
    }

    function test_AJobIsReadWithOneCall() public {
        IJobMarketplace.Terms memory terms = _attestedTerms();
        uint256 jobId = _open(terms);
        vm.warp(START + 100);
        _claimAttested(jobId, 70, 900);
        _complete(payer, jobId);

        IJobMarketplace.Job memory job = market.getJob(jobId);
        vm.assertEq(job.payer, payer, "payer");
        vm.assertEq(job.host, host, "host");
        vm.assertEq(job.asset, address(dollar), "asset");
        vm.assertEq(job.signer, signer, "signer");
        vm.assertEq(job.deposit, terms.deposit, "deposit");
        vm.assertEq(job.pricePerMillion, terms.pricePerMillion, "pricePerMillion");
        vm.assertEq(job.promptPricePerMillion, terms.promptPricePerMillion, "promptPricePerMillion");
        vm.assertEq(job.maxTokensPerSecond, terms.maxTokensPerSecond, "maxTokensPerSecond");
        vm.assertEq(job.claimWindow, terms.claimWindow, "claimWindow");
        vm.assertEq(job.createdAt, START, "createdAt");
        vm.assertEq(job.expiresAt, terms.expiresAt, "expiresAt");
        vm.assertEq(job.askedAt, START + 100, "askedAt");
        vm.assertEq(job.closesAt, START + 100 + terms.claimWindow, "closesAt");
        vm.assertEq(job.tokens, 900, "tokens");
        vm.assertEq(job.promptTokens, 70, "promptTokens");
        vm.assertEq(job.owed, 824, "owed");
        vm.assertEq(job.fee, 82, "fee");
        vm.assertEq(uint256(job.status), uint256(IJobMarketplace.Status.Completing), "status");
    }

    function test_AJobThatIsNotThereReadsAsNone() public view {
        vm.assertEq(keccak256(abi.encode(market.getJob(1))), keccak256(new bytes(18 * 32)));
        vm.assertEq(market.jobCount(), 0);
    }

    function test_JobsCountFromOne() public {
        vm.assertEq(_open(), 1);
        vm.assertEq(_open(_ethTerms()), 2);
        vm.assertEq(_open(), 3);
        vm.assertEq(market.jobCount(), 3);
    }

    function test_HostsAndAssetsKeepTheirNumbers() public {
        IJobMarketplace.Terms memory other = _ethTerms();
        other.host = otherHost;
        uint256 first = _open();
        uint256 second = _open(other);
        uint256 third = _open();

        vm.assertEq(market.getJob(first).host, host);
        vm.assertEq(market.getJob(second).host, otherHost);
        vm.assertEq(market.getJob(second).asset, ETH);
        vm.assertEq(market.getJob(third).host, host);
        vm.assertEq(market.getJob(third).asset, address(dollar));
    }

    function test_AnAccountIsWrittenOnce() public {
        _open();

        vm.record();
        uint256 second = _open();
        (, bytes32[] memory writes) = vm.accesses(address(market));

        uint256 first = _jobSlot(second);
        vm.assertTrue(writes.length >= 5, "four words of the job and the count of jobs");
        for (uint256 i; i < writes.length; ++i) {
            uint256 slot = uint256(writes[i]);
            vm.assertTrue(slot == COUNTS_SLOT || (slot >= first && slot < first + 4), vm.toString(slot));
        }
    }

    function test_AHostThatIsNotRegisteredGetsNoJob() public {
        vm.prank(host);
        registry.unregisterNode();

        _refuses(IJobMarketplace.HostNotRegistered.selector, host);
        _open();
    }

    function test_TheSignerIsNeitherZeroNorTheHost() public {
        IJobMarketplace.Terms memory terms = _terms();
        terms.signer = address(0);
        _refuses(IJobMarketplace.InvalidSigner.selector, address(0));
        _open(terms);

        terms.signer = host;
        _refuses(IJobMarketplace.InvalidSigner.selector, host);
        _open(terms);
    }

    function test_ADepositIsAboveZero() public {
        IJobMarketplace.Terms memory terms = _terms();
        terms.deposit = 0;

        _refuses(IJobMarketplace.ZeroAmount.selector);
        _open(terms);
    }

    function test_AClaimWindowIsOneHourTo30Days() public {
        IJobMarketplace.Terms memory terms = _terms();
        bytes4 refusal = IJobMarketplace.ClaimWindowOutOfRange.selector;
        terms.claimWindow = 1 hours - 1;
        _refuses(refusal, 1 hours - 1, 1 hours, 30 days);
        _open(terms);
        terms.claimWindow = 30 days + 1;
        _refuses(refusal, 30 days + 1, 1 hours, 30 days);
        _open(terms);
        terms.claimWindow = type(uint256).max;
        _refuses(refusal, type(uint256).max, 1 hours, 30 days);
        _open(terms);

        terms.claimWindow = 1 hours;
        _open(terms);
        terms.claimWindow = 30 days;
        _open(terms);
    }

    function test_AnExpiryIsInTheFutureAndAtMostAYearAhead() public {
        IJobMarketplace.Terms memory terms = _terms();
        bytes4 refusal = IJobMarketplace.ExpiryOutOfRange.selector;
        terms.expiresAt = START;
        _refuses(refusal, START, START, START + 365 days);
        _open(terms);
        terms.expiresAt = START - 1;
        _refuses(refusal, START - 1, START, START + 365 days);
        _open(terms);
        terms.expiresAt = START + 365 days + 1;
        _refuses(refusal, START + 365 days + 1, START, START + 365 days);
        _open(terms);

        terms.expiresAt = START + 1;
        _open(terms);
        terms.expiresAt = START + 365 days;
        _open(terms);
    }

    function test_ACheckpointIntervalIsAboveZero() public {
        IJobMarketplace.Terms memory terms = _terms();
        terms.checkpointInterval = 0;

        _refuses(IJobMarketplace.ZeroCheckpointInterval.selector);
        _open(terms);
    }

    function test_WhatDoesNotFitRevertsWithItsValue() public {
        bytes4 refusal = IProofSystem.DoesNotFit.selector;

        IJobMarketplace.Terms memory terms = _terms();
        terms.deposit = 2 ** 96;
        _refuses(refusal, 2 ** 96, 96);
        _open(terms);

        terms = _terms();
        terms.pricePerMillion = 2 ** 80;
        _refuses(refusal, 2 ** 80, 80);
        _open(terms);

        terms = _terms();
        terms.promptPricePerMillion = type(uint256).max;
        _refuses(refusal, type(uint256).max, 80);
        _open(terms);

        terms = _terms();
        terms.maxTokensPerSecond = 2 ** 32;
        _refuses(refusal, 2 ** 32, 32);
        _open(terms);

        vm.warp(2 ** 32 - 1);
        terms = _terms();
        terms.expiresAt = 2 ** 32;
        _refuses(refusal, 2 ** 32, 32);
        _open(terms);
    }

    function testFuzz_WhatFitsIsStoredAsItIs(
        uint96 deposit,
        uint80 price,
        uint80 promptPrice,
        uint32 rate,
        uint256 window,
        uint256 expiry
    ) public {
        IJobMarketplace.Terms memory terms = _terms();
        terms.deposit = _bound(deposit, 1, type(uint96).max);
        terms.pricePerMillion = price;
        terms.promptPricePerMillion = promptPrice;
        terms.maxTokensPerSecond = rate;
        terms.claimWindow = _bound(window, 1 hours, 30 days);
        terms.expiresAt = _bound(expiry, START + 1, START + 365 days);

        IJobMarketplace.Job memory job = market.getJob(_open(terms));
        vm.assertEq(job.payer, payer, "payer");
        vm.assertEq(job.host, host, "host");
        vm.assertEq(job.signer, signer, "signer");
        vm.assertEq(job.deposit, terms.deposit, "deposit");
        vm.assertEq(job.pricePerMillion, price, "price");
        vm.assertEq(job.promptPricePerMillion, promptPrice, "prompt price");
        vm.assertEq(job.maxTokensPerSecond, rate, "rate");
        vm.assertEq(job.claimWindow, terms.claimWindow, "window");
        vm.assertEq(job.createdAt, START, "created");
        vm.assertEq(job.expiresAt, terms.expiresAt, "expiry");
        vm.assertEq(job.askedAt + job.tokens + job.promptTokens, 0, "fresh");
        vm.assertEq(uint256(job.status), uint256(IJobMarketplace.Status.Open), "status");
    }

    function test_EthSentIsExactlyTheDeposit() public {
        IJobMarketplace.Terms memory terms = _ethTerms();

        _refuses(IJobMarketplace.WrongValue.selector, terms.deposit, terms.deposit - 1);
        vm.prank(payer);
        market.createJob{value: terms.deposit - 1}(terms);

        _refuses(IJobMarketplace.WrongValue.selector, terms.deposit, terms.deposit + 1);
        vm.prank(payer);
        market.createJob{value: terms.deposit + 1}(terms);
    }

    function test_NoEthComesWithAnErc20() public {
        _refuses(IJobMarketplace.WrongValue.selector, 0, 1);
        vm.prank(payer);
        market.createJob{value: 1}(_terms());
    }

    // topUp

    function test_ThePayerTopsUpAnErc20Job() public {
        uint256 jobId = _open();

        vm.expectEmit(address(market));
        emit IJobMarketplace.JobToppedUp(jobId, 7, 500_007);
        vm.prank(payer);
        market.topUp(jobId, 7);

        vm.assertEq(market.getJob(jobId).deposit, 500_007);
        vm.assertEq(dollar.balanceOf(address(market)), 500_007);
    }

    function test_ThePayerTopsUpAnEthJob() public {
        uint256 jobId = _open(_ethTerms());

        vm.prank(payer);
        market.topUp{value: 7}(jobId, 7);

        vm.assertEq(market.getJob(jobId).deposit, 500_007);
        vm.assertEq(address(market).balance, 500_007);
    }

    function test_ATopUpLeavesTotalsAndTermsAlone() public {
        uint256 jobId = _open();
        _claim(jobId, 5, 100);
        IJobMarketplace.Job memory before = market.getJob(jobId);

        vm.prank(payer);
        market.topUp(jobId, 7);

        before.deposit += 7;
        vm.assertEq(keccak256(abi.encode(market.getJob(jobId))), keccak256(abi.encode(before)));
    }

    function test_NothingIsNoTopUp() public {
        uint256 jobId = _open();

        _refuses(IJobMarketplace.ZeroAmount.selector);
        vm.prank(payer);
        market.topUp(jobId, 0);
    }

    function test_ATopUpThatDoesNotFitReverts() public {
        uint256 jobId = _open();

        _refuses(IProofSystem.DoesNotFit.selector, 2 ** 96, 96);
        vm.prank(payer);
        market.topUp(jobId, 2 ** 96 - 500_000);

        _refuses(IProofSystem.DoesNotFit.selector, type(uint256).max, 96);
        vm.prank(payer);
        market.topUp(jobId, type(uint256).max);
    }

    function test_ATopUpWithTheWrongEthReverts() public {
        uint256 eth = _open(_ethTerms());
        uint256 erc20 = _open();

        _refuses(IJobMarketplace.WrongValue.selector, 7, 6);
        vm.prank(payer);
        market.topUp{value: 6}(eth, 7);

        _refuses(IJobMarketplace.WrongValue.selector, 0, 7);
        vm.prank(payer);
        market.topUp{value: 7}(erc20, 7);
    }

    function test_OnlyAnOpenJobIsToppedUp() public {
        uint256 jobId = _open();
        vm.warp(START + 7 days - 1);
        vm.prank(payer);
        market.topUp(jobId, 1);

        vm.warp(START + 7 days);
        _refuses(IJobMarketplace.JobExpired.selector, jobId, START + 7 days);
        vm.prank(payer);
        market.topUp(jobId, 1);

        vm.warp(START);
        _complete(payer, jobId);
        _refuses(IJobMarketplace.AlreadyCompleting.selector, jobId, START + 12 hours);
        vm.prank(payer);
        market.topUp(jobId, 1);

        _complete(host, jobId);
        _refuses(IProofSystem.JobClosed.selector, jobId);
        vm.prank(payer);
        market.topUp(jobId, 1);

        _refuses(IProofSystem.NoSuchJob.selector, 2);
        vm.prank(payer);
        market.topUp(2, 1);
    }

    // completeSession

    function test_TheHostClosesAtOnceAndTheRestGoesBack() public {
        uint256 jobId = _open();
        _claim(jobId, 0, 47_580);
        uint256 before = dollar.balanceOf(payer);

        vm.expectEmit(address(market));
        emit IProofSystem.SessionCompleted(jobId, 43_012, 4_301, 456_988);
        _complete(host, jobId);

        vm.assertEq(dollar.balanceOf(payer) - before, 456_988);
        _assertStatus(jobId, IJobMarketplace.Status.Closed);
    }

    function test_TheHostClosesInAnyStateThatIsNotClosed() public {
        uint256 completing = _open();
        uint256 expired = _open();
        uint256 overdue = _open();
        _complete(payer, completing);
        _complete(host, completing);
        _assertStatus(completing, IJobMarketplace.Status.Closed);

        vm.warp(START + 7 days);
        _complete(host, expired);
        _assertStatus(expired, IJobMarketplace.Status.Closed);

        vm.warp(START + 60 days);
        _complete(host, overdue);
        _assertStatus(overdue, IJobMarketplace.Status.Closed);
    }

    function test_PayerOrSignerAskOnce() public {
        uint256 first = _open();
        vm.expectEmit(address(market));
        emit IJobMarketplace.CompletionRequested(first, payer, START + 12 hours);
        _complete(payer, first);
        _assertStatus(first, IJobMarketplace.Status.Completing);

        vm.warp(START + 1 hours);
        _refuses(IJobMarketplace.AlreadyCompleting.selector, first, START + 12 hours);
        _complete(payer, first);
        _refuses(IJobMarketplace.AlreadyCompleting.selector, first, START + 12 hours);
        _complete(signer, first);

        uint256 second = _open();
        vm.expectEmit(address(market));
        emit IJobMarketplace.CompletionRequested(second, signer, START + 13 hours);
        _complete(signer, second);
    }

    function test_AskingNeverMakesAJobCloseLater() public {
        uint256 jobId = _open();
        vm.warp(START + 7 days + 6 hours);

        vm.expectEmit(address(market));
        emit IJobMarketplace.CompletionRequested(jobId, payer, START + 7 days + 12 hours);
        _complete(payer, jobId);

        vm.assertEq(market.getJob(jobId).closesAt, START + 7 days + 12 hours);
    }

    function test_AClosedJobIsNotCompletedAgain() public {
        uint256 jobId = _open();
        _complete(host, jobId);

        _refuses(IProofSystem.JobClosed.selector, jobId);
        _complete(host, jobId);
        _refuses(IProofSystem.JobClosed.selector, jobId);
        _complete(payer, jobId);
        _refuses(IProofSystem.NoSuchJob.selector, 2);
        _complete(host, 2);
    }

    function test_AHostThatIsItsOwnPayerClosesAtOnce() public {
        dollar.mint(host, 500_000);
        vm.prank(host);
        dollar.approve(address(market), 500_000);
        vm.prank(host);
        uint256 jobId = market.createJob(_terms());

        _complete(host, jobId);

        vm.assertEq(dollar.balanceOf(host), 500_000);
    }

    // reclaim

    function test_AnybodyReclaimsFromClosesAtOn() public {
        uint256 jobId = _open();
        _claim(jobId, 0, 47_580);
        uint256 closesAt = START + 7 days + 12 hours;
        uint256 before = dollar.balanceOf(payer);

        vm.warp(closesAt - 1);
        _refuses(IJobMarketplace.NotYetReclaimable.selector, jobId, closesAt);
        vm.prank(payer);
        market.reclaim(jobId);

        vm.warp(closesAt);
        vm.prank(stranger);
        market.reclaim(jobId);
        vm.assertEq(dollar.balanceOf(payer) - before, 456_988);

        _refuses(IProofSystem.JobClosed.selector, jobId);
        market.reclaim(jobId);
        _refuses(IProofSystem.NoSuchJob.selector, 2);
        market.reclaim(2);
    }

    function test_AskingBringsTheReclaimForward() public {
        uint256 jobId = _open();
        vm.warp(START + 1 hours);
        _complete(signer, jobId);

        vm.warp(START + 13 hours - 1);
        _refuses(IJobMarketplace.NotYetReclaimable.selector, jobId, START + 13 hours);
        market.reclaim(jobId);
        vm.warp(START + 13 hours);
        market.reclaim(jobId);
    }

    function test_ASilentHostCannotKeepThePayersMoney() public {
        uint256 jobId = _open();
        uint256 before = dollar.balanceOf(payer);
        vm.prank(host);
        registry.unregisterNode();

        vm.warp(START + 7 days + 12 hours);
        market.reclaim(jobId);

        vm.assertEq(dollar.balanceOf(payer) - before, 500_000);
    }

    function test_ASilentPayerCannotKeepTheHostsMoney() public {
        uint256 jobId = _open();
        _claim(jobId, 0, 47_580);
        _complete(host, jobId);

        vm.prank(host);
        market.withdraw(address(dollar), host);

        vm.assertEq(dollar.balanceOf(host), 38_711);
    }

    // withdraw

    function test_AHostWithdrawsItsEarningsToWhomItLikes() public {
        _claim(_open(), 0, 47_580);

        vm.expectEmit(address(market));
        emit IJobMarketplace.Withdrawn(host, address(dollar), stranger, 0, 38_711);
        vm.prank(host);
        market.withdraw(address(dollar), stranger);

        vm.assertEq(dollar.balanceOf(stranger), 38_711);
        vm.assertEq(_earned(host, address(dollar)), 0);
    }

    function test_EarningsInEthAreWithdrawnInEth() public {
        _claim(_open(_ethTerms()), 0, 47_580);

        vm.prank(host);
        market.withdraw(ETH, stranger);
        vm.prank(treasury);
        market.withdrawTreasury(ETH, treasury);

        vm.assertEq(stranger.balance, 38_711);
        vm.assertEq(treasury.balance, 4_301);
    }

    function test_NothingIsNotWithdrawn() public {
        bytes4 refusal = IJobMarketplace.NothingToWithdraw.selector;
        _refuses(refusal, host, address(dollar));
        vm.prank(host);
        market.withdraw(address(dollar), host);
        _refuses(refusal, host, ETH);
        market.withdrawFor(host, ETH);
        _refuses(refusal, treasury, ETH);
        vm.prank(treasury);
        market.withdrawTreasury(ETH, treasury);

        _claim(_open(), 0, 47_580);
        vm.prank(host);
        market.withdraw(address(dollar), host);
        _refuses(refusal, host, address(dollar));
        vm.prank(host);
        market.withdraw(address(dollar), host);
    }

    function test_NeitherZeroNorTheContractReceives() public {
        _claim(_open(), 0, 47_580);

        _refuses(IJobMarketplace.InvalidReceiver.selector, address(0));
        vm.prank(host);
        market.withdraw(address(dollar), address(0));
        _refuses(IJobMarketplace.InvalidReceiver.selector, address(market));
        vm.prank(host);
        market.withdraw(address(dollar), address(market));
        vm.prank(host);
        registry.setPayout(host, address(market));
        _refuses(IJobMarketplace.InvalidReceiver.selector, address(market));
        market.withdrawFor(host, address(dollar));
        _refuses(IJobMarketplace.InvalidReceiver.selector, address(0));
        vm.prank(treasury);
        market.withdrawTreasury(address(dollar), address(0));
        _refuses(IJobMarketplace.InvalidReceiver.selector, address(market));
        vm.prank(treasury);
        market.withdrawTreasury(address(dollar), address(market));
    }

    function test_AnybodySendsEarningsToThePayoutAddress() public {
        _claim(_open(), 0, 47_580);
        vm.prank(host);
        registry.setPayout(host, stranger);

        vm.expectEmit(address(market));
        emit IJobMarketplace.Withdrawn(host, address(dollar), stranger, 0, 38_711);
        vm.prank(payer);
        market.withdrawFor(host, address(dollar));

        vm.assertEq(dollar.balanceOf(stranger), 38_711);
    }

    function test_UnregisteringKeepsEarningsAndPayoutAddress() public {
        _claim(_open(), 0, 47_580);
        vm.prank(host);
        registry.setPayout(host, stranger);
        vm.prank(host);
        registry.unregisterNode();

        market.withdrawFor(host, address(dollar));

        vm.assertEq(dollar.balanceOf(stranger), 38_711);
    }

    function test_EarningsOfOneHostOrAssetAreNotAnothers() public {
        _claim(_open(), 0, 47_580);

        _refuses(IJobMarketplace.NothingToWithdraw.selector, otherHost, address(dollar));
        vm.prank(otherHost);
        market.withdraw(address(dollar), otherHost);
        _refuses(IJobMarketplace.NothingToWithdraw.selector, host, ETH);
        vm.prank(host);
        market.withdraw(ETH, host);
        vm.assertEq(market.treasuryBalance(ETH), 0);
    }

    function test_TheTreasuryWithdrawsItsTenth() public {
        _claim(_open(), 0, 47_580);
        vm.assertEq(market.treasuryBalance(address(dollar)), 4_301);

        vm.expectEmit(address(market));
        emit IJobMarketplace.TreasuryWithdrawn(address(dollar), stranger, 4_301);
        vm.prank(treasury);
        market.withdrawTreasury(address(dollar), stranger);

        vm.assertEq(dollar.balanceOf(stranger), 4_301);
        vm.assertEq(market.treasuryBalance(address(dollar)), 0);
    }
}
