# make demo | make test are the two commands; each sets up what it needs (see scripts/setup.sh) and says how long.
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# Two files at a time: most tests wait for processes that they start.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
# Waiting threads that spin take the core from the rank that works.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test test-long test-fast lint setup clean

demo: setup
	@echo "== demo: training, export, calibration, evaluation; 6 to 7 minutes on 2 CPU cores"
	@$(BIN)/clsgen demo

test: setup lint
	@echo "== tests: everything this machine can test but the long ones; 11 to 20 minutes on 2 CPU cores"
	@$(PYTEST) $(PARALLEL) --durations=15

# Soak, measured planner runs, engine variants that compile. docs/results.md says when they last ran whole.
test-long: setup
	@echo "== tests marked long: what make test leaves out"
	@$(PYTEST) -m long $(PARALLEL) --durations=15

test-fast: setup
	@echo "== tests without the long ones; about 1 minute"
	@$(PYTEST) -m "not long and not slow and not dist and not browser"

lint: setup
	@echo "== ruff, mypy, shellcheck"
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	@if command -v shellcheck >/dev/null; then shellcheck -x -P . scripts/*.sh slurm/*.sh .ci/run; else echo "shellcheck is not installed: shell scripts not checked"; fi

setup:
	@VENV=$(VENV) bash scripts/setup.sh

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
