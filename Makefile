# One entry for everything: `make help`. Another environment: `make test VENV=path/to/environment`.
VENV ?= .venv
PYTHON ?= python3
# The study that `make science` runs: a file of configs/science.
STUDY ?= full
# Processes that share the tests' files; many tests start ranks of their own, so no more than the cores.
TEST_WORKERS ?= 2
BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.installed
EXTRAS := data,translate,train,finetune,cluster,dev

.PHONY: help setup quickstart science check format test soak bench clean

help: ## Show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 14

setup: $(STAMP) ## Make .venv and install the tested set of packages; nothing to do when it is up to date

$(STAMP): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed, $(PYTHON) is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

quickstart: $(STAMP) ## The whole pipeline on this machine, from repositories to a table of scores (two cores, 15 minutes at most)
	PATH="$(BIN):$$PATH" bash quickstart.sh

science: $(STAMP) ## The paper's claims in small, into docs/science.md: an afternoon on two cores, 45 minutes with STUDY=small; resumable
	$(BIN)/python -m benchmarks.science run --config configs/science/$(STUDY).yaml
	$(BIN)/python -m benchmarks.science report --config configs/science/$(STUDY).yaml

check: $(STAMP) ## Lint, format, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_import_directions.py

format: $(STAMP) ## Rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(STAMP) ## Every test that takes seconds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not soak" -n $(TEST_WORKERS) --dist loadfile --durations 40 --durations-min 5

soak: $(STAMP) ## The tests that take minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m soak

bench: $(STAMP) ## Each script of benchmarks/, one after the other
	@set -e; for script in $(sort $(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python -m benchmarks.$$(basename $$script .py); done

clean: ## Remove caches and build outputs; .venv and runs stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
	find mose data_prep pretrain finetune cluster tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
