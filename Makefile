# Each target installs what it needs (scripts/setup.sh).
VENV ?= .venv
BIN := $(VENV)/bin
# One thread a process: two pytest workers of two threads each on two cores wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# Two test files in parallel: most tests wait for processes that they start.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
# Waiting OpenMP threads must not spin: they would take the core from the rank that computes.
export OMP_WAIT_POLICY := PASSIVE
# Each module is compiled once, not in every process that a test starts.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test test-long test-engines test-fast gpu-check lint docs wheel setup clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: setup ## train, export, calibrate and evaluate a real model on real data: 6 to 13 minutes on 2 CPU cores
	@$(BIN)/clsgen demo

test: setup lint ## lint, and all tests but the long ones: about 20 minutes on 2 CPU cores
	@$(PYTEST) $(PARALLEL) --durations=15

test-long: setup ## the tests that make test skips: soak, measured planner runs, engine variants; property tests on new cases
	@$(PYTEST) -m "long or hypothesis" --hypothesis-profile default $(PARALLEL) --durations=15

test-engines: setup ## a real vLLM on the CPU serves a folded model: 2 minutes, and 4 to install it
	@bash scripts/setup_engines.sh
	@$(PYTEST) tests/engines

test-fast: setup ## unit tests only: about a minute
	@$(PYTEST) -m "not long and not slow and not dist and not browser"

gpu-check: setup ## on a machine with a GPU: tests, five minutes of training, benchmarks; writes a page of results to send back
	@$(BIN)/python scripts/gpu_check.py

lint: setup ## ruff, mypy, shellcheck, and a strict build of the docs site
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	@if command -v shellcheck >/dev/null; then shellcheck -x -P . scripts/*.sh slurm/*.sh .ci/run; else echo "shellcheck is not installed: shell scripts not checked"; fi
	@$(MAKE) --no-print-directory docs

docs: setup ## build the docs site into build/site
	@if [ -f mkdocs.yml ]; then NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict; fi

wheel: setup ## build the package into dist/
	@$(BIN)/python -m build

setup: ## install all dependencies into .venv
	@VENV=$(VENV) bash scripts/setup.sh

clean: ## delete the environment and build outputs
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
