// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IJobMarketplace} from "../src/interfaces/IJobMarketplace.sol";
import {INodeRegistry} from "../src/interfaces/INodeRegistry.sol";
import {vm} from "./Vm.sol";

/// @dev The contracts with the bytecode that is deployed. A test that imported them would get others under their names:
/// compiled as quickly as the tests are.
library Deployed {
    function market(address registry_, address treasury) internal returns (IJobMarketplace) {
        return IJobMarketplace(vm.deployCode("JobMarketplace.sol:JobMarketplace", abi.encode(registry_, treasury)));
    }

    function registry() internal returns (INodeRegistry) {
        return INodeRegistry(vm.deployCode("NodeRegistry.sol:NodeRegistry", ""));
    }
}
