# Two commands on a fresh machine with Python 3.11 and pip: `make run` and `make test`. No root, no KVM.

PYTHON ?= python3
FUZZ_SECONDS ?= 60
SEED ?=
HOST_KERNELS ?= .host-kernels
HOST_PACKAGES ?= $(foreach v,cloud 6.12-cloud 7.2.12+deb13-cloud 7.3.4+deb13-cloud,linux-image-$(v)-amd64)
KERNELS ?= 6.12
CONFORMANCE ?= --lab
VENV := .venv
BIN := $(VENV)/bin

# Debian packages that are needed to build the lab's kernel and to boot it.
LAB_TOOLS := qemu-system-x86 gcc libc6-dev make binutils dwarves flex bison bc perl libelf-dev tar xz-utils
# Debian packages that some tests use: a browser for the HTML page, headers for the structures.
CI_TOOLS := chromium linux-libc-dev
INSTALL := apt-get -qq update && apt-get -qq install --yes --no-install-recommends

as_root = if [ "$$(id -u)" = 0 ]; then $(1); elif command -v sudo >/dev/null; then sudo sh -c '$(1)'; \
	else echo 'as root, run: $(1)' >&2; exit 1; fi

.DEFAULT_GOAL := help
.PHONY: help run test lab-tools ci-tools test-lab test-host lint prove conformance bench kernels fuzz-readers campaigns docs clean

help:  ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

run: $(VENV)/.installed  ## check the memory layout of a real VM, then run recordings of real kernels on the model
	@$(BIN)/guestmem check --fail-on never --html guestmem-check.html examples/layouts/qemu100-q35-10G-memfd.txt
	@$(BIN)/guestmem run examples/recordings/*.jsonl.gz

test: $(VENV)/.installed-dev  ## run the tests, with the doctests and the examples of the documents
	$(BIN)/python -m pytest

lab-tools:  ## install what the lab needs (Debian packages, as root or with sudo)
	@$(call as_root,$(INSTALL) $(LAB_TOOLS))

ci-tools:  ## install programs without which some tests are skipped
	@$(call as_root,$(INSTALL) $(CI_TOOLS))

test-lab: $(VENV)/.installed-dev  ## build the lab's kernel if it is missing, and run the tests that boot it
	$(BIN)/guestmem lab build
	$(BIN)/python -m pytest --lab -m lab tests

test-host: $(VENV)/.installed-dev  ## boot HOST_PACKAGES under emulation and look at VMs in them (160 MB, 3 minutes)
	@for name in $(HOST_PACKAGES); do [ -d $(HOST_KERNELS)/$$name ] || { mkdir -p $(HOST_KERNELS)/$$name && $(BIN)/python -c \
		'import pathlib, sys; from guestmem.lab.package import fetch; fetch(sys.argv[1], pathlib.Path(sys.argv[2]))' \
		$$name $(HOST_KERNELS)/$$name; } || exit 1; done
	$(BIN)/python -m pytest --host-kernels $(HOST_KERNELS) -m host tests

lint: $(VENV)/.installed-dev  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

prove: $(VENV)/.installed-dev  ## prove the whole table again, and compare it with docs/proofs.md
	$(BIN)/python docs/proofs.py --check

conformance: $(VENV)/.installed-dev  ## build the KVM selftests of KERNELS (6.12) and run them on the model and in the lab
	$(BIN)/python -m conformance $(CONFORMANCE) $(KERNELS)

bench: $(VENV)/.installed-dev  ## measure the speed, also compared with this machine's kernel if it has KVM
	$(BIN)/python -m benchmarks

kernels: $(VENV)/.installed-dev  ## docs/kernels.md again, in labs of 6.12, 7.2 and 7.3 (a minute; their builds 5 each)
	$(BIN)/guestmem lab build && $(BIN)/guestmem lab build --kernel 7.2 && $(BIN)/guestmem lab build --kernel 7.3
	$(BIN)/guestmem kernels --markdown --on lab:6.12 --on model:v6.18 --on lab:7.2 --on lab:7.3 \
		$(foreach v,v6.12 v6.18 v7.3,examples/recordings/$(v)-directed.jsonl.gz) | $(BIN)/python -c \
		'import pathlib, sys; pathlib.Path("docs/kernels.md").write_text(sys.stdin.read() or sys.exit(1))'

fuzz-readers: $(VENV)/.installed-fuzz  ## fuzz the layout readers with atheris for FUZZ_SECONDS (60) in all
	$(BIN)/python -m fuzz_readers $(FUZZ_SECONDS)

campaigns: $(VENV)/.installed-fuzz  ## two minutes of random inputs for the hypothesis tests and the readers (SEED=N repeats)
	$(BIN)/python -m fuzz_readers.properties 45 $(SEED)
	$(BIN)/python -m fuzz_readers 60 $(SEED) any

docs: $(VENV)/.installed-dev  ## write the pages that are made from code again
	$(BIN)/python docs/divergences.py > docs/divergences.md
	$(BIN)/python docs/rules.py > docs/rules.md
	$(BIN)/python docs/proofs.py
	$(BIN)/python docs/races.py > docs/races.md

clean:  ## remove what the targets above made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build guestmem-check.html

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

# Kept out of the extras: atheris has wheels for some Pythons only; the target says so where it is missing.
$(VENV)/.installed-fuzz: $(VENV)/.installed-dev
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary atheris atheris
	@touch $@
