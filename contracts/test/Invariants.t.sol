// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IJobMarketplace} from "../src/interfaces/IJobMarketplace.sol";
import {Fixture} from "./Fixture.sol";
import {Players} from "./Players.sol";
import {vm} from "./Vm.sol";

/// @dev What the marketplace says and holds, against the books. docs/laws.md names each law.
contract Laws is Players {
    /// @dev What the marketplace holds of an asset, and for whom.
    struct Account {
        address asset;
        uint256 held;
        uint256 fees;
        uint256[6] refunds;
        uint256[6] earnings;
    }

    /// @dev After a move. What is tried lasts no longer than this call: forge keeps nothing that an invariant function does.
    function hold() external {
        (IJobMarketplace.Job[] memory told, IJobMarketplace.Job[] memory known) = (_told(), _known());
        for (uint256 i; i < told.length; ++i) {
            _holdForAJob(told[i], known[i], signed[i + 1]);
        }
        for (uint256 i; i < 3; ++i) {
            _holdForAnAsset(_account(_assets()[i]), told, known);
        }
        for (uint256 i; i < told.length; ++i) {
            law_OneJobNeverTouchesAnothersMoney(told[i], known[i]);
        }
        // One job after the other, and now and then none.
        uint256 tried = moves % (jobCount + 1);
        if (tried != 0 && !_isClosed(jobs[tried])) _try(tried);
    }

    /// @dev After the last move.
    function end() external {
        for (uint256 jobId = 1; jobId <= jobCount; ++jobId) {
            if (_isClosed(jobs[jobId])) continue;
            _passToClosing(jobId);
            _writeClosing(jobId);
            _do(stranger, abi.encodeCall(market.reclaim, (jobId)));
        }
        for (uint256 i; i < 3; ++i) {
            _withdrawAll(_assets()[i]);
            Account memory account = _account(_assets()[i]);
            law_EverybodyHasWhatIsTheirs(account);
            law_NothingIsLeftOver(account);
        }
    }

    function _holdForAJob(IJobMarketplace.Job memory told, IJobMarketplace.Job memory known, Totals memory receipt)
        private
        view
    {
        law_TermsNeverChange(told, known);
        law_TotalsOnlyGrow(told, known);
        law_AReceiptedJobPaysForNoMoreThanWasSigned(told, receipt);
        law_AnAttestedJobIsHeldToItsRate(told);
        law_PaidAndRefundableAreTheDeposit(told, known);
    }

    function _holdForAnAsset(
        Account memory account,
        IJobMarketplace.Job[] memory told,
        IJobMarketplace.Job[] memory known
    ) private view {
        law_TheFeeIsATenthOfTheTotals(account, known);
        law_NobodyButTheHostIsPaidByACheckpoint(account, known);
        law_EverybodyHasWhatIsTheirs(account);
        law_NeverLessIsHeldThanOwed(account, told);
    }

    function _try(uint256 jobId) private {
        _passToClosing(jobId);
        law_AClaimIsPossibleUntilTheRefund(jobId);
        law_AfterTheClaimWindowThePayerGetsTheRest(jobId);
    }

    function law_TermsNeverChange(IJobMarketplace.Job memory told, IJobMarketplace.Job memory known) private pure {
        require(_termsOf(told) == _termsOf(known), "the terms of a job never change");
    }

    function law_TotalsOnlyGrow(IJobMarketplace.Job memory told, IJobMarketplace.Job memory known) private pure {
        bool grown = told.promptTokens >= known.promptTokens && told.tokens >= known.tokens;
        require(grown, "totals only grow");
    }

    function law_AReceiptedJobPaysForNoMoreThanWasSigned(IJobMarketplace.Job memory told, Totals memory receipt)
        private
        pure
    {
        bool covered = told.promptTokens <= receipt.promptTokens && told.tokens <= receipt.tokens;
        require(covered || told.maxTokensPerSecond != 0, "a receipted job pays for no more than was signed");
    }

    function law_AnAttestedJobIsHeldToItsRate(IJobMarketplace.Job memory told) private view {
        require(told.promptTokens + told.tokens <= _possible(told), "an attested job is held to its rate");
    }

    /// @dev That what the record says was paid has been paid, fee and host's part, are laws below; that what it leaves is
    /// refundable, to the unit, the last one.
    function law_PaidAndRefundableAreTheDeposit(IJobMarketplace.Job memory told, IJobMarketplace.Job memory known)
        private
        pure
    {
        _equal(told.deposit, known.deposit, "paid and refundable are the deposit");
        require(told.owed <= known.deposit, "paid and refundable are the deposit");
    }

    /// @dev In the books a job is changed by what was meant for it alone.
    function law_OneJobNeverTouchesAnothersMoney(IJobMarketplace.Job memory told, IJobMarketplace.Job memory known)
        private
        pure
    {
        bool same = keccak256(abi.encode(told)) == keccak256(abi.encode(known));
        require(same, "one job never touches another's money");
    }

    function law_TheFeeIsATenthOfTheTotals(Account memory account, IJobMarketplace.Job[] memory known) private view {
        uint256 fees;
        for (uint256 i; i < known.length; ++i) {
            if (known[i].asset == account.asset) fees += _fee(known[i]);
        }
        uint256 credited = account.fees + withdrawnFees[account.asset];
        _equal(credited, fees, "the fee is a tenth of the totals, however they were split");
    }

    function law_NobodyButTheHostIsPaidByACheckpoint(Account memory account, IJobMarketplace.Job[] memory known)
        private
        view
    {
        uint256[6] memory earned;
        for (uint256 i; i < known.length; ++i) {
            if (known[i].asset == account.asset) earned[_ownerId(known[i].host)] += _owed(known[i]) - _fee(known[i]);
        }
        for (uint256 i; i < earned.length; ++i) {
            uint256 credited = account.earnings[i] + withdrawnEarnings[_owners()[i]][account.asset];
            _equal(credited, earned[i], "nobody but the host is paid by a checkpoint");
        }
    }

    function law_EverybodyHasWhatIsTheirs(Account memory account) private view {
        address asset = account.asset;
        address[9] memory everybody = _everybody();
        for (uint256 i; i < everybody.length; ++i) {
            _equal(_walletOf(everybody[i], asset), wallets[everybody[i]][asset], "everybody has what is theirs");
        }
        address[6] memory owners = _owners();
        for (uint256 i; i < owners.length; ++i) {
            _equal(account.refunds[i], keptRefunds[owners[i]][asset], "what was not taken is kept, and nothing else");
        }
    }

    function law_NeverLessIsHeldThanOwed(Account memory account, IJobMarketplace.Job[] memory told) private view {
        uint256 due = account.fees;
        for (uint256 i; i < told.length; ++i) {
            if (told[i].asset == account.asset && !_isClosed(told[i])) due += told[i].deposit - told[i].owed;
        }
        for (uint256 i; i < 6; ++i) {
            due += account.refunds[i] + account.earnings[i];
        }
        require(account.held >= due, "never less is held than owed");
        _equal(account.held - due, donations[account.asset], "what is held and not owed was a gift");
    }

    /// @dev Tried when the claim window is over, with all that the latest receipt is good for.
    function law_AClaimIsPossibleUntilTheRefund(uint256 jobId) private {
        Claim memory last = _wholeClaim(jobId);
        (bool taken,) = _try(jobs[jobId].host, 0, _submission(last));
        require(taken, "a claim is possible until the refund");
        _writeClaim(jobId, last.promptTokens, last.tokens);
    }

    /// @dev Tried by a stranger.
    function law_AfterTheClaimWindowThePayerGetsTheRest(uint256 jobId) private {
        IJobMarketplace.Job memory job = jobs[jobId];
        uint256 before = _purseOf(job.payer, job.asset);
        (bool done,) = _try(stranger, 0, abi.encodeCall(market.reclaim, (jobId)));
        require(done, "after the claim window the payer gets the rest");
        uint256 refund = _purseOf(job.payer, job.asset) - before;
        _equal(refund + _owed(job), job.deposit, "after the claim window the payer gets the rest");
    }

    /// @dev Tried when every job is closed and everybody has withdrawn.
    function law_NothingIsLeftOver(Account memory account) private view {
        _equal(account.held, donations[account.asset], "nothing is left over but gifts");
    }

    function _passToClosing(uint256 jobId) private {
        if (time < jobs[jobId].closesAt) _passTo(jobs[jobId].closesAt);
    }

    /// @dev What somebody has of an asset, refunds included that are kept.
    function _purseOf(address who, address asset) private view returns (uint256) {
        (uint256 refunds,) = market.balanceOf(who, asset);
        return _walletOf(who, asset) + refunds;
    }

    function _account(address asset) private view returns (Account memory account) {
        account.asset = asset;
        account.held = _walletOf(address(market), asset);
        account.fees = market.treasuryBalance(asset);
        address[6] memory owners = _owners();
        for (uint256 i; i < owners.length; ++i) {
            (account.refunds[i], account.earnings[i]) = market.balanceOf(owners[i], asset);
        }
    }

    function _ownerId(address owner) private view returns (uint256 i) {
        while (_owners()[i] != owner) ++i;
    }

    /// @dev Asks forge only when there is something to tell: a hundred questions after each move take long.
    function _equal(uint256 left, uint256 right, string memory why) private pure {
        if (left != right) vm.assertEq(left, right, why);
    }

    function _told() private view returns (IJobMarketplace.Job[] memory told) {
        told = new IJobMarketplace.Job[](market.jobCount());
        for (uint256 i; i < told.length; ++i) {
            told[i] = market.getJob(i + 1);
        }
    }

    function _known() private view returns (IJobMarketplace.Job[] memory known) {
        known = new IJobMarketplace.Job[](jobCount);
        for (uint256 i; i < known.length; ++i) {
            known[i] = jobs[i + 1];
        }
    }

    function _termsOf(IJobMarketplace.Job memory job) private pure returns (bytes32) {
        return keccak256(
            abi.encode(
                job.payer,
                job.host,
                job.asset,
                job.signer,
                job.pricePerMillion,
                job.promptPricePerMillion,
                job.maxTokensPerSecond,
                job.claimWindow,
                job.createdAt,
                job.expiresAt
            )
        );
    }

    function _withdrawAll(address asset) private {
        address[6] memory owners = _owners();
        for (uint256 i; i < owners.length; ++i) {
            _withdrawAll(asset, owners[i]);
        }
        uint256 fees = market.treasuryBalance(asset);
        if (fees == 0) return;
        wallets[treasury][asset] += fees;
        _do(treasury, abi.encodeCall(market.withdrawTreasury, (asset, treasury)));
    }

    function _withdrawAll(address asset, address owner) private {
        (uint256 refunds, uint256 earnings) = market.balanceOf(owner, asset);
        if (payouts[owner] != owner && earnings != 0) {
            _writeWithdrawal(owner, asset, payouts[owner], 0, earnings);
            _do(stranger, abi.encodeCall(market.withdrawFor, (owner, asset)));
            earnings = 0;
        }
        if (refunds + earnings == 0) return;
        _writeWithdrawal(owner, asset, stranger, refunds, earnings);
        _do(owner, abi.encodeCall(market.withdraw, (asset, stranger)));
    }
}

/// @dev What holds after whatever anybody does.
contract InvariantsTest {
    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    Laws private laws;

    function setUp() public {
        laws = new Laws();
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(laws);
    }

    function excludeSelectors() public view returns (FuzzSelector[] memory excluded) {
        excluded = new FuzzSelector[](1);
        excluded[0].addr = address(laws);
        excluded[0].selectors = new bytes4[](3);
        excluded[0].selectors[0] = Fixture.setUp.selector;
        excluded[0].selectors[1] = Laws.hold.selector;
        excluded[0].selectors[2] = Laws.end.selector;
    }

    function invariant_Laws() public {
        laws.hold();
    }

    function afterInvariant() public {
        laws.end();
    }
}
