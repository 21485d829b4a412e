// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

/// @title INodeRegistry
/// @notice Where hosts say that they are there, what they offer, and where their earnings go.
/// @dev Nobody owns the registry. A host writes its own entry; the metadata is kept in events, not in storage.
interface INodeRegistry {
    /// @notice `host` offers its service, described by `metadata`.
    event NodeRegistered(address indexed host, string metadata);

    /// @notice `host` describes itself anew.
    event NodeUpdated(address indexed host, string metadata);

    /// @notice `host` takes no new jobs. Its running jobs, earnings and payout address stay as they are.
    event NodeUnregistered(address indexed host);

    /// @notice From now on the earnings of `host` go to `payout`.
    event PayoutChanged(address indexed host, address indexed payout);

    /// @notice A host is registered by itself only.
    /// @param caller Who sent the transaction.
    /// @param host The address that it tried to register.
    error NotTheHost(address caller, address host);

    /// @notice `host` is registered already; `updateNode` changes its metadata.
    error AlreadyRegistered(address host);

    /// @notice `host` is not registered.
    error NotRegistered(address host);

    /// @notice Metadata is 1 to `most` bytes long.
    /// @param length What was sent.
    /// @param most The most that is taken.
    error MetadataLength(uint256 length, uint256 most);

    /// @notice The payout address of a host is changed by the present payout address only.
    /// @param caller Who sent the transaction.
    /// @param payout The present payout address.
    error NotThePayout(address caller, address payout);

    /// @notice The zero address cannot be paid.
    error ZeroPayout();

    /// @notice Registers the sender as a host.
    /// @param hostAddress The host: the sender itself.
    /// @param metadata A URI or inline JSON (endpoint, models, prices, assets), 1 to 4096 bytes.
    function registerNode(address hostAddress, string calldata metadata) external;

    /// @notice Replaces the metadata of the sender, a registered host.
    /// @param metadata A URI or inline JSON, 1 to 4096 bytes.
    function updateNode(string calldata metadata) external;

    /// @notice Takes the sender off the registry. It may register again.
    function unregisterNode() external;

    /// @notice Sends the earnings of `host`, those already made included, to `to` from now on.
    /// @dev Only the present payout address may do this, which is the host itself until it has named another.
    /// So whoever steals the hot key of a host that has named a cold address cannot redirect anything.
    /// A host need not be registered.
    function setPayout(address host, address to) external;

    /// @notice Where the earnings of `host` go: `host` itself unless another address was set. Survives unregistering.
    function payoutOf(address host) external view returns (address);

    /// @notice Whether `host` takes new jobs.
    function isRegistered(address host) external view returns (bool);
}
