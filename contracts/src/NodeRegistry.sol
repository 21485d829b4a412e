// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {INodeRegistry} from "./interfaces/INodeRegistry.sol";

/// @title NodeRegistry
/// @notice The manual is INodeRegistry.
contract NodeRegistry is INodeRegistry {
    /// @dev One slot a host. A zero payout stands for the host itself.
    struct Node {
        address payout;
        bool registered;
    }

    uint256 private constant MAX_METADATA = 4096;

    mapping(address host => Node) private _nodes;

    /// @inheritdoc INodeRegistry
    function registerNode(address hostAddress, string calldata metadata) external {
        if (msg.sender != hostAddress) revert NotTheHost(msg.sender, hostAddress);
        if (_nodes[hostAddress].registered) revert AlreadyRegistered(hostAddress);
        _checkMetadata(metadata);

        _nodes[hostAddress].registered = true;

        emit NodeRegistered(hostAddress, metadata);
    }

    /// @inheritdoc INodeRegistry
    function updateNode(string calldata metadata) external {
        if (!_nodes[msg.sender].registered) revert NotRegistered(msg.sender);
        _checkMetadata(metadata);

        emit NodeUpdated(msg.sender, metadata);
    }

    /// @inheritdoc INodeRegistry
    function unregisterNode() external {
        if (!_nodes[msg.sender].registered) revert NotRegistered(msg.sender);

        _nodes[msg.sender].registered = false;

        emit NodeUnregistered(msg.sender);
    }

    /// @inheritdoc INodeRegistry
    function setPayout(address host, address to) external {
        address payout = payoutOf(host);
        if (msg.sender != payout) revert NotThePayout(msg.sender, payout);
        if (to == address(0)) revert ZeroPayout();

        _nodes[host].payout = to;

        emit PayoutChanged(host, to);
    }

    /// @inheritdoc INodeRegistry
    function payoutOf(address host) public view returns (address) {
        address payout = _nodes[host].payout;
        return payout == address(0) ? host : payout;
    }

    /// @inheritdoc INodeRegistry
    function isRegistered(address host) external view returns (bool) {
        return _nodes[host].registered;
    }

    function _checkMetadata(string calldata metadata) private pure {
        uint256 length = bytes(metadata).length;
        if (length == 0 || length > MAX_METADATA) revert MetadataLength(length, MAX_METADATA);
    }
}
