// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.34;

import {Limits} from "./Limits.sol";
import {Prices} from "./Prices.sol";
import {Tally} from "./Tally.sol";

/// @dev A job as it is stored: four slots. A job that exists has a deposit.
struct JobRecord {
    Tally tally;
    Prices prices;
    Limits limits;
    address payer;
}
