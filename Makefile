# `make fit` and `make test` make the virtual environment by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: fit test learn tour soak lint types versions docs bench bench-quick reproduce reproduce-sb3 report env-list clean

fit: $(STAMP)
	$(BIN)/python -m lit_ppo fit

test: $(STAMP)
	$(BIN)/python -m pytest -n 2

# Runs that learn, and faults by the hundred: minutes, not seconds.
learn: $(STAMP)
	$(BIN)/python -m pytest -m slow --timeout 900

# What a user does, command by command; PARTS="after_training" for one part (tests/tour).
tour: $(STAMP)
	$(BIN)/python -m tests.tour $(PARTS)

soak: $(STAMP)
	$(BIN)/python -m tests.faults.soak

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# Dependencies of which a newer release is out than the tests run with.
versions: $(STAMP)
	$(BIN)/python -m tests.versions

# The documentation site, into build/site; any warning is an error.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(STAMP)
	$(BIN)/python -m benchmarks.run

bench-quick: $(STAMP)
	$(BIN)/python -m benchmarks.run --quick

# Rows of published scores that have no result yet; ROWS="cleanrl_cartpole dials" for some. All of them take days.
ROWS ?= $(basename $(notdir $(wildcard configs/rows/*.yaml)))

reproduce: $(STAMP)
	$(BIN)/python -m benchmarks.learning.reproduce $(ROWS)

# Stable-Baselines3 and sb3-contrib with the same settings, for the rows that are compared with them.
reproduce-sb3: $(STAMP)
	$(BIN)/python -m benchmarks.learning $(ROWS)

report: $(STAMP)
	$(BIN)/python -m benchmarks.learning.reproduce --report

# Sixty-six environments: each trains, loses its worker, resumes. Those without a result; FAMILIES="MuJoCo highway" for some.
env-list: $(STAMP)
	$(BIN)/python -m benchmarks.env_list $(FAMILIES)

# torch first and by its exact version: an open range may bring in gigabytes that are not needed
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache
