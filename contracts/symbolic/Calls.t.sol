// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {IJobMarketplace} from "../src/interfaces/IJobMarketplace.sol";
import {vm} from "../test/Vm.sol";
import {Laws} from "./Laws.sol";
import {svm} from "./Svm.sol";

/// @dev What no call can do, each function on its own; those that claim are in `Claims.t.sol`.
/// @custom:halmos --solver-timeout-branching 25ms
contract CallsProof is Laws {
    function check_createJob(address caller, IJobMarketplace.Terms memory terms) external {
        (terms.host, terms.asset) = (_anyHost(terms.host), _anyAsset(terms.asset));
        _everyLaw(_anyFunder(caller), _anyValue(), abi.encodeCall(IJobMarketplace.createJob, (terms)));
    }

    function check_createJobWithAuthorization(
        address caller,
        IJobMarketplace.Terms memory terms,
        uint256 relayFee,
        bytes32 salt,
        IJobMarketplace.Authorization memory auth
    ) external {
        (terms.host, terms.asset) = (_anyHost(terms.host), _anyAsset(terms.asset));
        auth.from = _anyFunder(auth.from);
        _everyLaw(caller, abi.encodeCall(IJobMarketplace.createJobWithAuthorization, (terms, relayFee, salt, auth)));
    }

    /// @custom:halmos --solver-command "../.venv-proof/bin/python ../scripts/solve.py"
    function check_topUp(address caller, uint256 jobId, uint256 amount) external {
        _everyLaw(_anyFunder(caller), _anyValue(), abi.encodeCall(IJobMarketplace.topUp, (_anyJob(jobId), amount)));
    }

    /// @custom:halmos --solver-command "../.venv-proof/bin/python ../scripts/solve.py"
    function check_topUpWithAuthorization(
        address caller,
        uint256 jobId,
        uint256 amount,
        bytes32 salt,
        IJobMarketplace.Authorization memory auth
    ) external {
        auth.from = _anyFunder(auth.from);
        jobId = _anyJob(jobId);
        _everyLaw(caller, abi.encodeCall(IJobMarketplace.topUpWithAuthorization, (jobId, amount, salt, auth)));
    }

    function check_completeSession(address caller, uint256 jobId) external {
        _everyLaw(caller, abi.encodeCall(IJobMarketplace.completeSession, (_anyJob(jobId))));
    }

    function check_reclaim(address caller, uint256 jobId) external {
        _everyLaw(caller, abi.encodeCall(IJobMarketplace.reclaim, (_anyJob(jobId))));
    }

    function check_withdraw(address caller, address asset, address to) external {
        _everyLaw(_anyParty(caller), abi.encodeCall(IJobMarketplace.withdraw, (_anyAsset(asset), to)));
    }

    function check_withdrawFor(address caller, address owner, address asset) external {
        _everyLaw(caller, abi.encodeCall(IJobMarketplace.withdrawFor, (_anyParty(owner), _anyAsset(asset))));
    }

    function check_withdrawTreasury(address caller, address asset, address to) external {
        _everyLaw(caller, abi.encodeCall(IJobMarketplace.withdrawTreasury, (_anyAsset(asset), to)));
    }

    /// @dev So the other checks call with none.
    function check_NothingElseTakesETH(address caller, uint256 value) external {
        bytes memory data = svm.createCalldata("JobMarketplace");
        bytes4 called = bytes4(data);
        vm.assume(
            value != 0 && called != IJobMarketplace.createJob.selector && called != IJobMarketplace.topUp.selector
        );

        vm.deal(caller, value);
        vm.prank(caller);
        (bool done,) = address(market).call{value: value}(data);
        assert(!done);
    }
}
