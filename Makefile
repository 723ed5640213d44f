# make demo: AIMD, training and report in one go.  make test: everything CI checks.  make check: lint, types, layers.
# Needs Python >= 3.11, git and make; the packages go into .venv, again only when pyproject or constraints change.

PYTHON ?= python3
VENV ?= .venv
TEST_WORKERS ?= 2
DEMO_FLAGS ?=

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test check clean

help:
	@head -n 2 Makefile | sed 's/^# //'

demo: $(VENV)/.installed-demo
	$(BIN)/dyntrain demo $(DEMO_FLAGS)

# One thread a worker: the workers share the cores, and sums of one thread are the same everywhere.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) -m "" $(TEST_FLAGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dyntrain needs Python >= 3.11, found " + sys.version.split()[0] + ": try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(VENV)/.made
	@echo "installing dyntrain[$*] and what it needs into $(VENV) (minutes the first time)"
	$(INSTALL) --editable ".[$*]"
	@touch $@
