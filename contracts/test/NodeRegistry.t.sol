// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {INodeRegistry} from "../src/interfaces/INodeRegistry.sol";
import {Deployed} from "./Deployed.sol";
import {vm} from "./Vm.sol";

contract NodeRegistryTest {
    address private constant HOST = address(0x1057);
    address private constant COLD = address(0xc01d);

    INodeRegistry private registry = Deployed.registry();

    function test_AHostRegistersItselfAndSaysWhatItOffers() public {
        vm.expectEmit(address(registry));
        emit INodeRegistry.NodeRegistered(HOST, "ipfs://offer");
        _register(HOST, "ipfs://offer");

        vm.assertTrue(registry.isRegistered(HOST));
    }

    function test_AHostRegistersOnce() public {
        _register(HOST, "x");

        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.AlreadyRegistered.selector, HOST));
        _register(HOST, "y");
    }

    function test_MetadataHasOneTo4096Bytes() public {
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.MetadataLength.selector, 0, 4096));
        _register(HOST, "");
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.MetadataLength.selector, 4097, 4096));
        _register(HOST, string(new bytes(4097)));

        _register(HOST, string(new bytes(4096)));

        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.MetadataLength.selector, 0, 4096));
        vm.prank(HOST);
        registry.updateNode("");
    }

    function test_ARegisteredHostDescribesItselfAnew() public {
        _register(HOST, "x");

        vm.expectEmit(address(registry));
        emit INodeRegistry.NodeUpdated(HOST, "y");
        vm.prank(HOST);
        registry.updateNode("y");
    }

    function test_OnlyARegisteredHostUpdatesOrUnregisters() public {
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotRegistered.selector, HOST));
        vm.prank(HOST);
        registry.updateNode("y");

        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotRegistered.selector, HOST));
        vm.prank(HOST);
        registry.unregisterNode();
    }

    function test_AHostUnregistersAndMayComeBack() public {
        _register(HOST, "x");

        vm.expectEmit(address(registry));
        emit INodeRegistry.NodeUnregistered(HOST);
        vm.prank(HOST);
        registry.unregisterNode();
        vm.assertTrue(!registry.isRegistered(HOST));

        _register(HOST, "x");
        vm.assertTrue(registry.isRegistered(HOST));
    }

    function test_EarningsGoToTheHostItselfUntilItNamesAnother() public {
        vm.assertEq(registry.payoutOf(HOST), HOST);

        vm.expectEmit(address(registry));
        emit INodeRegistry.PayoutChanged(HOST, COLD);
        vm.prank(HOST);
        registry.setPayout(HOST, COLD);

        vm.assertEq(registry.payoutOf(HOST), COLD);
    }

    function test_ThePayoutAddressMayGiveTheEarningsBack() public {
        vm.prank(HOST);
        registry.setPayout(HOST, COLD);
        vm.prank(COLD);
        registry.setPayout(HOST, HOST);

        vm.assertEq(registry.payoutOf(HOST), HOST);
    }

    function test_EarningsNeverGoToTheZeroAddress() public {
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.ZeroPayout.selector));
        vm.prank(HOST);
        registry.setPayout(HOST, address(0));
    }

    function test_ThePayoutAddressSurvivesUnregisteringAndRegistering() public {
        _register(HOST, "x");
        vm.prank(HOST);
        registry.setPayout(HOST, COLD);

        vm.prank(HOST);
        registry.unregisterNode();
        vm.assertEq(registry.payoutOf(HOST), COLD);
        _register(HOST, "x");
        vm.assertEq(registry.payoutOf(HOST), COLD);
    }

    function _register(address host, string memory metadata) private {
        vm.prank(host);
        registry.registerNode(host, metadata);
    }
}
