// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IJobMarketplace} from "../src/interfaces/IJobMarketplace.sol";
import {IProofSystem} from "../src/interfaces/IProofSystem.sol";
import {Abi} from "./Abi.sol";
import {Fixture} from "./Fixture.sol";
import {vm} from "./Vm.sol";

/// @dev Claims, requests and refunds at the edges of their times, and side by side in one block.
contract EdgesTest is Fixture {
    uint256 private constant DEPOSIT = 500_000;

    uint256 private watched;
    bytes32[3] private words;
    mapping(bytes4 selector => bool) private done;

    // When the rest goes back

    function testFuzz_TheRestGoesBackFromClosesAtOnAndNotBefore(
        uint256 window,
        uint256 expiry,
        bool asks,
        uint256 askedAt
    ) public {
        IJobMarketplace.Terms memory terms = _terms();
        terms.claimWindow = _bound(window, 1 hours, 30 days);
        terms.expiresAt = START + _bound(expiry, 1, 365 days);
        uint256 jobId = _open(terms);
        uint256 endsAt = terms.expiresAt;
        if (asks) {
            askedAt = _bound(askedAt, START, endsAt + terms.claimWindow - 1);
            vm.warp(askedAt);
            _complete(payer, jobId);
            if (askedAt < endsAt) endsAt = askedAt;
        }
        uint256 closesAt = endsAt + terms.claimWindow;

        vm.assertEq(market.getJob(jobId).closesAt, closesAt);
        vm.warp(closesAt - 1);
        _refuses(IJobMarketplace.NotYetReclaimable.selector, jobId, closesAt);
        market.reclaim(jobId);
        vm.warp(closesAt);
        market.reclaim(jobId);
    }

    function test_AskingAtTheExpiryOrLaterChangesNoTime() public {
        uint256 closesAt = START + 7 days + 12 hours;
        uint256[3] memory moments = [START + 7 days, closesAt, closesAt + 100 days];
        uint256[3] memory jobs = [_open(), _open(), _open()];

        for (uint256 i; i < moments.length; ++i) {
            vm.warp(moments[i]);
            vm.expectEmit(address(market));
            emit IJobMarketplace.CompletionRequested(jobs[i], payer, closesAt);
            _complete(payer, jobs[i]);
            vm.assertEq(market.getJob(jobs[i]).closesAt, closesAt);
        }
        market.reclaim(jobs[2]);
    }

    function test_AskingASecondBeforeTheExpiryBringsTheEndForwardByASecond() public {
        uint256 jobId = _open();
        vm.warp(START + 7 days - 1);
        _complete(signer, jobId);

        vm.assertEq(market.getJob(jobId).closesAt, START + 7 days + 12 hours - 1);
    }

    // Side by side in one block

    function test_AClaimBeforeTheReclaimInOneBlockIsPaid() public {
        uint256 jobId = _open();
        uint256 before = dollar.balanceOf(payer);
        vm.warp(START + 7 days + 12 hours);

        _claim(jobId, 0, 47_580);
        market.reclaim(jobId);

        vm.assertEq(_earned(host, address(dollar)), 38_711);
        vm.assertEq(dollar.balanceOf(payer) - before, 456_988);
    }

    function test_AClaimAfterTheReclaimInOneBlockIsTooLate() public {
        uint256 jobId = _open();
        uint256 before = dollar.balanceOf(payer);
        vm.warp(START + 7 days + 12 hours);

        market.reclaim(jobId);
        _refuses(IProofSystem.JobClosed.selector, jobId);
        _claim(jobId, 0, 47_580);
        _submit(_row(jobId, 0, 47_580, true));

        vm.assertEq(_earned(host, address(dollar)), 0);
        vm.assertEq(dollar.balanceOf(payer) - before, DEPOSIT);
    }

    function test_ALateClaimIsPaidAsLongAsNobodyReclaims() public {
        uint256 jobId = _open();
        _complete(payer, jobId);
        vm.warp(START + 3_000 days);

        _claim(jobId, 0, 10_000);
        vm.warp(START + 3_001 days);
        _submit(_row(jobId, 0, 47_580, false));
        uint256 before = dollar.balanceOf(payer);
        market.reclaim(jobId);

        vm.assertEq(_earned(host, address(dollar)), 38_711);
        vm.assertEq(dollar.balanceOf(payer) - before, 456_988);
    }

    function test_PayerThenHostCompleteInOneBlock() public {
        uint256 jobId = _open();
        uint256 before = dollar.balanceOf(payer);

        _complete(payer, jobId);
        _claim(jobId, 0, 47_580);
        _complete(host, jobId);

        _assertStatus(jobId, IJobMarketplace.Status.Closed);
        vm.assertEq(dollar.balanceOf(payer) - before, 456_988);
    }

    function test_HostThenPayerCompleteInOneBlock() public {
        uint256 jobId = _open();
        uint256 before = dollar.balanceOf(payer);

        _complete(host, jobId);
        address[2] memory others = [payer, signer];
        for (uint256 i; i < others.length; ++i) {
            _refuses(IProofSystem.JobClosed.selector, jobId);
            _complete(others[i], jobId);
        }

        vm.assertEq(dollar.balanceOf(payer) - before, DEPOSIT);
    }

    function test_ReclaimThenCompletionInOneBlockPayBackOnce() public {
        uint256 jobId = _open();
        uint256 before = dollar.balanceOf(payer);
        vm.warp(START + 7 days + 12 hours);

        market.reclaim(jobId);
        _refuses(IProofSystem.JobClosed.selector, jobId);
        _complete(host, jobId);
        _refuses(IProofSystem.JobClosed.selector, jobId);
        _complete(payer, jobId);

        vm.assertEq(dollar.balanceOf(payer) - before, DEPOSIT);
        vm.assertEq(dollar.balanceOf(address(market)), 0);
    }

    function test_ATopUpBeforeTheRequestInOneBlockCountsAndOneAfterItIsRefused() public {
        uint256 jobId = _open();
        vm.prank(payer);
        market.topUp(jobId, 7);
        _complete(signer, jobId);

        _refuses(IJobMarketplace.AlreadyCompleting.selector, jobId, START + 12 hours);
        vm.prank(payer);
        market.topUp(jobId, 7);

        vm.assertEq(market.getJob(jobId).deposit, DEPOSIT + 7);
    }

    function testFuzz_AReceiptAboveTheDepositServesUpToItAndAfterATopUpForTheRest(uint256 deposit, uint256 signed)
        public
    {
        IJobMarketplace.Terms memory terms = _terms();
        terms.pricePerMillion = 1_000_000;
        terms.deposit = deposit = _bound(deposit, 1, 1e12);
        signed = _bound(signed, deposit + 1, 1e13);
        uint256 jobId = _open(terms);
        bytes memory proof = _proof(jobId, 0, signed);

        _refuses(IProofSystem.AboveDeposit.selector, signed, deposit);
        _claimWith(jobId, signed, proof);
        _refuses(IProofSystem.AboveDeposit.selector, deposit + 1, deposit);
        _claimWith(jobId, deposit + 1, proof);
        _claimWith(jobId, deposit, proof);
        vm.prank(payer);
        market.topUp(jobId, signed - deposit);
        _claimWith(jobId, signed, proof);

        vm.assertEq(market.getJob(jobId).owed, signed);
        vm.assertEq(market.getJob(jobId).deposit, signed);
    }

    // Host-attested jobs: the three ways around the rate

    /// @dev Prompt and generated tokens together, over no more time than the job was open for.
    function testFuzz_AHostAttestedJobPaysForItsRateAndNoMore(
        uint256 rate,
        uint256 expiry,
        bool asks,
        uint256 askedAt,
        uint256 passed,
        uint256[2] memory totals
    ) public {
        IJobMarketplace.Terms memory terms = _terms();
        (terms.deposit, terms.pricePerMillion, terms.promptPricePerMillion) = (type(uint96).max, 1, 1);
        terms.maxTokensPerSecond = rate = _bound(rate, 1, 2 ** 20);
        expiry = _bound(expiry, 1, 365 days);
        terms.expiresAt = START + expiry;
        uint256 jobId = _open(terms);
        passed = _bound(passed, 0, 730 days);
        uint256 counted = passed < expiry ? passed : expiry;
        if (asks) {
            askedAt = _bound(askedAt, 0, passed);
            vm.warp(START + askedAt);
            _complete(payer, jobId);
            if (askedAt < counted) counted = askedAt;
        }
        vm.warp(START + passed);
        uint256 most = rate * counted;
        (uint256 promptTokens, uint256 tokens) = (_bound(totals[0], 0, most + 1), _bound(totals[1], 0, most + 1));

        uint256 total = promptTokens + tokens;
        if (total > most) _refuses(IProofSystem.AboveRate.selector, total, most);
        _claimAttested(jobId, promptTokens, tokens);
        _claimAttested(jobId, total > most ? 0 : promptTokens, total > most ? most : most - promptTokens);

        IJobMarketplace.Job memory job = market.getJob(jobId);
        vm.assertEq(job.promptTokens + job.tokens, most);
    }

    function test_PromptsAreNoWayAroundTheRate() public {
        uint256 jobId = _open(_attestedTerms());
        vm.warp(START + 100);

        _refuses(IProofSystem.AboveRate.selector, 1_001, 1_000);
        _claimAttested(jobId, 1_001, 0);
        _claimAttested(jobId, 1_000, 0);
        _refuses(IProofSystem.AboveRate.selector, 1_001, 1_000);
        _claimAttested(jobId, 1_000, 1);
    }

    /// @dev This much the payer of an idle job trusts its host for: 10 tokens a second, for an hour and for no longer.
    function test_IdleTimeIsWorthTheRateAndNoMore() public {
        IJobMarketplace.Terms memory terms = _attestedTerms();
        terms.expiresAt = START + 1 hours;
        uint256 jobId = _open(terms);
        vm.warp(START + 1 days);

        _refuses(IProofSystem.AboveRate.selector, 36_001, 36_000);
        _claimAttested(jobId, 0, 36_001);
        _claimAttested(jobId, 0, 36_000);

        vm.assertEq(market.getJob(jobId).owed, 32_544);
    }

    function test_AJobThatIsAskedToCompleteInTheBlockOfItsOpeningIsWorthNothing() public {
        uint256 jobId = _open(_attestedTerms());
        _complete(payer, jobId);
        vm.warp(START + 12 hours);

        _refuses(IProofSystem.AboveRate.selector, 1, 0);
        _claimAttested(jobId, 0, 1);
    }

    // Terms

    /// @dev Whatever is done, by whomever may do it: each entry of marketplace and registry, some of them more than once.
    function test_TheTermsOfAJobNeverChange() public {
        IJobMarketplace.Terms memory terms = _terms();
        watched = _open();
        words = _words();
        vm.assertEq(uint80(uint256(words[0])), terms.pricePerMillion);
        vm.assertEq(address(uint160(uint256(words[1]))), signer);
        vm.assertEq(words[2], bytes32(uint256(uint160(payer))));
        bytes memory fixed_ = _fixed();

        _fundAndOpenAnother(terms);
        _claimAndCompleteAnother();
        _changeTheRegistry();
        _endAndWithdraw();

        vm.assertEq(_fixed(), fixed_);
        _assertAllDone(Abi.changing("JobMarketplace"));
        _assertAllDone(Abi.changing("NodeRegistry"));
    }

    function _fundAndOpenAnother(IJobMarketplace.Terms memory terms) private {
        _do(payer, address(market), abi.encodeCall(market.topUp, (watched, 7)));
        IJobMarketplace.Authorization memory auth = _authorizeTopUp(watched, 7);
        _do(stranger, address(market), abi.encodeCall(market.topUpWithAuthorization, (watched, 7, SALT, auth)));

        (terms.pricePerMillion, terms.claimWindow) = (1, 1 hours);
        _do(payer, address(market), abi.encodeCall(market.createJob, (terms)));
        auth = _authorizeOpening(terms, 7);
        _do(stranger, address(market), abi.encodeCall(market.createJobWithAuthorization, (terms, 7, SALT, auth)));
    }

    function _claimAndCompleteAnother() private {
        bytes memory proof = _proof(watched, 5, 100);
        _do(host, address(market), abi.encodeCall(market.submitCheckpoint, (watched, 100, proof)));
        IProofSystem.Checkpoint[] memory rows = new IProofSystem.Checkpoint[](3);
        rows[0] = _row(watched, 10, 200, false);
        rows[1] = _row(watched + 1, 10, 200, true);
        rows[2] = _row(watched, 9, 200, true);
        _do(host, address(market), abi.encodeCall(market.submitCheckpoints, (rows)));
        _do(host, address(market), abi.encodeCall(market.completeSession, (watched + 2)));
    }

    function _changeTheRegistry() private {
        _do(host, address(registry), abi.encodeCall(registry.updateNode, ("dearer")));
        _do(host, address(registry), abi.encodeCall(registry.unregisterNode, ()));
        _do(host, address(registry), abi.encodeCall(registry.setPayout, (host, stranger)));
        _do(stranger, address(registry), abi.encodeCall(registry.registerNode, (stranger, "new")));
    }

    function _endAndWithdraw() private {
        _do(signer, address(market), abi.encodeCall(market.completeSession, (watched)));
        vm.warp(START + 12 hours);
        bytes memory proof = _proof(watched, 10, 300);
        _do(host, address(market), abi.encodeCall(market.submitCheckpoint, (watched, 300, proof)));
        _do(stranger, address(market), abi.encodeCall(market.withdrawFor, (host, address(dollar))));
        proof = _proof(watched, 10, 400);
        _do(host, address(market), abi.encodeCall(market.submitCheckpoint, (watched, 400, proof)));
        _do(stranger, address(registry), abi.encodeCall(registry.setPayout, (host, host)));
        _do(stranger, address(market), abi.encodeCall(market.reclaim, (watched)));
        _do(host, address(market), abi.encodeCall(market.withdraw, (address(dollar), payer)));
        _do(treasury, address(market), abi.encodeCall(market.withdrawTreasury, (address(dollar), payer)));
    }

    /// @dev Somebody does something, which leaves the watched job's words as they were.
    function _do(address who, address target, bytes memory data) private {
        vm.prank(who);
        (bool taken,) = target.call(data);
        vm.assertTrue(taken);

        done[bytes4(data)] = true;
        bytes32[3] memory found = _words();
        for (uint256 i; i < words.length; ++i) {
            vm.assertEq(found[i], words[i]);
        }
    }

    /// @dev Of the four words of the watched job the three that hold its terms.
    function _words() private view returns (bytes32[3] memory found) {
        uint256 first = _jobSlot(watched);
        for (uint256 i; i < found.length; ++i) {
            found[i] = vm.load(address(market), bytes32(first + 1 + i));
        }
    }

    /// @dev What a reader sees of them.
    function _fixed() private view returns (bytes memory) {
        IJobMarketplace.Job memory job = market.getJob(watched);
        return abi.encodePacked(
            abi.encode(job.payer, job.host, job.asset, job.signer, job.pricePerMillion, job.promptPricePerMillion),
            abi.encode(job.maxTokensPerSecond, job.claimWindow, job.createdAt, job.expiresAt)
        );
    }

    function _assertAllDone(bytes4[] memory selectors) private view {
        for (uint256 i; i < selectors.length; ++i) {
            vm.assertTrue(done[selectors[i]], vm.toString(uint32(selectors[i])));
        }
    }

    function _claimWith(uint256 jobId, uint256 tokens, bytes memory proof) private {
        vm.prank(host);
        market.submitCheckpoint(jobId, tokens, proof);
    }
}
