"""Parts that behave and misbehave to order, for tests of a host or of a program that talks to one.

`engine`: an inference engine that follows a script. `geth`: a node as strict as geth, made of anvil, by the
rules in `pool`. `rpc`: a JSON-RPC endpoint in front of a node that fails on purpose, in the ways of `faults`.
"""
