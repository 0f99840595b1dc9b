# Each target sets up what it needs (scripts/setup.sh).
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# Two files at a time: most tests wait for processes that they start.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
# Waiting threads that spin take the core from the rank that works.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help demo test test-long test-fast lint docs wheel setup clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: setup ## train, export, calibrate and evaluate a real model on real data: 6 to 7 minutes on 2 CPU cores
	@$(BIN)/clsgen demo

test: setup lint ## everything but the long tests: 11 to 20 minutes on 2 CPU cores
	@$(PYTEST) $(PARALLEL) --durations=15

test-long: setup ## what make test leaves out: soak, measured planner runs, engine variants that compile
	@$(PYTEST) -m long $(PARALLEL) --durations=15

test-fast: setup ## unit tests only: about a minute
	@$(PYTEST) -m "not long and not slow and not dist and not browser"

lint: setup ## ruff, mypy, shellcheck, and the docs site built strictly
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	@if command -v shellcheck >/dev/null; then shellcheck -x -P . scripts/*.sh slurm/*.sh .ci/run; else echo "shellcheck is not installed: shell scripts not checked"; fi
	@$(MAKE) --no-print-directory docs

docs: setup ## build the docs site into build/site
	@if [ -f mkdocs.yml ]; then NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict; fi

wheel: setup ## build the package into dist/
	@$(BIN)/python -m build

setup: ## install what everything needs into .venv
	@VENV=$(VENV) bash scripts/setup.sh

clean: ## delete the environment and what was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
