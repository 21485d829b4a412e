// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IJobMarketplace} from "../src/interfaces/IJobMarketplace.sol";
import {IProofSystem} from "../src/interfaces/IProofSystem.sol";
import {Prices, PricesFields} from "../src/libraries/Prices.sol";
import {Pricing} from "../src/libraries/Pricing.sol";
import {Proof} from "../src/libraries/Proof.sol";
import {Tally} from "../src/libraries/Tally.sol";
import {Fixture} from "./Fixture.sol";
import {vm} from "./Vm.sol";
import {IERC5267} from "@openzeppelin/contracts/interfaces/IERC5267.sol";

/// @dev Lets a test hand `Proof` its calldata.
contract ProofReader {
    function signer(bytes calldata proof, bytes32 domain, uint256 jobId) external pure returns (address) {
        return Proof.signer(proof, domain, jobId);
    }
}

/// @dev The rules that contract, node and payer share give here what they give in Python: one file of cases for both.
contract VectorsTest is Fixture {
    string private vectors;

    function setUp() public override {
        super.setUp();
        vectors = vm.readFile("../tests/vectors.json");
    }

    function test_TheDomainIsTheVectors() public {
        _moveToTheVectors();

        vm.assertEq(market.DOMAIN_SEPARATOR(), vm.parseJsonBytes32(vectors, ".domain.separator"));
        (, string memory name, string memory version,,,,) = IERC5267(address(market)).eip712Domain();
        vm.assertEq(name, vm.parseJsonString(vectors, ".domain.name"), "name");
        vm.assertEq(version, vm.parseJsonString(vectors, ".domain.version"), "version");
    }

    function test_EveryReceiptHasItsDigest() public {
        _moveToTheVectors();

        uint256 i;
        for (; _exists("receipts", i); ++i) {
            bytes32 digest = market.receiptDigest(
                _uint("receipts", i, "jobId"),
                uint64(_uint("receipts", i, "promptTokens")),
                uint64(_uint("receipts", i, "tokens")),
                vm.parseJsonBytes32(vectors, _key("receipts", i, "transcript"))
            );
            vm.assertEq(digest, vm.parseJsonBytes32(vectors, _key("receipts", i, "digest")), _name("receipts", i));
        }
        vm.assertTrue(i > 0);
    }

    function test_EveryReceiptIsItsSignersInBothForms() public {
        ProofReader reader = new ProofReader();
        bytes32 domain = vm.parseJsonBytes32(vectors, ".domain.separator");

        uint256 i;
        for (; _exists("receipts", i); ++i) {
            address signer = vm.parseJsonAddress(vectors, _key("receipts", i, "signer"));
            uint256 jobId = _uint("receipts", i, "jobId");
            vm.assertEq(signer, vm.addr(_uint("receipts", i, "privateKey")), _name("receipts", i));
            vm.assertEq(
                signer, reader.signer(_proofOf("receipts", i, "signature"), domain, jobId), _name("receipts", i)
            );
            vm.assertEq(signer, reader.signer(_proofOf("receipts", i, "compact"), domain, jobId), _name("receipts", i));
        }
        vm.assertTrue(i > 0);
    }

    function test_EveryReceiptOfAJobThatCanBeOpenedIsPaid() public {
        _moveToTheVectors();
        uint256 paid;

        for (uint256 jobId = 1; jobId < 10; ++jobId) {
            uint256 i = _receiptOf(jobId);
            IJobMarketplace.Terms memory terms = _terms();
            terms.signer = vm.parseJsonAddress(vectors, _key("receipts", i, "signer"));
            vm.assertEq(_open(terms), jobId);

            uint256 tokens = _uint("receipts", i, "tokens");
            bytes memory proof = _proofOf("receipts", i, jobId % 2 == 0 ? "signature" : "compact");
            vm.prank(host);
            market.submitCheckpoint(jobId, tokens, proof);
            _assertTotals(jobId, _uint("receipts", i, "promptTokens"), tokens);
            if (tokens > 0) ++paid;
        }
        vm.assertTrue(paid > 0);
    }

    function test_EveryRefusedReceiptIsRefused() public {
        _moveToTheVectors();

        uint256 i;
        for (; _exists("refused", i); ++i) {
            IJobMarketplace.Terms memory terms = _terms();
            terms.signer = vm.parseJsonAddress(vectors, _key("refused", i, "signer"));
            uint256 jobId = _open(terms);
            vm.assertEq(jobId, _uint("refused", i, "jobId"));

            bytes memory claim = abi.encodeCall(
                market.submitCheckpoint, (jobId, _uint("refused", i, "tokens"), _proofOf("refused", i, "signature"))
            );
            vm.prank(host);
            (bool paid, bytes memory reason) = address(market).call(claim);

            vm.assertTrue(!paid, _name("refused", i));
            bool length = bytes4(reason) == IProofSystem.ProofLength.selector;
            vm.assertTrue(length || bytes4(reason) == IProofSystem.WrongSigner.selector, _name("refused", i));
        }
        vm.assertTrue(i > 0);
    }

    function test_EveryAmountOfMoneyIsExact() public view {
        uint256 i;
        for (; _exists("money", i); ++i) {
            Prices prices = PricesFields.pack(
                _uint("money", i, "pricePerMillion"), _uint("money", i, "promptPricePerMillion"), 0, 0
            );
            uint256 owed = Pricing.owed(prices, _uint("money", i, "promptTokens"), _uint("money", i, "tokens"));
            vm.assertEq(owed, _uint("money", i, "owed"), _name("money", i));
            vm.assertEq(Pricing.fee(owed), _uint("money", i, "fee"), _name("money", i));
            vm.assertEq(owed - Pricing.fee(owed), _uint("money", i, "host"), _name("money", i));
            vm.assertEq(_uint("money", i, "deposit") - owed, _uint("money", i, "refund"), _name("money", i));
        }
        vm.assertTrue(i > 0);
    }

    function test_EveryAmountOfMoneyIsWhatAJobPays() public {
        uint256 i;
        for (; _exists("money", i); ++i) {
            IJobMarketplace.Terms memory terms = _terms();
            terms.deposit = _uint("money", i, "deposit");
            terms.pricePerMillion = _uint("money", i, "pricePerMillion");
            terms.promptPricePerMillion = _uint("money", i, "promptPricePerMillion");
            if (terms.deposit == 0) {
                _refuses(IJobMarketplace.ZeroAmount.selector);
                _open(terms);
                continue;
            }
            uint256 jobId = _open(terms);
            (uint256 earned, uint256 fees) = (_earned(host, address(dollar)), market.treasuryBalance(address(dollar)));
            uint256 before = dollar.balanceOf(payer);

            _submit(_row(jobId, _uint("money", i, "promptTokens"), _uint("money", i, "tokens"), true));

            vm.assertEq(_earned(host, address(dollar)) - earned, _uint("money", i, "host"), _name("money", i));
            vm.assertEq(market.treasuryBalance(address(dollar)) - fees, _uint("money", i, "fee"), _name("money", i));
            vm.assertEq(dollar.balanceOf(payer) - before, _uint("money", i, "refund"), _name("money", i));
        }
        vm.assertTrue(i > 0);
    }

    function test_EveryVerdictOfLaw1() public view {
        uint256 i;
        for (; _exists("law1", i); ++i) {
            Tally tally =
                Tally.wrap(0).withTotals(_uint("law1", i, "settledPromptTokens"), _uint("law1", i, "settledTokens"));
            (uint256 promptTokens, uint256 tokens) = (_uint("law1", i, "promptTokens"), _uint("law1", i, "tokens"));
            string memory verdict = "ahead";
            if (tally.isStale(promptTokens, tokens)) verdict = "stale";
            else if (tally.isEqual(promptTokens, tokens)) verdict = "equal";
            vm.assertEq(verdict, vm.parseJsonString(vectors, _key("law1", i, "verdict")), _name("law1", i));
        }
        vm.assertTrue(i > 0);
    }

    function test_EveryVerdictOfLaw1IsWhatASubmissionMeets() public {
        uint256 i;
        for (; _exists("law1", i); ++i) {
            IJobMarketplace.Terms memory terms = _terms();
            (terms.pricePerMillion, terms.promptPricePerMillion) = (0, 0);
            uint256 jobId = _open(terms);
            _claim(jobId, _uint("law1", i, "settledPromptTokens"), _uint("law1", i, "settledTokens"));
            (uint256 promptTokens, uint256 tokens) = (_uint("law1", i, "promptTokens"), _uint("law1", i, "tokens"));
            string memory verdict = _verdict(jobId, promptTokens, tokens);

            vm.assertEq(verdict, vm.parseJsonString(vectors, _key("law1", i, "verdict")), _name("law1", i));
        }
        vm.assertTrue(i > 0);
    }

    /// @dev What a submission shows to be the verdict on a claim.
    function _verdict(uint256 jobId, uint256 promptTokens, uint256 tokens) private returns (string memory) {
        bytes32 before = keccak256(abi.encode(market.getJob(jobId)));
        bytes memory proof = _proof(jobId, promptTokens, tokens);
        vm.prank(host);
        (bool taken, bytes memory reason) =
            address(market).call(abi.encodeCall(market.submitCheckpoint, (jobId, tokens, proof)));

        if (!taken && bytes4(reason) == IProofSystem.StaleCheckpoint.selector) return "stale";
        return keccak256(abi.encode(market.getJob(jobId))) != before ? "ahead" : "equal";
    }

    /// @dev Puts the marketplace where, and on the chain on which, the vectors' signatures are for.
    function _moveToTheVectors() private {
        vm.chainId(_domainUint("chainId"));
        address there = vm.parseJsonAddress(vectors, ".domain.verifyingContract");
        vm.etch(there, address(market).code);
        market = IJobMarketplace(there);
        vm.prank(payer);
        dollar.approve(there, type(uint256).max);
    }

    function _proofOf(string memory list, uint256 i, string memory form) private view returns (bytes memory) {
        uint64 promptTokens = uint64(_uint(list, i, "promptTokens"));
        return abi.encodePacked(
            promptTokens,
            promptTokens,
            uint64(_uint(list, i, "tokens")),
            vm.parseJsonBytes32(vectors, _key(list, i, "transcript")),
            vm.parseJsonBytes(vectors, _key(list, i, form))
        );
    }

    function _receiptOf(uint256 jobId) private view returns (uint256 i) {
        while (_uint("receipts", i, "jobId") != jobId) ++i;
    }

    function _exists(string memory list, uint256 i) private view returns (bool) {
        return vm.keyExistsJson(vectors, _key(list, i, "name"));
    }

    function _key(string memory list, uint256 i, string memory field) private pure returns (string memory) {
        return string.concat(".", list, "[", vm.toString(i), "].", field);
    }

    function _name(string memory list, uint256 i) private view returns (string memory) {
        return vm.parseJsonString(vectors, _key(list, i, "name"));
    }

    function _uint(string memory list, uint256 i, string memory field) private view returns (uint256) {
        return vm.parseJsonUint(vectors, _key(list, i, field));
    }

    function _domainUint(string memory field) private view returns (uint256) {
        return vm.parseJsonUint(vectors, string.concat(".domain.", field));
    }
}
