// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

/// @title INodeRegistry
/// @notice Where hosts say that they are there, what they offer, and where their earnings go.
/// @dev Nobody owns the registry. A host writes its own entry; the metadata is kept in events, not in storage.
interface INodeRegistry {
    /// @notice `host` offers its service, described by `metadata`.
    /// @param host The host.
    /// @param metadata A URI or inline JSON (endpoint, models, prices, assets), 1 to 4096 bytes.
    event NodeRegistered(address indexed host, string metadata);

    /// @notice `host` describes itself anew.
    /// @param host The host.
    /// @param metadata What it says now, 1 to 4096 bytes.
    event NodeUpdated(address indexed host, string metadata);

    /// @notice `host` takes no new jobs. Its running jobs, earnings and payout address stay as they are.
    /// @param host The host.
    event NodeUnregistered(address indexed host);

    /// @notice From now on the earnings of `host` go to `payout`.
    /// @param host The host.
    /// @param payout Its payout address from now on.
    event PayoutChanged(address indexed host, address indexed payout);

    /// @notice A host is registered by itself only.
    /// @param caller Who sent the transaction.
    /// @param host The address that it tried to register.
    error NotTheHost(address caller, address host);

    /// @notice `host` is registered already; `updateNode` changes its metadata.
    /// @param host The host: the sender.
    error AlreadyRegistered(address host);

    /// @notice `host` is not registered.
    /// @param host The sender.
    error NotRegistered(address host);

    /// @notice Metadata is 1 to `most` bytes long.
    /// @param length What was sent, in bytes.
    /// @param most The most that is taken, in bytes.
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
    /// A host need not be registered. Nothing is asked of the new address but that it is not zero, and nothing can
    /// bring back what is sent to a wrong one: the marketplace itself, or a contract that cannot withdraw, keeps the
    /// earnings for ever.
    /// @param host Whose earnings they are.
    /// @param to Who receives them from now on; not zero.
    function setPayout(address host, address to) external;

    /// @notice Where the earnings of `host` go: `host` itself unless another address was set. Survives unregistering.
    /// @param host Any address; it need not be registered.
    /// @return The payout address; never zero, but for the zero address itself.
    function payoutOf(address host) external view returns (address);

    /// @notice Whether `host` takes new jobs.
    /// @param host Any address.
    /// @return Whether it is registered.
    function isRegistered(address host) external view returns (bool);
}
