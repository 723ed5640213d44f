# make demo: AIMD, training and report in one go.  make test: everything CI checks.  make check: lint, types, layers.
# Needs Python >= 3.11, git and make; the packages go into .venv, again only when pyproject or constraints change.

PYTHON ?= python3
VENV ?= .venv
TEST_WORKERS ?= 2
DEMO_FLAGS ?=

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test test-adapters test-engines check docs bench bench-rivals clean clean-kernels

help:
	@head -n 2 Makefile | sed 's/^# //'

demo: $(VENV)/.installed-demo
	$(BIN)/dyntrain demo $(DEMO_FLAGS)

# One thread a worker: the workers share the cores, and sums of one thread are the same everywhere.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) -m "" $(TEST_FLAGS)

# Other people's networks, in two environments: MACE needs another e3nn than the rest. A family whose package is
# missing there fails.
test-adapters: .venv-mace/.installed .venv-e3nn/.installed
	OMP_NUM_THREADS=1 DYNTRAIN_REQUIRE_ADAPTERS="mace" \
		.venv-mace/bin/python -m pytest -n $(TEST_WORKERS) -m "" tests/adapters
	OMP_NUM_THREADS=1 DYNTRAIN_REQUIRE_ADAPTERS="nequip allegro sevennet chgnet torchani" \
		.venv-e3nn/bin/python -m pytest -n $(TEST_WORKERS) -m "" tests/adapters

# Other engines moved by our potentials; each test needs its engine.
test-engines: .venv-engines/.installed
	OMP_NUM_THREADS=1 DYNTRAIN_REQUIRE_ENGINES=1 .venv-engines/bin/python -m pytest -m "" tests/deploy

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Speed, side by side with rival networks (made once by bench-rivals); REFERENCE=path: with the published code.
bench: $(VENV)/.installed-dev $(if $(REFERENCE),.venv-e3nn/.installed)
	$(BIN)/python benchmarks/bench.py $(if $(REFERENCE),--reference $(REFERENCE)) $(BENCH_FLAGS)

bench-rivals: $(VENV)/.installed-dev .venv-mace/.installed .venv-e3nn/.installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/rivals.py --make egnn
	OMP_NUM_THREADS=1 .venv-mace/bin/python benchmarks/rivals.py --seconds 280 --make mace_scalar mace_vector
	OMP_NUM_THREADS=1 .venv-e3nn/bin/python benchmarks/rivals.py --seconds 280 \
		--make nequip nequip_scalar sevennet sevennet_scalar

clean:
	rm -rf $(VENV) .venv-mace .venv-e3nn .venv-engines site .mypy_cache .pytest_cache .ruff_cache build dist

# Kernels that numba keeps on disk: to be made anew where a part of theirs in another file has changed.
clean-kernels:
	find src -name '*.nb[ci]' -delete

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dyntrain needs Python >= 3.11, found " + sys.version.split()[0] + ": try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(VENV)/.made
	@echo "installing dyntrain[$*] and what it needs into $(VENV) (minutes the first time)"
	$(INSTALL) --editable ".[$*]"
	@touch $@

ADAPTER_TEST := pytest pytest-xdist pytest-timeout hypothesis

.venv-mace/.installed: EXTRAS := mace
.venv-engines/.installed: EXTRAS := engines
.venv-e3nn/.installed: EXTRAS := nequip,allegro,sevennet,chgnet,torchani
.venv-e3nn/.installed: ADAPTER_TEST += e3nn==0.6.0

.venv-mace/.installed .venv-e3nn/.installed .venv-engines/.installed: pyproject.toml constraints.txt constraints-adapters.txt
	@echo "installing dyntrain[$(EXTRAS)] into $(@D) (minutes the first time)"
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--constraint constraints-adapters.txt --editable ".[$(EXTRAS)]" $(ADAPTER_TEST)
	@touch $@
