// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IJobMarketplace} from "../src/interfaces/IJobMarketplace.sol";
import {IProofSystem} from "../src/interfaces/IProofSystem.sol";
import {Fixture} from "./Fixture.sol";
import {vm} from "./Vm.sol";

/// @dev Exactness: what anybody gets depends on the totals alone.
contract MoneyTest is Fixture {
    struct Steps {
        uint80 price;
        uint80 promptPrice;
        uint48[6] tokens;
        uint48[6] promptTokens;
    }

    function test_Golden() public {
        uint256 jobId = _open();
        uint256 before = dollar.balanceOf(payer);
        _claim(jobId, 0, 47_580);
        _complete(host, jobId);

        IJobMarketplace.Job memory job = market.getJob(jobId);
        vm.assertEq(job.owed, 43_012, "owed");
        vm.assertEq(job.fee, 4_301, "fee");
        vm.assertEq(_earned(host, address(dollar)), 38_711, "host");
        vm.assertEq(dollar.balanceOf(payer) - before, 456_988, "refund");
    }

    function test_SeventeenTokensPayForSeventeen() public {
        IJobMarketplace.Terms memory terms = _terms();
        terms.pricePerMillion = 1_000_000;
        uint256 jobId = _open(terms);

        _claim(jobId, 0, 17);

        vm.assertEq(market.getJob(jobId).owed, 17);
    }

    function testFuzz_HostTreasuryAndRefundAreTheDepositToTheUnit(
        uint96 deposit,
        uint80 price,
        uint80 promptPrice,
        uint48 tokens,
        uint48 promptTokens
    ) public {
        IJobMarketplace.Terms memory terms = _terms();
        terms.deposit = _bound(deposit, 1, type(uint96).max);
        (terms.pricePerMillion, terms.promptPricePerMillion) = (price, promptPrice);
        uint256 jobId = _open(terms);
        uint256 before = dollar.balanceOf(payer);
        uint256 owed = (uint256(tokens) * price + uint256(promptTokens) * promptPrice) / 1_000_000;

        if (owed > terms.deposit) {
            _refuses(IProofSystem.AboveDeposit.selector, owed, terms.deposit);
            _claim(jobId, promptTokens, tokens);
            owed = 0;
        } else {
            _claim(jobId, promptTokens, tokens);
        }
        _complete(host, jobId);

        uint256 earned = _earned(host, address(dollar));
        uint256 fee = market.treasuryBalance(address(dollar));
        uint256 refund = dollar.balanceOf(payer) - before;
        vm.assertEq(fee, owed / 10, "fee");
        vm.assertEq(earned, owed - owed / 10, "host");
        vm.assertEq(earned + fee + refund, terms.deposit, "sum");
        vm.assertEq(dollar.balanceOf(address(market)), earned + fee, "escrow");
    }

    function testFuzz_HowOftenAJobIsCheckpointedChangesNothing(Steps memory steps) public {
        uint256 once = _open(_dear(steps));
        uint256 often = _open(_dear(steps));
        uint256 prompt;
        uint256 tokens;
        uint256 earned;
        uint256 fees;

        vm.warp(START + 1 days);
        for (uint256 i; i < steps.tokens.length; ++i) {
            tokens += steps.tokens[i] % 100_000;
            prompt += steps.promptTokens[i] % 100_000;
            _claimAttested(often, prompt, tokens);
        }
        (earned, fees) = (_earned(host, address(dollar)), market.treasuryBalance(address(dollar)));
        _claimAttested(once, prompt, tokens);

        vm.assertEq(_earned(host, address(dollar)) - earned, earned, "host");
        vm.assertEq(market.treasuryBalance(address(dollar)) - fees, fees, "fee");
        IJobMarketplace.Job memory job = market.getJob(often);
        vm.assertEq(earned + fees, job.owed, "owed");
        vm.assertEq(fees, job.fee, "fee of the totals");
    }

    function testFuzz_ABatchPaysWhatItsRowsPayOneByOne(Steps memory steps) public {
        IProofSystem.Checkpoint[] memory rows = new IProofSystem.Checkpoint[](steps.tokens.length);
        uint256[6] memory alone;
        for (uint256 i; i < rows.length; ++i) {
            uint256 asset = i % 3;
            IJobMarketplace.Terms memory terms = _dear(steps);
            if (asset == 0) terms.asset = ETH;
            alone[i] = _open(terms);
            bytes memory proof = _attested(steps.promptTokens[i] % 100_000);
            rows[i] = IProofSystem.Checkpoint(_open(terms), steps.tokens[i] % 100_000, i % 2 == 0, proof);
        }

        vm.warp(START + 1 days);
        _submit(rows);
        (uint256 dollars, uint256 wei_) = (_earned(host, address(dollar)), _earned(host, ETH));
        (uint256 dollarFees, uint256 weiFees) = (market.treasuryBalance(address(dollar)), market.treasuryBalance(ETH));
        for (uint256 i; i < rows.length; ++i) {
            _claimAttested(alone[i], steps.promptTokens[i] % 100_000, steps.tokens[i] % 100_000);
        }

        vm.assertEq(_earned(host, address(dollar)), 2 * dollars, "dollars");
        vm.assertEq(_earned(host, ETH), 2 * wei_, "wei");
        vm.assertEq(market.treasuryBalance(address(dollar)), 2 * dollarFees, "dollar fees");
        vm.assertEq(market.treasuryBalance(ETH), 2 * weiFees, "wei fees");
    }

    function testFuzz_OrderAndRepetitionNeverPayTwice(uint48[5] memory totals) public {
        uint256 jobId = _open(_cheap());
        uint256 highest;
        vm.warp(START + 1 days);
        for (uint256 i; i < totals.length; ++i) {
            bytes memory claim = abi.encodeCall(market.submitCheckpoint, (jobId, totals[i], _attested(0)));
            vm.prank(host);
            (bool paid,) = address(market).call(claim);
            vm.assertEq(paid, totals[i] >= highest);
            if (totals[i] > highest) highest = totals[i];
        }

        vm.assertEq(market.getJob(jobId).owed, highest / 1_000_000);
        vm.assertEq(_earned(host, address(dollar)) + market.treasuryBalance(address(dollar)), market.getJob(jobId).owed);
    }

    /// @dev The largest deposit, at prices at which 1.2 million tokens of both kinds cannot use it up.
    function _dear(Steps memory steps) private view returns (IJobMarketplace.Terms memory terms) {
        terms = _unbounded();
        terms.pricePerMillion = steps.price / 16;
        terms.promptPricePerMillion = steps.promptPrice / 16;
    }

    /// @dev A base unit for a million tokens.
    function _cheap() private view returns (IJobMarketplace.Terms memory terms) {
        terms = _unbounded();
        terms.pricePerMillion = 1;
    }

    /// @dev The largest deposit, host-attested at the largest rate: what is paid for totals is the same whoever vouches for
    /// them, and ten thousand runs need no signatures for it.
    function _unbounded() private view returns (IJobMarketplace.Terms memory terms) {
        terms = _terms();
        terms.deposit = type(uint96).max;
        terms.maxTokensPerSecond = type(uint32).max;
    }
}
