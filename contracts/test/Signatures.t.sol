// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IJobMarketplace} from "../src/interfaces/IJobMarketplace.sol";
import {IProofSystem} from "../src/interfaces/IProofSystem.sol";
import {Deployed} from "./Deployed.sol";
import {Fixture} from "./Fixture.sol";
import {vm} from "./Vm.sol";
import {IERC5267} from "@openzeppelin/contracts/interfaces/IERC5267.sol";

/// @dev Whose receipt a signature makes, and what is no signature.
contract SignaturesTest is Fixture {
    uint256 private constant ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;
    uint256 private constant HALF_ORDER = ORDER / 2;

    // The x coordinate of the curve's generator: an r of which somebody, nobody knows who, has the key.
    bytes32 private constant R = 0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798;

    // What a receipt is for

    function test_TheDomainIsTallystick1() public view {
        bytes32 separator = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("Tallystick"),
                keccak256("1"),
                block.chainid,
                address(market)
            )
        );
        vm.assertEq(market.DOMAIN_SEPARATOR(), separator);

        bytes32 receipt = keccak256(
            abi.encode(
                keccak256("Receipt(uint256 jobId,uint64 promptTokens,uint64 tokens,bytes32 transcript)"),
                uint256(121),
                uint64(12),
                uint64(100),
                TRANSCRIPT
            )
        );
        bytes32 digest = keccak256(abi.encodePacked(hex"1901", separator, receipt));
        vm.assertEq(market.receiptDigest(121, 12, 100, TRANSCRIPT), digest);
        vm.assertEq(_digest(121, 12, 100), digest);

        (, string memory name, string memory version,, address verifier,,) = IERC5267(address(market)).eip712Domain();
        vm.assertEq(name, "Tallystick", "name");
        vm.assertEq(version, "1", "version");
        vm.assertEq(verifier, address(market));
    }

    function test_OnlyTheJobsSignerSigns() public {
        uint256 jobId = _open();
        uint256[2] memory keys = [PAYER_KEY, 0x1057];

        for (uint256 i; i < keys.length; ++i) {
            _refuses(IProofSystem.WrongSigner.selector, vm.addr(keys[i]), signer);
            _claimWith(jobId, _sign(keys[i], jobId, 5, 100));
        }
    }

    function test_AReceiptIsForOneJob() public {
        uint256 jobId = _open();
        bytes memory signature = _sign(SIGNER_KEY, _open(), 5, 100);

        vm.expectPartialRevert(IProofSystem.WrongSigner.selector);
        _claimWith(jobId, signature);
    }

    function test_AReceiptIsForOneChain() public {
        uint256 jobId = _open();
        bytes memory signature = _sign(SIGNER_KEY, jobId, 5, 100);

        vm.chainId(10);
        vm.expectPartialRevert(IProofSystem.WrongSigner.selector);
        _claimWith(jobId, signature);
    }

    function test_AReceiptIsForOneMarketplace() public {
        bytes memory signature = _sign(SIGNER_KEY, _open(), 5, 100);
        market = Deployed.market(address(registry), treasury);
        vm.prank(payer);
        dollar.approve(address(market), type(uint256).max);
        uint256 jobId = _open();

        vm.assertEq(jobId, 1);
        vm.expectPartialRevert(IProofSystem.WrongSigner.selector);
        _claimWith(jobId, signature);
    }

    function testFuzz_WhatIsChangedInASignedReceiptIsRefused(uint256 index, uint8 change) public {
        uint256 jobId = _open();
        bytes memory proof = _proof(jobId, 5, 10, 100);
        // Beyond the claimed total, which is the host's to choose.
        index = _bound(index, 8, proof.length - 1);
        proof[index] ^= bytes1(uint8(_bound(change, 1, 255)));

        vm.prank(host);
        (bool paid,) = address(market).call(abi.encodeCall(market.submitCheckpoint, (jobId, 50, proof)));

        vm.assertTrue(!paid);
        _assertTotals(jobId, 0, 0);
    }

    // What a signature is

    function testFuzz_ACompactSignatureIsAsGood(uint256 key, uint256 tokens) public {
        // From beyond the keys of the other parties.
        key = _bound(key, 2 ** 16, ORDER - 1);
        tokens = _bound(tokens, 1, 500_000);
        IJobMarketplace.Terms memory terms = _terms();
        terms.signer = vm.addr(key);
        uint256 jobId = _open(terms);
        (bytes32 r, bytes32 vs) = vm.signCompact(key, _digest(jobId, 0, tokens));

        vm.prank(host);
        market.submitCheckpoint(
            jobId, tokens, abi.encodePacked(uint64(0), uint64(0), uint64(tokens), TRANSCRIPT, r, vs)
        );

        _assertTotals(jobId, 0, tokens);
    }

    function test_OneVIsTakenOf256() public {
        uint256 jobId = _open();
        (uint8 right, bytes32 r, bytes32 s) = vm.sign(SIGNER_KEY, _digest(jobId, 5, 100));

        for (uint256 v; v < 256; ++v) {
            if (v == right) continue;
            address recovered = ecrecover(_digest(jobId, 5, 100), uint8(v), r, s);
            vm.assertEq(recovered == address(0), v != 27 && v != 28);
            _refuses(IProofSystem.WrongSigner.selector, recovered, signer);
            _claimWith(jobId, abi.encodePacked(r, s, uint8(v)));
        }
        _claimWith(jobId, abi.encodePacked(r, s, right));
    }

    function test_ACompactSignatureWithTheOtherParityIsNotTheSigners() public {
        uint256 jobId = _open();
        (bytes32 r, bytes32 vs) = vm.signCompact(SIGNER_KEY, _digest(jobId, 5, 100));

        vm.expectPartialRevert(IProofSystem.WrongSigner.selector);
        _claimWith(jobId, abi.encodePacked(r, vs ^ bytes32(uint256(1) << 255)));
        _claimWith(jobId, abi.encodePacked(r, vs));
    }

    function test_ASignatureMalleatedToAHighSIsRefused() public {
        uint256 jobId = _open();
        bytes32 digest = _digest(jobId, 5, 100);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(SIGNER_KEY, digest);
        bytes32 highS = bytes32(ORDER - uint256(s));
        uint8 otherV = v == 27 ? 28 : 27;
        // It would recover to the signer, were it not for the rule.
        vm.assertEq(ecrecover(digest, otherV, r, highS), signer);

        _refuses(IProofSystem.WrongSigner.selector, address(0), signer);
        _claimWith(jobId, abi.encodePacked(r, highS, otherV));
    }

    /// @dev In the compact form as well, which has room for some that are too high.
    function test_SIsInTheLowerHalfToItsLastValue() public {
        uint256 jobId = _openFor(HALF_ORDER);
        _claimWith(jobId, abi.encodePacked(R, HALF_ORDER, uint8(27)));
        _claimWith(_openFor(HALF_ORDER), abi.encodePacked(R, HALF_ORDER));

        jobId = _openFor(HALF_ORDER + 1);
        address above = market.getJob(jobId).signer;
        _refuses(IProofSystem.WrongSigner.selector, address(0), above);
        _claimWith(jobId, abi.encodePacked(R, HALF_ORDER + 1, uint8(27)));
        _refuses(IProofSystem.WrongSigner.selector, address(0), above);
        _claimWith(jobId, abi.encodePacked(R, HALF_ORDER + 1));
    }

    /// @dev Were zero a signer, these would be its signatures: it is none, of no job.
    function test_WhatRecoversToNobodyIsRefused() public {
        uint256 jobId = _open();
        bytes memory zeros = new bytes(65);
        bytes[5] memory signatures = [
            zeros,
            new bytes(64),
            abi.encodePacked(bytes32(0), R, uint8(27)),
            abi.encodePacked(R, bytes32(0), uint8(27)),
            abi.encodePacked(ORDER, R, uint8(27))
        ];

        for (uint256 i; i < signatures.length; ++i) {
            _refuses(IProofSystem.WrongSigner.selector, address(0), signer);
            _claimWith(jobId, signatures[i]);
        }
    }

    function test_WhatIsCutOffOrAddedIsNoSignature() public {
        uint256 jobId = _open();
        bytes memory whole = _proof(jobId, 5, 100);

        for (uint256 length = 8; length < 120; ++length) {
            bytes memory cut = new bytes(length);
            for (uint256 i; i < length; ++i) {
                cut[i] = whole[i];
            }
            _refuses(IProofSystem.ProofLength.selector, length, 121);
            _submitWith(jobId, cut);
        }
        _refuses(IProofSystem.ProofLength.selector, 122, 121);
        _submitWith(jobId, abi.encodePacked(whole, uint8(0)));
        _submitWith(jobId, whole);
    }

    function testFuzz_AReceiptedProofHas121Or120Bytes(uint256 length) public {
        length = _bound(length, 0, 298);
        if (length >= 120) length += 2;
        uint256 jobId = _open();

        _refuses(IProofSystem.ProofLength.selector, length, length < 8 ? 8 : 121);
        vm.prank(host);
        market.submitCheckpoint(jobId, 100, new bytes(length));
    }

    /// @dev A job whose signer is whoever would sign its receipt with the given s.
    function _openFor(uint256 s) private returns (uint256 jobId) {
        jobId = market.jobCount() + 1;
        IJobMarketplace.Terms memory terms = _terms();
        terms.signer = ecrecover(_digest(jobId, 5, 100), 27, R, bytes32(s));
        vm.assertEq(_open(terms), jobId);
    }

    /// @dev The host claims 5 and 100 tokens with a signature that is meant to be over just that.
    function _claimWith(uint256 jobId, bytes memory signature) private {
        _submitWith(jobId, abi.encodePacked(uint64(5), uint64(5), uint64(100), TRANSCRIPT, signature));
    }

    function _submitWith(uint256 jobId, bytes memory proof) private {
        vm.prank(host);
        market.submitCheckpoint(jobId, 100, proof);
    }
}
