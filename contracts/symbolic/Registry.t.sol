// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {NodeRegistry} from "../src/NodeRegistry.sol";
import {INodeRegistry} from "../src/interfaces/INodeRegistry.sol";
import {vm} from "../test/Vm.sol";
import {svm} from "./Svm.sol";

/// @dev Who may change what in the registry, each function on its own: one call of anybody with anything, whatever the
/// registry's storage holds, and what it has done to any host's entry.
contract RegistryProof {
    /// @dev A host's entry, as everybody reads it.
    struct Entry {
        address payout;
        bool registered;
    }

    NodeRegistry private registry = new NodeRegistry();

    function check_registerNode(address caller, address host) external {
        (Entry memory before, Entry memory next) = _called(caller, host, INodeRegistry.registerNode.selector);

        assert(next.payout == before.payout);
        assert(next.registered == before.registered || (next.registered && caller == host));
    }

    function check_updateNode(address caller, address host) external {
        (Entry memory before, Entry memory next) = _called(caller, host, INodeRegistry.updateNode.selector);

        assert(next.payout == before.payout);
        assert(next.registered == before.registered);
    }

    function check_unregisterNode(address caller, address host) external {
        (Entry memory before, Entry memory next) = _called(caller, host, INodeRegistry.unregisterNode.selector);

        assert(next.payout == before.payout);
        assert(next.registered == before.registered || (before.registered && caller == host));
    }

    /// @dev So the hot key of a host that has named another address redirects nothing.
    function check_setPayout(address caller, address host) external {
        (Entry memory before, Entry memory next) = _called(caller, host, INodeRegistry.setPayout.selector);

        assert(next.payout == before.payout || (caller == before.payout && next.payout != address(0)));
        assert(next.registered == before.registered);
    }

    /// @dev The entry of `host` before and after a call of `function_` by `caller`, with any arguments, that succeeds.
    function _called(address caller, address host, bytes4 function_)
        private
        returns (Entry memory before, Entry memory next)
    {
        svm.enableSymbolicStorage(address(registry));
        before = _entry(host);

        bytes memory data = svm.createCalldata("NodeRegistry");
        vm.assume(bytes4(data) == function_);
        vm.prank(caller);
        (bool done,) = address(registry).call(data);
        vm.assume(done);

        next = _entry(host);
    }

    function _entry(address host) private view returns (Entry memory) {
        return Entry(registry.payoutOf(host), registry.isRegistered(host));
    }
}
