// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IERC3009 as IERC3009Bytes} from "../../src/interfaces/IERC3009.sol";
import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";

/// @title TestDollar
/// @notice A dollar for devnets and tests, with 6 decimals, paid by authorization (EIP-3009) as USDC is. Anybody may make
/// as many as they like.
contract TestDollar is ERC20("Test Dollar", "tUSD"), EIP712("Test Dollar", "2"), ERC3009, IERC3009Bytes {
    /// @notice Makes `amount` base units for `to`.
    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    /// @inheritdoc IERC3009Bytes
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external {
        bytes32 message = keccak256(
            abi.encode(RECEIVE_WITH_AUTHORIZATION_TYPEHASH, from, to, value, validAfter, validBefore, nonce)
        );
        if (!_isSigned(from, _hashTypedDataV4(message), signature)) revert ERC3009InvalidSignature();
        if (to != msg.sender) revert ERC20InvalidReceiver(to);
        _transferWithAuthorization(from, to, value, validAfter, validBefore, nonce);
    }

    /// @notice The separator of its EIP-712 domain.
    // forge-lint: disable-next-line(mixed-case-function)
    function DOMAIN_SEPARATOR() external view returns (bytes32) {
        return _domainSeparatorV4();
    }

    /// @notice The version of its EIP-712 domain.
    function version() external pure returns (string memory) {
        return "2";
    }

    /// @dev A key's signature is good whether or not its account has code, as EIP-7702 lets it have.
    function _isSigned(address from, bytes32 digest, bytes calldata signature) private view returns (bool) {
        (address recovered,,) = ECDSA.tryRecoverCalldata(digest, signature);
        return recovered == from || SignatureChecker.isValidERC1271SignatureNow(from, digest, signature);
    }

    /// @notice 1 tUSD is 1 000 000 base units.
    function decimals() public pure override returns (uint8) {
        return 6;
    }
}
