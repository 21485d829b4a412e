// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IERC3009} from "../src/interfaces/IERC3009.sol";
import {IJobMarketplace} from "../src/interfaces/IJobMarketplace.sol";
import {IProofSystem} from "../src/interfaces/IProofSystem.sol";
import {Deployed} from "./Deployed.sol";
import {Fixture} from "./Fixture.sol";
import {Vm, vm} from "./Vm.sol";
import {Wallet} from "./mocks/Receivers.sol";
import {TestDollar} from "./mocks/TestDollar.sol";
import {CatchAllToken, GiftToken, ListedToken, SilentToken, TollToken} from "./mocks/Tokens.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";

/// @dev Jobs that are opened and funded by a payer's EIP-3009 authorization, whoever sends it.
contract AuthorizationTest is Fixture {
    uint256 private constant DEPOSIT = 500_000;
    uint256 private constant RELAY_FEE = 1_000;
    bytes32 private constant OTHER_SALT = "other salt";
    uint256 private constant STRANGER_KEY = 0x57a6;

    address private immutable relayer = vm.addr(0x5e1a7);

    /// @dev A payer that has neither ETH nor approved anything.
    function setUp() public override {
        super.setUp();
        vm.deal(payer, 0);
        vm.prank(payer);
        dollar.approve(address(market), 0);
    }

    // Opening

    function test_APayerWithoutETHOpensAJob() public {
        IJobMarketplace.Terms memory terms = _terms();
        IJobMarketplace.Authorization memory auth = _authorizeOpening(terms, RELAY_FEE);
        uint256 before = dollar.balanceOf(payer);

        vm.expectEmit(address(market));
        emit IJobMarketplace.JobCreated(1, payer, host, terms.signer, terms.checkpointInterval, terms.modelId);
        vm.expectEmit(address(market));
        emit IJobMarketplace.JobRelayed(1, relayer, RELAY_FEE);
        uint256 jobId = _bring(terms, RELAY_FEE, auth);

        IJobMarketplace.Job memory job = market.getJob(jobId);
        vm.assertEq(jobId, 1);
        vm.assertEq(job.payer, payer, "payer");
        vm.assertEq(job.deposit, DEPOSIT - RELAY_FEE, "deposit");
        vm.assertEq(dollar.balanceOf(relayer), RELAY_FEE, "relayer");
        vm.assertEq(dollar.balanceOf(address(market)), DEPOSIT - RELAY_FEE, "market");
        vm.assertEq(dollar.balanceOf(payer), before - DEPOSIT, "payer's dollars");
    }

    function test_ARelayedJobIsLikeAnyOther() public {
        IJobMarketplace.Terms memory terms = _terms();
        uint256 relayed = _bring(terms, RELAY_FEE, _authorizeOpening(terms, RELAY_FEE));
        terms.deposit = DEPOSIT - RELAY_FEE;
        vm.prank(payer);
        dollar.approve(address(market), terms.deposit);
        uint256 own = _open(terms);

        vm.assertEq(abi.encode(market.getJob(relayed)), abi.encode(market.getJob(own)));
    }

    function testFuzz_HostTreasuryRefundAndRelayFeeAreWhatWasSignedFor(uint96 deposit, uint96 relayFee, uint48 tokens)
        public
    {
        IJobMarketplace.Terms memory terms = _terms();
        terms.deposit = _bound(deposit, 1, type(uint96).max);
        relayFee = uint96(_bound(relayFee, 0, terms.deposit - 1));
        uint256 before = dollar.balanceOf(payer);
        uint256 jobId = _bring(terms, relayFee, _authorizeOpening(terms, relayFee));
        uint256 most = (terms.deposit - relayFee) * 1_000_000 / terms.pricePerMillion;
        _claim(jobId, 0, _bound(tokens, 0, most < 2 ** 48 ? most : 2 ** 48 - 1));
        _complete(host, jobId);

        uint256 paid = before - dollar.balanceOf(payer);
        uint256 earned = _earned(host, address(dollar)) + market.treasuryBalance(address(dollar));
        vm.assertEq(paid, earned + relayFee);
        vm.assertEq(dollar.balanceOf(relayer), relayFee);
        vm.assertEq(dollar.balanceOf(address(market)), earned);
    }

    function test_WithoutARelayFeeNothingIsSentToTheRelayerOrSaidOfIt() public {
        IJobMarketplace.Terms memory terms = _terms();
        IJobMarketplace.Authorization memory auth = _authorizeOpening(terms, 0);

        vm.recordLogs();
        _bring(terms, 0, auth);
        Vm.Log[] memory logs = vm.getRecordedLogs();

        uint256 transfers;
        for (uint256 i; i < logs.length; ++i) {
            if (logs[i].topics[0] == IERC20.Transfer.selector) ++transfers;
            vm.assertTrue(logs[i].topics[0] != IJobMarketplace.JobRelayed.selector);
        }
        vm.assertEq(transfers, 1);
        vm.assertEq(market.getJob(1).deposit, DEPOSIT);
    }

    function test_ARelayFeeLeavesSomethingOfTheDeposit() public {
        IJobMarketplace.Terms memory terms = _terms();
        for (uint256 more; more < 2; ++more) {
            IJobMarketplace.Authorization memory refused = _authorizeOpening(terms, DEPOSIT + more);
            _refuses(IJobMarketplace.RelayFeeTakesAll.selector, DEPOSIT + more, DEPOSIT);
            _bring(terms, DEPOSIT + more, refused);
        }

        uint256 jobId = _bring(terms, DEPOSIT - 1, _authorizeOpening(terms, DEPOSIT - 1));

        vm.assertEq(market.getJob(jobId).deposit, 1);
        vm.assertEq(dollar.balanceOf(relayer), DEPOSIT - 1);
    }

    function test_APayerMayBringItsOwnAuthorization() public {
        IJobMarketplace.Terms memory terms = _terms();
        IJobMarketplace.Authorization memory auth = _authorizeOpening(terms, RELAY_FEE);
        uint256 before = dollar.balanceOf(payer);

        vm.prank(payer);
        market.createJobWithAuthorization(terms, RELAY_FEE, SALT, auth);

        vm.assertEq(dollar.balanceOf(payer), before - DEPOSIT + RELAY_FEE);
    }

    function test_ARelayedJobIsHeldToTheSameTerms() public {
        IJobMarketplace.Terms memory terms = _terms();
        terms.host = stranger;
        IJobMarketplace.Authorization memory auth = _authorizeOpening(terms, 0);
        _refuses(IJobMarketplace.HostNotRegistered.selector, stranger);
        _bring(terms, 0, auth);

        terms = _terms();
        terms.signer = address(0);
        auth = _authorizeOpening(terms, 0);
        _refuses(IJobMarketplace.InvalidSigner.selector, address(0));
        _bring(terms, 0, auth);

        terms = _terms();
        terms.deposit = 2 ** 96 + RELAY_FEE;
        auth = _authorizeOpening(terms, RELAY_FEE);
        _refuses(IProofSystem.DoesNotFit.selector, 2 ** 96, 96);
        _bring(terms, RELAY_FEE, auth);
    }

    function test_EqualOpeningsWithDifferentSaltsAreTwoJobs() public {
        IJobMarketplace.Terms memory terms = _terms();
        bytes32 nonce = market.openNonce(terms, RELAY_FEE, OTHER_SALT);
        _bring(terms, RELAY_FEE, _authorizeOpening(terms, RELAY_FEE));

        IJobMarketplace.Authorization memory auth = _authorize(PAYER_KEY, terms.asset, DEPOSIT, nonce);
        uint256 jobId = _bring(terms, RELAY_FEE, OTHER_SALT, auth);

        vm.assertEq(jobId, 2);
        vm.assertEq(dollar.balanceOf(address(market)), 2 * (DEPOSIT - RELAY_FEE));
    }

    function test_TheSameOpeningTwiceIsOneJob() public {
        IJobMarketplace.Terms memory terms = _terms();
        IJobMarketplace.Authorization memory auth = _authorizeOpening(terms, RELAY_FEE);
        bytes memory used = _used(market.openNonce(terms, RELAY_FEE, SALT));
        _bring(terms, RELAY_FEE, auth);

        vm.expectRevert(used);
        _bring(terms, RELAY_FEE, auth);

        vm.assertEq(market.jobCount(), 1);
    }

    /// @dev Whoever is first earns the fee; the job is the one that the payer signed for, whoever that was.
    function test_ARelayThatIsCopiedFromThePoolOpensTheSameJob() public {
        IJobMarketplace.Terms memory terms = _terms();
        IJobMarketplace.Authorization memory auth = _authorizeOpening(terms, RELAY_FEE);
        bytes memory used = _used(market.openNonce(terms, RELAY_FEE, SALT));
        uint256 clean = vm.snapshotState();
        _bring(terms, RELAY_FEE, auth);
        IJobMarketplace.Job memory meant = market.getJob(1);
        vm.revertToStateAndDelete(clean);

        vm.prank(stranger);
        market.createJobWithAuthorization(terms, RELAY_FEE, SALT, auth);
        vm.expectRevert(used);
        _bring(terms, RELAY_FEE, auth);

        vm.assertEq(abi.encode(market.getJob(1)), abi.encode(meant));
        vm.assertEq(dollar.balanceOf(stranger), RELAY_FEE);
        vm.assertEq(dollar.balanceOf(relayer), 0);
    }

    // What a relay changes

    function test_ARelayThatChangesATermMovesNothing() public {
        IJobMarketplace.Authorization memory auth = _authorizeOpening(_terms(), RELAY_FEE);
        vm.etch(_twin(address(dollar)), address(dollar).code);
        _register(_twin(host));
        bytes32 before = _moved();

        for (uint256 field; field < 11; ++field) {
            IJobMarketplace.Terms memory changed = _changed(field);
            _refuses(ERC3009.ERC3009InvalidSignature.selector);
            _bring(changed, RELAY_FEE, auth);
        }

        vm.assertEq(_moved(), before);
        _bring(_terms(), RELAY_FEE, auth);
    }

    function test_ARelayThatChangesFeeOrSaltMovesNothing() public {
        IJobMarketplace.Terms memory terms = _terms();
        IJobMarketplace.Authorization memory auth = _authorizeOpening(terms, RELAY_FEE);
        bytes32 before = _moved();

        _refuses(ERC3009.ERC3009InvalidSignature.selector);
        _bring(terms, RELAY_FEE + 1, auth);
        _refuses(ERC3009.ERC3009InvalidSignature.selector);
        _bring(terms, RELAY_FEE - 1, auth);
        _refuses(ERC3009.ERC3009InvalidSignature.selector);
        _bring(terms, RELAY_FEE, OTHER_SALT, auth);

        vm.assertEq(_moved(), before);
    }

    function test_ARelayThatChangesPayerOrTimesMovesNothing() public {
        IJobMarketplace.Terms memory terms = _terms();
        IJobMarketplace.Authorization memory auth = _authorizeOpening(terms, RELAY_FEE);
        dollar.mint(stranger, DEPOSIT);
        bytes32 before = _moved();

        auth.from = stranger;
        _refuses(ERC3009.ERC3009InvalidSignature.selector);
        _bring(terms, RELAY_FEE, auth);
        (auth.from, auth.validAfter) = (payer, 1);
        _refuses(ERC3009.ERC3009InvalidSignature.selector);
        _bring(terms, RELAY_FEE, auth);
        (auth.validAfter, auth.validBefore) = (0, auth.validBefore + 1);
        _refuses(ERC3009.ERC3009InvalidSignature.selector);
        _bring(terms, RELAY_FEE, auth);

        vm.assertEq(_moved(), before);
        vm.assertEq(dollar.balanceOf(stranger), DEPOSIT);
    }

    /// @dev Of the whole call, selector to signature.
    function testFuzz_NoBitOfARelayedOpeningCanBeChanged(uint256 bit) public {
        IJobMarketplace.Terms memory terms = _terms();
        IJobMarketplace.Authorization memory auth = _authorizeOpening(terms, RELAY_FEE);

        _changeABit(abi.encodeCall(market.createJobWithAuthorization, (terms, RELAY_FEE, SALT, auth)), bit);
    }

    function testFuzz_NoBitOfARelayedTopUpCanBeChanged(uint256 bit) public {
        IJobMarketplace.Terms memory terms = _terms();
        uint256 jobId = _bring(terms, 0, _authorizeOpening(terms, 0));
        terms.modelId = "another";
        _bring(terms, 0, _authorizeOpening(terms, 0));

        _changeABit(abi.encodeCall(market.topUpWithAuthorization, (jobId, 7, SALT, _authorizeTopUp(jobId, 7))), bit);
    }

    function test_AnAuthorizationIsForOneMarketplace() public {
        IJobMarketplace.Terms memory terms = _terms();
        IJobMarketplace.Authorization memory auth = _authorizeOpening(terms, RELAY_FEE);
        IJobMarketplace twin = Deployed.market(address(registry), treasury);
        vm.assertTrue(twin.openNonce(terms, RELAY_FEE, SALT) != market.openNonce(terms, RELAY_FEE, SALT));
        vm.assertTrue(twin.topUpNonce(1, 7, SALT) != market.topUpNonce(1, 7, SALT));

        IJobMarketplace.Authorization memory topUp = _authorizeTopUp(_bring(terms, RELAY_FEE, auth), 7);

        market = twin;
        _refuses(ERC3009.ERC3009InvalidSignature.selector);
        _bring(terms, RELAY_FEE, auth);
        uint256 jobId = _bring(terms, 0, _authorizeOpening(terms, 0));
        _refuses(ERC3009.ERC3009InvalidSignature.selector);
        _bringTopUp(jobId, 7, SALT, topUp);
    }

    function test_AnAuthorizationIsForOneChain() public {
        IJobMarketplace.Terms memory terms = _terms();
        IJobMarketplace.Authorization memory auth = _authorizeOpening(terms, RELAY_FEE);
        (bytes32 open, bytes32 topUp) = (market.openNonce(terms, RELAY_FEE, SALT), market.topUpNonce(1, 7, SALT));

        vm.chainId(10);
        _refuses(ERC3009.ERC3009InvalidSignature.selector);
        _bring(terms, RELAY_FEE, auth);

        vm.assertTrue(open != market.openNonce(terms, RELAY_FEE, SALT));
        vm.assertTrue(topUp != market.topUpNonce(1, 7, SALT));
    }

    // Nonces

    function testFuzz_NoncesAreHashesOfAllThatTheyBind(
        IJobMarketplace.Terms memory terms,
        uint256 relayFee,
        bytes32 salt,
        uint256 jobId,
        uint64 chain
    ) public {
        vm.chainId(_bound(chain, 1, type(uint64).max));
        bytes memory words = abi.encodePacked(
            abi.encode(keccak256("Tallystick open"), address(market), block.chainid),
            abi.encode(terms.host, terms.asset, terms.deposit, terms.pricePerMillion, terms.promptPricePerMillion),
            abi.encode(terms.signer, terms.maxTokensPerSecond, terms.claimWindow, terms.expiresAt),
            abi.encode(terms.checkpointInterval, terms.modelId, relayFee, salt)
        );
        vm.assertEq(market.openNonce(terms, relayFee, salt), keccak256(words));

        bytes32 kind = keccak256("Tallystick top-up");
        vm.assertEq(
            market.topUpNonce(jobId, relayFee, salt),
            keccak256(abi.encode(kind, address(market), block.chainid, jobId, relayFee, salt))
        );
    }

    function test_AnOpeningIsNoTopUp() public {
        IJobMarketplace.Terms memory terms = _terms();
        uint256 jobId = _bring(terms, 0, _authorizeOpening(terms, 0));
        terms.modelId = "another";
        IJobMarketplace.Authorization memory opening = _authorizeOpening(terms, 0);
        IJobMarketplace.Authorization memory topUp = _authorizeTopUp(jobId, DEPOSIT);
        bytes32 before = _moved();

        _refuses(ERC3009.ERC3009InvalidSignature.selector);
        _bringTopUp(jobId, DEPOSIT, SALT, opening);
        _refuses(ERC3009.ERC3009InvalidSignature.selector);
        _bring(terms, 0, topUp);

        vm.assertEq(_moved(), before);
    }

    /// @dev Money that was authorized to the contract, and for nothing that it knows, stays with its owner.
    function test_APlainAuthorizationToTheMarketplaceIsNobodysToPull() public {
        IJobMarketplace.Terms memory terms = _terms();
        uint256 jobId = _bring(terms, 0, _authorizeOpening(terms, 0));
        IJobMarketplace.Authorization memory plain = _authorize(PAYER_KEY, terms.asset, DEPOSIT, "any");
        bytes32 before = _moved();

        _refuses(ERC3009.ERC3009InvalidSignature.selector);
        _bring(terms, 0, "any", plain);
        _refuses(ERC3009.ERC3009InvalidSignature.selector);
        _bringTopUp(jobId, DEPOSIT, "any", plain);
        _takeAtTheToken("any", plain);

        vm.assertEq(_moved(), before);
    }

    function test_AnOpeningIsUsedByTheMarketplaceAlone() public {
        IJobMarketplace.Terms memory terms = _terms();
        IJobMarketplace.Authorization memory auth = _authorizeOpening(terms, 0);
        bytes32 nonce = market.openNonce(terms, 0, SALT);

        _takeAtTheToken(nonce, auth);

        vm.assertTrue(!dollar.authorizationState(payer, nonce));
        _bring(terms, 0, auth);
    }

    // Times

    function test_AnAuthorizationIsGoodBetweenItsTimesAlone() public {
        (uint256 validAfter, uint256 validBefore) = (START + 10, START + 20);
        IJobMarketplace.Terms memory terms = _terms();
        bytes32 nonce = market.openNonce(terms, 0, SALT);
        IJobMarketplace.Authorization memory auth = IJobMarketplace.Authorization(payer, validAfter, validBefore, "");
        auth.signature = _signAuthorization(PAYER_KEY, terms.asset, DEPOSIT, nonce, auth);
        bytes memory refusal =
            abi.encodeWithSelector(ERC3009.ERC3009InvalidAuthorizationTime.selector, validAfter, validBefore);

        vm.warp(validAfter);
        vm.expectRevert(refusal);
        _bring(terms, 0, auth);
        vm.warp(validBefore);
        vm.expectRevert(refusal);
        _bring(terms, 0, auth);
        vm.assertEq(market.jobCount(), 0);

        vm.warp(validAfter + 1);
        _bring(terms, 0, auth);
    }

    function test_AnAuthorizationOpensUntilItsLastSecond() public {
        IJobMarketplace.Terms memory terms = _terms();
        IJobMarketplace.Authorization memory auth = _authorizeOpening(terms, 0);

        vm.warp(START + 1 hours - 1);
        _bring(terms, 0, auth);
    }

    function test_ACancelledAuthorizationOpensNothing() public {
        IJobMarketplace.Terms memory terms = _terms();
        IJobMarketplace.Authorization memory auth = _authorizeOpening(terms, 0);
        bytes32 nonce = market.openNonce(terms, 0, SALT);
        bytes32 message =
            keccak256(abi.encode(keccak256("CancelAuthorization(address authorizer,bytes32 nonce)"), payer, nonce));
        (uint8 v, bytes32 r, bytes32 s) =
            vm.sign(PAYER_KEY, keccak256(abi.encodePacked(hex"1901", dollar.DOMAIN_SEPARATOR(), message)));
        dollar.cancelAuthorization(payer, nonce, v, r, s);

        vm.expectRevert(_used(nonce));
        _bring(terms, 0, auth);
    }

    // Contract wallets

    function test_AContractWalletPaysByItsOwnKindOfSignature() public {
        (Wallet wallet, IJobMarketplace.Terms memory terms) = _wallet();
        IJobMarketplace.Authorization memory auth = _authorizeFrom(wallet, terms, "signed by the board");

        uint256 jobId = _bring(terms, RELAY_FEE, auth);
        vm.assertEq(market.getJob(jobId).payer, address(wallet));

        wallet.call(address(market), 0, abi.encodeCall(market.completeSession, (jobId)));
        vm.warp(START + 12 hours);
        market.reclaim(jobId);
        vm.assertEq(dollar.balanceOf(address(wallet)), DEPOSIT - RELAY_FEE);
    }

    function test_AContractWalletToppingUpPaysLikewise() public {
        (Wallet wallet, IJobMarketplace.Terms memory terms) = _wallet();
        uint256 jobId = _bring(terms, RELAY_FEE, _authorizeFrom(wallet, terms, ""));
        dollar.mint(address(wallet), 7);
        IJobMarketplace.Authorization memory auth =
            IJobMarketplace.Authorization(address(wallet), 0, START + 1 hours, "");
        bytes32 nonce = market.topUpNonce(jobId, 7, SALT);
        auth.signature = _signAuthorization(PAYER_KEY, terms.asset, 7, nonce, auth);

        _bringTopUp(jobId, 7, SALT, auth);

        vm.assertEq(market.getJob(jobId).deposit, DEPOSIT - RELAY_FEE + 7);
    }

    function test_AContractWalletThatRefusesPaysNothing() public {
        (Wallet wallet, IJobMarketplace.Terms memory terms) = _wallet();
        IJobMarketplace.Authorization memory auth = _authorizeFrom(wallet, terms, "");
        bytes memory signature = auth.signature;
        bytes32 before = _moved();

        // It says no; it reverts, as there is nothing that it could read.
        auth.signature = _signAuthorization(STRANGER_KEY, terms.asset, DEPOSIT, "any", auth);
        _refuses(ERC3009.ERC3009InvalidSignature.selector);
        _bring(terms, RELAY_FEE, auth);
        auth.signature = "";
        _refuses(ERC3009.ERC3009InvalidSignature.selector);
        _bring(terms, RELAY_FEE, auth);

        vm.assertEq(_moved(), before);
        auth.signature = signature;
        _bring(terms, RELAY_FEE, auth);
    }

    function test_TheMarketplaceIsNobodysPayer() public {
        dollar.mint(address(market), DEPOSIT);
        IJobMarketplace.Terms memory terms = _terms();
        IJobMarketplace.Authorization memory auth = _authorizeOpening(terms, 0);
        auth.from = address(market);

        _refuses(ERC3009.ERC3009InvalidSignature.selector);
        _bring(terms, 0, auth);
    }

    // Relayers

    /// @dev Nothing happens, and the authorization is as good as before for another relayer.
    function test_ARelayerThatCannotBePaidBlocksNobody() public {
        ListedToken token = new ListedToken();
        (IJobMarketplace.Terms memory terms, IJobMarketplace.Authorization memory auth) = _payIn(token);
        token.list(relayer, true);

        vm.expectRevert("listed");
        _bring(terms, RELAY_FEE, auth);
        vm.assertEq(market.jobCount(), 0);
        vm.assertEq(token.balanceOf(payer), DEPOSIT);

        vm.prank(stranger);
        uint256 jobId = market.createJobWithAuthorization(terms, RELAY_FEE, SALT, auth);
        vm.assertEq(market.getJob(jobId).deposit, DEPOSIT - RELAY_FEE);
    }

    // Assets

    function test_ETHIsNotPaidInByAuthorization() public {
        IJobMarketplace.Terms memory terms = _ethTerms();
        vm.deal(payer, DEPOSIT);
        uint256 jobId = _open(terms);
        IJobMarketplace.Authorization memory auth = IJobMarketplace.Authorization(payer, 0, START + 1 hours, "");

        _refuses(IJobMarketplace.AuthorizationInETH.selector);
        _bring(terms, RELAY_FEE, auth);
        _refuses(IJobMarketplace.AuthorizationInETH.selector);
        _bringTopUp(jobId, 7, SALT, auth);
    }

    function test_NoETHComesWithAnAuthorization() public {
        IJobMarketplace.Terms memory terms = _terms();
        IJobMarketplace.Authorization memory auth = _authorizeOpening(terms, 0);
        bytes memory data = abi.encodeCall(market.createJobWithAuthorization, (terms, 0, SALT, auth));
        vm.deal(relayer, 1);

        vm.prank(relayer);
        (bool taken,) = address(market).call{value: 1}(data);

        vm.assertTrue(!taken);
    }

    function test_ATokenWithoutAuthorizationsIsRefused() public {
        SilentToken token = new SilentToken();
        token.mint(payer, DEPOSIT);

        _assertRefused(address(token), "");
    }

    function test_ATokenThatAnswersEverythingIsRefused() public {
        CatchAllToken token = new CatchAllToken();
        token.mint(payer, 2 * DEPOSIT);

        _assertRefused(address(token), _wrongAmount(DEPOSIT, 0));
    }

    function test_ATokenThatTakesATollOnAuthorizationsIsRefused() public {
        (IJobMarketplace.Terms memory terms, IJobMarketplace.Authorization memory auth) = _payIn(new TollToken());

        vm.expectRevert(_wrongAmount(DEPOSIT, DEPOSIT - DEPOSIT / 100));
        _bring(terms, RELAY_FEE, auth);
    }

    function test_ATokenThatGivesMoreThanAuthorizedIsRefused() public {
        (IJobMarketplace.Terms memory terms, IJobMarketplace.Authorization memory auth) = _payIn(new GiftToken());

        vm.expectRevert(_wrongAmount(DEPOSIT, DEPOSIT + 1));
        _bring(terms, RELAY_FEE, auth);
    }

    // Topping up

    function test_APayerWithoutETHTopsUp() public {
        IJobMarketplace.Terms memory terms = _terms();
        uint256 jobId = _bring(terms, 0, _authorizeOpening(terms, 0));
        IJobMarketplace.Authorization memory auth = _authorizeTopUp(jobId, 7);

        vm.expectEmit(address(market));
        emit IJobMarketplace.JobToppedUp(jobId, 7, DEPOSIT + 7);
        _bringTopUp(jobId, 7, SALT, auth);

        vm.assertEq(market.getJob(jobId).deposit, DEPOSIT + 7);
        vm.assertEq(dollar.balanceOf(address(market)), DEPOSIT + 7);
        vm.assertEq(dollar.balanceOf(relayer), 0);
    }

    function test_ARelayThatChangesATopUpMovesNothing() public {
        IJobMarketplace.Terms memory terms = _terms();
        uint256 jobId = _bring(terms, 0, _authorizeOpening(terms, 0));
        terms.modelId = "another";
        uint256 other = _bring(terms, 0, _authorizeOpening(terms, 0));
        IJobMarketplace.Authorization memory auth = _authorizeTopUp(jobId, 7);
        bytes32 before = _moved();

        _refuses(ERC3009.ERC3009InvalidSignature.selector);
        _bringTopUp(other, 7, SALT, auth);
        _refuses(ERC3009.ERC3009InvalidSignature.selector);
        _bringTopUp(jobId, 8, SALT, auth);
        _refuses(ERC3009.ERC3009InvalidSignature.selector);
        _bringTopUp(jobId, 7, OTHER_SALT, auth);
        auth.validBefore += 1;
        _refuses(ERC3009.ERC3009InvalidSignature.selector);
        _bringTopUp(jobId, 7, SALT, auth);

        vm.assertEq(_moved(), before);
    }

    function test_EqualTopUpsWithDifferentSaltsAreTwoAndTheSameTwiceIsOne() public {
        IJobMarketplace.Terms memory terms = _terms();
        uint256 jobId = _bring(terms, 0, _authorizeOpening(terms, 0));
        IJobMarketplace.Authorization memory auth = _authorizeTopUp(jobId, 7);
        bytes32 nonce = market.topUpNonce(jobId, 7, OTHER_SALT);
        bytes memory used = _used(market.topUpNonce(jobId, 7, SALT));

        _bringTopUp(jobId, 7, SALT, auth);
        vm.expectRevert(used);
        _bringTopUp(jobId, 7, SALT, auth);
        _bringTopUp(jobId, 7, OTHER_SALT, _authorize(PAYER_KEY, terms.asset, 7, nonce));

        vm.assertEq(market.getJob(jobId).deposit, DEPOSIT + 14);
    }

    function test_AnAuthorizedTopUpIsHeldToTheSameRules() public {
        IJobMarketplace.Terms memory terms = _terms();
        uint256 jobId = _bring(terms, 0, _authorizeOpening(terms, 0));
        IJobMarketplace.Authorization memory auth = _authorizeTopUp(jobId, 7);
        IJobMarketplace.Authorization memory nothing = _authorizeTopUp(jobId, 0);
        IJobMarketplace.Authorization memory tooMuch = _authorizeTopUp(jobId, 2 ** 96);

        _refuses(IJobMarketplace.ZeroAmount.selector);
        _bringTopUp(jobId, 0, SALT, nothing);
        _refuses(IProofSystem.DoesNotFit.selector, 2 ** 96, 96);
        _bringTopUp(jobId, 2 ** 96, SALT, tooMuch);
        _refuses(IProofSystem.NoSuchJob.selector, 2);
        _bringTopUp(2, 7, SALT, auth);

        vm.warp(START + 7 days);
        _refuses(IJobMarketplace.JobExpired.selector, jobId, START + 7 days);
        _bringTopUp(jobId, 7, SALT, auth);
        vm.warp(START);
        _complete(payer, jobId);
        _refuses(IJobMarketplace.AlreadyCompleting.selector, jobId, START + 12 hours);
        _bringTopUp(jobId, 7, SALT, auth);
        _complete(host, jobId);
        _refuses(IProofSystem.JobClosed.selector, jobId);
        _bringTopUp(jobId, 7, SALT, auth);
    }

    function _bring(IJobMarketplace.Terms memory terms, uint256 relayFee, IJobMarketplace.Authorization memory auth)
        private
        returns (uint256)
    {
        return _bring(terms, relayFee, SALT, auth);
    }

    function _bring(
        IJobMarketplace.Terms memory terms,
        uint256 relayFee,
        bytes32 salt,
        IJobMarketplace.Authorization memory auth
    ) private returns (uint256) {
        vm.prank(relayer);
        return market.createJobWithAuthorization(terms, relayFee, salt, auth);
    }

    function _bringTopUp(uint256 jobId, uint256 amount, bytes32 salt, IJobMarketplace.Authorization memory auth)
        private
    {
        vm.prank(relayer);
        market.topUpWithAuthorization(jobId, amount, salt, auth);
    }

    /// @dev The terms with one of them another, and each such change one that could stand for itself.
    function _changed(uint256 field) private view returns (IJobMarketplace.Terms memory) {
        bytes memory words = abi.encode(_terms());
        words[32 * field + 31] ^= 0x01;
        return abi.decode(words, (IJobMarketplace.Terms));
    }

    function _twin(address original) private pure returns (address) {
        return address(uint160(original) ^ 1);
    }

    /// @dev Sends a call with one of its bits changed, which changes nothing else; then as it was, which does.
    function _changeABit(bytes memory data, uint256 bit) private {
        // Behind the signature's 65 bytes there are 31 that fill its last word up.
        bit = _bound(bit, 0, 8 * (data.length - 31) - 1);
        bytes1 mask = bytes1(uint8(1 << bit % 8));
        bytes32 before = _moved();

        data[bit / 8] ^= mask;
        (bool taken,) = address(market).call(data);
        vm.assertTrue(!taken);
        vm.assertEq(_moved(), before);

        data[bit / 8] ^= mask;
        (taken,) = address(market).call(data);
        vm.assertTrue(taken);
    }

    /// @dev Whose the money is, and what jobs there are.
    function _moved() private view returns (bytes32) {
        return keccak256(
            abi.encode(
                dollar.balanceOf(payer),
                dollar.balanceOf(relayer),
                dollar.balanceOf(address(market)),
                market.jobCount(),
                market.getJob(1),
                market.getJob(2)
            )
        );
    }

    /// @dev Somebody tries to have the money that was authorized to the marketplace from the token itself.
    function _takeAtTheToken(bytes32 nonce, IJobMarketplace.Authorization memory auth) private {
        (uint256 validAfter, uint256 validBefore) = (auth.validAfter, auth.validBefore);
        bytes[2] memory tries = [
            abi.encodeCall(
                IERC3009.receiveWithAuthorization,
                (payer, address(market), DEPOSIT, validAfter, validBefore, nonce, auth.signature)
            ),
            abi.encodeCall(
                IERC3009.receiveWithAuthorization,
                (payer, stranger, DEPOSIT, validAfter, validBefore, nonce, auth.signature)
            )
        ];
        for (uint256 i; i < tries.length; ++i) {
            vm.prank(stranger);
            (bool taken,) = address(dollar).call(tries[i]);
            vm.assertTrue(!taken);
        }
    }

    /// @dev Neither is a job opened in the asset by authorization, nor one that is open topped up.
    function _assertRefused(address asset, bytes memory reason) private {
        IJobMarketplace.Terms memory terms = _terms();
        terms.asset = asset;
        IJobMarketplace.Authorization memory auth = IJobMarketplace.Authorization(payer, 0, START + 1 hours, "");
        vm.expectRevert(reason);
        _bring(terms, RELAY_FEE, auth);

        vm.prank(payer);
        (bool approved,) = asset.call(abi.encodeCall(IERC20.approve, (address(market), DEPOSIT)));
        vm.assertTrue(approved);
        uint256 jobId = _open(terms);
        vm.expectRevert(reason);
        _bringTopUp(jobId, DEPOSIT, SALT, auth);
        vm.assertEq(IERC20(asset).balanceOf(address(market)), DEPOSIT);
    }

    /// @dev A job in another token, for which the payer has the money and authorizes it.
    function _payIn(TestDollar token)
        private
        returns (IJobMarketplace.Terms memory terms, IJobMarketplace.Authorization memory auth)
    {
        terms = _terms();
        terms.asset = address(token);
        token.mint(payer, DEPOSIT);
        auth = _authorizeOpening(terms, RELAY_FEE);
    }

    function _wrongAmount(uint256 expected, uint256 received) private pure returns (bytes memory) {
        return abi.encodeWithSelector(IJobMarketplace.WrongAmountReceived.selector, expected, received);
    }

    function _used(bytes32 nonce) private view returns (bytes memory) {
        return abi.encodeWithSelector(ERC3009.ERC3009UsedAuthorization.selector, payer, nonce);
    }

    /// @dev A contract wallet of the payer's, with the money for a job.
    function _wallet() private returns (Wallet wallet, IJobMarketplace.Terms memory terms) {
        (wallet, terms) = (new Wallet(payer), _terms());
        dollar.mint(address(wallet), DEPOSIT);
    }

    function _authorizeFrom(Wallet wallet, IJobMarketplace.Terms memory terms, bytes memory note)
        private
        view
        returns (IJobMarketplace.Authorization memory auth)
    {
        auth = IJobMarketplace.Authorization(address(wallet), 0, START + 1 hours, "");
        bytes32 nonce = market.openNonce(terms, RELAY_FEE, SALT);
        auth.signature = abi.encodePacked(_signAuthorization(PAYER_KEY, terms.asset, DEPOSIT, nonce, auth), note);
    }
}
