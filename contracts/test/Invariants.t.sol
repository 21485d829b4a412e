// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IJobMarketplace} from "../src/interfaces/IJobMarketplace.sol";
import {Fixture} from "./Fixture.sol";
import {Players} from "./Players.sol";
import {vm} from "./Vm.sol";

/// @dev What the marketplace says and holds, against the books. docs/laws.md names each law.
contract Laws is Players {
    uint256 private constant JOB_SIZE = 18 * 32;

    /// @dev What the marketplace holds of an asset, and for whom; and what it was to pay by the books.
    struct Account {
        address asset;
        uint256 held;
        uint256 fees;
        uint256 rests;
        uint256[6] refunds;
        uint256[6] earnings;
        uint256 feesEver;
        uint256[6] earnedEver;
    }

    /// @dev After a move. What is tried lasts no longer than this call: forge keeps nothing that an invariant function does.
    function hold() external {
        (IJobMarketplace.Job[] memory told, IJobMarketplace.Job[] memory known) = (_told(), _known());
        for (uint256 i; i < told.length; ++i) {
            _holdForAJob(told[i], known[i], signed[i + 1]);
        }
        Account[3] memory accounts = _accounts(told, known);
        for (uint256 i; i < accounts.length; ++i) {
            _holdForAnAsset(accounts[i]);
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
        address[3] memory assets = _assets();
        for (uint256 i; i < assets.length; ++i) {
            _withdrawAll(assets[i]);
            Account memory account = _account(assets[i]);
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
        law_AnAttestedJobIsHeldToItsRate(told, known);
        law_PaidAndRefundableAreTheDeposit(told, known);
    }

    function _holdForAnAsset(Account memory account) private view {
        law_TheFeeIsATenthOfTheTotals(account);
        law_NobodyButTheHostIsPaidByACheckpoint(account);
        law_EverybodyHasWhatIsTheirs(account);
        law_NeverLessIsHeldThanOwed(account);
    }

    function _try(uint256 jobId) private {
        _passToClosing(jobId);
        law_AClaimIsPossibleUntilTheRefund(jobId);
        law_AfterTheClaimWindowThePayerGetsTheRest(jobId);
    }

    function law_TermsNeverChange(IJobMarketplace.Job memory told, IJobMarketplace.Job memory known) private pure {
        bool same = told.payer == known.payer && told.host == known.host && told.asset == known.asset
            && told.signer == known.signer && told.pricePerMillion == known.pricePerMillion
            && told.promptPricePerMillion == known.promptPricePerMillion
            && told.maxTokensPerSecond == known.maxTokensPerSecond && told.claimWindow == known.claimWindow
            && told.createdAt == known.createdAt && told.expiresAt == known.expiresAt;
        require(same, "the terms of a job never change");
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

    function law_AnAttestedJobIsHeldToItsRate(IJobMarketplace.Job memory told, IJobMarketplace.Job memory known)
        private
        view
    {
        require(told.promptTokens + told.tokens <= _possible(known), "an attested job is held to its rate");
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
        require(_hash(told) == _hash(known), "one job never touches another's money");
    }

    function law_TheFeeIsATenthOfTheTotals(Account memory account) private view {
        uint256 credited = account.fees + withdrawnFees[account.asset];
        _equal(credited, account.feesEver, "the fee is a tenth of the totals, however they were split");
    }

    function law_NobodyButTheHostIsPaidByACheckpoint(Account memory account) private view {
        address[6] memory owners = _owners();
        for (uint256 i; i < owners.length; ++i) {
            uint256 credited = account.earnings[i] + withdrawnEarnings[owners[i]][account.asset];
            _equal(credited, account.earnedEver[i], "nobody but the host is paid by a checkpoint");
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

    function law_NeverLessIsHeldThanOwed(Account memory account) private view {
        uint256 due = account.fees + account.rests;
        for (uint256 i; i < account.earnings.length; ++i) {
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

    /// @dev In the order of `_assets()`.
    function _accounts(IJobMarketplace.Job[] memory told, IJobMarketplace.Job[] memory known)
        private
        view
        returns (Account[3] memory accounts)
    {
        for (uint256 i; i < accounts.length; ++i) {
            accounts[i] = _account(_assets()[i]);
        }
        for (uint256 i; i < told.length; ++i) {
            Account memory account = accounts[_assetId(told[i].asset)];
            if (!_isClosed(told[i])) account.rests += told[i].deposit - told[i].owed;
        }
        for (uint256 i; i < known.length; ++i) {
            Account memory account = accounts[_assetId(known[i].asset)];
            account.feesEver += known[i].fee;
            account.earnedEver[_hostId(known[i].host)] += known[i].owed - known[i].fee;
        }
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

    function _assetId(address asset) private view returns (uint256) {
        if (asset == ETH) return 0;
        return asset == address(dollar) ? 1 : 2;
    }

    /// @dev Where a host stands among the owners.
    function _hostId(address who) private view returns (uint256) {
        if (who == host) return 3;
        return who == otherHost ? 4 : 5;
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

    /// @dev Of all words as they lie in memory: encoded for it, they would take most of a move's time.
    function _hash(IJobMarketplace.Job memory job) private pure returns (bytes32 hash) {
        assembly ("memory-safe") {
            hash := keccak256(job, JOB_SIZE)
        }
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

    Laws internal laws;

    function setUp() public virtual {
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

/// @dev And in a marketplace that is in use already. Forge plays the runs of one contract on one core: these are half of them.
contract InvariantsInUseTest is InvariantsTest {
    function setUp() public override {
        super.setUp();
        for (uint256 i; i < 4; ++i) {
            laws.open(uint256(keccak256(abi.encode(i))), 500_000, 904_000, 150_000);
        }
        laws.claim(0, 1_000, 10_000);
        laws.pass(6 hours);
    }
}
