# Each target sets up what it needs, once: a stamp file says that a step is done.

export PATH := $(CURDIR)/.venv/bin:$(CURDIR)/node_modules/.bin:$(PATH)

VENV    := .venv/.made
RUNTIME := .venv/.runtime
DEV     := .venv/.dev
NODE    := node_modules/.installed
MODEL   := .venv-model/.made
PROOF   := .venv-proof/.made
BENCH   := .venv-bench/.made

.PHONY: help demo test test-contracts contracts-deep test-python lint format abi model lock \
	faults crash adversaries honest slither halmos mutate coverage gas bench clean forge
.NOTPARALLEL:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 | \2/p' Makefile | awk -F'|' '{ printf "%-22s%s\n", $$1, $$2 }'
	@echo
	@echo "A test whose tool is missing (Chromium, strace, PostgreSQL) is skipped; with CI=true it fails."

demo: $(RUNTIME) $(NODE) ## a whole paid conversation on a local chain: open, stream, settle, refund
	.venv/bin/tally demo

test: test-contracts test-python ## all tests

test-contracts: $(VENV) $(NODE) forge ## the contracts' tests
	cd contracts && forge test

contracts-deep: $(DEV) $(NODE) forge ## the contracts' random tests for longer: ten times the inputs, forty times the moves
	cd contracts && FOUNDRY_PROFILE=deep forge test
	.venv/bin/python -m tests.differential

test-python: $(DEV) $(NODE) ## the package's tests; ARGS="-k receipt" chooses
	.venv/bin/pytest -n 2 $(ARGS)

lint: $(DEV) $(NODE) forge ## formatting, lint, types, compiler warnings, generated files
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	cd contracts && forge fmt --check src test symbolic
	cd contracts && forge build --force
	.venv/bin/python scripts/abi.py --check
	.venv/bin/python scripts/natspec.py
	.venv/bin/python scripts/vectors.py --check
	.venv/bin/python scripts/errors.py --check
	.venv/bin/python scripts/settings.py --check
	.venv/bin/python scripts/host.py --check
	.venv/bin/python scripts/readme.py --check
	scripts/check-tree

format: $(DEV) $(NODE) forge ## rewrite what lint would refuse, where a tool can
	.venv/bin/ruff check --fix
	.venv/bin/ruff format
	cd contracts && forge fmt src test symbolic

faults: $(DEV) $(NODE) ## the fault storm, 1 056 seeds: benchmarks/faults.json, docs/faults.md; ARGS="--seed 123" tells one
	.venv/bin/python -m tests.faults $(ARGS)

crash: $(DEV) $(NODE) ## the crash sweep, 10 000 points and 300 of a node: benchmarks/crash.json, docs/crash.md; ARGS="--points 500" for fewer
	.venv/bin/python -m tests.crash $(ARGS)

adversaries: $(DEV) $(NODE) ## 1 000 sessions with liars: benchmarks/adversaries.json, docs/adversaries.md; ARGS="--seed 123" tells one
	.venv/bin/python -m tests.adversaries $(ARGS)

abi: $(VENV) $(NODE) forge ## write src/tallystick/abi/ from contracts/
	.venv/bin/python scripts/abi.py

gas: $(RUNTIME) $(NODE) ## measure what the contracts cost: benchmarks/gas.json, docs/gas.md; ARGS=--check compares
	.venv/bin/python -m benchmarks.gas $(ARGS)

honest: $(DEV) $(NODE) ## ask a real model ten thousand times, its payer counting too: benchmarks/honest.json
	.venv/bin/python -m benchmarks.honest $(ARGS)

bench: $(RUNTIME) $(DEV) $(NODE) $(BENCH) ## measure against the peers: benchmarks/RESULTS.md; ARGS="--rounds 1 --only receipts" chooses
	.venv/bin/python -m benchmarks.run $(ARGS)

model: $(MODEL) ## make the demonstration model again
	.venv-model/bin/python scripts/model/make.py src/tallystick/models/tally-demo.gguf

lock: $(VENV) ## write requirements*.lock from pyproject.toml; ARGS=--upgrade takes newer versions
	scripts/lock $(ARGS)

slither: $(PROOF) $(NODE) forge ## static analysis of the contracts
	scripts/slither

halmos: $(PROOF) $(NODE) forge ## prove the contracts' laws for every input; ARGS="--function check_topUp" chooses
	.venv-proof/bin/python scripts/symbolic.py $(ARGS)

mutate: $(PROOF) $(NODE) forge ## change the contracts in every small way, and see the tests fail; ARGS="Pricing Fit" chooses
	.venv-proof/bin/python scripts/mutate/campaign.py $(ARGS)

coverage: $(VENV) $(NODE) forge ## find branches of the contracts that no test takes
	.venv/bin/python scripts/branches.py

clean: ## remove what was installed and built
	rm -rf .venv .venv-model .venv-proof .venv-bench node_modules contracts/out contracts/cache .mypy_cache .pytest_cache .ruff_cache

# Setting up

$(VENV):
	@scripts/setup venv
	@touch $@

$(RUNTIME): requirements.lock pyproject.toml | $(VENV)
	@scripts/setup runtime
	@touch $@

$(DEV): requirements-dev.lock | $(RUNTIME)
	@scripts/setup dev
	@touch $@

$(NODE): package-lock.json | $(VENV)
	@scripts/setup node
	@touch $@

$(MODEL): scripts/model/requirements.txt
	@scripts/setup model
	@touch $@

$(PROOF): requirements-proof.lock
	@scripts/setup proof
	@touch $@

$(BENCH): requirements-bench.lock
	@scripts/setup bench
	@touch $@

forge: $(NODE)
	@forge --version >/dev/null || { echo "forge is not in PATH: install Foundry" >&2; exit 1; }
