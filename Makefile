# Two commands on a fresh machine with Python 3.11 and pip: `make run` and `make test`. No root, no KVM.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help run test lint bench docs clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

run: $(VENV)/.installed  ## run recordings of real kernels on the model and compare every outcome
	@$(BIN)/guestmem run examples/recordings/*.jsonl.gz

test: $(VENV)/.installed-dev  ## run the tests, doctests and documentation examples among them
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev  ## measure, as ratios against the kernel where there is one
	$(BIN)/python -m benchmarks

docs: $(VENV)/.installed-dev  ## write the pages that are made from code
	$(BIN)/python docs/divergences.py > docs/divergences.md
	$(BIN)/python docs/races.py > docs/races.md

clean:  ## remove what the targets above made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
