// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IJobMarketplace} from "../src/interfaces/IJobMarketplace.sol";
import {INodeRegistry} from "../src/interfaces/INodeRegistry.sol";
import {IProofSystem} from "../src/interfaces/IProofSystem.sol";
import {Deployed} from "./Deployed.sol";
import {vm} from "./Vm.sol";
import {Receiver} from "./mocks/Receivers.sol";
import {TestDollar} from "./mocks/TestDollar.sol";

/// @dev A registry with one host, a marketplace, a payer with money, and short words for what tests do with them.
abstract contract Fixture {
    // The compiler takes the time for constant within a call, so tests count from here instead of reading it.
    uint256 internal constant START = 1_800_000_000;

    address internal constant ETH = address(0);
    // Where `forge inspect JobMarketplace storage-layout` has `_jobs`, `_earnings`, `_fees`, and the three counts.
    uint256 internal constant JOBS_SLOT = 2;
    uint256 internal constant EARNINGS_SLOT = 8;
    uint256 internal constant FEES_SLOT = 9;
    uint256 internal constant COUNTS_SLOT = 11;

    bytes32 internal constant TRANSCRIPT = keccak256("transcript");
    bytes32 internal constant SALT = "salt";
    uint256 internal constant SIGNER_KEY = 0x516e;
    uint256 internal constant PAYER_KEY = 0x9a1e;

    address internal immutable host = vm.addr(0x1057);
    address internal immutable otherHost = vm.addr(0x2057);
    address internal immutable payer = vm.addr(PAYER_KEY);
    address internal immutable treasury = vm.addr(0x72ea);
    address internal immutable stranger = vm.addr(0x57a6);
    address internal immutable signer = vm.addr(SIGNER_KEY);

    INodeRegistry internal registry;
    IJobMarketplace internal market;
    TestDollar internal dollar;
    bytes32 private _separator;

    function setUp() public virtual {
        vm.warp(START);
        registry = Deployed.registry();
        market = Deployed.market(address(registry), treasury);
        dollar = new TestDollar();
        _separator = market.DOMAIN_SEPARATOR();

        _register(host);
        _register(otherHost);
        dollar.mint(payer, type(uint128).max);
        vm.prank(payer);
        dollar.approve(address(market), type(uint256).max);
        vm.deal(payer, type(uint128).max);
    }

    function _register(address who) internal {
        vm.prank(who);
        registry.registerNode(who, "https://host.example");
    }

    /// @dev Half a dollar at 0.904 dollars a million tokens and 0.15 a million prompt tokens, receipted, for a week.
    function _terms() internal view returns (IJobMarketplace.Terms memory) {
        return IJobMarketplace.Terms({
            host: host,
            asset: address(dollar),
            deposit: 500_000,
            pricePerMillion: 904_000,
            promptPricePerMillion: 150_000,
            signer: signer,
            maxTokensPerSecond: 0,
            claimWindow: 12 hours,
            expiresAt: START + 7 days,
            checkpointInterval: 100,
            modelId: keccak256("model")
        });
    }

    /// @dev The same, host-attested at 10 tokens a second.
    function _attestedTerms() internal view returns (IJobMarketplace.Terms memory terms) {
        terms = _terms();
        terms.maxTokensPerSecond = 10;
    }

    function _ethTerms() internal view returns (IJobMarketplace.Terms memory terms) {
        terms = _terms();
        terms.asset = ETH;
    }

    function _open(IJobMarketplace.Terms memory terms) internal returns (uint256) {
        vm.prank(payer);
        return market.createJob{value: terms.asset == ETH ? terms.deposit : 0}(terms);
    }

    function _open() internal returns (uint256) {
        return _open(_terms());
    }

    /// @dev Somebody with code opens a job in ETH, and is given the money for it.
    function _openAs(Receiver receiver, IJobMarketplace.Terms memory terms) internal returns (uint256) {
        vm.deal(address(this), terms.deposit);
        vm.deal(address(receiver), terms.deposit);
        receiver.call(address(market), terms.deposit, abi.encodeCall(market.createJob, (terms)));
        return market.jobCount();
    }

    function _openAs(Receiver receiver) internal returns (uint256) {
        return _openAs(receiver, _ethTerms());
    }

    /// @dev The payer authorizes an opening, for whoever brings it within the hour.
    function _authorizeOpening(IJobMarketplace.Terms memory terms, uint256 relayFee)
        internal
        view
        returns (IJobMarketplace.Authorization memory)
    {
        return _authorize(PAYER_KEY, terms.asset, terms.deposit, market.openNonce(terms, relayFee, SALT));
    }

    function _authorizeTopUp(uint256 jobId, uint256 amount)
        internal
        view
        returns (IJobMarketplace.Authorization memory)
    {
        return _authorize(PAYER_KEY, market.getJob(jobId).asset, amount, market.topUpNonce(jobId, amount, SALT));
    }

    /// @dev Whoever has `key` authorizes `amount` of a token to the marketplace, for an hour.
    function _authorize(uint256 key, address token, uint256 amount, bytes32 nonce)
        internal
        view
        returns (IJobMarketplace.Authorization memory auth)
    {
        auth = IJobMarketplace.Authorization(vm.addr(key), 0, START + 1 hours, "");
        auth.signature = _signAuthorization(key, token, amount, nonce, auth);
    }

    function _signAuthorization(
        uint256 key,
        address token,
        uint256 amount,
        bytes32 nonce,
        IJobMarketplace.Authorization memory auth
    ) internal view returns (bytes memory) {
        bytes32 typehash = keccak256(
            "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
        );
        bytes32 message = keccak256(
            abi.encode(typehash, auth.from, address(market), amount, auth.validAfter, auth.validBefore, nonce)
        );
        bytes32 digest = keccak256(abi.encodePacked(hex"1901", TestDollar(token).DOMAIN_SEPARATOR(), message));
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }

    /// @dev A receipted job's proof that claims exactly what is signed.
    function _proof(uint256 jobId, uint256 promptTokens, uint256 tokens) internal view returns (bytes memory) {
        return _proof(jobId, promptTokens, promptTokens, tokens);
    }

    /// @dev A receipted job's proof that claims fewer prompt tokens than are signed.
    function _proof(uint256 jobId, uint256 promptTokens, uint256 signedPromptTokens, uint256 signedTokens)
        internal
        view
        returns (bytes memory)
    {
        return abi.encodePacked(
            uint64(promptTokens),
            uint64(signedPromptTokens),
            uint64(signedTokens),
            TRANSCRIPT,
            _sign(SIGNER_KEY, jobId, signedPromptTokens, signedTokens)
        );
    }

    function _sign(uint256 key, uint256 jobId, uint256 promptTokens, uint256 tokens)
        internal
        view
        returns (bytes memory)
    {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, _digest(jobId, promptTokens, tokens));
        return abi.encodePacked(r, s, v);
    }

    /// @dev The digest of a receipt, without a call that an expected revert would be taken for.
    function _digest(uint256 jobId, uint256 promptTokens, uint256 tokens) internal view returns (bytes32) {
        bytes32 typehash = keccak256("Receipt(uint256 jobId,uint64 promptTokens,uint64 tokens,bytes32 transcript)");
        bytes32 receipt = keccak256(abi.encode(typehash, jobId, promptTokens, tokens, TRANSCRIPT));
        return keccak256(abi.encodePacked(hex"1901", _separator, receipt));
    }

    /// @dev A host-attested job's proof.
    function _attested(uint256 promptTokens) internal pure returns (bytes memory) {
        return abi.encodePacked(uint64(promptTokens));
    }

    /// @dev The host claims, with a receipt over exactly these totals.
    function _claim(uint256 jobId, uint256 promptTokens, uint256 tokens) internal {
        bytes memory proof = _proof(jobId, promptTokens, tokens);
        vm.prank(host);
        market.submitCheckpoint(jobId, tokens, proof);
    }

    function _claimAttested(uint256 jobId, uint256 promptTokens, uint256 tokens) internal {
        vm.prank(host);
        market.submitCheckpoint(jobId, tokens, _attested(promptTokens));
    }

    function _complete(address who, uint256 jobId) internal {
        vm.prank(who);
        market.completeSession(jobId);
    }

    function _row(uint256 jobId, uint256 promptTokens, uint256 tokens, bool complete)
        internal
        view
        returns (IProofSystem.Checkpoint memory)
    {
        return IProofSystem.Checkpoint(jobId, tokens, complete, _proof(jobId, promptTokens, tokens));
    }

    function _submit(IProofSystem.Checkpoint[] memory rows) internal {
        vm.prank(host);
        market.submitCheckpoints(rows);
    }

    function _submit(IProofSystem.Checkpoint memory row) internal {
        IProofSystem.Checkpoint[] memory rows = new IProofSystem.Checkpoint[](1);
        rows[0] = row;
        _submit(rows);
    }

    function _earned(address who, address asset) internal view returns (uint256 earnings) {
        (, earnings) = market.balanceOf(who, asset);
    }

    function _refunds(address who, address asset) internal view returns (uint256 refunds) {
        (refunds,) = market.balanceOf(who, asset);
    }

    /// @dev Where the first of a job's four words is.
    function _jobSlot(uint256 jobId) internal pure returns (uint256) {
        return uint256(keccak256(abi.encode(jobId, JOBS_SLOT)));
    }

    function _status(uint256 jobId) internal view returns (IJobMarketplace.Status) {
        return market.getJob(jobId).status;
    }

    function _assertStatus(uint256 jobId, IJobMarketplace.Status status) internal view {
        vm.assertEq(uint256(_status(jobId)), uint256(status));
    }

    function _assertTotals(uint256 jobId, uint256 promptTokens, uint256 tokens) internal view {
        IJobMarketplace.Job memory job = market.getJob(jobId);
        vm.assertEq(job.promptTokens, promptTokens, "promptTokens");
        vm.assertEq(job.tokens, tokens, "tokens");
    }

    /// @dev Expects the next call to revert with an error and its values.
    function _refuses(bytes4 selector) internal {
        vm.expectRevert(abi.encodeWithSelector(selector));
    }

    function _refuses(bytes4 selector, uint256 value) internal {
        vm.expectRevert(abi.encodeWithSelector(selector, value));
    }

    function _refuses(bytes4 selector, uint256 first, uint256 second) internal {
        vm.expectRevert(abi.encodeWithSelector(selector, first, second));
    }

    function _refuses(bytes4 selector, uint256 first, uint256 second, uint256 third) internal {
        vm.expectRevert(abi.encodeWithSelector(selector, first, second, third));
    }

    function _refuses(bytes4 selector, address value) internal {
        vm.expectRevert(abi.encodeWithSelector(selector, value));
    }

    function _refuses(bytes4 selector, address first, address second) internal {
        vm.expectRevert(abi.encodeWithSelector(selector, first, second));
    }

    function _bound(uint256 value, uint256 least, uint256 most) internal pure returns (uint256) {
        if (value >= least && value <= most) return value;
        uint256 size = most - least + 1;
        return size == 0 ? value : least + value % size;
    }
}
